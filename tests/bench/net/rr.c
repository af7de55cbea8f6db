/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Request and response: one byte to the other end of a TCP connection and one back, one after the other.
 *
 *   net-rr serve            answers on port 5555, one client after the other
 *   net-rr ADDRESS SECONDS  asks, and prints how often, as JSON
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT 5555

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int make_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
        err(1, "socket");
    return fd;
}

static void no_delay(int fd)
{
    int on = 1;

    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
        err(1, "TCP_NODELAY");
}

static void serve(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int listener = make_socket();

    if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 4) < 0)
        err(1, "port %d", PORT);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char byte;

        if (fd < 0)
            err(1, "accept");
        no_delay(fd);
        while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
            ;
        close(fd);
    }
}

static void ask(const char *address, double time)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    double start, end;
    unsigned long n = 0;
    int fd = make_socket();
    char byte = 'x';

    if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
        errx(1, "%s: not an IPv4 address", address);
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        err(1, "%s", address);
    no_delay(fd);
    start = seconds();
    do {
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            err(1, "%s: the connection ended", address);
        n++;
        end = seconds();
    } while (end - start < time);
    printf("{\"transactions\": %lu, \"seconds\": %.6f}\n", n, end - start);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "serve") == 0)
        serve();
    else if (argc == 3)
        ask(argv[1], atof(argv[2]));
    else
        errx(2, "usage: net-rr serve | net-rr ADDRESS SECONDS");
    return 0;
}
