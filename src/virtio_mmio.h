/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio-mmio transport, version 2 (VIRTIO 1.2, 4.2): a register window of one device. Knows
 * neither Xen nor threads; all functions are for the MMIO thread.
 */
#ifndef VIOD_VIRTIO_MMIO_H
#define VIOD_VIRTIO_MMIO_H

#include "virtio_device.h"

#define VIRTIO_MMIO_WINDOW 0x200u /* bytes per device, as Xen lays them out */

struct virtio_mmio;

/*
 * `finished` answers a write that mmio_write left open. Takes over dev->reset_done and
 * dev->queue_stop_done. Borrowed: dev.
 */
int virtio_mmio_create(struct virtio_device *dev,
                       void (*finished)(struct virtio_mmio *mmio, void *arg,
                                        const struct mmio_request *request),
                       void *arg, struct virtio_mmio **out);
void virtio_mmio_destroy(struct virtio_mmio *mmio);

/*
 * Serves an access at `offset` within the window. READ: request->data is set. True: answer the
 * request now. False: the write waits until queues are quiet (reset, QueueReady = 0); `finished` is
 * called with a copy of the request.
 *
 * A QueueNotify write needs an early answer: see virtio_mmio_is_notify.
 */
bool virtio_mmio_access(struct virtio_mmio *mmio, uint32_t offset, struct mmio_request *request);

/* True if the access is a valid write to QueueNotify: answer it first, then call access. */
bool virtio_mmio_is_notify(uint32_t offset, const struct mmio_request *request);

/* What an empty slot answers: magic, version, DeviceID 0, everything else 0. */
uint64_t virtio_mmio_empty_read(uint32_t offset, unsigned size);

struct virtio_device *virtio_mmio_device(struct virtio_mmio *mmio);

#endif
