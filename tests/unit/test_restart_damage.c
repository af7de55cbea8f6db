/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damaged state (row 29 of tests/hostile/README.md): whatever bit of it is wrong, the device either goes
 * on as if nothing had happened, because nothing looks there, or needs a reset, and works after it.
 */
#include "driver.h"
#include "unit.h"

#include <stdlib.h>

#define QUEUE_SIZE 8u
#define BUFFERS 4u
#define LEN 64u

struct scene {
    struct machine *m;
    struct driver d;
    gpa_t buffers[BUFFERS];
};

/* A device that dies with three requests in flight and one completed that is not published. */
static void set(struct scene *scene, uint64_t features)
{
    const struct machine_config config = {
        .state = true, .test = {.queue_size = QUEUE_SIZE, .mode = TEST_HOLD}};

    scene->m = machine_create(&config);
    driver_start(&scene->d, scene->m, features | F_VERSION_1, 1, QUEUE_SIZE);
    for (unsigned i = 0; i < BUFFERS; i++) {
        scene->buffers[i] = guest_alloc(&scene->m->heap[0], 2 * LEN, 16);
        assert_true(driver_add_echo(&scene->d.rings[0], scene->buffers[i], LEN, i, false) >= 0);
    }
    driver_kick(&scene->d, 0);
    assert_int_equal(test_device(scene->m->dev)->n_held, BUFFERS);
    test_device_complete(test_device(scene->m->dev), 1);
    machine_take_picture(scene->m);
}

static void clear(struct scene *scene)
{
    driver_end(&scene->d);
    machine_destroy(scene->m);
}

static unsigned complete_all(struct scene *scene)
{
    struct test_device *td = test_device(scene->m->dev);
    struct ring_used used;
    unsigned n = 0;

    while (td->n_held > 0)
        test_device_complete(td, 0);
    machine_settle(scene->m);
    while (ring_get(&scene->d.rings[0], &used)) {
        uint32_t seed = (uint32_t)(uintptr_t)used.token - 1;

        assert_int_equal(used.len, LEN);
        assert_true(driver_check_echo(&scene->d.rings[0], scene->buffers[seed], LEN, seed));
        n++;
    }
    return n;
}

/* True: it needed a reset. */
static bool go_on(struct scene *scene)
{
    bool needs_reset;

    machine_succeed(scene->m, false);
    needs_reset = (machine_read32(scene->m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
    if (!needs_reset) {
        assert_int_equal(complete_all(scene), BUFFERS);
        return false;
    }
    assert_int_equal(test_device(scene->m->dev)->n_held, 0);
    assert_true(fake_take_irqs(scene->m->fake, MACHINE_IRQ) > 0);
    driver_restart(&scene->d);
    for (unsigned i = 0; i < BUFFERS; i++)
        assert_true(driver_add_echo(&scene->d.rings[0], scene->buffers[i], LEN, i, false) >= 0);
    driver_kick(&scene->d, 0);
    assert_int_equal(complete_all(scene), BUFFERS);
    return true;
}

static void test_undamaged(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, F_PACKED);
    assert_false(go_on(&scene));
    clear(&scene);
}

static unsigned flip(uint64_t features, size_t first, size_t end, unsigned step)
{
    unsigned resets = 0;

    for (size_t bit = 8 * first; bit < 8 * end; bit += step) {
        struct scene scene;
        uint8_t *bytes;
        size_t len;

        set(&scene, features);
        bytes = machine_pictured_state(scene.m, &len);
        assert_true(end <= len);
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        resets += go_on(&scene);
        clear(&scene);
    }
    return resets;
}

#define QUEUE(field) (offsetof(struct device_state, queues) + offsetof(struct state_queue, field))
#define COPY(n)                                                                                    \
    (offsetof(struct device_state, copies) + (n) * sizeof(struct state_copy))
#define COPY_LEN                                                                                   \
    (offsetof(struct state_copy, transport) + offsetof(struct state_transport, queues) +           \
     sizeof(struct state_registers))

/* Words that count: each single bit of them is noticed. */
static void each_bit(uint64_t features)
{
    assert_int_equal(flip(features, offsetof(struct device_state, current),
                          offsetof(struct device_state, serving), 1), 128);
    assert_int_equal(flip(features, QUEUE(avail), QUEUE(serving), 1), 128);
    /* One of the two copies counts. */
    assert_int_equal(flip(features, COPY(0), COPY(0) + COPY_LEN, 5) +
                         flip(features, COPY(1), COPY(1) + COPY_LEN, 5),
                     (8 * COPY_LEN + 4) / 5);
}

static void test_row_29_split(void **state)
{
    (void)state;
    each_bit(0);
    /* Four of them are in use, with two words each. */
    assert_true(flip(0, QUEUE(requests), QUEUE(requests[QUEUE_SIZE]), 3) > 4 * 2 * 64 / 3 - 8);
}

static void test_row_29_packed(void **state)
{
    (void)state;
    each_bit(F_PACKED);
    assert_true(flip(F_PACKED, QUEUE(requests), QUEUE(requests[QUEUE_SIZE]), 3) >
                4 * 3 * 64 / 3 - 8);
    /* Two descriptors each; the last one's link means nothing. */
    assert_true(flip(F_PACKED, QUEUE(descriptors), QUEUE(descriptors[QUEUE_SIZE]), 3) >
                4 * (256 - 16) / 3 - 8);
}

/* What is random, or all ones, or somebody else's. */
static void test_row_29_rubbish(void **state)
{
    uint32_t random = 1;

    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        struct scene scene;
        uint8_t *bytes;
        size_t len, at;

        set(&scene, round % 2 == 0 ? F_PACKED : 0);
        bytes = machine_pictured_state(scene.m, &len);
        at = round % 3 == 0 ? offsetof(struct device_state, queues) : 0;
        for (size_t i = at; i < len; i++) {
            random = random * 1103515245u + 12345u;
            bytes[i] = round % 4 == 3 ? 0xff : (uint8_t)(random >> 16);
        }
        assert_true(go_on(&scene));
        clear(&scene);
    }
}

static void test_sacrificed(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, F_EVENT_IDX);
    machine_succeed(scene.m, true);
    assert_true((machine_read32(scene.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0);
    assert_int_equal(test_device(scene.m->dev)->n_held, 0);
    /* It needs it still, until it got it. */
    machine_take_picture(scene.m);
    assert_true(go_on(&scene));
    machine_take_picture(scene.m);
    machine_succeed(scene.m, false);
    assert_int_equal(machine_read32(scene.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    clear(&scene);
}

/* What a dead worker had in hand is not its successor's fault, as long as that did not touch it. */
static void test_not_in_hand(void **state)
{
    struct device_state *kept;
    struct scene scene;
    size_t len;

    (void)state;
    set(&scene, 0);
    kept = machine_pictured_state(scene.m, &len);
    kept->serving |= 1;
    kept->queues[0].serving = 1;
    machine_succeed(scene.m, false);
    assert_false(state_access_open(scene.m->state->serving));
    assert_int_equal(scene.m->state->queues[0].serving, 0);
    assert_int_equal(complete_all(&scene), BUFFERS);
    clear(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_undamaged),
        cmocka_unit_test(test_row_29_split),
        cmocka_unit_test(test_row_29_packed),
        cmocka_unit_test(test_row_29_rubbish),
        cmocka_unit_test(test_sacrificed),
        cmocka_unit_test(test_not_in_hand),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
