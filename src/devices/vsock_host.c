/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side of connections: data in both directions, and the ways in which a connection ends. A
 * descriptor is watched only for what can be used now, so a connection with nothing to do, or without
 * credit, costs nothing.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/vsock_internal.h"
#include "log.h"

#define SEND_IOV 64
/* The guest closes its half of a connection that the host side has closed: 5.10.6.5. */
#define CLOSE_SECONDS 8u

/* ---- watches ---- */

void vsock_watch(struct vsock *vs, struct vsock_watch *w, int fd, unsigned events, bool edge)
{
    struct io_uring_sqe *sqe;

    if (w->armed)
        return;
    sqe = loop_sqe(vs->loop);
    if (edge)
        io_uring_prep_poll_multishot(sqe, fd, events);
    else
        io_uring_prep_poll_add(sqe, fd, events);
    loop_sqe_op(sqe, &w->op);
    w->armed = true;
    w->cancelled = false;
    vs->watches++;
}

void vsock_cancel(struct vsock *vs, struct vsock_watch *w)
{
    struct io_uring_sqe *sqe;

    if (!w->armed || w->cancelled)
        return;
    w->cancelled = true;
    sqe = loop_sqe(vs->loop);
    /* A removal (POLL_REMOVE) is refused while the poll is about to fire, and one that goes on after
     * that would stay for ever. */
    io_uring_prep_cancel(sqe, &w->op, 0);
    loop_sqe_op(sqe, NULL);
}

bool vsock_fired(struct vsock *vs, struct vsock_watch *w, int result, bool more)
{
    if (!more) {
        w->armed = false;
        vs->watches--;
    }
    return !w->cancelled && result >= 0;
}

/* What is read of the host now, or would be. */
static bool wants_input(const struct vsock_connection *c)
{
    return !c->host_ended && (c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0;
}

void vsock_watch_input(struct vsock_connection *c)
{
    if (c->fd >= 0 && c->state != VSOCK_LINGER)
        vsock_watch(c->vs, &c->in, c->fd, wants_input(c) ? POLLIN : 0, !wants_input(c));
}

/* ---- the end of the host's side ---- */

static void host_gone(struct vsock_connection *c)
{
    vsock_close_host_side(c);
    c->state = VSOCK_CLOSING;
    c->pending &= (uint8_t)~PENDING_DATA;
    c->shutdown_flags = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
    vsock_set_deadline(c, CLOSE_SECONDS);
    vsock_say(c, PENDING_SHUTDOWN);
}

/* All that the host side sent is read, and it sends no more. */
void vsock_host_ended(struct vsock_connection *c)
{
    c->pending &= (uint8_t)~PENDING_DATA;
    c->host_ended = true;
    if (c->host_deaf || vsock_end(c->fd) == VSOCK_GONE) {
        host_gone(c);
        return;
    }
    c->shutdown_flags |= VIRTIO_VSOCK_SHUTDOWN_SEND;
    vsock_say(c, PENDING_SHUTDOWN);
    vsock_watch_input(c);
}

static void say_credit(struct vsock_connection *c)
{
    uint32_t unsaid = c->fwd_cnt - c->fwd_cnt_said, few = c->buf_alloc / 4;

    if (c->state != VSOCK_OPEN)
        return;
    /* The beginning of a message stays here until its end has come, and so it may be that only what was
     * not worth a packet keeps the guest from sending that: Linux sends what its credit allows, then
     * waits, and does not ask. */
    if (unsaid >= few ||
        (unsaid > 0 && c->unfinished > 0 && c->buf_alloc - unsaid - c->buffered < few))
        vsock_say(c, PENDING_CREDIT_UPDATE);
}

void vsock_host_deaf(struct vsock_connection *c)
{
    c->host_deaf = true;
    c->fwd_cnt += c->buffered;
    c->buffered = 0;
    c->unfinished = 0;
    if (c->state == VSOCK_LINGER) {
        if ((c->pending & PENDING_RST) != 0)
            vsock_finish(c);
        else
            vsock_forget(c);
    } else if (c->host_ended || !wants_input(c)) {
        host_gone(c);
    } else {
        c->shutdown_flags |= VIRTIO_VSOCK_SHUTDOWN_RCV;
        vsock_say(c, PENDING_SHUTDOWN);
        say_credit(c);
    }
}

static void send_failed(struct vsock_connection *c, int error)
{
    if (error == -EPIPE || error == -ECONNRESET) {
        vsock_host_deaf(c);
        return;
    }
    log_host("%s: cannot send to the host side of port %u: %s", c->vs->dev->name, c->host_port,
             strerror(-error));
    if (c->state == VSOCK_LINGER && (c->pending & PENDING_RST) == 0)
        vsock_forget(c); /* for the guest it ended long ago, and its port may have another connection */
    else
        vsock_reset(c);
}

/* ---- from the guest to the host ---- */

static uint32_t mask_of(const struct vsock_connection *c)
{
    return c->buf_alloc - 1; /* buffer-size is a power of 2 */
}

/* Buffered bytes that may be sent: of messages, whole ones. */
static uint32_t deliverable(const struct vsock_connection *c)
{
    return c->buffered - c->unfinished;
}

/* The length of the first message; there is one. */
static uint32_t first_message(const struct vsock_connection *c)
{
    uint32_t at = c->fwd_cnt & mask_of(c), len = 0;

    while (len < c->buffered) {
        uint64_t word = c->ends[at / 64] >> (at % 64);

        if (word != 0)
            return len + (uint32_t)__builtin_ctzll(word) + 1;
        len += 64 - at % 64;
        at = (at / 64 + 1) * 64 & mask_of(c);
    }
    return c->buffered;
}

static unsigned buffered_iov(const struct vsock_connection *c, uint32_t len, struct iovec iov[2])
{
    uint32_t at = c->fwd_cnt & mask_of(c), first = MIN(len, c->buf_alloc - at);

    iov[0] = (struct iovec){.iov_base = c->buffer + at, .iov_len = first};
    iov[1] = (struct iovec){.iov_base = c->buffer, .iov_len = len - first};
    return len > first ? 2 : 1;
}

static void buffered_end(struct vsock_connection *c)
{
    uint32_t last = (c->fwd_cnt + c->buffered - 1) & mask_of(c);

    c->ends[last / 64] |= UINT64_C(1) << (last % 64);
    c->unfinished = 0;
}

/* All that the guest sent is with the host side now, but for the beginning of a message. */
static void drained(struct vsock_connection *c)
{
    if (c->state == VSOCK_LINGER) {
        if ((c->pending & PENDING_RST) != 0)
            vsock_finish(c);
        else
            vsock_forget(c);
    } else if ((c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0) {
        vsock_shutdown(c->fd, false, true);
    }
}

/* The host side takes more, it seems. */
static void flush(struct vsock_connection *c)
{
    uint32_t before = c->buffered;

    while (deliverable(c) > 0) {
        uint32_t len = c->seqpacket ? first_message(c) : c->buffered;
        struct iovec iov[2];
        ssize_t n = vsock_send(c->fd, iov, buffered_iov(c, len, iov));

        if (n == -EAGAIN) {
            c->out_edge = c->buffered == before;
            vsock_watch(c->vs, &c->out, c->fd, POLLOUT, c->out_edge);
            say_credit(c);
            return;
        }
        if (n < 0) {
            send_failed(c, (int)n);
            return;
        }
        if (c->seqpacket) {
            uint32_t last = (c->fwd_cnt + len - 1) & mask_of(c);

            c->ends[last / 64] &= ~(UINT64_C(1) << (last % 64));
        }
        c->fwd_cnt += (uint32_t)n;
        c->buffered -= (uint32_t)n;
    }
    say_credit(c);
    drained(c);
}

static void output_possible(struct loop_op *op, int result, bool more)
{
    struct vsock_connection *c = container_of(op, struct vsock_connection, out.op);

    if (vsock_fired(c->vs, &c->out, result, more) && c->fd >= 0 && deliverable(c) > 0)
        flush(c);
    else
        vsock_bury(c);
}

/* Straight from the guest's memory, as far as it goes. *left: what is to be buffered. 0 or -errno. */
static int send_directly(struct vsock_connection *c, struct chain *chain, uint32_t *left)
{
    struct iovec iov[SEND_IOV];

    while (*left > 0) {
        size_t bytes;
        int n_iov = chain_readable(chain, iov, SEND_IOV, *left, &bytes);
        ssize_t n;

        if (c->seqpacket && bytes < *left)
            break; /* in more pieces than go into one message this way */
        n = vsock_send(c->fd, iov, (size_t)n_iov);
        if (n < 0)
            return n == -EAGAIN ? 0 : (int)n;
        chain_skip_readable(chain, (size_t)n);
        c->fwd_cnt += (uint32_t)n;
        *left -= (uint32_t)n;
        if ((size_t)n < bytes)
            break;
    }
    return 0;
}

void vsock_from_guest(struct vsock_connection *c, struct chain *chain, uint32_t len, bool end)
{
    bool whole = !c->seqpacket || (end && c->unfinished == 0);
    bool idle = deliverable(c) == 0;
    uint32_t at, left = len;

    if (len > c->buf_alloc - c->buffered) {
        log_guest("%s: the guest sent more than it had credit for, to port %u", c->vs->dev->name,
                  c->host_port);
        vsock_reset(c);
        return;
    }
    stat_add(&c->vs->dev->stats->queues[QUEUE_TX].write_bytes, len);
    if (c->host_deaf) {
        c->fwd_cnt += len;
        say_credit(c);
        return;
    }
    if (whole && c->buffered == 0) {
        int ret = send_directly(c, chain, &left);

        if (ret < 0) {
            c->fwd_cnt += left; /* nobody will receive it, but it does not wait, either */
            send_failed(c, ret);
            return;
        }
        if (left == 0) {
            say_credit(c);
            return;
        }
    }
    at = (c->fwd_cnt + c->buffered) & mask_of(c);
    if (left > 0) {
        uint32_t first = MIN(left, c->buf_alloc - at);

        c->buffer_used = true;
        chain_read(chain, c->buffer + at, first);
        chain_read(chain, c->buffer, left - first);
        c->buffered += left;
        if (c->seqpacket)
            c->unfinished += left;
    }
    /* An empty message has no place in a byte count, and Linux sends none. */
    if (c->seqpacket && end && c->unfinished > 0)
        buffered_end(c);
    if (idle && deliverable(c) > 0 && c->out.armed) {
        /* It waits for an edge, from an earlier time, and a host side that has read all gives none. */
        flush(c);
        return;
    }
    if (deliverable(c) > 0)
        vsock_watch(c->vs, &c->out, c->fd, POLLOUT, c->out_edge);
    say_credit(c);
}

void vsock_guest_shutdown(struct vsock_connection *c, uint32_t flags)
{
    const uint8_t both = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
    uint8_t news = (uint8_t)(flags & both & (uint32_t)~c->guest_shutdown);

    c->guest_shutdown |= news; /* permanent: 5.10.6.5 */
    if (c->state != VSOCK_OPEN) {
        vsock_finish(c); /* nobody is there any more, or yet */
        return;
    }
    if (c->guest_shutdown == both && deliverable(c) == 0) {
        vsock_finish(c);
        return;
    }
    if ((news & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) {
        c->pending &= (uint8_t)~PENDING_DATA;
        vsock_message_drop(c);
        vsock_wait_in(c, NULL);
        vsock_shutdown(c->fd, true, false);
    }
    if (c->guest_shutdown == both) {
        /* The guest gets its answer at once; the host side, what is buffered for it. */
        c->state = VSOCK_LINGER;
        vsock_cancel(c->vs, &c->in);
        c->pending = 0;
        vsock_say(c, PENDING_RST);
        return;
    }
    if ((news & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0 && deliverable(c) == 0)
        drained(c);
    vsock_watch_input(c);
}

/* ---- from the host to the guest ---- */

/* The first len bytes of iov; returns the elements. */
size_t vsock_cut(const struct iovec *iov, size_t n, size_t len, struct iovec *out)
{
    size_t used = 0;

    for (size_t i = 0; i < n && len > 0; i++) {
        out[used] = iov[i];
        out[used].iov_len = MIN(iov[i].iov_len, len);
        len -= out[used++].iov_len;
    }
    return used;
}

/* What the host side has must wait for a CREDIT_UPDATE that brings as much; asked for once. */
size_t vsock_no_credit(struct vsock_connection *c, uint32_t needed)
{
    c->pending &= (uint8_t)~PENDING_DATA;
    c->starved_for = needed;
    vsock_say(c, PENDING_CREDIT_REQUEST);
    return 0;
}

size_t vsock_from_host(struct vsock_connection *c, struct iovec *iov, size_t n, size_t room,
                       bool *end)
{
    size_t limit = MIN(room, vsock_credit(c));
    ssize_t got;

    *end = false;
    if (c->fd < 0 || !wants_input(c)) {
        c->pending &= (uint8_t)~PENDING_DATA;
        return 0;
    }
    if (c->seqpacket)
        return vsock_message_from_host(c, iov, n, room, end);
    if (limit == 0)
        return vsock_no_credit(c, 1);
    got = vsock_receive(c->fd, iov, vsock_cut(iov, n, limit, iov));
    if (got > 0) {
        if ((size_t)got < limit) { /* that was all */
            c->pending &= (uint8_t)~PENDING_DATA;
            vsock_watch_input(c);
        }
        return (size_t)got;
    }
    c->pending &= (uint8_t)~PENDING_DATA;
    if (got == -EAGAIN)
        vsock_watch_input(c);
    else if (got == 0)
        vsock_host_ended(c);
    else
        vsock_reset(c); /* ECONNRESET: the peer closed without reading all */
    return 0;
}

static void input_there(struct loop_op *op, int result, bool more)
{
    struct vsock_connection *c = container_of(op, struct vsock_connection, in.op);

    if (!vsock_fired(c->vs, &c->in, result, more) || c->fd < 0) {
        vsock_bury(c);
        return;
    }
    if (c->state == VSOCK_HELLO) {
        vsock_hello(c);
    } else if (c->state == VSOCK_AWAITING) {
        vsock_await(c);
    } else if (c->state == VSOCK_OPEN) {
        if (wants_input(c))
            vsock_say(c, PENDING_DATA);
        else if (vsock_end(c->fd) == VSOCK_GONE)
            host_gone(c);
        else
            vsock_watch_input(c);
    }
}

void vsock_watches_init(struct vsock_connection *c)
{
    c->in.op.done = input_there;
    c->out.op.done = output_possible;
}
