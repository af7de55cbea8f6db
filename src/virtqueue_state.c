/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a queue outlives the process, and how a successor goes on from there.
 *
 * A request is recorded before the position of the ring that includes it, so it counts from the one
 * store of that position on. It is marked as completed before its used entry is written, and forgotten
 * after that is published and the record of what is published says so. A successor therefore finds
 * each request in one of three ways:
 *  - in flight: it is popped again, from its head (split) or the copies of its descriptors (packed,
 *    where used entries of others may have overwritten them);
 *  - completed: its used entry is written again, at the same position and with the same content. On a
 *    split ring that and publishing it twice changes nothing; on a packed ring the driver may have made
 *    something else of a published position, so there the ring tells whether it was;
 *  - published: it is forgotten.
 */
#include <stdlib.h>
#include <string.h>

#include "virtqueue_internal.h"

int virtqueue_state_create(struct virtqueue *vq)
{
    size_t n = vq->config.size_max;

    vq->state = vq->config.state;
    if (vq->state == NULL)
        vq->state = virtqueue_map_lazily(sizeof(*vq->state));
    vq->batch = calloc(n, sizeof(*vq->batch));
    vq->free_copies = calloc(n, sizeof(*vq->free_copies));
    vq->replay = calloc(n, sizeof(*vq->replay));
    return vq->state == NULL || vq->batch == NULL || vq->free_copies == NULL || vq->replay == NULL
               ? -ENOMEM
               : 0;
}

void virtqueue_state_destroy(struct virtqueue *vq)
{
    if (vq->state != NULL && vq->config.state == NULL)
        virtqueue_unmap(vq->state, sizeof(*vq->state));
    free(vq->batch);
    free(vq->free_copies);
    free(vq->replay);
}

void virtqueue_reset_state(struct virtqueue *vq)
{
    state_store64(&vq->state->published, 0);
    state_store64(&vq->state->avail, 0);
}

void virtqueue_set_serving(struct virtqueue *vq, bool serving)
{
    if (STATE_KEPT)
        state_store64(&vq->state->serving, serving);
}

uint32_t chain_number(const struct chain *chain)
{
    return (uint32_t)state_load64(&chain->vq->state->requests[chain->id].taken);
}

uint32_t virtqueue_first_again(const struct virtqueue *vq)
{
    if (vq->next_replay == vq->n_replay)
        return 0;
    return (uint32_t)state_load64(&vq->state->requests[vq->replay[vq->next_replay].id].taken);
}

void chain_in_hand(const struct chain *chain)
{
    struct virtqueue *vq = chain->vq;

    if (STATE_KEPT && chain->generation == vq->generation)
        state_store64(&vq->state->serving, state_in_hand(vq->state->requests[chain->id].taken));
}

static void forget_replay(struct virtqueue *vq)
{
    vq->n_replay = vq->next_replay = vq->n_again = vq->n_undone = 0;
    vq->undo_descriptors = 0;
    vq->replaying = false;
}

/* The positions at the start were set by ring->start. */
void virtqueue_state_start(struct virtqueue *vq)
{
    device_state_start_queue(vq->state, vq->setup.size);
    vq->taken = vq->given = 0;
    vq->n_free_copies = vq->setup.size;
    for (uint16_t i = 0; i < vq->setup.size; i++)
        vq->free_copies[i] = (uint16_t)(vq->setup.size - 1 - i);
    vq->copied = 0;
    forget_replay(vq);
    virtqueue_state_position(vq);
    /* Last: until then the queue has not begun. */
    state_store64(&vq->state->published,
                  state_position(0, vq->ring->used_position(vq), SALT_PUBLISHED));
}

/* ---- copies of a packed ring's descriptors ---- */

static uint64_t hash_copy(uint64_t hash, const struct state_descriptor *d)
{
    return state_hash(state_hash(hash, d->addr), d->len | (uint64_t)d->flags << 32);
}

void virtqueue_state_copy(struct virtqueue *vq, const struct descriptor *d)
{
    struct state_descriptor *copies = vq->state->descriptors;
    uint16_t at;

    if (!STATE_KEPT)
        return;
    at = vq->free_copies[vq->n_free_copies - 1 - vq->copied];
    copies[at] = (struct state_descriptor){.addr = d->addr, .len = d->len, .flags = d->flags};
    if (vq->copied == 0)
        vq->copies_hash = 0;
    else
        copies[vq->free_copies[vq->n_free_copies - vq->copied]].next = at;
    vq->copies_hash = hash_copy(vq->copies_hash, &copies[at]);
    vq->copied++;
}

const struct state_descriptor *virtqueue_state_copies(const struct virtqueue *vq, uint16_t id)
{
    return &vq->state->descriptors[vq->state->requests[id].copies % DEVICE_STATE_QUEUE_SIZE];
}

static uint16_t descriptors_of(const struct virtqueue *vq, uint16_t id)
{
    return (uint16_t)(state_load64(&vq->state->requests[id].taken) >> 32);
}

static void free_copies(struct virtqueue *vq, uint16_t id)
{
    const struct state_descriptor *copy = virtqueue_state_copies(vq, id);
    unsigned n = descriptors_of(vq, id);

    for (unsigned i = 0; i < n && vq->n_free_copies < vq->setup.size; i++) {
        vq->free_copies[vq->n_free_copies++] = (uint16_t)(copy - vq->state->descriptors);
        copy = &vq->state->descriptors[copy->next % DEVICE_STATE_QUEUE_SIZE];
    }
}

static void forget_request(struct virtqueue *vq, uint16_t id)
{
    if (vq->ring == &packed_ring_ops)
        free_copies(vq, id);
    state_store64(&vq->state->requests[id].taken, 0);
    virtqueue_not_busy(vq, id);
}

void virtqueue_state_put_back(struct virtqueue *vq, const struct chain *chain)
{
    if (!STATE_KEPT) {
        virtqueue_not_busy(vq, chain->id);
        return;
    }
    /* The position goes first: the request behind it does not count, as before it was taken. */
    vq->taken--;
    virtqueue_state_position(vq);
    forget_request(vq, chain->id);
}

void virtqueue_state_published(struct virtqueue *vq)
{
    if (!STATE_KEPT)
        return;
    state_store64(&vq->state->published,
                  state_position(vq->given, vq->ring->used_position(vq), SALT_PUBLISHED));
    for (unsigned i = 0; i < vq->unpublished; i++)
        forget_request(vq, vq->batch[i]);
}

/* ---- adopting ---- */

/* Its copies are good, and nobody else's. */
static bool adopt_copies(struct virtqueue *vq, uint16_t id, uint16_t n, uint64_t *seen)
{
    uint64_t word = state_load64(&vq->state->requests[id].copies), hash = 0;
    size_t at = (size_t)(word & STATE_LOW48);

    if (n == 0)
        return false;
    for (uint16_t i = 0; i < n; i++) {
        struct state_descriptor *copy;

        if (at >= vq->setup.size || (seen[at / 64] >> (at % 64) & 1) != 0)
            return false;
        seen[at / 64] |= UINT64_C(1) << (at % 64);
        copy = &vq->state->descriptors[at];
        hash = hash_copy(hash, copy);
        at = copy->next;
    }
    return state_is_sealed(word, hash, SALT_TAKEN);
}

/* Not qsort, which asks some C libraries' sysinfo() how much memory there is: the sandbox does not allow it. */
static void sort(struct replay *replay, unsigned n)
{
    static const unsigned gaps[] = {301, 132, 57, 23, 10, 4, 1};

    for (size_t g = 0; g < ARRAY_SIZE(gaps); g++)
        for (unsigned gap = gaps[g], i = gap; i < n; i++) {
            struct replay moved = replay[i];
            unsigned at = i;

            for (; at >= gap && replay[at - gap].order > moved.order; at -= gap)
                replay[at] = replay[at - gap];
            replay[at] = moved;
        }
}

/* What was completed goes behind what is to be popped again: in the order of completion. */
static int sort_completed(struct virtqueue *vq, struct replay *completed, unsigned n)
{
    unsigned whole = 0;

    sort(completed, n);
    for (unsigned i = 0; i < n; i++) {
        uint64_t done = state_load64(&vq->state->requests[completed[i].id].done);

        if (completed[i].order != i + 1) /* one is missing, or twice there */
            return -EBADMSG;
        if (!state_done_more(done))
            whole = i + 1;
    }
    /* The rest belongs to something that was not completed: it is taken again. */
    vq->n_again = whole;
    vq->n_undone = n - whole;
    return 0;
}

/* The requests, into `replay`: from the front those in flight, from the end those completed. */
static int collect(struct virtqueue *vq, uint32_t taken, uint32_t given, unsigned *descriptors)
{
    uint64_t seen[DEVICE_STATE_QUEUE_SIZE / 64] = {0};
    bool packed = vq->ring == &packed_ring_ops;
    unsigned n = vq->setup.size, completed = 0;

    *descriptors = 0;
    vq->n_replay = 0;
    for (uint16_t id = 0; id < n; id++) {
        struct state_request *request = &vq->state->requests[id];
        uint64_t word = state_load64(&request->taken), done = state_load64(&request->done);
        uint64_t copies = packed ? state_load64(&request->copies) : 0;
        uint16_t count = (uint16_t)(word >> 32);
        uint32_t age = taken - (uint32_t)word;

        if (word == 0)
            continue;
        if (!state_taken_good(word, id, copies))
            return -EBADMSG;
        if (age == UINT32_MAX) { /* its position was not stored any more */
            state_store64(&request->taken, 0);
            continue;
        }
        if (done != 0) {
            uint16_t ahead = (state_done_count(done) - (uint16_t)given) & STATE_DONE_COUNT;

            if (!state_done_good(done, id))
                return -EBADMSG;
            if (ahead == 0 || ahead > DEVICE_STATE_QUEUE_SIZE) { /* published, and not yet forgotten */
                if (ahead != 0 && ahead <= STATE_DONE_COUNT - DEVICE_STATE_QUEUE_SIZE)
                    return -EBADMSG;
                state_store64(&request->taken, 0);
                continue;
            }
            vq->replay[n - ++completed] = (struct replay){.order = ahead, .id = id};
        } else {
            vq->replay[vq->n_replay++] = (struct replay){.order = UINT32_MAX - age, .id = id};
        }
        if (packed ? !adopt_copies(vq, id, count, seen) : count != 1)
            return -EBADMSG;
        *descriptors += count;
        vq->busy[id / 64] |= UINT64_C(1) << (id % 64);
    }
    if (*descriptors > n)
        return -EBADMSG;
    sort(vq->replay, vq->n_replay);
    vq->n_free_copies = 0;
    for (uint16_t i = 0; i < n; i++)
        if ((seen[i / 64] >> (i % 64) & 1) == 0)
            vq->free_copies[vq->n_free_copies++] = i;
    memmove(&vq->replay[vq->n_replay], &vq->replay[n - completed],
            completed * sizeof(*vq->replay));
    return sort_completed(vq, &vq->replay[vq->n_replay], completed);
}

int virtqueue_state_adopt(struct virtqueue *vq)
{
    uint64_t avail = state_load64(&vq->state->avail);
    uint64_t published = state_load64(&vq->state->published);
    unsigned descriptors;

    forget_replay(vq);
    vq->copied = 0;
    virtqueue_set_serving(vq, false);
    if (published == 0) { /* it died before the queue began */
        virtqueue_state_start(vq);
        return 0;
    }
    if (!state_is_sealed(avail, 0, SALT_AVAIL) || !state_is_sealed(published, 0, SALT_PUBLISHED) ||
        collect(vq, state_count(avail), state_count(published), &descriptors) < 0)
        return -EBADMSG;
    vq->ring_descriptors = descriptors;
    vq->taken = state_count(avail);
    vq->given = state_count(published);
    return vq->ring->adopt(vq, avail, published) ? 0 : -EBADMSG;
}

/* Puts a completed request's used entry into the ring again. */
static void put_again(struct virtqueue *vq, uint16_t id)
{
    uint64_t done = state_load64(&vq->state->requests[id].done);
    const struct chain chain = {.id = id,
                                .written = state_done_written(done),
                                .descriptors = descriptors_of(vq, id)};

    vq->ring->put_used(vq, &chain);
}

void virtqueue_state_adopt_ring(struct virtqueue *vq)
{
    struct replay *completed = &vq->replay[vq->n_replay];
    unsigned again = vq->n_again, undone = vq->n_undone;
    bool published = again > 0 && vq->ring->was_published(vq);

    vq->n_again = vq->n_undone = 0;
    for (unsigned i = 0; i < again; i++) {
        if (published)
            vq->ring->skip_used(vq, descriptors_of(vq, completed[i].id));
        else
            put_again(vq, completed[i].id);
        vq->batch[vq->unpublished++] = completed[i].id;
        vq->given++;
    }
    if (published) {
        vq->published = vq->used_index;
        vq->used_wrapped = false;
        virtqueue_state_published(vq);
        vq->unpublished = 0;
    }
    for (unsigned i = 0; i < undone; i++) {
        vq->ring->unput_used(vq, descriptors_of(vq, completed[again + i].id));
        state_store64(&vq->state->requests[completed[again + i].id].done, 0);
    }
    /* They were taken before anything else that is in flight could have been completed, or after: their
     * numbers tell. */
    for (unsigned i = 0; i < undone; i++) {
        uint16_t id = completed[again + i].id;
        uint32_t age = vq->taken - (uint32_t)state_load64(&vq->state->requests[id].taken);

        vq->replay[vq->n_replay++] = (struct replay){.order = UINT32_MAX - age, .id = id};
    }
    if (undone > 0)
        sort(vq->replay, vq->n_replay);
}
