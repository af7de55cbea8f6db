/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings that break the protocol: rows 4, 5, 6, 8 and 10, on both formats. After each, a reset by
 * the driver must make the queue work again (rig_expect_recovery).
 */
#include "hostile.h"

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

/* A table of maximal length that loops back to each of its entries, or leaves its end. */
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

/* All that the device may write of a ring. */
static void snapshot(const struct ring *ring, uint8_t *to)
{
    memcpy(to, ring->split_desc, 16 * SIZE);
    memcpy(to + 16 * SIZE, ring->device_area, ring->packed ? 4 : 6 + 8 * SIZE);
}

/* The index goes back by what was made available and taken. */
static void test_row_05_available_index_backwards(void **state)
{
    uint8_t before[24 * SIZE + 6], after[24 * SIZE + 6];
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
    snapshot(&rig.ring, before);
    chain_complete(chain, 8);
    assert_false(virtqueue_flush(rig.vq));
    snapshot(&rig.ring, after);
    assert_memory_equal(before, after, sizeof(before));
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

/* The same with few IDs in use: lists of two, and then the ring's end as one with a fresh ID. */
static void test_row_06_slots_that_are_in_flight(void **state)
{
    struct chain *chains[SIZE / 2];
    struct segment s[2];
    struct rig rig;

    (void)state;
    rig_create(&rig, SIZE, F_PACKED);
    s[0] = s[1] = segment(data(1), 8);
    for (unsigned i = 0; i < SIZE / 2; i++)
        ring_add(&rig.ring, s, 1, s + 1, 1, &rig, false);
    for (unsigned i = 0; i < SIZE / 2; i++)
        chains[i] = rig_pop(&rig);
    packed_desc_write(&rig.ring.packed_desc[0], data(1), 8, SIZE - 1, packed_avail_flags(false));
    rig_expect_broken(&rig);
    for (unsigned i = 0; i < SIZE / 2; i++)
        chain_complete(chains[i], 0);
    rig_expect_recovery(&rig);
    rig_destroy(&rig);
}

/* What is used, but not published yet, is not the driver's: it guesses where the next lap begins. */
static void test_row_06_slots_that_were_not_given_back(void **state)
{
    struct raw list[SIZE];
    struct rig rig;

    (void)state;
    for (unsigned i = 0; i < SIZE; i++)
        list[i] = (struct raw){data(1), 8, i + 1 < SIZE ? NEXT : 0, 0};
    for (unsigned n = 1; n <= SIZE; n++) {
        rig_create_sized(&rig, SIZE, 2 * SIZE, F_PACKED);
        offer(&rig, list, SIZE);
        chain_complete(rig_pop(&rig), 0);
        for (unsigned i = 0; i < n; i++)
            packed_desc_write(&rig.ring.packed_desc[i], data(1), 8, 1,
                              (uint16_t)(packed_avail_flags(false) | (i + 1 < n ? NEXT : 0)));
        rig_expect_broken(&rig);
        rig_expect_recovery(&rig);
        rig_destroy(&rig);
    }
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
    static const uint32_t bad[] = {
        0,  1,  8, 15, 17, 24, 16 * SIZE + 1, 16 * (SIZE + 1), 16 * 1025, 0x7ffffff0, 0x80000000,
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
            struct raw entries[3] = {
                {data(2), 8, NEXT, 1}, {data(2), 8, NEXT, 2}, {data(2), 8, 0, 0}};
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
        cmocka_unit_test(test_row_06_slots_that_are_in_flight),
        cmocka_unit_test(test_row_06_slots_that_were_not_given_back),
        cmocka_unit_test(test_row_08_writable_before_readable),
        cmocka_unit_test(test_row_10_indirect_that_was_not_negotiated),
        cmocka_unit_test(test_row_10_table_sizes),
        cmocka_unit_test(test_row_10_indirect_with_next),
        cmocka_unit_test(test_row_10_nested_tables),
        cmocka_unit_test(test_row_10_plain_descriptors_then_a_table),
        cmocka_unit_test(test_row_10_chain_longer_than_the_queue),
        cmocka_unit_test(test_row_10_table_at_any_address),
    };

    return cmocka_run_group_tests_name("virtqueue_hostile", tests, NULL, NULL);
}
