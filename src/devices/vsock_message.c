/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of the host (seqpacket). One that fits into the guest's rx buffer is read there. A larger
 * one is read into memory of the device, one such message at a time, and goes to the guest in pieces;
 * it is read only when the guest has room for all of it, so that one slow connection keeps no other
 * from its messages.
 */
#include <errno.h>
#include <string.h>

#include "devices/vsock_internal.h"
#include "log.h"

/* Empty messages that may stand before the last ones of a host side that has ended. */
#define EMPTY_MAX 16u

void vsock_message_drop(struct vsock_connection *c)
{
    struct vsock *vs = c->vs;
    struct vsock_connection *waiter;

    if (vs->message_of != c)
        return;
    vs->message_of = NULL;
    while ((waiter = TAILQ_FIRST(&vs->message_waiters)) != NULL) {
        vsock_wait_in(waiter, NULL);
        vsock_say(waiter, PENDING_DATA);
    }
}

/* A message went out; is there another? The poll tells, without a buffer of the guest in hand. */
static void look_again(struct vsock_connection *c)
{
    c->pending &= (uint8_t)~PENDING_DATA;
    vsock_watch_input(c);
}

/* The next piece of the large message. */
static size_t next_piece(struct vsock_connection *c, const struct iovec *iov, size_t n, size_t room,
                         bool *end)
{
    struct vsock *vs = c->vs;
    size_t left = MIN(room, vsock_credit(c)), done = 0;

    left = MIN(left, (size_t)(vs->message_len - vs->message_sent));
    if (left == 0)
        return vsock_no_credit(c, 1);
    for (size_t i = 0; i < n && left > 0; i++) {
        size_t part = MIN(iov[i].iov_len, left);

        memcpy(iov[i].iov_base, vs->message + vs->message_sent, part);
        vs->message_sent += (uint32_t)part;
        done += part;
        left -= part;
    }
    *end = vs->message_sent == vs->message_len;
    if (*end) {
        vsock_message_drop(c);
        look_again(c);
    }
    return done;
}

/* Its length, 0: none that can be had now; what follows from that is done. */
static size_t next_message(struct vsock_connection *c)
{
    char byte;
    ssize_t len = vsock_peek(c->fd, &byte, sizeof(byte));
    struct iovec nothing = {.iov_base = &byte};
    bool ends;

    if (len > 0) {
        if ((size_t)len > VSOCK_MESSAGE_MAX || (size_t)len > c->peer_buf_alloc) {
            log_host("%s: a message of %zd bytes from the host side of port %u is larger than the "
                     "guest can take (%u)",
                     c->vs->dev->name, len, c->host_port, c->peer_buf_alloc);
            vsock_reset(c);
            return 0;
        }
        return (size_t)len;
    }
    c->pending &= (uint8_t)~PENDING_DATA;
    if (len == -EAGAIN) {
        vsock_watch_input(c);
        return 0;
    }
    if (len == -ECONNRESET && !c->host_was_reset) {
        /* The host side closed without having read all. Linux says so first, and once; what that had
         * sent before is still to be had. */
        c->host_was_reset = true;
        vsock_host_deaf(c);
        vsock_watch_input(c);
        return 0;
    }
    if (len < 0) {
        vsock_reset(c);
        return 0;
    }
    /* An empty message, which vsock does not have, or the end. They look alike, but nothing follows an
     * end. */
    ends = vsock_end(c->fd) != VSOCK_STILL_SENDS;
    for (unsigned i = 0; len == 0 && i < (ends ? EMPTY_MAX : 1); i++) {
        (void)vsock_receive(c->fd, &nothing, 1);
        len = ends ? vsock_peek(c->fd, &byte, sizeof(byte)) : 0;
    }
    if (ends && len <= 0)
        vsock_host_ended(c);
    else
        vsock_watch_input(c);
    return 0;
}

size_t vsock_message_from_host(struct vsock_connection *c, struct iovec *iov, size_t n, size_t room,
                               bool *end)
{
    struct vsock *vs = c->vs;
    struct iovec large;
    size_t len;
    ssize_t got;

    if (vs->message_of == c)
        return next_piece(c, iov, n, room, end);
    len = next_message(c);
    if (len == 0)
        return 0;
    if (len > vsock_credit(c))
        return vsock_no_credit(c, (uint32_t)len);
    if (len > room && vs->message_of != NULL) {
        c->pending &= (uint8_t)~PENDING_DATA;
        vsock_wait_in(c, &vs->message_waiters);
        return 0;
    }
    large = (struct iovec){.iov_base = vs->message, .iov_len = len};
    got = len > room ? vsock_receive(c->fd, &large, 1)
                     : vsock_receive(c->fd, iov, vsock_cut(iov, n, len, iov));
    if (got != (ssize_t)len) {
        vsock_reset(c); /* cannot be: nobody else reads there */
        return 0;
    }
    if (len <= room) {
        *end = true;
        look_again(c);
        return len;
    }
    vs->message_of = c;
    vs->message_len = (uint32_t)len;
    vs->message_sent = 0;
    return next_piece(c, iov, n, room, end);
}
