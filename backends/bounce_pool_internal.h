/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host memory that O_DIRECT accepts, since mappings of foreign memory are refused (EFAULT): a fixed
 * pool, handed out in contiguous runs of units, registered with the loop's ring where that is
 * possible. Belongs to the thread of that loop.
 */
#ifndef VIOD_BOUNCE_POOL_INTERNAL_H
#define VIOD_BOUNCE_POOL_INTERNAL_H

#include <liburing.h>
#include "types.h"

#define BOUNCE_UNIT 4096u
#define BOUNCE_UNITS 256u /* 1 MiB */
/* The longest run: so that a few large requests share the pool, and the host still sees large I/O. */
#define BOUNCE_RUN_MAX (32 * BOUNCE_UNIT)

struct bounce_pool {
    uint8_t *memory;
    struct io_uring *ring;
    int buffer; /* index among the ring's registered buffers; -1: not registered */
    uint64_t used[BOUNCE_UNITS / 64];
};

/* 0 or -ENOMEM. That the memory cannot be registered (RLIMIT_MEMLOCK, an old kernel) is no error. */
int bounce_pool_create(struct io_uring *ring, struct bounce_pool *pool);
/* All of it must have been given back. */
void bounce_pool_destroy(struct bounce_pool *pool);
/* The first unit of a run of `len` bytes (1 … BOUNCE_RUN_MAX), or -1: none is free now. */
int bounce_pool_take(struct bounce_pool *pool, size_t len);
void bounce_pool_give(struct bounce_pool *pool, unsigned unit, size_t len);

static inline uint8_t *bounce_pool_at(const struct bounce_pool *pool, unsigned unit)
{
    return pool->memory + (size_t)unit * BOUNCE_UNIT;
}

#endif
