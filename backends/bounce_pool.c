/* SPDX-License-Identifier: Apache-2.0 */
#include "bounce_pool_internal.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

/*
 * A ring has one table of registered buffers, and several pools (one per device) live on it. The
 * table is made sparse by the first pool and removed by the last; here stands who has which entry.
 */
#define TABLE_ENTRIES 32u
#define TABLES_MAX 64u

static struct {
    pthread_mutex_t lock;
    struct {
        struct io_uring *ring; /* NULL: free */
        uint32_t used;
    } tables[TABLES_MAX];
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int register_buffer(struct io_uring *ring, void *memory, size_t len)
{
    struct iovec iov = {memory, len};
    size_t table = TABLES_MAX;
    int err;

    pthread_mutex_lock(&registry.lock);
    for (size_t i = 0; i < TABLES_MAX; i++) {
        if (registry.tables[i].ring == ring) {
            table = i;
            break;
        }
        if (!registry.tables[i].ring && table == TABLES_MAX)
            table = i;
    }
    err = -ENOSPC;
    if (table == TABLES_MAX || registry.tables[table].used == UINT32_MAX)
        goto out;
    if (!registry.tables[table].ring) {
        err = io_uring_register_buffers_sparse(ring, TABLE_ENTRIES);
        if (err)
            goto out;
        registry.tables[table].ring = ring;
    }
    int entry = __builtin_ctz(~registry.tables[table].used);
    err = io_uring_register_buffers_update_tag(ring, (unsigned)entry, &iov, NULL, 1);
    if (err == 1) {
        registry.tables[table].used |= UINT32_C(1) << entry;
        err = entry;
    } else {
        err = err < 0 ? err : -EIO;
        if (registry.tables[table].used == 0) {
            io_uring_unregister_buffers(ring);
            registry.tables[table].ring = NULL;
        }
    }
out:
    pthread_mutex_unlock(&registry.lock);
    return err;
}

static void unregister_buffer(struct io_uring *ring, int entry)
{
    struct iovec none = {NULL, 0};

    pthread_mutex_lock(&registry.lock);
    for (size_t i = 0; i < TABLES_MAX; i++) {
        if (registry.tables[i].ring != ring)
            continue;
        registry.tables[i].used &= ~(UINT32_C(1) << entry);
        if (registry.tables[i].used) {
            io_uring_register_buffers_update_tag(ring, (unsigned)entry, &none, NULL, 1);
        } else {
            io_uring_unregister_buffers(ring);
            registry.tables[i].ring = NULL;
        }
        break;
    }
    pthread_mutex_unlock(&registry.lock);
}

int bounce_pool_create(struct io_uring *ring, struct bounce_pool *pool)
{
    size_t len = (size_t)BOUNCE_UNITS * BOUNCE_UNIT;
    void *memory =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return -errno;
    memset(pool, 0, sizeof(*pool));
    pool->memory = memory;
    pool->ring = ring;
    pool->buffer = register_buffer(ring, memory, len);
    if (pool->buffer < 0)
        pool->buffer = -1;
    return 0;
}

void bounce_pool_destroy(struct bounce_pool *pool)
{
    if (!pool->memory)
        return;
    if (pool->buffer >= 0)
        unregister_buffer(pool->ring, pool->buffer);
    munmap(pool->memory, (size_t)BOUNCE_UNITS * BOUNCE_UNIT);
    pool->memory = NULL;
}

/* The first unit at or behind `from` whose bit, xor `invert`, is set; BOUNCE_UNITS if there is none. */
static unsigned find_bit(const uint64_t *used, unsigned from, uint64_t invert)
{
    while (from < BOUNCE_UNITS) {
        uint64_t word = (used[from / 64] ^ invert) >> from % 64;

        if (word)
            return from + (unsigned)__builtin_ctzll(word);
        from = (from / 64 + 1) * 64;
    }
    return BOUNCE_UNITS;
}

static unsigned units_of(size_t len)
{
    return (unsigned)((len + BOUNCE_UNIT - 1) / BOUNCE_UNIT);
}

static void flip(struct bounce_pool *pool, unsigned unit, unsigned n)
{
    for (unsigned i = unit; i < unit + n; i++)
        pool->used[i / 64] ^= UINT64_C(1) << i % 64;
}

int bounce_pool_take(struct bounce_pool *pool, size_t len)
{
    unsigned n = units_of(len);
    unsigned unit = find_bit(pool->used, 0, UINT64_MAX);

    while (unit + n <= BOUNCE_UNITS) {
        unsigned end = n == 1 ? unit + 1 : find_bit(pool->used, unit, 0);

        if (end - unit >= n) {
            flip(pool, unit, n);
            return (int)unit;
        }
        unit = find_bit(pool->used, end, UINT64_MAX);
    }
    return -1;
}

void bounce_pool_give(struct bounce_pool *pool, unsigned unit, size_t len)
{
    flip(pool, unit, units_of(len));
}
