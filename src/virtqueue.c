/* SPDX-License-Identifier: Apache-2.0 */
#include "virtqueue.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "virtqueue_internal.h"

/* One writer: no locked instruction. */
static void count(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

static struct iovec *inline_iov(const struct virtqueue *vq, uint16_t slot)
{
    return (struct iovec *)(void *)(vq->slots + slot * vq->slot_stride + vq->slot_stride -
                                    INLINE_IOV * sizeof(struct iovec));
}

void *virtqueue_map_lazily(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

void virtqueue_unmap(void *p, size_t bytes)
{
    munmap(p, bytes);
}

int virtqueue_create(const struct virtqueue_config *config, struct virtqueue **out)
{
    struct virtqueue *vq;

    if (config->size_max == 0 || config->size_max > VIRTQUEUE_SIZE_MAX ||
        config->request_size < sizeof(struct chain))
        return -EINVAL;
    vq = calloc(1, sizeof(*vq));
    if (vq == NULL)
        return -ENOMEM;
    vq->config = *config;
    vq->slot_stride = ((config->request_size + 15) & ~(size_t)15) +
                      (1 + INLINE_IOV) * sizeof(struct iovec);
    vq->slots_bytes = vq->slot_stride * config->size_max;
    vq->slots = virtqueue_map_lazily(vq->slots_bytes);
    vq->n_blocks = MIN(IOV_BLOCKS_MAX, (unsigned)config->size_max);
    vq->blocks_bytes = (size_t)vq->n_blocks * (1 + config->size_max) * sizeof(struct iovec);
    vq->blocks = virtqueue_map_lazily(vq->blocks_bytes);
    vq->free_slots = calloc(config->size_max, sizeof(*vq->free_slots));
    vq->order = calloc(config->size_max, sizeof(*vq->order));
    if (virtqueue_state_create(vq) < 0 || vq->slots == NULL || vq->blocks == NULL ||
        vq->free_slots == NULL || vq->order == NULL) {
        virtqueue_destroy(vq);
        return -ENOMEM;
    }
    if (config->grants != NULL && grants_create(vq) < 0) {
        virtqueue_destroy(vq);
        return -ENOMEM;
    }
    /* Taken from the end: the first slots first, so that few pages are ever touched. */
    for (uint16_t i = 0; i < config->size_max; i++)
        vq->free_slots[i] = (uint16_t)(config->size_max - 1 - i);
    vq->n_free_slots = config->size_max;
    for (uint16_t i = 0; i < vq->n_blocks; i++)
        vq->free_blocks[i] = (uint16_t)(vq->n_blocks - 1 - i);
    vq->n_free_blocks = vq->n_blocks;
    vq->error = "";
    *out = vq;
    return 0;
}

void virtqueue_destroy(struct virtqueue *vq)
{
    if (vq == NULL)
        return;
    if (vq->grants != NULL)
        grants_destroy(vq);
    if (vq->slots != NULL)
        munmap(vq->slots, vq->slots_bytes);
    if (vq->blocks != NULL)
        munmap(vq->blocks, vq->blocks_bytes);
    virtqueue_state_destroy(vq);
    free(vq->free_slots);
    free(vq->order);
    free(vq);
}

static const struct ring_ops *ring_ops_for(uint64_t features)
{
    return (features >> VIRTIO_F_RING_PACKED & 1) != 0 ? &packed_ring_ops : &split_ring_ops;
}

int virtqueue_check(const struct virtqueue *vq, const struct virtqueue_setup *setup)
{
    const struct ring_ops *ring = ring_ops_for(setup->features);
    struct ring_format format;

    if (setup->size > vq->config.size_max || !ring->size_ok(setup->size))
        return -EINVAL;
    ring->format(setup->size, (setup->features >> VIRTIO_RING_F_EVENT_IDX & 1) != 0, &format);
    if (setup->desc.addr % format.desc_align != 0 ||
        setup->driver.addr % format.driver_align != 0 ||
        setup->device.addr % format.device_align != 0)
        return -EINVAL;
    return 0;
}

static int prepare(struct virtqueue *vq, const struct virtqueue_setup *setup)
{
    int ret = virtqueue_check(vq, setup);

    if (ret < 0)
        return ret;
    vq->setup = *setup;
    vq->ring = ring_ops_for(setup->features);
    vq->event_idx = (setup->features >> VIRTIO_RING_F_EVENT_IDX & 1) != 0;
    vq->indirect = (setup->features >> VIRTIO_RING_F_INDIRECT_DESC & 1) != 0;
    vq->in_order = (setup->features >> VIRTIO_F_IN_ORDER & 1) != 0;
    vq->broken = false;
    vq->starved = false;
    vq->mapped = false;
    vq->error = "";
    vq->last_avail = 0;
    vq->used_index = 0;
    vq->published = 0;
    vq->unpublished = 0;
    vq->order_head = 0;
    vq->order_count = 0;
    memset(vq->busy, 0, sizeof(vq->busy));
    vq->ring->start(vq);
    return 0;
}

int virtqueue_start(struct virtqueue *vq, const struct virtqueue_setup *setup)
{
    int ret = prepare(vq, setup);

    if (ret < 0)
        return ret;
    vq->generation++;
    vq->started = true;
    virtqueue_state_start(vq);
    return 0;
}

int virtqueue_adopt(struct virtqueue *vq, const struct virtqueue_setup *setup)
{
    int ret = prepare(vq, setup);

    if (ret == 0)
        ret = virtqueue_state_adopt(vq);
    if (ret < 0)
        return ret;
    vq->generation++;
    vq->started = true;
    return 0;
}

void virtqueue_stop(struct virtqueue *vq)
{
    /* Chains that are out belong to the past: their completion frees a slot and touches no ring.
     * Those that only wait for their turn (IN_ORDER) are free now. */
    if (vq->grants != NULL)
        grants_stop(vq);
    if (vq->started && vq->in_order)
        for (unsigned i = 0; i < vq->order_count; i++) {
            struct chain *chain =
                virtqueue_slot(vq, vq->order[(vq->order_head + i) % vq->config.size_max]);

            if (chain->done) {
                chain->done = false;
                vq->free_slots[vq->n_free_slots++] = chain->slot;
            }
        }
    vq->started = false;
    vq->mapped = false;
    vq->starved = false;
    vq->generation++;
    vq->order_count = 0;
    vq->unpublished = 0;
}

bool virtqueue_started(const struct virtqueue *vq)
{
    return vq->started;
}

bool virtqueue_broken(const struct virtqueue *vq)
{
    return vq->broken;
}

const char *virtqueue_error(const struct virtqueue *vq)
{
    return vq->error;
}

unsigned virtqueue_in_flight(const struct virtqueue *vq)
{
    return vq->in_flight;
}

int virtqueue_violation(struct virtqueue *vq, const char *what)
{
    vq->broken = true;
    vq->error = what;
    return -EPROTO;
}

void virtqueue_forget_mapping(struct virtqueue *vq)
{
    if (vq->grants != NULL)
        grants_pause(vq); /* a page that is granted cannot go: the ring stays mapped */
    else
        vq->mapped = false;
}

/* 0, -EAGAIN, -ENOMEM or -EPROTO. */
static int map_areas(struct virtqueue *vq)
{
    struct ring_format format;
    struct {
        gpa_t gpa;
        uint64_t bytes;
        uint8_t **host;
    } areas[3];

    vq->ring->format(vq->setup.size, vq->event_idx, &format);
    areas[0].gpa = vq->setup.desc;
    areas[0].bytes = format.desc_bytes;
    areas[0].host = &vq->desc;
    areas[1].gpa = vq->setup.driver;
    areas[1].bytes = format.driver_bytes;
    areas[1].host = &vq->driver;
    areas[2].gpa = vq->setup.device;
    areas[2].bytes = format.device_bytes;
    areas[2].host = &vq->device;
    for (size_t i = 0; i < ARRAY_SIZE(areas); i++) {
        void *host;
        int ret;

        if (vq->grants != NULL)
            ret = grants_map_ring(vq, i, areas[i].gpa, areas[i].bytes, &host);
        else
            ret = guest_memory_translate(vq->config.memory, areas[i].gpa, areas[i].bytes, &host);
        if (virtqueue_is_later(ret))
            return ret;
        if (ret < 0)
            return virtqueue_violation(vq, vq->grants != NULL
                                               ? "the ring is not in memory that was granted"
                                               : "the ring is not in the guest's RAM");
        *areas[i].host = host;
    }
    vq->mapped = true;
    if (vq->n_again + vq->n_undone > 0)
        virtqueue_state_adopt_ring(vq);
    return 0;
}

/* 0: the ring may be looked at. */
static int ready(struct virtqueue *vq)
{
    if (!vq->started || vq->broken)
        return -EPROTO;
    return vq->mapped ? 0 : map_areas(vq);
}

int virtqueue_map(struct virtqueue *vq)
{
    return ready(vq);
}

static int grow_into_block(struct virtqueue *vq, struct chain *chain)
{
    struct iovec *block;

    if (vq->n_free_blocks == 0)
        return -ENOBUFS;
    chain->iov_block = vq->free_blocks[--vq->n_free_blocks];
    block = vq->blocks + (size_t)chain->iov_block * (1u + vq->config.size_max) + 1;
    memcpy(block, chain->iov, sizeof(*block) * (size_t)(chain->n_readable + chain->n_writable));
    chain->iov = block;
    return 0;
}

static void free_iov(struct virtqueue *vq, struct chain *chain)
{
    if (chain->iov_block != NO_IOV_BLOCK)
        vq->free_blocks[vq->n_free_blocks++] = chain->iov_block;
    chain->iov_block = NO_IOV_BLOCK;
}

static int add_to_chain(struct virtqueue *vq, struct chain *chain, const struct descriptor *d)
{
    bool writable = (d->flags & VRING_DESC_F_WRITE) != 0;
    uint16_t count = (uint16_t)(chain->n_readable + chain->n_writable);
    uint32_t *bytes = writable ? &chain->writable_bytes : &chain->readable_bytes, sum;
    void *host = NULL;
    int ret;

    if (vq->grants != NULL)
        ret = grants_note(d, &host);
    else
        ret = guest_memory_translate(vq->config.memory, (gpa_t){d->addr}, d->len, &host);
    if (virtqueue_is_later(ret))
        return ret;
    vq->last_faulted = ret < 0;
    if (ret < 0) {
        chain->faulted = true;
        return 0;
    }
    if (__builtin_add_overflow(*bytes, d->len, &sum))
        return virtqueue_violation(vq, "chain is longer than 4 GiB");
    if (count >= vq->config.size_max)
        return virtqueue_violation(vq, "chain is longer than the queue");
    if (count == INLINE_IOV && chain->iov_block == NO_IOV_BLOCK) {
        ret = grow_into_block(vq, chain);
        if (ret < 0)
            return ret;
    }
    *bytes = sum;
    chain->iov[count] = (struct iovec){.iov_base = host, .iov_len = d->len};
    if (writable)
        chain->n_writable++;
    else
        chain->n_readable++;
    return 0;
}

int virtqueue_add_element(struct virtqueue *vq, struct chain *chain, const struct descriptor *d)
{
    bool writable = (d->flags & VRING_DESC_F_WRITE) != 0;

    /* 2.7.4.2: all readable elements come before all writable ones. */
    if (!writable && vq->last_writable)
        return virtqueue_violation(vq, "readable descriptor after a writable one");
    if (d->len == 0)
        return 0;
    vq->last_writable = writable;
    if (!chain->faulted)
        return add_to_chain(vq, chain, d);
    /*
     * Nobody looks into it any more: of what follows only the end counts, where devices report. (To look
     * in vain for memory that is not there costs the host much, and a chain can have a thousand of that.)
     */
    vq->deferred = *d;
    vq->has_deferred = true;
    return 0;
}

static int walk(struct virtqueue *vq, struct chain *chain)
{
    int ret;

    vq->last_faulted = vq->last_writable = vq->has_deferred = false;
    ret = vq->ring->walk(vq, chain);
    if (ret == 0 && vq->has_deferred)
        ret = add_to_chain(vq, chain, &vq->deferred);
    if (ret < 0 || !vq->last_faulted || !vq->last_writable)
        return ret;
    return virtqueue_violation(vq, "end of a chain is not in the guest's RAM");
}

int virtqueue_open_table(struct virtqueue *vq, const struct descriptor *d, const uint8_t **table,
                         uint32_t *entries)
{
    void *host;
    int ret;

    if (!vq->indirect)
        return virtqueue_violation(vq, "indirect descriptor, which was not negotiated");
    if (d->len == 0 || d->len % 16 != 0 || d->len / 16 > vq->config.size_max)
        return virtqueue_violation(vq, "indirect table of a size that cannot be");
    if (vq->grants != NULL)
        ret = grants_open_table(vq, d, &host);
    else
        ret = guest_memory_translate(vq->config.memory, (gpa_t){d->addr}, d->len, &host);
    if (virtqueue_is_later(ret))
        return ret;
    if (ret < 0)
        return virtqueue_violation(vq, "indirect table is not in the guest's RAM");
    *table = host;
    *entries = d->len / 16;
    return 0;
}

int virtqueue_take(struct virtqueue *vq, struct chain **out)
{
    struct chain *chain;
    uint16_t slot;
    int ret;

    vq->replaying = vq->next_replay < vq->n_replay;
    if (vq->replaying) {
        vq->head = vq->replay[vq->next_replay].id;
    } else {
        ret = vq->ring->peek(vq);
        if (ret <= 0)
            return ret;
    }
    if (vq->n_free_slots == 0) {
        vq->starved = true; /* slots of a past generation are still out */
        return 0;
    }
    slot = vq->free_slots[vq->n_free_slots - 1];
    chain = virtqueue_slot(vq, slot);
    memset(chain, 0, sizeof(*chain));
    chain->vq = vq;
    chain->slot = slot;
    chain->iov_block = NO_IOV_BLOCK;
    chain->iov = inline_iov(vq, slot);
    chain->generation = vq->generation;
    ret = walk(vq, chain);
    if (ret == 0 && vq->grants != NULL)
        ret = grants_reserve(vq, chain);
    if (ret < 0) {
        free_iov(vq, chain);
        if (ret != -ENOBUFS)
            return ret;
        vq->starved = true;
        return 0;
    }
    chain->write_index = chain->n_readable;
    if (vq->replaying) {
        chain->replayed = true;
        vq->next_replay++;
    } else {
        vq->ring->take(vq, chain);
        virtqueue_state_taken(vq, chain);
    }
    vq->n_free_slots--;
    vq->starved = false;
    vq->busy[chain->id / 64] |= UINT64_C(1) << (chain->id % 64);
    if (vq->in_order)
        vq->order[(vq->order_head + vq->order_count++) % vq->config.size_max] = slot;
    *out = chain;
    return 1;
}

int virtqueue_pop(struct virtqueue *vq, struct chain **out)
{
    int ret = ready(vq);

    if (ret < 0)
        return ret;
    ret = vq->grants != NULL ? grants_pop(vq, out) : virtqueue_take(vq, out);
    if (ret <= 0)
        return ret;
    vq->in_flight++;
    count(&vq->stats.popped);
    return 1;
}

/* ---- giving back ---- */

static void free_slot(struct virtqueue *vq, struct chain *chain)
{
    vq->free_slots[vq->n_free_slots++] = chain->slot;
}

static void put_used(struct virtqueue *vq, struct chain *chain)
{
    virtqueue_state_done(vq, chain);
    vq->ring->put_used(vq, chain);
    vq->unpublished++;
    free_slot(vq, chain);
}

void virtqueue_use(struct virtqueue *vq, struct chain *chain)
{
    free_iov(vq, chain);
    if (!vq->in_order) {
        put_used(vq, chain);
        return;
    }
    /* 2.7.9, 2.8.8: used in the order in which they were made available. */
    chain->done = true;
    while (vq->order_count > 0) {
        struct chain *first = virtqueue_slot(vq, vq->order[vq->order_head]);

        if (!first->done)
            break;
        first->done = false;
        vq->order_head = (uint16_t)((vq->order_head + 1u) % vq->config.size_max);
        vq->order_count--;
        put_used(vq, first);
    }
}

void virtqueue_free_chain(struct virtqueue *vq, struct chain *chain)
{
    if (vq->grants != NULL)
        grants_release(vq, chain);
    free_iov(vq, chain);
    free_slot(vq, chain);
}

static bool of_the_past(const struct virtqueue *vq, const struct chain *chain)
{
    return chain->generation != vq->generation || vq->broken;
}

void chain_complete(struct chain *chain, uint32_t written)
{
    struct virtqueue *vq = chain->vq;

    vq->in_flight--;
    vq->starved = false;
    if (of_the_past(vq, chain)) {
        virtqueue_free_chain(vq, chain);
        return;
    }
    chain->written = written;
    count(&vq->stats.completed);
    if (vq->grants != NULL)
        grants_complete(vq, chain);
    else
        virtqueue_use(vq, chain);
}

void chain_complete_part(struct chain *chain, uint32_t written)
{
    chain->part = true;
    chain_complete(chain, written);
}

void virtqueue_untake(struct virtqueue *vq, struct chain *chain)
{
    if (chain->replayed) {
        vq->next_replay--;
    } else {
        vq->ring->put_back(vq, chain);
        virtqueue_state_put_back(vq, chain);
    }
    if (vq->in_order)
        vq->order_count--;
    virtqueue_free_chain(vq, chain);
}

void chain_put_back(struct chain *chain)
{
    struct virtqueue *vq = chain->vq;

    vq->in_flight--;
    vq->starved = false;
    if (of_the_past(vq, chain))
        virtqueue_free_chain(vq, chain);
    else if (vq->grants != NULL)
        grants_put_back(vq, chain);
    else
        virtqueue_untake(vq, chain);
}

bool virtqueue_flush(struct virtqueue *vq)
{
    bool wanted;

    if (vq->grants != NULL && vq->started && !vq->broken)
        grants_settle(vq);
    if (vq->unpublished == 0 || !vq->started || vq->broken)
        return false;
    /* The mapping may have been dropped since the entries were written, and they with it: no. Pause
     * flushes before it lets go (virtio_device.c). */
    wanted = vq->ring->publish(vq);
    virtqueue_state_published(vq);
    vq->unpublished = 0;
    count(&vq->stats.flushes);
    if (wanted)
        count(&vq->stats.interrupts);
    return wanted;
}

unsigned virtqueue_unpublished(const struct virtqueue *vq)
{
    if (!vq->started || vq->broken)
        return 0;
    return vq->unpublished + (vq->grants != NULL ? grants_settling(vq) : 0);
}

enum driver_lag virtqueue_driver_lag(struct virtqueue *vq)
{
    if (!vq->started || vq->broken)
        return DRIVER_LOOKS_BY_ITSELF;
    return vq->mapped ? vq->ring->lag(vq) : DRIVER_LAG_UNKNOWN;
}

/* ---- notifications ---- */

bool virtqueue_has_work(struct virtqueue *vq)
{
    if (!vq->started || vq->broken || vq->starved)
        return false;
    /* A ring that is not mapped yet: let pop look, it can report what is wrong. */
    return !vq->mapped || (vq->grants != NULL && grants_waiting(vq)) ||
           vq->next_replay < vq->n_replay || vq->ring->peek(vq) != 0;
}

unsigned virtqueue_sharing(struct virtqueue *vq)
{
    if (!vq->started || vq->broken || vq->starved || !vq->mapped || vq->grants == NULL ||
        grants_waiting(vq) || vq->next_replay < vq->n_replay)
        return 0;
    return vq->ring->waiting(vq);
}

bool virtqueue_starved(const struct virtqueue *vq)
{
    return vq->starved;
}

bool virtqueue_enable_notify(struct virtqueue *vq)
{
    if (!vq->started || vq->broken || vq->starved)
        return false;
    if (!vq->mapped)
        return true;
    vq->ring->enable_notify(vq);
    /* Pairs with the driver's "make available, look at our event": one of us sees the other. */
    full_barrier();
    if (!virtqueue_has_work(vq))
        return false;
    vq->ring->disable_notify(vq);
    return true;
}

void virtqueue_disable_notify(struct virtqueue *vq)
{
    if (vq->started && !vq->broken && vq->mapped)
        vq->ring->disable_notify(vq);
}

uint16_t virtqueue_index(const struct virtqueue *vq)
{
    return vq->config.index;
}

uint16_t virtqueue_size(const struct virtqueue *vq)
{
    return vq->setup.size;
}

void *virtqueue_owner(const struct virtqueue *vq)
{
    return vq->config.owner;
}

struct virtqueue_stats *virtqueue_stats(struct virtqueue *vq)
{
    return &vq->stats;
}

uint64_t virtqueue_features(void)
{
    return UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC |
           UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX | UINT64_C(1) << VIRTIO_F_RING_PACKED |
           UINT64_C(1) << VIRTIO_F_IN_ORDER | UINT64_C(1) << VIRTIO_F_RING_RESET;
}
