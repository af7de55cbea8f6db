/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives a worker: a file in shared memory from which a successor takes over devices, queues
 * and requests in flight, so that the guest does not notice.
 *
 * A process can die between any two instructions, and nothing else is ever lost: what it stored, in
 * the order of its program, is there. So plain stores in the right order suffice, and the compiler
 * is all that has to keep to that order (state_store64). What changes with each request is made of
 * 64-bit words that carry a check of their own; what changes rarely is written twice, in turn, and a
 * word says which copy counts. A word is old or new, never half of each.
 *
 * The worker that wrote it may have been taken over by its guest, and memory may be damaged: all that
 * is read here is checked like what the guest writes, and a device whose state is not good gets
 * DEVICE_NEEDS_RESET. Each single bit that is wrong is noticed.
 *
 * Threads: each word has one writer. What belongs to a queue is its I/O thread's while it runs, the
 * rest is the MMIO thread's, except for `broken` and `serving` (any thread).
 */
#ifndef VIOD_DEVICE_STATE_H
#define VIOD_DEVICE_STATE_H

#include "types.h"

/* Changes with every change of the layout, and of the meaning, of what follows. */
#define DEVICE_STATE_VERSION 1u
#define DEVICE_STATE_SLOTS 11u        /* register windows of a guest */
#define DEVICE_STATE_QUEUES 64u       /* of a device */
#define DEVICE_STATE_QUEUE_SIZE 1024u /* entries of a queue */
#define DEVICE_STATE_OWN 16384u       /* bytes of the device type's own */

/* Builds for the benchmark (VIOD_STATELESS) keep nothing of what changes with each request and access: by
 * them it is measured what that costs. A constant, so that nothing is left of it in any build. */
#ifdef VIOD_STATELESS
#define STATE_KEPT false
#else
#define STATE_KEPT true
#endif

/* A request in flight, at its descriptor index (split) or buffer ID (packed). */
struct state_request {
    /* STATE_TAKEN: the number that the request had when it was taken. 0: not in flight. */
    uint64_t taken;
    /* Packed: where the copies of its descriptors begin, and a check of them: STATE_COPIES. */
    uint64_t copies;
    /* STATE_DONE: completed, and not known to be published. 0: not completed. */
    uint64_t done;
};

/* A descriptor of a packed ring: used entries overwrite it while its request is in flight (2.8.6). */
struct state_descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next; /* of the chain, in state_queue.descriptors */
};

struct state_queue {
    uint64_t avail;     /* STATE_POSITION: requests taken, and where the next one is */
    uint64_t published; /* STATE_POSITION: requests given back, and where the next used entry goes */
    /* What the device's code has in hand, which may be the cause of its death: 0: nothing; 1: requests that
     * it takes; STATE_IN_HAND: one that the host has done. */
    uint64_t serving;
    uint64_t reserved[5];
    struct state_request requests[DEVICE_STATE_QUEUE_SIZE];
    struct state_descriptor descriptors[DEVICE_STATE_QUEUE_SIZE];
};

/* A queue's registers. */
struct state_registers {
    uint64_t desc, driver, device;
    uint16_t size;
    uint8_t phase;         /* STATE_QUEUE_* */
    uint8_t reset_pending;
    uint32_t reserved;
};
enum { STATE_QUEUE_OFF, STATE_QUEUE_READY, STATE_QUEUE_RUNNING };

/* A device as its registers show it. */
struct state_transport {
    uint32_t device_id;
    uint32_t generation;   /* of the configuration space */
    uint64_t driver_features, features;
    uint32_t device_features_sel, driver_features_sel, queue_sel;
    uint16_t n_queues;
    uint8_t status, features_beyond;
    struct state_registers queues[DEVICE_STATE_QUEUES];
};

struct state_copy {
    uint64_t check; /* of `transport`, as long as n_queues says */
    struct state_transport transport;
};

struct device_state {
    uint64_t current; /* STATE_CURRENT: which copy counts. 0: no device was here */
    uint64_t broken;  /* STATE_BROKEN: DEVICE_NEEDS_RESET. 0: not */
    uint64_t serving; /* STATE_ACCESS: how many accesses to registers were served, or are being */
    uint64_t config_changed; /* not 0: the driver has not acknowledged that yet */
    uint64_t reserved[4];
    struct state_copy copies[2];
    _Alignas(64) uint8_t own[DEVICE_STATE_OWN];
    _Alignas(4096) struct state_queue queues[DEVICE_STATE_QUEUES];
};

#define DEVICE_STATE_MAGIC UINT64_C(0x7461745364c05669)

struct state_header {
    uint64_t magic;
    uint32_t version;
    uint32_t domid;
    uint64_t size;  /* of the file, bytes */
    uint64_t check; /* of the above */
};

struct state_file {
    struct state_header header;
    _Alignas(4096) struct device_state slots[DEVICE_STATE_SLOTS];
};

/* ---- words ---- */

/* Not before anything that the program did before, not after anything that it does after. */
static inline void state_store64(uint64_t *at, uint64_t value)
{
    viod_store_hook();
    atomic_signal_fence(memory_order_seq_cst);
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
    atomic_signal_fence(memory_order_seq_cst);
}

static inline uint64_t state_load64(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

enum state_salt { SALT_AVAIL = 1, SALT_PUBLISHED, SALT_TAKEN, SALT_DONE, SALT_CURRENT, SALT_BROKEN, SALT_OWN };

/*
 * 16 bits in the upper end of a word over its lower 48 (and what belongs to it). Multiplying by odd
 * numbers without 16 equal bits in a row carries each single bit into the upper 16.
 */
static inline uint64_t state_sealed(uint64_t low48, uint64_t with, enum state_salt salt)
{
    uint64_t hash = low48 * UINT64_C(0x9e3779b97f4a7c15) + with * UINT64_C(0xd6e8feb86659fd93) +
                    (uint64_t)salt * UINT64_C(0xa0761d6478bd642f);

    return low48 | (hash & UINT64_C(0xffff000000000000));
}

#define STATE_LOW48 UINT64_C(0xffffffffffff)

static inline bool state_is_sealed(uint64_t word, uint64_t with, enum state_salt salt)
{
    return word == state_sealed(word & STATE_LOW48, with, salt);
}

/* STATE_POSITION: a count of requests, free-running, and a ring position (packed: wrap in bit 15). */
static inline uint64_t state_position(uint32_t count, uint16_t position, enum state_salt salt)
{
    return state_sealed(count | (uint64_t)position << 32, 0, salt);
}
static inline uint32_t state_count(uint64_t word) { return (uint32_t)word; }
static inline uint16_t state_ring_position(uint64_t word) { return (uint16_t)(word >> 32); }

/* STATE_TAKEN: number and ring descriptors of the request at `id`; sealed with its copies. */
static inline uint64_t state_taken(uint32_t number, uint16_t descriptors, uint16_t id,
                                   uint64_t copies)
{
    return state_sealed(number | (uint64_t)descriptors << 32, copies + id, SALT_TAKEN);
}
static inline bool state_taken_good(uint64_t word, uint16_t id, uint64_t copies)
{
    return state_is_sealed(word, copies + id, SALT_TAKEN);
}

/*
 * STATE_DONE: the used length, the count of requests given back, with this one (its lower 15 bits:
 * what is recorded lies within a queue's size), and whether more follow that belong together.
 */
#define STATE_DONE_COUNT 0x7fffu
static inline uint64_t state_done(uint32_t written, uint32_t count, bool more, uint16_t id)
{
    return state_sealed(written | (uint64_t)(count & STATE_DONE_COUNT) << 32 |
                            (uint64_t)more << 47,
                        id, SALT_DONE);
}
static inline bool state_done_good(uint64_t word, uint16_t id)
{
    return state_is_sealed(word, id, SALT_DONE);
}
static inline uint32_t state_done_written(uint64_t word) { return (uint32_t)word; }
static inline uint16_t state_done_count(uint64_t word)
{
    return (uint16_t)(word >> 32) & STATE_DONE_COUNT;
}
static inline bool state_done_more(uint64_t word) { return (word >> 47 & 1) != 0; }

/* STATE_IN_HAND: the number that the request had when it was taken. */
static inline uint64_t state_in_hand(uint64_t taken) { return (uint32_t)taken | UINT64_C(1) << 32; }

/* STATE_ACCESS: odd while an access is being served, which may be the cause of the worker's death. */
static inline bool state_access_open(uint64_t word) { return (word & 1) != 0; }
static inline void state_access_begin(uint64_t *at)
{
    if (STATE_KEPT)
        state_store64(at, state_load64(at) | 1);
}
/* It was not served to its end, and will be served again. */
static inline void state_access_drop(uint64_t *at) { state_store64(at, state_load64(at) & ~UINT64_C(1)); }
static inline void state_access_end(uint64_t *at)
{
    if (STATE_KEPT)
        state_store64(at, (state_load64(at) | 1) + 1);
}

/* One step of the check over something longer. */
static inline uint64_t state_hash(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 29;
}

/* ---- a device ---- */

/* Makes what is in *transport what counts. */
void device_state_save(struct device_state *state, const struct state_transport *transport);
/* 1: *transport is a good copy; 0: no device was here; -EBADMSG: damaged. Sizes and numbers in it are
 * within the bounds above; what they mean is for the caller to check. */
int device_state_load(const struct device_state *state, struct state_transport *transport);
/* As if no device had been here. */
void device_state_clear(struct device_state *state);
/* DEVICE_NEEDS_RESET is to outlive the worker, or not. Any thread. */
void device_state_set_broken(struct device_state *state, bool broken);
/* Is it? Also if the word is damaged. */
bool device_state_broken(const struct device_state *state);
/* Only the first n: no requests, as a queue is when it starts. */
void device_state_start_queue(struct state_queue *queue, unsigned n);

/* ---- the file ---- */

/*
 * Makes an empty file of this name, for this guest, in place of any that is there, and returns a
 * descriptor for device_state_map, or -errno.
 */
int device_state_create(const char *path, uint32_t domid);
/*
 * The file that an earlier supervisor left, of which it has recorded that it is of this version; -ENOENT,
 * or -EBADMSG if it cannot be that.
 */
int device_state_open(const char *path);
/*
 * The header is written anew if it is not as it should be; then 1. It says nothing that its owner does
 * not know from elsewhere, and workers can write it. -errno.
 */
int device_state_repair(int fd, uint32_t domid);
/* Maps it; the descriptor stays the caller's. -EBADMSG: not the file of this guest, or damaged. */
int device_state_map(int fd, uint32_t domid, struct state_file **out);
void device_state_unmap(struct state_file *file);

#endif
