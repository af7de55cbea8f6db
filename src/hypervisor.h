/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between the device model and the hypervisor: trapped accesses, interrupts, guest memory.
 * xen/ implements it on Xen, tests/fake/ in the process. Nothing above this line knows Xen.
 *
 * All functions return 0 (or what they say) or a negative errno. Who may call what:
 *   MMIO thread only:   next_request, finish_request, poll, arm, claim_mmio, release_mmio
 *   any thread:         raise_irq, map_ram, unmap_ram, probe_ram (map/unmap are serialised by
 *                       guest_memory), map_grants, unmap_grants, copy_grants
 *   before threads:     lock_down
 */
#ifndef VIOD_HYPERVISOR_H
#define VIOD_HYPERVISOR_H

#include <errno.h>
#include "types.h"

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE ((size_t)1 << GUEST_PAGE_SHIFT)

enum request_kind {
    REQUEST_READ,       /* the guest reads `size` bytes at `addr`; the answer goes into `data` */
    REQUEST_WRITE,      /* the guest writes `data` */
    REQUEST_INVALIDATE, /* the guest gave pages back: drop all mappings of its RAM, then finish */
    REQUEST_UNKNOWN,    /* something else: answer with all ones, never skip it (the vCPU hangs) */
};

/* A trapped access of one vCPU. The vCPU sleeps until finish_request. */
struct mmio_request {
    enum request_kind kind;
    uint32_t vcpu;
    uint32_t size; /* bytes: 1, 2, 4 or 8 for READ and WRITE */
    uint64_t addr; /* guest-physical */
    uint64_t data; /* little-endian value, zero-extended */
};

/* Pages that the guest granted, mapped one behind the other by map_grants. */
struct grant_map {
    void *at;        /* our address of the first one, page aligned; NULL: nothing is mapped */
    size_t pages;
    uint64_t handle; /* the implementation's */
};

/* Pages that can be mapped at once: 8 MiB. */
#define GRANT_MAP_MAX ((size_t)2048)

/* One piece of a batched copy between a page that the guest granted and our memory. */
struct grant_copy {
    void *host;      /* any alignment */
    uint32_t ref;
    uint16_t offset; /* bytes in the granted page; offset + len <= GUEST_PAGE_SIZE */
    uint16_t len;    /* bytes */
    bool to_guest;   /* the same for all pieces of a call */
    int16_t result;  /* 0 or -errno, set by copy_grants */
};

struct hypervisor;

struct hypervisor_ops {
    /*
     * Maps `pages` guest frames from `gfn` on at the page-aligned address `at`, replacing what is
     * mapped there, readable and writable. err[i] is 0 or -errno for each page; a page with an error
     * must never be touched, not even by a system call. Fails as a whole (nothing mapped, the range
     * is PROT_NONE again) if no page could be mapped.
     * What map_ram made is undone by one unmap_ram of exactly the same range.
     */
    int (*map_ram)(struct hypervisor *hv, uint64_t gfn, size_t pages, void *at, int *err);
    /* Makes the range PROT_NONE and inaccessible again. Cannot fail in a way that keeps pages. */
    void (*unmap_ram)(struct hypervisor *hv, void *at, size_t pages);
    /* 0 if the frame could be mapped at this moment. Leaves nothing mapped. */
    int (*probe_ram)(struct hypervisor *hv, uint64_t gfn);

    /*
     * Grants: without a descriptor for them (xen.h) all say -EOPNOTSUPP.
     *
     * Maps the n pages (1 .. GRANT_MAP_MAX) that the guest granted under these references, side by
     * side: all or none. Mapped for reading only, a reference that was granted for reading only
     * will do. The kernel must not pin the pages (O_DIRECT): what is pinned is not unmapped when
     * unmap_grants returns, and the guest could not end its grant.
     */
    int (*map_grants)(struct hypervisor *hv, const uint32_t *refs, size_t n, bool writable,
                      struct grant_map *map);
    /* Afterwards the guest may end the grants. Sets map->at to NULL. */
    void (*unmap_grants)(struct hypervisor *hv, struct grant_map *map);
    /* Copies without mapping, in order. 0: each piece has its result. -errno: no piece counts. */
    int (*copy_grants)(struct hypervisor *hv, struct grant_copy *copies, size_t n);

    /* Asks for the guest's accesses to [base, base + len). -EEXIST if it is claimed already. */
    int (*claim_mmio)(struct hypervisor *hv, uint64_t base, uint64_t len);
    int (*release_mmio)(struct hypervisor *hv, uint64_t base, uint64_t len);

    /* Raises an edge-triggered SPI. */
    int (*raise_irq)(struct hypervisor *hv, uint32_t irq);

    /* A descriptor that is readable when a request may be waiting, after `arm`. */
    int (*event_fd)(struct hypervisor *hv);
    /*
     * The next outstanding request: 1, or 0 if there is none. A request stays outstanding, and is
     * returned only once, until finish_request; several (one per vCPU) may be outstanding.
     */
    int (*next_request)(struct hypervisor *hv, struct mmio_request *request);
    /* Answers: request->data is what a READ returns. The vCPU runs on. */
    void (*finish_request)(struct hypervisor *hv, const struct mmio_request *request);
    /*
     * Before sleeping on event_fd: asks for an event on the next request. True if a request is there
     * already (then do not sleep). After arm, call `disarm` before the next next_request.
     */
    bool (*arm)(struct hypervisor *hv);
    void (*disarm)(struct hypervisor *hv);

    /* Gives up every right that is not needed for this one domain. Before the first request. */
    int (*lock_down)(struct hypervisor *hv);
    /* Unmaps and closes all. Leaves the IOREQ server to the domain's end: see xen/ioreq.c. */
    void (*close)(struct hypervisor *hv);
};

/* Implementations embed this first. */
struct hypervisor {
    const struct hypervisor_ops *ops;
    /* Where to count system calls, for stats; NULL: nowhere. Any thread adds. */
    _Atomic uint64_t *calls;
};

static inline void hypervisor_count(struct hypervisor *hv, uint64_t n)
{
    if (hv->calls != NULL)
        atomic_fetch_add_explicit(hv->calls, n, memory_order_relaxed);
}

/* The guest's RAM as the architecture lays it out; holes inside a bank are found when mapping. */
struct ram_bank {
    uint64_t base; /* guest-physical, page aligned */
    uint64_t size; /* bytes */
};

#endif
