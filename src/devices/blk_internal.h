/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by blk.c (life and registers) and blk_requests.c (requests). */
#ifndef VIOD_DEVICES_BLK_INTERNAL_H
#define VIOD_DEVICES_BLK_INTERNAL_H

#include <linux/virtio_blk.h>
#include <pthread.h>

#include "backend.h"
#include "stats.h"
#include "virtio_device.h"

#define BLK_SECTOR 512u
#define BLK_QUEUES_MAX 16u /* each with counters of its own */
static_assert(BLK_QUEUES_MAX <= STATS_QUEUES_MAX, "stats.h");

/* Ranges in one DISCARD or SECURE_ERASE, and sectors in one range: 1 GiB. */
#define DISCARD_RANGES_MAX 8u
#define DISCARD_SECTORS_MAX (1u << 21)
/* Zeros may have to be written: at a slow disk's speed this must still end in reasonable time. */
#define ZEROES_RANGES_MAX 1u
#define ZEROES_SECTORS_MAX (1u << 18)

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
    atomic_bool flush_failed;    /* it was said, and kept for a successor */
    pthread_mutex_t lock;        /* of channels: taken when a queue starts or stops */
    struct blk_channel channels[BLK_QUEUES_MAX];
    struct blk_channel *queues[BLK_QUEUES_MAX]; /* I/O thread of the queue; NULL: not possible */
};

/* blk.c. I/O thread: a request failed, before the guest is told so. It may have been a flush. */
void blk_request_failed(struct blk *blk);

/* blk_requests.c: virtio_device_ops.queue_work */
int blk_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget);

#endif
