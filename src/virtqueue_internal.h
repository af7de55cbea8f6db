/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by virtqueue.c, virtqueue_split.c and virtqueue_packed.c only. */
#ifndef VIOD_VIRTQUEUE_INTERNAL_H
#define VIOD_VIRTQUEUE_INTERNAL_H

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include "device_state.h"
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
    /* From the words in the state, which are sealed; then start. False: they cannot be. */
    bool (*adopt)(struct virtqueue *vq, uint64_t avail, uint64_t published);
    /* Of the state's words: the next avail and used positions. */
    uint16_t (*avail_position)(const struct virtqueue *vq);
    uint16_t (*used_position)(const struct virtqueue *vq);
    /* Has the dead process published what it had completed? (A ring where that does not matter: no.) */
    bool (*was_published)(const struct virtqueue *vq);
    /* Moves on, over a used entry that is there. */
    void (*skip_used)(struct virtqueue *vq, uint16_t descriptors);
    /* The dead process has written a used entry of so many descriptors, which is not to be. */
    void (*unput_used)(struct virtqueue *vq, uint16_t descriptors);
    /* 1 and *head (a private copy of what identifies the chain), 0, -EPROTO. */
    int (*peek)(struct virtqueue *vq);
    /* Copies the chain's descriptors into vq->walk; 0 or -EPROTO, -EAGAIN, -ENOMEM. */
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
    /* How many chains are available; 0 if only walking them would tell, or if there are too many. */
    unsigned (*waiting)(const struct virtqueue *vq);
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
    /* Of the chain being walked: its latest element that is not empty. Behind one that is nowhere, the
     * latest is kept for the end of the walk. */
    bool last_faulted, last_writable, has_deferred;
    struct descriptor deferred;
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
    /* What is kept: config.state, or private memory. */
    struct state_queue *state;
    uint32_t taken, given;              /* requests, since the queue started */
    uint16_t *batch;                    /* ids given back and not published: `unpublished` of them */
    /* Packed: entries of state->descriptors that are free; the chain being walked has taken the last
     * `copied` of them. */
    uint16_t *free_copies;
    unsigned n_free_copies, copied;
    uint64_t copies_hash;
    /* Adopted: ids to be popped again, in order; and how many were completed, and are put again. */
    struct replay *replay;
    unsigned n_replay, next_replay, n_again, n_undone, undo_descriptors;
    bool replaying;                     /* the chain being walked is one of these */
    /* In-order queues: slots in the order of pop. */
    uint16_t *order;
    uint16_t order_head;
    unsigned order_count;
    struct virtqueue_stats stats;
    struct grants *grants;              /* NULL: guest-physical addresses */
};

/* A request that a dead process left, in the order in which it was taken or completed. */
struct replay {
    uint32_t order;
    uint16_t id;
};

/* virtqueue.c: memory that costs nothing until it is touched. NULL: there is none. */
void *virtqueue_map_lazily(size_t bytes);
void virtqueue_unmap(void *p, size_t bytes);

/* virtqueue_state.c */
int virtqueue_state_create(struct virtqueue *vq);
void virtqueue_state_destroy(struct virtqueue *vq);
void virtqueue_state_start(struct virtqueue *vq);
/* Reads and checks all of it. 0 or -EBADMSG. */
int virtqueue_state_adopt(struct virtqueue *vq);
/* The same, as far as the ring itself has to be looked at: when it is mapped for the first time. */
void virtqueue_state_adopt_ring(struct virtqueue *vq);
/* Packed: remembers a descriptor of the chain being walked. */
void virtqueue_state_copy(struct virtqueue *vq, const struct descriptor *d);
/* Packed: the descriptors of the chain `id` that were remembered. */
const struct state_descriptor *virtqueue_state_copies(const struct virtqueue *vq, uint16_t id);
void virtqueue_state_put_back(struct virtqueue *vq, const struct chain *chain);
void virtqueue_state_published(struct virtqueue *vq);

static inline bool virtqueue_busy(const struct virtqueue *vq, uint16_t id)
{
    return (vq->busy[id / 64] >> (id % 64) & 1) != 0;
}

static inline void virtqueue_not_busy(struct virtqueue *vq, uint16_t id)
{
    vq->busy[id / 64] &= ~(UINT64_C(1) << (id % 64));
}

/* The ring has moved on by this chain. */
static inline void virtqueue_state_position(struct virtqueue *vq)
{
    state_store64(&vq->state->avail,
                  state_position(vq->taken, vq->ring->avail_position(vq), SALT_AVAIL));
}

/* Popped: known before it counts, and it counts with the position. */
static inline void virtqueue_state_taken(struct virtqueue *vq, const struct chain *chain)
{
    struct state_request *request = &vq->state->requests[chain->id];
    uint64_t copies = 0;

    if (!STATE_KEPT)
        return;
    state_store64(&request->done, 0);
    if (vq->copied > 0) {
        copies = state_sealed(vq->free_copies[vq->n_free_copies - 1], vq->copies_hash, SALT_TAKEN);
        state_store64(&request->copies, copies);
        vq->n_free_copies -= vq->copied;
    }
    state_store64(&request->taken, state_taken(++vq->taken, chain->descriptors, chain->id, copies));
    virtqueue_state_position(vq);
}

/* Before a used entry is written. */
static inline void virtqueue_state_done(struct virtqueue *vq, const struct chain *chain)
{
    if (!STATE_KEPT) {
        virtqueue_not_busy(vq, chain->id);
        return;
    }
    vq->batch[vq->unpublished] = chain->id;
    state_store64(&vq->state->requests[chain->id].done,
                  state_done(chain->written, ++vq->given, chain->part, chain->id));
}

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

/* Adds a descriptor's buffer to the chain. 0, -EPROTO, -EAGAIN, -ENOMEM; -ENOBUFS: no block is free. */
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
