/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One wrong bit anywhere in what a block device's worker left: its successor lives, and writes no block
 * but those of the driver's requests, with what they say.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk_scene.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[] = "/tmp/viod-fuzz-state-blk.XXXXXX";

static void remove_image(void)
{
    (void)unlink(path);
}

static const char *image(void)
{
    static bool made;
    int fd = made ? -1 : mkstemp(path);

    if (fd >= 0) {
        close(fd);
        made = true;
        atexit(remove_image);
    }
    return path;
}

/* Of all that is kept, or of what is looked at. */
static size_t place(unsigned kind, uint32_t bit, size_t len)
{
    const size_t queue = offsetof(struct device_state, queues);
    size_t first = 0, end = len;

    switch (kind) {
    case 1: /* words of the device, its registers, and what is its own */
        end = offsetof(struct device_state, own) + 64;
        break;
    case 2:
        first = queue;
        end = queue + offsetof(struct state_queue, requests[BLK_SCENE_SIZE]);
        break;
    case 3:
        first = queue + offsetof(struct state_queue, descriptors);
        end = queue + offsetof(struct state_queue, descriptors[BLK_SCENE_SIZE]);
        break;
    default:
        break;
    }
    return 8 * first + bit % (8 * (end - first));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct blk_scene s;
    uint8_t *state;
    uint32_t random;
    size_t len, bit;

    if (size < 1 + sizeof(random))
        return 0;
    memcpy(&random, data + 1, sizeof(random));
    blk_scene_begin(&s, image(), (data[0] & 1 ? F_PACKED : 0) | (data[0] & 2 ? F_INDIRECT : 0) |
                                     (data[0] & 4 ? F_IN_ORDER : 0) | (data[0] & 8 ? F_EVENT_IDX : 0));
    driver_kick(&s.d, 0);
    blk_scene_serve(&s, data[0] >> 4 & 3);
    blk_scene_die(&s);
    state = machine_pictured_state(s.m, &len);
    bit = place(data[0] >> 6, random, len);
    state[bit / 8] ^= (uint8_t)(1u << bit % 8);
    (void)blk_scene_end(&s);
    return 0;
}
