/* SPDX-License-Identifier: Apache-2.0 */
#include "grant_memory.h"

#include <stdlib.h>

#define GRANT_ADDRESS (UINT64_C(1) << 63)

struct grant_memory {
    struct hypervisor *hv;
    _Atomic uint64_t maps, unmaps, copies, mapped_pages;
};

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

int grant_memory_create(struct hypervisor *hv, struct grant_memory **out)
{
    struct grant_memory *gm = calloc(1, sizeof(*gm));

    if (gm == NULL)
        return -ENOMEM;
    gm->hv = hv;
    *out = gm;
    return 0;
}

void grant_memory_destroy(struct grant_memory *gm)
{
    free(gm);
}

int grant_span_of(gpa_t addr, uint32_t len, struct grant_span *span)
{
    uint64_t first = (addr.addr & ~GRANT_ADDRESS) >> GUEST_PAGE_SHIFT;
    uint64_t offset = addr.addr & (GUEST_PAGE_SIZE - 1), pages;

    pages = (offset + len + GUEST_PAGE_SIZE - 1) >> GUEST_PAGE_SHIFT;
    if ((addr.addr & GRANT_ADDRESS) == 0 || len == 0 || first + pages - 1 > UINT32_MAX)
        return -EFAULT;
    *span = (struct grant_span){
        .ref = (uint32_t)first, .pages = (uint32_t)pages, .offset = (uint16_t)offset};
    return 0;
}

int grant_memory_map(struct grant_memory *gm, const struct grant_span *spans, size_t n,
                     bool writable, struct grant_map *map)
{
    uint32_t refs[GRANT_MAP_MAX];
    size_t pages = 0;
    int ret;

    map->at = NULL;
    for (size_t i = 0; i < n; i++) {
        if (spans[i].pages > GRANT_MAP_MAX - pages)
            return -E2BIG;
        for (uint32_t k = 0; k < spans[i].pages; k++)
            refs[pages++] = spans[i].ref + k;
    }
    add(&gm->maps, 1);
    ret = gm->hv->ops->map_grants(gm->hv, refs, pages, writable, map);
    if (ret == 0)
        add(&gm->mapped_pages, pages);
    return ret;
}

void grant_memory_unmap(struct grant_memory *gm, struct grant_map *map)
{
    if (map->at == NULL)
        return;
    add(&gm->unmaps, 1);
    atomic_fetch_sub_explicit(&gm->mapped_pages, map->pages, memory_order_relaxed);
    gm->hv->ops->unmap_grants(gm->hv, map);
}

void grant_memory_copy(struct grant_memory *gm, struct grant_copy *copies, size_t n)
{
    int ret;

    if (n == 0)
        return;
    add(&gm->copies, 1);
    ret = gm->hv->ops->copy_grants(gm->hv, copies, n);
    for (size_t i = 0; ret < 0 && i < n; i++)
        copies[i].result = (int16_t)ret;
}

struct grant_memory_stats grant_memory_stats(const struct grant_memory *gm)
{
    struct grant_memory *m = (struct grant_memory *)gm;

    return (struct grant_memory_stats){
        .maps = atomic_load_explicit(&m->maps, memory_order_relaxed),
        .unmaps = atomic_load_explicit(&m->unmaps, memory_order_relaxed),
        .copies = atomic_load_explicit(&m->copies, memory_order_relaxed),
        .mapped_pages = atomic_load_explicit(&m->mapped_pages, memory_order_relaxed),
    };
}
