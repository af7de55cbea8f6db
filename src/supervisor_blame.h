/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which device do workers die of? After each death, what a device had in hand is read from the state
 * file, and compared with what it had at the death before: what worker after worker dies with, and
 * does not get beyond, is the cause.
 *
 * What the device's code was looking at when the process died is a strong suspect: a register access,
 * or a queue of which it was taking requests. What the host was doing for it is a weak one, since all
 * devices that wait for a disk are found like that, whoever is the cause.
 *
 * The file is read with pread, not mapped: a worker that was taken over by its guest and makes it shorter
 * must not kill the supervisor. What is read is compared, and nothing else.
 */
#ifndef VIOD_SUPERVISOR_BLAME_H
#define VIOD_SUPERVISOR_BLAME_H

#include "device_state.h"

/* What was in hand, as a number that changes with any progress; 0: nothing. */
struct suspicion {
    uint64_t in_hand;
    unsigned deaths; /* after the first one with the same in hand */
};

struct blame {
    struct suspicion access;                        /* to a register */
    struct suspicion served[DEVICE_STATE_QUEUES];   /* requests being taken */
    struct suspicion held;                          /* requests in flight, and none was completed */
    struct suspicion oldest[DEVICE_STATE_QUEUES];   /* the same one is the oldest; others were completed */
};

/* A worker has died. is_block: requests in flight are work that it was doing; other devices hold
 * buffers with which nothing is done. */
void blame_look(struct blame *blame, int state_fd, unsigned slot, bool is_block);
/* Successors that died of the same, of strong suspects. */
unsigned blame_strong(const struct blame *blame);
/* Likewise, of weak ones: without anything completed, and with. */
unsigned blame_weak(const struct blame *blame);
unsigned blame_oldest(const struct blame *blame);

#endif
