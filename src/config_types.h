/* SPDX-License-Identifier: Apache-2.0 */
/* For config_types.c and the files of single device types. */
#ifndef VIOD_CONFIG_TYPES_H
#define VIOD_CONFIG_TYPES_H

#include "config.h"

/* clang-format off */

/* Every virtio device has rings: what is offered to the driver, and how grants are reached. */
#define RING_KEYS                                                                                  \
    {.name = "packed", .type = KEY_BOOL, .default_value = "no",                                    \
     .help = "offer packed rings"},                                                                \
    {.name = "event-idx", .type = KEY_BOOL, .default_value = "yes",                                \
     .help = "offer the ring option that saves notifications"},                                    \
    {.name = "indirect", .type = KEY_BOOL, .default_value = "yes",                                 \
     .help = "offer indirect descriptors"},                                                        \
    {.name = "in-order", .type = KEY_BOOL, .default_value = "no",                                  \
     .help = "offer to use buffers in the order in which they were made available"},               \
    {.name = "grant-copy-max", .type = KEY_UINT, .default_value = "1048576", .min = 512,           \
     .max = 1048576,                                                                               \
     .help = "grants: the most bytes of a request that are copied; larger ones are mapped"}

/* clang-format on */

/* Each in the file config_<type>.c. */
extern const struct device_type net_type, console_type, vsock_type;

#endif
