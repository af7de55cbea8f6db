/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests share: cmocka's includes, and a queue without a device around it. */
#ifndef VIOD_UNIT_H
#define VIOD_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "ring.h"

/* With grants: what is larger is mapped. */
#define RIG_COPY_MAX (64u << 10)

/* A virtqueue, the guest's memory and the driver's half of the ring; no device, no loop. */
struct rig {
    struct fake_hypervisor *fake;
    struct hypervisor *hv;
    struct guest_memory *memory;
    struct grant_memory *grants;  /* with F_ACCESS_PLATFORM; or VIOD_FAKE_GRANTS in the environment */
    struct virtqueue *vq;
    struct guest_heap heap, high; /* first and second bank, the last 2 MiB of each left out */
    struct ring ring;
    gpa_t data;                   /* 1 MiB of RAM for buffers */
};

static inline void rig_start(struct rig *rig)
{
    struct virtqueue_setup setup = ring_setup(&rig->ring);

    assert_int_equal(virtqueue_start(rig->vq, &setup), 0);
}

/* size_max: of the queue; the ring may be smaller. */
static inline void rig_create_sized(struct rig *rig, uint16_t size, uint16_t size_max,
                                    uint64_t features)
{
    const struct ram_bank *banks;
    size_t n;

    memset(rig, 0, sizeof(*rig));
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        features |= F_ACCESS_PLATFORM;
    rig->fake = fake_create(NULL);
    rig->hv = fake_seam(rig->fake);
    banks = fake_banks(rig->fake, &n);
    assert_int_equal(guest_memory_create(rig->hv, banks, n, &rig->memory), 0);
    if ((features & F_ACCESS_PLATFORM) != 0)
        assert_int_equal(grant_memory_create(rig->hv, &rig->grants), 0);
    rig->heap = guest_heap(rig->fake, banks[0].base, banks[0].size - GUEST_CHUNK_SIZE);
    rig->high = guest_heap(rig->fake, banks[1].base, banks[1].size - GUEST_CHUNK_SIZE);
    rig->data = guest_alloc(&rig->heap, 1u << 20, GUEST_PAGE_SIZE);
    ring_create(&rig->ring, &rig->heap, size, features | F_VERSION_1);

    struct virtqueue_config config = {
        .memory = rig->memory,
        .size_max = size_max,
        .request_size = sizeof(struct chain) + 16,
        .owner = rig,
        .grants = rig->grants,
        .error_status = 0xe5,
        .copy_max = RIG_COPY_MAX,
    };
    assert_int_equal(virtqueue_create(&config, &rig->vq), 0);
    rig_start(rig);
}

static inline void rig_create(struct rig *rig, uint16_t size, uint64_t features)
{
    rig_create_sized(rig, size, size, features);
}

/* Every test ends here: nothing in flight, nothing mapped, no rule of the hypervisor broken. */
static inline void rig_destroy(struct rig *rig)
{
    assert_int_equal(virtqueue_in_flight(rig->vq), 0);
    virtqueue_stop(rig->vq);
    virtqueue_destroy(rig->vq);
    ring_destroy(&rig->ring);
    guest_memory_destroy(rig->memory);
    grant_memory_destroy(rig->grants);
    assert_int_equal(fake_counts(rig->fake).granted_pages, 0);
    assert_int_equal(fake_counts(rig->fake).mapped_pages, 0);
    rig->hv->ops->close(rig->hv);
    fake_destroy(rig->fake);
}

static inline struct segment segment(uint64_t addr, uint32_t len)
{
    return (struct segment){{addr}, len};
}

/* The device's half for a well-behaved ring: takes the next chain. */
static inline struct chain *rig_pop(struct rig *rig)
{
    struct chain *chain = NULL;

    assert_int_equal(virtqueue_pop(rig->vq, &chain), 1);
    assert_non_null(chain);
    return chain;
}

static inline void rig_expect_empty(struct rig *rig)
{
    struct chain *chain;

    assert_int_equal(virtqueue_pop(rig->vq, &chain), 0);
}

/* A violation: pop says so, says why, and the queue stays dead until it is started anew. */
static inline void rig_expect_broken(struct rig *rig)
{
    struct chain *chain;

    assert_int_equal(virtqueue_pop(rig->vq, &chain), -EPROTO);
    assert_true(virtqueue_broken(rig->vq));
    assert_true(virtqueue_error(rig->vq)[0] != '\0');
    assert_int_equal(virtqueue_pop(rig->vq, &chain), -EPROTO);
    assert_false(virtqueue_flush(rig->vq));
    assert_false(virtqueue_enable_notify(rig->vq));
    virtqueue_disable_notify(rig->vq);
}

/* What the driver does after DEVICE_NEEDS_RESET; then one request goes through. */
static inline void rig_expect_recovery(struct rig *rig)
{
    struct segment in = segment(rig->data.addr, 8);
    struct ring_used used;

    virtqueue_stop(rig->vq);
    ring_restart(&rig->ring, rig->ring.size);
    rig_start(rig);
    assert_false(virtqueue_broken(rig->vq));
    ring_interrupts_on(&rig->ring);
    assert_true(ring_add(&rig->ring, NULL, 0, &in, 1, rig, false) >= 0);
    struct chain *chain = rig_pop(rig);
    assert_int_equal(chain_write(chain, "recover", 8), 8);
    chain_complete(chain, 8);
    assert_true(virtqueue_flush(rig->vq));
    assert_true(ring_get(&rig->ring, &used));
    assert_ptr_equal(used.token, rig);
    assert_int_equal(used.len, 8);
    assert_memory_equal(fake_ram(rig->fake, rig->data.addr, 8), "recover", 8);
}

#endif
