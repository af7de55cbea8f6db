/* SPDX-License-Identifier: Apache-2.0 */
/*
 * passt, which connects a guest without any right on the host, speaks frames on a stream socket, each
 * behind its length in 4 bytes, big-endian. A relay in the worker turns that into what a device expects
 * of a TAP: a descriptor that reads and writes one frame a call behind a header of 12 bytes. It copies,
 * which does not matter here: passt itself takes every connection apart.
 */
#include <errno.h>
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend.h"
#include "log.h"

#define HEADER_LEN 12u
#define FRAME_MIN 14u
#define FRAME_MAX 65553u
#define FRAMES_PER_TURN 64
#define IN_LEN (4u * 65536u)
#define SOCKET_BUFFER (1 << 20)

struct net_passt {
    struct stream_fd device;    /* frames, towards the device */
    struct stream_fd host;      /* towards passt */
    unsigned watched;           /* descriptors that the loop has not let go of */
    bool full;                  /* the device takes no frame now: passt waits */
    bool closing, dying;
    size_t in_len, out_len, out_done;
    uint8_t in[IN_LEN];
    uint8_t out[4 + FRAME_MAX]; /* a frame of which passt has taken a part */
};

static void finish_closing(struct net_passt *p)
{
    if (p->watched == 0 && p->dying)
        free(p);
}

static void device_closed(struct stream_fd *fd)
{
    struct net_passt *p = container_of(fd, struct net_passt, device);

    p->watched--;
    finish_closing(p);
}

static void host_closed(struct stream_fd *fd)
{
    struct net_passt *p = container_of(fd, struct net_passt, host);

    p->watched--;
    finish_closing(p);
}

/* The device meets the end of its descriptor, as it does when a TAP is gone. */
static void close_relay(struct net_passt *p)
{
    if (p->closing)
        return;
    p->closing = true;
    p->watched++; /* not before both are removed */
    stream_fd_close(&p->device);
    stream_fd_close(&p->host);
    p->watched--;
    finish_closing(p);
}

static bool send_all(int fd, struct iovec *iov, size_t n, ssize_t *sent)
{
    const struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};

    *sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return *sent >= 0 || errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
}

/* True if passt can take another frame. Never waits: what it does not take is dropped as a whole. */
static bool flush_out(struct net_passt *p)
{
    struct iovec iov = {p->out + p->out_done, p->out_len - p->out_done};
    ssize_t sent;

    if (p->out_len == 0)
        return true;
    if (!send_all(p->host.fd, &iov, 1, &sent)) {
        close_relay(p);
        return false;
    }
    p->out_done += sent > 0 ? (size_t)sent : 0;
    if (p->out_done == p->out_len || p->out_done == 0) {
        p->out_len = p->out_done = 0;
        return true;
    }
    stream_fd_want_write(&p->host);
    return false;
}

static void host_writable(struct stream_fd *fd)
{
    (void)flush_out(container_of(fd, struct net_passt, host));
}

static void device_readable(struct stream_fd *fd)
{
    struct net_passt *p = container_of(fd, struct net_passt, device);
    static uint8_t dropped[HEADER_LEN + FRAME_MAX]; /* written, never read */

    for (int i = 0; i < FRAMES_PER_TURN && !p->closing; i++) {
        bool room = flush_out(p);
        uint8_t header[HEADER_LEN];
        struct iovec iov[2] = {{header, sizeof(header)}, {p->out + 4, FRAME_MAX}};
        ssize_t len;

        if (p->closing)
            return;
        len = room ? readv(fd->fd, iov, 2) : read(fd->fd, dropped, sizeof(dropped));
        if (len < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (len <= 0) {
            close_relay(p);
            return;
        }
        if (room && len >= (ssize_t)(HEADER_LEN + FRAME_MIN)) {
            uint32_t wire = htobe32((uint32_t)len - HEADER_LEN);

            memcpy(p->out, &wire, sizeof(wire));
            p->out_len = 4 + (size_t)len - HEADER_LEN;
        }
    }
    if (!p->closing)
        (void)flush_out(p);
    if (!p->closing)
        stream_fd_want_read(fd);
}

/*
 * False: what came is no frame. One that the device has no room for stays, and passt waits: it knows what
 * it could not send and goes on there, while a lost frame costs it, and a connection, seconds.
 */
static bool pass_frames(struct net_passt *p)
{
    static const uint8_t header[HEADER_LEN];
    size_t at = 0;

    while (p->in_len - at >= 4) {
        struct iovec iov[2] = {{(void *)(uintptr_t)header, sizeof(header)}, {p->in + at + 4, 0}};
        uint32_t len;
        ssize_t sent;

        memcpy(&len, p->in + at, sizeof(len));
        len = be32toh(len);
        if (len < FRAME_MIN || len > FRAME_MAX)
            return false;
        if (p->in_len - at - 4 < len)
            break;
        iov[1].iov_len = len;
        if (!send_all(p->device.fd, iov, 2, &sent))
            return false;
        if (sent < 0 && errno == EAGAIN) {
            p->full = true;
            break;
        }
        at += 4 + len;
    }
    memmove(p->in, p->in + at, p->in_len - at);
    p->in_len -= at;
    return true;
}

static void device_writable(struct stream_fd *fd)
{
    struct net_passt *p = container_of(fd, struct net_passt, device);

    p->full = false;
    if (!pass_frames(p))
        close_relay(p);
    else if (p->full)
        stream_fd_want_write(fd);
    else
        stream_fd_want_read(&p->host);
}

static void host_readable(struct stream_fd *fd)
{
    struct net_passt *p = container_of(fd, struct net_passt, host);
    ssize_t len = read(fd->fd, p->in + p->in_len, sizeof(p->in) - p->in_len);

    if (len >= 0 || (errno != EAGAIN && errno != EINTR)) {
        p->in_len += len > 0 ? (size_t)len : 0;
        if (len <= 0 || !pass_frames(p)) {
            close_relay(p);
            return;
        }
    }
    if (p->full)
        stream_fd_want_write(&p->device);
    else
        stream_fd_want_read(fd);
}

int net_passt_create(struct event_loop *loop, int frames, int stream, struct net_passt **out)
{
    struct net_passt *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return -ENOMEM;
    p->device.readable = device_readable;
    p->device.writable = device_writable;
    p->device.closed = device_closed;
    p->host.readable = host_readable;
    p->host.writable = host_writable;
    p->host.closed = host_closed;
    p->watched = 2;
    stream_fd_open(&p->device, loop, frames);
    stream_fd_open(&p->host, loop, stream);
    stream_fd_want_read(&p->device);
    stream_fd_want_read(&p->host);
    *out = p;
    return 0;
}

void net_passt_destroy(struct net_passt *p)
{
    if (p == NULL)
        return;
    p->dying = true;
    if (p->closing)
        finish_closing(p);
    else
        close_relay(p);
}

int net_passt_ended(int fds[3])
{
    int ends[2], ret;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0) {
        ret = -errno;
        close(fds[0]);
        close(fds[1]);
        return ret;
    }
    close(ends[1]);
    fds[2] = ends[0];
    return 0;
}

int net_passt_open(const char *path, int fds[3], char *error, size_t error_len)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int size = SOCKET_BUFFER, ret;

    if (strlen(path) >= sizeof(address.sun_path)) {
        snprintf(error, error_len, "socket = %s: a socket's path has at most %zu bytes", path,
                 sizeof(address.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) {
        ret = -errno;
        snprintf(error, error_len, "no sockets: %s", strerror(-ret));
        return ret;
    }
    fds[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fds[2] < 0 || connect(fds[2], (struct sockaddr *)&address, sizeof(address)) < 0) {
        ret = -errno;
        snprintf(error, error_len,
                 "cannot connect to passt at %s: %s; is it running (passt --socket %s)?", path,
                 strerror(-ret), path);
        for (unsigned i = 0; i < 3; i++)
            if (fds[i] >= 0)
                close(fds[i]);
        return ret;
    }
    for (unsigned i = 0; i < 3; i++)
        (void)setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    return 0;
}
