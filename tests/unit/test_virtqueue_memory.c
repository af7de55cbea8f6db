/* SPDX-License-Identifier: Apache-2.0 */
/* Rings, tables and buffers where no memory is, or not any more: rows 11, 12, 13, 15 and 19. */
#include "hostile.h"

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

/* A buffer that is not there fails its request; if it is the last one, the queue. */
static void test_row_12_buffers_outside_ram(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t format = packed ? F_PACKED : 0;

        for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
            struct raw list[3] = {
                {data(1), 8, NEXT, 1}, {data(2), 8, NEXT, 2}, {data(3), 8, WRITE, 0}};

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
            /* Where nothing is reported, nobody misses it. */
            list[2].flags = 0;
            try_raw(format, list, 3, FAULTED);
        }
    }
}

/* Row 26: what the host looks up in vain for one request, however long it is. */
static void test_row_26_many_holes(void **state)
{
    const uint64_t hole = FAKE_BANK0_BASE + 6 * GUEST_CHUNK_SIZE;

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned end = 0; end < 2; end++) { /* in a hole; in RAM */
            struct raw list[SIZE];
            uint64_t before;
            struct rig rig;

            rig_create(&rig, SIZE, packed ? F_PACKED : 0);
            fake_balloon_out(rig.fake, hole, GUEST_CHUNK_SIZE / GUEST_PAGE_SIZE);
            for (unsigned i = 0; i < SIZE; i++)
                list[i] = (struct raw){hole + i % 8 * GUEST_PAGE_SIZE, 8, NEXT | WRITE,
                                       (uint16_t)(i + 1)};
            list[SIZE - 1].flags = WRITE;
            if (end == 1)
                list[SIZE - 1].addr = data(1);
            rig_expect_empty(&rig);
            before = fake_counts(rig.fake).map_calls;
            offer(&rig, list, SIZE);
            expect(&rig, end == 1 ? FAULTED : BROKEN);
            assert_in_range(fake_counts(rig.fake).map_calls - before, 1, 3);
            rig_destroy(&rig);
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
            if (ret != 1) { /* not the driver's fault: nothing was taken, and the next time it works */
                assert_int_equal(ret, -ENOMEM);
                assert_false(virtqueue_broken(rig.vq));
                chain = rig_pop(&rig);
            }
            assert_false(chain->faulted);
            chain_complete(chain, 0);
            virtqueue_flush(rig.vq);
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
    }
}

/* A long chain that breaks off at its end, or must wait, gives back what it had: 200 times. */
static void test_row_15_long_chains_that_break_off(void **state)
{
    uint64_t page = FAKE_BANK0_BASE + 7 * GUEST_CHUNK_SIZE;

    (void)state;
    for (unsigned wait = 0; wait < 2; wait++) {
        struct raw list[SIZE];
        struct chain *chain;
        struct rig rig;

        rig_create(&rig, SIZE, 0);
        fake_balloon_out(rig.fake, page, 1);
        for (unsigned i = 0; i < SIZE; i++)
            list[i] = (struct raw){data(i), 8, NEXT, (uint16_t)(i + 1)};
        list[SIZE - 1] = (struct raw){wait ? page : HOLE, 8, wait ? 0 : NEXT, 0};
        offer(&rig, list, SIZE);
        if (wait) {
            guest_memory_translate(rig.memory, (gpa_t){page + GUEST_PAGE_SIZE}, 1, (void **)&chain);
            fake_balloon_in(rig.fake, page, 1);
        }
        for (unsigned i = 0; i < 200; i++) {
            assert_int_equal(virtqueue_pop(rig.vq, &chain), wait ? -EAGAIN : -EPROTO);
            if (!wait) {
                virtqueue_stop(rig.vq);
                rig_start(&rig);
            }
        }
        virtqueue_stop(rig.vq);
        guest_memory_drop(rig.memory);
        ring_restart(&rig.ring, SIZE);
        rig_start(&rig);
        list[SIZE - 1] = (struct raw){data(1), 8, 0, 0};
        offer(&rig, list, SIZE);
        expect(&rig, SERVED);
        rig_destroy(&rig);
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
        cmocka_unit_test(test_row_12_buffers_outside_ram),
        cmocka_unit_test(test_row_26_many_holes),
        cmocka_unit_test(test_row_12_tables_outside_ram),
        cmocka_unit_test(test_row_12_rings_outside_ram),
        cmocka_unit_test(test_row_15_mapping_fails_at_every_step),
        cmocka_unit_test(test_row_15_long_chains_that_break_off),
        cmocka_unit_test(test_row_19_page_came_back),
    };

    return cmocka_run_group_tests_name("virtqueue_memory", tests, NULL, NULL);
}
