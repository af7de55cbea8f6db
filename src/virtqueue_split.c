/* SPDX-License-Identifier: Apache-2.0 */
/* Split virtqueues: VIRTIO 1.2, 2.7. */
#include "virtqueue_internal.h"

#define AVAIL_FLAGS 0u
#define AVAIL_IDX 2u
#define AVAIL_RING 4u
#define USED_FLAGS 0u
#define USED_IDX 2u
#define USED_RING 4u

static_assert(sizeof(struct vring_desc) == 16, "2.7.5");
static_assert(sizeof(struct vring_used_elem) == 8, "2.7.8");

static void split_format(uint16_t size, bool event_idx, struct ring_format *format)
{
    uint64_t event = event_idx ? 2 : 0;

    format->desc_bytes = 16u * (uint64_t)size;
    format->driver_bytes = AVAIL_RING + 2u * (uint64_t)size + event;
    format->device_bytes = USED_RING + 8u * (uint64_t)size + event;
    format->desc_align = 16; /* 2.7: alignment requirements */
    format->driver_align = 2;
    format->device_align = 4;
}

static bool split_size_ok(uint32_t size)
{
    return size != 0 && (size & (size - 1)) == 0;
}

static void split_start(struct virtqueue *vq)
{
    vq->avail_index = 0;
}

static uint16_t split_avail_position(const struct virtqueue *vq)
{
    return vq->last_avail;
}

static uint16_t split_used_position(const struct virtqueue *vq)
{
    return vq->used_index;
}

static bool split_adopt(struct virtqueue *vq, uint64_t avail, uint64_t published)
{
    vq->last_avail = vq->avail_index = state_ring_position(avail);
    vq->used_index = vq->published = state_ring_position(published);
    return vq->last_avail == (uint16_t)state_count(avail) &&
           vq->used_index == (uint16_t)state_count(published) &&
           (uint16_t)(vq->last_avail - vq->used_index) == vq->ring_descriptors;
}

/* Publishing the same again changes nothing. */
static bool split_was_published(const struct virtqueue *vq)
{
    (void)vq;
    return false;
}

static void split_skip_used(struct virtqueue *vq, uint16_t descriptors)
{
    (void)descriptors;
    vq->used_index++;
}

/* The driver looks at no entry beyond idx. */
static void split_unput_used(struct virtqueue *vq, uint16_t descriptors)
{
    (void)vq, (void)descriptors;
}

static int split_peek(struct virtqueue *vq)
{
    if (vq->last_avail == vq->avail_index) {
        /* Pairs with the driver's barrier between filling the ring and writing idx (2.7.13.3). */
        uint16_t index = guest_load16_acquire(vq->driver + AVAIL_IDX);

        if ((uint16_t)(index - vq->last_avail) > vq->setup.size)
            return virtqueue_violation(vq, "available index jumps by more than the queue size");
        vq->avail_index = index;
        if (index == vq->last_avail)
            return 0;
    }
    vq->head = guest_load16(vq->driver + AVAIL_RING +
                            2u * (size_t)(vq->last_avail & (vq->setup.size - 1)));
    if (vq->head >= vq->setup.size)
        return virtqueue_violation(vq, "head of a chain is not in the descriptor table");
    if (virtqueue_busy(vq, vq->head))
        return virtqueue_violation(vq, "head of a chain is still in use");
    return 1;
}

static void copy_descriptor(const uint8_t *at, struct descriptor *d)
{
    uint64_t rest;

    d->addr = load_table64(at);
    rest = load_table64(at + 8);
    d->len = (uint32_t)rest;
    d->flags = (uint16_t)(rest >> 32);
    d->next_or_id = (uint16_t)(rest >> 48);
}

static int split_walk(struct virtqueue *vq, struct chain *chain)
{
    const uint8_t *table = vq->desc;
    uint32_t entries = vq->setup.size, steps = 0;
    uint32_t next = vq->head;
    bool in_table = false;
    struct descriptor d;
    int ret;

    chain->id = vq->head;
    chain->descriptors = 1;
    for (;;) {
        /* A chain visits each entry of a table at most once (2.7.5.3.1: no loops). */
        if (steps++ >= entries)
            return virtqueue_violation(vq, "descriptor chain loops");
        copy_descriptor(table + 16 * (size_t)next, &d);
        if ((d.flags & VRING_DESC_F_INDIRECT) != 0) {
            /* After any number of plain descriptors (2.7.5.3.2), but not inside a table. */
            if (in_table)
                return virtqueue_violation(vq, "indirect descriptor inside an indirect table");
            if ((d.flags & VRING_DESC_F_NEXT) != 0)
                return virtqueue_violation(vq, "indirect descriptor has a next one");
            ret = virtqueue_open_table(vq, &d, &table, &entries);
            if (ret < 0)
                return ret;
            in_table = true;
            steps = 0;
            next = 0;
            continue;
        }
        ret = virtqueue_add_element(vq, chain, &d);
        if (ret < 0)
            return ret;
        if ((d.flags & VRING_DESC_F_NEXT) == 0)
            return 0;
        next = d.next_or_id;
        if (next >= entries)
            return virtqueue_violation(vq, "next descriptor is outside the table");
    }
}

static bool split_ahead(const struct virtqueue *vq, unsigned n, struct descriptor *d)
{
    uint16_t at = (uint16_t)(vq->last_avail + n), head;

    if (n >= (uint16_t)(vq->avail_index - vq->last_avail))
        return false;
    head = guest_load16(vq->driver + AVAIL_RING + 2u * (size_t)(at & (vq->setup.size - 1)));
    if (head >= vq->setup.size)
        return false;
    copy_descriptor(vq->desc + 16 * (size_t)head, d);
    return true;
}

static unsigned split_waiting(const struct virtqueue *vq)
{
    uint16_t n = (uint16_t)(guest_load16(vq->driver + AVAIL_IDX) - vq->last_avail);

    return n <= vq->setup.size ? n : 0; /* peek says what is wrong */
}

static void split_take(struct virtqueue *vq, struct chain *chain)
{
    (void)chain;
    vq->last_avail++;
}

static void split_put_back(struct virtqueue *vq, const struct chain *chain)
{
    (void)chain;
    vq->last_avail--;
}

static void split_put_used(struct virtqueue *vq, const struct chain *chain)
{
    uint8_t *elem = vq->device + USED_RING + 8u * (size_t)(vq->used_index & (vq->setup.size - 1));

    guest_store32(elem, chain->id);
    guest_store32(elem + 4, chain->written);
    vq->used_index++;
}

static bool split_publish(struct virtqueue *vq)
{
    uint16_t old = vq->published, new = vq->used_index;

    /* Pairs with the driver's barrier after it reads idx (2.7.14): entries before index. */
    guest_store16_release(vq->device + USED_IDX, new);
    vq->published = new;
    /* Pairs with the driver's "write used_event, look at idx again": one of us sees the other. */
    full_barrier();
    if (vq->event_idx) {
        uint16_t event = guest_load16(vq->driver + AVAIL_RING + 2u * (size_t)vq->setup.size);

        return (uint16_t)(new - event - 1) < (uint16_t)(new - old); /* 2.7.7.2 */
    }
    return (guest_load16(vq->driver + AVAIL_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
}

static enum driver_lag split_lag(const struct virtqueue *vq)
{
    uint16_t event;

    if (!vq->event_idx)
        return (guest_load16(vq->driver + AVAIL_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) == 0
                   ? DRIVER_LAG_UNKNOWN
                   : DRIVER_LOOKS_BY_ITSELF;
    event = guest_load16(vq->driver + AVAIL_RING + 2u * (size_t)vq->setup.size);
    /* used_event is the entry that it waits for: one of those published, or one to come (2.7.7.2). */
    return (uint16_t)(vq->published - event - 1) < vq->setup.size ? DRIVER_BEHIND : DRIVER_CAUGHT_UP;
}

static void split_enable_notify(struct virtqueue *vq)
{
    if (vq->event_idx)
        guest_store16(vq->device + USED_RING + 8u * (size_t)vq->setup.size, vq->last_avail);
    else
        guest_store16(vq->device + USED_FLAGS, 0);
    /* avail_index is a cached copy: the caller's next look must be a fresh one. */
}

static void split_disable_notify(struct virtqueue *vq)
{
    /* With EVENT_IDX, an avail_event that lies behind asks for nothing: leave it (2.7.10). */
    if (!vq->event_idx)
        guest_store16(vq->device + USED_FLAGS, VRING_USED_F_NO_NOTIFY);
}

const struct ring_ops split_ring_ops = {
    .format = split_format,
    .size_ok = split_size_ok,
    .start = split_start,
    .adopt = split_adopt,
    .avail_position = split_avail_position,
    .used_position = split_used_position,
    .was_published = split_was_published,
    .skip_used = split_skip_used,
    .unput_used = split_unput_used,
    .peek = split_peek,
    .walk = split_walk,
    .ahead = split_ahead,
    .waiting = split_waiting,
    .take = split_take,
    .put_back = split_put_back,
    .put_used = split_put_used,
    .publish = split_publish,
    .lag = split_lag,
    .enable_notify = split_enable_notify,
    .disable_notify = split_disable_notify,
};
