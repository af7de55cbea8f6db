/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters and states that a worker shares with the supervisor: one memfd per worker, written with
 * plain relaxed stores by the thread that owns each counter, read at any time by the supervisor,
 * which believes none of it more than a number to print.
 */
#ifndef VIOD_STATS_H
#define VIOD_STATS_H

#include "types.h"

#define STATS_BANKS_MAX 4u
#define STATS_DEVICES_MAX 11u  /* virtio-mmio slots that libxl gives a domain */
#define STATS_QUEUES_MAX 64u   /* queues with counters of their own; more share the last */
#define STATS_THREADS_MAX 16u
#define STATS_OWN_MAX 8u       /* counters of a device that others do not have */
#define STATS_VERSION 1u

/* Each queue's counters are written by one thread: a cache line pair of its own. */
struct queue_stats {
    _Alignas(128) _Atomic uint64_t requests; /* chains completed */
    _Atomic uint64_t kicks;                  /* QueueNotify writes */
    _Atomic uint64_t batches;                /* used-index updates */
    _Atomic uint64_t interrupts;             /* raised for this queue */
    _Atomic uint64_t read_bytes, write_bytes; /* device-specific meaning */
    _Atomic uint64_t errors;                 /* requests that failed */
    _Atomic uint64_t polled;                 /* batches found by polling, without a kick */
    _Atomic uint64_t dropped;                /* bytes that nobody took, and that are lost */
    _Atomic uint64_t state;                  /* device-specific */
    _Atomic uint64_t packets, drops;         /* frames that went through, frames that did not */
};

struct device_stats {
    _Alignas(128) char name[32];
    _Atomic uint32_t device_id; /* 0: slot unused */
    _Atomic uint32_t status;
    _Atomic uint64_t offered, features;
    _Atomic uint64_t resets, needs_reset, config_changes;
    _Atomic uint32_t n_queues;
    struct queue_stats queues[STATS_QUEUES_MAX];
    /* Of this type of device: struct device_type (config.h) names them. */
    _Alignas(128) _Atomic uint64_t own[STATS_OWN_MAX];
};

struct thread_stats {
    _Alignas(128) _Atomic uint64_t turns;
    _Atomic uint64_t sleeps;
    _Atomic uint64_t syscalls;
    _Atomic uint64_t poll_hits, poll_misses;
};

struct worker_stats {
    uint32_t version;
    _Atomic uint64_t mmio_reads, mmio_writes, notifies, invalidates, unknown_requests;
    _Atomic uint64_t map_calls, memory_drops;
    _Atomic uint64_t grant_maps, grant_unmaps, grant_copies; /* calls */
    _Atomic uint64_t granted_kib; /* mapped by grants, now */
    _Atomic uint64_t mapped_kib[STATS_BANKS_MAX]; /* of each bank of the guest's RAM, now */
    _Atomic uint64_t hypervisor_calls; /* system calls to Xen's devices, all threads */
    _Atomic uint32_t n_threads;
    struct thread_stats threads[STATS_THREADS_MAX]; /* 0: the MMIO thread */
    struct device_stats devices[STATS_DEVICES_MAX];
};

/* Counters have one writer: a load and a store, no locked instruction. */
static inline void stat_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}
static inline void stat_set(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, n, memory_order_relaxed);
}
static inline uint64_t stat_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit((_Atomic uint64_t *)counter, memory_order_relaxed);
}

#endif
