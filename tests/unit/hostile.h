/* SPDX-License-Identifier: Apache-2.0 */
/* Rings as a hostile driver writes them, and the three ways in which that may end. */
#ifndef VIOD_HOSTILE_H
#define VIOD_HOSTILE_H

#include "unit.h"

#define SIZE 16u
#define HOLE (FAKE_BANK0_BASE + 5 * GUEST_CHUNK_SIZE) /* a page that the guest gave back */
#define MMIO UINT64_C(0x02000000)

/* One descriptor, as a hostile driver writes it. */
struct raw {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next; /* split, and split tables */
};

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

/*
 * Puts n raw descriptors into the ring from its first entry on and makes the head available.
 * Packed: the same list, linked by position, with buffer ID `id` in the last.
 */
static inline void offer_id(struct rig *rig, const struct raw *raw, unsigned n, uint16_t id)
{
    struct ring *ring = &rig->ring;

    if (ring->packed) {
        for (unsigned i = n; i-- > 0;)
            packed_desc_write(&ring->packed_desc[i], raw[i].addr, raw[i].len, id,
                              (uint16_t)(raw[i].flags | packed_avail_flags(true)));
        return;
    }
    for (unsigned i = 0; i < n; i++)
        split_desc_write(&ring->split_desc[i], raw[i].addr, raw[i].len, raw[i].flags, raw[i].next);
    ram_store16(avail_entry(ring, 0), 0);
    ram_store16(avail_idx(ring), 1);
}

static inline void offer(struct rig *rig, const struct raw *raw, unsigned n)
{
    offer_id(rig, raw, n, 0);
}

/* Writes a table of raw descriptors at `at`. */
static inline void write_table(struct rig *rig, uint64_t at, const struct raw *raw, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t *to = fake_ram(rig->fake, at + 16 * i, 16);
        struct vring_desc split;
        struct vring_packed_desc packed;

        split_desc_write(&split, raw[i].addr, raw[i].len, raw[i].flags, raw[i].next);
        packed_desc_write(&packed, raw[i].addr, raw[i].len, 0, raw[i].flags);
        /* At any alignment. */
        memcpy(to, rig->ring.packed ? (void *)&packed : (void *)&split, 16);
    }
}

enum expectation {
    BROKEN,  /* the queue dies */
    FAULTED, /* this request fails, the queue lives */
    SERVED,
};

static inline void expect(struct rig *rig, enum expectation what)
{
    struct chain *chain;
    uint8_t byte;

    if (what == BROKEN) {
        rig_expect_broken(rig);
        rig_expect_recovery(rig);
        return;
    }
    chain = rig_pop(rig);
    assert_int_equal(chain->faulted, what == FAULTED);
    /* Using the chain in spite of it touches nothing that is not there. */
    while (chain_read(chain, &byte, 1) > 0)
        ;
    chain_write(chain, NULL, SIZE_MAX);
    chain_complete(chain, 0);
    virtqueue_flush(rig->vq);
    assert_false(virtqueue_broken(rig->vq));
}

/* A fresh rig for one raw list. */
static inline void try_raw(uint64_t features, const struct raw *raw, unsigned n,
                           enum expectation what)
{
    struct rig rig;

    rig_create(&rig, SIZE, features);
    fake_balloon_out(rig.fake, HOLE, 1);
    offer(&rig, raw, n);
    expect(&rig, what);
    rig_destroy(&rig);
}

static inline uint64_t data(unsigned n) { return FAKE_BANK0_BASE + 0x1000 * (uint64_t)n; }

#endif
