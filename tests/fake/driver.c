/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <string.h>

uint64_t driver_offered(struct machine *m)
{
    uint64_t features;

    machine_write32(m, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    features = (uint64_t)machine_read32(m, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
    machine_write32(m, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    return features | machine_read32(m, VIRTIO_MMIO_DEVICE_FEATURES);
}

uint32_t driver_add_status(struct machine *m, uint32_t bits)
{
    machine_write32(m, VIRTIO_MMIO_STATUS, machine_read32(m, VIRTIO_MMIO_STATUS) | bits);
    return machine_read32(m, VIRTIO_MMIO_STATUS);
}

static void reset(struct machine *m)
{
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    while (machine_read32(m, VIRTIO_MMIO_STATUS) != 0)
        machine_turn(m);
}

bool driver_negotiate(struct machine *m, uint64_t features)
{
    reset(m);
    driver_add_status(m, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    driver_add_status(m, VIRTIO_CONFIG_S_DRIVER);
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
    return (driver_add_status(m, VIRTIO_CONFIG_S_FEATURES_OK) & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
}

static void write_address(struct machine *m, uint32_t low, gpa_t gpa)
{
    machine_write32(m, low, (uint32_t)gpa.addr);
    machine_write32(m, low + 4, (uint32_t)(gpa.addr >> 32));
}

void driver_enable_queue(struct machine *m, uint16_t queue, const struct ring *ring)
{
    struct virtqueue_setup setup = ring_setup(ring);

    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, queue);
    machine_write32(m, VIRTIO_MMIO_QUEUE_NUM, ring->size);
    write_address(m, VIRTIO_MMIO_QUEUE_DESC_LOW, setup.desc);
    write_address(m, VIRTIO_MMIO_QUEUE_AVAIL_LOW, setup.driver);
    write_address(m, VIRTIO_MMIO_QUEUE_USED_LOW, setup.device);
    machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
}

static void bring_up(struct driver *d)
{
    struct machine *m = d->m;

    if (machine_read32(m, VIRTIO_MMIO_MAGIC_VALUE) != 0x74726976 ||
        machine_read32(m, VIRTIO_MMIO_VERSION) != 2 ||
        machine_read32(m, VIRTIO_MMIO_DEVICE_ID) == 0)
        fake_die("not a virtio-mmio device");
    if (!driver_negotiate(m, d->features))
        fake_die("features %#llx were refused", (unsigned long long)d->features);
    for (uint16_t i = 0; i < d->n_queues; i++) {
        driver_enable_queue(m, i, &d->rings[i]);
        if (machine_read32(m, VIRTIO_MMIO_QUEUE_READY) != 1)
            fake_die("queue %u does not become ready", i);
    }
    driver_add_status(m, VIRTIO_CONFIG_S_DRIVER_OK);
}

void driver_start(struct driver *d, struct machine *m, uint64_t features, unsigned n_queues,
                  uint16_t size)
{
    if (m->grants != NULL)
        features |= F_ACCESS_PLATFORM;
    *d = (struct driver){.m = m, .features = features, .n_queues = n_queues};
    if (n_queues > DRIVER_QUEUES_MAX)
        fake_die("%u queues", n_queues);
    for (unsigned i = 0; i < n_queues; i++)
        ring_create(&d->rings[i], &m->heap[0], size, features);
    bring_up(d);
}

void driver_end(struct driver *d)
{
    for (unsigned i = 0; i < d->n_queues; i++)
        ring_destroy(&d->rings[i]);
}

void driver_restart(struct driver *d)
{
    reset(d->m); /* before the rings go */
    for (unsigned i = 0; i < d->n_queues; i++)
        ring_restart(&d->rings[i], d->rings[i].size);
    bring_up(d);
}

void driver_kick(struct driver *d, uint16_t queue)
{
    machine_write32(d->m, VIRTIO_MMIO_QUEUE_NOTIFY, ring_notify_value(&d->rings[queue], queue));
}

bool driver_kick_if_needed(struct driver *d, uint16_t queue)
{
    bool needed = ring_needs_kick(&d->rings[queue]);

    if (needed)
        driver_kick(d, queue);
    return needed;
}

uint32_t driver_take_isr(struct machine *m)
{
    uint32_t isr = machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS);

    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, isr);
    return isr;
}

void driver_reset_queue(struct machine *m, uint16_t queue)
{
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, queue);
    machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
    while (machine_read32(m, VIRTIO_MMIO_QUEUE_RESET) != 0)
        machine_turn(m);
    if (machine_read32(m, VIRTIO_MMIO_QUEUE_READY) != 0)
        fake_die("a queue that was reset is ready");
}

static uint8_t pattern(uint32_t seed, uint32_t i)
{
    return (uint8_t)((seed * 2654435761u + i * 31u) >> 8 ^ i);
}

int driver_add_echo(struct ring *ring, gpa_t buf, uint32_t len, uint32_t seed, bool indirect)
{
    struct segment out = {buf, len}, in = {{buf.addr + len}, len};
    uint8_t *p = fake_ram(ring->fake, buf.addr, 2 * (size_t)len);

    for (uint32_t i = 0; i < len; i++)
        p[i] = pattern(seed, i);
    memset(p + len, 0xee, len);
    return ring_add(ring, &out, 1, &in, 1, (void *)(uintptr_t)(seed + 1), indirect);
}

bool driver_check_echo(struct ring *ring, gpa_t buf, uint32_t len, uint32_t seed)
{
    const uint8_t *p = fake_ram(ring->fake, buf.addr, 2 * (size_t)len);

    for (uint32_t i = 0; i < len; i++) {
        if (p[i] != pattern(seed, i) || p[len + i] != pattern(seed, i))
            return false;
    }
    return true;
}
