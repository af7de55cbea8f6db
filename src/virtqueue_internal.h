/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by virtqueue.c, virtqueue_split.c and virtqueue_packed.c only. */
#ifndef VIOD_VIRTQUEUE_INTERNAL_H
#define VIOD_VIRTQUEUE_INTERNAL_H

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include "virtqueue.h"
#include "virtqueue_grants.h"

/* Elements that fit into the slot itself; longer chains take a block from the pool. In front of both
 * is a spare element, for chain_readable_behind. */
#define INLINE_IOV 6u
#define IOV_BLOCKS_MAX 64u
#define NO_IOV_BLOCK UINT16_MAX

/* A descriptor, copied once: from here on the guest cannot change it. */
struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next_or_id;
};

struct ring_format {
    /* Areas of a ring of this size, for alignment checks and mapping. */
    uint64_t desc_bytes, driver_bytes, device_bytes;
    uint64_t desc_align, driver_align, device_align;
};

struct ring_ops {
    void (*format)(uint16_t size, bool event_idx, struct ring_format *format);
    bool (*size_ok)(uint32_t size);
    void (*start)(struct virtqueue *vq);
    /* 1 and *head (a private copy of what identifies the chain), 0, -EPROTO. */
    int (*peek)(struct virtqueue *vq);
    /* Copies the chain's descriptors into vq->walk; 0 or -EPROTO, -EAGAIN. */
    int (*walk)(struct virtqueue *vq, struct chain *chain);
    /* The chain that peek and walk looked at is taken. */
    void (*take)(struct virtqueue *vq, struct chain *chain);
    /* The opposite, for the chain that was taken last. */
    void (*put_back)(struct virtqueue *vq, const struct chain *chain);
    /* Writes a used entry that the driver does not see before publish. */
    void (*put_used)(struct virtqueue *vq, const struct chain *chain);
    /*
     * A look ahead, for what is worth fetching together: the first descriptor of the nth chain from
     * here on, if the chain is known to be available and where it begins can be known. Nothing of it
     * is checked or believed: walk reads it again.
     */
    bool (*ahead)(const struct virtqueue *vq, unsigned n, struct descriptor *d);
    /* Makes all entries visible; true if the driver wants an interrupt. */
    bool (*publish)(struct virtqueue *vq);
    enum driver_lag (*lag)(const struct virtqueue *vq);
    void (*enable_notify)(struct virtqueue *vq);
    void (*disable_notify)(struct virtqueue *vq);
};
extern const struct ring_ops split_ring_ops, packed_ring_ops;

struct virtqueue {
    struct virtqueue_config config;
    struct virtqueue_setup setup;
    const struct ring_ops *ring;
    bool started, broken, mapped, starved;
    bool event_idx, indirect, in_order;
    bool last_faulted;                  /* of the chain being walked: its latest element */
    const char *error;
    uint32_t generation;
    /* Our addresses of the three areas, while mapped. */
    uint8_t *desc, *driver, *device;

    /* Split: next avail entry, known avail index, next used index. Packed: ring positions. */
    uint16_t last_avail, avail_index, used_index;
    bool avail_wrap, used_wrap;         /* packed */
    uint16_t published;                 /* used_index at the last publish */
    bool used_wrapped;                  /* packed: used_index passed the end since then */
    uint16_t batch_first_flags;         /* packed: held back until publish */
    uint16_t batch_first;
    unsigned unpublished;               /* used entries written since then */
    uint16_t head;                      /* split: what peek found */
    uint16_t head_flags;                /* packed: likewise */
    unsigned ring_descriptors;          /* packed: ring slots in flight */

    /* Where walk puts elements: chain->iov, which may grow into a block. */
    uint16_t *free_slots;
    unsigned n_free_slots;
    uint16_t free_blocks[IOV_BLOCKS_MAX];
    unsigned n_free_blocks, n_blocks;
    unsigned in_flight;
    uint8_t *slots;
    size_t slot_stride, slots_bytes;
    struct iovec *blocks;
    size_t blocks_bytes;
    uint64_t busy[VIRTQUEUE_SIZE_MAX / 64]; /* ids in flight */
    /* In-order queues: slots in the order of pop. */
    uint16_t *order;
    uint16_t order_head;
    unsigned order_count;
    struct virtqueue_stats stats;
    struct grants *grants;              /* NULL: guest-physical addresses */
};

int virtqueue_violation(struct virtqueue *vq, const char *what);

/* Rings are aligned; a table of indirect descriptors may lie at any address (2.7.5.3, 2.8.7). A value
 * that the guest changes between the bytes is one that it could have written. */
static inline uint64_t load_table64(const uint8_t *at)
{
    uint64_t value = 0;

    if (((uintptr_t)at & 7) == 0)
        return guest_load64(at);
    for (unsigned i = 0; i < 8; i++)
        value |= (uint64_t)guest_load8(at + i) << (8 * i);
    return value;
}

static inline bool virtqueue_busy(const struct virtqueue *vq, uint16_t id)
{
    return (vq->busy[id / 64] >> (id % 64) & 1) != 0;
}

/* Adds a descriptor's buffer to the chain. 0, -EPROTO, -EAGAIN; -ENOBUFS: no block is free. */
int virtqueue_add_element(struct virtqueue *vq, struct chain *chain, const struct descriptor *d);
/* Checks an indirect descriptor and maps its table. */
int virtqueue_open_table(struct virtqueue *vq, const struct descriptor *d, const uint8_t **table,
                         uint32_t *entries);

/* Takes the next chain off the ring: as virtqueue_pop, but it is not out yet. */
int virtqueue_take(struct virtqueue *vq, struct chain **out);
/* The opposite, for the chain taken last: back into the ring. */
void virtqueue_untake(struct virtqueue *vq, struct chain *chain);
/* Writes the chain's used entry, or with IN_ORDER notes that it is done; frees its slot. */
void virtqueue_use(struct virtqueue *vq, struct chain *chain);
/* Frees the chain's memory without a word to the driver. */
void virtqueue_free_chain(struct virtqueue *vq, struct chain *chain);

static inline struct chain *virtqueue_slot(const struct virtqueue *vq, uint16_t slot)
{
    return (struct chain *)(void *)(vq->slots + slot * vq->slot_stride);
}

#endif
