/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fuzzer's input as a program for a fake machine: accesses to registers, descriptors of any kind,
 * well-formed requests, notifications, pages given back and taken again, resets, and what a device's
 * own fuzzer adds for its host side. Whatever ran, a reset must bring the device back to work.
 */
#ifndef VIOD_FUZZ_MACHINE_H
#define VIOD_FUZZ_MACHINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "driver.h"
#include "log.h"

#define FUZZ_RING 16u
#define FUZZ_BUFFER 65536u
#define FUZZ_STEPS 400u

struct fuzz {
    const uint8_t *at;
    size_t left;
    struct machine *m;
    struct device_config config;
    struct driver driver;
    gpa_t buffer, page; /* 64 KiB that stay; a page that comes and goes */
    uint16_t avail[DRIVER_QUEUES_MAX]; /* packed: 0 to FUZZ_RING - 1, and the wrap counter */
    bool wrap[DRIVER_QUEUES_MAX];
    uint64_t features; /* of the simplest driver */
    void *host; /* the device's fuzzer's */
    void (*host_step)(struct fuzz *f);
    /* What the device asks the host side for; may be NULL. */
    int (*ask)(struct virtio_device *dev, uint32_t id, const char *request);
    bool waits; /* what the device began is done before the next step, unless the input says no */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline uint8_t fuzz_u8(struct fuzz *f)
{
    if (f->left == 0)
        return 0;
    f->left--;
    return *f->at++;
}
static inline uint16_t fuzz_u16(struct fuzz *f)
{
    uint16_t low = fuzz_u8(f);

    return (uint16_t)(low | fuzz_u8(f) << 8);
}
static inline uint32_t fuzz_u32(struct fuzz *f)
{
    uint32_t low = fuzz_u16(f);

    return low | (uint32_t)fuzz_u16(f) << 16;
}

static inline uint64_t fuzz_address(struct fuzz *f)
{
    uint8_t kind = fuzz_u8(f);
    uint16_t offset = fuzz_u16(f);

    switch (kind % 8) {
    case 0: return f->page.addr + offset % GUEST_PAGE_SIZE;
    case 1: return MACHINE_BASE + offset % 0x200;
    case 2: return UINT64_MAX - offset;
    case 3: return UINT64_C(1) << 63 | offset;
    default: return f->buffer.addr + offset;
    }
}

/* The next places of a packed ring are taken. */
static inline void fuzz_advance(struct fuzz *f, unsigned queue, unsigned n)
{
    for (; n > 0; n--)
        if (++f->avail[queue] >= FUZZ_RING) {
            f->avail[queue] = 0;
            f->wrap[queue] = !f->wrap[queue];
        }
}

/* Of a packed ring: the next descriptor, complete but for being available, is. */
static inline void fuzz_publish_packed(struct fuzz *f, unsigned queue, uint16_t flags)
{
    struct vring_packed_desc *desc = &f->driver.rings[queue].packed_desc[f->avail[queue]];
    const uint16_t both = packed_avail_flags(true) | packed_avail_flags(false);

    ram_store16(&desc->flags, (uint16_t)((flags & ~both) | packed_avail_flags(f->wrap[queue])));
    fuzz_advance(f, queue, 1);
}

/* Makes the descriptor at `head` available, whatever it is. Packed: the next one, with this ID. */
static inline void fuzz_publish(struct fuzz *f, unsigned queue, uint16_t head)
{
    struct ring *ring = &f->driver.rings[queue];

    if (ring->packed) {
        struct vring_packed_desc *desc = &ring->packed_desc[f->avail[queue]];

        desc->id = htole16(head);
        fuzz_publish_packed(f, queue, le16toh(desc->flags));
        return;
    }
    ram_store16(avail_entry(ring, f->avail[queue] % FUZZ_RING), head);
    ram_store16(avail_idx(ring), ++f->avail[queue]);
}

/* A request as a good driver makes it: out_len bytes to read, in_len to write. */
static inline void fuzz_post(struct fuzz *f, unsigned queue, uint32_t out_len, uint32_t in_len)
{
    struct ring *ring = &f->driver.rings[queue];
    uint16_t head = (uint16_t)(f->avail[queue] * 2 % FUZZ_RING);
    uint64_t at = f->buffer.addr + (uint64_t)queue * 2048;

    if (ring->packed) {
        uint16_t first = f->avail[queue];

        if (out_len > 0) {
            packed_desc_write(&ring->packed_desc[first], at, out_len, first,
                              in_len > 0 ? VRING_DESC_F_NEXT : 0);
            fuzz_publish_packed(f, queue, in_len > 0 ? VRING_DESC_F_NEXT : 0);
        }
        if (in_len > 0) {
            packed_desc_write(&ring->packed_desc[f->avail[queue]], out_len > 0 ? at + 8192 : at,
                              in_len, first, VRING_DESC_F_WRITE);
            fuzz_publish_packed(f, queue, VRING_DESC_F_WRITE);
        }
        return;
    }
    if (out_len > 0 && in_len > 0) {
        split_desc_write(&ring->split_desc[head], at, out_len, VRING_DESC_F_NEXT,
                         (uint16_t)(head + 1));
        split_desc_write(&ring->split_desc[head + 1], at + 8192, in_len, VRING_DESC_F_WRITE, 0);
    } else if (in_len > 0) {
        split_desc_write(&ring->split_desc[head], at, in_len, VRING_DESC_F_WRITE, 0);
    } else {
        split_desc_write(&ring->split_desc[head], at, out_len, 0, 0);
    }
    fuzz_publish(f, queue, head);
}

/* Since a restart, the device has used a buffer of this queue. */
static inline bool fuzz_used(struct fuzz *f, unsigned queue)
{
    const struct ring *ring = &f->driver.rings[queue];
    const uint16_t both = packed_avail_flags(true) | packed_avail_flags(false);

    if (ring->packed)
        return (ram_load16(&ring->packed_desc[0].flags) & both) == both;
    return ram_load16(used_idx(ring)) != 0;
}

/* What the device works on is done. Bounded: the host's side answers within moments. */
static inline void fuzz_wait(struct fuzz *f)
{
    for (unsigned i = 0; i < f->driver.n_queues && f->waits; i++)
        for (unsigned turns = 0; virtqueue_in_flight(f->m->dev->queues[i].vq) > 0; turns++) {
            machine_turn(f->m);
            if (turns > 1000)
                usleep(100);
            if (turns > 100000)
                fake_die("a request never ends");
        }
}

/* By another driver, which may know other kinds of rings: bits 5 to 8 of `how`. */
static inline void fuzz_restart(struct fuzz *f, uint8_t how)
{
    static const uint64_t kinds[] = {F_PACKED, F_EVENT_IDX, F_IN_ORDER, F_NOTIFICATION_DATA};
    uint64_t features = f->features;

    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++)
        if (how >> (4 + i) & 1)
            features |= kinds[i] & driver_offered(f->m);
    machine_write32(f->m, VIRTIO_MMIO_STATUS, 0);
    f->driver.features = features;
    for (unsigned i = 0; i < f->driver.n_queues; i++) {
        struct ring *ring = &f->driver.rings[i];

        /* The areas of split rings, which they were made with, are the larger ones. */
        ring->features = features;
        ring->packed = (features & F_PACKED) != 0;
        ring->event_idx = (features & F_EVENT_IDX) != 0;
        ring->in_order = (features & F_IN_ORDER) != 0;
    }
    driver_restart(&f->driver);
    memset(f->avail, 0, sizeof(f->avail));
    memset(f->wrap, true, sizeof(f->wrap));
}

static inline void fuzz_step(struct fuzz *f)
{
    uint8_t what = fuzz_u8(f);
    unsigned queue = fuzz_u8(f) % f->driver.n_queues;
    struct ring *ring = &f->driver.rings[queue];

    switch (what % 16) {
    case 0: {
        uint32_t offset = (uint32_t)fuzz_u8(f) * 4;
        static const unsigned sizes[] = {4, 4, 4, 4, 1, 2, 8, 4};

        machine_write(f->m, offset % 0x200, sizes[what / 16 % 8], fuzz_u32(f));
        break;
    }
    case 1:
        machine_read(f->m, (uint32_t)fuzz_u8(f) * 2 % 0x200, 1u << (what / 16 % 4));
        break;
    case 2: {
        uint16_t index = (uint16_t)(fuzz_u8(f) % FUZZ_RING);
        uint64_t address = fuzz_address(f);
        uint32_t len = what & 16 ? fuzz_u32(f) : fuzz_u16(f);
        uint16_t flags = fuzz_u8(f);

        if (ring->packed)
            packed_desc_write(&ring->packed_desc[index], address, len, fuzz_u8(f),
                              (uint16_t)(flags | (what & 32 ? packed_avail_flags(what & 64) : 0)));
        else
            split_desc_write(&ring->split_desc[index], address, len, flags, fuzz_u8(f));
        break;
    }
    case 3:
        fuzz_publish(f, queue, what & 16 ? fuzz_u16(f) : fuzz_u8(f) % FUZZ_RING);
        break;
    case 4:
        if (ring->packed) {
            fuzz_advance(f, queue, what & 16 ? fuzz_u16(f) % (2 * FUZZ_RING) : 1);
            break;
        }
        f->avail[queue] = (uint16_t)(f->avail[queue] + (what & 16 ? fuzz_u16(f) : 1));
        ram_store16(avail_idx(ring), f->avail[queue]);
        break;
    case 5: {
        uint16_t offset = fuzz_u16(f);
        uint8_t n = fuzz_u8(f) % 32;

        for (unsigned i = 0; i < n; i++)
            *(uint8_t *)fake_ram(f->m->fake, f->buffer.addr + (offset + i) % FUZZ_BUFFER, 1) =
                fuzz_u8(f);
        break;
    }
    case 6:
        /* Between Xen's taking the page and its saying so other vCPUs go on: see fuzz_run. */
        fuzz_wait(f);
        fake_balloon_out(f->m->fake, f->page.addr, 1);
        if (what & 16)
            machine_invalidate(f->m);
        break;
    case 7: fake_balloon_in(f->m->fake, f->page.addr, 1); break;
    case 8: fuzz_restart(f, what); break;
    case 9: case 10: fuzz_post(f, queue, fuzz_u16(f) % 2048, 0); driver_kick(&f->driver, (uint16_t)queue); break;
    case 11: fuzz_post(f, queue, 0, 1 + fuzz_u16(f) % 2048u); driver_kick(&f->driver, (uint16_t)queue); break;
    case 12: driver_kick(&f->driver, (uint16_t)queue); break;
    default:
        if (f->host_step != NULL)
            f->host_step(f);
        machine_settle(f->m);
    }
    if ((what & 128) == 0)
        fuzz_wait(f);
}

/* f->config is complete; its values are freed here. */
static inline void fuzz_run(struct fuzz *f, const struct virtio_device_ops *ops, unsigned n_queues,
                            const uint8_t *data, size_t size)
{
    const struct machine_config machine = {.ops = ops, .device = &f->config};

    f->at = data;
    f->left = size;
    log_set_level(LOG_LEVEL_ERROR);
    f->m = machine_create(&machine);
    f->m->dev->ask = f->ask;
    machine_settle(f->m);
    f->buffer = guest_alloc(&f->m->heap[0], FUZZ_BUFFER, GUEST_PAGE_SIZE);
    f->page = guest_alloc(&f->m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    f->features = driver_offered(f->m) &
                  ~(F_PACKED | F_IN_ORDER | F_EVENT_IDX | F_NOTIFICATION_DATA);
    driver_start(&f->driver, f->m, f->features, n_queues, FUZZ_RING);
    memset(f->wrap, true, sizeof(f->wrap));
    for (unsigned i = 0; i < FUZZ_STEPS && f->left > 0; i++)
        fuzz_step(f);
    /* Xen says at last that pages went. Only what is written after that is written to another's. */
    fuzz_wait(f);
    machine_invalidate(f->m);
    fuzz_restart(f, size > 0 ? data[size - 1] : 0);
}

static inline void fuzz_end(struct fuzz *f)
{
    machine_destroy(f->m);
    driver_end(&f->driver);
    device_config_free(&f->config);
}

static inline void fuzz_configure(struct fuzz *f, uint16_t virtio_id, const char *name,
                                  const char *const *presets)
{
    char error[CONFIG_ERROR_LEN];

    snprintf(f->config.name, sizeof(f->config.name), "%s", name);
    f->config.base = MACHINE_BASE;
    f->config.irq = MACHINE_IRQ;
    f->config.n_vcpus = 1;
    if (device_config_fill(&f->config, device_type_by_id(virtio_id), NULL, presets, error,
                           sizeof(error)) != 0)
        fake_die("%s", error);
}

#endif
