/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the real hypervisor share: its descriptors and one IOREQ server.
 *
 * The kernel's devices are used by their own ioctls, not through Xen's libraries: libxendevicemodel
 * keeps a second descriptor, for raw hypercalls, that xendevicemodel_restrict leaves unrestricted,
 * and allocates on each call; and libxenevtchn takes one port per system call where the device
 * takes all.
 */
#ifndef VIOD_XEN_HYPERVISOR_INTERNAL_H
#define VIOD_XEN_HYPERVISOR_INTERNAL_H

#ifndef __XEN_TOOLS__
#define __XEN_TOOLS__ 1 /* xen/hvm/dm_op.h is empty without it */
#endif

/* Xen's headers need <stdint.h> and do not say so. */
#include "xen.h"

#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/hvm/dm_op.h>

/* Slots in the one synchronous page; Xen on Arm gives a domain no more vCPUs than that. */
#define IOREQ_SLOTS_MAX 128u

/*
 * struct ioreq of xen/hvm/ioreq.h, with its bit fields as the byte that they share: the state in it
 * is what Xen and we synchronise on, and a bit field cannot be atomic.
 */
struct ioreq_slot {
    uint64_t addr;
    uint64_t data;
    uint32_t count;
    uint32_t size;
    uint32_t vp_eport;
    uint16_t pad;
    _Atomic uint8_t flags; /* IOREQ_STATE_MASK and IOREQ_FLAG_* */
    uint8_t type;
};

struct xen_hypervisor {
    struct hypervisor hv;
    domid_t domid;
    int privcmd; /* the only way to hypercalls and foreign pages */
    int evtchn;
    int gntdev; /* -1: no device of this domain uses grants */

    /* The rest belongs to ioreq.c, and after the start to the MMIO thread. */
    bool precedence;
    ioservid_t server;
    struct ioreq_slot *slots; /* the synchronous page */
    uint32_t n_vcpus;
    uint32_t next_vcpu; /* where the next scan starts */
    evtchn_port_t ports[IOREQ_SLOTS_MAX]; /* local ends; 0: not bound */
    bool outstanding[IOREQ_SLOTS_MAX];    /* returned by next_request, not yet finished */
};

static inline struct xen_hypervisor *to_xen(struct hypervisor *hv)
{
    return container_of(hv, struct xen_hypervisor, hv);
}

/* hypervisor.c. 0 or -errno; any thread. */
int xen_dm_op(struct xen_hypervisor *xen, struct xen_dm_op *op);
/* Writes what an administrator can do about `err` of the step `what`; returns err. */
int xen_explain(const struct xen_hypervisor *xen, const char *what, int err, char *error,
                size_t error_len);

/* ioreq.c. Creates or adopts the server, and binds all vCPUs. -errno with a message. */
int xen_ioreq_open(struct xen_hypervisor *xen, char *error, size_t error_len);
void xen_ioreq_close(struct xen_hypervisor *xen);
int xen_ioreq_claim(struct hypervisor *hv, uint64_t base, uint64_t len);
int xen_ioreq_release(struct hypervisor *hv, uint64_t base, uint64_t len);
int xen_ioreq_event_fd(struct hypervisor *hv);
int xen_ioreq_next(struct hypervisor *hv, struct mmio_request *request);
void xen_ioreq_finish(struct hypervisor *hv, const struct mmio_request *request);
bool xen_ioreq_arm(struct hypervisor *hv);
void xen_ioreq_disarm(struct hypervisor *hv);

/* foreign_memory.c */
int xen_map_ram(struct hypervisor *hv, uint64_t gfn, size_t pages, void *at, int *err);
void xen_unmap_ram(struct hypervisor *hv, void *at, size_t pages);
int xen_probe_ram(struct hypervisor *hv, uint64_t gfn);

/* grants.c */
int xen_map_grants(struct hypervisor *hv, const uint32_t *refs, size_t n, bool writable,
                   struct grant_map *map);
void xen_unmap_grants(struct hypervisor *hv, struct grant_map *map);
int xen_copy_grants(struct hypervisor *hv, struct grant_copy *copies, size_t n);

#endif
