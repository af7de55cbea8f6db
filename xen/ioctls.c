/* SPDX-License-Identifier: Apache-2.0 */
/* The ioctls that xen/ needs once it is locked down, for the sandbox to allow. */
#include "hypervisor_ioctls.h"

#include <stddef.h>
#include <sys/ioctl.h>
#include <xenctrl.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>
#include <xen/sys/privcmd.h>

const uint32_t hypervisor_ioctls[] = {
    (uint32_t)IOCTL_PRIVCMD_DM_OP,
    (uint32_t)IOCTL_PRIVCMD_MMAPBATCH_V2,
    (uint32_t)IOCTL_EVTCHN_NOTIFY,
    (uint32_t)IOCTL_EVTCHN_UNBIND,
    (uint32_t)IOCTL_EVTCHN_RESET,
    /* Of use to a worker that was handed gntdev: it can open nothing. */
    (uint32_t)IOCTL_GNTDEV_MAP_GRANT_REF,
    (uint32_t)IOCTL_GNTDEV_UNMAP_GRANT_REF,
    (uint32_t)IOCTL_GNTDEV_GRANT_COPY,
};
const size_t n_hypervisor_ioctls = ARRAY_SIZE(hypervisor_ioctls);
