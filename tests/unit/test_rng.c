/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy device: its bytes, its limit, and what a hostile driver may do to it. */
#include "driver.h"
#include "unit.h"

#include <stdio.h>
#include <time.h>

#include "config.h"
#include "devices/table.h"

#define NEVER "period=3600000" /* ms: no test lives that long */
#define REQUEST_MAX 4096u
#define UNWRITTEN 0xee

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    gpa_t buffer; /* 64 KiB */
};

static void start(struct test *t, const char *const *presets, uint64_t features)
{
    const struct machine_config machine = {.ops = &virtio_rng_ops, .device = &t->config};
    char error[CONFIG_ERROR_LEN];

    memset(t, 0, sizeof(*t));
    strcpy(t->config.name, "rng0");
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = 1;
    if (device_config_fill(&t->config, device_type_by_id(4), NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    t->m = machine_create(&machine);
    driver_start(&t->driver, t->m, features | F_VERSION_1, 1, 64);
    t->buffer = guest_alloc(&t->m->heap[0], 65536, 4096);
    memset(fake_ram(t->m->fake, t->buffer.addr, 65536), UNWRITTEN, 65536);
}

static void end(struct test *t)
{
    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
}

static uint8_t *ram(struct test *t, size_t offset)
{
    return fake_ram(t->m->fake, t->buffer.addr + offset, 1);
}

static void add(struct test *t, size_t offset, uint32_t len)
{
    struct segment in = {{t->buffer.addr + offset}, len};

    assert_true(ring_add(&t->driver.rings[0], NULL, 0, &in, 1, t, false) >= 0);
    driver_kick(&t->driver, 0);
    machine_settle(t->m);
}

/* The used length of the next buffer; -1: none is back. */
static int64_t take(struct test *t)
{
    struct ring_used used;

    return ring_get(&t->driver.rings[0], &used) ? (int64_t)used.len : -1;
}

static unsigned count(const uint8_t *p, size_t len, uint8_t value)
{
    unsigned n = 0;

    for (size_t i = 0; i < len; i++)
        n += p[i] == value;
    return n;
}

static void test_bytes(void **state)
{
    static const uint64_t features[] = {0, F_PACKED, F_EVENT_IDX | F_INDIRECT, F_PACKED | F_IN_ORDER};
    const char *const presets[] = {"packed=yes", "in-order=yes", NULL};
    struct test t;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        start(&t, presets, features[i]);
        assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_DEVICE_ID), 4);
        add(&t, 0, 1000);
        add(&t, 2000, 1000);
        assert_int_equal(take(&t), 1000);
        assert_int_equal(take(&t), 1000);
        /* Nothing beyond the buffers; within them each byte value about as often as any other. */
        assert_int_equal(count(ram(&t, 1000), 1000, UNWRITTEN), 1000);
        assert_int_equal(count(ram(&t, 3000), 1000, UNWRITTEN), 1000);
        for (unsigned value = 0; value < 256; value++)
            assert_true(count(ram(&t, 0), 1000, (uint8_t)value) < 40);
        assert_memory_not_equal(ram(&t, 0), ram(&t, 2000), 1000);
        assert_int_equal(stat_get(&t.m->stats->queues[0].requests), 2);
        assert_int_equal(stat_get(&t.m->stats->queues[0].read_bytes), 2000);
        end(&t);
    }
}

static void test_large_request(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL, 0);
    add(&t, 0, 65536);
    assert_int_equal(take(&t), REQUEST_MAX);
    assert_int_equal(count(ram(&t, REQUEST_MAX), 65536 - REQUEST_MAX, UNWRITTEN), 65536 - REQUEST_MAX);
    end(&t);
}

static void test_limit(void **state)
{
    const char *const presets[] = {"max-bytes=1500", NEVER, NULL};
    struct test t;

    (void)state;
    start(&t, presets, F_EVENT_IDX);
    add(&t, 0, 1000);
    add(&t, 1000, 1000);
    add(&t, 2000, 1000);
    assert_int_equal(take(&t), 1000);
    assert_int_equal(take(&t), 500);
    assert_int_equal(take(&t), -1);
    assert_int_equal(virtqueue_in_flight(t.m->dev->queues[0].vq), 0);
    /* A reset brings nothing back ... */
    driver_restart(&t.driver);
    add(&t, 0, 1000);
    assert_int_equal(take(&t), -1);
    /* ... and an INVALIDATE does not wait for the period's end. */
    machine_balloon_out(t.m, t.buffer.addr + 8 * GUEST_PAGE_SIZE, 1);
    assert_int_equal(fake_counts(t.m->fake).mapped_pages, 0);
    end(&t);
}

static void test_limit_ends(void **state)
{
    const char *const presets[] = {"max-bytes=100", "period=50", NULL};
    int64_t before = monotonic_ns();
    int64_t total = 0, len;
    uint64_t turns;
    struct test t;

    (void)state;
    start(&t, presets, 0);
    for (unsigned i = 0; i < 5; i++)
        add(&t, i * 100, 100);
    turns = stat_get(&loop_stats(t.m->loop)->turns);
    while (total < 500) {
        event_loop_turn(t.m->loop, 1000000000);
        machine_settle(t.m);
        while ((len = take(&t)) >= 0)
            total += len;
    }
    assert_int_equal(total, 500);
    assert_true(monotonic_ns() - before >= 200 * INT64_C(1000000));
    /* And it sleeps meanwhile: a turn or two for each period. */
    assert_true(stat_get(&loop_stats(t.m->loop)->turns) - turns < 500);
    end(&t);
}

static void test_no_limit(void **state)
{
    const char *const presets[] = {"max-bytes=0", NEVER, NULL};
    struct test t;

    (void)state;
    start(&t, presets, 0);
    for (unsigned i = 0; i < 2000; i++) {
        add(&t, 0, REQUEST_MAX);
        assert_int_equal(take(&t), REQUEST_MAX);
    }
    end(&t);
}

/* ---- the hostile driver; row numbers of the catalogue ---- */

static void test_row_08_odd_buffers(void **state)
{
    struct segment out, in[3];
    struct test t;

    (void)state;
    start(&t, NULL, 0);
    /* Only readable: nothing is written to it. */
    out = (struct segment){t.buffer, 64};
    assert_true(ring_add(&t.driver.rings[0], &out, 1, NULL, 0, &t, false) >= 0);
    driver_kick(&t.driver, 0);
    machine_settle(t.m);
    assert_int_equal(take(&t), 0);
    assert_int_equal(count(ram(&t, 0), 64, UNWRITTEN), 64);
    /* Length 0, overlapping, in pieces. */
    in[0] = (struct segment){t.buffer, 0};
    in[1] = (struct segment){t.buffer, 64};
    in[2] = (struct segment){{t.buffer.addr + 32}, 64};
    assert_true(ring_add(&t.driver.rings[0], &out, 1, in, 3, &t, false) >= 0);
    driver_kick(&t.driver, 0);
    machine_settle(t.m);
    assert_int_equal(take(&t), 128);
    assert_int_equal(count(ram(&t, 96), 64, UNWRITTEN), 64);
    assert_int_equal(stat_get(&t.m->stats->queues[0].errors), 1);
    end(&t);
}

static void test_row_12_buffer_in_a_hole(void **state)
{
    struct segment in[2];
    struct test t;

    (void)state;
    start(&t, NULL, 0);
    in[0] = (struct segment){{MACHINE_BASE}, 64};
    in[1] = (struct segment){t.buffer, 64};
    assert_true(ring_add(&t.driver.rings[0], NULL, 0, in, 2, &t, false) >= 0);
    driver_kick(&t.driver, 0);
    machine_settle(t.m);
    assert_int_equal(take(&t), 0);
    assert_int_equal(count(ram(&t, 0), 64, UNWRITTEN), 64);
    add(&t, 0, 64);
    assert_int_equal(take(&t), 64);
    end(&t);
}

static void test_row_14_reset_while_requests_wait(void **state)
{
    const char *const presets[] = {"max-bytes=10", NEVER, NULL};
    struct test t;

    (void)state;
    for (unsigned first = 0; first < 2; first++) {
        start(&t, presets, F_RING_RESET);
        add(&t, 0, 10);
        add(&t, 100, 10);
        assert_int_equal(take(&t), 10);
        if (first == 0) /* the queue before the device */
            driver_reset_queue(t.m, 0);
        machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
        assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS), 0);
        assert_int_equal(count(ram(&t, 100), 10, UNWRITTEN), 10);
        end(&t);
    }
}

static void test_row_17_no_configuration_space(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL, 0);
    for (uint32_t offset = 0; offset < 0x100; offset++) {
        assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + offset, 1), 0);
        machine_write(t.m, VIRTIO_MMIO_CONFIG + offset, 1, 0xff);
    }
    end(&t);
}

/* Row 19: the buffer's page goes while the request waits for the next period. */
static void test_row_19_ballooning(void **state)
{
    const char *const presets[] = {"max-bytes=10", "period=50", NULL};
    struct segment in[2];
    struct test t;
    gpa_t page;

    (void)state;
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        skip(); /* a page that is granted cannot go */
    start(&t, presets, 0);
    page = guest_alloc(&t.m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    for (unsigned i = 0; i < 4; i++) {
        int64_t len = -1;

        add(&t, 0, 10);
        while (take(&t) < 0) {
            event_loop_turn(t.m->loop, 1000000);
            machine_settle(t.m);
        }
        in[0] = (struct segment){page, 8};
        in[1] = (struct segment){t.buffer, 2};
        assert_true(ring_add(&t.driver.rings[0], NULL, 0, in, 2, &t, false) >= 0);
        driver_kick(&t.driver, 0);
        machine_balloon_out(t.m, page.addr, 1);
        while ((len = take(&t)) < 0) {
            event_loop_turn(t.m->loop, 1000000);
            machine_settle(t.m);
        }
        /* Unless the period was over before the page went. */
        assert_true(len == 0 || len == 10);
        fake_balloon_in(t.m->fake, page.addr, 1);
    }
    end(&t);
}

static void test_row_26_posts_without_end(void **state)
{
    const char *const presets[] = {"max-bytes=1000", NEVER, NULL};
    uint64_t turns;
    struct test t;

    (void)state;
    start(&t, presets, 0);
    add(&t, 0, 1000);
    for (unsigned i = 0; i < 63; i++)
        add(&t, 0, 1000);
    /* It sleeps, although the ring is full of requests and the driver keeps knocking. */
    turns = stat_get(&loop_stats(t.m->loop)->turns);
    for (unsigned i = 0; i < 1000; i++)
        driver_kick(&t.driver, 0);
    assert_true(stat_get(&loop_stats(t.m->loop)->turns) - turns < 10000);
    assert_int_equal(stat_get(&t.m->stats->queues[0].requests), 1);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_large_request),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_limit_ends),
        cmocka_unit_test(test_no_limit),
        cmocka_unit_test(test_row_08_odd_buffers),
        cmocka_unit_test(test_row_12_buffer_in_a_hole),
        cmocka_unit_test(test_row_14_reset_while_requests_wait),
        cmocka_unit_test(test_row_17_no_configuration_space),
        cmocka_unit_test(test_row_19_ballooning),
        cmocka_unit_test(test_row_26_posts_without_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
