/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between the device model and the hypervisor: trapped accesses, interrupts, guest memory.
 * xen/ implements it on Xen, tests/fake/ in the process. Nothing above this line knows Xen.
 *
 * All functions return 0 (or what they say) or a negative errno. Who may call what:
 *   MMIO thread only:   next_request, finish_request, poll, arm, claim_mmio, release_mmio
 *   any thread:         raise_irq, map_ram, unmap_ram, probe_ram, copy (map/unmap are serialised by
 *                       guest_memory)
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

/* One piece of a batched copy between guest memory and ours (grant copies, later). */
struct guest_copy {
    gpa_t guest;
    void *host;
    uint32_t len; /* bytes; does not cross a guest page */
    bool to_guest;
    int16_t result; /* 0 or -errno, set by copy */
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
    /* Copies between guest memory and ours by hypercall, for memory that is granted. */
    int (*copy)(struct hypervisor *hv, struct guest_copy *copies, size_t n);

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
