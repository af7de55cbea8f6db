/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio-mmio driver (VIRTIO 1.2, 3.1 and 4.2.3) for a device of any type in a fake machine. */
#ifndef VIOD_FAKE_DRIVER_H
#define VIOD_FAKE_DRIVER_H

#include "machine.h"

#define DRIVER_QUEUES_MAX 8u

struct driver {
    struct machine *m;
    uint64_t features; /* negotiated */
    unsigned n_queues;
    struct ring rings[DRIVER_QUEUES_MAX];
};

/* All features that the device offers. */
uint64_t driver_offered(struct machine *m);
/* Reset to FEATURES_OK. False if the device did not accept the features. */
bool driver_negotiate(struct machine *m, uint64_t features);
/* Writes the queue's registers and QueueReady. */
void driver_enable_queue(struct machine *m, uint16_t queue, const struct ring *ring);
/* Adds bits to Status and returns what reads back. */
uint32_t driver_add_status(struct machine *m, uint32_t bits);

/*
 * Everything up to DRIVER_OK: `features` (with VERSION_1), n_queues rings of this size in the first
 * bank. Aborts if the device refuses.
 */
void driver_start(struct driver *d, struct machine *m, uint64_t features, unsigned n_queues,
                  uint16_t size);
/* Frees what driver_start made; does not touch the device. */
void driver_end(struct driver *d);
/* After a reset, with the same rings and features, up to DRIVER_OK. */
void driver_restart(struct driver *d);

void driver_kick(struct driver *d, uint16_t queue);
/* Only if the device asked for it. True if it did. */
bool driver_kick_if_needed(struct driver *d, uint16_t queue);
/* InterruptStatus, acknowledged. */
uint32_t driver_take_isr(struct machine *m);
/* Features off again with QueueReset or QueueReady = 0; waits until it reads back. */
void driver_reset_queue(struct machine *m, uint16_t queue);

/*
 * One request of `len` bytes that are read, and as many that are written, at consecutive addresses
 * of buf (2 * len bytes of guest RAM), filled with a pattern of `seed`. driver_check_echo: what
 * came back is that pattern.
 */
int driver_add_echo(struct ring *ring, gpa_t buf, uint32_t len, uint32_t seed, bool indirect);
bool driver_check_echo(struct ring *ring, gpa_t buf, uint32_t len, uint32_t seed);

#endif
