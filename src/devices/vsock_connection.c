/* SPDX-License-Identifier: Apache-2.0 */
/* The table of a vsock device's connections: bounded, and made when the device is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "devices/vsock_internal.h"

#define NS_PER_SECOND INT64_C(1000000000)
/* Host ports of the host's calls: above those that people give to services. */
#define FIRST_CALL_PORT 0x40000000u

/* Nothing of it takes memory before it is used, and then a page at a time. */
static void *reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

static size_t index_of(const struct vsock_connection *c)
{
    return (size_t)(c - c->vs->connections);
}

int vsock_table_create(struct vsock *vs)
{
    uint32_t buckets = 16;

    TAILQ_INIT(&vs->free);
    TAILQ_INIT(&vs->ready);
    TAILQ_INIT(&vs->asking);
    TAILQ_INIT(&vs->retry);
    TAILQ_INIT(&vs->message_waiters);
    TAILQ_INIT(&vs->timed);
    vs->tick.expired = vsock_tick;
    vs->next_host_port = FIRST_CALL_PORT;
    while (buckets < vs->max)
        buckets *= 2;
    vs->hash_mask = buckets - 1;
    /* A guest that knew it could put all its connections into one bucket. */
    if (getrandom(&vs->hash_seed, sizeof(vs->hash_seed), GRND_NONBLOCK) < 0)
        vs->hash_seed = (uint32_t)monotonic_ns();
    vs->hash = calloc(buckets, sizeof(struct vsock_connection *));
    vs->connections = reserve(vs->max * sizeof(*vs->connections));
    vs->buffers = reserve((size_t)vs->max * vs->buffer_size);
    vs->ends = reserve((size_t)vs->max * vs->buffer_size / 8);
    vs->message = reserve(VSOCK_MESSAGE_MAX);
    if (vs->hash == NULL || vs->connections == NULL || vs->buffers == NULL || vs->ends == NULL ||
        vs->message == NULL)
        return -ENOMEM;
    return 0;
}

void vsock_table_destroy(struct vsock *vs)
{
    free(vs->hash);
    if (vs->connections != NULL)
        munmap(vs->connections, vs->max * sizeof(*vs->connections));
    if (vs->buffers != NULL)
        munmap(vs->buffers, (size_t)vs->max * vs->buffer_size);
    if (vs->ends != NULL)
        munmap(vs->ends, (size_t)vs->max * vs->buffer_size / 8);
    if (vs->message != NULL)
        munmap(vs->message, VSOCK_MESSAGE_MAX);
}

static struct vsock_connection **bucket(struct vsock *vs, uint32_t peer_cid, uint32_t guest_port,
                                        uint32_t host_port)
{
    uint64_t h = ((uint64_t)guest_port << 32 | host_port) ^ ((uint64_t)vs->hash_seed << 16);

    h += (uint64_t)peer_cid << 24;
    h *= UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 29;
    h *= UINT64_C(0xbf58476d1ce4e5b9) + 2 * (uint64_t)vs->hash_seed;
    return &vs->hash[h >> 32 & vs->hash_mask];
}

struct vsock_connection *vsock_find(struct vsock *vs, uint32_t peer_cid, uint32_t guest_port,
                                    uint32_t host_port)
{
    struct vsock_connection *c = *bucket(vs, peer_cid, guest_port, host_port);

    while (c != NULL && (c->guest_port != guest_port || c->host_port != host_port ||
                         c->peer_cid != peer_cid))
        c = c->hash_next;
    return c;
}

void vsock_hash(struct vsock_connection *c)
{
    struct vsock_connection **first =
        bucket(c->vs, c->peer_cid, c->guest_port, c->host_port);

    c->hash_next = *first;
    *first = c;
    c->hashed = true;
}

void vsock_unhash(struct vsock_connection *c)
{
    struct vsock_connection **p =
        bucket(c->vs, c->peer_cid, c->guest_port, c->host_port);

    if (!c->hashed)
        return;
    while (*p != c)
        p = &(*p)->hash_next;
    *p = c->hash_next;
    c->hashed = false;
}

uint32_t vsock_free_host_port(struct vsock *vs, uint32_t guest_port)
{
    uint32_t port;

    do {
        port = vs->next_host_port++;
        if (vs->next_host_port == UINT32_MAX)
            vs->next_host_port = FIRST_CALL_PORT;
    } while (vsock_find(vs, VSOCK_HOST_CID, guest_port, port) != NULL); /* there are more ports than connections */
    return port;
}

struct vsock_connection *vsock_connection_new(struct vsock *vs, bool seqpacket,
                                              enum vsock_state state)
{
    struct vsock_connection *c = TAILQ_FIRST(&vs->free);

    if (c != NULL)
        TAILQ_REMOVE(&vs->free, c, ready_link);
    else if (vs->n_ever < vs->max)
        c = &vs->connections[vs->n_ever++];
    else
        return NULL;
    memset(c, 0, sizeof(*c));
    c->vs = vs;
    c->fd = -1;
    c->peer_cid = VSOCK_HOST_CID;
    c->state = state;
    c->seqpacket = seqpacket;
    c->buf_alloc = seqpacket ? MIN(vs->buffer_size, VSOCK_SEQPACKET_BUFFER) : vs->buffer_size;
    c->buffer = vs->buffers + index_of(c) * vs->buffer_size;
    c->ends = vs->ends + index_of(c) * vs->buffer_size / 64;
    vsock_watches_init(c);
    vs->n_used++;
    vsock_count(vs, COUNT_CONNECTIONS, 1);
    return c;
}

uint32_t vsock_credit(const struct vsock_connection *c)
{
    uint32_t out = c->tx_cnt - c->peer_fwd_cnt;

    /* Also if the guest shrinks its buffer, or acknowledges what was never sent. */
    return out >= c->peer_buf_alloc ? 0 : c->peer_buf_alloc - out;
}

void vsock_unready(struct vsock_connection *c)
{
    if (c->ready)
        TAILQ_REMOVE(&c->vs->ready, c, ready_link);
    c->ready = false;
}

void vsock_say(struct vsock_connection *c, uint8_t pending)
{
    c->pending |= pending;
    if (!c->ready) {
        TAILQ_INSERT_TAIL(&c->vs->ready, c, ready_link);
        c->ready = true;
    }
    vsock_wake_rx(c->vs);
}

void vsock_wait_in(struct vsock_connection *c, struct vsock_list *list)
{
    if (c->waits_in != NULL)
        TAILQ_REMOVE(c->waits_in, c, wait_link);
    if (list != NULL)
        TAILQ_INSERT_TAIL(list, c, wait_link);
    c->waits_in = list;
}

/* ---- time ---- */

void vsock_start_tick(struct vsock *vs)
{
    if (vs->tick.due_ns == 0)
        loop_set_timer(vs->loop, &vs->tick, NS_PER_SECOND);
}

void vsock_set_deadline(struct vsock_connection *c, unsigned seconds)
{
    if (c->deadline_ns != 0)
        TAILQ_REMOVE(&c->vs->timed, c, timed_link);
    c->deadline_ns = 0;
    if (seconds == 0)
        return;
    c->deadline_ns = monotonic_ns() + seconds * NS_PER_SECOND;
    TAILQ_INSERT_TAIL(&c->vs->timed, c, timed_link);
    vsock_start_tick(c->vs);
}

/* Runs only while somebody waits: a device without connections under way makes no wake-up. */
void vsock_tick(struct loop_timer *timer)
{
    struct vsock *vs = container_of(timer, struct vsock, tick);
    struct vsock_connection *c, *next;
    int64_t now = monotonic_ns();

    for (c = TAILQ_FIRST(&vs->timed); c != NULL; c = next) {
        next = TAILQ_NEXT(c, timed_link);
        if (c->deadline_ns > now)
            continue;
        if (c->state != VSOCK_CLOSING)
            vsock_count(vs, COUNT_REJECTED, 1);
        if (c->state == VSOCK_HELLO)
            vsock_forget(c);
        else
            vsock_finish(c);
    }
    vs->accept_later = false;
    vsock_listen_on(vs);
    if (!TAILQ_EMPTY(&vs->timed))
        vsock_start_tick(vs);
}

/* ---- the end ---- */

void vsock_close_host_side(struct vsock_connection *c)
{
    vsock_unask(c);
    vsock_wait_in(c, NULL);
    vsock_message_drop(c);
    vsock_cancel(c->vs, &c->in);
    vsock_cancel(c->vs, &c->out);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->fwd_cnt += c->buffered;
    c->buffered = 0;
    c->unfinished = 0;
    if (c->buffer_used) {
        /* The memory goes back; a page that is shared with a neighbour may stay. */
        (void)madvise(c->buffer, c->vs->buffer_size, MADV_DONTNEED);
        if (c->seqpacket)
            memset(c->ends, 0, c->vs->buffer_size / 8);
    }
    c->buffer_used = false;
}

void vsock_bury(struct vsock_connection *c)
{
    if (c->state != VSOCK_DEAD || c->in.armed || c->out.armed)
        return;
    c->state = VSOCK_FREE;
    if (c->called_by_peer)
        c->vs->n_peer_calls--;
    TAILQ_INSERT_HEAD(&c->vs->free, c, ready_link);
    c->vs->n_used--;
    vsock_count(c->vs, COUNT_CONNECTIONS, -1);
    vsock_listen_on(c->vs);
}

void vsock_forget(struct vsock_connection *c)
{
    vsock_close_host_side(c);
    vsock_set_deadline(c, 0);
    vsock_unhash(c);
    vsock_unready(c);
    c->pending = 0;
    c->state = VSOCK_DEAD;
    vsock_bury(c);
}

void vsock_finish(struct vsock_connection *c)
{
    vsock_close_host_side(c);
    vsock_set_deadline(c, 0);
    c->state = VSOCK_CLOSING;
    c->pending = 0;
    vsock_say(c, PENDING_RST);
}

void vsock_reset(struct vsock_connection *c)
{
    vsock_count(c->vs, COUNT_RESETS, 1);
    vsock_finish(c);
}

void vsock_forget_all(struct vsock *vs)
{
    for (uint32_t i = 0; i < vs->n_ever; i++)
        if (vs->connections[i].state != VSOCK_FREE && vs->connections[i].state != VSOCK_DEAD)
            vsock_forget(&vs->connections[i]);
}
