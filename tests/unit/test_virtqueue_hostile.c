/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings that break the protocol: rows 4, 5, 6, 8, 10, 11, 12 and 15, on both formats. After each, a
 * reset by the driver must make the queue work again (rig_expect_recovery).
 */
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
 * Puts n raw descriptors into the ring from its first entry on and makes the head available. Packed:
 * the same list, linked by position, with buffer ID `id` in the last.
 */
static void offer_id(struct rig *rig, const struct raw *raw, unsigned n, uint16_t id)
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

static void offer(struct rig *rig, const struct raw *raw, unsigned n)
{
    offer_id(rig, raw, n, 0);
}

/* Writes a table of raw descriptors at `at`. */
static void write_table(struct rig *rig, uint64_t at, const struct raw *raw, unsigned n)
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

static void expect(struct rig *rig, enum expectation what)
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
static void try_raw(uint64_t features, const struct raw *raw, unsigned n, enum expectation what)
{
    struct rig rig;

    rig_create(&rig, SIZE, features);
    fake_balloon_out(rig.fake, HOLE, 1);
    offer(&rig, raw, n);
    expect(&rig, what);
    rig_destroy(&rig);
}

static uint64_t data(unsigned n) { return FAKE_BANK0_BASE + 0x1000 * (uint64_t)n; }

static void test_row_04_descriptor_loops_split(void **state)
{
    static const struct raw self[] = {{FAKE_BANK0_BASE, 8, NEXT, 0}};
    static const struct raw two[] = {{FAKE_BANK0_BASE, 8, NEXT, 1}, {FAKE_BANK0_BASE, 8, NEXT, 0}};
    static const struct raw zero[] = {{FAKE_BANK0_BASE, 0, NEXT, 0}};
    static const uint16_t outside[] = {SIZE, SIZE + 1, 255, 0x8000, 0xffff};
    struct raw one[] = {{FAKE_BANK0_BASE, 8, NEXT, 0}};

    (void)state;
    try_raw(0, self, 1, BROKEN);
    try_raw(0, two, 2, BROKEN);
    try_raw(0, zero, 1, BROKEN);
    for (size_t i = 0; i < ARRAY_SIZE(outside); i++) {
        one[0].next = outside[i];
        try_raw(0, one, 1, BROKEN);
    }
}

/* A table that loops, a chain that comes back after a table, a table of maximal length that loops. */
static void test_row_04_loops_through_indirect_tables(void **state)
{
    struct raw entries[SIZE];
    struct raw head = {data(1), 16 * SIZE, INDIRECT, 0};

    (void)state;
    for (unsigned target = 0; target <= SIZE; target++) {
        struct rig rig;

        rig_create(&rig, SIZE, F_INDIRECT);
        for (unsigned i = 0; i < SIZE; i++)
            entries[i] = (struct raw){data(2), 0, NEXT, (uint16_t)(i + 1)};
        entries[SIZE - 1].next = (uint16_t)target;
        write_table(&rig, data(1), entries, SIZE);
        offer(&rig, &head, 1);
        expect(&rig, BROKEN);
        rig_destroy(&rig);
    }
}

static void test_row_04_endless_list_packed(void **state)
{
    struct raw endless[SIZE];

    (void)state;
    for (unsigned i = 0; i < SIZE; i++)
        endless[i] = (struct raw){data(1), i % 2 ? 8 : 0, NEXT, 0};
    try_raw(F_PACKED, endless, SIZE, BROKEN);
}

static void test_row_05_available_index_jumps(void **state)
{
    static const uint16_t jumps[] = {SIZE + 1, 0x7fff, 0x8000, 0x8001, 0xfff0, 0xffff};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(jumps); i++) {
        for (unsigned used_before = 0; used_before < 40; used_before += 13) {
            struct segment s = segment(data(1), 8);
            struct ring_used used;
            struct rig rig;

            rig_create(&rig, SIZE, 0);
            for (unsigned k = 0; k < used_before; k++) {
                ring_add(&rig.ring, &s, 1, NULL, 0, &rig, false);
                chain_complete(rig_pop(&rig), 0);
                virtqueue_flush(rig.vq);
                assert_true(ring_get(&rig.ring, &used));
            }
            ram_store16(avail_idx(&rig.ring), (uint16_t)(rig.ring.avail + jumps[i]));
            expect(&rig, BROKEN);
            rig_destroy(&rig);
        }
    }
}

/* The index goes back by what was made available and taken. */
static void test_row_05_available_index_backwards(void **state)
{
    struct chain *chain;
    struct segment s;
    struct rig rig;

    (void)state;
    rig_create(&rig, SIZE, 0);
    s = segment(data(1), 8);
    ring_add(&rig.ring, &s, 1, NULL, 0, &rig, false);
    ring_add(&rig.ring, &s, 1, NULL, 0, &rig, false);
    chain = rig_pop(&rig);
    chain_complete(rig_pop(&rig), 0);
    ram_store16(avail_idx(&rig.ring), 1);
    rig_expect_broken(&rig);
    /* A request that was in flight ends without touching the dead ring. */
    chain_complete(chain, 8);
    assert_false(virtqueue_flush(rig.vq));
    assert_int_equal(ram_load16(used_idx(&rig.ring)), 0);
    rig_expect_recovery(&rig);
    rig_destroy(&rig);
}

static void test_row_06_head_outside_the_table(void **state)
{
    static const uint16_t heads[] = {SIZE, SIZE + 1, 255, 256, 0x7fff, 0x8000, 0xffff};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(heads); i++) {
        struct raw one = {data(1), 8, 0, 0};
        struct rig rig;

        rig_create(&rig, SIZE, 0);
        offer(&rig, &one, 1);
        ram_store16(avail_entry(&rig.ring, 0), heads[i]);
        expect(&rig, BROKEN);
        rig_destroy(&rig);
        /* Packed: the buffer ID. */
        rig_create(&rig, SIZE, F_PACKED);
        offer_id(&rig, &one, 1, heads[i]);
        expect(&rig, BROKEN);
        rig_destroy(&rig);
    }
}

static void test_row_06_same_head_twice_in_flight(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct raw one = {data(1), 8, 0, 0};
        struct chain *chain;
        struct rig rig;

        rig_create(&rig, SIZE, packed ? F_PACKED : 0);
        offer(&rig, &one, 1);
        if (packed) {
            packed_desc_write(&rig.ring.packed_desc[1], data(1), 8, 0, packed_avail_flags(true));
        } else {
            ram_store16(avail_entry(&rig.ring, 1), 0);
            ram_store16(avail_idx(&rig.ring), 2);
        }
        chain = rig_pop(&rig);
        rig_expect_broken(&rig);
        assert_int_equal(virtqueue_in_flight(rig.vq), 1);
        chain_complete(chain, 0);
        rig_expect_recovery(&rig);
        rig_destroy(&rig);
    }
}

/* The whole ring available again while all of it is in flight. */
static void test_row_06_more_available_than_the_ring_has(void **state)
{
    struct chain *chains[SIZE];
    struct segment s;
    struct rig rig;

    (void)state;
    rig_create_sized(&rig, SIZE, 2 * SIZE, F_PACKED);
    s = segment(data(1), 8);
    for (unsigned i = 0; i < SIZE; i++)
        ring_add(&rig.ring, &s, 1, NULL, 0, &rig, false);
    for (unsigned i = 0; i < SIZE; i++)
        chains[i] = rig_pop(&rig);
    for (unsigned i = 0; i < SIZE; i++)
        packed_desc_write(&rig.ring.packed_desc[i], data(1), 8, 0, packed_avail_flags(false));
    rig_expect_broken(&rig);
    for (unsigned i = 0; i < SIZE; i++)
        chain_complete(chains[i], 0);
    rig_expect_recovery(&rig);
    rig_destroy(&rig);
}

/* 2.7.4.2: what the device reads comes before what it writes. Lengths of 0 have no order. */
static void test_row_08_writable_before_readable(void **state)
{
    struct raw list[3] = {{data(1), 8, NEXT | WRITE, 1}, {data(2), 8, 0, 0}};
    struct raw table_of_it = {data(3), 32, INDIRECT, 0};
    struct rig rig;

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t format = packed ? F_PACKED : 0;

        try_raw(format, list, 2, BROKEN);
        rig_create(&rig, SIZE, format | F_INDIRECT);
        write_table(&rig, data(3), list, 2);
        offer(&rig, &table_of_it, 1);
        expect(&rig, BROKEN);
        rig_destroy(&rig);

        struct raw zero[3] = {list[0], list[1]};
        zero[0].len = 0;
        try_raw(format, zero, 2, SERVED);
        zero[0].len = 8;
        zero[1].flags |= WRITE;
        try_raw(format, zero, 2, SERVED);
    }
}

static void test_row_10_indirect_that_was_not_negotiated(void **state)
{
    struct raw head = {data(1), 16, INDIRECT, 0};

    (void)state;
    try_raw(0, &head, 1, BROKEN);
    try_raw(F_PACKED, &head, 1, BROKEN);
}

static void test_row_10_table_sizes(void **state)
{
    static const uint32_t bad[] = {0,          1,          8,          15,         17,
                                   24,         16 * SIZE + 1, 16 * 1025, 0x7ffffff0, 0x80000000,
                                   0xfffffff0, 0xffffffff};

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t features = F_INDIRECT | (packed ? F_PACKED : 0);

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
            struct raw head = {data(1), bad[i], INDIRECT, 0};

            try_raw(features, &head, 1, BROKEN);
        }
        /* One entry of zeros, which is a request without a byte. */
        struct raw head = {data(1), 16, INDIRECT, 0};
        try_raw(features, &head, 1, SERVED);
        /* 2.7.5.3.2: WRITE in the head means nothing. */
        head.flags |= WRITE;
        try_raw(features, &head, 1, SERVED);
    }
}

static void test_row_10_indirect_with_next(void **state)
{
    struct raw list[2] = {{data(1), 16, INDIRECT | NEXT, 1}, {data(2), 8, 0, 0}};

    (void)state;
    try_raw(F_INDIRECT, list, 2, BROKEN);
    try_raw(F_INDIRECT | F_PACKED, list, 2, BROKEN);
}

static void test_row_10_nested_tables(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned at = 0; at < 3; at++) {
            struct raw head = {data(1), 48, INDIRECT, 0};
            struct raw entries[3] = {{data(2), 8, NEXT, 1}, {data(2), 8, NEXT, 2}, {data(2), 8, 0, 0}};
            struct rig rig;

            entries[at].flags = INDIRECT;
            entries[at].addr = data(1);
            entries[at].len = 48;
            rig_create(&rig, SIZE, F_INDIRECT | (packed ? F_PACKED : 0));
            write_table(&rig, data(1), entries, 3);
            offer(&rig, &head, 1);
            expect(&rig, BROKEN);
            rig_destroy(&rig);
        }
    }
}

/* 2.7.5.3.2: plain descriptors and then a table is valid in a split ring. */
static void test_row_10_plain_descriptors_then_a_table(void **state)
{
    struct raw list[3] = {{data(1), 8, NEXT, 1}, {data(1), 8, NEXT, 2}, {data(2), 32, INDIRECT, 0}};
    struct raw entries[2] = {{data(3), 8, NEXT, 1}, {data(4), 8, WRITE, 0}};
    struct chain *chain;
    struct rig rig;

    (void)state;
    rig_create(&rig, SIZE, F_INDIRECT);
    write_table(&rig, data(2), entries, 2);
    offer(&rig, list, 3);
    chain = rig_pop(&rig);
    assert_int_equal(chain->n_readable, 3);
    assert_int_equal(chain->n_writable, 1);
    assert_int_equal(chain->readable_bytes, 24);
    chain_complete(chain, 0);
    virtqueue_flush(rig.vq);
    assert_int_equal(ram_load32(used_entry(&rig.ring, 0)), 0);
    rig_destroy(&rig);
}

/* Each part is as long as it may be; together they are more elements than the queue ever has. */
static void test_row_10_chain_longer_than_the_queue(void **state)
{
    struct raw list[2] = {{data(1), 8, NEXT, 1}, {data(2), 16 * SIZE, INDIRECT, 0}};
    struct raw entries[SIZE];

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct rig rig;

        for (unsigned i = 0; i < SIZE; i++)
            entries[i] = (struct raw){data(3), 8, i + 1 < SIZE ? NEXT : 0, (uint16_t)(i + 1)};
        rig_create(&rig, SIZE, F_INDIRECT | (packed ? F_PACKED : 0));
        write_table(&rig, data(2), entries, SIZE);
        offer(&rig, list, 2);
        expect(&rig, BROKEN);
        rig_destroy(&rig);
        /* The table alone is a chain like any other. */
        rig_create(&rig, SIZE, F_INDIRECT | (packed ? F_PACKED : 0));
        write_table(&rig, data(2), entries, SIZE);
        offer(&rig, list + 1, 1);
        expect(&rig, SERVED);
        rig_destroy(&rig);
    }
}

/* The specification asks for no alignment of tables. */
static void test_row_10_table_at_any_address(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned shift = 0; shift < 16; shift++) {
            struct raw head = {data(1) + shift, 32, INDIRECT, 0};
            struct raw entries[2] = {{data(3), 8, NEXT, 1}, {data(4), 8, WRITE, 0}};
            struct chain *chain;
            struct rig rig;

            rig_create(&rig, SIZE, F_INDIRECT | (packed ? F_PACKED : 0));
            if (packed)
                entries[0].flags = 0;
            write_table(&rig, data(1) + shift, entries, 2);
            offer(&rig, &head, 1);
            chain = rig_pop(&rig);
            assert_int_equal(chain->readable_bytes, 8);
            assert_int_equal(chain->writable_bytes, 8);
            chain_complete(chain, 0);
            virtqueue_flush(rig.vq);
            rig_destroy(&rig);
        }
    }
}

/* Addresses that are not the guest's RAM, and ranges that begin in it and leave it. */
static const struct {
    uint64_t addr;
    uint32_t len;
} nowhere[] = {
    {0, 8},
    {MMIO, 8},                                   /* row 13: the device's own registers */
    {MMIO + 0x50, 4},
    {0x03000000, 0x1000},
    {FAKE_BANK0_BASE - 1, 1},
    {FAKE_BANK0_BASE - 8, 16},
    {FAKE_BANK0_BASE + FAKE_BANK_SIZE, 1},
    {FAKE_BANK0_BASE + FAKE_BANK_SIZE - 1, 2},
    {FAKE_BANK0_BASE, 0xffffffff},
    {FAKE_BANK1_BASE - 1, 2},
    {FAKE_BANK1_BASE + FAKE_BANK_SIZE, 16},
    {FAKE_BANK1_BASE + FAKE_BANK_SIZE - 8, 16},
    {HOLE, 1},
    {HOLE + 0xfff, 1},
    {HOLE - 1, 2},
    {HOLE - 0x2000, 0x3000},
    {UINT64_MAX, 1},                             /* row 11: the sum wraps */
    {UINT64_MAX, 2},
    {UINT64_MAX - 7, 0xffffffff},
    {UINT64_C(1) << 63, 8},                      /* a grant of a guest without grants */
    {UINT64_C(1) << 63 | FAKE_BANK0_BASE, 8},
    {UINT64_C(0x8000000000001000), 8},
};

/* A buffer that is not there fails its request; a request without a place for its end, the queue. */
static void test_row_12_buffers_outside_ram(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t format = packed ? F_PACKED : 0;

        for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
            struct raw list[3] = {{data(1), 8, NEXT, 1}, {data(2), 8, NEXT, 2}, {data(3), 8, WRITE, 0}};

            list[0].addr = nowhere[i].addr;
            list[0].len = nowhere[i].len;
            try_raw(format, list, 3, FAULTED);
            list[0] = (struct raw){data(1), 8, NEXT, 1};
            list[1].addr = nowhere[i].addr;
            list[1].len = nowhere[i].len;
            list[1].flags |= WRITE;
            try_raw(format, list, 3, FAULTED);
            list[1] = (struct raw){data(2), 8, NEXT, 2};
            list[2].addr = nowhere[i].addr;
            list[2].len = nowhere[i].len;
            try_raw(format, list, 3, BROKEN);
        }
    }
}

static void test_row_12_tables_outside_ram(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
            struct raw head = {nowhere[i].addr, (nowhere[i].len + 15) / 16 * 16, INDIRECT, 0};

            head.len = MIN(head.len == 0 ? 16 : head.len, 16 * SIZE);
            if (head.addr == HOLE - 0x2000 || head.addr == FAKE_BANK0_BASE)
                continue; /* the part that a table can have is RAM */
            try_raw(F_INDIRECT | (packed ? F_PACKED : 0), &head, 1, BROKEN);
        }
    }
}

static void test_row_12_rings_outside_ram(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned area = 0; area < 3; area++) {
            for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
                uint64_t at = nowhere[i].addr & ~UINT64_C(15);
                struct virtqueue_setup setup;
                struct rig rig;

                if (at == FAKE_BANK0_BASE || at == HOLE - 0x2000)
                    continue; /* begins in RAM and is short enough */
                /* So that it leaves RAM: the last bytes before the end or the hole. */
                if (packed && area != 0 && nowhere[i].addr % 16 != 0)
                    continue;
                rig_create(&rig, SIZE, packed ? F_PACKED : 0);
                fake_balloon_out(rig.fake, HOLE, 1);
                virtqueue_stop(rig.vq);
                setup = ring_setup(&rig.ring);
                (area == 0 ? &setup.desc : area == 1 ? &setup.driver : &setup.device)->addr = at;
                assert_int_equal(virtqueue_start(rig.vq, &setup), 0);
                if (packed && area != 0 && at + 4 <= FAKE_BANK1_BASE + FAKE_BANK_SIZE &&
                    at >= FAKE_BANK1_BASE)
                    rig_expect_empty(&rig); /* four bytes still fit */
                else
                    expect(&rig, BROKEN);
                rig_destroy(&rig);
            }
        }
    }
}

/* Everything fails once, at every step; nothing stays mapped, nothing in flight (rig_destroy). */
static void test_row_15_mapping_fails_at_every_step(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned nth = 1; nth < 8; nth++) {
            struct segment s[3];
            struct chain *chain;
            struct rig rig;
            int ret;

            rig_create(&rig, SIZE, packed ? F_PACKED : 0);
            s[0] = segment(FAKE_BANK0_BASE + 9 * GUEST_CHUNK_SIZE, 8);
            s[1] = segment(FAKE_BANK1_BASE + 3 * GUEST_CHUNK_SIZE - 8, 16);
            s[2] = segment(FAKE_BANK1_BASE, 8);
            fake_fail(rig.fake, FAKE_MAP, nth, -ENOMEM);
            ring_add(&rig.ring, s, 2, s + 2, 1, &rig, false);
            ret = virtqueue_pop(rig.vq, &chain);
            if (ret == 1) {
                chain_complete(chain, 0);
                virtqueue_flush(rig.vq);
            } else {
                assert_int_equal(ret, -EPROTO);
            }
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
    }
}

/* Row 19 as a queue sees it: a page of the ring or of a buffer comes back elsewhere. */
static void test_row_19_page_came_back(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t page = FAKE_BANK0_BASE + 7 * GUEST_CHUNK_SIZE;
        struct segment s[2] = {segment(page, 8), segment(data(2), 8)};
        struct ring_used used;
        struct chain *chain;
        char text[8];
        struct rig rig;

        rig_create(&rig, SIZE, packed ? F_PACKED : 0);
        fake_balloon_out(rig.fake, page, 1);
        ring_add(&rig.ring, s, 1, s + 1, 1, &rig, false);
        chain = rig_pop(&rig);
        assert_true(chain->faulted);
        chain_complete(chain, 0);
        virtqueue_flush(rig.vq);
        assert_true(ring_get(&rig.ring, &used));

        fake_balloon_in(rig.fake, page, 1);
        memcpy(fake_ram(rig.fake, page, 8), "returned", 8);
        ring_add(&rig.ring, s, 1, s + 1, 1, &rig, false);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(virtqueue_pop(rig.vq, &chain), -EAGAIN);
        assert_false(virtqueue_broken(rig.vq));
        virtqueue_forget_mapping(rig.vq);
        guest_memory_drop_stale(rig.memory);
        chain = rig_pop(&rig);
        assert_false(chain->faulted);
        assert_int_equal(chain_read(chain, text, 8), 8);
        assert_memory_equal(text, "returned", 8);
        chain_complete(chain, 0);
        virtqueue_flush(rig.vq);
        assert_true(ring_get(&rig.ring, &used));
        rig_destroy(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_04_descriptor_loops_split),
        cmocka_unit_test(test_row_04_loops_through_indirect_tables),
        cmocka_unit_test(test_row_04_endless_list_packed),
        cmocka_unit_test(test_row_05_available_index_jumps),
        cmocka_unit_test(test_row_05_available_index_backwards),
        cmocka_unit_test(test_row_06_head_outside_the_table),
        cmocka_unit_test(test_row_06_same_head_twice_in_flight),
        cmocka_unit_test(test_row_06_more_available_than_the_ring_has),
        cmocka_unit_test(test_row_08_writable_before_readable),
        cmocka_unit_test(test_row_10_indirect_that_was_not_negotiated),
        cmocka_unit_test(test_row_10_table_sizes),
        cmocka_unit_test(test_row_10_indirect_with_next),
        cmocka_unit_test(test_row_10_nested_tables),
        cmocka_unit_test(test_row_10_plain_descriptors_then_a_table),
        cmocka_unit_test(test_row_10_chain_longer_than_the_queue),
        cmocka_unit_test(test_row_10_table_at_any_address),
        cmocka_unit_test(test_row_12_buffers_outside_ram),
        cmocka_unit_test(test_row_12_tables_outside_ram),
        cmocka_unit_test(test_row_12_rings_outside_ram),
        cmocka_unit_test(test_row_15_mapping_fails_at_every_step),
        cmocka_unit_test(test_row_19_page_came_back),
    };

    return cmocka_run_group_tests_name("virtqueue_hostile", tests, NULL, NULL);
}
