/* SPDX-License-Identifier: Apache-2.0 */
/* All device types that a worker can serve. */
#ifndef VIOD_DEVICES_TABLE_H
#define VIOD_DEVICES_TABLE_H

#include "virtio_device.h"

/* Ends with NULL. */
extern const struct virtio_device_ops *const virtio_device_table[];
/* NULL: no such type. */
const struct virtio_device_ops *virtio_device_ops_by_id(uint16_t virtio_id);

extern const struct virtio_device_ops virtio_blk_ops;
extern const struct virtio_device_ops virtio_console_ops;
extern const struct virtio_device_ops virtio_rng_ops;
extern const struct virtio_device_ops virtio_vsock_ops;
extern const struct virtio_device_ops virtio_net_ops;

#endif
