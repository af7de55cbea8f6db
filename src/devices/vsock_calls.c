/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls from outside: of the host's clients, who say on a socket of theirs which port they want, and of
 * other guests, which the supervisor passes on. The guest is asked in the same way, and once it has
 * accepted, the same word goes back.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/vsock_internal.h"
#include "log.h"

#define ACCEPTS_PER_TURN 16
/* A client says "CONNECT <port>" within this time, maybe by hand; the guest answers within that one. */
#define HELLO_SECONDS 60u
#define CALL_SECONDS 10u

/* A line of the host side, into c->line: 1; 0: more is to come; -EINVAL. */
static int read_line(struct vsock_connection *c)
{
    char peeked[VSOCK_LINE_MAX], *newline;
    size_t room = sizeof(c->line) - 1 - c->line_len;
    ssize_t n = vsock_peek(c->fd, peeked, room);
    struct iovec iov = {.iov_base = c->line + c->line_len};

    if (n <= 0)
        return n == -EAGAIN ? 0 : -EINVAL;
    if ((size_t)n > room)
        return -EINVAL; /* a message that is longer */
    newline = memchr(peeked, '\n', (size_t)n);
    /* What follows the line is the guest's. */
    iov.iov_len = newline != NULL ? (size_t)(newline + 1 - peeked) : (size_t)n;
    n = vsock_receive(c->fd, &iov, 1);
    if (n <= 0)
        return -EINVAL;
    c->line_len = (uint8_t)(c->line_len + n);
    c->line[c->line_len] = '\0';
    if (newline == NULL && !c->seqpacket)
        return c->line_len < sizeof(c->line) - 1 ? 0 : -EINVAL;
    return 1;
}

/* ---- of the host ---- */

/* "CONNECT <port>", and an end of line. */
static int parse_port(const struct vsock_connection *c, uint32_t *port)
{
    unsigned long long value;
    char *end;

    if (strncmp(c->line, "CONNECT ", 8) != 0 || c->line[8] < '0' || c->line[8] > '9')
        return -EINVAL;
    errno = 0;
    value = strtoull(c->line + 8, &end, 10);
    if (errno != 0 || value >= UINT32_MAX || strspn(end, " \r\n") != strlen(end))
        return -EINVAL;
    *port = (uint32_t)value;
    return 0;
}

static void call_guest(struct vsock_connection *c, uint32_t guest_port, uint32_t host_port)
{
    c->guest_port = guest_port;
    c->host_port = host_port;
    vsock_hash(c);
    c->state = VSOCK_CALLING;
    vsock_set_deadline(c, CALL_SECONDS);
    vsock_say(c, PENDING_REQUEST);
}

void vsock_hello(struct vsock_connection *c)
{
    struct vsock *vs = c->vs;
    uint32_t port;
    int ret = read_line(c);

    if (ret == 0) {
        vsock_watch_input(c);
        return;
    }
    if (ret < 0 || parse_port(c, &port) < 0) {
        vsock_count(vs, COUNT_REJECTED, 1);
        vsock_forget(c);
        return;
    }
    call_guest(c, port, vsock_free_host_port(vs, port));
}

void vsock_accepted(struct vsock_connection *c)
{
    char text[VSOCK_LINE_MAX];
    int len = snprintf(text, sizeof(text), "OK %u\n", c->host_port);
    const struct iovec iov = {.iov_base = text, .iov_len = (size_t)len};

    if (vsock_send(c->fd, &iov, 1) != len) {
        vsock_reset(c); /* the client has gone away meanwhile */
        return;
    }
    vsock_set_deadline(c, 0);
    vsock_count(c->vs, COUNT_CONNECTED, 1);
    c->state = VSOCK_OPEN;
    vsock_watch_input(c);
}

static void accept_calls(struct vsock *vs, unsigned which)
{
    bool seqpacket = which == 1;

    for (int i = 0; i < ACCEPTS_PER_TURN && vs->n_used < vs->max; i++) {
        int fd = vsock_accept(vs->listeners[which]);
        struct vsock_connection *c;

        if (fd == -EAGAIN)
            break;
        if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM || fd == -ENOBUFS) {
            log_host("%s: cannot accept a connection: %s", vs->dev->name, strerror(-fd));
            vs->accept_later = true;
            vsock_start_tick(vs);
            break;
        }
        if (fd < 0)
            continue; /* that client is gone */
        vsock_count(vs, COUNT_HOST_CALLS, 1);
        c = seqpacket ? (vs->seqpacket_ok ? vsock_connection_new(vs, true, VSOCK_HELLO) : NULL)
                      : (vs->stream_ok ? vsock_connection_new(vs, false, VSOCK_HELLO) : NULL);
        if (c == NULL) {
            /* The guest's driver does not know this type. */
            vsock_count(vs, COUNT_REJECTED, 1);
            close(fd);
            continue;
        }
        c->fd = fd;
        vsock_set_deadline(c, HELLO_SECONDS);
        vsock_hello(c);
    }
    vsock_listen_on(vs);
}

static void stream_calls(struct loop_op *op, int result, bool more)
{
    struct vsock *vs = container_of(op, struct vsock, listening[0].op);

    if (vsock_fired(vs, &vs->listening[0], result, more))
        accept_calls(vs, 0);
}

static void seqpacket_calls(struct loop_op *op, int result, bool more)
{
    struct vsock *vs = container_of(op, struct vsock, listening[1].op);

    if (vsock_fired(vs, &vs->listening[1], result, more))
        accept_calls(vs, 1);
}

/* ---- of other guests ---- */

/*
 * One that the supervisor allowed, as both guests' configuration says. What it brings was chosen by the
 * other guest, but for its CID. At most half of the connections are for such calls, so that no guest
 * keeps the host from calling another.
 */
static void peer_calls(struct vsock *vs, const struct vsock_call *call, int fd)
{
    struct vsock_connection *c = NULL;

    vsock_count(vs, COUNT_PEER_CALLS, 1);
    if ((call->seqpacket ? vs->seqpacket_ok : vs->stream_ok) &&
        call->from_cid != vs->cid && vs->n_peer_calls < (vs->max + 1) / 2 &&
        vsock_find(vs, call->from_cid, call->to_port, call->from_port) == NULL &&
        vsock_end(fd) != VSOCK_GONE)
        c = vsock_connection_new(vs, call->seqpacket, VSOCK_CALLING);
    if (c == NULL) {
        vsock_count(vs, COUNT_REJECTED, 1);
        close(fd); /* tells it */
        return;
    }
    c->fd = fd;
    c->peer_cid = call->from_cid;
    c->called_by_peer = true;
    vs->n_peer_calls++;
    call_guest(c, call->to_port, call->from_port);
}

static void calls_there(struct loop_op *op, int result, bool more)
{
    struct vsock *vs = container_of(op, struct vsock, channel_watch.op);

    if (!vsock_fired(vs, &vs->channel_watch, result, more))
        return;
    for (int i = 0; i < ACCEPTS_PER_TURN && vs->n_used < vs->max; i++) {
        struct vsock_call call;
        int fd = vsock_take_call(vs->channel, &call);

        if (fd >= 0) {
            peer_calls(vs, &call, fd);
        } else if (fd == -EAGAIN) {
            break;
        } else if (fd == -EPIPE) { /* the supervisor has ended it */
            close(vs->channel);
            vs->channel = -1;
            return;
        } else {
            log_host("%s: a call of another guest is lost: %s", vs->dev->name, strerror(-fd));
        }
    }
    vsock_listen_on(vs);
}

void vsock_await(struct vsock_connection *c)
{
    int ret = read_line(c);

    if (ret == 0) {
        vsock_watch_input(c);
        return;
    }
    /* Without a word: it refused, or its device was reset. */
    if (ret < 0 || strncmp(c->line, "OK ", 3) != 0) {
        vsock_count(c->vs, COUNT_REJECTED, 1);
        vsock_finish(c);
        return;
    }
    vsock_set_deadline(c, 0);
    vsock_count(c->vs, COUNT_CONNECTED, 1);
    c->state = VSOCK_OPEN;
    vsock_say(c, PENDING_RESPONSE);
    vsock_watch_input(c);
}

/* ---- all ---- */

void vsock_listen_on(struct vsock *vs)
{
    if (vs->stopping || vs->accept_later || vs->n_used == vs->max ||
        vs->queues[QUEUE_RX] == NULL || vs->queues[QUEUE_TX] == NULL)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(vs->listeners); i++)
        if (vs->listeners[i] >= 0)
            vsock_watch(vs, &vs->listening[i], vs->listeners[i], POLLIN, false);
    if (vs->channel >= 0)
        vsock_watch(vs, &vs->channel_watch, vs->channel, POLLIN, false);
}

void vsock_listen_no_more(struct vsock *vs)
{
    for (size_t i = 0; i < ARRAY_SIZE(vs->listening); i++)
        vsock_cancel(vs, &vs->listening[i]);
    vsock_cancel(vs, &vs->channel_watch);
    vs->accept_later = false;
}

void vsock_listeners_init(struct vsock *vs)
{
    vs->listening[0].op.done = stream_calls;
    vs->listening[1].op.done = seqpacket_calls;
    vs->channel_watch.op.done = calls_there;
}
