/* SPDX-License-Identifier: Apache-2.0 */
#include "guest_memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "log.h"

#define CHUNK_PAGES ((size_t)(GUEST_CHUNK_SIZE / GUEST_PAGE_SIZE))
/*
 * While a guest balloons, Xen has everything dropped at each step: what is mapped must then be cheap
 * to map and to drop, not to use. So a drop soon after another makes the chunks small; they become
 * large again at a later drop, or when so many small ones are mapped that they are clearly in use.
 */
#define SMALL_CHUNK_PAGES ((size_t)16)
#define SMALL_CHUNKS_MAX 1024u
#define SOON_NS INT64_C(1000000000)
#define BITS 64u
/* Stale chunks are dropped one by one up to this many; beyond, everything is dropped. */
#define STALE_MAX 16u

struct bank {
    uint64_t base, size; /* guest-physical; size may be cut to what we can address */
    uint8_t *host;       /* reserved range, PROT_NONE where nothing is mapped */
    /* One bit per page: may be touched. Set after mapping, cleared only while nobody looks. */
    _Atomic uint64_t *valid;
    size_t valid_bytes;
    bool *mapped; /* one for each chunk, large or small: it is mapped; under the lock */
    size_t n_small_chunks;
    _Atomic uint64_t mapped_pages;
};

struct chunk {
    struct bank *bank;
    size_t index; /* in units of chunk_pages */
};

struct guest_memory {
    struct hypervisor *hv;
    size_t n_banks;
    struct bank banks[GUEST_BANKS_MAX];
    pthread_mutex_t lock; /* mapping and dropping; never taken when the page is mapped already */
    /* The rest is under the lock. */
    size_t chunk_pages;    /* of all chunks that are mapped; changes only while none is */
    struct chunk *chunks;  /* those that are mapped */
    size_t n_chunks, chunks_room;
    struct chunk stale[STALE_MAX];
    size_t n_stale; /* STALE_MAX + 1: too many, drop all */
    int64_t last_drop_ns;
    _Atomic uint64_t map_calls, mapped_chunks, drops, probes;
};

static void *reserve(size_t len, int prot)
{
    void *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static void bank_free(struct bank *bank)
{
    if (bank->host != NULL)
        munmap(bank->host, bank->size);
    if (bank->valid != NULL)
        munmap((void *)bank->valid, bank->valid_bytes);
    if (bank->mapped != NULL)
        munmap(bank->mapped, bank->n_small_chunks * sizeof(*bank->mapped));
}

static int bank_init(struct bank *bank, const struct ram_bank *ram)
{
    uint64_t size = ram->size;
    size_t pages;

    bank->base = ram->base;
    /* A kernel with 39-bit addresses cannot hold the whole of Xen's second bank (1016 GiB): serve
     * as much as fits. What lies beyond is reported as a hole. */
    while ((bank->host = reserve(size, PROT_NONE)) == NULL) {
        size = (size / 2) & ~(GUEST_CHUNK_SIZE - 1);
        if (size == 0)
            return -ENOMEM;
    }
    bank->size = size;
    pages = (size_t)((size + GUEST_CHUNK_SIZE - 1) / GUEST_CHUNK_SIZE) * CHUNK_PAGES;
    bank->n_small_chunks = pages / SMALL_CHUNK_PAGES;
    bank->valid_bytes = pages / 8;
    bank->valid = reserve(bank->valid_bytes, PROT_READ | PROT_WRITE);
    bank->mapped = reserve(bank->n_small_chunks * sizeof(*bank->mapped), PROT_READ | PROT_WRITE);
    return bank->valid != NULL && bank->mapped != NULL ? 0 : -ENOMEM;
}

int guest_memory_create(struct hypervisor *hv, const struct ram_bank *banks, size_t n_banks,
                        struct guest_memory **out)
{
    struct guest_memory *gm;
    int ret;

    if (n_banks == 0 || n_banks > GUEST_BANKS_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n_banks; i++)
        if (banks[i].size == 0 || (banks[i].base | banks[i].size) % GUEST_PAGE_SIZE != 0 ||
            banks[i].base + banks[i].size < banks[i].base)
            return -EINVAL;
    gm = calloc(1, sizeof(*gm));
    if (gm == NULL)
        return -ENOMEM;
    gm->hv = hv;
    gm->n_banks = n_banks;
    gm->chunk_pages = CHUNK_PAGES;
    pthread_mutex_init(&gm->lock, NULL);
    for (size_t i = 0; i < n_banks; i++) {
        ret = bank_init(&gm->banks[i], &banks[i]);
        if (ret < 0)
            goto fail;
    }
    *out = gm;
    return 0;
fail:
    for (size_t i = 0; i < n_banks; i++)
        bank_free(&gm->banks[i]);
    pthread_mutex_destroy(&gm->lock);
    free(gm);
    return ret;
}

void guest_memory_destroy(struct guest_memory *gm)
{
    if (gm == NULL)
        return;
    guest_memory_drop(gm);
    for (size_t i = 0; i < gm->n_banks; i++)
        bank_free(&gm->banks[i]);
    pthread_mutex_destroy(&gm->lock);
    free(gm->chunks);
    free(gm);
}

static bool pages_valid(const struct bank *bank, size_t first, size_t last)
{
    size_t word = first / BITS, last_word = last / BITS;
    uint64_t mask = ~UINT64_C(0) << (first % BITS);

    for (; word <= last_word; word++) {
        if (word == last_word)
            mask &= ~UINT64_C(0) >> (BITS - 1 - last % BITS);
        /* Pairs with the release in mark_valid: the mapping is there before its bit. */
        if ((~atomic_load_explicit(&bank->valid[word], memory_order_acquire) & mask) != 0)
            return false;
        mask = ~UINT64_C(0);
    }
    return true;
}

static void mark_valid(struct bank *bank, size_t page)
{
    atomic_fetch_or_explicit(&bank->valid[page / BITS], UINT64_C(1) << (page % BITS),
                             memory_order_release);
}

/* The last chunk of a bank may be shorter. */
static size_t pages_of(const struct guest_memory *gm, const struct chunk *chunk)
{
    size_t left = (size_t)(chunk->bank->size / GUEST_PAGE_SIZE) - chunk->index * gm->chunk_pages;

    return MIN(left, gm->chunk_pages);
}

static int make_room(struct guest_memory *gm)
{
    size_t room = MAX(gm->chunks_room * 2, 64);
    struct chunk *chunks;

    if (gm->n_chunks < gm->chunks_room)
        return 0;
    chunks = realloc(gm->chunks, room * sizeof(*chunks));
    if (chunks == NULL)
        return -ENOMEM;
    gm->chunks = chunks;
    gm->chunks_room = room;
    return 0;
}

/* That the host has no memory just now is no fault of the guest's. */
static bool is_shortage(int error)
{
    return error == -ENOMEM || error == -EAGAIN || error == -EINTR;
}

static int map_chunk(struct guest_memory *gm, struct chunk chunk)
{
    size_t first = chunk.index * gm->chunk_pages, pages = pages_of(gm, &chunk);
    int err[CHUNK_PAGES], ret = make_room(gm);
    uint8_t *at = chunk.bank->host + first * GUEST_PAGE_SIZE;
    uint64_t n = 0;

    if (ret == 0) {
        memset(err, 0xff, sizeof(err));
        ret = gm->hv->ops->map_ram(gm->hv, (chunk.bank->base >> GUEST_PAGE_SHIFT) + first, pages, at,
                                   err);
        atomic_fetch_add_explicit(&gm->map_calls, 1, memory_order_relaxed);
        for (size_t i = 0; i < pages && ret == 0; i++)
            if (is_shortage(err[i])) { /* of a part of it */
                gm->hv->ops->unmap_ram(gm->hv, at, pages);
                ret = -ENOMEM;
            }
    }
    if (ret < 0) {
        log_host("cannot map the guest's memory at %#llx: %s",
                 (unsigned long long)(chunk.bank->base + first * GUEST_PAGE_SIZE), strerror(-ret));
        return is_shortage(ret) ? -ENOMEM : -EFAULT;
    }
    for (size_t i = 0; i < pages; i++)
        if (err[i] == 0) {
            mark_valid(chunk.bank, first + i);
            n++;
        }
    atomic_fetch_add_explicit(&chunk.bank->mapped_pages, n, memory_order_relaxed);
    chunk.bank->mapped[chunk.index] = true;
    gm->chunks[gm->n_chunks++] = chunk;
    atomic_store_explicit(&gm->mapped_chunks, gm->n_chunks, memory_order_relaxed);
    return 0;
}

static void unmap_chunk(struct guest_memory *gm, const struct chunk *chunk)
{
    size_t first = chunk->index * gm->chunk_pages, pages = pages_of(gm, chunk);
    uint64_t n = 0;

    for (size_t page = first; page < first + pages; page++) {
        uint64_t bit = UINT64_C(1) << (page % BITS);

        n += (atomic_fetch_and_explicit(&chunk->bank->valid[page / BITS], ~bit,
                                        memory_order_relaxed) & bit) != 0;
    }
    atomic_fetch_sub_explicit(&chunk->bank->mapped_pages, n, memory_order_relaxed);
    gm->hv->ops->unmap_ram(gm->hv, chunk->bank->host + first * GUEST_PAGE_SIZE, pages);
    chunk->bank->mapped[chunk->index] = false;
}

static bool same_chunk(const struct chunk *a, const struct chunk *b)
{
    return a->bank == b->bank && a->index == b->index;
}

static void record_stale(struct guest_memory *gm, const struct chunk *chunk)
{
    for (size_t i = 0; i < MIN(gm->n_stale, STALE_MAX); i++)
        if (same_chunk(&gm->stale[i], chunk))
            return;
    if (gm->n_stale < STALE_MAX)
        gm->stale[gm->n_stale] = *chunk;
    gm->n_stale = MIN(gm->n_stale + 1, STALE_MAX + 1);
}

/*
 * A chunk cannot be mapped again in part (the kernel's mapping must go as a whole), and not as a whole
 * while others use its pages. So a page that is missing in a mapped chunk is looked at by itself: if
 * the guest really has it now, all pause and the chunk is mapped anew; if not, it is a hole and only
 * this request fails. A guest can force the pause only by giving and taking pages, which costs it
 * more than us.
 */
static int missing_in_mapped_chunk(struct guest_memory *gm, const struct chunk *chunk,
                                   size_t first, size_t last)
{
    struct bank *bank = chunk->bank;

    for (size_t page = first; page <= last; page++) {
        int ret;

        if (pages_valid(bank, page, page))
            continue;
        atomic_fetch_add_explicit(&gm->probes, 1, memory_order_relaxed);
        ret = gm->hv->ops->probe_ram(gm->hv, (bank->base >> GUEST_PAGE_SHIFT) + page);
        if (ret < 0)
            return is_shortage(ret) ? -ENOMEM : -EFAULT;
        break; /* that is enough: others are looked at when the chunk is mapped anew */
    }
    record_stale(gm, chunk);
    return -EAGAIN;
}

static int map_range(struct guest_memory *gm, struct bank *bank, size_t first, size_t last)
{
    int ret = 0, again = 0;
    size_t size;

    pthread_mutex_lock(&gm->lock);
    size = gm->chunk_pages;
    for (size_t index = first / size; index <= last / size; index++) {
        struct chunk chunk = {.bank = bank, .index = index};
        size_t from = MAX(first, index * size), to = MIN(last, (index + 1) * size - 1);

        if (pages_valid(bank, from, to))
            continue;
        if (bank->mapped[index]) {
            ret = missing_in_mapped_chunk(gm, &chunk, from, to);
        } else if (size == SMALL_CHUNK_PAGES && gm->n_chunks >= SMALL_CHUNKS_MAX) {
            gm->n_stale = STALE_MAX + 1; /* all go, and come back large */
            ret = -EAGAIN;
        } else {
            ret = map_chunk(gm, chunk);
            if (ret == 0 && !pages_valid(bank, from, to))
                ret = -EFAULT;
        }
        if (ret == -EAGAIN)
            again = ret;
        else if (ret < 0)
            break;
        ret = 0;
    }
    pthread_mutex_unlock(&gm->lock);
    return ret < 0 ? ret : again;
}

int guest_memory_translate(struct guest_memory *gm, gpa_t gpa, uint64_t len, void **out)
{
    for (size_t i = 0; i < gm->n_banks; i++) {
        struct bank *bank = &gm->banks[i];
        uint64_t offset = gpa.addr - bank->base; /* wraps to a huge value below the bank */
        size_t first, last;

        if (offset >= bank->size)
            continue;
        if (len == 0 || len > bank->size - offset)
            return -EFAULT;
        first = (size_t)(offset >> GUEST_PAGE_SHIFT);
        last = (size_t)((offset + len - 1) >> GUEST_PAGE_SHIFT);
        if (!pages_valid(bank, first, last)) {
            int ret = map_range(gm, bank, first, last);

            if (ret < 0)
                return ret;
        }
        *out = bank->host + offset;
        return 0;
    }
    return -EFAULT;
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void drop_all(struct guest_memory *gm)
{
    for (size_t i = 0; i < gm->n_chunks; i++)
        unmap_chunk(gm, &gm->chunks[i]);
    gm->n_chunks = 0;
    gm->n_stale = 0;
    gm->chunk_pages = CHUNK_PAGES;
    atomic_store_explicit(&gm->mapped_chunks, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&gm->drops, 1, memory_order_relaxed);
}

void guest_memory_drop(struct guest_memory *gm)
{
    int64_t now = now_ns();

    pthread_mutex_lock(&gm->lock);
    drop_all(gm);
    if (gm->last_drop_ns != 0 && now - gm->last_drop_ns < SOON_NS)
        gm->chunk_pages = SMALL_CHUNK_PAGES;
    gm->last_drop_ns = now;
    pthread_mutex_unlock(&gm->lock);
}

void guest_memory_drop_stale(struct guest_memory *gm)
{
    pthread_mutex_lock(&gm->lock);
    if (gm->n_stale > STALE_MAX) {
        drop_all(gm);
    } else {
        for (size_t i = 0; i < gm->n_stale; i++)
            for (size_t j = 0; j < gm->n_chunks; j++)
                if (same_chunk(&gm->chunks[j], &gm->stale[i])) {
                    unmap_chunk(gm, &gm->stale[i]);
                    gm->chunks[j] = gm->chunks[--gm->n_chunks];
                    break;
                }
        gm->n_stale = 0;
        atomic_store_explicit(&gm->mapped_chunks, gm->n_chunks, memory_order_relaxed);
        atomic_fetch_add_explicit(&gm->drops, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&gm->lock);
}

struct guest_memory_stats guest_memory_stats(const struct guest_memory *gm)
{
    struct guest_memory *m = (struct guest_memory *)gm;
    struct guest_memory_stats stats = {
        .map_calls = atomic_load_explicit(&m->map_calls, memory_order_relaxed),
        .mapped_chunks = atomic_load_explicit(&m->mapped_chunks, memory_order_relaxed),
        .drops = atomic_load_explicit(&m->drops, memory_order_relaxed),
        .probes = atomic_load_explicit(&m->probes, memory_order_relaxed),
    };

    for (size_t i = 0; i < m->n_banks; i++)
        stats.mapped_pages[i] =
            atomic_load_explicit(&m->banks[i].mapped_pages, memory_order_relaxed);
    return stats;
}
