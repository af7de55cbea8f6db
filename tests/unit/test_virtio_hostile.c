/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile driver against a whole device: rows 13, 15, 19, 25, 26 and 27. */
#include "driver.h"
#include "unit.h"

#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static bool needs_reset(struct machine *m)
{
    return (machine_read32(m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

static unsigned get_all(struct ring *ring)
{
    struct ring_used used;
    unsigned n = 0;

    while (ring_get(ring, &used))
        n++;
    return n;
}

/* stderr goes to a file of its own until log_lines is called. */
struct capture {
    int saved, file;
};

static struct capture capture_stderr(void)
{
    struct capture c = {.saved = dup(STDERR_FILENO), .file = memfd_create("stderr", MFD_CLOEXEC)};

    fflush(stderr);
    assert_true(c.saved >= 0 && c.file >= 0);
    assert_true(dup2(c.file, STDERR_FILENO) >= 0);
    return c;
}

static unsigned captured_lines(struct capture *c)
{
    char text[4096];
    unsigned lines = 0;
    ssize_t n;

    fflush(stderr);
    dup2(c->saved, STDERR_FILENO);
    close(c->saved);
    lseek(c->file, 0, SEEK_SET);
    while ((n = read(c->file, text, sizeof(text))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            lines += text[i] == '\n';
    }
    close(c->file);
    return lines;
}

/* A buffer that lies on the device's own registers: not RAM, so no access reaches a register. */
static void test_row_13_buffers_on_the_registers(void **state)
{
    static const uint32_t offsets[] = {VIRTIO_MMIO_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY,
                                       VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_INTERRUPT_ACK,
                                       VIRTIO_MMIO_CONFIG, 0};

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(NULL);
        gpa_t buffer = guest_alloc(&m->heap[0], 4096, 8);
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | (packed ? F_PACKED : 0), 1, 16);
        for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
            struct segment out = segment(buffer.addr, 4);
            struct segment in[2] = {segment(MACHINE_BASE + offsets[i], 4), segment(buffer.addr, 4)};
            uint64_t before;

            memset(fake_ram(m->fake, buffer.addr, 4), 0, 4);
            ring_add(&d.rings[0], &out, 1, in, 2, &d, false);
            driver_kick(&d, 0);
            before = fake_counts(m->fake).requests;
            assert_int_equal(get_all(&d.rings[0]), 1);
            assert_int_equal(fake_counts(m->fake).requests, before);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), 15);
            assert_int_equal(test_device(m->dev)->faulted, i + 1);
        }
        machine_destroy(m);
        driver_end(&d);
    }
}

/*
 * The host has no memory when the guest has given a page away and all is mapped anew: the driver is not to
 * blame. It goes on when there is some, and can be reset before.
 */
static void test_row_15_no_memory_for_a_while(void **state)
{
    (void)state;
    for (unsigned reset = 0; reset < 2; reset++) {
        struct machine *m = machine_create(NULL);
        gpa_t buffer = guest_alloc(&m->heap[1], 4096, 8);
        struct driver d;

        driver_start(&d, m, F_VERSION_1, 1, 16);
        for (unsigned round = 0; round < 3; round++) {
            int64_t until = monotonic_ns() + INT64_C(60000000);

            machine_invalidate(m);
            fake_fail(m->fake, FAKE_MAP, 0, -ENOMEM);
            driver_add_echo(&d.rings[0], buffer, 64, round, false);
            driver_kick(&d, 0);
            while (monotonic_ns() < until)
                event_loop_turn(m->loop, 5000000);
            assert_int_equal(m->stats->needs_reset, 0);
            assert_int_equal(get_all(&d.rings[0]), 0);
            if (round == 1)
                machine_invalidate(m); /* a pause meanwhile */
            if (round == 2 && reset) {
                fake_fail(m->fake, FAKE_MAP, 0, 0);
                driver_restart(&d);
                driver_add_echo(&d.rings[0], buffer, 64, round, false);
                driver_kick(&d, 0);
            }
            fake_fail(m->fake, FAKE_MAP, 0, 0);
            until = monotonic_ns() + INT64_C(20000000000);
            for (unsigned done = 0; done == 0; done = get_all(&d.rings[0])) {
                event_loop_turn(m->loop, 5000000);
                assert_true(monotonic_ns() < until);
            }
            assert_true(driver_check_echo(&d.rings[0], buffer, 64, round));
        }
        machine_destroy(m);
        driver_end(&d);
    }
}

/* Any map or probe that fails, at any step of a device's life: no leak, and a reset heals. */
static void test_row_15_everything_fails_once(void **state)
{
    (void)state;
    for (unsigned op = FAKE_MAP; op <= FAKE_RAISE; op++) {
        for (unsigned nth = 1; nth < 6; nth++) {
            struct machine *m = machine_create(NULL);
            gpa_t buffer = guest_alloc(&m->heap[1], 4096, 8);
            struct driver d;

            driver_start(&d, m, F_VERSION_1, 1, 16);
            fake_fail(m->fake, (enum fake_op)op, nth, -ENOMEM);
            for (uint32_t i = 0; i < 4; i++) {
                driver_add_echo(&d.rings[0], (gpa_t){buffer.addr + 128 * i}, 64, i, false);
                driver_kick(&d, 0);
            }
            get_all(&d.rings[0]);
            assert_int_equal(virtqueue_in_flight(m->dev->queues[0].vq), 0);
            fake_fail(m->fake, (enum fake_op)op, 0, 0);
            driver_restart(&d);
            driver_add_echo(&d.rings[0], buffer, 64, 9, false);
            driver_kick(&d, 0);
            assert_int_equal(get_all(&d.rings[0]), 1);
            assert_true(driver_check_echo(&d.rings[0], buffer, 64, 9));
            machine_destroy(m);
            driver_end(&d);
        }
    }
}

static void write_number(struct machine *m, uint64_t page, uint32_t number)
{
    memcpy(fake_ram(m->fake, page, 4), &number, 4);
}

static uint32_t read_number(struct machine *m, uint64_t at)
{
    uint32_t number;

    memcpy(&number, fake_ram(m->fake, at, 4), 4);
    return number;
}

/*
 * Data pages go while their request is in flight and come back as other pages, 10,000 times. The
 * invalidation is answered only when nothing is mapped any more (the fake watches), and what the
 * device reads afterwards is the new page.
 */
static void test_row_19_data_pages_ballooned_mid_request(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD, .drain_keeps = true}};
    struct machine *m = machine_create(&config);
    uint64_t pages = guest_alloc(&m->heap[0], 16 * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE).addr;
    uint64_t other = guest_alloc(&m->heap[1], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE).addr;
    uint32_t seed = 0x600df00d;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    for (uint32_t i = 0; i < 10000; i++) {
        uint64_t page = pages + next_random(&seed) % 16 * GUEST_PAGE_SIZE;
        struct segment out = segment(page, 4), in = segment(other, 4);

        write_number(m, page, i);
        ring_add(&d.rings[0], &out, 1, &in, 1, &d, false);
        driver_kick(&d, 0);
        assert_int_equal(test_device(m->dev)->n_held, 1);
        /* Gone while the device holds the request: the answer waits for it. */
        fake_balloon_out(m->fake, page, 1);
        fake_trap(m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
        machine_settle(m);
        assert_false(fake_answered(m->fake, 1, NULL));
        test_device_complete(test_device(m->dev), 0);
        machine_settle(m);
        assert_true(fake_answered(m->fake, 1, NULL));
        assert_int_equal(fake_stale_pages(m->fake), 0);
        assert_int_equal(get_all(&d.rings[0]), 1);
        /* A request for the page that is gone fails alone. */
        ring_add(&d.rings[0], &out, 1, &in, 1, &d, false);
        driver_kick(&d, 0);
        assert_true(test_device(m->dev)->held[0]->chain.faulted);
        test_device_complete(test_device(m->dev), 0);
        machine_settle(m);
        assert_int_equal(get_all(&d.rings[0]), 1);
        /* Back again, as another page, in a chunk that is mapped: seen without being told. */
        fake_balloon_in(m->fake, page, 1);
        write_number(m, page, ~i);
        ring_add(&d.rings[0], &out, 1, &in, 1, &d, false);
        driver_kick(&d, 0);
        assert_int_equal(test_device(m->dev)->n_held, 1);
        test_device_complete(test_device(m->dev), 0);
        machine_settle(m);
        assert_int_equal(get_all(&d.rings[0]), 1);
        assert_int_equal(read_number(m, other), ~i);
        assert_int_equal(fake_stale_pages(m->fake), 0);
    }
    assert_false(needs_reset(m));
    machine_destroy(m);
    driver_end(&d);
}

/* Pages of the ring itself go: the device asks for a reset, and works when they are back. */
static void test_row_19_ring_pages_ballooned(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(NULL);
        gpa_t buffer = guest_alloc(&m->heap[1], 4096, 8);
        unsigned broken = 0;
        struct driver d;

        /* Three areas on three pages. */
        guest_alloc(&m->heap[0], 1, GUEST_PAGE_SIZE);
        driver_start(&d, m, F_VERSION_1 | (packed ? F_PACKED : 0), 1, 128);
        for (unsigned i = 0; i < 1000; i++) {
            const struct ring *ring = &d.rings[0];
            gpa_t area = i % 3 == 0 ? ring->desc : i % 3 == 1 ? ring->driver : ring->device;
            uint64_t page = area.addr & ~(uint64_t)(GUEST_PAGE_SIZE - 1);

            driver_add_echo(&d.rings[0], buffer, 64, i, false);
            machine_balloon_out(m, page, 1);
            driver_kick(&d, 0);
            assert_true(fake_answered(m->fake, 1, NULL));
            if (needs_reset(m))
                broken++;
            fake_balloon_in(m->fake, page, 1);
            driver_restart(&d);
            driver_add_echo(&d.rings[0], buffer, 64, i, false);
            driver_kick(&d, 0);
            assert_int_equal(get_all(&d.rings[0]), 1);
            assert_true(driver_check_echo(&d.rings[0], buffer, 64, i));
        }
        assert_int_equal(broken, 1000);
        machine_destroy(m);
        driver_end(&d);
    }
}

/* An invalidation for a device that is off, and one during a reset. */
static void test_row_19_invalidation_at_any_time(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD, .drain_keeps = true}};
    struct machine *m = machine_create(&config);
    uint64_t page = guest_alloc(&m->heap[0], 2 * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE).addr;
    gpa_t buffer = guest_alloc(&m->heap[0], 4096, 8);
    struct driver d;

    (void)state;
    machine_balloon_out(m, page, 1);
    assert_true(fake_answered(m->fake, 1, NULL));
    driver_start(&d, m, F_VERSION_1, 1, 16);
    driver_add_echo(&d.rings[0], buffer, 64, 1, false);
    driver_kick(&d, 0);
    /* Reset first, then the invalidation; and the other way round. */
    machine_write_start(m, 2, VIRTIO_MMIO_STATUS, 0);
    fake_trap(m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
    machine_settle(m);
    assert_false(fake_answered(m->fake, 1, NULL));
    test_device_complete(test_device(m->dev), 0);
    machine_settle(m);
    assert_true(fake_answered(m->fake, 1, NULL));
    assert_true(fake_answered(m->fake, 2, NULL));
    driver_restart(&d);
    driver_add_echo(&d.rings[0], buffer, 64, 1, false);
    driver_kick(&d, 0);
    fake_trap(m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
    machine_settle(m);
    machine_write_start(m, 2, VIRTIO_MMIO_STATUS, 0);
    test_device_complete(test_device(m->dev), 0);
    machine_settle(m);
    assert_true(fake_answered(m->fake, 1, NULL));
    assert_true(fake_answered(m->fake, 2, NULL));
    driver_restart(&d);
    test_device(m->dev)->config.mode = TEST_ECHO;
    driver_add_echo(&d.rings[0], buffer, 64, 1, false);
    driver_kick(&d, 0);
    assert_int_equal(get_all(&d.rings[0]), 1);
    machine_destroy(m);
    driver_end(&d);
}

/* A million notifications of nothing, and as many refused set-ups: a handful of lines. */
static void test_row_25_log_flood(void **state)
{
    struct machine *m = machine_create(NULL);
    struct capture c = capture_stderr();
    int64_t start = monotonic_ns();
    struct driver d;
    unsigned lines, seconds;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    for (uint32_t i = 0; i < 1000000; i++) {
        struct mmio_request request = {.kind = REQUEST_WRITE, .size = 4, .data = i | 1};

        virtio_mmio_access(m->mmio, VIRTIO_MMIO_QUEUE_NOTIFY, &request);
    }
    machine_settle(m);
    for (unsigned i = 0; i < 20000; i++) {
        /* Features that were not offered, a queue that cannot be. */
        machine_write32(m, VIRTIO_MMIO_STATUS, 0);
        machine_write32(m, VIRTIO_MMIO_STATUS, 8);
        machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
    }
    for (unsigned i = 0; i < 2000; i++) {
        driver_restart(&d);
        ram_store16(avail_idx(&d.rings[0]), 0x8000);
        driver_kick(&d, 0);
        assert_true(needs_reset(m));
    }
    seconds = (unsigned)((monotonic_ns() - start) / 1000000000) + 1;
    lines = captured_lines(&c);
    /* At most one line per class and second; there are three classes here. */
    assert_in_range(lines, 1, 3 * seconds + 3);
    machine_destroy(m);
    driver_end(&d);
}

/* A storm of notifications is one message; a turn takes a bounded number of requests. */
static void test_row_26_notification_storm(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD, .queue_size = 256, .n_queues = 2}};
    struct machine *m = machine_create(&config);
    gpa_t buffer = guest_alloc(&m->heap[0], 4096, 8);
    uint64_t turns, taken;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 2, 256);
    for (unsigned i = 0; i < 1000000; i++) {
        struct mmio_request request = {.kind = REQUEST_WRITE, .size = 4, .data = i % 2};

        virtio_mmio_access(m->mmio, VIRTIO_MMIO_QUEUE_NOTIFY, &request);
    }
    turns = atomic_load(&loop_stats(m->loop)->turns);
    machine_settle(m);
    assert_in_range(atomic_load(&loop_stats(m->loop)->turns) - turns, 1, 8);

    for (unsigned i = 0; i < 128; i++)
        driver_add_echo(&d.rings[0], buffer, 8, i, false);
    taken = test_device(m->dev)->requests;
    machine_turn(m);
    assert_in_range(test_device(m->dev)->requests - taken, 1, 64);
    machine_settle(m);
    assert_int_equal(test_device(m->dev)->requests - taken, 128);
    machine_destroy(m);
    driver_end(&d);
}

/* A driver that posts and posts: what is in flight is bounded by the size of the queue. */
static void test_row_26_posts_without_end(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine_config config = {.test = {.mode = TEST_HOLD, .queue_size = 16}};
        struct machine *m = machine_create(&config);
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | (packed ? F_PACKED : 0), 1, 16);
        for (unsigned i = 0; i < 1000; i++) {
            struct ring *r = &d.rings[0];
            uint64_t at = m->heap[0].end;

            /* Not caring what is in flight. */
            if (packed) {
                uint16_t flags = packed_avail_flags(i / 16 % 2 == 0);

                packed_desc_write(&r->packed_desc[i % 16], at, 8, (uint16_t)(i % 16),
                                  (uint16_t)(VRING_DESC_F_WRITE | flags));
            } else {
                split_desc_write(&r->split_desc[i % 16], at, 8, VRING_DESC_F_WRITE, 0);
                ram_store16(avail_entry(r, i % 16), (uint16_t)(i % 16));
                ram_store16(avail_idx(r), (uint16_t)(i + 1));
            }
            driver_kick(&d, 0);
            assert_in_range(test_device(m->dev)->n_held, 0, 16);
        }
        assert_in_range(test_device(m->dev)->max_held, 1, 16);
        driver_restart(&d);
        machine_destroy(m);
        driver_end(&d);
    }
}

/*
 * Whatever a driver writes where, in whatever order: no assertion is reached from there, no access
 * stays open when nothing is in flight, and a proper reset makes the device work.
 */
static void test_row_27_random_accesses(void **state)
{
    static const uint32_t values[] = {0, 1, 2, 3, 8, 11, 15, 16, 64, 255, 256, 0xffff, 0x10000,
                                      FAKE_BANK0_BASE, FAKE_BANK0_BASE + 0x1000, 0x80000000,
                                      UINT32_MAX, 0x40};
    struct machine_config config = {
        .test = {.n_queues = 2, .config_len = 30, .config_writable = true, .echo_max = 4096}};
    struct machine *m = machine_create(&config);
    struct capture c = capture_stderr();
    uint32_t seed = 0xfeedbeef;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET | F_INDIRECT, 2, 64);
    for (unsigned i = 0; i < 200000; i++) {
        uint32_t r = next_random(&seed), offset = next_random(&seed) % VIRTIO_MMIO_WINDOW;
        uint32_t value = values[next_random(&seed) % ARRAY_SIZE(values)];
        unsigned size = r % 8 == 0 ? 1u << (r >> 8) % 4 : 4;

        if (size == 4 && r % 16 != 1)
            offset &= ~3u;
        /* Mostly where something happens. */
        if (r % 3 == 0)
            offset = VIRTIO_MMIO_QUEUE_SEL + (offset & 0x9c);
        if ((r >> 16) % 4 == 0)
            machine_read(m, offset, size);
        else
            machine_write(m, offset, size, value);
        /* And something in the ring. */
        if ((r >> 20) % 4 == 0) {
            uint8_t *p = fake_ram(m->fake, d.rings[r >> 24 & 1].desc.addr, 64 * 16);

            p[next_random(&seed) % (64 * 16)] = (uint8_t)next_random(&seed);
            ram_store16(avail_entry(&d.rings[0], r >> 26), (uint16_t)value);
            ram_store16(avail_idx(&d.rings[0]), (uint16_t)i);
        }
        if (i % 1000 == 0) {
            driver_restart(&d);
            for (uint16_t q = 0; q < 2; q++) {
                gpa_t buffer = {m->heap[0].end + 4096u * q};

                driver_add_echo(&d.rings[q], buffer, 64, i, true);
                driver_kick(&d, q);
                assert_int_equal(get_all(&d.rings[q]), 1);
                assert_true(driver_check_echo(&d.rings[q], buffer, 64, i));
            }
        }
    }
    captured_lines(&c);
    machine_destroy(m);
    driver_end(&d);
}

/* No assert in the code that looks at what a guest wrote; only compile-time ones. */
static void test_row_27_no_assert_in_guest_facing_code(void **state)
{
    static const char *const files[] = {"virtqueue.c",        "virtqueue_split.c",
                                        "virtqueue_packed.c", "virtqueue_internal.h",
                                        "virtio_mmio.c",      "guest_memory.c"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char path[512], line[512];
        FILE *f;

        snprintf(path, sizeof(path), "%s/src/%s", VIOD_SOURCE_DIR, files[i]);
        f = fopen(path, "r");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f) != NULL) {
            const char *p = strstr(line, "assert(");

            assert_true(p == NULL || (p > line && p[-1] == '_'));
            assert_null(strstr(line, "abort("));
        }
        fclose(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_13_buffers_on_the_registers),
        cmocka_unit_test(test_row_15_everything_fails_once),
        cmocka_unit_test(test_row_15_no_memory_for_a_while),
        cmocka_unit_test(test_row_19_data_pages_ballooned_mid_request),
        cmocka_unit_test(test_row_19_ring_pages_ballooned),
        cmocka_unit_test(test_row_19_invalidation_at_any_time),
        cmocka_unit_test(test_row_25_log_flood),
        cmocka_unit_test(test_row_26_notification_storm),
        cmocka_unit_test(test_row_26_posts_without_end),
        cmocka_unit_test(test_row_27_random_accesses),
        cmocka_unit_test(test_row_27_no_assert_in_guest_facing_code),
    };

    return cmocka_run_group_tests_name("virtio_hostile", tests, NULL, NULL);
}
