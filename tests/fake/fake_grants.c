/* SPDX-License-Identifier: Apache-2.0 */
/* The fake guest's grant table, and what the device maps and copies by it. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_internal.h"

#define FIRST_REF 8u /* as in a guest: the first ones are reserved */

static struct grant *grant_of(struct fake_hypervisor *fake, uint32_t ref)
{
    return ref < FAKE_GRANTS_MAX ? &fake->grants[ref] : NULL;
}

/* A run of references that are not in use, later than those given before: stale ones show. */
static uint32_t take_refs(struct fake_hypervisor *fake, size_t pages)
{
    uint32_t at = fake->next_ref, run = 0;

    for (uint32_t looked = 0; looked < 2 * FAKE_GRANTS_MAX; looked++, at++) {
        if (at < FIRST_REF || at >= FAKE_GRANTS_MAX) {
            at = FIRST_REF;
            run = 0;
        }
        run = fake->grants[at].granted || fake->grants[at].mapped > 0 ? 0 : run + 1;
        if (run == pages) {
            fake->next_ref = at + 1;
            return at + 1 - run;
        }
    }
    fake_die("the guest has no %zu grant references left", pages);
}

uint32_t fake_grant(struct fake_hypervisor *fake, uint64_t gpa, size_t pages, bool read_only)
{
    uint32_t ref;

    pthread_mutex_lock(&fake->lock);
    ref = take_refs(fake, pages);
    for (size_t i = 0; i < pages; i++)
        fake->grants[ref + i] = (struct grant){.gfn = (gpa >> GUEST_PAGE_SHIFT) + i,
                                               .granted = true,
                                               .read_only = read_only};
    pthread_mutex_unlock(&fake->lock);
    return ref;
}

uint64_t fake_grant_address(uint32_t ref, uint64_t gpa)
{
    return UINT64_C(1) << 63 | (uint64_t)ref << GUEST_PAGE_SHIFT | (gpa & (GUEST_PAGE_SIZE - 1));
}

void fake_grant_end(struct fake_hypervisor *fake, uint32_t ref, size_t pages)
{
    pthread_mutex_lock(&fake->lock);
    for (size_t i = 0; i < pages; i++) {
        fake->grants[ref + i].granted = false;
        /* Linux gives the device up: "Grant still in use by backend domain". */
        if (fake->grants[ref + i].mapped > 0)
            fake_violation(fake, "a page was still mapped when the guest ended its grant");
    }
    pthread_mutex_unlock(&fake->lock);
}

void fake_grant_revoke(struct fake_hypervisor *fake, uint32_t ref)
{
    pthread_mutex_lock(&fake->lock);
    fake->grants[ref].granted = false;
    pthread_mutex_unlock(&fake->lock);
}

void fake_grant_to_other(struct fake_hypervisor *fake, uint32_t ref)
{
    pthread_mutex_lock(&fake->lock);
    fake->grants[ref].other = true;
    pthread_mutex_unlock(&fake->lock);
}

static bool allows(struct fake_hypervisor *fake, uint32_t ref, bool writable, uint32_t *page)
{
    const struct grant *g = grant_of(fake, ref);

    if (g == NULL || !g->granted || g->other || (writable && g->read_only))
        return false;
    *page = fake_frame(fake, g->gfn);
    return *page != NO_PAGE;
}

int fake_map_grants(struct hypervisor *hv, const uint32_t *refs, size_t n, bool writable,
                    struct grant_map *map)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct grant_mapping *m = calloc(1, sizeof(*m) + n * sizeof(m->refs[0]));
    int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ, result;
    uint8_t *at;

    if (m == NULL)
        fake_die("no memory");
    pthread_mutex_lock(&fake->lock);
    fake->counts.grant_maps++;
    result = fake_injected(fake, FAKE_GRANT_MAP);
    if (n == 0 || n > GRANT_MAP_MAX)
        fake_violation(fake, "a mapping of no pages, or of too many");
    for (size_t i = 0; i < n && result == 0; i++) {
        uint32_t page;

        m->refs[i] = refs[i];
        if (!allows(fake, refs[i], writable, &page))
            result = -EINVAL;
    }
    if (result != 0) {
        pthread_mutex_unlock(&fake->lock);
        free(m);
        return result;
    }
    at = mmap(NULL, n * GUEST_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fake_die("mmap: %s", strerror(errno));
    for (size_t i = 0; i < n; i++) {
        uint32_t page = NO_PAGE;

        (void)allows(fake, refs[i], writable, &page);
        if (mmap(at + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED,
                 fake->memfd, (off_t)page << GUEST_PAGE_SHIFT) == MAP_FAILED)
            fake_die("mmap: %s", strerror(errno));
        fake->grants[refs[i]].mapped++;
    }
    m->at = at;
    m->pages = n;
    m->next = fake->grant_mappings;
    fake->grant_mappings = m;
    fake->counts.granted_pages += n;
    *map = (struct grant_map){.at = at, .pages = n, .handle = (uintptr_t)m};
    pthread_mutex_unlock(&fake->lock);
    return 0;
}

void fake_unmap_grants(struct hypervisor *hv, struct grant_map *map)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct grant_mapping **link, *m;

    pthread_mutex_lock(&fake->lock);
    fake->counts.grant_unmaps++;
    for (link = &fake->grant_mappings; (m = *link) != NULL; link = &m->next)
        if (m->at == map->at && m->pages == map->pages && map->handle == (uintptr_t)m)
            break;
    if (m == NULL) {
        fake_violation(fake, "unmapped grants that were not mapped");
    } else {
        munmap(m->at, m->pages * GUEST_PAGE_SIZE);
        for (size_t i = 0; i < m->pages; i++)
            fake->grants[m->refs[i]].mapped--;
        fake->counts.granted_pages -= m->pages;
        *link = m->next;
        free(m);
    }
    map->at = NULL;
    pthread_mutex_unlock(&fake->lock);
}

static void copy_one(struct fake_hypervisor *fake, struct grant_copy *copy)
{
    uint32_t page;
    off_t at;
    ssize_t n;

    if (copy->len == 0 || copy->offset + copy->len > (int)GUEST_PAGE_SIZE) {
        fake_violation(fake, "a copy of nothing, or beyond a page");
        return;
    }
    copy->result = -EFAULT;
    if (!allows(fake, copy->ref, copy->to_guest, &page))
        return;
    at = ((off_t)page << GUEST_PAGE_SHIFT) + copy->offset;
    n = copy->to_guest ? pwrite(fake->memfd, copy->host, copy->len, at)
                       : pread(fake->memfd, copy->host, copy->len, at);
    if (n != copy->len)
        fake_die("copy: %s", strerror(errno));
    copy->result = 0;
}

int fake_copy_grants(struct hypervisor *hv, struct grant_copy *copies, size_t n)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    int result;

    pthread_mutex_lock(&fake->lock);
    fake->counts.grant_copies++;
    result = fake_injected(fake, FAKE_GRANT_COPY);
    for (size_t i = 0; i < n && result == 0; i++) {
        if (copies[i].to_guest != copies[0].to_guest)
            fake_violation(fake, "copies in both directions in one call");
        copy_one(fake, &copies[i]);
    }
    pthread_mutex_unlock(&fake->lock);
    return result;
}
