/* SPDX-License-Identifier: Apache-2.0 */
#include "viodctl_console.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "backend.h"

#define ESCAPE 0x1d /* Ctrl-], as in xl console */

/* All of them but SIGWINCH, SIGTSTP and SIGCONT end the program, and give the terminal back first. */
static const int caught[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGALRM, SIGUSR1, SIGUSR2,
                             SIGWINCH, SIGTSTP, SIGCONT};

/* How long the guest may have nobody who serves it. */
#define AGAIN_TRIES 200
#define AGAIN_MS 50

struct session {
    const char *path;
    uint8_t port;
    uint64_t at;             /* position of the next byte of the guest's output; see ATTACH_OPEN */
    unsigned tries;          /* to attach again, since something came from the other side */
    int socket, signals, out;
    bool is_terminal;        /* standard input is */
    bool raw;
    struct termios before;
    bool input_open;
    /*
     * What was typed: first what is in the socket, and not known to outlive the worker (ATTACH_TAKEN), then
     * what is not sent yet.
     */
    char typed[4 * ATTACH_DATA_MAX];
    size_t n_sent, n_typed;
    bool attached;           /* to a worker that has said so: until then nothing is sent */
    bool counts;             /* it says what it has taken ... */
    uint32_t taken;          /* ... so far */
    bool was_reset;          /* it has ended, and left something in the socket */
    char shown[1 + ATTACH_DATA_MAX]; /* a packet of the guest, and which part of it is not shown yet */
    size_t shown_from, n_shown;
};

static void set_raw(struct session *s)
{
    struct termios termios = s->before;

    if (!s->is_terminal)
        return;
    cfmakeraw(&termios);
    if (tcsetattr(STDIN_FILENO, TCSANOW, &termios) == 0)
        s->raw = true;
}

static void give_terminal_back(struct session *s)
{
    if (s->raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &s->before);
    s->raw = false;
}

static int send_packet(struct session *s, char kind, const void *data, size_t len, int flags)
{
    struct iovec iov[2] = {{&kind, 1}, {(void *)(uintptr_t)data, len}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    if (sendmsg(s->socket, &message, MSG_NOSIGNAL | flags) >= 0)
        return 0;
    s->was_reset |= errno == ECONNRESET; /* Linux says it once */
    return -errno;
}

static void send_size(struct session *s)
{
    struct winsize size;
    uint16_t wire[2];

    if (!s->is_terminal || ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col == 0 ||
        size.ws_row == 0)
        return;
    wire[0] = htole16(size.ws_col);
    wire[1] = htole16(size.ws_row);
    (void)send_packet(s, ATTACH_SIZE, wire, sizeof(wire), 0);
}

/* 0 or -errno. */
static int connect_to_port(struct session *s)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t at = htole64(s->at);
    uint8_t open[1 + sizeof(at)] = {s->port};

    if (strlen(s->path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, s->path, strlen(s->path) + 1);
    memcpy(open + 1, &at, sizeof(at));
    s->attached = s->counts = s->was_reset = false;
    s->taken = 0;
    s->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (s->socket < 0 || connect(s->socket, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    return send_packet(s, ATTACH_OPEN, open, sizeof(open), 0);
}

static int attach(struct session *s)
{
    int ret = connect_to_port(s);

    if (ret < 0)
        fprintf(stderr, "viodctl: cannot attach at %s: %s\n", s->path, strerror(-ret));
    return ret;
}

static void forget_typed(struct session *s, size_t n)
{
    s->n_sent -= n;
    s->n_typed -= n;
    memmove(s->typed, s->typed + n, s->n_typed);
}

/*
 * A worker that dies may leave in its socket what was typed, for the time that the kernel takes to finish
 * it off, a second perhaps. Linux tells: it is for the next one. What it had read, and has not said to
 * have taken, may or may not have reached the guest: it is not typed twice.
 */
static void take_typed_back(struct session *s)
{
    if (s->was_reset)
        s->n_sent = 0;
    forget_typed(s, s->n_sent);
}

/*
 * The worker has ended. If its guest has, too, the socket goes away; else it waits there for the next
 * worker, which goes on where this one was.
 */
static bool attach_again(struct session *s)
{
    take_typed_back(s);
    while (s->tries++ < AGAIN_TRIES) {
        int ret;

        close(s->socket);
        ret = connect_to_port(s);
        if (ret == 0) {
            send_size(s);
            return true;
        }
        if (ret != -EPIPE && ret != -ECONNRESET)
            break;
        (void)poll(NULL, 0, AGAIN_MS);
    }
    return false;
}

static void send_typed(struct session *s)
{
    /* What nobody took is kept for the next one: see attach_again. */
    while (s->attached && s->n_sent < s->n_typed) {
        size_t n = MIN(s->n_typed - s->n_sent, (size_t)ATTACH_DATA_MAX);

        if (send_packet(s, ATTACH_DATA, s->typed + s->n_sent, n, MSG_DONTWAIT) < 0)
            break;
        s->n_sent += n;
        if (!s->counts)
            forget_typed(s, s->n_sent);
    }
}

/*
 * A terminal that stands still (its reader does) must not keep us from signals. It is opened anew for
 * that: the descriptor that we were given is shared with the shell.
 */
static int open_output(void)
{
    int fd = isatty(STDOUT_FILENO)
                 ? open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                 : -1;

    return fd >= 0 ? fd : STDOUT_FILENO;
}

/* False: standard output is gone. */
static bool show(struct session *s)
{
    ssize_t n = write(s->out, s->shown + s->shown_from, s->n_shown - s->shown_from);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    s->shown_from += (size_t)n;
    if (s->shown_from == s->n_shown)
        s->n_shown = 0;
    return true;
}

/* -1: go on; otherwise the exit status. */
static int from_guest(struct session *s)
{
    char *packet = s->shown;
    ssize_t n = recv(s->socket, packet, sizeof(s->shown), 0);

    if (n < 0 && errno == EINTR)
        return -1;
    if (n < 0 && errno == ECONNRESET && !s->was_reset) {
        s->was_reset = true; /* what the worker had said is still to come */
        return -1;
    }
    if (n <= 0) {
        if (s->tries > 0)
            (void)poll(NULL, 0, AGAIN_MS);
        if (attach_again(s))
            return -1;
        give_terminal_back(s);
        fprintf(stderr, "\nviodctl: the console is gone: the guest has ended\n");
        return 1;
    }
    s->tries = 0;
    if (packet[0] == ATTACH_AT && n == 1 + sizeof(s->at)) {
        memcpy(&s->at, packet + 1, sizeof(s->at));
        s->at = le64toh(s->at);
        s->attached = true;
        send_typed(s);
        return -1;
    }
    if (packet[0] == ATTACH_TAKEN && n == 1 + sizeof(s->taken)) {
        uint32_t taken;

        memcpy(&taken, packet + 1, sizeof(taken));
        taken = le32toh(taken);
        forget_typed(s, MIN((uint32_t)(taken - s->taken), s->n_sent));
        s->taken = taken;
        s->counts = true;
        return -1;
    }
    if (packet[0] == ATTACH_DATA && n > 1) {
        s->at += (uint64_t)n - 1;
        s->shown_from = 1;
        s->n_shown = (size_t)n;
        return show(s) ? -1 : 1;
    }
    if (packet[0] == ATTACH_ERROR) {
        give_terminal_back(s);
        fprintf(stderr, "viodctl: %.*s\n", (int)n - 1, packet + 1);
        return 1;
    }
    return -1;
}

/* -1: go on; otherwise the exit status. */
static int from_user(struct session *s)
{
    char *start = s->typed + s->n_typed, *escape;
    ssize_t n = read(STDIN_FILENO, start, MIN(sizeof(s->typed) - s->n_typed, (size_t)ATTACH_DATA_MAX));

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return -1;
    if (n <= 0) {
        s->input_open = false; /* of a terminal: it hung up */
        return s->is_terminal ? 1 : -1;
    }
    escape = s->is_terminal ? memchr(start, ESCAPE, (size_t)n) : NULL;
    s->n_typed += escape != NULL ? (size_t)(escape - start) : (size_t)n;
    send_typed(s);
    return escape != NULL ? 0 : -1;
}

/* -1: go on; otherwise the signal that ends us. */
static int from_system(struct session *s)
{
    struct signalfd_siginfo info;

    if (read(s->signals, &info, sizeof(info)) != sizeof(info))
        return -1;
    switch (info.ssi_signo) {
    case SIGWINCH:
        send_size(s);
        return -1;
    case SIGTSTP:
        give_terminal_back(s);
        (void)raise(SIGSTOP);
        set_raw(s);
        send_size(s);
        return -1;
    case SIGCONT:
        set_raw(s);
        send_size(s);
        return -1;
    default:
        return (int)info.ssi_signo;
    }
}

static void die_of(int number)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, number);
    signal(number, SIG_DFL);
    (void)raise(number);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static int talk(struct session *s)
{
    for (;;) {
        /* What was typed waits for the guest, and the keyboard for what was typed; what the guest
         * says waits for the screen. */
        bool reading = s->n_shown == 0, writing = s->attached && s->n_sent < s->n_typed;
        bool typing = s->input_open && s->n_sent == s->n_typed && s->n_typed < sizeof(s->typed);
        struct pollfd fds[4] = {
            {.fd = reading || writing ? s->socket : -1,
             .events = (short)((reading ? POLLIN : 0) | (writing ? POLLOUT : 0))},
            {.fd = s->signals, .events = POLLIN},
            {.fd = typing ? STDIN_FILENO : -1, .events = POLLIN},
            {.fd = reading ? -1 : s->out, .events = POLLOUT},
        };
        int ret;

        if (poll(fds, 4, -1) < 0)
            continue;
        if (fds[1].revents != 0) {
            ret = from_system(s);
            if (ret >= 0) {
                give_terminal_back(s);
                die_of(ret);
                return 1;
            }
        }
        if ((fds[0].revents & POLLOUT) != 0)
            send_typed(s);
        if (fds[3].revents != 0 && !show(s))
            return 1;
        if (reading && (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
            ret = from_guest(s);
            if (ret >= 0)
                return ret;
        }
        if (fds[2].revents != 0) {
            ret = from_user(s);
            if (ret >= 0)
                return ret;
        }
    }
}

int viodctl_console(const char *path, unsigned port)
{
    struct session s = {.path = path,
                        .port = (uint8_t)port,
                        .at = ATTACH_SCREEN,
                        .socket = -1,
                        .input_open = true};
    sigset_t set;
    int ret = 1;

    if (attach(&s) < 0)
        return 1;
    s.is_terminal = tcgetattr(STDIN_FILENO, &s.before) == 0;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(caught) / sizeof(caught[0]); i++)
        sigaddset(&set, caught[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    s.signals = signalfd(-1, &set, SFD_CLOEXEC);
    s.out = open_output();
    if (s.signals >= 0) {
        if (s.is_terminal)
            fputs("viodctl: attached; Ctrl-] ends it\n", stderr);
        set_raw(&s);
        send_size(&s);
        ret = talk(&s);
        give_terminal_back(&s);
        if (s.is_terminal && ret == 0)
            fputs("\n", stderr);
    }
    close(s.socket);
    return ret;
}
