/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory that is reached by grants: a page at a time, when the guest allows it, and as long as
 * it does. For devices with grant_usage=1, whose driver gives no guest-physical addresses but
 *
 *     1 << 63 | grant reference << 12 | offset in the page
 *
 * (Linux, drivers/xen/grant-dma-ops.c; what is contiguous has consecutive references). The guest ends
 * a grant when the request is complete: by then nothing of it may be mapped, or the driver gives its
 * device up. So nothing is kept here; who maps, unmaps. Any thread.
 */
#ifndef VIOD_GRANT_MEMORY_H
#define VIOD_GRANT_MEMORY_H

#include "hypervisor.h"

struct grant_memory;

/* Counters; read by any thread. */
struct grant_memory_stats {
    uint64_t maps, unmaps, copies; /* calls */
    uint64_t mapped_pages;         /* now */
};

/* The pages of one buffer. */
struct grant_span {
    uint32_t ref; /* of the first page */
    uint32_t pages;
    uint16_t offset; /* of the buffer in the first page, bytes */
};

/* The hypervisor is borrowed. -ENOMEM. */
int grant_memory_create(struct hypervisor *hv, struct grant_memory **out);
/* Everything must have been unmapped. NULL is fine. */
void grant_memory_destroy(struct grant_memory *gm);

/* len > 0. -EFAULT: not the address of a grant, or there are not so many references. */
int grant_span_of(gpa_t addr, uint32_t len, struct grant_span *span);

/*
 * Maps the pages of all spans, one behind the other. 0, or -errno and nothing is mapped: -E2BIG for
 * more than GRANT_MAP_MAX pages; otherwise a reference is not valid, or not for writing.
 */
int grant_memory_map(struct grant_memory *gm, const struct grant_span *spans, size_t n,
                     bool writable, struct grant_map *map);
/* Does nothing if map->at is NULL. */
void grant_memory_unmap(struct grant_memory *gm, struct grant_map *map);
/* Each piece has its result afterwards, always. */
void grant_memory_copy(struct grant_memory *gm, struct grant_copy *copies, size_t n);

struct grant_memory_stats grant_memory_stats(const struct grant_memory *gm);

#endif
