/* SPDX-License-Identifier: Apache-2.0 */
#include "devices/table.h"

const struct virtio_device_ops *const virtio_device_table[] = {
    &virtio_net_ops,
    &virtio_blk_ops,
    &virtio_console_ops,
    &virtio_rng_ops,
    &virtio_vsock_ops,
    NULL,
};

const struct virtio_device_ops *virtio_device_ops_by_id(uint16_t virtio_id)
{
    for (size_t i = 0; virtio_device_table[i]; i++)
        if (virtio_device_table[i]->id == virtio_id)
            return virtio_device_table[i];
    return NULL;
}
