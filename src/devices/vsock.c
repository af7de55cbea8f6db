/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device (VIRTIO 1.2, 5.10), its host side on Unix sockets: what comes by the tx queue, and
 * what goes into the rx queue.
 *
 * All of it belongs to one I/O thread. What the guest is to be told is kept as bits of the connection
 * that it is about, so nothing is ever allocated for a packet and none is lost; only resets for packets
 * without a connection have a queue, and while that is full, no packet is taken.
 */
#include "devices/vsock_internal.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"

#define RX_IOV 64

#define FEATURE(bit) (UINT64_C(1) << (bit))

static_assert(sizeof(struct virtio_vsock_hdr) == 44, "5.10.6");
static_assert(offsetof(struct virtio_vsock_hdr, len) == 24, "5.10.6");
static_assert(offsetof(struct virtio_vsock_hdr, fwd_cnt) == 40, "5.10.6");
static_assert(sizeof(struct virtio_vsock_config) == 8, "5.10.4");
static_assert(sizeof(struct virtio_vsock_event) == 4, "5.10.6.7");

static const struct feature vsock_features[] = {
    {VIRTIO_VSOCK_F_STREAM, "STREAM"},
    {VIRTIO_VSOCK_F_SEQPACKET, "SEQPACKET"},
    {VIRTIO_VSOCK_F_NO_IMPLIED_STREAM, "NO_IMPLIED_STREAM"},
    {0, NULL},
};

static struct queue_stats *stats_of(struct vsock *vs, unsigned queue)
{
    return &vs->dev->stats->queues[queue];
}

void vsock_wake_rx(struct vsock *vs)
{
    if (vs->queues[QUEUE_RX] != NULL)
        virtio_queue_release(vs->dev, vs->queues[QUEUE_RX]);
}

/* ---- to the guest ---- */

static bool something_to_say(const struct vsock *vs)
{
    return vs->n_replies > 0 || !TAILQ_EMPTY(&vs->ready);
}

static void put_header(struct vsock_connection *c, struct chain *chain, uint16_t op, uint32_t len,
                       uint32_t flags)
{
    const struct virtio_vsock_hdr header = {
        .src_cid = htole64(c->peer_cid),
        .dst_cid = htole64(c->vs->cid),
        .src_port = htole32(c->host_port),
        .dst_port = htole32(c->guest_port),
        .len = htole32(len),
        .type = htole16(c->seqpacket ? VIRTIO_VSOCK_TYPE_SEQPACKET : VIRTIO_VSOCK_TYPE_STREAM),
        .op = htole16(op),
        .flags = htole32(flags),
        .buf_alloc = htole32(c->buf_alloc),
        .fwd_cnt = htole32(c->fwd_cnt),
    };

    c->fwd_cnt_said = c->fwd_cnt;
    chain_write(chain, &header, sizeof(header));
}

/* Data of the host side behind the place of the header. Bytes; 0: none, and PENDING_DATA is off. */
static uint32_t put_data(struct vsock_connection *c, struct chain *chain)
{
    struct iovec iov[RX_IOV], *data = iov;
    size_t bytes, skip = VSOCK_HEADER, got;
    int n = chain_writable(chain, iov, RX_IOV, UINT32_MAX, &bytes);
    bool end;

    while (skip >= data->iov_len) { /* the chain has more than a header's bytes in so many elements */
        skip -= data->iov_len;
        data++;
        n--;
    }
    data->iov_base = (uint8_t *)data->iov_base + skip;
    data->iov_len -= skip;
    got = vsock_from_host(c, data, (size_t)n, bytes - VSOCK_HEADER, &end);
    if (got == 0)
        return 0;
    c->tx_cnt += (uint32_t)got;
    stat_add(&stats_of(c->vs, QUEUE_RX)->read_bytes, got);
    put_header(c, chain, VIRTIO_VSOCK_OP_RW, (uint32_t)got,
               end ? VIRTIO_VSOCK_SEQ_EOM : 0);
    return (uint32_t)(VSOCK_HEADER + got);
}

/* True: that bit is set, and is not any more. */
static bool take(struct vsock_connection *c, uint8_t pending)
{
    if ((c->pending & pending) == 0)
        return false;
    c->pending &= (uint8_t)~pending;
    return true;
}

/* The next packet about this connection, for which something is pending. Its length. */
static uint32_t put_packet(struct vsock_connection *c, struct chain *chain)
{
    uint16_t op = VIRTIO_VSOCK_OP_CREDIT_UPDATE;
    uint32_t flags = 0;

    if ((c->pending & (PENDING_RST | PENDING_REQUEST | PENDING_RESPONSE)) == 0 &&
        (c->pending & PENDING_DATA) != 0) {
        uint32_t len = put_data(c, chain);

        if (len > 0)
            return len;
    }
    /* That may have had consequences. If nothing else is to be said, a word about credit does no harm,
     * and the buffer need not be kept. */
    if (take(c, PENDING_RST)) {
        op = VIRTIO_VSOCK_OP_RST;
    } else if (take(c, PENDING_REQUEST)) {
        op = VIRTIO_VSOCK_OP_REQUEST;
    } else if (take(c, PENDING_RESPONSE)) {
        op = VIRTIO_VSOCK_OP_RESPONSE;
    } else if (take(c, PENDING_CREDIT_REQUEST)) {
        op = VIRTIO_VSOCK_OP_CREDIT_REQUEST;
    } else if (!take(c, PENDING_CREDIT_UPDATE) && take(c, PENDING_SHUTDOWN)) {
        op = VIRTIO_VSOCK_OP_SHUTDOWN;
        flags = c->shutdown_flags;
    }
    put_header(c, chain, op, 0, flags);
    if (op == VIRTIO_VSOCK_OP_RST) {
        if (c->state == VSOCK_LINGER)
            vsock_unhash(c); /* the guest may use its port again */
        else
            vsock_forget(c);
    }
    return VSOCK_HEADER;
}

static void put_reply(struct vsock *vs, struct chain *chain)
{
    const struct vsock_reply *reply = &vs->replies[vs->reply_head];
    const struct virtio_vsock_hdr header = {
        .src_cid = htole64(reply->src_cid),
        .dst_cid = htole64(reply->dst_cid),
        .src_port = htole32(reply->src_port),
        .dst_port = htole32(reply->dst_port),
        .type = htole16(reply->type),
        .op = htole16(VIRTIO_VSOCK_OP_RST),
    };

    chain_write(chain, &header, sizeof(header));
    vs->reply_head = (vs->reply_head + 1) % VSOCK_REPLIES_MAX;
    if (--vs->n_replies == VSOCK_REPLIES_MAX / 2 && vs->queues[QUEUE_TX] != NULL)
        virtio_queue_release(vs->dev, vs->queues[QUEUE_TX]);
}

/* Fills an rx buffer; there is something to say. */
static uint32_t fill(struct vsock *vs, struct chain *chain)
{
    struct vsock_connection *c;
    uint32_t len;

    if (vs->n_replies > 0) {
        put_reply(vs, chain);
        return VSOCK_HEADER;
    }
    c = TAILQ_FIRST(&vs->ready);
    vsock_unready(c);
    len = put_packet(c, chain);
    if (c->pending == 0)
        vsock_unready(c);
    else
        vsock_say(c, 0); /* the rest when it is its turn again */
    return len;
}

static int rx_work(struct vsock *vs, struct virtqueue *vq, int budget)
{
    int taken = 0;

    while (taken < budget && something_to_say(vs)) {
        struct chain *chain;
        int ret = virtqueue_pop(vq, &chain);

        if (ret < 0)
            return ret;
        if (ret == 0)
            return taken;
        taken++;
        /* With room for a header alone no data would ever arrive. */
        if (chain->faulted || chain->writable_bytes <= VSOCK_HEADER) {
            log_guest("%s: an rx buffer of the guest is too small, or not in its RAM", vs->dev->name);
            stat_add(&stats_of(vs, QUEUE_RX)->errors, 1);
            chain_complete(chain, 0);
            continue;
        }
        stat_add(&stats_of(vs, QUEUE_RX)->requests, 1);
        chain_complete(chain, fill(vs, chain));
    }
    if (!something_to_say(vs))
        virtio_queue_hold(vs->dev, vq);
    return taken;
}

static int event_work(struct vsock *vs, struct virtqueue *vq)
{
    const struct virtio_vsock_event event = {.id = htole32(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)};
    struct chain *chain;
    int ret;

    if (!vs->reset_event) {
        virtio_queue_hold(vs->dev, vq);
        return 0;
    }
    ret = virtqueue_pop(vq, &chain);
    if (ret <= 0)
        return ret;
    if (!chain->faulted && chain->writable_bytes >= sizeof(event)) {
        chain_complete(chain, (uint32_t)chain_write(chain, &event, sizeof(event)));
        vs->reset_event = false;
    } else {
        log_guest("%s: an event buffer of the guest is too small", vs->dev->name);
        chain_complete(chain, 0);
    }
    stat_add(&stats_of(vs, QUEUE_EVENT)->requests, 1);
    return 1;
}

/* ---- from the guest ---- */

static void reply_reset(struct vsock *vs, const struct virtio_vsock_hdr *to)
{
    struct vsock_reply *reply;

    /* 5.10.6.5: a reset is not answered by a reset. tx_work made sure that there is room. */
    if (le16toh(to->op) == VIRTIO_VSOCK_OP_RST)
        return;
    reply = &vs->replies[(vs->reply_head + vs->n_replies++) % VSOCK_REPLIES_MAX];
    reply->src_cid = le64toh(to->dst_cid);
    reply->dst_cid = le64toh(to->src_cid);
    reply->src_port = le32toh(to->dst_port);
    reply->dst_port = le32toh(to->src_port);
    reply->type = le16toh(to->type);
    vsock_wake_rx(vs);
}

static void guest_calls(struct vsock *vs, const struct virtio_vsock_hdr *header, bool seqpacket)
{
    struct vsock_connection *c = vsock_connection_new(vs, seqpacket, VSOCK_ASKING);

    vsock_count(vs, COUNT_GUEST_CALLS, 1);
    if (c == NULL) {
        log_host("%s: the guest has all its %u connections open: see \"connections\" in "
                 "viod.conf(5)",
                 vs->dev->name, vs->max);
        vsock_count(vs, COUNT_REJECTED, 1);
        reply_reset(vs, header);
        return;
    }
    c->peer_cid = (uint32_t)le64toh(header->dst_cid);
    c->guest_port = le32toh(header->src_port);
    c->host_port = le32toh(header->dst_port);
    c->peer_buf_alloc = le32toh(header->buf_alloc);
    c->peer_fwd_cnt = le32toh(header->fwd_cnt);
    vsock_hash(c);
    vsock_ask_for(c);
}

static void take_credit(struct vsock_connection *c, const struct virtio_vsock_hdr *header)
{
    c->peer_buf_alloc = le32toh(header->buf_alloc);
    c->peer_fwd_cnt = le32toh(header->fwd_cnt);
    /* A message for which there will never be room any more is for vsock_message_from_host to judge. */
    if (c->starved_for > 0 &&
        (vsock_credit(c) >= c->starved_for || c->starved_for > MAX(c->peer_buf_alloc, 1u))) {
        c->starved_for = 0;
        vsock_say(c, PENDING_DATA);
    }
}

static void serve_packet(struct vsock_connection *c, const struct virtio_vsock_hdr *header,
                         struct chain *chain)
{
    uint32_t flags = le32toh(header->flags);

    switch (le16toh(header->op)) {
    case VIRTIO_VSOCK_OP_RST:
        if (c->state == VSOCK_CALLING)
            vsock_count(c->vs, COUNT_REJECTED, 1);
        else if (c->state == VSOCK_OPEN)
            vsock_count(c->vs, COUNT_RESETS, 1);
        vsock_forget(c);
        return;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        vsock_guest_shutdown(c, flags);
        return;
    case VIRTIO_VSOCK_OP_RESPONSE:
        if (c->state != VSOCK_CALLING || (c->pending & PENDING_REQUEST) != 0)
            break;
        vsock_accepted(c);
        return;
    case VIRTIO_VSOCK_OP_RW:
        if (c->state == VSOCK_CLOSING)
            return; /* its host side is gone, as the guest is being told */
        if (c->state != VSOCK_OPEN || (c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0)
            break;
        vsock_from_guest(c, chain, le32toh(header->len), (flags & VIRTIO_VSOCK_SEQ_EOM) != 0);
        return;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        return;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        if (c->state == VSOCK_OPEN)
            vsock_say(c, PENDING_CREDIT_UPDATE);
        return;
    default:
        break;
    }
    log_guest("%s: packet %u of the guest does not fit the state of its connection to port %u",
              c->vs->dev->name, le16toh(header->op), c->host_port);
    vsock_reset(c);
}

/* The host; or, if that is wanted, other guests, of which the supervisor knows which there are. */
static bool can_be_called(const struct vsock *vs, uint64_t cid)
{
    return cid == VSOCK_HOST_CID ||
           (vs->channel >= 0 && cid > VSOCK_HOST_CID && cid < UINT32_MAX && cid != vs->cid);
}

static void from_guest(struct vsock *vs, struct chain *chain)
{
    struct virtio_vsock_hdr header;
    struct vsock_connection *c;
    bool seqpacket;

    stat_add(&stats_of(vs, QUEUE_TX)->requests, 1);
    if (chain->faulted || chain_read(chain, &header, sizeof(header)) < sizeof(header) ||
        (le16toh(header.op) == VIRTIO_VSOCK_OP_RW &&
         le32toh(header.len) > chain->readable_bytes)) {
        log_guest("%s: a packet of the guest is cut short, or not in its RAM", vs->dev->name);
        stat_add(&stats_of(vs, QUEUE_TX)->errors, 1);
        return;
    }
    /* Its own CID is the only one that the guest may speak for: nobody could be answered. */
    if (le64toh(header.src_cid) != vs->cid) {
        log_guest("%s: a packet of the guest with another's CID as its source", vs->dev->name);
        stat_add(&stats_of(vs, QUEUE_TX)->errors, 1);
        return;
    }
    seqpacket = le16toh(header.type) == VIRTIO_VSOCK_TYPE_SEQPACKET;
    if ((seqpacket && !vs->seqpacket_ok) ||
        (!seqpacket &&
         (le16toh(header.type) != VIRTIO_VSOCK_TYPE_STREAM || !vs->stream_ok)) ||
        !can_be_called(vs, le64toh(header.dst_cid))) {
        reply_reset(vs, &header); /* 5.10.6.4; and nobody lives at another CID */
        return;
    }
    c = vsock_find(vs, (uint32_t)le64toh(header.dst_cid), le32toh(header.src_port),
                   le32toh(header.dst_port));
    if (c == NULL && le16toh(header.op) == VIRTIO_VSOCK_OP_REQUEST) {
        guest_calls(vs, &header, seqpacket);
    } else if (c == NULL || c->seqpacket != seqpacket) {
        reply_reset(vs, &header);
    } else if ((c->pending & PENDING_RST) == 0) { /* else the answer is under way */
        take_credit(c, &header);
        serve_packet(c, &header, chain);
    } else if (le16toh(header.op) == VIRTIO_VSOCK_OP_RST) {
        c->pending &= (uint8_t)~PENDING_RST; /* the guest was first */
        if (c->state == VSOCK_LINGER)
            vsock_unhash(c);
        else
            vsock_forget(c);
    }
}

static int tx_work(struct vsock *vs, struct virtqueue *vq, int budget)
{
    int taken = 0;

    while (taken < budget) {
        struct chain *chain;
        int ret;

        if (vs->n_replies == VSOCK_REPLIES_MAX) {
            virtio_queue_hold(vs->dev, vq); /* until the guest takes half of them */
            break;
        }
        ret = virtqueue_pop(vq, &chain);
        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        from_guest(vs, chain);
        chain_complete(chain, 0);
    }
    return taken;
}

/* ---- queues: I/O thread ---- */

static int vsock_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct vsock *vs = dev->priv;

    switch (virtqueue_index(vq)) {
    case QUEUE_RX:
        return rx_work(vs, vq, budget);
    case QUEUE_TX:
        return tx_work(vs, vq, budget);
    default:
        return event_work(vs, vq);
    }
}

static void vsock_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    struct vsock *vs = dev->priv;
    const uint64_t stream = FEATURE(VIRTIO_VSOCK_F_STREAM);
    const uint64_t strict = FEATURE(VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);

    vs->loop = virtio_queue_loop(dev, vq);
    vs->queues[virtqueue_index(vq)] = vq;
    /* 5.10.3.2 */
    vs->seqpacket_ok = virtio_has_feature(dev, VIRTIO_VSOCK_F_SEQPACKET);
    vs->stream_ok = (dev->features & (stream | strict)) != strict;
    if (virtqueue_index(vq) != QUEUE_EVENT)
        vs->stopping = false;
    vsock_listen_on(vs);
}

/* Without both data queues nobody is there to talk to: connections end with the second one. */
static bool vsock_queue_idle(struct virtio_device *dev, struct virtqueue *vq)
{
    struct vsock *vs = dev->priv;

    vs->queues[virtqueue_index(vq)] = NULL;
    if (virtqueue_index(vq) == QUEUE_EVENT || vs->queues[QUEUE_RX] != NULL ||
        vs->queues[QUEUE_TX] != NULL)
        return true;
    if (!vs->stopping) {
        vs->stopping = true;
        vsock_forget_all(vs);
        vs->n_replies = 0;
        vsock_listen_no_more(vs);
        loop_cancel_timer(vs->loop, &vs->tick);
        vsock_forget_asks(vs);
    }
    return vs->unasked && vs->watches == 0;
}

/* ---- MMIO thread ---- */

/* 5.10.6.7: the host's ends of all connections have died with the process that had them. */
static bool vsock_adopt(struct virtio_device *dev, uint64_t features)
{
    (void)features;
    ((struct vsock *)dev->priv)->reset_event = true;
    return true;
}

static void vsock_reset_device(struct virtio_device *dev)
{
    ((struct vsock *)dev->priv)->reset_event = false;
}

/* I/O thread: 5.10.6.7; connections are over, on both sides. */
static void run_interrupted(struct loop_work *work)
{
    struct vsock *vs = container_of(work, struct vsock, interrupted);

    vsock_forget_all(vs);
    vs->reset_event = true;
    if (vs->queues[QUEUE_EVENT] != NULL)
        virtio_queue_release(vs->dev, vs->queues[QUEUE_EVENT]);
}

static int vsock_control(struct virtio_device *dev, const char *request, char *reply,
                         size_t reply_len)
{
    struct vsock *vs = dev->priv;

    if (strcmp(request, "transport-reset") != 0) {
        snprintf(reply, reply_len,
                 "%s: a vsock device does not know \"%s\"; it knows \"transport-reset\"", dev->name,
                 request);
        return -EINVAL;
    }
    for (unsigned i = 0; i < QUEUES; i++)
        if (dev->queues[i].phase != QUEUE_RUNNING || dev->queues[i].start_deferred) {
            snprintf(reply, reply_len, "%s: the guest's driver is not running", dev->name);
            return -ENOTCONN;
        }
    loop_post(dev->queues[QUEUE_EVENT].loop, &vs->interrupted);
    snprintf(reply, reply_len, "%s: connections are reset", dev->name);
    return 0;
}

static void free_vsock(struct vsock *vs)
{
    for (size_t i = 0; i < ARRAY_SIZE(vs->listeners); i++)
        if (vs->listeners[i] >= 0)
            close(vs->listeners[i]);
    if (vs->channel >= 0)
        close(vs->channel);
    vsock_table_destroy(vs);
    free(vs);
}

static int vsock_create(struct virtio_device *dev, const struct device_config *config, char *error,
                        size_t error_len)
{
    struct virtio_vsock_config space = {0};
    uint64_t cid = device_config_uint(config, "cid");
    struct vsock *vs;

    /* 0xffffffff and the CIDs below 3 are reserved: 5.10.4. */
    if (cid <= VSOCK_HOST_CID || cid >= UINT32_MAX) {
        snprintf(error, error_len, "%s: %llu is no CID that a guest can have", config->name,
                 (unsigned long long)cid);
        return -EINVAL;
    }
    vs = calloc(1, sizeof(*vs));
    if (vs == NULL)
        goto no_memory;
    vs->dev = dev;
    vs->cid = (uint32_t)cid;
    vs->max = (uint32_t)device_config_uint(config, "connections");
    vs->buffer_size = (uint32_t)device_config_uint(config, "buffer-size") << 10;
    for (size_t i = 0; i < ARRAY_SIZE(vs->listeners); i++)
        vs->listeners[i] = -1;
    vs->channel = -1;
    if (vsock_table_create(vs) < 0)
        goto no_memory;
    for (size_t i = 0; i < MIN(ARRAY_SIZE(vs->listeners), config->n_fds); i++) {
        vs->listeners[i] = config->fds[i];
        ((struct device_config *)config)->fds[i] = -1; /* taken over */
    }
    if (config->n_fds > ARRAY_SIZE(vs->listeners)) {
        vs->channel = config->fds[ARRAY_SIZE(vs->listeners)];
        ((struct device_config *)config)->fds[ARRAY_SIZE(vs->listeners)] = -1;
    }
    vsock_listeners_init(vs);
    vsock_asks_init(vs);
    vs->interrupted.run = run_interrupted;
    stat_set(&dev->stats->own[COUNT_CONNECTIONS], 0); /* a predecessor's are over */
    dev->priv = vs;
    dev->n_queues = QUEUES;
    dev->queue_size = (uint16_t)device_config_uint(config, "queue-size");
    dev->offered = FEATURE(VIRTIO_VSOCK_F_STREAM) | FEATURE(VIRTIO_VSOCK_F_SEQPACKET) |
                   FEATURE(VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);
    space.guest_cid = htole64(cid);
    virtio_device_set_config(dev, &space, sizeof(space));
    return 0;
no_memory:
    snprintf(error, error_len, "%s: no memory for the table of connections", config->name);
    if (vs != NULL)
        free_vsock(vs);
    return -ENOMEM;
}

static void vsock_destroy(struct virtio_device *dev)
{
    free_vsock(dev->priv);
    dev->priv = NULL;
}

const struct virtio_device_ops virtio_vsock_ops = {
    .name = "vsock",
    .id = 19,
    .request_size = sizeof(struct chain),
    .features = vsock_features,
    .one_loop = true,
    .adopt = vsock_adopt,
    .create = vsock_create,
    .queue_started = vsock_queue_started,
    .queue_work = vsock_queue_work,
    .queue_idle = vsock_queue_idle,
    .reset = vsock_reset_device,
    .control = vsock_control,
    .answered = vsock_answered,
    .destroy = vsock_destroy,
};
