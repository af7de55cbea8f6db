/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real hypervisor, for the worker and the supervisor. No Xen header is needed to include this.
 */
#ifndef VIOD_XEN_H
#define VIOD_XEN_H

#include "hypervisor.h"

/*
 * Opens all Xen handles for one domain and becomes its IOREQ server (or adopts the one that this
 * domain, the emulating one, left behind), with all its vCPUs. Needs root; lock_down follows.
 * precedence: what it claims goes before what other domains have claimed (dom0 takes the slots of a
 * driver domain that has died).
 * *n_vcpus = vCPUs of the guest (its maximum). -errno, with a message for the administrator that
 * names the missing right and its remedy (privcmd gate, XSM, CONFIG_IOREQ_SERVER).
 */
int xen_hypervisor_open(uint32_t domid, bool precedence, struct hypervisor **out,
                        uint32_t *n_vcpus, char *error, size_t error_len);

/*
 * Grants. gntdev cannot be restricted to one domain (Linux 6.12), and can be opened by root only: so
 * the supervisor opens it, for a worker with a device that uses grants; others have none.
 * The descriptor, or -errno with a message.
 */
int xen_gntdev_open(char *error, size_t error_len);
/* Worker, MMIO thread, before the first device that uses grants; takes fd over. */
void xen_hypervisor_use_gntdev(struct hypervisor *hv, int fd);
bool xen_hypervisor_has_gntdev(const struct hypervisor *hv);

/* Where RAM of an Arm guest can be (xen/include/public/arch-arm.h). */
extern const struct ram_bank xen_ram_banks[];
extern const size_t xen_n_ram_banks;

/* The virtio-mmio window of a domU and its interrupts. */
#define XEN_VIRTIO_MMIO_BASE 0x02000000u
#define XEN_VIRTIO_MMIO_SIZE 0x00100000u
#define XEN_VIRTIO_MMIO_SLOT 0x200u /* bytes per slot */
#define XEN_VIRTIO_SLOTS 11u
#define XEN_VIRTIO_SPI_FIRST 33u

#endif
