/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests of a block device (VIRTIO 1.2, 5.2.6); all of it in the I/O thread of their queue.
 *
 * All requests run at the same time, as the backend gets them done: a flush covers the writes that
 * were completed before it was made available, and those are in the backend's hands no more.
 */
#include <errno.h>
#include <string.h>

#include "devices/blk_internal.h"
#include "log.h"

#define LARGE_REQUEST (32u << 10)   /* bytes */

static_assert(sizeof(struct virtio_blk_outhdr) == 16, "5.2.6");
static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "5.2.6");

/* ---- the end of a request ---- */

static struct queue_stats *stats_of(const struct blk_request *request)
{
    return &request->blk->dev->stats->queues[virtqueue_index(request->chain.vq)];
}

/*
 * The used length counts from the first writable byte (2.7.8.2), and the status byte is the last one:
 * it is counted only if all before it was written. An underestimate is allowed, the contrary is not.
 */
static void complete(struct blk_request *request, uint8_t status)
{
    struct queue_stats *stats = stats_of(request);

    *(volatile uint8_t *)request->status = status;
    stat_add(&stats->requests, 1);
    if (status != VIRTIO_BLK_S_OK)
        stat_add(&stats->errors, 1);
    chain_complete(&request->chain, request->filled + (request->filled == request->room));
}

static const char *name_of(enum block_op op)
{
    switch (op) {
    case BLOCK_READ:
        return "read";
    case BLOCK_WRITE:
        return "write";
    case BLOCK_FLUSH:
        return "flush";
    case BLOCK_DISCARD:
        return "discard";
    case BLOCK_WRITE_ZEROES:
        return "write zeroes";
    case BLOCK_SECURE_ERASE:
        return "secure erase";
    }
    return "request";
}

static uint8_t status_of(const struct blk_request *request, int result)
{
    if (result == 0)
        return VIRTIO_BLK_S_OK;
    if (result == -EOPNOTSUPP && request->io.op != BLOCK_READ && request->io.op != BLOCK_WRITE)
        return VIRTIO_BLK_S_UNSUPP;
    blk_request_failed(request->blk);
    log_host("%s: %s of %llu bytes at sector %llu failed: %s", request->blk->dev->name,
             name_of(request->io.op), (unsigned long long)request->io.len,
             (unsigned long long)(request->io.offset / BLK_SECTOR), strerror(-result));
    return VIRTIO_BLK_S_IOERR;
}

#ifdef VIOD_FAULTS
/* For tests of what happens then: requests that kill each worker that meets them, or has them done. */
#define FAULT_AT_START 0xfa17u
#define FAULT_AT_END 0xfa18u
static void fault(uint64_t sector, uint64_t poison)
{
    if (sector == poison)
        __builtin_trap();
}
#else
#define fault(sector, poison) ((void)0)
#endif

static void io_done(struct block_request *io, int result)
{
    struct blk_request *request = container_of(io, struct blk_request, io);
    struct virtqueue *vq = request->chain.vq;

    chain_in_hand(&request->chain);
    fault(io->offset / BLK_SECTOR, FAULT_AT_END);
    if (result == 0 && io->op == BLOCK_READ) {
        request->filled = request->room;
        stat_add(&stats_of(request)->read_bytes, io->len);
    } else if (result == 0 && io->op == BLOCK_WRITE) {
        stat_add(&stats_of(request)->write_bytes, io->len);
    }
    complete(request, status_of(request, result));
    virtqueue_set_serving(vq, false);
}

/* ---- the requests of 5.2.6 ---- */

/* A bad request fails; it is the guest's business, and worth at most a line. */
static void reject(struct blk_request *request, const char *why)
{
    log_guest("%s: a request of the guest failed: %s", request->blk->dev->name, why);
    complete(request, VIRTIO_BLK_S_IOERR);
}

static bool in_capacity(const struct blk *blk, uint64_t sector, uint64_t n_sectors)
{
    uint64_t capacity = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    uint64_t end;

    return !__builtin_add_overflow(sector, n_sectors, &end) && end <= capacity;
}

static bool is_write_through(const struct blk *blk)
{
    return !blk->info.write_through &&
           atomic_load_explicit(&blk->write_through, memory_order_relaxed);
}

static void submit(struct blk_request *request)
{
    struct blk *blk = request->blk;
    struct blk_channel *shared = blk->queues[virtqueue_index(request->chain.vq)];

    request->io.done = io_done;
    /* Copying it takes longer than the driver needs for the next one: both at the same time. */
    if (request->io.len >= LARGE_REQUEST)
        loop_submit_now(virtio_queue_loop(blk->dev, request->chain.vq));
    if (shared)
        block_submit(shared->channel, &request->io);
    else
        io_done(&request->io, -ENOMEM);
}

static void read_or_write(struct blk_request *request, enum block_op op, uint64_t sector)
{
    struct blk *blk = request->blk;
    struct block_request *io = &request->io;
    uint32_t len = op == BLOCK_READ ? request->room : request->chain.readable_bytes;

    if (op == BLOCK_WRITE && blk->info.read_only) {
        reject(request, "a write to a read-only disk");
        return;
    }
    if (len % BLK_SECTOR) {
        reject(request, "the length of the data is not a multiple of 512");
        return;
    }
    if (!in_capacity(blk, sector, len / BLK_SECTOR)) {
        reject(request, "a read or write beyond the end of the disk");
        return;
    }
    io->op = op;
    io->offset = sector * BLK_SECTOR; /* no overflow: the capacity in bytes fits 64 bits */
    io->len = len;
    io->unmap = false;
    io->fua = op == BLOCK_WRITE && is_write_through(blk);
    io->pinnable = request->chain.pinnable;
    io->n_iov = op == BLOCK_READ ? chain_rest_writable(&request->chain, &io->iov)
                                 : chain_rest_readable(&request->chain, &io->iov);
    submit(request);
}

static void flush(struct blk_request *request)
{
    request->io = (struct block_request){.op = BLOCK_FLUSH};
    submit(request);
}

static void get_id(struct blk_request *request)
{
    request->filled = (uint32_t)chain_write(&request->chain, request->blk->id,
                                            sizeof(request->blk->id));
    complete(request, VIRTIO_BLK_S_OK);
}

static void next_range(struct blk_request *request);

static void range_done(struct block_request *io, int result)
{
    struct blk_request *request = container_of(io, struct blk_request, io);
    struct virtqueue *vq = request->chain.vq;

    chain_in_hand(&request->chain);
    if (result == 0 && request->next_range < request->n_ranges)
        next_range(request);
    else
        complete(request, status_of(request, result));
    virtqueue_set_serving(vq, false);
}

static void next_range(struct blk_request *request)
{
    const struct range *range = &request->ranges[request->next_range++];
    struct blk *blk = request->blk;
    struct blk_channel *shared = blk->queues[virtqueue_index(request->chain.vq)];
    struct block_request *io = &request->io;

    io->done = range_done;
    io->offset = range->sector * BLK_SECTOR;
    io->len = (uint64_t)range->n_sectors * BLK_SECTOR;
    io->unmap = range->unmap;
    if (shared)
        block_submit(shared->channel, io);
    else
        range_done(io, -ENOMEM);
}

/*
 * DISCARD, WRITE_ZEROES, SECURE_ERASE: all ranges are read and checked before the first is touched;
 * then they are done one after the other.
 */
static void ranges(struct blk_request *request, enum block_op op, unsigned feature)
{
    struct blk *blk = request->blk;
    bool zeroes = op == BLOCK_WRITE_ZEROES;
    uint32_t known_flags = zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
    uint32_t sectors_max = zeroes ? ZEROES_SECTORS_MAX : DISCARD_SECTORS_MAX;
    uint32_t ranges_max = zeroes ? ZEROES_RANGES_MAX : DISCARD_RANGES_MAX;
    uint32_t len = request->chain.readable_bytes;
    struct virtio_blk_discard_write_zeroes wire[DISCARD_RANGES_MAX];
    const char *wrong = NULL;

    if (blk->info.read_only) {
        reject(request, "a discard, zeroing or erasure on a read-only disk");
        return;
    }
    if (!virtio_has_feature(blk->dev, feature)) {
        complete(request, VIRTIO_BLK_S_UNSUPP);
        return;
    }
    if (len == 0 || len % sizeof(wire[0]) || len / sizeof(wire[0]) > ranges_max) {
        reject(request, "a discard, zeroing or erasure with a wrong number of ranges");
        return;
    }
    request->n_ranges = (uint8_t)(len / sizeof(wire[0]));
    request->next_range = 0;
    if (chain_read(&request->chain, wire, len) != len) {
        reject(request, "the ranges cannot be read");
        return;
    }
    for (unsigned i = 0; i < request->n_ranges; i++) {
        struct range *range = &request->ranges[i];
        uint32_t flags = le32toh(wire[i].flags);

        /* 5.2.6.2: UNSUPP for any unknown flag, and for unmap where it has no meaning. */
        if (flags & ~known_flags) {
            complete(request, VIRTIO_BLK_S_UNSUPP);
            return;
        }
        range->sector = le64toh(wire[i].sector);
        range->n_sectors = le32toh(wire[i].num_sectors);
        range->unmap = (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0 &&
                       blk->info.discard_granularity != 0;
        if (range->n_sectors > sectors_max)
            wrong = "a range to discard, zero or erase is longer than allowed";
        else if (!in_capacity(blk, range->sector, range->n_sectors))
            wrong = "a range to discard, zero or erase is beyond the end of the disk";
    }
    if (wrong) {
        reject(request, wrong);
        return;
    }
    request->io = (struct block_request){.op = op, .fua = zeroes && is_write_through(blk)};
    next_range(request);
}

static void start(struct blk *blk, struct chain *chain)
{
    struct blk_request *request = container_of(chain, struct blk_request, chain);
    struct virtio_blk_outhdr header;
    struct iovec status;

    if (chain_take_tail(chain, 1, &status, 1) < 0) {
        /* Nowhere to say how it went: nothing is done. */
        log_guest("%s: a request of the guest has no room for its status", blk->dev->name);
        stat_add(&blk->dev->stats->queues[virtqueue_index(chain->vq)].errors, 1);
        chain_complete(chain, 0);
        return;
    }
    request->blk = blk;
    request->status = status.iov_base;
    request->room = chain->writable_bytes;
    request->filled = 0;
    if (chain->faulted) {
        request->room = UINT32_MAX; /* no chain has that many: where the gap is, is not known */
        reject(request, "a part of its memory is not the guest's RAM");
        return;
    }
    if (chain_read(chain, &header, sizeof(header)) < sizeof(header)) {
        reject(request, "its header is too short");
        return;
    }
    fault(le64toh(header.sector), FAULT_AT_START);
    switch (le32toh(header.type)) {
    case VIRTIO_BLK_T_IN:
        read_or_write(request, BLOCK_READ, le64toh(header.sector));
        return;
    case VIRTIO_BLK_T_OUT:
        read_or_write(request, BLOCK_WRITE, le64toh(header.sector));
        return;
    case VIRTIO_BLK_T_FLUSH:
        flush(request);
        return;
    case VIRTIO_BLK_T_GET_ID:
        get_id(request);
        return;
    case VIRTIO_BLK_T_DISCARD:
        ranges(request, BLOCK_DISCARD, VIRTIO_BLK_F_DISCARD);
        return;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        ranges(request, BLOCK_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES);
        return;
    case VIRTIO_BLK_T_SECURE_ERASE:
        ranges(request, BLOCK_SECURE_ERASE, VIRTIO_BLK_F_SECURE_ERASE);
        return;
    default: /* also GET_LIFETIME and the zone commands, whose features are not offered */
        complete(request, VIRTIO_BLK_S_UNSUPP);
        return;
    }
}

int blk_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct blk *blk = dev->priv;
    struct chain *chain;
    int taken = 0;

    while (taken < budget) {
        int ret = virtqueue_pop(vq, &chain);

        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        start(blk, chain);
    }
    return taken;
}
