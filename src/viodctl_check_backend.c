/* SPDX-License-Identifier: Apache-2.0 */
/* viodctl check: who serves a device and how, and what else the guest gets from the machine. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "../xen/xen.h"
#include "viodctl_check_internal.h"

/* Interrupts below are private to a CPU (GIC architecture: SPIs begin at 32). */
#define SPI_BASE 32u

void check_backend(struct check *check, const char *backend, enum xl_grants grants)
{
    if (!backend) {
        if (grants == XL_GRANTS_YES && check->options->grants() == -ENOENT)
            DEVICE_PROBLEM(check, "grant_usage=1 needs /dev/xen/gntdev, which this domain has not: load "
                           "the module xen-gntdev, or build its kernel with CONFIG_XEN_GNTDEV");
        return;
    }
    if (grants == XL_GRANTS_NO)
        fprintf(check->out, "    note: grant_usage=0 lets domain %s map all of the guest's memory; "
                "Xen's FLASK policy has to allow that\n", backend);
    switch (check->options->backend(backend)) {
    case 0:
        break;
    case -ENOENT:
        DEVICE_PROBLEM(check, "there is no domain %s now, and xl refuses the guest without; start "
                       "that one first", backend);
        break;
    case -ESRCH:
        DEVICE_PROBLEM(check, "viod does not run in domain %s; start it there, or the device never "
                       "becomes ready", backend);
        break;
    default:
        fprintf(check->out, "    not checked: whether viod runs in domain %s\n", backend);
    }
}

void check_irqs(struct check *check)
{
    uint32_t used = MIN(check->next_slot, XEN_VIRTIO_SLOTS);

    for (size_t i = 0; i < check->xl.n_irqs; i++) {
        uint32_t irq = check->xl.irqs[i];

        if (irq < SPI_BASE)
            GUEST_PROBLEM(check, "irqs= passes interrupt %" PRIu32 " through, which belongs to a "
                          "CPU; if the device tree says <0 %" PRIu32 " ...>, write %" PRIu32, irq,
                          irq, irq + SPI_BASE);
        else if (irq >= XEN_VIRTIO_SPI_FIRST && irq < XEN_VIRTIO_SPI_FIRST + used)
            GUEST_PROBLEM(check, "irqs= passes interrupt %" PRIu32 " through, which slot %" PRIu32
                          " uses; xl refuses that, and only fewer virtio devices can help: pass "
                          "the device to another domain, or have at most %" PRIu32 " of them", irq,
                          irq - XEN_VIRTIO_SPI_FIRST, irq - XEN_VIRTIO_SPI_FIRST);
    }
}
