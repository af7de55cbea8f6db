/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hypervisor inside the test's process: guest RAM in a memfd, vCPUs whose trapped accesses wait
 * in slots, interrupts that are counted. It implements src/hypervisor.h, and it watches the rules
 * that on a real machine end in a crash: breaking one is a violation, which aborts the test (or is
 * counted, for the tests of the fake itself).
 *
 * The driver sees guest RAM at one address and the device at another, and every page that was given
 * back and returned has another page of memory behind it. So a device that goes on using an old
 * mapping reads and writes something else than the driver does, as on Xen.
 *
 * All functions may be called from any thread.
 */
#ifndef VIOD_FAKE_HYPERVISOR_H
#define VIOD_FAKE_HYPERVISOR_H

#include "hypervisor.h"

#define FAKE_BANKS_MAX 4u
#define FAKE_VCPUS_MAX 8u
#define FAKE_IRQS_MAX 256u

/* The banks that libxl lays out start here; the second one is beyond 32 bits. */
#define FAKE_BANK0_BASE 0x40000000u
#define FAKE_BANK1_BASE 0x200000000u
#define FAKE_BANK_SIZE ((uint64_t)64 << 20)
/* What a page holds that the guest gave back. A write to it is a violation, except for one through
 * a mapping that was made before, until the invalidation is answered. */
#define FAKE_POISON 0xdb

struct fake_config {
    struct ram_bank banks[FAKE_BANKS_MAX]; /* none: two of 64 MiB at the addresses above */
    size_t n_banks;
    unsigned vcpus;          /* 0: 4 */
    bool count_violations;   /* do not abort */
};

enum fake_op {
    FAKE_MAP,
    FAKE_PROBE,
    FAKE_RAISE,
    FAKE_CLAIM,
    FAKE_GRANT_MAP,
    FAKE_GRANT_COPY,
    FAKE_OPS
};

struct fake_counts {
    uint64_t map_calls, unmap_calls, probes, irqs, requests, answers;
    size_t mapped_pages;      /* now, by the device */
    size_t mapped_pages_max;
    uint64_t grant_maps, grant_unmaps, grant_copies; /* calls */
    size_t granted_pages;     /* now mapped by grants */
    size_t outside_ram;       /* pages that somebody tried to map and that no bank has */
    unsigned violations;
    bool locked_down, closed;
};

struct fake_hypervisor;

/* NULL: the defaults. Aborts when the host has no memory. */
struct fake_hypervisor *fake_create(const struct fake_config *config);
/* Closes if the device side did not; checks that nothing is mapped and the poison is untouched. */
void fake_destroy(struct fake_hypervisor *fake);

struct hypervisor *fake_seam(struct fake_hypervisor *fake);
const struct ram_bank *fake_banks(const struct fake_hypervisor *fake, size_t *n);
struct fake_counts fake_counts(struct fake_hypervisor *fake);

/* ---- RAM, as the driver sees it ---- */

/* The driver's own pointer to [gpa, gpa + len); aborts if that is not RAM of one bank. A page that
 * was given back is inaccessible. */
void *fake_ram(struct fake_hypervisor *fake, uint64_t gpa, size_t len);
/* The same memory at an address of its own, for another thread of the guest: a race between two
 * CPUs of the guest is none of ours, and ThreadSanitizer judges by address. For pages that were
 * never given back; `free` it with the same length. */
void *fake_ram_alias(struct fake_hypervisor *fake, uint64_t gpa, size_t len);
void fake_ram_alias_free(void *alias, size_t len);
/* The guest gives pages back (they are poisoned), and takes them again (zeroed, elsewhere). What
 * the device has mapped stays mapped. Giving or taking a page twice has no effect. */
void fake_balloon_out(struct fake_hypervisor *fake, uint64_t gpa, size_t pages);
void fake_balloon_in(struct fake_hypervisor *fake, uint64_t gpa, size_t pages);
/* Pages that the device has mapped and that are not the guest's any more, or another page now. */
size_t fake_stale_pages(struct fake_hypervisor *fake);

/* All of it is RAM of one bank, and the guest has it. */
bool fake_is_ram(struct fake_hypervisor *fake, uint64_t gpa, uint64_t len);

/* ---- grants ---- */

/* Grants the pages from that of gpa on to the device's domain: the first of consecutive references. */
uint32_t fake_grant(struct fake_hypervisor *fake, uint64_t gpa, size_t pages, bool read_only);
/* What a driver gives for gpa, whose page was granted under ref. */
uint64_t fake_grant_address(uint32_t ref, uint64_t gpa);
/* The driver ends them, as after a request: a page that is mapped is a violation. */
void fake_grant_end(struct fake_hypervisor *fake, uint32_t ref, size_t pages);
/* A hostile one ends it at any time: what is mapped stays so. */
void fake_grant_revoke(struct fake_hypervisor *fake, uint32_t ref);
/* It was granted to another domain. */
void fake_grant_to_other(struct fake_hypervisor *fake, uint32_t ref);

/* ---- vCPUs ---- */

/* Traps; the vCPU sleeps. A READ or WRITE of an unclaimed address is answered at once: all ones. */
void fake_trap(struct fake_hypervisor *fake, unsigned vcpu, enum request_kind kind, uint64_t addr,
               unsigned size, uint64_t data);
/* True: the vCPU runs again, *data (may be NULL) is what it read. */
bool fake_answered(struct fake_hypervisor *fake, unsigned vcpu, uint64_t *data);
/* Waits for that, from a thread that plays the vCPU. False after timeout_ms. */
bool fake_wait_answer(struct fake_hypervisor *fake, unsigned vcpu, uint64_t *data, int timeout_ms);

/* ---- the death of the device's process ---- */

/* What the hypervisor knows at this moment; guest RAM is not part of it. Free it with free(). */
struct fake_picture;
struct fake_picture *fake_picture(struct fake_hypervisor *fake);
/*
 * The process has died at that moment, and a successor has adopted the requests: those that were taken
 * and not answered are there again, those answered are not. Nothing that happened since has happened.
 */
void fake_succeed(struct fake_hypervisor *fake, const struct fake_picture *picture);

/* ---- interrupts ---- */

/* How often the interrupt was raised since the last call. */
unsigned fake_take_irqs(struct fake_hypervisor *fake, uint32_t irq);
/* Waits until it was raised at least once. False after timeout_ms. */
bool fake_wait_irq(struct fake_hypervisor *fake, uint32_t irq, int timeout_ms);

/* ---- faults ---- */

/* The nth call of op from now on fails with error (negative errno), once; nth = 0: each, until
 * fake_fail(fake, op, 0, 0). */
void fake_fail(struct fake_hypervisor *fake, enum fake_op op, unsigned nth, int error);

/* Ends the test with a message. For the whole driver's half, which knows no test framework. */
void fake_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
