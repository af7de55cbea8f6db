/* SPDX-License-Identifier: Apache-2.0 */
/* Virtqueues with a driver that keeps the rules: every format, every size, any order. */
#include "unit.h"

#include <stdlib.h>

/* Deterministic, the same on every machine. */
static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static const uint64_t formats[] = {
    0,
    F_EVENT_IDX,
    F_INDIRECT,
    F_IN_ORDER,
    F_INDIRECT | F_EVENT_IDX | F_IN_ORDER,
    F_PACKED,
    F_PACKED | F_EVENT_IDX,
    F_PACKED | F_INDIRECT,
    F_PACKED | F_IN_ORDER,
    F_PACKED | F_INDIRECT | F_EVENT_IDX | F_IN_ORDER,
};

#define OUTSTANDING 64u
#define BUFFERS 512u

/* One buffer in flight: n segments of SEGMENT bytes; what the driver expects back. */
#define SEGMENT 16u
#define SEGMENTS_MAX 9u

struct load {
    struct rig rig;
    uint32_t seed;
    uint64_t submitted, returned;
    uint64_t pending[BUFFERS]; /* number + 1 of the request that has the buffer; 0: free */
    struct chain *held[OUTSTANDING];
    unsigned n_held;
};

static gpa_t buffer_of(struct load *load, uint64_t number)
{
    return (gpa_t){load->rig.data.addr + number % BUFFERS * SEGMENT * SEGMENTS_MAX};
}

static bool submit(struct load *load)
{
    unsigned n = 1 + next_random(&load->seed) % SEGMENTS_MAX;
    unsigned n_in = next_random(&load->seed) % (n + 1), n_out = n - n_in;
    bool indirect = (load->rig.ring.features & F_INDIRECT) != 0 && next_random(&load->seed) % 2;
    struct segment segments[SEGMENTS_MAX];
    gpa_t buffer = buffer_of(load, load->submitted);
    int ret;

    if (load->pending[load->submitted % BUFFERS] != 0)
        return false;
    for (unsigned i = 0; i < n; i++)
        segments[i] = segment(buffer.addr + i * SEGMENT, SEGMENT);
    ret = ring_add(&load->rig.ring, segments, n_out, segments + n_out, n_in,
                   (void *)(uintptr_t)(load->submitted + 1), indirect);
    if (ret < 0)
        return false;
    if (n_out > 0)
        memcpy(fake_ram(load->rig.fake, buffer.addr, 8), &load->submitted, 8);
    load->submitted++;
    load->pending[(load->submitted - 1) % BUFFERS] = load->submitted;
    return true;
}

/* Takes a few, gives a few back in any order, publishes. */
static void serve(struct load *load)
{
    unsigned pops = 1 + next_random(&load->seed) % 40, done;

    while (pops-- > 0 && load->n_held < OUTSTANDING) {
        struct chain *chain;
        int ret = virtqueue_pop(load->rig.vq, &chain);

        if (ret == 0)
            break;
        assert_int_equal(ret, 1);
        assert_false(chain->faulted);
        load->held[load->n_held++] = chain;
    }
    done = next_random(&load->seed) % (load->n_held + 1);
    while (done-- > 0) {
        unsigned k = next_random(&load->seed) % load->n_held;
        struct chain *chain = load->held[k];
        uint32_t writable = chain->writable_bytes;

        if (chain->readable_bytes > 0) {
            uint64_t number;

            assert_int_equal(chain_read(chain, &number, 8), 8);
            assert_int_equal(load->pending[number % BUFFERS], number + 1);
        }
        assert_int_equal(chain_write(chain, NULL, writable), writable);
        chain_complete(chain, writable);
        load->held[k] = load->held[--load->n_held];
    }
    virtqueue_flush(load->rig.vq);
}

static void collect(struct load *load)
{
    struct ring_used used;

    while (ring_get(&load->rig.ring, &used)) {
        uint64_t number = (uintptr_t)used.token - 1;

        assert_int_equal(load->pending[number % BUFFERS], number + 1);
        load->pending[number % BUFFERS] = 0;
        if (load->rig.ring.in_order)
            assert_int_equal(number, load->returned);
        if (load->rig.ring.packed && !used.batched)
            assert_int_equal(used.write_flag, used.len > 0);
        load->returned++;
    }
}

/* Indices pass 2^16, wrap counters turn thousands of times; nothing is lost or returned twice. */
static void run_load(uint64_t features, uint16_t size, uint64_t requests)
{
    struct load *load = calloc(1, sizeof(*load));

    rig_create(&load->rig, size, features);
    load->seed = 0x5eed1234;
    while (load->returned < requests) {
        unsigned adds = next_random(&load->seed) % 30;

        while (adds-- > 0 && load->submitted < requests && submit(load))
            ;
        serve(load);
        collect(load);
    }
    assert_int_equal(load->submitted, requests);
    assert_int_equal(load->n_held, 0);
    assert_int_equal(atomic_load(&virtqueue_stats(load->rig.vq)->completed), requests);
    rig_expect_empty(&load->rig);
    rig_destroy(&load->rig);
    free(load);
}

static void test_70000_requests_of_every_format(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
        run_load(formats[i], 256, 71000);
}

static void test_every_format_with_a_small_ring(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        run_load(formats[i], 16, 5000);
        if ((formats[i] & F_PACKED) != 0)
            run_load(formats[i], 11, 70000);
    }
}

/* Fills the ring to the last descriptor, three times over. */
static void fill_ring(uint16_t size, uint64_t features)
{
    struct chain *chains[1024];
    struct ring_used used;
    struct rig rig;

    rig_create(&rig, size, features);
    for (unsigned round = 0; round < 3; round++) {
        struct segment in = segment(rig.data.addr, 4);

        for (uint16_t i = 0; i < size; i++)
            assert_true(ring_add(&rig.ring, NULL, 0, &in, 1, &rig, false) >= 0);
        assert_int_equal(ring_add(&rig.ring, NULL, 0, &in, 1, &rig, false), -ENOSPC);
        for (uint16_t i = 0; i < size; i++)
            chains[i] = rig_pop(&rig);
        rig_expect_empty(&rig);
        assert_int_equal(virtqueue_in_flight(rig.vq), size);
        for (uint16_t i = size; i-- > 0;)
            chain_complete(chains[i], 4);
        assert_true(virtqueue_flush(rig.vq));
        for (uint16_t i = 0; i < size; i++) {
            assert_true(ring_get(&rig.ring, &used));
            assert_int_equal(used.len, 4);
        }
        assert_false(ring_get(&rig.ring, &used));
    }
    rig_destroy(&rig);
}

static void test_every_queue_size(void **state)
{
    (void)state;
    for (uint16_t size = 1; size <= VIRTQUEUE_SIZE_MAX; size = (uint16_t)(size * 2)) {
        fill_ring(size, 0);
        fill_ring(size, F_IN_ORDER);
    }
    /* 2.8.10.1: packed rings need no power of two. */
    for (uint16_t size = 1; size <= VIRTQUEUE_SIZE_MAX;
         size = (uint16_t)(size + (size < 70 ? 1 : 53))) {
        fill_ring(size, F_PACKED);
        fill_ring(size, F_PACKED | F_IN_ORDER);
    }
    fill_ring(VIRTQUEUE_SIZE_MAX, F_PACKED);
}

static void test_setup_that_the_specification_forbids(void **state)
{
    static const uint16_t split_sizes[] = {0, 3, 6, 255, 512, 1024, 32768, 65535};
    static const uint16_t packed_sizes[] = {0, 257, 1024, 32768, 32769, 65535};
    struct virtqueue_setup good, bad;
    struct rig rig;

    (void)state;
    rig_create(&rig, 256, 0);
    virtqueue_stop(rig.vq);
    good = ring_setup(&rig.ring);
    assert_int_equal(virtqueue_check(rig.vq, &good), 0);
    for (size_t i = 0; i < ARRAY_SIZE(split_sizes); i++) {
        bad = good;
        bad.size = split_sizes[i];
        assert_int_equal(virtqueue_check(rig.vq, &bad), -EINVAL);
        assert_int_equal(virtqueue_start(rig.vq, &bad), -EINVAL);
    }
    for (size_t i = 0; i < ARRAY_SIZE(packed_sizes); i++) {
        bad = good;
        bad.features |= F_PACKED;
        bad.size = packed_sizes[i];
        assert_int_equal(virtqueue_start(rig.vq, &bad), -EINVAL);
    }
    for (unsigned area = 0; area < 3; area++) {
        for (unsigned packed = 0; packed < 2; packed++) {
            bad = good;
            bad.features |= packed ? F_PACKED : 0;
            (area == 0 ? &bad.desc : area == 1 ? &bad.driver : &bad.device)->addr += 1;
            assert_int_equal(virtqueue_start(rig.vq, &bad), -EINVAL);
        }
    }
    assert_false(virtqueue_started(rig.vq));
    assert_int_equal(virtqueue_start(rig.vq, &good), 0);
    rig_destroy(&rig);
}

static void test_create_refuses_nonsense(void **state)
{
    struct virtqueue_config config = {.size_max = 8, .request_size = sizeof(struct chain)};
    struct virtqueue *vq;

    (void)state;
    config.size_max = 0;
    assert_int_equal(virtqueue_create(&config, &vq), -EINVAL);
    config.size_max = VIRTQUEUE_SIZE_MAX + 1;
    assert_int_equal(virtqueue_create(&config, &vq), -EINVAL);
    config.size_max = 8;
    config.request_size = sizeof(struct chain) - 1;
    assert_int_equal(virtqueue_create(&config, &vq), -EINVAL);
    virtqueue_destroy(NULL);
}

/* 2.7.9, 2.8.8: whatever the device finishes first, the driver sees the order it asked in. */
static void test_in_order_holds_back_what_is_early(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct chain *chains[6];
        struct ring_used used;
        struct segment in;
        struct rig rig;

        rig_create(&rig, 8, F_IN_ORDER | (packed ? F_PACKED : 0));
        in = segment(rig.data.addr, 4);
        for (uintptr_t i = 0; i < 6; i++)
            ring_add(&rig.ring, NULL, 0, &in, 1, (void *)(i + 1), false);
        for (unsigned i = 0; i < 6; i++)
            chains[i] = rig_pop(&rig);
        chain_complete(chains[5], 4);
        chain_complete(chains[2], 4);
        chain_complete(chains[1], 4);
        assert_false(virtqueue_flush(rig.vq));
        assert_false(ring_get(&rig.ring, &used));
        chain_complete(chains[0], 4);
        assert_true(virtqueue_flush(rig.vq));
        for (uintptr_t i = 0; i < 3; i++) {
            assert_true(ring_get(&rig.ring, &used));
            assert_ptr_equal(used.token, (void *)(i + 1));
        }
        assert_false(ring_get(&rig.ring, &used));
        chain_complete(chains[4], 4);
        chain_complete(chains[3], 4);
        virtqueue_flush(rig.vq);
        for (uintptr_t i = 3; i < 6; i++) {
            assert_true(ring_get(&rig.ring, &used));
            assert_ptr_equal(used.token, (void *)(i + 1));
        }
        rig_destroy(&rig);
    }
}

static void snapshot(const struct ring *ring, uint8_t *to)
{
    memcpy(to, ring->split_desc, 16 * (size_t)ring->size);
    memcpy(to + 16 * (size_t)ring->size, ring->device_area, 4);
}

/* Chains of a past generation free their slot and touch neither the old ring nor the new one. */
static void test_completion_after_stop_touches_no_ring(void **state)
{
    static const uint64_t features[] = {0, F_PACKED, F_IN_ORDER, F_PACKED | F_IN_ORDER};

    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(features); f++) {
        uint8_t before[1024], after[1024];
        struct chain *old[8], *early;
        struct ring_used used;
        struct segment in;
        struct rig rig;

        rig_create(&rig, 8, features[f]);
        in = segment(rig.data.addr, 4);
        for (unsigned i = 0; i < 8; i++)
            ring_add(&rig.ring, NULL, 0, &in, 1, NULL, false);
        for (unsigned i = 0; i < 8; i++)
            old[i] = rig_pop(&rig);
        /* Completed and published never: forgotten with the queue. */
        chain_complete(old[7], 4);
        virtqueue_stop(rig.vq);
        assert_false(virtqueue_started(rig.vq));
        assert_int_equal(virtqueue_in_flight(rig.vq), 7);
        snapshot(&rig.ring, before);
        chain_complete(old[0], 4);
        assert_false(virtqueue_flush(rig.vq));
        snapshot(&rig.ring, after);
        assert_memory_equal(before, after, 16 * 8 + 4);

        /* Two slots are free: two chains, then none until the past gives up one more. */
        ring_restart(&rig.ring, 8);
        rig_start(&rig);
        for (uintptr_t i = 0; i < 3; i++)
            ring_add(&rig.ring, NULL, 0, &in, 1, (void *)(i + 1), false);
        early = rig_pop(&rig);
        chain_complete(rig_pop(&rig), 4);
        chain_complete(early, 4);
        virtqueue_flush(rig.vq);
        for (unsigned i = 1; i < 7; i++)
            chain_complete(old[i], 4);
        assert_false(virtqueue_flush(rig.vq));
        chain_complete(rig_pop(&rig), 4);
        assert_true(virtqueue_flush(rig.vq));
        for (unsigned i = 0; i < 3; i++) {
            assert_true(ring_get(&rig.ring, &used));
            assert_int_equal(used.len, 4);
        }
        assert_false(ring_get(&rig.ring, &used));
        rig_destroy(&rig);
    }
}

static void test_no_slot_free_until_the_past_is_over(void **state)
{
    struct chain *old[4], *chain;
    struct segment in;
    struct rig rig;

    (void)state;
    rig_create(&rig, 4, 0);
    in = segment(rig.data.addr, 4);
    for (unsigned i = 0; i < 4; i++)
        ring_add(&rig.ring, NULL, 0, &in, 1, NULL, false);
    for (unsigned i = 0; i < 4; i++)
        old[i] = rig_pop(&rig);
    virtqueue_stop(rig.vq);
    ring_restart(&rig.ring, 4);
    rig_start(&rig);
    ring_add(&rig.ring, NULL, 0, &in, 1, NULL, false);
    assert_true(virtqueue_has_work(rig.vq));
    rig_expect_empty(&rig);
    /* Asking again must not spin: there is nothing to do before a completion. */
    assert_false(virtqueue_has_work(rig.vq));
    assert_false(virtqueue_enable_notify(rig.vq));
    chain_complete(old[2], 0);
    assert_true(virtqueue_has_work(rig.vq));
    assert_int_equal(virtqueue_pop(rig.vq, &chain), 1);
    chain_complete(chain, 4);
    chain_complete(old[0], 0);
    chain_complete(old[1], 0);
    chain_complete(old[3], 0);
    virtqueue_flush(rig.vq);
    rig_destroy(&rig);
}

static void test_queue_again_with_another_size_and_format(void **state)
{
    static const struct {
        uint16_t size;
        uint64_t features;
    } steps[] = {{64, 0}, {16, F_PACKED}, {64, F_PACKED | F_IN_ORDER}, {1, 0}, {32, F_EVENT_IDX}};
    struct rig rig;

    (void)state;
    rig_create_sized(&rig, 8, 64, 0);
    for (size_t s = 0; s < ARRAY_SIZE(steps); s++) {
        struct ring_used used;

        virtqueue_stop(rig.vq);
        ring_destroy(&rig.ring);
        ring_create(&rig.ring, &rig.heap, steps[s].size, steps[s].features);
        rig_start(&rig);
        assert_int_equal(virtqueue_size(rig.vq), steps[s].size);
        for (unsigned i = 0; i < 200; i++) {
            struct segment in = segment(rig.data.addr, 4);

            assert_true(ring_add(&rig.ring, NULL, 0, &in, 1, &rig, false) >= 0);
            chain_complete(rig_pop(&rig), 4);
            virtqueue_flush(rig.vq);
            assert_true(ring_get(&rig.ring, &used));
        }
        rig_expect_empty(&rig);
    }
    assert_ptr_equal(virtqueue_owner(rig.vq), &rig);
    assert_int_equal(virtqueue_index(rig.vq), 0);
    rig_destroy(&rig);
}

/* Long chains need a block of elements each; when none is left the queue waits, and goes on. */
static void test_more_long_chains_than_blocks(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct segment segments[100];
        struct chain *chains[200];
        unsigned n = 0, total = 0;
        struct ring_used used;
        struct rig rig;

        rig_create(&rig, 256, F_INDIRECT | (packed ? F_PACKED : 0));
        for (unsigned i = 0; i < 100; i++)
            segments[i] = segment(rig.data.addr + i * 8, 8);
        for (unsigned i = 0; i < 200; i++)
            assert_true(ring_add(&rig.ring, segments, 50, segments + 50, 50, &rig, true) >= 0);
        while (total < 200) {
            while (virtqueue_pop(rig.vq, &chains[n]) == 1) {
                assert_int_equal(chains[n]->readable_bytes, 400);
                assert_int_equal(chains[n]->writable_bytes, 400);
                n++;
            }
            assert_true(n > 0);
            total += n;
            while (n > 0)
                chain_complete(chains[--n], 400);
            virtqueue_flush(rig.vq);
        }
        for (unsigned i = 0; i < 200; i++)
            assert_true(ring_get(&rig.ring, &used));
        rig_destroy(&rig);
    }
}

/* Guest RAM was dropped and came back at the same place: the queue finds its ring again. */
static void test_mapping_forgotten_between_requests(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct ring_used used;
        struct segment in;
        struct rig rig;

        rig_create(&rig, 8, packed ? F_PACKED : 0);
        in = segment(rig.data.addr, 4);
        for (unsigned i = 0; i < 20; i++) {
            ring_add(&rig.ring, NULL, 0, &in, 1, &rig, false);
            chain_complete(rig_pop(&rig), 4);
            virtqueue_flush(rig.vq);
            assert_true(ring_get(&rig.ring, &used));
            virtqueue_forget_mapping(rig.vq);
            guest_memory_drop(rig.memory);
            assert_int_equal(fake_counts(rig.fake).mapped_pages, 0);
            assert_true(virtqueue_has_work(rig.vq));
            assert_true(virtqueue_enable_notify(rig.vq));
            virtqueue_disable_notify(rig.vq);
        }
        rig_expect_empty(&rig);
        rig_destroy(&rig);
    }
}

static void test_stopped_queue_does_nothing(void **state)
{
    struct chain *chain;
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, 0);
    virtqueue_stop(rig.vq);
    assert_true(virtqueue_pop(rig.vq, &chain) < 0);
    assert_false(virtqueue_flush(rig.vq));
    assert_false(virtqueue_has_work(rig.vq));
    assert_false(virtqueue_enable_notify(rig.vq));
    virtqueue_disable_notify(rig.vq);
    virtqueue_stop(rig.vq);
    rig_destroy(&rig);
}

static void test_rings_and_buffers_in_the_second_bank(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct ring_used used;
        struct segment segments[2];
        struct rig rig;

        rig_create(&rig, 8, packed ? F_PACKED : 0);
        virtqueue_stop(rig.vq);
        ring_destroy(&rig.ring);
        ring_create(&rig.ring, &rig.high, 8, packed ? F_PACKED : 0);
        rig_start(&rig);
        segments[0] = segment(rig.data.addr, 8);
        /* Across a chunk border, and the last byte of the bank. */
        segments[1] = segment(FAKE_BANK1_BASE + FAKE_BANK_SIZE - 8, 8);
        memcpy(fake_ram(rig.fake, rig.data.addr, 8), "and back", 8);
        ring_add(&rig.ring, segments, 1, segments + 1, 1, &rig, false);
        struct chain *chain = rig_pop(&rig);
        char text[8];
        assert_int_equal(chain_read(chain, text, 8), 8);
        assert_int_equal(chain_write(chain, text, 8), 8);
        chain_complete(chain, 8);
        virtqueue_flush(rig.vq);
        assert_true(ring_get(&rig.ring, &used));
        assert_memory_equal(fake_ram(rig.fake, segments[1].addr.addr, 8), "and back", 8);
        rig_destroy(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_70000_requests_of_every_format),
        cmocka_unit_test(test_every_format_with_a_small_ring),
        cmocka_unit_test(test_every_queue_size),
        cmocka_unit_test(test_setup_that_the_specification_forbids),
        cmocka_unit_test(test_create_refuses_nonsense),
        cmocka_unit_test(test_in_order_holds_back_what_is_early),
        cmocka_unit_test(test_completion_after_stop_touches_no_ring),
        cmocka_unit_test(test_no_slot_free_until_the_past_is_over),
        cmocka_unit_test(test_queue_again_with_another_size_and_format),
        cmocka_unit_test(test_more_long_chains_than_blocks),
        cmocka_unit_test(test_mapping_forgotten_between_requests),
        cmocka_unit_test(test_stopped_queue_does_nothing),
        cmocka_unit_test(test_rings_and_buffers_in_the_second_bank),
    };

    return cmocka_run_group_tests_name("virtqueue", tests, NULL, NULL);
}
