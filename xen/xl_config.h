/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an xl.cfg says about virtio devices, read as xl reads it. No Xen header is needed to include
 * this.
 */
#ifndef VIOD_XL_CONFIG_H
#define VIOD_XL_CONFIG_H

#include "types.h"

enum xl_backend_type {
    XL_BACKEND_UNSAID,
    XL_BACKEND_PHY,
    XL_BACKEND_TAP,
    XL_BACKEND_QDISK,
    XL_BACKEND_STANDALONE,
};

enum xl_grants { XL_GRANTS_UNSAID, XL_GRANTS_NO, XL_GRANTS_YES };

/* One entry of disk=[]. */
struct xl_disk {
    char *spec;    /* as it is written */
    char *error;   /* why xl refuses it, or NULL; then nothing below is set */
    char *target;  /* NULL: none */
    char *vdev;
    char *backend; /* domain; NULL: domain 0 */
    char *script;
    bool virtio;   /* specification=virtio */
    enum xl_backend_type backend_type;
    bool raw;      /* format */
    bool cdrom;
    bool read_only;
    bool discard;  /* with libxl's default: yes, if writable */
    bool direct_io_safe;
    enum xl_grants grants;
    bool grants_refused; /* this machine's xl, before 4.19, refuses the disk for its grant_usage */
};

/* One entry of virtio=[]. */
struct xl_virtio {
    char *spec;
    char *error;
    char *type;      /* "virtio,device2"; NULL: none */
    char *transport; /* NULL: none */
    char *backend;   /* domain; NULL: domain 0 */
    enum xl_grants grants;
};

struct xl_config {
    char *name;      /* NULL: none */
    uint32_t n_vcpus; /* the maximum */
    struct xl_disk *disks;
    size_t n_disks;
    struct xl_virtio *virtios;
    size_t n_virtios;
    uint32_t *irqs;  /* passed through */
    size_t n_irqs;
    char *warnings;  /* lines from xl's parser, each with its newline; never NULL */
};

/* 0, or -errno with a message. *config is valid in both cases. */
int xl_config_load(const char *path, struct xl_config *config, char *error, size_t error_len);
void xl_config_free(struct xl_config *config);

/*
 * libxl's rule for vdev: xvdb, xvdb1, d1p0, hda, sda, or a number. False: none of them. *devid is the
 * number by which libxl tells disks apart.
 */
bool xl_vdev_number(const char *vdev, int *devid);

#endif
