/* SPDX-License-Identifier: Apache-2.0 */
/*
 * viodctl check: what each device of an xl.cfg will be, or what is wrong, without starting anything.
 */
#ifndef VIOD_VIODCTL_CHECK_H
#define VIOD_VIODCTL_CHECK_H

#include <stdio.h>

#include "types.h"

/* What is found at an image's path. */
struct image_info {
    mode_t mode;  /* as in struct stat */
    uint64_t size;
    int read_error, write_error; /* errno, or 0 */
    bool direct;  /* O_DIRECT works */
};

struct check_options {
    const char *config_dir; /* of the guests' files */
    const char *run_dir;    /* of the guests' sockets */
    FILE *out;
    int (*look)(const char *path, struct image_info *image); /* 0 or -errno */
    int (*backend)(const char *domain); /* as xen_backend_state */
    int (*grants)(void);                /* as xen_grants_usable */
};

int check_look_at_image(const char *path, struct image_info *image);

/* Reports on one xl.cfg; the number of problems. */
unsigned check_guest(const char *cfg_path, const struct check_options *options);

/* The command: exit status 0 or 1. conf_dir: folder of viod.conf, NULL: the usual one. */
int viodctl_check(const char *conf_dir, char *const *paths, int n_paths);

#endif
