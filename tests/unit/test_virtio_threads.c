/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real I/O thread, a guest thread that breaks rings while the device looks at them, and vCPUs
 * that reset and notify: rows 7, 14, 19 and 26 as races. Meant for ThreadSanitizer and
 * AddressSanitizer.
 */
#include "driver.h"
#include "unit.h"

#include <linux/virtio_config.h>

#define SECONDS(s) ((s) * INT64_C(1000000000))

static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static struct machine *threaded(uint16_t n_queues)
{
    struct machine_config config = {.io_thread = true,
                                    .test = {.n_queues = n_queues, .echo_max = 4096}};

    return machine_create(&config);
}

/* Waits for the next used buffer while the MMIO thread goes on. */
static void wait_used(struct machine *m, struct ring *ring, struct ring_used *used)
{
    int64_t end = monotonic_ns() + SECONDS(20);

    while (!ring_get(ring, used)) {
        assert_true(monotonic_ns() < end);
        machine_turn(m);
    }
}

/*
 * Notifications and interrupts as a good driver uses them, across threads: the device sleeps and is
 * woken only by what it asked for. A lost one hangs here.
 */
static void ping_pong(uint64_t features)
{
    struct machine *m = threaded(1);
    gpa_t buffer = guest_alloc(&m->heap[0], 4096, 8);
    struct ring_used used;
    struct driver d;

    driver_start(&d, m, features | F_VERSION_1, 1, 16);
    for (uint32_t i = 0; i < 2000; i++) {
        ring_interrupts_on(&d.rings[0]);
        driver_add_echo(&d.rings[0], buffer, 64, i, false);
        driver_kick_if_needed(&d, 0);
        if (i % 2 == 0) {
            wait_used(m, &d.rings[0], &used);
        } else {
            /* By the interrupt alone. */
            while (!ring_get(&d.rings[0], &used)) {
                assert_true(fake_wait_irq(m->fake, MACHINE_IRQ, 20000));
                fake_take_irqs(m->fake, MACHINE_IRQ);
                driver_take_isr(m);
            }
        }
        assert_int_equal(used.len, 64);
        assert_true(driver_check_echo(&d.rings[0], buffer, 64, i));
        fake_take_irqs(m->fake, MACHINE_IRQ);
        driver_take_isr(m);
    }
    machine_destroy(m);
    driver_end(&d);
}

static void test_no_notification_is_lost(void **state)
{
    (void)state;
    ping_pong(0);
    ping_pong(F_EVENT_IDX);
    ping_pong(F_PACKED);
    ping_pong(F_PACKED | F_EVENT_IDX);
    ping_pong(F_PACKED | F_EVENT_IDX | F_IN_ORDER);
}

/* Flips bytes of ring memory, as another CPU of the guest would. */
struct flipper {
    uint8_t *areas[3];
    size_t sizes[3];
    atomic_bool stop;
    uint64_t flips;
    pthread_t thread;
};

static void *flip(void *arg)
{
    struct flipper *f = arg;
    uint32_t seed = 0xdecafbad;

    while (!atomic_load_explicit(&f->stop, memory_order_relaxed)) {
        unsigned area = next_random(&seed) % 3;
        uint8_t *p = f->areas[area];
        size_t at = next_random(&seed) % f->sizes[area];
        uint8_t old = __atomic_load_n(&p[at], __ATOMIC_RELAXED);

        __atomic_store_n(&p[at], (uint8_t)next_random(&seed), __ATOMIC_RELAXED);
        for (unsigned i = next_random(&seed) % 64; i > 0; i--)
            cpu_relax();
        /* Often it is put right again, so that the device gets further. */
        if (next_random(&seed) % 8 != 0)
            __atomic_store_n(&p[at], old, __ATOMIC_RELAXED);
        f->flips++;
    }
    return NULL;
}

static void race(uint64_t features, bool indirect)
{
    struct machine *m = threaded(1);
    gpa_t buffer = guest_alloc(&m->heap[0], 65536, 8);
    int64_t end = monotonic_ns() + SECONDS(1);
    unsigned broken = 0, rounds = 0;
    struct flipper f = {0};
    struct ring_used used;
    struct driver d;

    driver_start(&d, m, features | F_VERSION_1, 1, 16);
    f.sizes[0] = 16 * 16;
    f.sizes[1] = f.sizes[2] = d.rings[0].packed ? 4 : 6 + 2 * 16;
    f.areas[0] = fake_ram_alias(m->fake, d.rings[0].desc.addr, f.sizes[0]);
    f.areas[1] = fake_ram_alias(m->fake, d.rings[0].driver.addr, f.sizes[1]);
    f.areas[2] = fake_ram_alias(m->fake, d.rings[0].device.addr, f.sizes[2]);
    assert_int_equal(pthread_create(&f.thread, NULL, flip, &f), 0);
    /* On a busy machine it takes a while until the race is won once. */
    while (monotonic_ns() < end || (broken == 0 && monotonic_ns() < end + SECONDS(30))) {
        uint32_t status;

        rounds++;
        /* A driver that does not care what comes back: adds, kicks, acknowledges, resets. */
        for (uint32_t i = 0; i < 6; i++)
            driver_add_echo(&d.rings[0], (gpa_t){buffer.addr + 1024 * i}, 64, i, indirect);
        driver_kick(&d, 0);
        driver_kick(&d, 0);
        driver_take_isr(m);
        status = machine_read32(m, VIRTIO_MMIO_STATUS);
        if ((status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0)
            broken++;
        if ((status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0 || rounds % 4 == 0)
            driver_restart(&d);
        else
            ring_restart(&d.rings[0], 16); /* under the device's feet */
    }
    atomic_store(&f.stop, true);
    pthread_join(f.thread, NULL);
    for (unsigned i = 0; i < 3; i++)
        fake_ram_alias_free(f.areas[i], f.sizes[i]);
    assert_true(f.flips > 0 && broken > 0);
    /* The device is as good as new. */
    driver_restart(&d);
    for (uint32_t i = 0; i < 100; i++) {
        driver_add_echo(&d.rings[0], buffer, 64, i, false);
        driver_kick(&d, 0);
        wait_used(m, &d.rings[0], &used);
        assert_true(driver_check_echo(&d.rings[0], buffer, 64, i));
    }
    machine_destroy(m);
    driver_end(&d);
}

static void test_row_07_racing_writer(void **state)
{
    (void)state;
    race(0, false);
    race(F_EVENT_IDX | F_INDIRECT, true);
    race(F_PACKED, false);
    race(F_PACKED | F_EVENT_IDX | F_INDIRECT | F_IN_ORDER, true);
}

/* Resets, queue resets, notifications and configuration changes while requests run. */
static void test_row_14_resets_under_load(void **state)
{
    struct machine *m = threaded(2);
    gpa_t buffer = guest_alloc(&m->heap[0], 65536, 8);
    uint32_t seed = 99;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 2, 32);
    for (unsigned i = 0; i < 600; i++) {
        for (unsigned k = 0; k < 8; k++) {
            uint16_t q = (uint16_t)(k % 2);

            driver_add_echo(&d.rings[q], (gpa_t){buffer.addr + 4096u * k}, 512, k, false);
            driver_kick(&d, q);
        }
        switch (next_random(&seed) % 4) {
        case 0:
            driver_restart(&d);
            break;
        case 1:
            for (uint16_t q = 0; q < 2; q++) {
                driver_reset_queue(m, q);
                ring_restart(&d.rings[q], 32);
                driver_enable_queue(m, q, &d.rings[q]);
            }
            break;
        case 2:
            virtio_device_config_changed(m->dev);
            machine_turn(m);
            driver_take_isr(m);
            driver_restart(&d);
            break;
        default:
            for (unsigned k = 0; k < 8; k++) {
                struct ring_used used;

                wait_used(m, &d.rings[k % 2], &used);
            }
            break;
        }
    }
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    machine_destroy(m);
    driver_end(&d);
}

/* Pages go and come while the I/O thread works: each invalidation is answered, no data is stale. */
static void test_row_19_ballooning_under_load(void **state)
{
    struct machine *m = threaded(1);
    uint64_t pages = guest_alloc(&m->heap[1], 8 * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE).addr;
    uint32_t seed = 5;
    struct ring_used used;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    for (uint32_t i = 0; i < 1000; i++) {
        uint64_t page = pages + next_random(&seed) % 8 * GUEST_PAGE_SIZE;
        gpa_t buffer = {pages + next_random(&seed) % 8 * GUEST_PAGE_SIZE};

        driver_add_echo(&d.rings[0], buffer, 256, i, false);
        driver_kick(&d, 0);
        if (page != buffer.addr) {
            fake_balloon_out(m->fake, page, 1);
            fake_trap(m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
        }
        wait_used(m, &d.rings[0], &used);
        assert_int_equal(used.len, 256);
        assert_true(driver_check_echo(&d.rings[0], buffer, 256, i));
        if (page != buffer.addr) {
            int64_t end = monotonic_ns() + SECONDS(20);

            while (!fake_answered(m->fake, 1, NULL)) {
                assert_true(monotonic_ns() < end);
                machine_turn(m);
            }
            fake_balloon_in(m->fake, page, 1);
        }
    }
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), 15);
    machine_destroy(m);
    driver_end(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_notification_is_lost),
        cmocka_unit_test(test_row_07_racing_writer),
        cmocka_unit_test(test_row_14_resets_under_load),
        cmocka_unit_test(test_row_19_ballooning_under_load),
    };

    return cmocka_run_group_tests_name("virtio_threads", tests, NULL, NULL);
}
