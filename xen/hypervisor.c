/* SPDX-License-Identifier: Apache-2.0 */
/* The handles of one domain: opening them, restricting them to it, interrupts, closing. */
#include "hypervisor_internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <xen/sys/evtchn.h>
#include <xen/sys/privcmd.h>

#define PRIVCMD_DEVICE "/dev/xen/privcmd"
#define EVTCHN_DEVICE "/dev/xen/evtchn"

/* GUEST_RAM0_* and GUEST_RAM1_* of xen/include/public/arch-arm.h, part of the ABI of Arm guests. */
const struct ram_bank xen_ram_banks[] = {
    {.base = 0x40000000u, .size = 0xc0000000u},
    {.base = 0x0200000000u, .size = 0xfe00000000u},
};
const size_t xen_n_ram_banks = ARRAY_SIZE(xen_ram_banks);

#ifdef GUEST_RAM1_BASE
static_assert(GUEST_RAM0_BASE == 0x40000000u && GUEST_RAM0_SIZE == 0xc0000000u, "bank 0");
static_assert(GUEST_RAM1_BASE == 0x0200000000u && GUEST_RAM1_SIZE == 0xfe00000000u, "bank 1");
#endif
#ifdef GUEST_VIRTIO_MMIO_SPI_FIRST
static_assert(GUEST_VIRTIO_MMIO_BASE == XEN_VIRTIO_MMIO_BASE, "the window of virtio-mmio");
static_assert(GUEST_VIRTIO_MMIO_SIZE == XEN_VIRTIO_MMIO_SIZE, "the window of virtio-mmio");
static_assert(GUEST_VIRTIO_MMIO_SPI_FIRST == XEN_VIRTIO_SPI_FIRST, "interrupts of virtio-mmio");
static_assert(GUEST_VIRTIO_MMIO_SPI_LAST - GUEST_VIRTIO_MMIO_SPI_FIRST + 1 == XEN_VIRTIO_SLOTS,
              "interrupts of virtio-mmio");
#endif

int xen_dm_op(struct xen_hypervisor *xen, struct xen_dm_op *op)
{
    struct privcmd_dm_op_buf buf = {.uptr = op, .size = sizeof(*op)};
    struct privcmd_dm_op call = {.dom = xen->domid, .num = 1, .ubufs = &buf};

    hypervisor_count(&xen->hv, 1);
    return ioctl(xen->privcmd, IOCTL_PRIVCMD_DM_OP, &call) < 0 ? -errno : 0;
}

int xen_explain(const struct xen_hypervisor *xen, const char *what, int err, char *error,
                size_t error_len)
{
    const char *remedy;

    switch (err) {
    case -ENOSYS:
    case -EOPNOTSUPP:
        remedy = "Xen was built without CONFIG_IOREQ_SERVER (an expert option on Arm): build it "
                 "with CONFIG_EXPERT=y, CONFIG_UNSUPPORTED=y and CONFIG_IOREQ_SERVER=y";
        break;
    case -EACCES:
        remedy = "Xen's FLASK policy does not let this domain be its device model: the policy "
                 "needs 'hvm dm', 'domain2 resource_map', 'event create' and "
                 "'mmu { map_read map_write }' from this domain's type to the guest's";
        break;
    case -EPERM:
        remedy = "Xen lets only dom0 be its device model (XSM dummy or silo): in a driver domain, "
                 "boot Xen with 'xsm=flask flask=enforcing' and a policy that allows it (viod comes "
                 "with one: domd.te)";
        break;
    case -ESRCH:
        remedy = "the domain does not exist";
        break;
    case -ENOSPC:
        remedy = "all 8 IOREQ servers of the domain are in use by other device models";
        break;
    default:
        remedy = strerror(-err);
    }
    snprintf(error, error_len, "domain %u: %s: %s", xen->domid, what, remedy);
    return err;
}

static int open_device(const char *path, int flags, int *fd, char *error, size_t error_len)
{
    *fd = open(path, O_RDWR | O_CLOEXEC | flags);
    if (*fd >= 0)
        return 0;

    int err = -errno;

    switch (err) {
    case -ENOENT:
    case -ENODEV:
    case -ENXIO:
        snprintf(error, error_len,
                 "%s: %s: this system does not run on Xen, or its kernel lacks CONFIG_XEN_PRIVCMD "
                 "or CONFIG_XEN_DEV_EVTCHN",
                 path, strerror(-err));
        break;
    default:
        snprintf(error, error_len, "%s: %s", path, strerror(-err));
    }
    return err;
}

/*
 * The first of two gates: outside dom0, Linux lets privcmd speak to no domain but its own target.
 * An operation with no buffers never reaches Xen, so its answer is the kernel's alone.
 */
static int check_privcmd_gate(const struct xen_hypervisor *xen, char *error, size_t error_len)
{
    struct privcmd_dm_op nothing = {.dom = xen->domid, .num = 0};

    if (ioctl(xen->privcmd, IOCTL_PRIVCMD_DM_OP, &nothing) == 0)
        return 0;

    int err = -errno;

    if (err == -EPERM)
        snprintf(error, error_len,
                 "domain %u: this domain's kernel blocks hypercalls for it: boot the kernel with "
                 "'xen_privcmd.unrestricted=1' (and without lockdown)",
                 xen->domid);
    else
        snprintf(error, error_len,
                 "%s: device-model operations: %s (they need Linux 4.18 or later)", PRIVCMD_DEVICE,
                 strerror(-err));
    return err;
}

static int count_vcpus(struct xen_hypervisor *xen, char *error, size_t error_len)
{
    struct xen_dm_op op = {.op = XEN_DMOP_nr_vcpus};
    int err = xen_dm_op(xen, &op);

    if (err)
        return xen_explain(xen, "becoming its device model", err, error, error_len);
    if (op.u.nr_vcpus.vcpus == 0 || op.u.nr_vcpus.vcpus > IOREQ_SLOTS_MAX) {
        snprintf(error, error_len, "domain %u has %u vCPUs; 1 to %u can be served", xen->domid,
                 op.u.nr_vcpus.vcpus, IOREQ_SLOTS_MAX);
        return -E2BIG;
    }
    xen->n_vcpus = op.u.nr_vcpus.vcpus;
    return 0;
}

/*
 * Level 1 only. Xen latches it as an edge on the edge-triggered SPIs of virtio-mmio, each call is
 * one interrupt, and level 0 would do nothing there. One ioctl and no state of ours: any thread.
 */
static int raise_irq(struct hypervisor *hv, uint32_t irq)
{
    struct xen_dm_op op = {.op = XEN_DMOP_set_irq_level,
                           .u.set_irq_level = {.irq = irq, .level = 1}};

    return xen_dm_op(to_xen(hv), &op);
}

/* From here on the kernel refuses every other domain on these descriptors, and raw hypercalls. */
static int lock_down(struct hypervisor *hv)
{
    struct xen_hypervisor *xen = to_xen(hv);
    struct ioctl_evtchn_restrict_domid restriction = {.domid = xen->domid};

    if (ioctl(xen->privcmd, IOCTL_PRIVCMD_RESTRICT, &xen->domid) < 0)
        return -errno;
    if (ioctl(xen->evtchn, IOCTL_EVTCHN_RESTRICT_DOMID, &restriction) < 0)
        return -errno;
    return 0;
}

static void close_all(struct hypervisor *hv)
{
    struct xen_hypervisor *xen = to_xen(hv);

    xen_ioreq_close(xen);
    if (xen->gntdev >= 0)
        close(xen->gntdev);
    if (xen->evtchn >= 0)
        close(xen->evtchn);
    if (xen->privcmd >= 0)
        close(xen->privcmd);
    free(xen);
}

static const struct hypervisor_ops xen_ops = {
    .map_ram = xen_map_ram,
    .unmap_ram = xen_unmap_ram,
    .probe_ram = xen_probe_ram,
    .map_grants = xen_map_grants,
    .unmap_grants = xen_unmap_grants,
    .copy_grants = xen_copy_grants,
    .claim_mmio = xen_ioreq_claim,
    .release_mmio = xen_ioreq_release,
    .raise_irq = raise_irq,
    .event_fd = xen_ioreq_event_fd,
    .next_request = xen_ioreq_next,
    .finish_request = xen_ioreq_finish,
    .arm = xen_ioreq_arm,
    .disarm = xen_ioreq_disarm,
    .lock_down = lock_down,
    .close = close_all,
};

int xen_hypervisor_open(uint32_t domid, bool precedence, struct hypervisor **out,
                        uint32_t *n_vcpus, char *error, size_t error_len)
{
    struct xen_hypervisor *xen;
    int err;

    if (domid >= DOMID_FIRST_RESERVED) {
        snprintf(error, error_len, "%u is not the number of a domain", domid);
        return -EINVAL;
    }
    xen = calloc(1, sizeof(*xen));
    if (!xen) {
        snprintf(error, error_len, "out of memory");
        return -ENOMEM;
    }
    xen->hv.ops = &xen_ops;
    xen->domid = (domid_t)domid;
    xen->precedence = precedence;
    xen->privcmd = -1;
    xen->evtchn = -1;
    xen->gntdev = -1;

    err = open_device(PRIVCMD_DEVICE, 0, &xen->privcmd, error, error_len);
    if (!err)
        err = open_device(EVTCHN_DEVICE, O_NONBLOCK, &xen->evtchn, error, error_len);
    if (!err)
        err = check_privcmd_gate(xen, error, error_len);
    if (!err)
        err = count_vcpus(xen, error, error_len);
    if (!err)
        err = xen_ioreq_open(xen, error, error_len);
    if (err) {
        close_all(&xen->hv);
        return err;
    }
    *out = &xen->hv;
    *n_vcpus = xen->n_vcpus;
    return 0;
}
