/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who notifies whom, and when. The oracle does not use the arithmetic of the specification: it
 * walks over the entries of a batch one by one and asks of each whether it is the one named.
 */
#include "unit.h"

static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* A position in the ring: split: free-running index; packed: offset | wrap << 15. */
static uint16_t position_after(const struct ring *ring, uint16_t position, unsigned entries)
{
    if (!ring->packed)
        return (uint16_t)(position + entries);
    unsigned offset = (position & 0x7fffu) + entries, wrap = position >> 15;

    while (offset >= ring->size) {
        offset -= ring->size;
        wrap ^= 1;
    }
    return (uint16_t)(offset | wrap << 15);
}

static bool named_in_batch(const struct ring *ring, uint16_t event, uint16_t start, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (position_after(ring, start, i) == event)
            return true;
    }
    return false;
}

static uint16_t used_position(const struct ring *ring)
{
    return ring->packed ? (uint16_t)(ring->used | (unsigned)ring->used_wrap << 15) : ring->used;
}

static uint16_t avail_position(const struct ring *ring)
{
    return ring->packed ? (uint16_t)(ring->avail | (unsigned)ring->avail_wrap << 15) : ring->avail;
}

/* Makes n buffers of `segments` descriptors available, has them used, and publishes them. */
static bool batch(struct rig *rig, unsigned n, unsigned segments)
{
    struct segment s[4];
    bool interrupt;
    struct ring_used used;

    for (unsigned i = 0; i < 4; i++)
        s[i] = segment(rig->data.addr + 8 * i, 8);
    for (unsigned i = 0; i < n; i++)
        assert_true(ring_add(&rig->ring, s, segments, NULL, 0, rig, false) >= 0);
    for (unsigned i = 0; i < n; i++)
        chain_complete(rig_pop(rig), 0);
    interrupt = virtqueue_flush(rig->vq);
    for (unsigned i = 0; i < n; i++)
        assert_true(ring_get(&rig->ring, &used));
    return interrupt;
}

/* 2.7.7.2, 2.8.14: an interrupt exactly when the entry that used_event names is in the batch. */
static void interrupts_with_event_idx(uint64_t features, uint16_t size)
{
    uint32_t seed = 0xabcdef01;
    unsigned raised = 0;
    struct rig rig;

    rig_create(&rig, size, features | F_EVENT_IDX);
    for (unsigned i = 0; i < 30000; i++) {
        unsigned segments = rig.ring.packed ? 1 + next_random(&seed) % 2 : 1;
        unsigned n = 1 + next_random(&seed) % (size / segments);
        uint16_t start = used_position(&rig.ring), event;
        bool expected;

        /* Mostly near the batch, on both sides. */
        event = position_after(&rig.ring, start, next_random(&seed) % (2u * size));
        if (next_random(&seed) % 8 == 0 && !rig.ring.packed)
            event = (uint16_t)next_random(&seed);
        if (next_random(&seed) % 4 == 0 && !rig.ring.packed)
            event = (uint16_t)(start - 1 - next_random(&seed) % size);
        ring_interrupt_at(&rig.ring, event);
        expected = named_in_batch(&rig.ring, event, start, n * segments);
        assert_int_equal(batch(&rig, n, segments), expected);
        raised += expected;
    }
    assert_in_range(raised, 1000, 29000);
    assert_int_equal(atomic_load(&virtqueue_stats(rig.vq)->interrupts), raised);
    rig_destroy(&rig);
}

static void test_used_event_against_the_definition_split(void **state)
{
    (void)state;
    interrupts_with_event_idx(0, 8);
    interrupts_with_event_idx(0, 64);
}

static void test_used_event_against_the_definition_packed(void **state)
{
    (void)state;
    interrupts_with_event_idx(F_PACKED, 8);
    interrupts_with_event_idx(F_PACKED, 13);
}

static void test_interrupt_flags(void **state)
{
    struct rig rig;

    (void)state;
    for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
        uint64_t features = event_idx ? F_EVENT_IDX : 0;

        rig_create(&rig, 8, features | F_PACKED);
        assert_true(batch(&rig, 3, 1));
        ring_interrupts_off(&rig.ring);
        assert_false(batch(&rig, 3, 1));
        ring_interrupts_on(&rig.ring);
        assert_true(batch(&rig, 3, 1));
        /* The reserved value 3, and DESC without EVENT_IDX: rather one interrupt too many. */
        ram_store16(rig.ring.driver_area + 2, 3);
        assert_true(batch(&rig, 3, 1));
        ram_store16(rig.ring.driver_area + 2, 0xfffc);
        assert_true(batch(&rig, 3, 1));
        if (!event_idx) {
            ram_store16(rig.ring.driver_area + 2, VRING_PACKED_EVENT_FLAG_DESC);
            assert_true(batch(&rig, 1, 1));
        }
        rig_destroy(&rig);
    }

    rig_create(&rig, 8, 0);
    assert_true(batch(&rig, 3, 1));
    ring_interrupts_off(&rig.ring);
    assert_false(batch(&rig, 3, 1));
    ring_interrupts_on(&rig.ring);
    /* 2.7.7.2: without EVENT_IDX what lies where used_event would be means nothing. */
    assert_true(batch(&rig, 3, 1));
    rig_destroy(&rig);

    /* With EVENT_IDX the device ignores the flags. */
    rig_create(&rig, 8, F_EVENT_IDX);
    ram_store16(avail_flags(&rig.ring), VRING_AVAIL_F_NO_INTERRUPT);
    ring_interrupt_at(&rig.ring, 0);
    assert_true(batch(&rig, 1, 1));
    assert_false(batch(&rig, 1, 1));
    rig_destroy(&rig);
}

static void test_nothing_completed_nothing_published(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, 0);
    assert_false(virtqueue_flush(rig.vq));
    rig_expect_empty(&rig);
    assert_false(virtqueue_flush(rig.vq));
    assert_int_equal(ram_load16(used_idx(&rig.ring)), 0);
    assert_true(batch(&rig, 1, 1));
    assert_false(virtqueue_flush(rig.vq));
    rig_destroy(&rig);
}

static void add(struct rig *rig, unsigned n)
{
    struct segment s = segment(rig->data.addr, 8);

    for (unsigned i = 0; i < n; i++)
        assert_true(ring_add(&rig->ring, &s, 1, NULL, 0, rig, false) >= 0);
}

static unsigned take_all(struct rig *rig)
{
    struct ring_used used;
    struct chain *chain;
    unsigned n = 0;

    while (virtqueue_pop(rig->vq, &chain) == 1) {
        chain_complete(chain, 0);
        n++;
    }
    virtqueue_flush(rig->vq);
    while (ring_get(&rig->ring, &used))
        ;
    return n;
}

/*
 * The device asks for notifications and sleeps: the driver's very next buffer must wake it, however
 * many come at once, and wherever in the ring it is. While it is awake, nothing wakes it.
 */
static void test_notifications_wake_a_sleeping_device(void **state)
{
    static const uint64_t features[] = {0, F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX,
                                        F_PACKED | F_EVENT_IDX | F_IN_ORDER};

    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(features); f++) {
        uint32_t seed = 0x1234567;
        struct rig rig;

        rig_create(&rig, 16, features[f]);
        assert_int_equal(take_all(&rig), 0);
        for (unsigned i = 0; i < 20000; i++) {
            unsigned n = 1 + next_random(&seed) % 16;
            uint16_t start = avail_position(&rig.ring);

            assert_false(virtqueue_enable_notify(rig.vq));
            if (rig.ring.event_idx) {
                uint16_t event = ram_load16(rig.ring.packed ? rig.ring.device_area
                                                            : (uint8_t *)avail_event(&rig.ring));

                assert_int_equal(event, start);
            }
            add(&rig, n);
            assert_true(ring_needs_kick(&rig.ring));
            virtqueue_disable_notify(rig.vq);
            assert_true(virtqueue_has_work(rig.vq));
            /* Awake: more buffers need no notification. (Split EVENT_IDX: it lies behind.) */
            if (n < 16) {
                add(&rig, 1);
                assert_false(ring_needs_kick(&rig.ring));
                n++;
            }
            assert_int_equal(take_all(&rig), n);
            assert_false(virtqueue_has_work(rig.vq));
        }
        rig_destroy(&rig);
    }
}

/* A buffer that came between the last look and the request for notifications is not lost. */
static void test_a_buffer_before_enable_is_seen_by_enable(void **state)
{
    static const uint64_t features[] = {0, F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX};

    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(features); f++) {
        struct rig rig;

        rig_create(&rig, 16, features[f]);
        for (unsigned i = 0; i < 50; i++) {
            rig_expect_empty(&rig);
            add(&rig, 2);
            ring_needs_kick(&rig.ring);
            assert_true(virtqueue_enable_notify(rig.vq));
            /* And they are off again. */
            add(&rig, 1);
            assert_false(ring_needs_kick(&rig.ring));
            assert_int_equal(take_all(&rig), 3);
        }
        rig_destroy(&rig);
    }
}

/* 2.7.10: without EVENT_IDX the field that would be avail_event is not the device's to write. */
static void test_no_field_is_written_that_was_not_negotiated(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, 0);
    ram_store16(avail_event(&rig.ring), 0xa55a);
    rig_expect_empty(&rig);
    virtqueue_enable_notify(rig.vq);
    add(&rig, 8);
    assert_int_equal(take_all(&rig), 8);
    virtqueue_disable_notify(rig.vq);
    assert_int_equal(ram_load16(avail_event(&rig.ring)), 0xa55a);
    rig_destroy(&rig);

    rig_create(&rig, 8, F_EVENT_IDX);
    rig_expect_empty(&rig);
    virtqueue_enable_notify(rig.vq);
    virtqueue_disable_notify(rig.vq);
    assert_int_equal(ram_load16(used_flags(&rig.ring)), 0);
    rig_destroy(&rig);
}

/* Whether the driver has seen what is published: while that cannot be looked at, it may not have. */
static void test_lag_without_a_mapping(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, F_EVENT_IDX);
    ring_interrupt_at(&rig.ring, 0);
    add(&rig, 1);
    chain_complete(rig_pop(&rig), 0);
    assert_true(virtqueue_flush(rig.vq));
    assert_int_equal(virtqueue_driver_lag(rig.vq), DRIVER_BEHIND);
    virtqueue_forget_mapping(rig.vq);
    /* A ring that is granted stays mapped. */
    assert_int_equal(virtqueue_driver_lag(rig.vq),
                     rig.grants != NULL ? DRIVER_BEHIND : DRIVER_LAG_UNKNOWN);
    rig_expect_empty(&rig); /* it is mapped again */
    assert_int_equal(virtqueue_driver_lag(rig.vq), DRIVER_BEHIND);
    virtqueue_stop(rig.vq);
    assert_int_equal(virtqueue_driver_lag(rig.vq), DRIVER_LOOKS_BY_ITSELF);
    rig_destroy(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_used_event_against_the_definition_split),
        cmocka_unit_test(test_used_event_against_the_definition_packed),
        cmocka_unit_test(test_interrupt_flags),
        cmocka_unit_test(test_nothing_completed_nothing_published),
        cmocka_unit_test(test_notifications_wake_a_sleeping_device),
        cmocka_unit_test(test_a_buffer_before_enable_is_seen_by_enable),
        cmocka_unit_test(test_no_field_is_written_that_was_not_negotiated),
        cmocka_unit_test(test_lag_without_a_mapping),
    };

    return cmocka_run_group_tests_name("virtqueue_events", tests, NULL, NULL);
}
