/* SPDX-License-Identifier: Apache-2.0 */
#include "guest_memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK_PAGES ((size_t)(GUEST_CHUNK_SIZE / GUEST_PAGE_SIZE))
#define BANKS_MAX 4
#define BITS 64u
/* Stale chunks are dropped one by one up to this many; beyond, everything is dropped. */
#define STALE_MAX 16u

enum chunk_state { CHUNK_UNMAPPED, CHUNK_MAPPED, CHUNK_MAPPED_WITH_HOLES };

struct bank {
    uint64_t base, size; /* guest-physical; size may be cut to what we can address */
    uint8_t *host;       /* reserved range, PROT_NONE where nothing is mapped */
    /* One bit per page: may be touched. Set after mapping, cleared only while nobody looks. */
    _Atomic uint64_t *valid;
    size_t valid_bytes;
    uint8_t *chunks; /* enum chunk_state, under the lock */
    size_t n_chunks;
};

struct guest_memory {
    struct hypervisor *hv;
    size_t n_banks;
    struct bank banks[BANKS_MAX];
    pthread_mutex_t lock; /* mapping and dropping; never taken when the page is mapped already */
    struct {
        struct bank *bank;
        size_t chunk;
    } stale[STALE_MAX];
    size_t n_stale; /* STALE_MAX + 1: too many, drop all */
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
    if (bank->chunks != NULL)
        munmap(bank->chunks, bank->n_chunks);
}

static int bank_init(struct bank *bank, const struct ram_bank *ram)
{
    uint64_t size = ram->size;

    bank->base = ram->base;
    /* A kernel with 39-bit addresses cannot hold the whole of Xen's second bank (1016 GiB): serve
     * as much as fits. What lies beyond is reported as a hole. */
    while ((bank->host = reserve(size, PROT_NONE)) == NULL) {
        size = (size / 2) & ~(GUEST_CHUNK_SIZE - 1);
        if (size == 0)
            return -ENOMEM;
    }
    bank->size = size;
    bank->n_chunks = (size_t)((size + GUEST_CHUNK_SIZE - 1) / GUEST_CHUNK_SIZE);
    bank->valid_bytes = bank->n_chunks * (CHUNK_PAGES / 8);
    bank->valid = reserve(bank->valid_bytes, PROT_READ | PROT_WRITE);
    bank->chunks = reserve(bank->n_chunks, PROT_READ | PROT_WRITE);
    return bank->valid != NULL && bank->chunks != NULL ? 0 : -ENOMEM;
}

int guest_memory_create(struct hypervisor *hv, const struct ram_bank *banks, size_t n_banks,
                        struct guest_memory **out)
{
    struct guest_memory *gm;
    int ret;

    if (n_banks == 0 || n_banks > BANKS_MAX)
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

static size_t chunk_pages(const struct bank *bank, size_t chunk)
{
    size_t left = (size_t)(bank->size / GUEST_PAGE_SIZE) - chunk * CHUNK_PAGES;

    return MIN(left, CHUNK_PAGES);
}

static int map_chunk(struct guest_memory *gm, struct bank *bank, size_t chunk)
{
    size_t first = chunk * CHUNK_PAGES, pages = chunk_pages(bank, chunk), mapped = 0;
    int err[CHUNK_PAGES], ret;

    memset(err, 0xff, sizeof(err));
    ret = gm->hv->ops->map_ram(gm->hv, (bank->base >> GUEST_PAGE_SHIFT) + first, pages,
                               bank->host + first * GUEST_PAGE_SIZE, err);
    atomic_fetch_add_explicit(&gm->map_calls, 1, memory_order_relaxed);
    if (ret < 0)
        return -EFAULT;
    for (size_t i = 0; i < pages; i++)
        if (err[i] == 0) {
            mark_valid(bank, first + i);
            mapped++;
        }
    bank->chunks[chunk] = mapped == pages ? CHUNK_MAPPED : CHUNK_MAPPED_WITH_HOLES;
    atomic_fetch_add_explicit(&gm->mapped_chunks, 1, memory_order_relaxed);
    return 0;
}

static void drop_chunk(struct guest_memory *gm, struct bank *bank, size_t chunk)
{
    size_t first = chunk * CHUNK_PAGES, pages = chunk_pages(bank, chunk);

    if (bank->chunks[chunk] == CHUNK_UNMAPPED)
        return;
    for (size_t word = first / BITS; word < (first + pages + BITS - 1) / BITS; word++)
        atomic_store_explicit(&bank->valid[word], 0, memory_order_relaxed);
    gm->hv->ops->unmap_ram(gm->hv, bank->host + first * GUEST_PAGE_SIZE, pages);
    bank->chunks[chunk] = CHUNK_UNMAPPED;
    atomic_fetch_sub_explicit(&gm->mapped_chunks, 1, memory_order_relaxed);
}

static void record_stale(struct guest_memory *gm, struct bank *bank, size_t chunk)
{
    for (size_t i = 0; i < MIN(gm->n_stale, STALE_MAX); i++)
        if (gm->stale[i].bank == bank && gm->stale[i].chunk == chunk)
            return;
    if (gm->n_stale < STALE_MAX) {
        gm->stale[gm->n_stale].bank = bank;
        gm->stale[gm->n_stale].chunk = chunk;
    }
    gm->n_stale = MIN(gm->n_stale + 1, STALE_MAX + 1);
}

/*
 * A chunk cannot be mapped again in part (the kernel's mapping must go as a whole), and not as a whole
 * while others use its pages. So a page that is missing in a mapped chunk is looked at by itself: if
 * the guest really has it now, all pause and the chunk is mapped anew; if not, it is a hole and only
 * this request fails. A guest can force the pause only by giving and taking pages, which costs it
 * more than us.
 */
static int missing_in_mapped_chunk(struct guest_memory *gm, struct bank *bank, size_t first,
                                   size_t last)
{
    for (size_t page = first; page <= last; page++) {
        if (pages_valid(bank, page, page))
            continue;
        atomic_fetch_add_explicit(&gm->probes, 1, memory_order_relaxed);
        if (gm->hv->ops->probe_ram(gm->hv, (bank->base >> GUEST_PAGE_SHIFT) + page) < 0)
            return -EFAULT;
    }
    record_stale(gm, bank, first / CHUNK_PAGES);
    return -EAGAIN;
}

static int map_range(struct guest_memory *gm, struct bank *bank, size_t first, size_t last)
{
    int ret = 0, again = 0;

    pthread_mutex_lock(&gm->lock);
    for (size_t chunk = first / CHUNK_PAGES; chunk <= last / CHUNK_PAGES; chunk++) {
        size_t from = MAX(first, chunk * CHUNK_PAGES);
        size_t to = MIN(last, (chunk + 1) * CHUNK_PAGES - 1);

        if (pages_valid(bank, from, to))
            continue;
        if (bank->chunks[chunk] == CHUNK_UNMAPPED) {
            ret = map_chunk(gm, bank, chunk);
            if (ret == 0 && !pages_valid(bank, from, to))
                ret = -EFAULT;
        } else {
            ret = missing_in_mapped_chunk(gm, bank, from, to);
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

void guest_memory_drop(struct guest_memory *gm)
{
    pthread_mutex_lock(&gm->lock);
    for (size_t i = 0; i < gm->n_banks; i++) {
        struct bank *bank = &gm->banks[i];

        for (size_t chunk = 0; chunk < bank->n_chunks &&
                               atomic_load_explicit(&gm->mapped_chunks, memory_order_relaxed) > 0;
             chunk++)
            drop_chunk(gm, bank, chunk);
    }
    gm->n_stale = 0;
    atomic_fetch_add_explicit(&gm->drops, 1, memory_order_relaxed);
    pthread_mutex_unlock(&gm->lock);
}

void guest_memory_drop_stale(struct guest_memory *gm)
{
    bool all;

    pthread_mutex_lock(&gm->lock);
    all = gm->n_stale > STALE_MAX;
    if (!all) {
        for (size_t i = 0; i < gm->n_stale; i++)
            drop_chunk(gm, gm->stale[i].bank, gm->stale[i].chunk);
        gm->n_stale = 0;
        atomic_fetch_add_explicit(&gm->drops, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&gm->lock);
    if (all)
        guest_memory_drop(gm);
}

struct guest_memory_stats guest_memory_stats(const struct guest_memory *gm)
{
    struct guest_memory *m = (struct guest_memory *)gm;

    return (struct guest_memory_stats){
        .map_calls = atomic_load_explicit(&m->map_calls, memory_order_relaxed),
        .mapped_chunks = atomic_load_explicit(&m->mapped_chunks, memory_order_relaxed),
        .drops = atomic_load_explicit(&m->drops, memory_order_relaxed),
        .probes = atomic_load_explicit(&m->probes, memory_order_relaxed),
    };
}
