/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of a network device (VIRTIO 1.2, 5.1.6), between the guest's buffers and a TAP, which reads and
 * writes one frame a call and knows the header of 12 bytes.
 *
 * Transmission is batched on the ring: all frames of a turn are one system call, and a TAP takes each at
 * once and in order. Reception is not: where a read stops to find frames is not known beforehand, so a
 * batch of reads would need buffers for the largest frame (64 KiB) for each of them, and those that find
 * nothing wait in the kernel, to be woken in any order. A readv costs a system call a frame, which is
 * small against the copy, and none when there is nothing: one poll on the ring waits for the first frame
 * of the next burst.
 *
 * Not by vhost-net, in the kernel: there nobody looks at a descriptor before a kernel thread follows it,
 * and the kernel does not survive a system call on a page of a foreign mapping that the guest has given
 * back.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "devices/net_internal.h"
#include "log.h"

/* As long as one frame in so many is large, buffers for large ones are offered. */
#define LARGE_MEMORY 64u
/* How long a frame waits for buffers that are too few for it. */
#define PATIENCE_NS 100000000
/* Segments of at least so many bytes: a frame must not become thousands in the host. */
#define TCP_SEGMENT_MIN 48u
#define UDP_SEGMENTS_MAX 128u

static bool is_loss(int error)
{
    /* A TAP that was deleted says EBADFD; the others are for sockets. */
    return error == EBADFD || error == EPIPE || error == ECONNRESET || error == ENOTCONN ||
           error == EBADF;
}

/* ---- reception ---- */

static void watch_done(struct loop_op *op, int result, bool more)
{
    struct net_watch *watch = container_of(op, struct net_watch, op);

    (void)result;
    (void)more;
    watch->polling = false;
    if (watch->rx == NULL)
        free(watch);
    else
        watch->rx->readable = true; /* or broken: the next read says so */
}

static void wait_readable(struct net_rx *rx)
{
    struct io_uring_sqe *sqe;

    rx->readable = false;
    /* No more buffers are needed for now: the driver need not say when it adds some. */
    virtio_queue_hold(rx->net->dev, rx->vq);
    if (rx->watch->polling || atomic_load_explicit(&rx->net->lost, memory_order_relaxed))
        return;
    sqe = loop_sqe(rx->loop);
    io_uring_prep_poll_add(sqe, rx->fd, POLLIN);
    loop_sqe_op(sqe, &rx->watch->op);
    rx->watch->polling = true;
}

static struct chain *held(const struct net_rx *rx, unsigned i)
{
    return rx->held[(rx->first + i) % rx->size];
}

/*
 * Takes buffers until `want` bytes are there or the guest has no more: a ring's worth at most, because
 * what is given back can be taken again only when that is published. 0, or an error of pop; 1: what was
 * held, with any frame that lay in it, had to be given back.
 */
static int take_buffers(struct net_rx *rx, uint32_t want)
{
    /* Without MRG_RXBUF a frame has one buffer, however small (5.1.6.3.2). */
    while (rx->mergeable ? rx->room < want : rx->n_held == 0) {
        struct chain *chain;
        bool lost;
        int ret;

        if (rx->n_held == rx->size)
            return 0;
        ret = virtqueue_pop(rx->vq, &chain);
        if (ret <= 0)
            return ret;
        /* Any buffer may come to be the first of a frame, so each has room for the header. */
        if (chain->faulted || chain->writable_bytes < NET_HEADER_LEN) {
            log_guest("%s: a receive buffer of the guest is too small or not in its RAM",
                      rx->net->dev->name);
            stat_add(&rx->stats->errors, 1);
            /* In the order in which they came, or chain_put_back could not give back the rest. */
            lost = rx->n_held > 0;
            for (; rx->n_held > 0; rx->n_held--, rx->first = (rx->first + 1) % rx->size)
                chain_complete(held(rx, 0), 0);
            rx->room = 0;
            chain_complete(chain, 0);
            if (lost)
                return 1;
            continue;
        }
        rx->held[(rx->first + rx->n_held++) % rx->size] = chain;
        rx->room += chain->writable_bytes;
    }
    return 0;
}

/* The elements for a read: of the guest's buffers, in order, up to `want` bytes; then the spill. */
static unsigned gather(struct net_rx *rx, uint32_t want, uint32_t *room)
{
    unsigned n = 0;
    uint64_t bytes = 0; /* a chain may have 4 GiB */

    for (unsigned i = 0; i < rx->n_held && bytes < want; i++) {
        const struct iovec *iov;
        unsigned count = chain_rest_writable(held(rx, i), &iov);

        if (n + count > NET_IOV_MAX - 1)
            break;
        memcpy(&rx->iov[n], iov, count * sizeof(*iov));
        n += count;
        bytes += held(rx, i)->writable_bytes;
        if (!rx->mergeable)
            break;
    }
    *room = (uint32_t)MIN(bytes, UINT64_C(1) << 30); /* more than any frame */
    rx->iov[n++] = (struct iovec){.iov_base = rx->spill, .iov_len = NET_SPILL_LEN};
    return n;
}

/* The first bytes of what was read, wherever they are. */
static void peek(const struct net_rx *rx, uint8_t *to, size_t len)
{
    for (const struct iovec *iov = rx->iov; len > 0; iov++) {
        size_t n = MIN(iov->iov_len, len);

        memcpy(to, iov->iov_base, n);
        to += n;
        len -= n;
    }
}

static void drop(struct net_rx *rx)
{
    stat_add(&rx->stats->drops, 1);
}

/* How many buffers the frame needs; 0: more than there are. */
static unsigned buffers_for(const struct net_rx *rx, uint32_t len)
{
    uint64_t room = 0;

    for (unsigned i = 0; i < rx->n_held; i++) {
        room += held(rx, i)->writable_bytes;
        if (room >= len)
            return i + 1;
        if (!rx->mergeable)
            break;
    }
    return 0;
}

/*
 * A frame of `len` bytes, header included, lies in the buffers, as far as `room`, and then in the spill.
 * Gives its buffers to the guest. False: they are too few.
 */
static bool deliver(struct net_rx *rx, uint32_t len, uint32_t room)
{
    struct virtio_net_hdr_v1 header;
    unsigned n = buffers_for(rx, len);
    uint32_t at = 0;

    if (n == 0)
        return false;
    peek(rx, (uint8_t *)&header, sizeof(header));
    /* 5.1.6.4: what was not negotiated is not said. */
    header.flags &= rx->csum ? VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID : 0;
    header.num_buffers = htole16((uint16_t)n);
    for (unsigned i = 0; i < n; i++) {
        struct chain *chain = held(rx, 0);
        uint32_t bytes = chain->writable_bytes, used = MIN(bytes, len - at), written = 0;

        rx->room -= bytes;
        rx->first = (rx->first + 1) % rx->size;
        rx->n_held--;
        if (i == 0)
            written = (uint32_t)chain_write(chain, &header, sizeof(header));
        if (at + used > room) {
            uint32_t from = MAX(at + written, room);

            chain_skip_writable(chain, from - at - written);
            chain_write(chain, rx->spill + (from - room), at + used - from);
        }
        at += used;
        if (i + 1 < n) /* half a frame would be taken for one with the beginning of the next */
            chain_complete_part(chain, used);
        else
            chain_complete(chain, used);
        stat_add(&rx->stats->requests, 1);
    }
    stat_add(&rx->stats->packets, 1);
    stat_add(&rx->stats->read_bytes, len - NET_HEADER_LEN);
    return true;
}

/*
 * 5.1.6.4.1: the guest is handed nothing that it did not negotiate, or has switched off. The TAP was told
 * so, but what lay in it before, for another driver perhaps, is as it was.
 */
static bool is_allowed(const struct net_rx *rx, const struct virtio_net_hdr_v1 *header)
{
    unsigned allowed = atomic_load_explicit(&rx->net->allowed, memory_order_relaxed), needed = 0;

    if ((header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0)
        needed |= NET_OFFLOAD_CSUM;
    if ((header->gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0)
        needed |= NET_OFFLOAD_ECN;
    switch (header->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        break;
    case VIRTIO_NET_HDR_GSO_TCPV4:
        needed |= NET_OFFLOAD_TSO4;
        break;
    case VIRTIO_NET_HDR_GSO_TCPV6:
        needed |= NET_OFFLOAD_TSO6;
        break;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        needed |= NET_OFFLOAD_USO;
        break;
    default:
        return false;
    }
    return (needed & ~allowed) == 0;
}

/* A frame came. False: it has to wait for more buffers. */
static bool accept_frame(struct net_rx *rx, uint32_t len, uint32_t room)
{
    uint8_t start[NET_HEADER_LEN + 18];
    struct virtio_net_hdr_v1 header;
    int ret = 0;

    if (len < NET_HEADER_LEN + ETHERNET_HEADER_LEN || len >= room + NET_SPILL_LEN) {
        stat_add(&rx->stats->errors, 1);
        return true;
    }
    memset(start, 0, sizeof(start));
    peek(rx, start, MIN(sizeof(start), len));
    memcpy(&header, start, sizeof(header));
    if (!atomic_load_explicit(&rx->net->passing, memory_order_relaxed) || !is_allowed(rx, &header) ||
        !net_filter_passes(&rx->net->state->filter, start + NET_HEADER_LEN, len - NET_HEADER_LEN)) {
        drop(rx);
        return true;
    }
    if (len > rx->small)
        rx->large_left = LARGE_MEMORY;
    else if (rx->large_left > 0)
        rx->large_left--;
    /* What did not fit where it was read to may fit into buffers that came later. */
    if (rx->mergeable && len > room)
        ret = take_buffers(rx, len);
    if (ret < 0)
        virtio_queue_release(rx->net->dev, rx->vq);
    if (ret > 0) {
        drop(rx);
        return true;
    }
    if (deliver(rx, len, room))
        return true;
    if (!rx->mergeable) {
        log_guest("%s: the guest's receive buffers are too small for a frame of %u bytes",
                  rx->net->dev->name, len - NET_HEADER_LEN);
        drop(rx);
        return true;
    }
    rx->pending = len;
    rx->pending_room = room;
    loop_set_timer(rx->loop, &rx->give_up, PATIENCE_NS);
    return false;
}

static void forget_pending(struct net_rx *rx)
{
    rx->pending = 0;
    loop_cancel_timer(rx->loop, &rx->give_up);
}

/* The guest's ring may be too small for such a frame ever to fit: others shall not wait behind it. */
static void give_up(struct loop_timer *timer)
{
    struct net_rx *rx = container_of(timer, struct net_rx, give_up);

    log_guest("%s: the guest's receive buffers are too few for a frame of %u bytes",
              rx->net->dev->name, rx->pending - NET_HEADER_LEN);
    rx->pending = 0;
    drop(rx);
}

/* 1: a frame is done with. 0: none, or it waits; the queue is held or released accordingly. */
static int receive_one(struct net_rx *rx)
{
    uint32_t want = rx->large_left > 0 ? rx->large : rx->small;
    uint32_t room;
    unsigned n_iov;
    ssize_t len;
    int ret;

    ret = take_buffers(rx, rx->pending > 0 ? rx->pending : want);
    if (ret < 0)
        return ret;
    if (ret > 0) {
        if (rx->pending > 0) {
            drop(rx);
            forget_pending(rx);
        }
        return 1;
    }
    if (rx->pending > 0) {
        if (!deliver(rx, rx->pending, rx->pending_room)) {
            virtio_queue_release(rx->net->dev, rx->vq);
            return 0;
        }
        forget_pending(rx);
        return 1;
    }
    if (rx->n_held == 0) {
        virtio_queue_release(rx->net->dev, rx->vq); /* tell us when there are some */
        return 0;
    }
    n_iov = gather(rx, want, &room);
    len = readv(rx->fd, rx->iov, (int)n_iov);
    if (len > 0)
        return accept_frame(rx, (uint32_t)len, room) ? 1 : 0;
    if (len == 0 || is_loss(errno))
        net_lose(rx->net);
    else if (errno == EINTR)
        return 1;
    else if (errno != EAGAIN) {
        log_host("%s: cannot read from the interface: %s", rx->net->dev->name, strerror(errno));
        stat_add(&rx->stats->errors, 1);
    }
    wait_readable(rx);
    return 0;
}

int net_rx_work(struct net_rx *rx, int budget)
{
    int done = 0;

    if (!rx->readable) {
        virtio_queue_hold(rx->net->dev, rx->vq);
        return 0;
    }
    while (done < budget && rx->readable) {
        int ret = receive_one(rx);

        if (ret < 0 && done == 0)
            return ret;
        if (ret <= 0)
            break;
        done++;
    }
    return done;
}

static bool rx_poll(struct loop_poller *poller)
{
    struct net_rx *rx = container_of(poller, struct net_rx, poller);
    int ret;

    if (!rx->readable || !virtio_queue_active(rx->net->dev, rx->vq))
        return false;
    ret = net_rx_work(rx, 64);
    if (ret < 0)
        virtio_queue_release(rx->net->dev, rx->vq); /* who polls the queue meets the error again */
    return ret > 0;
}

static bool rx_arm(struct loop_poller *poller)
{
    (void)poller;
    return false; /* rx_poll went on until a poll was set up or the guest is to give buffers */
}

static void rx_disarm(struct loop_poller *poller)
{
    (void)poller;
}

static void run_renewed(struct loop_work *work)
{
    struct net_rx *rx = container_of(work, struct net_rx, renewed);

    rx->readable = rx->watch != NULL; /* NULL: no memory, or stopped meanwhile */
}

void net_rx_init(struct net_rx *rx, struct net *net, int fd)
{
    rx->net = net;
    rx->fd = fd;
    rx->poller.poll = rx_poll;
    rx->poller.arm = rx_arm;
    rx->poller.disarm = rx_disarm;
    rx->renewed.run = run_renewed;
    rx->give_up.expired = give_up;
}

void net_rx_started(struct net_rx *rx, struct virtqueue *vq)
{
    struct virtio_device *dev = rx->net->dev;
    uint64_t segmentation = FEATURE(VIRTIO_NET_F_GUEST_TSO4) | FEATURE(VIRTIO_NET_F_GUEST_TSO6) |
                            FEATURE(VIRTIO_NET_F_GUEST_USO4) | FEATURE(VIRTIO_NET_F_GUEST_USO6);

    rx->vq = vq;
    rx->loop = virtio_queue_loop(dev, vq);
    rx->stats = &dev->stats->queues[MIN(virtqueue_index(vq), STATS_QUEUES_MAX - 1)];
    rx->mergeable = virtio_has_feature(dev, VIRTIO_NET_F_MRG_RXBUF);
    rx->csum = virtio_has_feature(dev, VIRTIO_NET_F_GUEST_CSUM);
    rx->small = NET_HEADER_LEN + ETHERNET_HEADER_LEN + 4u + rx->net->mtu;
    rx->large = (dev->features & segmentation) != 0 ? NET_HEADER_LEN + FRAME_MAX : rx->small;
    rx->large = MAX(rx->large, rx->small);
    rx->large_left = 0;
    rx->first = rx->n_held = 0;
    rx->room = 0;
    rx->pending = 0;
    rx->readable = true;
    rx->watch = calloc(1, sizeof(*rx->watch));
    if (rx->watch == NULL) {
        log_host("%s: no memory to receive", dev->name);
        rx->readable = false;
        return;
    }
    rx->watch->op.done = watch_done;
    rx->watch->rx = rx;
    loop_add_poller(rx->loop, &rx->poller);
}

/* Newest first: they are taken again, in order, when the queue goes on. */
void net_rx_drain(struct net_rx *rx)
{
    if (rx->pending > 0) {
        drop(rx);
        forget_pending(rx);
    }
    while (rx->n_held > 0)
        chain_put_back(held(rx, --rx->n_held));
    rx->room = 0;
}

void net_rx_stopped(struct net_rx *rx)
{
    struct io_uring_sqe *sqe;

    if (rx->watch == NULL)
        return;
    loop_remove_poller(rx->loop, &rx->poller);
    rx->watch->rx = NULL;
    if (rx->watch->polling) {
        sqe = loop_sqe(rx->loop);
        io_uring_prep_poll_remove(sqe, (__u64)(uintptr_t)&rx->watch->op);
        loop_sqe_op(sqe, NULL);
    } else {
        free(rx->watch);
    }
    rx->watch = NULL;
    rx->readable = false;
}

/* ---- transmission ---- */

static bool gso_is_good(const struct net_request *request)
{
    const struct virtio_device *dev = request->tx->net->dev;
    const struct virtio_net_hdr_v1 *header = &request->header;
    uint8_t type = header->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
    uint16_t size = le16toh(header->gso_size);

    if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
        return true;
    if ((header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0) /* 5.1.6.2.1 */
        return false;
    switch (type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV6:
        return virtio_has_feature(dev, type == VIRTIO_NET_HDR_GSO_TCPV4 ? VIRTIO_NET_F_HOST_TSO4
                                                                        : VIRTIO_NET_F_HOST_TSO6) &&
               (type == header->gso_type || virtio_has_feature(dev, VIRTIO_NET_F_HOST_ECN)) &&
               size >= TCP_SEGMENT_MIN;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        return virtio_has_feature(dev, VIRTIO_NET_F_HOST_USO) && type == header->gso_type &&
               size > 0 && request->len / size <= UDP_SEGMENTS_MAX;
    default:
        return false;
    }
}

/*
 * The kernel checks a header against its frame, too; here is what it need not know (what was negotiated)
 * and what must not depend on its version. The copy that is checked is the one that is sent.
 */
static bool header_is_good(struct net_request *request)
{
    const struct virtio_device *dev = request->tx->net->dev;
    struct virtio_net_hdr_v1 *header = &request->header;
    uint32_t sum_end = (uint32_t)le16toh(header->csum_start) + le16toh(header->csum_offset) + 2u;

    header->num_buffers = 0;
    /* 5.1.6.2.2: other flags are ignored; DATA_VALID is the device's alone. */
    header->flags &= virtio_has_feature(dev, VIRTIO_NET_F_CSUM) ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0;
    if (request->len < ETHERNET_HEADER_LEN || request->len > FRAME_MAX || !gso_is_good(request))
        return false;
    if ((header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
        if (sum_end > request->len)
            return false;
    } else {
        header->csum_start = header->csum_offset = 0;
    }
    if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
        header->gso_size = 0;
    /* Only a hint (5.1.6.2.1), but the kernel refuses one beyond the frame. */
    if (le16toh(header->hdr_len) > request->len)
        header->hdr_len = 0;
    return true;
}

static void sent(struct loop_op *op, int result, bool more)
{
    struct net_request *request = container_of(op, struct net_request, op);
    struct net_tx *tx = request->tx;

    (void)more;
    if (result >= 0) {
        stat_add(&tx->stats->packets, 1);
        stat_add(&tx->stats->write_bytes, request->len);
    } else if (is_loss(-result)) {
        net_lose(tx->net);
        stat_add(&tx->stats->drops, 1);
    } else {
        /* EIO: the interface is down. The rest are frames that the kernel does not like. */
        stat_add(result == -EIO ? &tx->stats->drops : &tx->stats->errors, 1);
    }
    stat_add(&tx->stats->requests, 1);
    chain_complete(&request->chain, 0);
}

static void transmit(struct net_tx *tx, struct chain *chain)
{
    struct net_request *request = container_of(chain, struct net_request, chain);
    struct net *net = tx->net;
    const struct iovec *iov;
    struct io_uring_sqe *sqe;
    unsigned n;

    request->tx = tx;
    if (chain->faulted ||
        chain_read(chain, &request->header, NET_HEADER_LEN) != NET_HEADER_LEN ||
        (request->len = chain->readable_bytes, !header_is_good(request))) {
        log_guest("%s: a frame of the guest has a header that cannot be", net->dev->name);
        stat_add(&tx->stats->errors, 1);
        stat_add(&tx->stats->requests, 1);
        chain_complete(chain, 0);
        return;
    }
    if (!atomic_load_explicit(&net->passing, memory_order_relaxed)) {
        stat_add(&tx->stats->drops, 1);
        stat_add(&tx->stats->requests, 1);
        chain_complete(chain, 0);
        return;
    }
    n = chain_readable_behind(chain, &request->header, NET_HEADER_LEN, &iov);
    request->op.done = sent;
    sqe = loop_sqe(tx->loop);
    io_uring_prep_writev(sqe, tx->fd, iov, n, 0);
    loop_sqe_op(sqe, &request->op);
}

void net_tx_started(struct net_tx *tx, struct virtqueue *vq)
{
    struct virtio_device *dev = tx->net->dev;

    tx->vq = vq;
    tx->loop = virtio_queue_loop(dev, vq);
    tx->stats = &dev->stats->queues[MIN(virtqueue_index(vq), STATS_QUEUES_MAX - 1)];
}

int net_tx_work(struct net_tx *tx, int budget)
{
    struct chain *chain;
    int taken = 0;

    while (taken < budget) {
        int ret = virtqueue_pop(tx->vq, &chain);

        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        transmit(tx, chain);
    }
    return taken;
}
