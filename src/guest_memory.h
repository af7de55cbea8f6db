/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's RAM in our address space: mapped lazily in chunks of 2 MiB (64 KiB while the guest
 * balloons), kept, and dropped when the hypervisor asks. The only user of the hypervisor's mapping functions.
 *
 * Each bank of RAM has one reserved range of our addresses, so what is contiguous for the guest is
 * contiguous here, and translating is an addition and a look at a bitmap, without a lock.
 *
 * A pointer stays valid until guest_memory_drop. The caller of drop makes sure that nobody holds one:
 * the worker pauses all I/O threads and waits for I/O in flight first.
 */
#ifndef VIOD_GUEST_MEMORY_H
#define VIOD_GUEST_MEMORY_H

#include "hypervisor.h"

#define GUEST_BANKS_MAX 4
#define GUEST_CHUNK_SIZE ((uint64_t)2 << 20)

struct guest_memory;

/* Counters, in units of calls; read by any thread. */
struct guest_memory_stats {
    uint64_t map_calls;
    uint64_t mapped_chunks; /* now */
    uint64_t mapped_pages[GUEST_BANKS_MAX]; /* now, of each bank */
    uint64_t drops;
    uint64_t probes;
};

/* The hypervisor is borrowed. Does not map anything yet. -ENOMEM, -EINVAL. */
int guest_memory_create(struct hypervisor *hv, const struct ram_bank *banks, size_t n_banks,
                        struct guest_memory **out);
/* Unmaps all. NULL is fine. */
void guest_memory_destroy(struct guest_memory *gm);

/*
 * Our address of [gpa, gpa + len), all of it RAM of the guest, len > 0. Any thread.
 *   0        *out is valid for reading and writing until guest_memory_drop
 *   -EFAULT  a hole, MMIO, outside RAM, or the range wraps
 *   -EAGAIN  a page came back since its chunk was mapped with a hole (ballooning): the chunk is
 *            recorded; pause all I/O, call guest_memory_drop_stale, and try again
 *   -ENOMEM  the host has no memory for it now: try again later
 */
int guest_memory_translate(struct guest_memory *gm, gpa_t gpa, uint64_t len, void **out);

/* Unmaps all guest RAM. Nobody may hold a pointer into it. */
void guest_memory_drop(struct guest_memory *gm);
/* Unmaps the chunks for which translate returned -EAGAIN. Same rule. */
void guest_memory_drop_stale(struct guest_memory *gm);

struct guest_memory_stats guest_memory_stats(const struct guest_memory *gm);

#endif
