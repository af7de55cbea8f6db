/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device with a real image whose worker dies at each store that outlives it: what the driver was
 * told is done is on the image, and with a wrong bit anywhere in what was kept, no other block is
 * written than the driver's requests say.
 */
#include "blk_scene.h"
#include "kill.h"
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FLIPS 8u

static char path[] = "/tmp/viod-test-restart-blk.XXXXXX";

static uint32_t next_random(uint32_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    return *random;
}

static uint32_t flip_random; /* 0: no bit is wrong */

/* A bit, in one of the places that a successor looks at. */
static void flip(struct blk_scene *s, uint32_t random)
{
    size_t queue = offsetof(struct device_state, queues), len, at;
    uint8_t *bytes = machine_pictured_state(s->m, &len);

    switch (next_random(&random) % 4) {
    case 0: /* words of the device, its registers, and what is its own */
        at = next_random(&random) % (offsetof(struct device_state, own) + 64);
        break;
    case 1: /* positions */
        at = queue + next_random(&random) % offsetof(struct state_queue, serving);
        break;
    case 2:
        at = queue + offsetof(struct state_queue, requests) +
             next_random(&random) % (BLK_SCENE_SIZE * sizeof(struct state_request));
        break;
    default:
        at = queue + offsetof(struct state_queue, descriptors) +
             next_random(&random) % (BLK_SCENE_SIZE * sizeof(struct state_descriptor));
    }
    assert_true(at < len);
    bytes[at] ^= (uint8_t)(1u << next_random(&random) % 8);
}

static void die(void *arg)
{
    blk_scene_die(arg);
    if (flip_random != 0)
        flip(arg, flip_random);
}

/* False: it went to its end without a death. */
static bool live(uint64_t features, unsigned stores, uint32_t random, unsigned *resets)
{
    struct blk_scene s;
    bool died;

    flip_random = random;
    blk_scene_begin(&s, path, features);
    kill_arm(stores, die, &s);
    driver_kick(&s.d, 0);
    blk_scene_serve(&s, 3); /* the host's I/O, of which some is done when it dies */
    kill_disarm();
    died = s.died;
    if (blk_scene_end(&s)) {
        assert_int_not_equal(random, 0);
        ++*resets;
    }
    return died;
}

static void each_store(uint64_t features)
{
    unsigned stores = 0, resets = 0;

    while (live(features, stores, 0, &resets))
        stores++;
    assert_true(stores > BLK_SCENE_REQUESTS);
    assert_int_equal(resets, 0);
}

static void wrong_bits(uint64_t features)
{
    unsigned stores = 0, resets = 0;
    bool died = true;

    for (; died; stores += 3)
        for (unsigned i = 0; i < FLIPS; i++)
            died = live(features, stores, 0x9e3779b9u * (stores * FLIPS + i + 1) | 1, &resets);
    assert_true(resets > stores / 3);
}

static void test_split(void **state) { (void)state; each_store(0); }
static void test_split_in_order(void **state) { (void)state; each_store(F_IN_ORDER | F_INDIRECT); }
static void test_packed(void **state) { (void)state; each_store(F_PACKED); }
static void test_packed_in_order(void **state) { (void)state; each_store(F_PACKED | F_IN_ORDER); }
static void test_row_29_split(void **state) { (void)state; wrong_bits(0); }
static void test_row_29_packed(void **state) { (void)state; wrong_bits(F_PACKED | F_INDIRECT); }

static int make_path(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_in_order),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_in_order),
        cmocka_unit_test(test_row_29_split),
        cmocka_unit_test(test_row_29_packed),
    };

    return cmocka_run_group_tests(tests, make_path, remove_path);
}
