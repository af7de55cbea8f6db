/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the fake hypervisor share. */
#ifndef VIOD_FAKE_INTERNAL_H
#define VIOD_FAKE_INTERNAL_H

#include <pthread.h>
#include "fake_hypervisor.h"

#define NO_PAGE UINT32_MAX
#define CLAIMS_MAX 32u

enum slot_state { SLOT_IDLE, SLOT_READY, SLOT_IN_PROCESS, SLOT_ANSWERED };

struct vcpu {
    enum slot_state state;
    struct mmio_request request;
    uint64_t order;
    bool again; /* its process has died: the successor is to find it */
};

struct bank {
    struct ram_bank range;
    uint8_t *view;     /* the driver's mapping */
    uint32_t *page;    /* of the memfd, by page of the bank; NO_PAGE: given back */
    uint32_t first;    /* page of the memfd where the bank began */
};

/* One map_ram of the device, until the unmap_ram of the same range. */
struct mapping {
    struct mapping *next;
    uint8_t *at;
    uint64_t gfn;
    size_t pages, good;
    uint32_t page[];
};

/* An entry of the grant table. */
struct grant {
    uint64_t gfn;
    unsigned mapped; /* so many times, by the device */
    bool granted, read_only, other;
};
#define FAKE_GRANTS_MAX (1u << 20)

/* One map_grants of the device, until its unmap_grants. */
struct grant_mapping {
    struct grant_mapping *next;
    uint8_t *at;
    size_t pages;
    uint32_t refs[];
};

struct fault {
    unsigned nth;
    int error;
    bool always;
};

struct fake_hypervisor {
    struct hypervisor hv;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int memfd;
    uint32_t memfd_pages;
    struct bank banks[FAKE_BANKS_MAX];
    struct ram_bank ranges[FAKE_BANKS_MAX];
    size_t n_banks;
    struct mapping *mappings;
    uint32_t *given; /* pages of the memfd that must keep their poison */
    size_t n_given, given_size;
    size_t n_settled; /* of these: given before the last invalidation was answered */

    struct grant *grants;
    struct grant_mapping *grant_mappings;
    uint32_t next_ref;

    struct vcpu vcpus[FAKE_VCPUS_MAX];
    unsigned n_vcpus;
    uint64_t order;
    int event;
    bool armed;

    struct ram_bank claims[CLAIMS_MAX];
    size_t n_claims;
    unsigned irqs[FAKE_IRQS_MAX];
    struct fault faults[FAKE_OPS];
    struct fake_counts counts;
    bool count_violations;
};

void fake_violation(struct fake_hypervisor *fake, const char *what);
/* The error to fail with, or 0. Under the lock. */
int fake_injected(struct fake_hypervisor *fake, enum fake_op op);

/* fake_memory.c */
void fake_bank_create(struct fake_hypervisor *fake, struct bank *bank, struct ram_bank range);
void fake_bank_destroy(struct bank *bank);
void fake_check_poison(struct fake_hypervisor *fake);
/* All mappings are gone: what was written through them into pages given back is forgiven. */
void fake_settle_given(struct fake_hypervisor *fake);
int fake_map_ram(struct hypervisor *hv, uint64_t gfn, size_t pages, void *at, int *err);
void fake_unmap_ram(struct hypervisor *hv, void *at, size_t pages);
int fake_probe_ram(struct hypervisor *hv, uint64_t gfn);
/* The page of the memfd behind a frame, or NO_PAGE. Under the lock. */
uint32_t fake_frame(struct fake_hypervisor *fake, uint64_t gfn);

/* fake_grants.c */
int fake_map_grants(struct hypervisor *hv, const uint32_t *refs, size_t n, bool writable,
                    struct grant_map *map);
void fake_unmap_grants(struct hypervisor *hv, struct grant_map *map);
int fake_copy_grants(struct hypervisor *hv, struct grant_copy *copies, size_t n);

static inline struct fake_hypervisor *fake_from_hv(struct hypervisor *hv)
{
    return container_of(hv, struct fake_hypervisor, hv);
}

#endif
