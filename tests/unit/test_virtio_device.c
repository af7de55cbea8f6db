/* SPDX-License-Identifier: Apache-2.0 */
/* What all devices share, with one that the test controls: requests, resets, pauses, ballooning. */
#include "driver.h"
#include "unit.h"

#include <linux/virtio_config.h>

static gpa_t nth_buffer(struct machine *m, unsigned i)
{
    return (gpa_t){m->heap[0].end - (i + 1) * 256u};
}

static void add(struct driver *d, unsigned queue, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        assert_true(driver_add_echo(&d->rings[queue], nth_buffer(d->m, i), 64, i, false) >= 0);
}

/* Completes held request i on behalf of the device's I/O thread, and lets the loop turn. */
static void complete(struct machine *m, unsigned i)
{
    test_device_complete(test_device(m->dev), i);
    machine_settle(m);
}

static unsigned get_all(struct ring *ring)
{
    struct ring_used used;
    unsigned n = 0;

    while (ring_get(ring, &used))
        n++;
    return n;
}

static unsigned status(struct machine *m) { return machine_read32(m, VIRTIO_MMIO_STATUS); }

static void test_echo_with_every_feature_set(void **state)
{
    static const uint64_t sets[] = {0, F_EVENT_IDX, F_INDIRECT, F_IN_ORDER, F_PACKED,
                                    F_PACKED | F_EVENT_IDX, F_PACKED | F_INDIRECT | F_IN_ORDER,
                                    F_NOTIFICATION_DATA | F_PACKED};

    (void)state;
    for (size_t s = 0; s < ARRAY_SIZE(sets); s++) {
        struct machine_config config = {.test = {.n_queues = 3, .queue_size = 32}};
        struct machine *m = machine_create(&config);
        bool indirect = (sets[s] & F_INDIRECT) != 0;
        struct driver d;

        driver_start(&d, m, sets[s] | F_VERSION_1, 3, 32);
        assert_int_equal(test_device(m->dev)->negotiated, 1);
        assert_int_equal(test_device(m->dev)->started, 3);
        for (unsigned round = 0; round < 200; round++) {
            uint16_t queue = (uint16_t)(round % 3);
            unsigned n = 1 + round % 16;

            for (unsigned i = 0; i < n; i++)
                driver_add_echo(&d.rings[queue], nth_buffer(m, i), 64, round + i, indirect);
            if ((sets[s] & F_EVENT_IDX) != 0)
                ring_interrupts_on(&d.rings[queue]);
            driver_kick(&d, queue);
            assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
            assert_int_equal(driver_take_isr(m), VIRTIO_MMIO_INT_VRING);
            assert_int_equal(get_all(&d.rings[queue]), n);
            for (unsigned i = 0; i < n; i++)
                assert_true(driver_check_echo(&d.rings[queue], nth_buffer(m, i), 64, round + i));
        }
        machine_destroy(m);
        driver_end(&d);
    }
}

static void test_completion_later_and_out_of_order(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine_config config = {.test = {.mode = TEST_HOLD}};
        struct machine *m = machine_create(&config);
        struct ring_used used;
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | (packed ? F_PACKED : 0), 1, 16);
        add(&d, 0, 8);
        driver_kick(&d, 0);
        assert_int_equal(test_device(m->dev)->n_held, 8);
        assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
        assert_false(ring_get(&d.rings[0], &used));
        complete(m, 5);
        assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
        assert_true(ring_get(&d.rings[0], &used));
        assert_ptr_equal(used.token, (void *)6);
        assert_int_equal(used.len, 64);
        driver_take_isr(m);
        while (test_device(m->dev)->n_held > 0)
            complete(m, test_device(m->dev)->n_held - 1);
        assert_int_equal(get_all(&d.rings[0]), 7);
        for (unsigned i = 0; i < 8; i++)
            assert_true(driver_check_echo(&d.rings[0], nth_buffer(m, i), 64, i));
        machine_destroy(m);
        driver_end(&d);
    }
}

/* 2.1.2: the device takes nothing before DRIVER_OK. */
static void test_nothing_is_taken_before_driver_ok(void **state)
{
    struct machine *m = machine_create(NULL);
    struct driver d = {.m = m, .features = F_VERSION_1, .n_queues = 1};

    (void)state;
    ring_create(&d.rings[0], &m->heap[0], 16, F_VERSION_1);
    assert_true(driver_negotiate(m, F_VERSION_1));
    driver_enable_queue(m, 0, &d.rings[0]);
    add(&d, 0, 3);
    driver_kick(&d, 0);
    machine_settle(m);
    assert_int_equal(test_device(m->dev)->requests, 0);
    driver_add_status(m, VIRTIO_CONFIG_S_DRIVER_OK);
    machine_settle(m);
    /* Found without another notification. */
    assert_int_equal(get_all(&d.rings[0]), 3);
    machine_destroy(m);
    driver_end(&d);
}

/*
 * Status reads 0 only when the queues are quiet: with 5 requests held, `before` of them completed
 * before the driver writes 0, the others one by one while it waits. A second vCPU does the same.
 */
static void reset_at_step(unsigned before, uint64_t features, bool twice)
{
    struct machine_config config = {
        .test = {.mode = TEST_HOLD, .drain_keeps = true, .n_queues = 2}};
    struct machine *m = machine_create(&config);
    struct driver d;

    driver_start(&d, m, F_VERSION_1 | features, 2, 16);
    add(&d, 0, 5);
    driver_kick(&d, 0);
    for (unsigned i = 0; i < before; i++)
        complete(m, 0);
    machine_write_start(m, 1, VIRTIO_MMIO_STATUS, 0);
    machine_settle(m);
    if (before < 5) {
        assert_false(fake_answered(m->fake, 1, NULL));
        assert_int_equal(status(m), 15);
    }
    for (unsigned left = 5 - before; left > 0; left--) {
        assert_false(fake_answered(m->fake, 1, NULL));
        if (twice && left == 5 - before)
            machine_write_start(m, 2, VIRTIO_MMIO_STATUS, 0);
        assert_int_not_equal(status(m), 0);
        assert_int_equal(test_device(m->dev)->resets, 1); /* the one of driver_start */
        /* Nothing can be set up meanwhile. */
        machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
        machine_write32(m, VIRTIO_MMIO_STATUS, 15);
        machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        complete(m, left - 1);
    }
    assert_true(fake_answered(m->fake, 1, NULL));
    if (twice && before < 5)
        assert_true(fake_answered(m->fake, 2, NULL));
    assert_int_equal(status(m), 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_int_equal(test_device(m->dev)->resets, 2);
    assert_int_equal(test_device(m->dev)->stopped, 2);
    assert_int_equal(virtqueue_in_flight(m->dev->queues[0].vq), 0);
    /* And all over again. */
    driver_restart(&d);
    test_device(m->dev)->config.mode = TEST_ECHO;
    add(&d, 0, 5);
    driver_kick(&d, 0);
    assert_int_equal(get_all(&d.rings[0]), 5);
    machine_destroy(m);
    driver_end(&d);
}

static void test_row_14_reset_at_every_completion_step(void **state)
{
    (void)state;
    for (unsigned before = 0; before <= 5; before++) {
        reset_at_step(before, 0, false);
        reset_at_step(before, F_PACKED, false);
        reset_at_step(before, F_IN_ORDER, false);
    }
}

static void test_row_14_double_reset(void **state)
{
    (void)state;
    for (unsigned before = 0; before < 5; before++)
        reset_at_step(before, before % 2 ? F_PACKED : 0, true);
}

/* Buffers that would be held for ever are given back by queue_drain. */
static void test_row_14_reset_with_posted_buffers(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    add(&d, 0, 8);
    driver_kick(&d, 0);
    assert_int_equal(test_device(m->dev)->n_held, 8);
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(status(m), 0);
    assert_int_equal(test_device(m->dev)->n_held, 0);
    assert_true(test_device(m->dev)->drained >= 1);
    machine_destroy(m);
    driver_end(&d);
}

/* 4.2.2.2: QueueReady = 0 is answered when the queue is quiet; the other queue goes on. */
static void test_queue_off_with_requests_in_flight(void **state)
{
    struct machine_config config = {
        .test = {.mode = TEST_HOLD, .drain_keeps = true, .n_queues = 2}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 2, 16);
    add(&d, 0, 2);
    driver_kick(&d, 0);
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, 0);
    machine_write_start(m, 1, VIRTIO_MMIO_QUEUE_READY, 0);
    complete(m, 0);
    assert_false(fake_answered(m->fake, 1, NULL));
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
    add(&d, 1, 1);
    driver_kick(&d, 1);
    assert_int_equal(test_device(m->dev)->n_held, 2);
    complete(m, 1);
    assert_int_equal(get_all(&d.rings[1]), 1);
    complete(m, 0);
    assert_true(fake_answered(m->fake, 1, NULL));
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    /* An unready queue's notification means nothing; enabled again it works. */
    driver_kick(&d, 0);
    ring_restart(&d.rings[0], 8);
    driver_enable_queue(m, 0, &d.rings[0]);
    add(&d, 0, 4);
    driver_kick(&d, 0);
    while (test_device(m->dev)->n_held > 0)
        complete(m, 0);
    assert_int_equal(get_all(&d.rings[0]), 4);
    machine_destroy(m);
    driver_end(&d);
}

/* 2.6.1: QueueReset reads 1 while it goes on, then QueueReset and QueueReady read 0. */
static void test_ring_reset(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine_config config = {
            .test = {.mode = TEST_HOLD, .drain_keeps = true, .n_queues = 2, .queue_size = 64}};
        struct machine *m = machine_create(&config);
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_RING_RESET | (packed ? F_PACKED : 0), 2, 64);
        for (uint16_t size = 64; size >= 4; size = (uint16_t)(size / 2)) {
            add(&d, 0, 2);
            driver_kick(&d, 0);
            machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, 0);
            machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 1);
            machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
            machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 0);
            complete(m, 1);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 1);
            complete(m, 0);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 0);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
            assert_int_equal(status(m), 15);
            /* Another size; the other queue has worked all the time. */
            ring_restart(&d.rings[0], size);
            driver_enable_queue(m, 0, &d.rings[0]);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 0);
            for (uint16_t q = 0; q < 2; q++) {
                add(&d, q, 2);
                driver_kick(&d, q);
                complete(m, 1);
                complete(m, 0);
                assert_int_equal(get_all(&d.rings[q]), 2);
            }
        }
        machine_destroy(m);
        driver_end(&d);
    }
}

static void test_ring_reset_that_was_not_negotiated(void **state)
{
    struct machine *m = machine_create(NULL);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, 0);
    machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
    machine_destroy(m);
    driver_end(&d);
}

/* Queue reset before DRIVER_OK, and of a queue that is off: done at once. */
static void test_ring_reset_of_a_queue_that_does_not_run(void **state)
{
    struct machine *m = machine_create(NULL);
    struct ring ring;

    (void)state;
    ring_create(&ring, &m->heap[0], 16, F_VERSION_1);
    assert_true(driver_negotiate(m, F_VERSION_1 | F_RING_RESET));
    driver_reset_queue(m, 0);
    driver_enable_queue(m, 0, &ring);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
    driver_reset_queue(m, 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    machine_destroy(m);
    ring_destroy(&ring);
}

/* A reset of the device overtakes one of a queue. */
static void test_device_reset_during_ring_reset(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD, .drain_keeps = true}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 1, 16);
    add(&d, 0, 1);
    driver_kick(&d, 0);
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, 0);
    machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
    machine_write_start(m, 1, VIRTIO_MMIO_STATUS, 0);
    machine_write_start(m, 2, VIRTIO_MMIO_QUEUE_READY, 0);
    assert_false(fake_answered(m->fake, 1, NULL));
    complete(m, 0);
    assert_true(fake_answered(m->fake, 1, NULL));
    assert_true(fake_answered(m->fake, 2, NULL));
    assert_int_equal(status(m), 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 0);
    driver_restart(&d);
    machine_destroy(m);
    driver_end(&d);
}

/* A broken ring: NEEDS_RESET, one configuration interrupt, nothing more is taken; reset heals. */
static void test_needs_reset_and_recovery(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine_config config = {.test = {.mode = TEST_HOLD, .n_queues = 2}};
        struct machine *m = machine_create(&config);
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | (packed ? F_PACKED : 0), 2, 16);
        for (unsigned round = 0; round < 3; round++) {
            add(&d, 0, 2);
            driver_kick(&d, 0);
            fake_take_irqs(m->fake, MACHINE_IRQ);
            if (packed)
                packed_desc_write(&d.rings[0].packed_desc[d.rings[0].avail], 0x1000, 8, 0xffff,
                                  packed_avail_flags(true));
            else
                ram_store16(avail_idx(&d.rings[0]), 0x8000);
            driver_kick(&d, 0);
            assert_int_equal(status(m), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
            assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
            assert_int_equal(driver_take_isr(m), VIRTIO_MMIO_INT_CONFIG);
            /* Neither queue is served any more. */
            add(&d, 1, 1);
            driver_kick(&d, 0);
            driver_kick(&d, 1);
            assert_int_equal(test_device(m->dev)->n_held, 2);
            assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
            /* What was in flight ends quietly. */
            complete(m, 0);
            driver_restart(&d);
            assert_int_equal(status(m), 15);
            assert_int_equal(test_device(m->dev)->n_held, 0);
            add(&d, 0, 1);
            driver_kick(&d, 0);
            complete(m, 0);
            assert_int_equal(get_all(&d.rings[0]), 1);
            driver_take_isr(m);
        }
        assert_int_equal(atomic_load(&m->stats->needs_reset), 3);
        machine_destroy(m);
        driver_end(&d);
    }
}

/* 2.1.2: broken before DRIVER_OK: the bit, but no interrupt. */
static void test_broken_before_driver_ok(void **state)
{
    struct machine *m = machine_create(NULL);

    (void)state;
    assert_true(driver_negotiate(m, F_VERSION_1));
    virtio_device_broken(m->dev, "the test says so");
    virtio_device_broken(m->dev, "the test says so again");
    assert_true((status(m) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
    assert_int_equal(atomic_load(&m->stats->needs_reset), 1);
    machine_destroy(m);
}

/* The device's own error has the same end. */
static void test_device_that_gives_up(void **state)
{
    struct machine *m = machine_create(NULL);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    test_device(m->dev)->work_error = -EPROTO;
    add(&d, 0, 1);
    driver_kick(&d, 0);
    assert_true((status(m) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0);
    driver_restart(&d);
    add(&d, 0, 1);
    driver_kick(&d, 0);
    assert_int_equal(get_all(&d.rings[0]), 1);
    machine_destroy(m);
    driver_end(&d);
}

static unsigned pauses;

static void count_pause(struct virtio_device *dev)
{
    (void)dev;
    pauses++;
}

/* While paused nothing is taken; requests in flight end first; nothing is lost. */
static void test_pause_and_resume(void **state)
{
    struct machine_config config = {
        .test = {.mode = TEST_HOLD, .drain_keeps = true, .n_queues = 2}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    pauses = 0;
    /* A device without a running queue is quiet at once. */
    virtio_device_pause(m->dev, count_pause);
    assert_int_equal(pauses, 1);
    virtio_device_resume(m->dev);

    driver_start(&d, m, F_VERSION_1, 2, 16);
    add(&d, 0, 2);
    driver_kick(&d, 0);
    virtio_device_pause(m->dev, count_pause);
    machine_settle(m);
    assert_int_equal(pauses, 1);
    add(&d, 1, 1);
    driver_kick(&d, 1);
    complete(m, 1);
    assert_int_equal(pauses, 1);
    complete(m, 0);
    assert_int_equal(pauses, 2);
    assert_int_equal(get_all(&d.rings[0]), 2);
    guest_memory_drop(m->memory);
    driver_kick(&d, 1);
    machine_settle(m);
    assert_int_equal(fake_counts(m->fake).mapped_pages, 0);
    assert_int_equal(test_device(m->dev)->n_held, 0);
    virtio_device_resume(m->dev);
    machine_settle(m);
    assert_int_equal(test_device(m->dev)->n_held, 1);
    complete(m, 0);
    assert_int_equal(get_all(&d.rings[1]), 1);
    machine_destroy(m);
    driver_end(&d);
}

/* Reset, queue start and queue stop while paused: nothing is touched before the resume. */
static void test_registers_while_paused(void **state)
{
    struct machine_config config = {.test = {.n_queues = 2}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    pauses = 0;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 2, 16);
    virtio_device_pause(m->dev, count_pause);
    machine_settle(m);
    assert_int_equal(pauses, 1);
    guest_memory_drop(m->memory);
    driver_reset_queue(m, 0);
    ring_restart(&d.rings[0], 8);
    driver_enable_queue(m, 0, &d.rings[0]);
    add(&d, 0, 1);
    driver_kick(&d, 0);
    assert_int_equal(fake_counts(m->fake).mapped_pages, 0);
    driver_restart(&d);
    add(&d, 0, 1);
    add(&d, 1, 1);
    driver_kick(&d, 0);
    driver_kick(&d, 1);
    assert_int_equal(fake_counts(m->fake).mapped_pages, 0);
    /* Set up and off again, all within the pause. */
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, 1);
    machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    virtio_device_resume(m->dev);
    machine_settle(m);
    assert_int_equal(get_all(&d.rings[0]), 1);
    assert_int_equal(get_all(&d.rings[1]), 0);
    machine_destroy(m);
    driver_end(&d);
}

static void detach(struct machine *m)
{
    for (unsigned i = 0; !virtio_device_detach(m->dev); i++) {
        assert_true(i < 10);
        machine_turn(m);
    }
}

/* What was sent to a queue's loop is a part of the queue: the device stays until it has arrived. */
static void test_detached_after_the_last_message(void **state)
{
    struct machine *m = machine_create(NULL);

    (void)state;
    virtio_queue_coalesce(m->dev, 0, 1, 1);
    assert_true(atomic_load(&m->dev->queues[0].kick.pending));
    detach(m);
    assert_false(atomic_load(&m->dev->queues[0].kick.pending));
    machine_destroy(m);
}

/* As the worker does when all of its devices are quiet. */
static void resume_at_once(struct virtio_device *dev) { virtio_device_resume(dev); }

/* The end of a pause is told to a queue that stops in the same moment. */
static void test_detached_after_the_end_of_a_pause(void **state)
{
    struct machine_config config = {.test = {.mode = TEST_HOLD, .drain_keeps = true}};
    struct machine *m = machine_create(&config);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    add(&d, 0, 1);
    driver_kick(&d, 0);
    machine_write_start(m, 0, VIRTIO_MMIO_STATUS, 0);
    virtio_device_pause(m->dev, resume_at_once);
    machine_turn(m);
    test_device_complete(test_device(m->dev), 0);
    while (!fake_answered(m->fake, 0, NULL))
        machine_turn(m);
    detach(m);
    assert_false(atomic_load(&m->dev->queues[0].resume.pending));
    machine_destroy(m);
    driver_end(&d);
}

static void test_create_errors(void **state)
{
    struct machine_config config = {.test = {.create_error = -EINVAL}};
    struct machine *m;
    char error[256];

    (void)state;
    assert_int_equal(machine_try_create(&config, &m, error, sizeof(error)), -EINVAL);
    assert_string_equal(error, "the test wants an error");
    config.test.create_error = 0;
    config.test.n_queues = VIRTIO_QUEUES_MAX + 1;
    assert_int_equal(machine_try_create(&config, &m, error, sizeof(error)), -EINVAL);
    config.test.n_queues = 1;
    config.test.queue_size = VIRTQUEUE_SIZE_MAX + 1;
    assert_int_equal(machine_try_create(&config, &m, error, sizeof(error)), -EINVAL);
    config.test.queue_size = VIRTQUEUE_SIZE_MAX;
    config.test.n_queues = VIRTIO_QUEUES_MAX;
    assert_int_equal(machine_try_create(&config, &m, error, sizeof(error)), 0);
    machine_destroy(m);
}

static void test_counters(void **state)
{
    struct machine *m = machine_create(NULL);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    add(&d, 0, 5);
    driver_kick(&d, 0);
    assert_int_equal(get_all(&d.rings[0]), 5);
    assert_string_equal(m->stats->name, "test0");
    assert_int_equal(atomic_load(&m->stats->device_id), TEST_DEVICE_ID);
    assert_int_equal(atomic_load(&m->stats->n_queues), 1);
    assert_int_equal(atomic_load(&m->stats->status), 15);
    assert_int_equal(atomic_load(&m->stats->features), F_VERSION_1);
    assert_int_equal(stat_get(&m->stats->queues[0].kicks), 1);
    assert_int_equal(stat_get(&m->stats->queues[0].batches), 1);
    assert_int_equal(stat_get(&m->stats->queues[0].interrupts), 1);
    machine_destroy(m);
    driver_end(&d);
}

#define FOREVER_NS (INT64_C(1) << 55)

static uint64_t interrupts(struct machine *m) { return stat_get(&m->stats->queues[0].interrupts); }

static void want_interrupt(struct ring *ring)
{
    if (ring->packed) /* where the next used descriptor will be, as Linux does */
        ring_interrupt_at(ring, (uint16_t)(ring->used | ring->used_wrap << 15));
    else
        ring_interrupts_on(ring);
}

/* The driver's interrupt handler: takes `n` used buffers and waits for more. */
static void handle(struct driver *d, unsigned n)
{
    assert_int_equal(driver_take_isr(d->m), VIRTIO_MMIO_INT_VRING);
    assert_int_equal(get_all(&d->rings[0]), n);
    want_interrupt(&d->rings[0]);
}

static void test_interrupt_of_a_lone_request_never_waits(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(NULL);
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        want_interrupt(&d.rings[0]);
        /* Nothing but this could end a wait. */
        m->dev->irq_hold_max_ns = INT64_MAX;
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        for (unsigned i = 0; i < 100; i++) {
            add(&d, 0, 1);
            driver_kick_if_needed(&d, 0);
            machine_settle(m);
            assert_int_equal(interrupts(m), i + 1);
            handle(&d, 1);
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        }
        machine_destroy(m);
        driver_end(&d);
    }
}

/* Turns the loop until the queue has nothing to do but, perhaps, to wait. */
static void turn(struct driver *d)
{
    for (unsigned i = 0; i < 10; i++) /* an access would wait until there is no work at all */
        machine_turn(d->m);
}

static void test_interrupt_waits_for_a_busy_driver(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(NULL);
        struct virtio_queue *q = &m->dev->queues[0];
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        want_interrupt(&d.rings[0]);
        m->dev->irq_hold_max_ns = INT64_MAX;
        add(&d, 0, 1);
        turn(&d);
        assert_int_equal(interrupts(m), 1);
        /* Another one, although it has been told of the first: it keeps several out. */
        add(&d, 0, 1);
        turn(&d);
        assert_int_equal(q->depth, 2);
        assert_int_equal(interrupts(m), 1);
        handle(&d, 2);
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        for (unsigned batch = 0; batch < 10; batch++) {
            add(&d, 0, 1);
            turn(&d);
            /* Done and visible, and the driver is left alone. */
            assert_int_equal(interrupts(m), 1 + batch);
            add(&d, 0, 1);
            turn(&d);
            assert_int_equal(interrupts(m), 2 + batch);
            handle(&d, 2);
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        }
        /* It adds more than was thought: twice as many are waited for. */
        add(&d, 0, 2);
        turn(&d);
        assert_int_equal(interrupts(m), 12);
        add(&d, 0, 1);
        turn(&d);
        assert_int_equal(q->depth, 4);
        handle(&d, 3);
        /* It adds one only and waits for it: that long, and again; then it is believed. */
        for (unsigned i = 0; i < 4; i++) {
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 1);
            turn(&d);
            assert_int_equal(interrupts(m), q->depth > 1 ? 12 + i : 13 + i);
            atomic_store(&m->dev->irq_cost_ns, 0);
            turn(&d);
            assert_int_equal(interrupts(m), 13 + i);
            handle(&d, 1);
        }
        assert_int_equal(q->depth, 1);
        /* No interrupt is lost to a reset of the queue. */
        machine_destroy(m);
        driver_end(&d);
    }
}

/* Requests in granted memory share the call that fetches them, if the driver is about to add more. */
static void test_granted_requests_are_fetched_together(void **state)
{
    struct machine_config config = {.grants = true, .test = {.queue_size = 64}};
    struct machine *m = machine_create(&config);
    struct virtio_queue *q = &m->dev->queues[0];
    uint64_t copies;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX, 1, 64);
    want_interrupt(&d.rings[0]);
    m->dev->irq_hold_max_ns = INT64_MAX;
    /* A driver that keeps one outstanding is never waited for. */
    atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
    add(&d, 0, 1);
    turn(&d);
    assert_int_equal(test_device(m->dev)->requests, 1);
    handle(&d, 1);
    q->depth = 32;
    atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
    copies = fake_counts(m->fake).grant_copies;
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(test_device(m->dev)->requests, 1);
        assert_int_equal(fake_counts(m->fake).grant_copies, copies);
        add(&d, 0, 1);
        turn(&d);
    }
    /* One call that fetches, one that brings what was done. */
    assert_int_equal(test_device(m->dev)->requests, 9);
    assert_int_equal(fake_counts(m->fake).grant_copies, copies + 2);
    /* Who adds nothing for a while is not waited for. */
    add(&d, 0, 1);
    turn(&d);
    assert_int_equal(test_device(m->dev)->requests, 9);
    q->arrival_ns -= FOREVER_NS;
    turn(&d);
    assert_int_equal(test_device(m->dev)->requests, 10);
    atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
    /* The last ones come one by one, so that none is late for the interrupt. */
    for (unsigned i = 10; i < 33; i++) {
        add(&d, 0, 1);
        turn(&d);
    }
    assert_int_equal(test_device(m->dev)->requests, 33);
    assert_int_equal(interrupts(m), 2);
    handle(&d, 32);
    machine_destroy(m);
    driver_end(&d);
}

/* A driver that was held up is told of what is done, and believed to have more: it is waited for longer. */
static void test_interrupt_waits_longer_for_who_was_held_up(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        const int64_t cost = INT64_C(1) << 40;
        struct machine *m = machine_create(NULL);
        struct virtio_queue *q = &m->dev->queues[0];
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        want_interrupt(&d.rings[0]);
        m->dev->irq_hold_max_ns = INT64_MAX;
        q->depth = 8;
        for (unsigned i = 1; i <= 4; i++) {
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 3);
            turn(&d);
            assert_int_equal(interrupts(m), 2 * i - 2);
            atomic_store(&m->dev->irq_cost_ns, 0); /* it adds nothing */
            turn(&d);
            assert_int_equal(interrupts(m), 2 * i - 1);
            assert_int_equal(q->depth, 8);
            handle(&d, 3);
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 8); /* but had more */
            turn(&d);
            assert_int_equal(interrupts(m), 2 * i);
            assert_int_equal(q->patience, MIN(1u << i, 8u));
            handle(&d, 8);
        }
        atomic_store(&m->dev->irq_cost_ns, cost);
        add(&d, 0, 3);
        turn(&d);
        q->arrival_ns = monotonic_ns() - 7 * cost;
        turn(&d);
        assert_int_equal(interrupts(m), 8);
        q->arrival_ns = monotonic_ns() - 9 * cost;
        turn(&d);
        assert_int_equal(interrupts(m), 9);
        handle(&d, 3);
        /* And less again, once that was in vain. */
        atomic_store(&m->dev->irq_cost_ns, 0);
        add(&d, 0, 3);
        turn(&d);
        assert_int_equal(interrupts(m), 10);
        assert_int_equal(q->patience, 4);
        assert_int_equal(q->depth, 3);
        handle(&d, 3);
        machine_destroy(m);
        driver_end(&d);
    }
}

/*
 * The interrupt for two stops the driver before it has added a third, however many it could: now and then
 * one waits, and shows it.
 */
static void test_interrupt_waits_to_see_whether_more_come(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(NULL);
        struct virtio_queue *q = &m->dev->queues[0];
        struct driver d;
        unsigned i;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        want_interrupt(&d.rings[0]);
        m->dev->irq_hold_max_ns = INT64_MAX;
        q->depth = 2;
        for (i = 0;; i++) {
            assert_in_range(i, 0, 15);
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 2);
            turn(&d);
            if (interrupts(m) == i)
                break;
            handle(&d, 2);
        }
        assert_int_equal(i, 15);
        for (unsigned j = 0; j < 3; j++) {
            add(&d, 0, 2);
            turn(&d);
            assert_int_equal(interrupts(m), i);
        }
        atomic_store(&m->dev->irq_cost_ns, 0);
        turn(&d);
        assert_int_equal(interrupts(m), i + 1);
        assert_int_equal(q->depth, 8);
        handle(&d, 8);
        machine_destroy(m);
        driver_end(&d);
    }
}

#define LONGER_NS (INT64_C(1) << 58)

/* Where the last requests are usually done while an interrupt is on its way, it does not wait for them. */
static void test_interrupt_overtakes_the_last_requests(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine_config config = {.test = {.mode = TEST_HOLD}};
        struct machine *m = machine_create(&config);
        struct virtio_queue *q = &m->dev->queues[0];
        struct test_device *device;
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        device = test_device(m->dev);
        want_interrupt(&d.rings[0]);
        m->dev->irq_hold_max_ns = INT64_MAX;
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        q->depth = 4;
        q->tail_ns = LONGER_NS;
        add(&d, 0, 3);
        turn(&d);
        test_device_complete(device, 0);
        q->tail_ns = 0;
        turn(&d);
        assert_int_equal(interrupts(m), 0); /* one is still to come */
        q->tail_ns = LONGER_NS;
        add(&d, 0, 1);
        turn(&d);
        assert_int_equal(interrupts(m), 0); /* all are here, but take long */
        q->tail_ns = FOREVER_NS;
        turn(&d);
        assert_int_equal(interrupts(m), 1);
        while (device->n_held > 0)
            test_device_complete(device, 0);
        turn(&d);
        /* Done in time, and the driver is not told twice. */
        assert_int_equal(interrupts(m), 1);
        assert_in_range(q->tail_ns, 1, FOREVER_NS - 1); /* and learned from */
        handle(&d, 4);
        assert_int_equal(q->depth, 4);

        /* Late, for once: not lost. */
        q->tail_ns = 100000000;
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        add(&d, 0, 4);
        turn(&d);
        test_device_complete(device, 0);
        turn(&d);
        assert_int_equal(interrupts(m), 2);
        handle(&d, 1);
        while (device->n_held > 0)
            test_device_complete(device, 0);
        atomic_store(&m->dev->irq_cost_ns, 0);
        turn(&d);
        assert_int_equal(interrupts(m), 3);
        handle(&d, 3);
        assert_int_equal(q->depth, 4); /* it has no fewer for that */
        assert_true(q->tail_ns > 140000000); /* but its next interrupt does not come so soon */
        machine_destroy(m);
        driver_end(&d);
    }
}

static void test_held_interrupt_comes_by_itself(void **state)
{
    struct machine *m = machine_create(NULL);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX, 1, 16);
    m->dev->queues[0].depth = 16;
    atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
    m->dev->irq_hold_max_ns = 20 * 1000;
    add(&d, 0, 3);
    while (interrupts(m) == 0)
        machine_turn(m); /* cmocka's time limit is the test's */
    handle(&d, 3);
    /* Nor does it come too late for a pause. */
    m->dev->irq_hold_max_ns = INT64_MAX;
    m->dev->queues[0].depth = 16;
    atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
    add(&d, 0, 3);
    turn(&d);
    assert_int_equal(interrupts(m), 1);
    machine_balloon_out(m, FAKE_BANK1_BASE, 1);
    assert_int_equal(interrupts(m), 2);
    handle(&d, 3);
    machine_destroy(m);
    driver_end(&d);
}

/* As if it had lasted long enough. */
static void end_nap(struct driver *d)
{
    atomic_store(&d->m->dev->irq_cost_ns, 0);
    d->m->dev->queues[0].arrival_ns = 0;
    turn(d);
}

/* Without polling, interrupts wait asleep: who keeps several out is found out by a try now and then. */
static void test_interrupt_waits_asleep(void **state)
{
    struct machine_config config = {.no_polling = true};

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = machine_create(&config);
        struct virtio_queue *q = &m->dev->queues[0];
        uint64_t expected = 0;
        unsigned waited = 0;
        struct driver d;

        driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX | (packed ? F_PACKED : 0), 1, 16);
        want_interrupt(&d.rings[0]);
        m->dev->irq_hold_max_ns = INT64_MAX;
        m->dev->irq_nap_max_ns = INT64_MAX;
        /* A driver that waits for each request: few of its interrupts wait. */
        for (unsigned i = 0; i < 2000; i++) {
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 1);
            turn(&d);
            if (interrupts(m) == expected) {
                waited++;
                end_nap(&d);
            }
            assert_int_equal(interrupts(m), ++expected);
            handle(&d, 1);
        }
        assert_int_equal(waited, 7); /* the 16th, 32nd, 64th, ..., 1024th */
        assert_int_equal(q->depth, 1);

        /* Until it keeps several out: they are found when one waits. */
        q->probe_in = 1;
        for (unsigned i = 0; i < 4; i++) {
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            add(&d, 0, 1);
            if (i == 0)
                (void)ring_needs_kick(&d.rings[0]); /* whatever it was: from here on it counts */
            else
                assert_false(ring_needs_kick(&d.rings[0]));
            turn(&d);
            assert_int_equal(interrupts(m), expected);
            assert_true(q->napping);
            assert_int_not_equal(q->hold_timer.due_ns, 0);
            /* Asleep, the loop asks for no notification: it will look by itself. */
            assert_int_equal(event_loop_turn(m->loop, 1000000), 0);
        }
        end_nap(&d);
        assert_int_equal(interrupts(m), ++expected);
        assert_int_equal(q->depth, 4);
        assert_false(q->napping);
        handle(&d, 4);
        /* From then on one interrupt for all of them, and no nap after the last. */
        for (unsigned i = 0; i < 10; i++) {
            atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
            q->probe_in = 2;
            for (unsigned j = 0; j < 4; j++) {
                assert_int_equal(interrupts(m), expected);
                add(&d, 0, 1);
                turn(&d);
            }
            assert_int_equal(interrupts(m), ++expected);
            assert_int_equal(q->hold_timer.due_ns, 0);
            handle(&d, 4);
        }
        /* A nap ends with a pause, and with the device. */
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        add(&d, 0, 1);
        turn(&d);
        assert_true(q->napping);
        machine_balloon_out(m, FAKE_BANK1_BASE, 1);
        assert_int_equal(interrupts(m), ++expected);
        handle(&d, 1);
        atomic_store(&m->dev->irq_cost_ns, FOREVER_NS);
        add(&d, 0, 1);
        turn(&d);
        machine_destroy(m);
        driver_end(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo_with_every_feature_set),
        cmocka_unit_test(test_completion_later_and_out_of_order),
        cmocka_unit_test(test_nothing_is_taken_before_driver_ok),
        cmocka_unit_test(test_row_14_reset_at_every_completion_step),
        cmocka_unit_test(test_row_14_double_reset),
        cmocka_unit_test(test_row_14_reset_with_posted_buffers),
        cmocka_unit_test(test_queue_off_with_requests_in_flight),
        cmocka_unit_test(test_ring_reset),
        cmocka_unit_test(test_ring_reset_that_was_not_negotiated),
        cmocka_unit_test(test_ring_reset_of_a_queue_that_does_not_run),
        cmocka_unit_test(test_device_reset_during_ring_reset),
        cmocka_unit_test(test_needs_reset_and_recovery),
        cmocka_unit_test(test_broken_before_driver_ok),
        cmocka_unit_test(test_device_that_gives_up),
        cmocka_unit_test(test_pause_and_resume),
        cmocka_unit_test(test_registers_while_paused),
        cmocka_unit_test(test_detached_after_the_last_message),
        cmocka_unit_test(test_detached_after_the_end_of_a_pause),
        cmocka_unit_test(test_create_errors),
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_interrupt_of_a_lone_request_never_waits),
        cmocka_unit_test(test_interrupt_waits_for_a_busy_driver),
        cmocka_unit_test(test_granted_requests_are_fetched_together),
        cmocka_unit_test(test_interrupt_waits_longer_for_who_was_held_up),
        cmocka_unit_test(test_interrupt_waits_to_see_whether_more_come),
        cmocka_unit_test(test_interrupt_overtakes_the_last_requests),
        cmocka_unit_test(test_held_interrupt_comes_by_itself),
        cmocka_unit_test(test_interrupt_waits_asleep),
    };

    return cmocka_run_group_tests_name("virtio_device", tests, NULL, NULL);
}
