/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT16_MAX

struct guest_heap guest_heap(struct fake_hypervisor *fake, uint64_t base, uint64_t len)
{
    return (struct guest_heap){.fake = fake, .next = base, .end = base + len};
}

gpa_t guest_alloc(struct guest_heap *heap, size_t len, size_t align)
{
    uint64_t at = (heap->next + align - 1) / align * align;

    if (at + len > heap->end)
        fake_die("the guest's heap is full");
    heap->next = at + len;
    return (gpa_t){at};
}

void split_desc_write(struct vring_desc *desc, uint64_t addr, uint32_t len, uint16_t flags,
                      uint16_t next)
{
    desc->addr = htole64(addr);
    desc->len = htole32(len);
    desc->flags = htole16(flags);
    desc->next = htole16(next);
}

void packed_desc_write(struct vring_packed_desc *desc, uint64_t addr, uint32_t len, uint16_t id,
                       uint16_t flags)
{
    desc->addr = htole64(addr);
    desc->len = htole32(len);
    desc->id = htole16(id);
    ram_store16(&desc->flags, flags);
}

uint16_t packed_avail_flags(bool wrap)
{
    return wrap ? 1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED;
}

static size_t desc_bytes(uint16_t size) { return 16 * (size_t)size; }
static size_t driver_bytes(const struct ring *ring, uint16_t size)
{
    return ring->packed ? 4 : 6 + 2 * (size_t)size;
}
static size_t device_bytes(const struct ring *ring, uint16_t size)
{
    return ring->packed ? 4 : 6 + 8 * (size_t)size;
}

void ring_create(struct ring *ring, struct guest_heap *heap, uint16_t size, uint64_t features)
{
    *ring = (struct ring){.fake = heap->fake, .heap = heap, .size = size, .created = size, .features = features};
    ring->packed = (features & F_PACKED) != 0;
    ring->event_idx = (features & F_EVENT_IDX) != 0;
    ring->in_order = (features & F_IN_ORDER) != 0;
    ring->grants = (features & F_ACCESS_PLATFORM) != 0;
    ring->desc = guest_alloc(heap, desc_bytes(size), 16);
    ring->driver = guest_alloc(heap, driver_bytes(ring, size), 4);
    ring->device = guest_alloc(heap, device_bytes(ring, size), 4);
    ring->buffers = calloc(size, sizeof(*ring->buffers));
    ring->next_free = calloc(size, sizeof(*ring->next_free));
    ring->order = calloc(size, sizeof(*ring->order));
    if (ring->buffers == NULL || ring->next_free == NULL || ring->order == NULL)
        fake_die("no memory");
    ring_restart(ring, size);
}

static struct ring_grant grant(struct ring *ring, uint64_t gpa, uint64_t len, bool read_only)
{
    uint64_t first = gpa / GUEST_PAGE_SIZE, last = (gpa + len - 1) / GUEST_PAGE_SIZE;
    uint32_t pages = (uint32_t)(last - first + 1);

    return (struct ring_grant){.ref = fake_grant(ring->fake, gpa, pages, read_only), .pages = pages};
}

static void end_grants(struct ring *ring, struct ring_buffer *buffer)
{
    for (unsigned i = 0; i < buffer->n_grants; i++)
        fake_grant_end(ring->fake, buffer->grants[i].ref, buffer->grants[i].pages);
    free(buffer->grants);
    buffer->grants = NULL;
    buffer->n_grants = 0;
}

/* Where the device finds the buffer's segment. */
static uint64_t bus_address(struct ring *ring, struct ring_buffer *buffer, uint64_t gpa,
                            uint32_t len, bool read_only)
{
    struct ring_grant *g;

    if (!ring->grants || !fake_is_ram(ring->fake, gpa, len))
        return gpa;
    buffer->grants = realloc(buffer->grants, (buffer->n_grants + 1) * sizeof(*g));
    if (buffer->grants == NULL)
        fake_die("no memory");
    g = &buffer->grants[buffer->n_grants++];
    *g = grant(ring, gpa, len, read_only);
    return fake_grant_address(g->ref, gpa);
}

/* After a reset, nothing of the ring or its buffers may be mapped. */
static void grant_areas(struct ring *ring, uint16_t size)
{
    const gpa_t at[3] = {ring->desc, ring->driver, ring->device};
    const size_t len[3] = {desc_bytes(size), driver_bytes(ring, size), device_bytes(ring, size)};

    for (unsigned i = 0; i < ring->size; i++)
        end_grants(ring, &ring->buffers[i]);
    for (unsigned i = 0; i < 3; i++) {
        if (!ring->grants)
            continue;
        fake_grant_end(ring->fake, ring->areas[i].ref, ring->areas[i].pages);
        ring->areas[i] = grant(ring, at[i].addr, len[i], false);
        ring->bus[i].addr = fake_grant_address(ring->areas[i].ref, at[i].addr);
    }
}

void ring_restart(struct ring *ring, uint16_t size)
{
    uint8_t *desc = fake_ram(ring->fake, ring->desc.addr, desc_bytes(size));

    grant_areas(ring, size);
    ring->size = size;
    ring->split_desc = (void *)desc;
    ring->packed_desc = (void *)desc;
    ring->driver_area = fake_ram(ring->fake, ring->driver.addr, driver_bytes(ring, size));
    ring->device_area = fake_ram(ring->fake, ring->device.addr, device_bytes(ring, size));
    memset(desc, 0, desc_bytes(size));
    memset(ring->driver_area, 0, driver_bytes(ring, size));
    memset(ring->device_area, 0, device_bytes(ring, size));
    memset(ring->buffers, 0, size * sizeof(*ring->buffers)); /* without grants, see above */
    for (uint16_t i = 0; i < size; i++)
        ring->next_free[i] = (uint16_t)(i + 1);
    ring->free_head = 0;
    ring->n_free = size;
    ring->order_head = ring->order_tail = 0;
    ring->in_batch = false;
    ring->avail = ring->used = ring->added = 0;
    ring->avail_wrap = ring->used_wrap = true;
}

void ring_destroy(struct ring *ring)
{
    /* The device may run on: what is granted stays so. */
    for (unsigned i = 0; ring->buffers != NULL && i < ring->created; i++)
        free(ring->buffers[i].grants);
    free(ring->buffers);
    free(ring->next_free);
    free(ring->order);
    *ring = (struct ring){0};
}

struct virtqueue_setup ring_setup(const struct ring *ring)
{
    return (struct virtqueue_setup){.size = ring->size,
                                    .desc = ring->grants ? ring->bus[0] : ring->desc,
                                    .driver = ring->grants ? ring->bus[1] : ring->driver,
                                    .device = ring->grants ? ring->bus[2] : ring->device,
                                    .features = ring->features};
}

/* ---- available ---- */

/* IN_ORDER drivers take split descriptors in ring order (2.7.5), so there it is a counter. */
static uint16_t take_free(struct ring *ring)
{
    uint16_t i = ring->free_head;

    if (ring->in_order && !ring->packed)
        ring->free_head = (uint16_t)((i + 1) % ring->size);
    else
        ring->free_head = ring->next_free[i];
    return i;
}

static void give_free(struct ring *ring, uint16_t i)
{
    if (ring->in_order && !ring->packed)
        return;
    ring->next_free[i] = ring->free_head;
    ring->free_head = i;
}

static gpa_t table_of(struct ring *ring, uint16_t id)
{
    size_t bytes = RING_INDIRECT_MAX * 16;

    if (ring->tables.addr == 0)
        ring->tables = guest_alloc(ring->heap, ring->size * bytes, 16);
    return (gpa_t){ring->tables.addr + id * bytes};
}

/* The nth segment of out and in together. */
static struct segment nth(const struct segment *out, unsigned n_out, const struct segment *in,
                          unsigned i)
{
    return i < n_out ? out[i] : in[i - n_out];
}

static uint16_t split_put(struct ring *ring, const struct segment *out, unsigned n_out,
                          const struct segment *in, unsigned n_in, bool indirect)
{
    uint16_t head = take_free(ring), i = head;
    struct ring_buffer *buffer = &ring->buffers[head];
    unsigned n = n_out + n_in;

    if (indirect) {
        gpa_t table = table_of(ring, head);
        uint64_t at = bus_address(ring, buffer, table.addr, n * 16, true);
        struct vring_desc *desc = fake_ram(ring->fake, table.addr, n * sizeof(*desc));

        for (unsigned k = 0; k < n; k++) {
            struct segment s = nth(out, n_out, in, k);
            unsigned flags = (k >= n_out ? VRING_DESC_F_WRITE : 0u) |
                             (k + 1 < n ? VRING_DESC_F_NEXT : 0u);

            split_desc_write(&desc[k], bus_address(ring, buffer, s.addr.addr, s.len, k < n_out), s.len, (uint16_t)flags, (uint16_t)(k + 1));
        }
        split_desc_write(&ring->split_desc[head], at, n * 16, VRING_DESC_F_INDIRECT, 0);
        return head;
    }
    for (unsigned k = 0; k < n; k++) {
        struct segment s = nth(out, n_out, in, k);
        bool last = k + 1 == n;
        uint16_t next = last ? 0 : take_free(ring);
        unsigned flags = (k >= n_out ? VRING_DESC_F_WRITE : 0u) | (last ? 0u : VRING_DESC_F_NEXT);

        split_desc_write(&ring->split_desc[i], bus_address(ring, buffer, s.addr.addr, s.len, k < n_out), s.len, (uint16_t)flags, next);
        i = next;
    }
    return head;
}

static void packed_advance(struct ring *ring, uint16_t *index, bool *wrap, unsigned slots)
{
    unsigned next = *index + slots;

    if (next >= ring->size) {
        next -= ring->size;
        *wrap = !*wrap;
    }
    *index = (uint16_t)next;
}

static uint16_t packed_put(struct ring *ring, const struct segment *out, unsigned n_out,
                           const struct segment *in, unsigned n_in, bool indirect)
{
    uint16_t id = take_free(ring), at = ring->avail, first = at, first_flags = 0;
    struct ring_buffer *buffer = &ring->buffers[id];
    bool wrap = ring->avail_wrap;
    unsigned n = n_out + n_in;

    if (indirect) {
        gpa_t table = table_of(ring, id);
        uint64_t bus = bus_address(ring, buffer, table.addr, n * 16, true);
        struct vring_packed_desc *desc = fake_ram(ring->fake, table.addr, n * sizeof(*desc));

        for (unsigned k = 0; k < n; k++) {
            struct segment s = nth(out, n_out, in, k);

            packed_desc_write(&desc[k], bus_address(ring, buffer, s.addr.addr, s.len, k < n_out), s.len, 0,
                              k >= n_out ? VRING_DESC_F_WRITE : 0);
        }
        packed_desc_write(&ring->packed_desc[at], bus, n * 16, id,
                          VRING_DESC_F_INDIRECT | packed_avail_flags(wrap));
        return id;
    }
    for (unsigned k = 0; k < n; k++) {
        struct segment s = nth(out, n_out, in, k);
        unsigned flags = (k >= n_out ? VRING_DESC_F_WRITE : 0u) |
                         (k + 1 < n ? VRING_DESC_F_NEXT : 0u) | packed_avail_flags(wrap);

        if (k == 0) {
            /* The head's flags come last: the device never sees part of a list. */
            first_flags = (uint16_t)flags;
            flags = le16toh(ring->packed_desc[at].flags);
        }
        packed_desc_write(&ring->packed_desc[at], bus_address(ring, buffer, s.addr.addr, s.len, k < n_out), s.len, id, (uint16_t)flags);
        packed_advance(ring, &at, &wrap, 1);
    }
    ram_store16(&ring->packed_desc[first].flags, first_flags);
    return id;
}

int ring_add(struct ring *ring, const struct segment *out, unsigned n_out, const struct segment *in,
             unsigned n_in, void *token, bool indirect)
{
    unsigned n = n_out + n_in, slots = indirect ? 1 : n;
    struct ring_buffer *buffer;
    uint16_t id;

    if (n == 0 || (indirect && n > RING_INDIRECT_MAX))
        fake_die("a buffer of %u segments", n);
    if (slots > ring->n_free)
        return -ENOSPC;
    if (ring->packed)
        id = packed_put(ring, out, n_out, in, n_in, indirect);
    else
        id = split_put(ring, out, n_out, in, n_in, indirect);

    buffer = &ring->buffers[id];
    if (buffer->in_flight)
        fake_die("id %u is in flight", id);
    buffer->token = token;
    buffer->slots = (uint16_t)slots;
    buffer->in_flight = true;
    buffer->writable = 0;
    for (unsigned i = 0; i < n_in; i++)
        buffer->writable += in[i].len;
    ring->n_free = (uint16_t)(ring->n_free - slots);
    ring->order[ring->order_tail++ % ring->size] = id;
    if (ring->packed) {
        packed_advance(ring, &ring->avail, &ring->avail_wrap, slots);
        ring->added = (uint16_t)(ring->added + slots);
    } else {
        ram_store16(avail_entry(ring, ring->avail % ring->size), id);
        ring->avail++;
        ram_store16(avail_idx(ring), ring->avail);
        ring->added++;
    }
    return id;
}

unsigned ring_in_flight(const struct ring *ring)
{
    unsigned n = 0;

    for (unsigned i = 0; i < ring->size; i++)
        n += ring->buffers[i].in_flight;
    return n;
}

/* ---- used ---- */

static void split_free_chain(struct ring *ring, uint16_t head, uint16_t slots)
{
    uint16_t i = head;

    for (uint16_t k = 0; k < slots; k++) {
        uint16_t next = le16toh(ring->split_desc[i].next);

        give_free(ring, i);
        i = next;
    }
}

static void release(struct ring *ring, uint16_t id, struct ring_used *used)
{
    struct ring_buffer *buffer = &ring->buffers[id];

    if (id >= ring->size || !buffer->in_flight)
        fake_die("the device used id %u, which is not in flight", id);
    buffer->in_flight = false;
    end_grants(ring, buffer);
    ring->n_free = (uint16_t)(ring->n_free + buffer->slots);
    used->token = buffer->token;
    used->id = id;
    if (ring->packed) {
        packed_advance(ring, &ring->used, &ring->used_wrap, buffer->slots);
        give_free(ring, id);
    } else {
        ring->used++;
        split_free_chain(ring, id, buffer->slots);
    }
}

/* The used entry at the driver's position: true, and what it says. */
static bool peek_used(struct ring *ring, uint32_t *id, uint32_t *len, bool *write_flag)
{
    if (ring->packed) {
        const struct vring_packed_desc *desc = &ring->packed_desc[ring->used];
        uint16_t flags = ram_load16(&desc->flags);
        bool avail = (flags >> VRING_PACKED_DESC_F_AVAIL & 1) != 0;
        bool used = (flags >> VRING_PACKED_DESC_F_USED & 1) != 0;

        if (avail != used || used != ring->used_wrap)
            return false;
        *id = le16toh(desc->id);
        *len = le32toh(desc->len);
        *write_flag = (flags & VRING_DESC_F_WRITE) != 0;
        return true;
    }
    uint16_t idx = ram_load16(used_idx(ring));
    const uint8_t *entry = used_entry(ring, ring->used % ring->size);

    if (idx == ring->used)
        return false;
    if ((uint16_t)(idx - ring->used) > ring_in_flight(ring))
        fake_die("used.idx %u, %u buffers in flight from %u on", idx, ring_in_flight(ring),
                 ring->used);
    *id = ram_load32(entry);
    *len = ram_load32(entry + 4);
    *write_flag = *len != 0;
    return true;
}

bool ring_get(struct ring *ring, struct ring_used *used)
{
    uint32_t id;

    *used = (struct ring_used){0};
    if (!ring->in_batch) {
        if (!peek_used(ring, &id, &ring->batch_len, &ring->batch_write_flag))
            return false;
        if (id >= ring->size || !ring->buffers[id].in_flight)
            fake_die("the device used id %u, which is not in flight", id);
        ring->batch_end = (uint16_t)id;
        ring->in_batch = true;
    }
    if (ring->in_order) {
        if (ring->order_head == ring->order_tail)
            fake_die("a batch longer than what is in flight");
        id = ring->order[ring->order_head++ % ring->size];
    } else {
        id = ring->batch_end;
    }
    used->batched = id != ring->batch_end;
    used->len = used->batched ? ring->buffers[id].writable : ring->batch_len;
    used->write_flag = used->batched || ring->batch_write_flag;
    ring->in_batch = used->batched;
    if (used->len > ring->buffers[id].writable && (!ring->packed || used->write_flag))
        fake_die("used length %u of %u", used->len, ring->buffers[id].writable);
    release(ring, (uint16_t)id, used);
    return true;
}

/* ---- notifications ---- */

bool ring_needs_kick(struct ring *ring)
{
    uint16_t new = ring->avail, old = (uint16_t)(new - ring->added), flags, event;

    ring->added = 0;
    /* Pairs with the barrier after the device enables notifications. */
    full_barrier();
    if (!ring->packed) {
        if (!ring->event_idx)
            return (ram_load16(used_flags(ring)) & VRING_USED_F_NO_NOTIFY) == 0;
        return vring_need_event(ram_load16(avail_event(ring)), new, old) != 0;
    }
    event = ram_load16(ring->device_area);
    flags = ram_load16(ring->device_area + 2) & 3;
    if (flags != VRING_PACKED_EVENT_FLAG_DESC)
        return flags == VRING_PACKED_EVENT_FLAG_ENABLE;
    if (!ring->event_idx)
        fake_die("the device asks for an event at a descriptor without EVENT_IDX");
    if ((event >> VRING_PACKED_EVENT_F_WRAP_CTR & 1) == ring->avail_wrap)
        event &= 0x7fff;
    else
        event = (uint16_t)((event & 0x7fff) - ring->size);
    return vring_need_event(event, new, old) != 0;
}

uint32_t ring_notify_value(const struct ring *ring, uint16_t queue)
{
    uint32_t value = queue;

    if ((ring->features & F_NOTIFICATION_DATA) != 0) {
        value |= (uint32_t)ring->avail << 16;
        if (ring->packed)
            value |= (uint32_t)ring->avail_wrap << 31;
    }
    return value;
}

void ring_interrupts_on(struct ring *ring)
{
    if (ring->packed)
        ram_store16(ring->driver_area + 2, VRING_PACKED_EVENT_FLAG_ENABLE);
    else if (ring->event_idx)
        ring_interrupt_at(ring, ring->used);
    else
        ram_store16(avail_flags(ring), 0);
}

void ring_interrupts_off(struct ring *ring)
{
    if (ring->packed)
        ram_store16(ring->driver_area + 2, VRING_PACKED_EVENT_FLAG_DISABLE);
    else if (ring->event_idx)
        ring_interrupt_at(ring, (uint16_t)(ring->used - 1));
    else
        ram_store16(avail_flags(ring), VRING_AVAIL_F_NO_INTERRUPT);
}

void ring_interrupt_at(struct ring *ring, uint16_t position)
{
    if (!ring->event_idx)
        fake_die("EVENT_IDX was not negotiated");
    if (ring->packed) {
        ram_store16(ring->driver_area, position);
        ram_store16(ring->driver_area + 2, VRING_PACKED_EVENT_FLAG_DESC);
    } else {
        ram_store16(used_event(ring), position);
    }
}
