/* SPDX-License-Identifier: Apache-2.0 */
/* viodctl console, while workers of its guest die: it goes on with the next one, where it was. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend.h"
#include "unit.h"
#include "viodctl_console.h"

struct world {
    char folder[64], path[96];
    int listener, client; /* the supervisor's, the worker's */
    int keys, screen;     /* of viodctl */
    pid_t pid;
};

static void begin(struct world *w)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int keys[2], screen[2];

    strcpy(w->folder, "/tmp/viod-test-viodctl.XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    snprintf(w->path, sizeof(w->path), "%s/attach", w->folder);
    strcpy(address.sun_path, w->path);
    w->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(w->listener, 4), 0);
    assert_int_equal(pipe(keys), 0);
    assert_int_equal(pipe(screen), 0);
    w->pid = fork();
    if (w->pid == 0) {
        alarm(60);
        dup2(keys[0], STDIN_FILENO);
        dup2(screen[1], STDOUT_FILENO);
        close(w->listener);
        close(keys[1]);
        close(screen[0]);
        _exit(viodctl_console(w->path, 5));
    }
    close(keys[0]);
    close(screen[1]);
    w->keys = keys[1];
    w->screen = screen[0];
}

/* A worker: the position from which on viodctl wants the output. */
static uint64_t accept_client(struct world *w)
{
    uint8_t packet[32];
    uint64_t at;

    w->client = accept(w->listener, NULL, NULL);
    assert_true(w->client >= 0);
    assert_int_equal(recv(w->client, packet, sizeof(packet), 0), 2 + sizeof(at));
    assert_int_equal(packet[0], ATTACH_OPEN);
    assert_int_equal(packet[1], 5);
    memcpy(&at, packet + 2, sizeof(at));
    return le64toh(at);
}

static void tell(struct world *w, char kind, const void *data, size_t len)
{
    char packet[64] = {kind};

    memcpy(packet + 1, data, len);
    assert_int_equal(send(w->client, packet, 1 + len, MSG_NOSIGNAL), (ssize_t)(1 + len));
}

static void begins_at(struct world *w, uint64_t at)
{
    uint64_t wire = htole64(at);

    tell(w, ATTACH_AT, &wire, sizeof(wire));
}

static void shows(struct world *w, const char *text)
{
    char seen[64];
    size_t n = 0;

    while (n < strlen(text)) {
        ssize_t got = read(w->screen, seen + n, sizeof(seen) - n);

        assert_true(got > 0);
        n += (size_t)got;
    }
    assert_int_equal(n, strlen(text));
    assert_memory_equal(seen, text, n);
}

static void test_next_worker(void **state)
{
    char packet[64];
    struct world w;
    int status;

    (void)state;
    begin(&w);
    assert_int_equal(accept_client(&w), ATTACH_SCREEN);
    begins_at(&w, 1000);
    tell(&w, ATTACH_DATA, "hello", 5);
    shows(&w, "hello");
    close(w.client);
    assert_int_equal(accept_client(&w), 1005);
    begins_at(&w, 1005);
    tell(&w, ATTACH_DATA, ", again", 7);
    shows(&w, ", again");
    assert_int_equal(write(w.keys, "typed", 5), 5);
    assert_int_equal(recv(w.client, packet, sizeof(packet), 0), 6);
    assert_memory_equal(packet, "dtyped", 6);
    /* One that dies before it has said a word; what was typed meanwhile is for the next one. */
    close(w.client);
    assert_int_equal(accept_client(&w), 1012);
    close(w.client);
    assert_int_equal(accept_client(&w), 1012);
    begins_at(&w, 1012);
    assert_int_equal(write(w.keys, "more", 4), 4);
    assert_int_equal(recv(w.client, packet, sizeof(packet), 0), 5);
    assert_memory_equal(packet, "dmore", 5);
    /* The guest has ended: the supervisor removes the socket, sooner or later. */
    close(w.client);
    assert_int_equal(accept_client(&w), 1012);
    assert_int_equal(unlink(w.path), 0);
    close(w.listener);
    close(w.client);
    assert_int_equal(waitpid(w.pid, &status, 0), w.pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    close(w.keys);
    close(w.screen);
    assert_int_equal(rmdir(w.folder), 0);
}

static void takes(struct world *w, uint32_t bytes)
{
    bytes = htole32(bytes);
    tell(w, ATTACH_TAKEN, &bytes, sizeof(bytes));
}

static void types(struct world *w, const char *text)
{
    assert_int_equal(write(w->keys, text, strlen(text)), (ssize_t)strlen(text));
}

static void hears(struct world *w, const char *text)
{
    char packet[64];
    ssize_t n = recv(w->client, packet, sizeof(packet), 0);

    assert_true(n > 0);
    packet[n] = '\0';
    assert_string_equal(packet, text);
}

/* It is in the socket of a worker. */
static void is_sent(struct world *w, size_t n)
{
    char packet[64];

    while (recv(w->client, packet, sizeof(packet), MSG_PEEK) != (ssize_t)(1 + n))
        ;
}

/* What was typed while a worker died reaches the next one, once, unless it may have reached the guest. */
static void test_typed_meanwhile(void **state)
{
    struct world w;
    int status;

    (void)state;
    begin(&w);
    accept_client(&w);
    takes(&w, 0);
    begins_at(&w, 0);
    types(&w, "one");
    hears(&w, "done");
    takes(&w, 3);
    types(&w, "two");
    is_sent(&w, 3); /* and there it stays */
    close(w.client);
    accept_client(&w);
    types(&w, "three"); /* to one that has not said a word, and never will */
    close(w.client);
    accept_client(&w);
    takes(&w, 0);
    begins_at(&w, 0);
    hears(&w, "dtwo");
    takes(&w, 3);
    hears(&w, "dthree");
    takes(&w, 8);
    types(&w, "four");
    hears(&w, "dfour"); /* it had read this, and perhaps told the guest */
    close(w.client);
    accept_client(&w);
    takes(&w, 0);
    begins_at(&w, 0);
    types(&w, "five");
    hears(&w, "dfive");
    takes(&w, 4);
    close(w.client);
    /* A worker of an earlier version says nothing. */
    accept_client(&w);
    begins_at(&w, 0);
    types(&w, "six");
    is_sent(&w, 3);
    close(w.client);
    accept_client(&w);
    begins_at(&w, 0);
    types(&w, "seven");
    hears(&w, "dseven");
    kill(w.pid, SIGTERM);
    assert_int_equal(waitpid(w.pid, &status, 0), w.pid);
    close(w.client);
    close(w.listener);
    close(w.keys);
    close(w.screen);
    assert_int_equal(unlink(w.path), 0);
    assert_int_equal(rmdir(w.folder), 0);
}

/* It is told why, and does not try for ever. */
static void test_refused(void **state)
{
    struct world w;
    int status;

    (void)state;
    begin(&w);
    assert_int_equal(accept_client(&w), ATTACH_SCREEN);
    tell(&w, ATTACH_ERROR, "no such port", 12);
    close(w.client);
    assert_int_equal(waitpid(w.pid, &status, 0), w.pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    close(w.listener);
    close(w.keys);
    close(w.screen);
    assert_int_equal(unlink(w.path), 0);
    assert_int_equal(rmdir(w.folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_worker),
        cmocka_unit_test(test_typed_meanwhile),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
