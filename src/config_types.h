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
    {.name = "indirect", .type = KEY_BOOL, .default_value = "yes", .granted_value = "no",          \
     .help = "offer indirect descriptors"},                                                        \
    {.name = "in-order", .type = KEY_BOOL, .default_value = "no",                                  \
     .help = "offer to use buffers in the order in which they were made available"},               \
    {.name = "grant-copy-max", .type = KEY_UINT, .default_value = "1048576", .min = 512,           \
     .max = 1048576,                                                                               \
     .help = "grants: the most bytes of a request that are copied; larger ones are mapped"}

/* clang-format on */

/* Socket devices of guests that may call each other: config_vsock_guests.c. */
/* Makes this one known. The descriptor is for its worker, which gets calls there (vsock_take_call); or
 * -errno with a message. config->host belongs to this file from now on. */
int vsock_guests_join(struct device_config *config, uint32_t cid, char *error, size_t error_len);
/* No calls of it or for it any more; also if it has not joined. */
void vsock_guests_leave(struct device_config *config);
/* It calls port to_port of the guest `cid`: the descriptor for its end of the connection, on which "OK …"
 * comes when the other one has accepted, or nothing; or -errno with a message. */
int vsock_guests_call(const struct device_config *config, uint32_t cid, uint32_t to_port,
                      uint32_t from_port, bool seqpacket, char *error, size_t error_len);

/* Each in the file config_<type>.c. */
extern const struct device_type net_type, console_type, vsock_type;

#endif
