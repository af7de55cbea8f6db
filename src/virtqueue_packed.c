/* SPDX-License-Identifier: Apache-2.0 */
/* Packed virtqueues: VIRTIO 1.2, 2.8. */
#include "virtqueue_internal.h"

#define DESC_ADDR 0u
#define DESC_LEN 8u
#define DESC_ID 12u
#define DESC_FLAGS 14u
#define EVENT_OFF_WRAP 0u
#define EVENT_FLAGS 2u

#define F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define F_USED (1u << VRING_PACKED_DESC_F_USED)
#define EVENT_WRAP (1u << VRING_PACKED_EVENT_F_WRAP_CTR)

static_assert(sizeof(struct vring_packed_desc) == 16, "2.8.13");
static_assert(sizeof(struct vring_packed_desc_event) == 4, "2.8.14");

static void packed_format(uint16_t size, bool event_idx, struct ring_format *format)
{
    (void)event_idx;
    format->desc_bytes = 16u * (uint64_t)size;
    format->driver_bytes = 4;
    format->device_bytes = 4;
    format->desc_align = 16; /* 2.8.10.1 */
    format->driver_align = 4;
    format->device_align = 4;
}

static bool packed_size_ok(uint32_t size)
{
    return size != 0; /* need not be a power of two: 2.8.10.1 */
}

static void packed_start(struct virtqueue *vq)
{
    vq->avail_wrap = true; /* 2.8.1: both wrap counters start at 1 */
    vq->used_wrap = true;
    vq->used_wrapped = false;
    vq->ring_descriptors = 0;
}

static uint16_t packed_position(uint16_t at, bool wrap)
{
    return (uint16_t)(at | (wrap ? EVENT_WRAP : 0));
}

static uint16_t packed_avail_position(const struct virtqueue *vq)
{
    return packed_position(vq->last_avail, vq->avail_wrap);
}

static uint16_t packed_used_position(const struct virtqueue *vq)
{
    return packed_position(vq->used_index, vq->used_wrap);
}

static uint8_t *entry(const struct virtqueue *vq, uint16_t position)
{
    return vq->desc + 16 * (size_t)position;
}

static int packed_peek(struct virtqueue *vq)
{
    /* Pairs with the driver's barrier before it writes the first descriptor's flags (2.8.21.1). */
    uint16_t flags = guest_load16_acquire(entry(vq, vq->last_avail) + DESC_FLAGS);
    bool avail = (flags & F_AVAIL) != 0, used = (flags & F_USED) != 0;

    if (avail != vq->avail_wrap || used == vq->avail_wrap)
        return 0;
    vq->head_flags = flags;
    return 1;
}

/* flags were read already, for the first descriptor by peek: each field is read once. */
static void copy_descriptor(const uint8_t *at, uint16_t flags, struct descriptor *d)
{
    d->flags = flags;
    d->addr = guest_load64(at + DESC_ADDR);
    d->len = guest_load32(at + DESC_LEN);
    d->next_or_id = guest_load16(at + DESC_ID);
}

/* In a table, order is by position, and WRITE is the only flag that means anything (2.8.7). */
static int walk_table(struct virtqueue *vq, struct chain *chain, const struct descriptor *indirect)
{
    const uint8_t *table;
    uint32_t entries;
    int ret = virtqueue_open_table(vq, indirect, &table, &entries);

    for (uint32_t i = 0; ret == 0 && i < entries; i++) {
        const uint8_t *at = table + 16 * (size_t)i;
        uint64_t rest = load_table64(at + DESC_LEN);
        const struct descriptor d = {.addr = load_table64(at + DESC_ADDR),
                                     .len = (uint32_t)rest,
                                     .flags = (uint16_t)(rest >> 48)};

        if ((d.flags & VRING_DESC_F_INDIRECT) != 0)
            return virtqueue_violation(vq, "indirect descriptor inside an indirect table");
        ret = virtqueue_add_element(vq, chain, &d);
    }
    return ret;
}

static int add_descriptor(struct virtqueue *vq, struct chain *chain, const struct descriptor *d)
{
    if ((d->flags & VRING_DESC_F_INDIRECT) == 0)
        return virtqueue_add_element(vq, chain, d);
    if ((d->flags & VRING_DESC_F_NEXT) != 0)
        return virtqueue_violation(vq, "indirect descriptor has a next one");
    return walk_table(vq, chain, d);
}

/* A chain that was in flight when a process died: virtqueue_state.c has checked its copies. */
static int walk_copies(struct virtqueue *vq, struct chain *chain)
{
    const struct state_descriptor *copy = virtqueue_state_copies(vq, vq->head);

    chain->id = vq->head;
    chain->descriptors = (uint16_t)(vq->state->requests[vq->head].taken >> 32);
    for (uint16_t i = 0; i < chain->descriptors; i++) {
        const struct descriptor d = {.addr = copy->addr, .len = copy->len, .flags = copy->flags};
        int ret = add_descriptor(vq, chain, &d);

        if (ret < 0)
            return ret;
        copy = &vq->state->descriptors[copy->next % DEVICE_STATE_QUEUE_SIZE];
    }
    return 0;
}

static int packed_walk(struct virtqueue *vq, struct chain *chain)
{
    uint16_t position = vq->last_avail, flags = vq->head_flags, count = 0;
    struct descriptor d;
    int ret;

    if (vq->replaying)
        return walk_copies(vq, chain);
    vq->copied = 0;
    for (;;) {
        /* No more descriptors can be available than the ring has, less those in flight and those of which
         * the driver has not been told that they are used. Each takes one of the copies. */
        if (++count > vq->n_free_copies)
            return virtqueue_violation(vq, "more descriptors available than the ring has");
        copy_descriptor(entry(vq, position), flags, &d);
        virtqueue_state_copy(vq, &d);
        ret = add_descriptor(vq, chain, &d);
        if (ret < 0)
            return ret;
        if ((flags & VRING_DESC_F_NEXT) == 0)
            break;
        if (++position == vq->setup.size)
            position = 0;
        flags = guest_load16(entry(vq, position) + DESC_FLAGS);
    }
    /* The buffer ID is that of the last descriptor (2.8.6). Ours index a table of that size. */
    if (d.next_or_id >= vq->setup.size)
        return virtqueue_violation(vq, "buffer ID is not below the queue size");
    if (virtqueue_busy(vq, d.next_or_id))
        return virtqueue_violation(vq, "buffer ID is still in use");
    chain->id = d.next_or_id;
    chain->descriptors = count;
    return 0;
}

/* True if the end of the ring was passed. */
static bool advance(const struct virtqueue *vq, uint16_t *position, uint16_t n)
{
    uint32_t next = (uint32_t)*position + n;
    bool passed = next >= vq->setup.size;

    *position = (uint16_t)(passed ? next - vq->setup.size : next);
    return passed;
}

/* As long as each chain before it takes one descriptor: an indirect one. */
static bool packed_ahead(const struct virtqueue *vq, unsigned n, struct descriptor *d)
{
    uint16_t position = vq->last_avail, flags;
    bool wrap = vq->avail_wrap;

    if (n >= vq->setup.size - vq->ring_descriptors)
        return false;
    if (advance(vq, &position, (uint16_t)n))
        wrap = !wrap;
    flags = guest_load16_acquire(entry(vq, position) + DESC_FLAGS);
    if (((flags & F_AVAIL) != 0) != wrap || ((flags & F_USED) != 0) == wrap ||
        (flags & VRING_DESC_F_INDIRECT) == 0)
        return false;
    copy_descriptor(entry(vq, position), flags, d);
    return true;
}

/* A chain takes as many entries as it has descriptors. */
static unsigned packed_waiting(const struct virtqueue *vq)
{
    (void)vq;
    return 0;
}

static bool packed_adopt(struct virtqueue *vq, uint64_t avail, uint64_t published)
{
    uint16_t at = state_ring_position(avail), used = state_ring_position(published);

    vq->last_avail = at & (uint16_t)~EVENT_WRAP;
    vq->avail_wrap = (at & EVENT_WRAP) != 0;
    vq->used_index = used & (uint16_t)~EVENT_WRAP;
    vq->used_wrap = (used & EVENT_WRAP) != 0;
    vq->published = vq->used_index;
    if (vq->last_avail >= vq->setup.size || vq->used_index >= vq->setup.size)
        return false;
    /* What was taken and not given back lies between the two. */
    used = vq->used_index;
    if (vq->ring_descriptors == vq->setup.size)
        return vq->last_avail == used && vq->avail_wrap != vq->used_wrap;
    return advance(vq, &used, (uint16_t)vq->ring_descriptors) ==
               (vq->avail_wrap != vq->used_wrap) &&
           used == vq->last_avail;
}

/*
 * The first entry of a batch makes it visible. If it was not written, the driver's flags of this lap
 * are still there; if it was, they say used, or already that something is available in the next lap.
 */
static bool packed_was_published(const struct virtqueue *vq)
{
    uint16_t flags = guest_load16_acquire(entry(vq, vq->published) + DESC_FLAGS);
    bool avail = (flags & F_AVAIL) != 0, used = (flags & F_USED) != 0;

    return avail != vq->used_wrap || used == vq->used_wrap;
}

/* Flags as the driver had them: neither used in this lap nor available in the next. */
static void packed_unput_used(struct virtqueue *vq, uint16_t descriptors)
{
    uint16_t at = vq->used_index;
    bool wrap = vq->used_wrap;

    for (unsigned i = 0; i < vq->undo_descriptors; i++) {
        if (++at == vq->setup.size) {
            at = 0;
            wrap = !wrap;
        }
    }
    guest_store16(entry(vq, at) + DESC_FLAGS, wrap ? F_AVAIL : F_USED);
    vq->undo_descriptors += descriptors;
}

static void packed_take(struct virtqueue *vq, struct chain *chain)
{
    if (advance(vq, &vq->last_avail, chain->descriptors))
        vq->avail_wrap = !vq->avail_wrap;
    vq->ring_descriptors += chain->descriptors;
}

static void packed_put_back(struct virtqueue *vq, const struct chain *chain)
{
    if (vq->last_avail < chain->descriptors) {
        vq->last_avail = (uint16_t)(vq->last_avail + vq->setup.size);
        vq->avail_wrap = !vq->avail_wrap;
    }
    vq->last_avail = (uint16_t)(vq->last_avail - chain->descriptors);
    vq->ring_descriptors -= chain->descriptors;
}

static void packed_skip_used(struct virtqueue *vq, uint16_t descriptors)
{
    if (advance(vq, &vq->used_index, descriptors)) {
        vq->used_wrap = !vq->used_wrap;
        vq->used_wrapped = true;
    }
    vq->ring_descriptors -= descriptors;
}

static void packed_put_used(struct virtqueue *vq, const struct chain *chain)
{
    uint8_t *at = entry(vq, vq->used_index);
    uint16_t flags = (uint16_t)((vq->used_wrap ? F_AVAIL | F_USED : 0) |
                                (chain->written > 0 ? VRING_DESC_F_WRITE : 0));

    guest_store16(at + DESC_ID, chain->id);
    guest_store32(at + DESC_LEN, chain->written);
    /*
     * The driver looks at used descriptors in ring order, so the flags of the first one hold back
     * the whole batch: one barrier for all.
     */
    if (vq->unpublished == 0) {
        vq->batch_first = vq->used_index;
        vq->batch_first_flags = flags;
    } else {
        guest_store16(at + DESC_FLAGS, flags);
    }
    packed_skip_used(vq, chain->descriptors);
}

static bool packed_publish(struct virtqueue *vq)
{
    uint16_t old = vq->published, new = vq->used_index, event_flags, off_wrap, off;
    uint32_t event;

    /* Pairs with the driver's barrier after it reads flags (2.8.22). */
    guest_store16_release(entry(vq, vq->batch_first) + DESC_FLAGS, vq->batch_first_flags);
    vq->published = new;
    if (vq->used_wrapped)
        old = (uint16_t)(old - vq->setup.size); /* in the coordinates of this lap */
    vq->used_wrapped = false;
    /* Pairs with the driver's "change the event structure, look at the ring again". */
    full_barrier();
    event = guest_load32(vq->driver); /* both fields by one load */
    event_flags = (uint16_t)(event >> 16) & 3u;
    if (event_flags == VRING_PACKED_EVENT_FLAG_DISABLE)
        return false;
    if (event_flags != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx)
        return true;
    off_wrap = (uint16_t)event;
    off = off_wrap & (uint16_t)~EVENT_WRAP;
    if (((off_wrap & EVENT_WRAP) != 0) != vq->used_wrap)
        off = (uint16_t)(off - vq->setup.size); /* means the lap before */
    return (uint16_t)(new - off - 1) < (uint16_t)(new - old);
}

static enum driver_lag packed_lag(const struct virtqueue *vq)
{
    uint32_t event = guest_load32(vq->driver);
    uint16_t event_flags = (uint16_t)(event >> 16) & 3u;
    bool wrap = vq->used_wrap != vq->used_wrapped; /* where `published` is */
    uint16_t here = (uint16_t)(vq->published | (wrap ? EVENT_WRAP : 0));

    if (event_flags == VRING_PACKED_EVENT_FLAG_DISABLE)
        return DRIVER_LOOKS_BY_ITSELF;
    if (event_flags != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx)
        return DRIVER_LAG_UNKNOWN;
    /* A driver that has seen all waits for the next position; any other may be one passed already. */
    return (uint16_t)event != here ? DRIVER_BEHIND : DRIVER_CAUGHT_UP;
}

static void packed_enable_notify(struct virtqueue *vq)
{
    if (vq->event_idx) {
        guest_store16(vq->device + EVENT_OFF_WRAP,
                      (uint16_t)(vq->last_avail | (vq->avail_wrap ? EVENT_WRAP : 0)));
        /* 2.8.14: the driver reads flags first; it must not meet a stale position. */
        guest_store16_release(vq->device + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_DESC);
    } else {
        guest_store16(vq->device + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_ENABLE);
    }
}

static void packed_disable_notify(struct virtqueue *vq)
{
    guest_store16(vq->device + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_DISABLE);
}

const struct ring_ops packed_ring_ops = {
    .format = packed_format,
    .size_ok = packed_size_ok,
    .start = packed_start,
    .adopt = packed_adopt,
    .avail_position = packed_avail_position,
    .used_position = packed_used_position,
    .was_published = packed_was_published,
    .skip_used = packed_skip_used,
    .unput_used = packed_unput_used,
    .peek = packed_peek,
    .walk = packed_walk,
    .ahead = packed_ahead,
    .waiting = packed_waiting,
    .take = packed_take,
    .put_back = packed_put_back,
    .put_used = packed_put_used,
    .publish = packed_publish,
    .lag = packed_lag,
    .enable_notify = packed_enable_notify,
    .disable_notify = packed_disable_notify,
};
