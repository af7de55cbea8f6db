/* SPDX-License-Identifier: Apache-2.0 */
#include "virtqueue_grants.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "log.h"
#include "virtqueue_internal.h"

#define PAGE ((uint32_t)GUEST_PAGE_SIZE)
/* Below this many bytes an element is not data that a host device would want aligned. */
#define SMALL 512u
/*
 * What each chain has beside the pool, for headers and statuses; those of all chains lie together. Xen
 * looks a page of ours up once for all pieces of a copy that follow each other in it.
 */
#define NOTES_LEN 64u
/* What is kept of the end of a chain whose writable part cannot be reached: a status fits. */
#define LAST_LEN 64u
#define COPIES_MAX 256u
#define AREAS 3u
/* Indirect tables of a batch, and behind them one more, of any length. */
#define TABLES_LEN (64u << 10)
#define TABLE_MAX (16u * VIRTQUEUE_SIZE_MAX)

enum { READABLE, WRITABLE, PARTS };

struct element {
    uint64_t addr;
    uint8_t *host;
    uint32_t len;
};

/* What a chain has taken, by slot. */
struct granted {
    struct element *elements; /* readable ones, then writable ones: as walked */
    struct iovec *iov;        /* where the chain's list begins */
    uint16_t n[PARTS];
    uint16_t pool_first, pool_pages;
    uint32_t bytes[PARTS];
    uint32_t pages[PARTS];    /* of a part that is, or is to be, mapped; 0: it is copied */
    struct grant_map maps[PARTS];
    bool failed[PARTS];       /* a grant of this part is not good */
    bool written_lost, tail_lost;
    uint8_t last[LAST_LEN];
};

struct table {
    uint64_t addr;
    uint32_t len;
    uint8_t *at;
    bool failed;
};

struct grants {
    struct grant_memory *memory;
    struct grant_map ring[AREAS];
    struct granted *chains;
    struct element *inline_elements, *block_elements;
    uint8_t *notes; /* NOTES_LEN for each slot */
    uint8_t *pool;
    uint64_t used[GRANTS_POOL_PAGES / 64];
    uint32_t mapped; /* pages of chains */
    uint32_t copy_max;
    /* Slots of chains that wait for pop, oldest first, and that wait for flush. */
    uint16_t *taken, *completed;
    uint16_t taken_first, n_taken, n_completed;
    struct table tables[GRANTS_BATCH];
    unsigned n_tables;
    uint8_t *table_memory;
    /* The copy that is being put together, and who wants to know if a piece of it failed. */
    struct grant_copy copies[COPIES_MAX];
    bool *failed[COPIES_MAX];
    unsigned n_copies;
};

static void *memory(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static size_t blocks_len(const struct virtqueue *vq)
{
    return (size_t)vq->n_blocks * vq->config.size_max * sizeof(struct element);
}

int grants_create(struct virtqueue *vq)
{
    struct grants *g = calloc(1, sizeof(*g));
    size_t n = vq->config.size_max;

    if (g == NULL)
        return -ENOMEM;
    vq->grants = g;
    g->memory = vq->config.grants;
    g->copy_max = vq->config.copy_max > 0 ? MIN(vq->config.copy_max, GRANTS_COPY_MAX)
                                          : GRANTS_COPY_MAX;
    g->chains = calloc(n, sizeof(*g->chains));
    g->inline_elements = calloc(n * INLINE_IOV, sizeof(*g->inline_elements));
    g->block_elements = memory(blocks_len(vq));
    g->taken = calloc(n, sizeof(*g->taken));
    g->completed = calloc(n, sizeof(*g->completed));
    g->notes = memory(n * NOTES_LEN);
    g->pool = memory((size_t)GRANTS_POOL_PAGES * PAGE);
    g->table_memory = memory(TABLES_LEN + TABLE_MAX);
    if (g->chains == NULL || g->inline_elements == NULL || g->block_elements == NULL ||
        g->taken == NULL || g->completed == NULL || g->notes == NULL || g->pool == NULL ||
        g->table_memory == NULL)
        return -ENOMEM; /* the queue is destroyed */
    return 0;
}

void grants_destroy(struct virtqueue *vq)
{
    struct grants *g = vq->grants;

    for (size_t i = 0; i < AREAS; i++)
        grant_memory_unmap(g->memory, &g->ring[i]);
    if (g->notes != NULL)
        munmap(g->notes, (size_t)vq->config.size_max * NOTES_LEN);
    if (g->pool != NULL)
        munmap(g->pool, (size_t)GRANTS_POOL_PAGES * PAGE);
    if (g->table_memory != NULL)
        munmap(g->table_memory, TABLES_LEN + TABLE_MAX);
    if (g->block_elements != NULL)
        munmap(g->block_elements, blocks_len(vq));
    free(g->inline_elements);
    free(g->completed);
    free(g->taken);
    free(g->chains);
    free(g);
    vq->grants = NULL;
}

int grants_map_ring(struct virtqueue *vq, size_t i, gpa_t addr, uint64_t len, void **host)
{
    struct grants *g = vq->grants;
    /* Split: the device area only is written (2.7); packed: the descriptors, too (2.8). */
    bool writable = i == 2 || (i == 0 && vq->ring == &packed_ring_ops);
    struct grant_span span;
    int ret;

    grant_memory_unmap(g->memory, &g->ring[i]); /* of an attempt that went half way */
    ret = grant_span_of(addr, (uint32_t)len, &span);
    if (ret == 0)
        ret = grant_memory_map(g->memory, &span, 1, writable, &g->ring[i]);
    if (ret == 0)
        *host = (uint8_t *)g->ring[i].at + span.offset;
    return ret == 0 || ret == -ENOMEM ? ret : -EFAULT;
}

/* ---- copies ---- */

static void run_copies(struct grants *g)
{
    grant_memory_copy(g->memory, g->copies, g->n_copies);
    for (unsigned i = 0; i < g->n_copies; i++)
        if (g->copies[i].result != 0)
            *g->failed[i] = true;
    g->n_copies = 0;
}

/* Adds [addr, addr + len) to the copy. The address is one of grants; *failed may be set later. */
static void add_copy(struct grants *g, uint64_t addr, uint8_t *host, uint32_t len, bool to_guest,
                     bool *failed)
{
    struct grant_span span;

    if (len == 0 || grant_span_of((gpa_t){addr}, len, &span) < 0)
        return;
    for (uint32_t i = 0; len > 0; i++) {
        uint32_t part = MIN(len, PAGE - span.offset);

        if (g->n_copies == COPIES_MAX)
            run_copies(g);
        g->copies[g->n_copies] = (struct grant_copy){.host = host,
                                                     .ref = span.ref + i,
                                                     .offset = span.offset,
                                                     .len = (uint16_t)part,
                                                     .to_guest = to_guest};
        g->failed[g->n_copies++] = failed;
        span.offset = 0;
        host += part;
        len -= part;
    }
}

/* ---- memory for what is copied ---- */

static bool pool_free(const struct grants *g, uint32_t page)
{
    return (g->used[page / 64] >> (page % 64) & 1) == 0;
}

static void pool_mark(struct grants *g, uint32_t first, uint32_t pages)
{
    for (uint32_t page = first; page < first + pages; page++)
        g->used[page / 64] ^= UINT64_C(1) << (page % 64);
}

/* The first that fits: few pages are ever touched. */
static bool pool_take(struct grants *g, struct granted *chain, uint32_t pages)
{
    uint32_t run = 0;

    for (uint32_t page = 0; page < GRANTS_POOL_PAGES && run < pages; page++) {
        run = pool_free(g, page) ? run + 1 : 0;
        chain->pool_first = (uint16_t)(page + 1 - run);
    }
    if (run < pages)
        return false;
    chain->pool_pages = (uint16_t)pages;
    pool_mark(g, chain->pool_first, pages);
    return true;
}

static void pool_give(struct grants *g, struct granted *chain)
{
    pool_mark(g, chain->pool_first, chain->pool_pages);
    chain->pool_pages = 0;
}

/* An element takes at most twice its length, or 15 bytes more: any chain fits the empty pool. */
static_assert(GRANTS_POOL_PAGES * GUEST_PAGE_SIZE >=
                  2 * PARTS * GRANTS_COPY_MAX + 15 * VIRTQUEUE_SIZE_MAX + GUEST_PAGE_SIZE,
              "a chain that never fits would wait for ever");
static_assert(GRANTS_POOL_PAGES % 64 == 0, "words of a bit map");

static size_t place(struct element *e, size_t at)
{
    size_t offset = e->addr % PAGE;

    if (e->len >= PAGE) /* one piece of the copy for each page: as in the guest */
        return at + (offset + PAGE - at % PAGE) % PAGE;
    if (e->len >= SMALL && offset % SMALL == 0)
        return (at + SMALL - 1) & ~(size_t)(SMALL - 1);
    return (at + 15) & ~(size_t)15;
}

/*
 * Where the elements go that are copied: the notes, as far as they fit, and the pool; there, what is small
 * first, so that a few small elements do not take pages. Returns the bytes that they take of the pool;
 * base NULL: only that.
 */
static size_t lay_out(struct granted *chain, uint8_t *notes, uint8_t *base)
{
    size_t at = 0;
    uint32_t noted = 0;

    for (int small = 1; small >= 0; small--)
        for (unsigned i = 0; i < (unsigned)chain->n[READABLE] + chain->n[WRITABLE]; i++) {
            struct element *e = &chain->elements[i];

            if (chain->pages[i < chain->n[READABLE] ? READABLE : WRITABLE] > 0 ||
                (e->len < SMALL) != (small != 0))
                continue;
            if (e->len <= NOTES_LEN - noted) {
                e->host = notes + noted;
                noted = MIN((noted + e->len + 15) & ~15u, NOTES_LEN);
                continue;
            }
            at = place(e, at);
            if (base != NULL)
                e->host = base + at;
            at += e->len;
        }
    return at;
}

/* ---- a chain ---- */

int grants_note(const struct descriptor *d, void **host)
{
    struct grant_span span;

    static_assert(sizeof(uintptr_t) == sizeof(uint64_t), "an address of the guest fits a pointer");
    *host = (void *)(uintptr_t)d->addr;
    return grant_span_of((gpa_t){d->addr}, d->len, &span);
}

static uint32_t pages_of(const struct element *e, unsigned n)
{
    uint32_t pages = 0;
    struct grant_span span;

    for (unsigned i = 0; i < n; i++)
        if (grant_span_of((gpa_t){e[i].addr}, e[i].len, &span) == 0)
            pages = MIN(pages + span.pages, (uint32_t)GRANT_MAP_MAX + 1);
    return pages;
}

static void unmap_part(struct grants *g, struct granted *c, unsigned part)
{
    grant_memory_unmap(g->memory, &c->maps[part]);
    g->mapped -= c->pages[part];
    c->pages[part] = 0;
}

/*
 * The writable part cannot be reached. What remains is the end of it, where a device says that the
 * request failed; if that does not arrive either, the device needs a reset.
 */
static void keep_last(struct grants *g, struct granted *c)
{
    struct element *last = &c->elements[c->n[READABLE] + c->n[WRITABLE] - 1];
    struct element *kept = &c->elements[c->n[READABLE]];
    uint32_t len = MIN(last->len, LAST_LEN);

    unmap_part(g, c, WRITABLE);
    *kept = (struct element){.addr = last->addr + last->len - len, .host = c->last, .len = len};
    c->n[WRITABLE] = 1;
    c->bytes[WRITABLE] = len;
}

int grants_reserve(struct virtqueue *vq, struct chain *chain)
{
    struct grants *g = vq->grants;
    struct granted *c = &g->chains[chain->slot];
    unsigned n = (unsigned)chain->n_readable + chain->n_writable;
    uint8_t *notes = g->notes + (size_t)chain->slot * NOTES_LEN;
    uint32_t map = 0;
    size_t len;

    *c = (struct granted){.iov = chain->iov};
    c->elements = chain->iov_block == NO_IOV_BLOCK
                      ? g->inline_elements + chain->slot * INLINE_IOV
                      : g->block_elements + (size_t)chain->iov_block * vq->config.size_max;
    for (unsigned i = 0; i < n; i++)
        c->elements[i] = (struct element){.addr = (uint64_t)(uintptr_t)chain->iov[i].iov_base,
                                          .len = (uint32_t)chain->iov[i].iov_len};
    c->n[READABLE] = chain->n_readable;
    c->n[WRITABLE] = chain->n_writable;
    c->bytes[READABLE] = chain->readable_bytes;
    c->bytes[WRITABLE] = chain->writable_bytes;
    if (chain->faulted) {
        if (c->n[WRITABLE] > 0)
            keep_last(g, c);
        c->failed[READABLE] = true;
        return 0;
    }
    for (unsigned part = 0; part < PARTS; part++) {
        if (c->bytes[part] <= g->copy_max)
            continue;
        c->pages[part] = pages_of(c->elements + (part == WRITABLE ? c->n[READABLE] : 0), c->n[part]);
        map += c->pages[part];
    }
    if (map > 0 && g->mapped > 0 && g->mapped + map > GRANTS_MAPPED_MAX)
        return -ENOBUFS;
    len = lay_out(c, notes, NULL);
    if (len > 0 && !pool_take(g, c, (uint32_t)((len + PAGE - 1) / PAGE)))
        return -ENOBUFS;
    g->mapped += map;
    (void)lay_out(c, notes, g->pool + (size_t)c->pool_first * PAGE);
    return 0;
}

void grants_release(struct virtqueue *vq, struct chain *chain)
{
    struct grants *g = vq->grants;
    struct granted *c = &g->chains[chain->slot];

    for (unsigned part = 0; part < PARTS; part++)
        unmap_part(g, c, part);
    pool_give(g, c);
}

static void map_part(struct virtqueue *vq, struct granted *c, unsigned part)
{
    struct element *e = c->elements + (part == WRITABLE ? c->n[READABLE] : 0);
    struct grant_span spans[VIRTQUEUE_SIZE_MAX];
    uint8_t *at;
    int ret;

    for (unsigned i = 0; i < c->n[part]; i++)
        (void)grant_span_of((gpa_t){e[i].addr}, e[i].len, &spans[i]); /* checked by grants_note */
    ret = grant_memory_map(vq->grants->memory, spans, c->n[part], part == WRITABLE, &c->maps[part]);
    if (ret < 0) {
        if (ret == -E2BIG)
            log_guest("a request of the guest is larger than can be mapped at once (%zu pages)",
                      GRANT_MAP_MAX);
        unmap_part(vq->grants, c, part); /* what was reserved */
        c->failed[part] = true;
        return;
    }
    at = c->maps[part].at;
    for (unsigned i = 0; i < c->n[part]; i++) {
        e[i].host = at + spans[i].offset;
        at += (size_t)spans[i].pages * PAGE;
    }
}

/* What lies side by side is one element: for the host, a request of many pages is one buffer then. */
static uint16_t join(const struct element *e, unsigned n, struct iovec *iov)
{
    struct iovec *last = NULL;
    uint16_t joined = 0;

    for (unsigned i = 0; i < n; i++) {
        if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == e[i].host) {
            last->iov_len += e[i].len;
            continue;
        }
        last = &iov[joined++];
        *last = (struct iovec){.iov_base = e[i].host, .iov_len = e[i].len};
    }
    return joined;
}

/* The chain as the device is to see it, from the beginning. */
static void present(struct virtqueue *vq, struct chain *chain)
{
    struct grants *g = vq->grants;
    struct granted *c = &g->chains[chain->slot];

    if (c->failed[WRITABLE])
        keep_last(g, c);
    chain->faulted = c->failed[READABLE] || c->failed[WRITABLE];
    chain->iov = c->iov;
    /* Of what failed, nothing is to be believed. */
    chain->n_readable = chain->faulted ? 0 : join(c->elements, c->n[READABLE], c->iov);
    chain->readable_bytes = chain->faulted ? 0 : c->bytes[READABLE];
    chain->n_writable = join(c->elements + c->n[READABLE], c->n[WRITABLE], c->iov + chain->n_readable);
    chain->writable_bytes = c->bytes[WRITABLE];
    chain->read_index = 0;
    chain->write_index = chain->n_readable;
    chain->read_offset = chain->write_offset = 0;
    chain->tail_bytes = 0;
    chain->pinnable = c->pages[READABLE] == 0 && c->pages[WRITABLE] == 0;
}

/* ---- from the ring ---- */

static uint8_t *spare_table(const struct grants *g)
{
    return g->table_memory + TABLES_LEN;
}

static bool is_table(const struct virtqueue *vq, const struct descriptor *d)
{
    struct grant_span span;

    return (d->flags & VRING_DESC_F_INDIRECT) != 0 && vq->indirect && d->len % 16 == 0 &&
           d->len / 16 <= vq->config.size_max && grant_span_of((gpa_t){d->addr}, d->len, &span) == 0;
}

/* Fetches the indirect tables of the chains that wait; returns how many of these it looked at. */
static unsigned fetch_tables(struct virtqueue *vq)
{
    struct grants *g = vq->grants;
    struct descriptor d;
    uint32_t at = 0;
    unsigned n;

    g->n_tables = 0;
    for (n = 0; n < GRANTS_BATCH && vq->ring->ahead(vq, n, &d); n++) {
        struct table *table = &g->tables[g->n_tables];

        if (!is_table(vq, &d))
            continue;
        if (d.len > TABLES_LEN - at)
            break;
        *table = (struct table){.addr = d.addr, .len = d.len, .at = g->table_memory + at};
        add_copy(g, d.addr, table->at, d.len, false, &table->failed);
        at += (d.len + 63) & ~63u;
        at = MIN(at, TABLES_LEN);
        g->n_tables++;
    }
    run_copies(g);
    return n;
}

int grants_open_table(struct virtqueue *vq, const struct descriptor *d, void **table)
{
    struct grants *g = vq->grants;
    struct grant_span span;
    bool failed = false;

    for (unsigned i = 0; i < g->n_tables; i++)
        if (g->tables[i].addr == d->addr && g->tables[i].len == d->len) {
            *table = g->tables[i].at;
            return g->tables[i].failed ? -EFAULT : 0;
        }
    /* The descriptor was not there, or another one, when it was looked at. */
    if (grant_span_of((gpa_t){d->addr}, d->len, &span) < 0)
        return -EFAULT;
    run_copies(g);
    add_copy(g, d->addr, spare_table(g), d->len, false, &failed);
    run_copies(g);
    *table = spare_table(g);
    return failed ? -EFAULT : 0;
}

/* Does the chain cost a call before the device can have it? */
static bool costs_a_call(const struct granted *c)
{
    return !c->failed[READABLE] && (c->n[READABLE] > 0 || c->pages[WRITABLE] > 0);
}

/* Headers and the like: they are copied one after the other, since they lie in the same page of ours. */
static bool is_note(const struct element *e)
{
    return e->len <= NOTES_LEN;
}

/* Adds to the copy what the device reads of the chain: notes, or all else. */
static void fetch_readable(struct grants *g, struct granted *c, bool notes)
{
    if (c->failed[READABLE] || c->pages[READABLE] > 0)
        return;
    for (unsigned i = 0; i < c->n[READABLE]; i++)
        if (is_note(&c->elements[i]) == notes)
            add_copy(g, c->elements[i].addr, c->elements[i].host, c->elements[i].len, false,
                     &c->failed[READABLE]);
}

static struct granted *taken_chain(const struct virtqueue *vq, unsigned i)
{
    struct grants *g = vq->grants;

    return &g->chains[g->taken[(g->taken_first + i) % vq->config.size_max]];
}

/* Takes chains off the ring; 0, or the error that ended it. */
static int fetch(struct virtqueue *vq)
{
    struct grants *g = vq->grants;
    unsigned looked, tables;
    struct chain *chain;
    bool shares = true;
    bool replays = vq->next_replay < vq->n_replay;
    int ret = replays ? 1 : vq->ring->peek(vq);

    if (ret <= 0)
        return ret;
    /* What a dead process left in flight is not where the ring is looked at next. */
    looked = replays ? 0 : fetch_tables(vq);
    tables = g->n_tables;
    /* Chains that cost no call are taken one by one: a device may want no more for a long time. */
    while (shares && g->n_taken < (tables > 0 ? looked : GRANTS_BATCH)) {
        ret = virtqueue_take(vq, &chain);
        if (ret <= 0)
            break;
        g->taken[(g->taken_first + g->n_taken++) % vq->config.size_max] = chain->slot;
        shares = tables > 0 || costs_a_call(&g->chains[chain->slot]);
    }
    for (unsigned notes = 0; notes < 2; notes++)
        for (unsigned i = 0; i < g->n_taken; i++)
            fetch_readable(g, taken_chain(vq, i), notes > 0);
    run_copies(g);
    g->n_tables = 0;
    for (unsigned i = 0; i < g->n_taken; i++) {
        struct granted *c = taken_chain(vq, i);

        for (unsigned part = 0; part < PARTS; part++)
            if (c->pages[part] > 0 && !c->failed[READABLE])
                map_part(vq, c, part);
            else if (c->pages[part] > 0)
                c->failed[part] = true; /* the request fails anyway */
        present(vq, virtqueue_slot(vq, (uint16_t)(c - g->chains)));
    }
    return MIN(ret, 0);
}

int grants_pop(struct virtqueue *vq, struct chain **out)
{
    struct grants *g = vq->grants;
    int ret;

    if (g->n_taken == 0) {
        ret = fetch(vq);
        if (ret < 0)
            return ret;
        if (g->n_taken == 0)
            return 0;
        vq->starved = false;
    }
    *out = virtqueue_slot(vq, g->taken[g->taken_first]);
    g->taken_first = (uint16_t)((g->taken_first + 1u) % vq->config.size_max);
    g->n_taken--;
    return 1;
}

bool grants_waiting(const struct virtqueue *vq)
{
    return vq->grants->n_taken > 0;
}

void grants_put_back(struct virtqueue *vq, struct chain *chain)
{
    struct grants *g = vq->grants;

    g->taken_first = (uint16_t)((g->taken_first + vq->config.size_max - 1u) % vq->config.size_max);
    g->taken[g->taken_first] = chain->slot;
    g->n_taken++;
    present(vq, chain);
}

/* ---- to the guest ---- */

void grants_complete(struct virtqueue *vq, struct chain *chain)
{
    vq->grants->completed[vq->grants->n_completed++] = chain->slot;
}

unsigned grants_settling(const struct virtqueue *vq)
{
    return vq->grants->n_completed;
}

/* Bytes [from, to) of what the chain's device wrote, as far as they are in notes, or elsewhere. */
static void write_back(struct grants *g, struct granted *c, bool notes, uint32_t from, uint32_t to,
                       bool *failed)
{
    const struct element *e = c->elements + c->n[READABLE];

    for (unsigned i = 0; i < c->n[WRITABLE] && to > 0; i++) {
        uint32_t end = MIN(to, e[i].len);

        if (from < end && is_note(&e[i]) == notes)
            add_copy(g, e[i].addr + from, e[i].host + from, end - from, true, failed);
        from -= MIN(from, e[i].len);
        to -= end;
    }
}

static void write_tail(struct grants *g, struct granted *c, const struct chain *chain, bool notes,
                       uint32_t from)
{
    uint32_t all = c->bytes[WRITABLE];

    if (chain->tail_bytes > 0)
        write_back(g, c, notes, MAX(from, all - chain->tail_bytes), all, &c->tail_lost);
}

/* What was written did not arrive: the request failed, and its end is to say so. */
static void report_loss(struct virtqueue *vq, struct granted *c, struct chain *chain)
{
    struct grants *g = vq->grants;
    const struct element *last = &c->elements[c->n[READABLE] + c->n[WRITABLE] - 1];

    chain->written = 0;
    if (chain->tail_bytes == 0)
        return;
    if (chain->tail_bytes == 1)
        last->host[last->len - 1] = vq->config.error_status;
    write_tail(g, c, chain, false, 0);
    write_tail(g, c, chain, true, 0);
    run_copies(g);
}

void grants_settle(struct virtqueue *vq)
{
    struct grants *g = vq->grants;
    unsigned n = g->n_completed;
    bool lost = false;

    for (unsigned i = 0; i < 2 * n; i++) {
        struct chain *chain = virtqueue_slot(vq, g->completed[i % n]);
        struct granted *c = &g->chains[chain->slot];
        uint32_t written = MIN(chain->written, c->bytes[WRITABLE]);
        bool notes = i >= n;

        if (c->pages[WRITABLE] > 0 || c->n[WRITABLE] == 0)
            continue;
        write_back(g, c, notes, 0, written, &c->written_lost);
        write_tail(g, c, chain, notes, written);
    }
    run_copies(g);
    for (unsigned i = 0; i < n; i++) {
        struct chain *chain = virtqueue_slot(vq, g->completed[i]);
        struct granted *c = &g->chains[chain->slot];

        if (c->written_lost) {
            log_guest("what was written for a request of the guest did not reach it: its grant has "
                      "ended, or is for reading only");
            report_loss(vq, c, chain);
        }
        lost |= c->tail_lost;
    }
    if (lost)
        virtqueue_violation(vq, "end of a chain cannot be written: its grant is not good");
    g->n_completed = 0;
    for (unsigned i = 0; i < n; i++) {
        struct chain *chain = virtqueue_slot(vq, g->completed[i]);

        if (lost) {
            virtqueue_free_chain(vq, chain);
            continue;
        }
        grants_release(vq, chain);
        virtqueue_use(vq, chain);
    }
    if (n > 0)
        vq->starved = false;
}

/* ---- standstill ---- */

void grants_pause(struct virtqueue *vq)
{
    struct grants *g = vq->grants;

    if (!vq->started || vq->broken)
        return;
    while (g->n_taken > 0) {
        uint16_t last = (uint16_t)((g->taken_first + --g->n_taken) % vq->config.size_max);

        virtqueue_untake(vq, virtqueue_slot(vq, g->taken[last]));
    }
}

void grants_stop(struct virtqueue *vq)
{
    struct grants *g = vq->grants;

    for (unsigned i = 0; i < g->n_completed; i++)
        virtqueue_free_chain(vq, virtqueue_slot(vq, g->completed[i]));
    g->n_completed = 0;
    while (g->n_taken > 0) {
        uint16_t last = (uint16_t)((g->taken_first + --g->n_taken) % vq->config.size_max);

        virtqueue_free_chain(vq, virtqueue_slot(vq, g->taken[last]));
    }
    for (size_t i = 0; i < AREAS; i++)
        grant_memory_unmap(g->memory, &g->ring[i]);
}
