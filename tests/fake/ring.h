/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's half of a virtqueue, split or packed (VIRTIO 1.2, 2.7 and 2.8), in fake guest RAM.
 * ring_add, ring_get and the rest behave as a good driver does, and abort if the device breaks the
 * protocol. A hostile driver writes what it likes through the raw accessors at the end.
 */
#ifndef VIOD_FAKE_RING_H
#define VIOD_FAKE_RING_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include "fake_hypervisor.h"
#include "virtqueue.h"

#define RING_INDIRECT_MAX 128u /* descriptors in an indirect table of ring_add */

#define FEATURE(bit) (UINT64_C(1) << (bit))
#ifndef VIRTIO_F_NOTIFICATION_DATA
#define VIRTIO_F_NOTIFICATION_DATA 38
#endif
#ifndef VIRTIO_F_RING_RESET
#define VIRTIO_F_RING_RESET 40
#endif
#define F_VERSION_1 FEATURE(VIRTIO_F_VERSION_1)
#define F_PACKED FEATURE(VIRTIO_F_RING_PACKED)
#define F_INDIRECT FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define F_EVENT_IDX FEATURE(VIRTIO_RING_F_EVENT_IDX)
#define F_IN_ORDER FEATURE(VIRTIO_F_IN_ORDER)
#define F_NOTIFICATION_DATA FEATURE(VIRTIO_F_NOTIFICATION_DATA)
#define F_RING_RESET FEATURE(VIRTIO_F_RING_RESET)
#define F_ACCESS_PLATFORM FEATURE(VIRTIO_F_ACCESS_PLATFORM)

/* Hands out guest memory, never takes it back. */
struct guest_heap {
    struct fake_hypervisor *fake;
    uint64_t next, end;
};
struct guest_heap guest_heap(struct fake_hypervisor *fake, uint64_t base, uint64_t len);
gpa_t guest_alloc(struct guest_heap *heap, size_t len, size_t align);

struct segment {
    gpa_t addr;
    uint32_t len;
};

/* What the driver remembers about a buffer, by descriptor index (split) or buffer ID (packed). */
struct ring_buffer {
    void *token;
    uint32_t writable;   /* bytes */
    uint16_t slots;      /* descriptors taken in the ring */
    bool in_flight;
    struct ring_grant *grants; /* until the device has used it */
    unsigned n_grants;
};

/* Pages that were granted together. */
struct ring_grant {
    uint32_t ref, pages;
};

struct ring {
    struct fake_hypervisor *fake;
    uint64_t features;
    uint16_t size, created;        /* now, and at most */
    bool packed, event_idx, in_order;
    bool grants;                   /* ACCESS_PLATFORM: the device is given grants */
    gpa_t desc, driver, device;
    gpa_t bus[3];                  /* with grants: the same as the device is told */
    struct ring_grant areas[3];
    struct vring_desc *split_desc; /* the driver's pointers to the three areas */
    struct vring_packed_desc *packed_desc;
    uint8_t *driver_area, *device_area;
    gpa_t tables;                  /* indirect tables, one for each id; made on first use */
    struct guest_heap *heap;

    struct ring_buffer *buffers;
    uint16_t *next_free;           /* split: the next free descriptor; packed: the next free ID */
    uint16_t free_head, n_free;    /* n_free: descriptors (split) or slots (packed) */
    uint16_t *order;               /* ids as they were added: IN_ORDER batches are read off it */
    uint32_t order_head, order_tail;
    uint16_t batch_end;            /* IN_ORDER: the id that ends the batch being returned ... */
    bool in_batch;                 /* ... if there is one */
    uint32_t batch_len;
    bool batch_write_flag;

    uint16_t avail, used;          /* split: free-running; packed: 0 .. size-1 */
    bool avail_wrap, used_wrap;    /* packed */
    uint16_t added;                /* entries (split) or slots (packed) since ring_needs_kick */
};

struct ring_used {
    void *token;
    uint16_t id;
    uint32_t len;
    bool batched;     /* IN_ORDER: no entry of its own was written, len is all of the buffer */
    bool write_flag;  /* packed: VIRTQ_DESC_F_WRITE of the used descriptor */
};

/* Allocates the areas and sets everything to zero. Aborts when there is no memory. */
void ring_create(struct ring *ring, struct guest_heap *heap, uint16_t size, uint64_t features);
/* The same memory again from the beginning, possibly smaller: after a reset of device or queue. */
void ring_restart(struct ring *ring, uint16_t size);
void ring_destroy(struct ring *ring);
struct virtqueue_setup ring_setup(const struct ring *ring);

/*
 * Makes a buffer available: n_out segments that the device reads, then n_in that it writes. Returns
 * its id, or -ENOSPC. indirect: through a table (one descriptor of the ring). With grants, what is RAM
 * of the guest is granted until the device has used it (for reading only where it only reads), as
 * Linux does; what is not is given as it is.
 */
int ring_add(struct ring *ring, const struct segment *out, unsigned n_out, const struct segment *in,
             unsigned n_in, void *token, bool indirect);
/* The next buffer that the device used. */
bool ring_get(struct ring *ring, struct ring_used *used);
unsigned ring_in_flight(const struct ring *ring);

/* Does the device want a notification for what was added since the last call? */
bool ring_needs_kick(struct ring *ring);
/* The QueueNotify value, with the offset for NOTIFICATION_DATA if negotiated. */
uint32_t ring_notify_value(const struct ring *ring, uint16_t queue);

/* What the driver asks of the device: interrupts always, never, or (EVENT_IDX) when the entry at
 * this position is used: split: used index; packed: offset | wrap << 15. */
void ring_interrupts_on(struct ring *ring);
void ring_interrupts_off(struct ring *ring);
void ring_interrupt_at(struct ring *ring, uint16_t position);

/* ---- raw ---- */

static inline uint16_t ram_load16(const void *p)
{
    return le16toh(__atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE));
}
static inline void ram_store16(void *p, uint16_t v)
{
    __atomic_store_n((uint16_t *)p, htole16(v), __ATOMIC_RELEASE);
}
static inline uint32_t ram_load32(const void *p)
{
    return le32toh(__atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE));
}

void split_desc_write(struct vring_desc *desc, uint64_t addr, uint32_t len, uint16_t flags,
                      uint16_t next);
void packed_desc_write(struct vring_packed_desc *desc, uint64_t addr, uint32_t len, uint16_t id,
                       uint16_t flags);
/* Flags that make a packed descriptor available on the lap of this wrap counter. */
uint16_t packed_avail_flags(bool wrap);

static inline void *avail_flags(const struct ring *r) { return r->driver_area; }
static inline void *avail_idx(const struct ring *r) { return r->driver_area + 2; }
static inline void *avail_entry(const struct ring *r, unsigned i)
{
    return r->driver_area + 4 + 2 * (size_t)i;
}
static inline void *used_event(const struct ring *r) { return avail_entry(r, r->size); }
static inline void *used_flags(const struct ring *r) { return r->device_area; }
static inline void *used_idx(const struct ring *r) { return r->device_area + 2; }
static inline void *used_entry(const struct ring *r, unsigned i)
{
    return r->device_area + 4 + 8 * (size_t)i;
}
static inline void *avail_event(const struct ring *r) { return used_entry(r, r->size); }

#endif
