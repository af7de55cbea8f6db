/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by viodctl_check*.c only. */
#ifndef VIOD_VIODCTL_CHECK_INTERNAL_H
#define VIOD_VIODCTL_CHECK_INTERNAL_H

#include "../xen/xl_config.h"
#include "config.h"
#include "viodctl_check.h"

/* Of all devices of a guest: far more than it has slots. */
#define CHECK_DEVICES_MAX 64u

/* One guest being checked. */
struct check {
    const struct check_options *options;
    FILE *out;
    const char *cfg_path;
    struct xl_config xl;
    char file_path[1024]; /* the guest's file */
    struct guest_file *file;
    unsigned n_problems;
    uint32_t next_slot;
    unsigned n_of_type[64]; /* by virtio id: seen so far */
    /* Names of devices that viod serves: what sections may be called. */
    char names[CHECK_DEVICES_MAX][32];
    size_t n_names;
};

/* viodctl_check.c */
void check_problem(struct check *check, const char *indent, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define DEVICE_PROBLEM(check, ...) check_problem(check, "    ", __VA_ARGS__)
#define GUEST_PROBLEM(check, ...) check_problem(check, "  ", __VA_ARGS__)

/* viodctl_check_backend.c */
/* Whether backend= and grant_usage= fit each other, and what serves the device. NULL: dom0. */
void check_backend(struct check *check, const char *backend, enum xl_grants grants);
/* The guest as a whole: interrupts that are passed through. */
void check_irqs(struct check *check);

#endif
