/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the block backend share. */
#ifndef VIOD_BLOCK_INTERNAL_H
#define VIOD_BLOCK_INTERNAL_H

#include "backend.h"
#include "bounce_pool_internal.h"

/* Ranges are handled in pieces, so that nothing in flight takes much longer than one of them. */
#define BLOCK_RANGE_MAX (UINT64_C(1) << 30)

struct block_backend {
    int fd;
    bool direct;
    struct block_info info;
    /* Learnt from EOPNOTSUPP. Set by any channel's thread, never cleared. */
    atomic_bool no_punch_hole, no_zero_range;
    /* With the host's page cache: why a flush failed, -errno; 0: none did. Set by any channel's thread. */
    atomic_int flush_error;
};

/* A part of a request on its way through the pool; its index is that of its first unit. */
struct bounce_piece {
    struct loop_op op;
    struct block_request *request;
    uint64_t offset;     /* in the image */
    uint32_t len, done;  /* bytes */
    size_t iov_offset;   /* where its data is in the guest's memory */
    uint32_t iov_index;
    uint8_t retries;
};

struct block_channel {
    struct block_backend *block;
    struct event_loop *loop;
    /* O_DIRECT only. First come, first served: only the head of the queue may take from the pool. */
    struct bounce_pool pool;
    struct bounce_piece *pieces; /* BOUNCE_UNITS of them */
    struct block_request *waiting, **waiting_tail;
};

/* Hands a DISCARD or SECURE_ERASE on a block device to the helper thread. `done` runs in the
 * channel's loop. */
void block_sync_submit(struct block_request *request);
/* Nothing of the caller's is in flight any more; now the helper thread has let go of its loop, too. */
void block_sync_settle(void);

#endif
