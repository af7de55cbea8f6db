/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by virtio_device.c (the MMIO thread's side) and virtio_queue.c (the I/O threads') only. */
#ifndef VIOD_VIRTIO_DEVICE_INTERNAL_H
#define VIOD_VIRTIO_DEVICE_INTERNAL_H

#include "virtio_device.h"

/* An interrupt that waits for company waits at most this long, or as many times its cost ... */
#define HOLD_MAX_NS INT64_C(10000000)
#define HOLD_MAX_COSTS 16
#define NAP_MAX_NS INT64_C(200000)
/* ... and, since the driver last added a buffer, what an interrupt costs the driver, within ... */
#define IRQ_COST_MIN_NS INT64_C(2000)
#define IRQ_COST_MAX_NS INT64_C(500000)
#define IRQ_COST_FIRST_NS INT64_C(10000)

static inline struct virtio_queue *queue_of(struct virtio_device *dev, const struct virtqueue *vq)
{
    return &dev->queues[virtqueue_index(vq)];
}

static inline uint8_t status_of(struct virtio_device *dev)
{
    return atomic_load_explicit(&dev->status, memory_order_relaxed);
}

/* Any thread: sets a bit of InterruptStatus and raises the interrupt, unless that is pending. */
void virtio_device_interrupt(struct virtio_device *dev, uint32_t bit);
/* Any thread: DEVICE_NEEDS_RESET, and the interrupt that says so. False: it was set. */
bool virtio_device_set_needs_reset(struct virtio_device *dev);
void virtio_device_publish_status(struct virtio_device *dev);

/* virtio_state.c; MMIO thread: makes dev->state, and goes on from it if there was a device. */
int virtio_state_open(struct virtio_device *dev, struct device_state *state);
void virtio_state_adopt(struct virtio_device *dev, bool sacrifice);
void virtio_state_close(struct virtio_device *dev);

/* What the I/O thread does when it is told. */
void virtio_queue_init(struct virtio_queue *q);

#endif
