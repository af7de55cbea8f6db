/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One port's host end, as the worker uses it. What is lost comes back by itself: a pty and a listening
 * socket wait for the next one who opens them; what somebody else owns (a peer's socket, a serial line)
 * is asked for again, at first after a second, then less often; a full disk is tried again.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend.h"
#include "log.h"

#define RETRY_MIN_NS (INT64_C(1) * 1000000000)
#define RETRY_MAX_NS (INT64_C(10) * 1000000000)
#define SAY_GONE_NS (INT64_C(1) * 1000000000)

const char *const stream_kind_names[STREAM_KINDS] = {
    [STREAM_NONE] = "none",       [STREAM_PTY] = "pty",   [STREAM_LISTEN] = "listen",
    [STREAM_CONNECT] = "connect", [STREAM_FILE] = "file", [STREAM_LOG] = "log",
    [STREAM_DEVICE] = "device",
};

static bool is_socket(const struct char_stream *s)
{
    return s->kind == STREAM_LISTEN || s->kind == STREAM_CONNECT;
}

/* Who may come back by himself, and come and go as often as he likes: a line a second says enough. */
static void say_gone(struct char_stream *s)
{
    int64_t now = monotonic_ns();

    if ((s->kind != STREAM_PTY && s->kind != STREAM_LISTEN) || s->closing ||
        (s->said_gone_ns != 0 && now - s->said_gone_ns < SAY_GONE_NS))
        return;
    s->said_gone_ns = now;
    log_info("%s: its reader is gone", s->name);
}

static void set_present(struct char_stream *s, bool present)
{
    if (s->present == present)
        return;
    s->present = present;
    if (!present)
        say_gone(s);
    if (present && s->want_read) {
        s->want_read = false;
        stream_want_read(s);
    }
    if (!s->closing)
        s->changed(s);
}

static void complain(struct char_stream *s, const char *what, const char *why)
{
    if (!s->complained)
        log_warning("%s: %s: %s", s->name, what, why);
    s->complained = true;
}

static void works_again(struct char_stream *s)
{
    if (s->complained)
        log_info("%s: works again", s->name);
    s->complained = false;
    s->retry_ns = RETRY_MIN_NS;
}

static void retry_later(struct char_stream *s)
{
    loop_set_timer(s->loop, &s->retry, s->retry_ns);
    s->retry_ns = MIN(s->retry_ns * 2, RETRY_MAX_NS);
}

static void ask(struct char_stream *s, const char *what)
{
    if (s->asked || s->closing)
        return;
    s->asked = true;
    s->ask(s, what);
}

static void rotate(struct char_stream *s)
{
    s->rotating = true;
    ask(s, "rotate");
}

static void retry_now(struct loop_timer *timer)
{
    struct char_stream *s = container_of(timer, struct char_stream, retry);

    if (s->rotating)
        rotate(s);
    else if (s->data.fd < 0)
        ask(s, "open");
    else
        set_present(s, true); /* a file: the disk may have room again */
}

/* The reader is gone, or writing failed. */
static void lost(struct char_stream *s, int error)
{
    switch (s->kind) {
    case STREAM_FILE:
    case STREAM_LOG:
        complain(s, "cannot write", strerror(error));
        retry_later(s);
        break;
    case STREAM_CONNECT:
    case STREAM_DEVICE:
        complain(s, "lost", error != 0 ? strerror(error) : "the other side closed it");
        stream_fd_close(&s->data);
        break;
    case STREAM_LISTEN:
        stream_fd_close(&s->data);
        break;
    default: /* a pty stays */
        s->drained = true;
        break;
    }
    set_present(s, false);
}

static void look_at_pty(struct char_stream *s)
{
    struct pollfd poll_fd = {.fd = s->data.fd, .events = POLLOUT};

    bool present;

    if (s->kind != STREAM_PTY || poll(&poll_fd, 1, 0) < 0)
        return;
    present = (poll_fd.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0;
    s->drained = s->drained && !present;
    set_present(s, present);
}

/* A pty that was closed still has what was written to it before. */
static bool may_read(const struct char_stream *s)
{
    return s->present || (s->kind == STREAM_PTY && !s->drained);
}

static void data_readable(struct stream_fd *fd)
{
    struct char_stream *s = container_of(fd, struct char_stream, data);

    /* A hang-up makes a pty readable, too: reading says so, and then it is not watched any more. */
    if (may_read(s))
        s->readable(s);
    else
        s->want_read = true;
}

static void data_writable(struct stream_fd *fd)
{
    struct char_stream *s = container_of(fd, struct char_stream, data);

    s->writable(s);
}

static void end_if_over(struct char_stream *s)
{
    if (s->closing && s->data.fd < 0 && s->watch.fd < 0) {
        s->closing = false;
        s->closed(s);
    }
}

static void begin(struct char_stream *s, int fd)
{
    stream_fd_open(&s->data, s->loop, fd);
    s->size = 0;
    if (s->kind == STREAM_LOG) {
        off_t end = lseek(fd, 0, SEEK_END);

        s->size = end > 0 ? (uint64_t)end : 0;
    }
}

static void data_closed(struct stream_fd *fd)
{
    struct char_stream *s = container_of(fd, struct char_stream, data);

    if (s->closing) {
        end_if_over(s);
    } else if (s->next_fd >= 0) {
        begin(s, s->next_fd);
        s->next_fd = -1;
        if (s->present)
            s->writable(s);
        else
            set_present(s, true);
    } else if (s->kind == STREAM_LISTEN) {
        stream_fd_want_read(&s->watch);
    } else {
        retry_later(s);
    }
}

/* A peer knocks, or somebody opened the pty. */
static void watch_readable(struct stream_fd *fd)
{
    struct char_stream *s = container_of(fd, struct char_stream, watch);
    char events[1024];
    int peer;

    if (s->kind == STREAM_PTY) {
        while (read(fd->fd, events, sizeof(events)) > 0)
            ;
        look_at_pty(s);
        if (!s->present) {
            /* Whoever opened it may have left already, and what he wrote is still there. */
            s->drained = false;
            stream_want_read(s);
        }
        stream_fd_want_read(fd);
        return;
    }
    if (s->data.fd >= 0)
        return; /* the next one waits until this one is gone */
    peer = accept4(fd->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (peer < 0) {
        if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
            complain(s, "cannot take a connection", strerror(errno));
        stream_fd_want_read(fd);
        return;
    }
    begin(s, peer);
    set_present(s, true);
}

static void watch_closed(struct stream_fd *fd)
{
    end_if_over(container_of(fd, struct char_stream, watch));
}

void stream_start(struct char_stream *s)
{
    s->data.fd = s->watch.fd = s->next_fd = -1;
    s->data.readable = data_readable;
    s->data.writable = data_writable;
    s->data.closed = data_closed;
    s->watch.readable = watch_readable;
    s->watch.closed = watch_closed;
    s->retry.expired = retry_now;
    s->retry_ns = RETRY_MIN_NS;
    if (s->kind != STREAM_NONE)
        ask(s, "open");
}

static void rotated(struct char_stream *s, int status, const char *why, int *fds, size_t n_fds)
{
    if (status < 0 || n_fds < 1) {
        complain(s, "the log is full and cannot be put aside", why);
        set_present(s, false); /* nobody waits for it */
        retry_later(s);
        return;
    }
    s->rotating = false;
    s->next_fd = fds[0];
    fds[0] = -1;
    works_again(s);
    stream_fd_close(&s->data);
}

void stream_give(struct char_stream *s, int status, const char *why, int *fds, size_t n_fds)
{
    size_t wanted = s->kind == STREAM_PTY ? 2 : 1;

    s->asked = false;
    if (s->closing)
        return;
    if (s->rotating) {
        rotated(s, status, why, fds, n_fds);
        return;
    }
    if (s->data.fd >= 0 || s->watch.fd >= 0)
        return;
    if (status < 0 || n_fds < wanted) {
        complain(s, "not there", why);
        retry_later(s);
        return;
    }
    works_again(s);
    if (s->kind == STREAM_LISTEN) {
        stream_fd_open(&s->watch, s->loop, fds[0]);
        stream_fd_want_read(&s->watch);
        fds[0] = -1;
        return;
    }
    begin(s, fds[0]);
    fds[0] = -1;
    if (s->kind == STREAM_PTY) {
        stream_fd_open(&s->watch, s->loop, fds[1]);
        stream_fd_want_read(&s->watch);
        fds[1] = -1;
        look_at_pty(s);
    } else {
        set_present(s, true);
    }
}

void stream_want_read(struct char_stream *s)
{
    if (s->kind == STREAM_FILE || s->kind == STREAM_LOG || s->kind == STREAM_NONE)
        return;
    if (may_read(s))
        stream_fd_want_read(&s->data);
    else
        s->want_read = true;
}

size_t stream_read(struct char_stream *s, void *to, size_t len)
{
    ssize_t n;

    if (!may_read(s) || !stream_fd_is_open(&s->data) || s->kind == STREAM_FILE ||
        s->kind == STREAM_LOG)
        return 0;
    n = read(s->data.fd, to, len);
    if (n > 0)
        return (size_t)n;
    if (n == 0)
        lost(s, 0);
    else if (errno != EAGAIN && errno != EINTR)
        lost(s, errno);
    return 0;
}

size_t stream_write(struct char_stream *s, const struct iovec *iov, int n_iov)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n_iov};
    size_t offered = 0;
    ssize_t n;

    if (s->present)
        look_at_pty(s);
    if (!s->present || s->rotating || !stream_fd_is_open(&s->data))
        return 0;
    if (s->kind == STREAM_LOG && s->size >= s->max_size) {
        rotate(s);
        return 0;
    }
    if (is_socket(s))
        n = sendmsg(s->data.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    else
        n = writev(s->data.fd, iov, n_iov);
    if (n >= 0) {
        s->size += (uint64_t)n;
        if (s->complained)
            works_again(s);
    } else if (errno == EAGAIN || errno == EINTR) {
        n = 0;
    } else {
        lost(s, errno);
        return 0;
    }
    for (int i = 0; i < n_iov; i++)
        offered += iov[i].iov_len;
    if ((size_t)n < offered)
        stream_fd_want_write(&s->data);
    return (size_t)n;
}

void stream_close(struct char_stream *s)
{
    bool data = s->data.fd >= 0, watch = s->watch.fd >= 0;

    s->closing = true;
    loop_cancel_timer(s->loop, &s->retry);
    if (s->next_fd >= 0)
        close(s->next_fd);
    s->next_fd = -1;
    s->present = false;
    /* The last of these may end the stream's memory. */
    if (data)
        stream_fd_close(&s->data);
    if (watch)
        stream_fd_close(&s->watch);
    if (!data && !watch)
        end_if_over(s);
}
