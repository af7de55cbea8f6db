/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device (VIRTIO 1.2, 5.2).
 *
 * All requests run at the same time, as the backend gets them done: a flush covers the writes that
 * were completed before it was made available, and those are in the backend's hands no more.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "config.h"
#include "devices/table.h"
#include "log.h"
#include "stats.h"

#define SECTOR_SIZE 512u
#define QUEUES_MAX 16u /* each with counters of its own */
static_assert(QUEUES_MAX <= STATS_QUEUES_MAX, "stats.h");
#define SEGMENT_MAX (1u << 20)      /* bytes: size_max */
#define LARGE_REQUEST (32u << 10)   /* bytes */

/* Ranges in one DISCARD or SECURE_ERASE, and sectors in one range: 1 GiB. */
#define DISCARD_RANGES_MAX 8u
#define DISCARD_SECTORS_MAX (1u << 21)
/* Zeros may have to be written: at a slow disk's speed this must still end in reasonable time. */
#define ZEROES_RANGES_MAX 1u
#define ZEROES_SECTORS_MAX (1u << 18)

#define FEATURE(bit) (UINT64_C(1) << (bit))

static_assert(sizeof(struct virtio_blk_outhdr) == 16, "5.2.6");
static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "5.2.6");
static_assert(offsetof(struct virtio_blk_config, blk_size) == 20, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, wce) == 32, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, max_discard_sectors) == 36, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, write_zeroes_may_unmap) == 56, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, max_secure_erase_sectors) == 60, "5.2.4");
/* Up to the fields of zoned devices, which newer headers have and this device is not. */
#define CONFIG_LEN 72u
static_assert(offsetof(struct virtio_blk_config, secure_erase_sector_alignment) + 4 == CONFIG_LEN,
              "5.2.4");

/* A checked range of a DISCARD, WRITE_ZEROES or SECURE_ERASE. */
struct range {
    uint64_t sector;
    uint32_t n_sectors;
    bool unmap;
};

struct blk_request {
    struct chain chain; /* first */
    struct block_request io;
    struct blk *blk;
    uint8_t *status;    /* the last writable byte */
    uint32_t room;      /* writable bytes before it ... */
    uint32_t filled;    /* ... of which this many, from the first on, were written */
    uint8_t n_ranges, next_range;
    struct range ranges[DISCARD_RANGES_MAX];
};

/* What the queues of one loop share. */
struct blk_channel {
    struct event_loop *loop;
    struct block_channel *channel;
    unsigned users; /* queues; 0: unused */
};

struct blk {
    struct virtio_device *dev;
    struct block_backend *backend;
    struct block_info info;
    uint32_t block_size;         /* bytes: what the guest sees as its logical block */
    char id[VIRTIO_BLK_ID_BYTES];
    /* Written by the MMIO thread, read by the I/O threads for each request. */
    _Atomic uint64_t capacity;   /* sectors */
    atomic_bool write_through;
    pthread_mutex_t lock;        /* of channels: taken when a queue starts or stops */
    struct blk_channel channels[QUEUES_MAX];
    struct blk_channel *queues[QUEUES_MAX]; /* I/O thread of the queue; NULL: not possible */
};

static const struct feature blk_features[] = {
    {VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"},
    {VIRTIO_BLK_F_SEG_MAX, "SEG_MAX"},
    {VIRTIO_BLK_F_RO, "RO"},
    {VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"},
    {VIRTIO_BLK_F_FLUSH, "FLUSH"},
    {VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"},
    {VIRTIO_BLK_F_CONFIG_WCE, "CONFIG_WCE"},
    {VIRTIO_BLK_F_MQ, "MQ"},
    {VIRTIO_BLK_F_DISCARD, "DISCARD"},
    {VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"},
    {VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"},
    {0, NULL},
};

/* ---- the end of a request: I/O thread ---- */

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
    log_host("%s: %s of %llu bytes at sector %llu failed: %s", request->blk->dev->name,
             name_of(request->io.op), (unsigned long long)request->io.len,
             (unsigned long long)(request->io.offset / SECTOR_SIZE), strerror(-result));
    return VIRTIO_BLK_S_IOERR;
}

static void io_done(struct block_request *io, int result)
{
    struct blk_request *request = container_of(io, struct blk_request, io);

    if (result == 0 && io->op == BLOCK_READ) {
        request->filled = request->room;
        stat_add(&stats_of(request)->read_bytes, io->len);
    } else if (result == 0 && io->op == BLOCK_WRITE) {
        stat_add(&stats_of(request)->write_bytes, io->len);
    }
    complete(request, status_of(request, result));
}

/* ---- the requests of 5.2.6: I/O thread ---- */

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
    if (len % SECTOR_SIZE) {
        reject(request, "the length of the data is not a multiple of 512");
        return;
    }
    if (!in_capacity(blk, sector, len / SECTOR_SIZE)) {
        reject(request, "a read or write beyond the end of the disk");
        return;
    }
    io->op = op;
    io->offset = sector * SECTOR_SIZE; /* no overflow: the capacity in bytes fits 64 bits */
    io->len = len;
    io->unmap = false;
    io->fua = op == BLOCK_WRITE && is_write_through(blk);
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

    if (result == 0 && request->next_range < request->n_ranges) {
        next_range(request);
        return;
    }
    complete(request, status_of(request, result));
}

static void next_range(struct blk_request *request)
{
    const struct range *range = &request->ranges[request->next_range++];
    struct blk *blk = request->blk;
    struct blk_channel *shared = blk->queues[virtqueue_index(request->chain.vq)];
    struct block_request *io = &request->io;

    io->done = range_done;
    io->offset = range->sector * SECTOR_SIZE;
    io->len = (uint64_t)range->n_sectors * SECTOR_SIZE;
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

static int blk_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
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

/* Queues of one loop share a channel, and with it the memory of its bounce pool. */
static void blk_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    struct blk *blk = dev->priv;
    struct event_loop *loop = virtio_queue_loop(dev, vq);
    struct blk_channel *shared = NULL;
    int err = 0;

    pthread_mutex_lock(&blk->lock);
    for (size_t i = 0; i < ARRAY_SIZE(blk->channels); i++) {
        struct blk_channel *c = &blk->channels[i];

        if (c->users && c->loop == loop) {
            shared = c;
            break;
        }
        if (!c->users && !shared)
            shared = c;
    }
    if (shared && !shared->users) {
        shared->loop = loop;
        err = block_channel_create(blk->backend, loop, &shared->channel);
    }
    if (err) {
        log_host("%s: no memory for I/O: %s", dev->name, strerror(-err));
        shared = NULL;
    }
    if (shared)
        shared->users++;
    blk->queues[virtqueue_index(vq)] = shared;
    pthread_mutex_unlock(&blk->lock);
}

static void blk_queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    struct blk *blk = dev->priv;
    struct blk_channel **shared = &blk->queues[virtqueue_index(vq)];

    pthread_mutex_lock(&blk->lock);
    if (*shared && --(*shared)->users == 0) {
        block_channel_destroy((*shared)->channel);
        (*shared)->channel = NULL;
    }
    *shared = NULL;
    pthread_mutex_unlock(&blk->lock);
}

/* ---- registers: MMIO thread ---- */

/* In dev->own, for a successor. */
struct blk_state {
    uint64_t write_through; /* 0 or 1 */
    uint64_t capacity;      /* that the driver was told of last; sectors */
};

static void show_write_through(struct blk *blk, bool write_through)
{
    atomic_store_explicit(&blk->write_through, write_through, memory_order_relaxed);
    blk->dev->config[offsetof(struct virtio_blk_config, wce)] = !write_through;
}

static void set_write_through(struct blk *blk, bool write_through)
{
    struct blk_state *state = blk->dev->own;

    state_store64(&state->write_through, write_through);
    show_write_through(blk, write_through);
}

static void keep_capacity(struct blk *blk)
{
    struct blk_state *state = blk->dev->own;

    state_store64(&state->capacity, atomic_load_explicit(&blk->capacity, memory_order_relaxed));
}

static bool blk_adopt(struct virtio_device *dev, uint64_t features)
{
    const struct blk_state *state = dev->own;
    struct blk *blk = dev->priv;
    uint64_t write_through = state_load64(&state->write_through);

    if (write_through > 1)
        return false;
    show_write_through(dev->priv, write_through || !(features & FEATURE(VIRTIO_BLK_F_FLUSH)));
    if (state_load64(&state->capacity) != atomic_load(&blk->capacity))
        state_store64(&dev->state->config_changed, 1); /* resized meanwhile */
    keep_capacity(blk);
    return true;
}

/* The cache's mode after negotiation: 5.2.5, and for CONFIG_WCE without FLUSH 5.2.5.2. */
static void blk_negotiated(struct virtio_device *dev, uint64_t features)
{
    set_write_through(dev->priv, !(features & FEATURE(VIRTIO_BLK_F_FLUSH)));
    keep_capacity(dev->priv);
}

static void blk_config_write(struct virtio_device *dev, uint32_t offset, const void *data,
                             size_t len)
{
    const uint32_t wce = offsetof(struct virtio_blk_config, wce);
    uint8_t value;

    if (!virtio_has_feature(dev, VIRTIO_BLK_F_CONFIG_WCE) || wce < offset || wce - offset >= len)
        return;
    value = ((const uint8_t *)data)[wce - offset];
    /* A driver that cannot flush must not lose what it wrote. */
    if (value == 0)
        set_write_through(dev->priv, true);
    else if (value == 1 && virtio_has_feature(dev, VIRTIO_BLK_F_FLUSH))
        set_write_through(dev->priv, false);
}

static void blk_reset(struct virtio_device *dev)
{
    set_write_through(dev->priv, false);
}

static void set_capacity(struct blk *blk, uint64_t bytes)
{
    uint64_t capacity = bytes / blk->block_size * (blk->block_size / SECTOR_SIZE);
    uint64_t wire = htole64(capacity);

    atomic_store_explicit(&blk->capacity, capacity, memory_order_relaxed);
    memcpy(&blk->dev->config[offsetof(struct virtio_blk_config, capacity)], &wire, sizeof(wire));
}

static int blk_control(struct virtio_device *dev, const char *request, char *reply, size_t reply_len)
{
    struct blk *blk = dev->priv;
    uint64_t old = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    uint64_t now;
    int64_t size;

    if (strcmp(request, "resize") != 0) {
        snprintf(reply, reply_len, "%s: a block device does not know \"%s\"; it knows \"resize\"",
                 dev->name, request);
        return -EINVAL;
    }
    size = block_size(blk->backend);
    if (size < 0) {
        snprintf(reply, reply_len, "%s: cannot find out the image's size: %s", dev->name,
                 strerror((int)-size));
        return (int)size;
    }
    set_capacity(blk, (uint64_t)size);
    now = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    if (now == old) {
        snprintf(reply, reply_len, "%s: still %llu bytes", dev->name,
                 (unsigned long long)now * SECTOR_SIZE);
        return 0;
    }
    keep_capacity(blk);
    virtio_device_config_changed(dev);
    log_info("%s: resized from %llu to %llu bytes", dev->name,
             (unsigned long long)old * SECTOR_SIZE, (unsigned long long)now * SECTOR_SIZE);
    snprintf(reply, reply_len, "%s: %llu bytes, was %llu", dev->name,
             (unsigned long long)now * SECTOR_SIZE, (unsigned long long)old * SECTOR_SIZE);
    return 0;
}

/* ---- life: MMIO thread ---- */

static void fill_config(struct blk *blk)
{
    const struct block_info *info = &blk->info;
    uint32_t physical = MAX(info->physical_block, blk->block_size);
    uint32_t ratio = physical / blk->block_size;
    uint32_t alignment = MAX(info->discard_granularity, blk->block_size) / SECTOR_SIZE;
    struct virtio_blk_config config;

    memset(&config, 0, sizeof(config));
    config.size_max = htole32(SEGMENT_MAX);
    /* Header and status take two descriptors of a chain, which is never longer than the queue. */
    config.seg_max = htole32(blk->dev->queue_size - 2u);
    config.blk_size = htole32(blk->block_size);
    config.physical_block_exp = (uint8_t)__builtin_ctz(ratio);
    config.min_io_size = htole16((uint16_t)MIN(ratio, UINT32_C(0x8000)));
    config.opt_io_size = htole32(info->optimal_io / blk->block_size);
    config.wce = 1;
    config.num_queues = htole16(blk->dev->n_queues);
    if (info->discard_granularity) {
        config.max_discard_sectors = htole32(DISCARD_SECTORS_MAX);
        config.max_discard_seg = htole32(DISCARD_RANGES_MAX);
        config.discard_sector_alignment = htole32(alignment);
        config.write_zeroes_may_unmap = 1;
    }
    if (info->can_write_zeroes) {
        config.max_write_zeroes_sectors = htole32(ZEROES_SECTORS_MAX);
        config.max_write_zeroes_seg = htole32(ZEROES_RANGES_MAX);
    }
    if (info->can_secure_erase) {
        config.max_secure_erase_sectors = htole32(DISCARD_SECTORS_MAX);
        config.max_secure_erase_seg = htole32(DISCARD_RANGES_MAX);
        config.secure_erase_sector_alignment = htole32(alignment);
    }
    virtio_device_set_config(blk->dev, &config, CONFIG_LEN);
    set_capacity(blk, info->size);
}

static uint64_t offered_features(const struct blk *blk)
{
    const struct block_info *info = &blk->info;
    uint64_t features = FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |
                        FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY);

    /* Without a volatile cache a flush would only cost the guest a request (5.2.5). */
    if (!info->write_through)
        features |= FEATURE(VIRTIO_BLK_F_FLUSH) | FEATURE(VIRTIO_BLK_F_CONFIG_WCE);
    if (blk->dev->n_queues > 1)
        features |= FEATURE(VIRTIO_BLK_F_MQ);
    if (info->read_only)
        return features | FEATURE(VIRTIO_BLK_F_RO);
    if (info->discard_granularity)
        features |= FEATURE(VIRTIO_BLK_F_DISCARD);
    if (info->can_write_zeroes)
        features |= FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
    if (info->can_secure_erase)
        features |= FEATURE(VIRTIO_BLK_F_SECURE_ERASE);
    return features;
}

static int blk_configure(struct blk *blk, const struct device_config *config, char *error,
                         size_t error_len)
{
    const char *serial = device_config_string(config, "serial");
    uint64_t block_size = device_config_uint(config, "logical-block-size");
    uint64_t queue_size = device_config_uint(config, "queue-size");
    uint64_t queues = device_config_uint(config, "queues");

    if (queue_size < 4 || queue_size > VIRTQUEUE_SIZE_MAX || (queue_size & (queue_size - 1))) {
        snprintf(error, error_len, "%s: queue-size is a power of 2 from 4 to %u, not %llu",
                 config->name, VIRTQUEUE_SIZE_MAX, (unsigned long long)queue_size);
        return -EINVAL;
    }
    if (block_size == 0)
        block_size = blk->info.logical_block;
    if (block_size < SECTOR_SIZE || block_size > (1u << 20) || (block_size & (block_size - 1))) {
        snprintf(error, error_len, "%s: logical-block-size is 512 or 4096, not %llu", config->name,
                 (unsigned long long)block_size);
        return -EINVAL;
    }
    if (block_size < blk->info.logical_block && blk->info.cache == BLOCK_CACHE_NONE) {
        snprintf(error, error_len,
                 "%s: the image needs blocks of %u bytes with cache = none; say cache = writeback, "
                 "or leave logical-block-size out",
                 config->name, blk->info.logical_block);
        return -EINVAL;
    }
    if (serial == NULL || serial[0] == '\0')
        serial = config->name;
    else if (strlen(serial) > sizeof(blk->id)) {
        snprintf(error, error_len, "%s: serial has %zu characters; %zu are possible", config->name,
                 strlen(serial), sizeof(blk->id));
        return -EINVAL;
    }
    /* 5.2.6: padded with NUL, and without one if it is 20 bytes long. */
    memcpy(blk->id, serial, MIN(strlen(serial), sizeof(blk->id)));
    if (queues == 0)
        queues = MAX(config->n_vcpus, 1u);
    blk->block_size = (uint32_t)block_size;
    blk->dev->n_queues = (uint16_t)MIN(queues, (uint64_t)QUEUES_MAX);
    blk->dev->queue_size = (uint16_t)queue_size;
    return 0;
}

static int blk_create(struct virtio_device *dev, const struct device_config *config, char *error,
                      size_t error_len)
{
    struct blk *blk;
    int err;

    if (config->n_fds < 1 || config->fds[0] < 0) {
        snprintf(error, error_len, "%s: there is no image", config->name);
        return -EBADF;
    }
    blk = calloc(1, sizeof(*blk));
    if (blk == NULL) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    blk->dev = dev;
    blk->info = config->block;
    pthread_mutex_init(&blk->lock, NULL);
    err = blk_configure(blk, config, error, error_len);
    if (err)
        goto fail;
    err = block_create(config->fds[0], &config->block, &blk->backend);
    if (err) {
        snprintf(error, error_len, "%s: cannot use the image: %s", config->name, strerror(-err));
        goto fail;
    }
    /* Taken over: closed by block_destroy, and by nobody else. */
    ((struct device_config *)config)->fds[0] = -1;
    dev->priv = blk;
    dev->offered = offered_features(blk);
    fill_config(blk);
    show_write_through(blk, false);
    return 0;
fail:
    pthread_mutex_destroy(&blk->lock);
    free(blk);
    return err;
}

static void blk_destroy(struct virtio_device *dev)
{
    struct blk *blk = dev->priv;

    block_destroy(blk->backend);
    pthread_mutex_destroy(&blk->lock);
    free(blk);
    dev->priv = NULL;
}

const struct virtio_device_ops virtio_blk_ops = {
    .name = "blk",
    .id = 2,
    .request_size = sizeof(struct blk_request),
    .requests = true,
    .features = blk_features,
    .create = blk_create,
    .negotiated = blk_negotiated,
    .state_len = sizeof(struct blk_state),
    .adopt = blk_adopt,
    .queue_started = blk_queue_started,
    .queue_work = blk_queue_work,
    .queue_stopped = blk_queue_stopped,
    .config_write = blk_config_write,
    .reset = blk_reset,
    .control = blk_control,
    .destroy = blk_destroy,
};
