/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device with a real image and a driver with some requests in flight, whose worker dies in the
 * middle of them: what the driver was told is done is on the image, and no other block is written than
 * its requests say.
 */
#ifndef VIOD_FAKE_BLK_SCENE_H
#define VIOD_FAKE_BLK_SCENE_H

#include "config.h"
#include "driver.h"
#include "machine.h"

#define BLK_SCENE_WRITES 6u
#define BLK_SCENE_REQUESTS (BLK_SCENE_WRITES + 2) /* a flush and a read behind them */
#define BLK_SCENE_SIZE 32u                        /* of the queue */

struct blk_scene {
    const char *path; /* of the image */
    struct machine *m;
    struct device_config config;
    struct driver d;
    gpa_t slots;
    uint64_t features;
    bool died;
    bool done[BLK_SCENE_REQUESTS];
};

/* Makes the image and adds the requests; the driver has not notified the device yet. */
void blk_scene_begin(struct blk_scene *s, const char *path, uint64_t features);
/* The worker serves, for so many turns. */
void blk_scene_serve(struct blk_scene *s, unsigned turns);
/* It dies, and what it leaves can be changed: machine_pictured_state. */
void blk_scene_die(struct blk_scene *s);
/*
 * The successor, if it has died: until all is done, or the device needs a reset, gets it, and does all.
 * Ends the scene. True: it needed one.
 */
bool blk_scene_end(struct blk_scene *s);

#endif
