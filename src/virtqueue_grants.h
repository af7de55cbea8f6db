/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chains in memory that the guest grants: for virtqueue.c only; the queue's thread.
 *
 * The chains that wait in the ring are taken together, so that they share system calls: one copy
 * fetches their indirect tables, one what their devices read. What a device writes goes into memory
 * of ours; when the used entries are published, one copy brings it into the guest. Parts of chains
 * that are larger than copy_max are mapped instead, each by itself, since gntdev gives a
 * mapping back as a whole only, and one request must not wait for another.
 *
 * Nothing is allocated after grants_create.
 */
#ifndef VIOD_VIRTQUEUE_GRANTS_H
#define VIOD_VIRTQUEUE_GRANTS_H

#include "types.h"

struct chain;
struct descriptor;
struct virtqueue;

/*
 * Bytes of a chain, readable or writable, up to which they are copied and not mapped. To map a page and
 * unmap it changes page tables and flushes TLBs of all CPUs, which costs several copies of it: 128 KiB
 * mapped took five times as long as 60 KiB copied took for as many bytes (tests/bench, QEMU). And what
 * is copied is memory of ours, from which O_DIRECT works without another copy.
 */
#define GRANTS_COPY_MAX (1u << 20)
/* Memory for copies: of each queue, in pages (4.25 MiB). Touched only when used. */
#define GRANTS_POOL_PAGES 1088u
/* Pages that a queue has mapped at once: more only for one chain alone. */
#define GRANTS_MAPPED_MAX 8192u
/* Chains taken together. */
#define GRANTS_BATCH 32u

int grants_create(struct virtqueue *vq); /* -ENOMEM */
void grants_destroy(struct virtqueue *vq);

/* Maps area i (0 descriptors, 1 driver, 2 device) of the ring until grants_stop. */
int grants_map_ring(struct virtqueue *vq, size_t i, gpa_t addr, uint64_t len, void **host);

/* While a chain is walked: *host is the address, to be replaced when the chain is fetched. -EFAULT. */
int grants_note(const struct descriptor *d, void **host);
int grants_open_table(struct virtqueue *vq, const struct descriptor *d, void **table);
/* The chain was walked: 0 and it has memory, or -ENOBUFS: not before others are given back. */
int grants_reserve(struct virtqueue *vq, struct chain *chain);
/* Unmaps and gives the memory back. */
void grants_release(struct virtqueue *vq, struct chain *chain);

/* 1, 0, -EPROTO. */
int grants_pop(struct virtqueue *vq, struct chain **out);
/* Chains that were taken wait for pop. */
bool grants_waiting(const struct virtqueue *vq);
void grants_put_back(struct virtqueue *vq, struct chain *chain);

void grants_complete(struct virtqueue *vq, struct chain *chain);
unsigned grants_settling(const struct virtqueue *vq);
/* What was completed reaches the guest and is unmapped; then it is written into the used ring. */
void grants_settle(struct virtqueue *vq);

/* Chains that wait for pop go back into the ring. */
void grants_pause(struct virtqueue *vq);
/* All that is not out is given back, and the ring unmapped. */
void grants_stop(struct virtqueue *vq);

#endif
