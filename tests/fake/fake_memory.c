/* SPDX-License-Identifier: Apache-2.0 */
/* Guest RAM of the fake hypervisor: who has which page of the memfd mapped where. */
#include "fake_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct bank *bank_of(struct fake_hypervisor *fake, uint64_t gpa)
{
    for (size_t i = 0; i < fake->n_banks; i++) {
        struct bank *bank = &fake->banks[i];

        if (gpa >= bank->range.base && gpa - bank->range.base < bank->range.size)
            return bank;
    }
    return NULL;
}

/* NULL if no bank has the frame. */
static uint32_t *page_of(struct fake_hypervisor *fake, uint64_t gfn)
{
    struct bank *bank;

    if (gfn > UINT64_MAX >> GUEST_PAGE_SHIFT)
        return NULL;
    bank = bank_of(fake, gfn << GUEST_PAGE_SHIFT);
    if (bank == NULL)
        return NULL;
    return &bank->page[gfn - (bank->range.base >> GUEST_PAGE_SHIFT)];
}

static void map_pages(void *at, size_t pages, int prot, int fd, uint32_t page)
{
    int flags = MAP_FIXED | MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    off_t offset = fd < 0 ? 0 : (off_t)page << GUEST_PAGE_SHIFT;

    if (mmap(at, pages << GUEST_PAGE_SHIFT, prot, flags, fd, offset) == MAP_FAILED)
        fake_die("mmap of %zu pages: %s", pages, strerror(errno));
}

static void grow_memfd(struct fake_hypervisor *fake, size_t pages)
{
    fake->memfd_pages += (uint32_t)pages;
    if (ftruncate(fake->memfd, (off_t)fake->memfd_pages << GUEST_PAGE_SHIFT) != 0)
        fake_die("ftruncate: %s", strerror(errno));
}

void fake_bank_create(struct fake_hypervisor *fake, struct bank *bank, struct ram_bank range)
{
    size_t pages = range.size >> GUEST_PAGE_SHIFT;

    bank->range = range;
    bank->first = fake->memfd_pages;
    grow_memfd(fake, pages);
    bank->page = malloc(pages * sizeof(*bank->page));
    bank->view = mmap(NULL, range.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                      fake->memfd, (off_t)bank->first << GUEST_PAGE_SHIFT);
    if (bank->page == NULL || bank->view == MAP_FAILED)
        fake_die("no memory for a bank of %zu pages", pages);
    for (size_t i = 0; i < pages; i++)
        bank->page[i] = bank->first + (uint32_t)i;
}

void fake_bank_destroy(struct bank *bank)
{
    munmap(bank->view, bank->range.size);
    free(bank->page);
}

void *fake_ram(struct fake_hypervisor *fake, uint64_t gpa, size_t len)
{
    struct bank *bank = bank_of(fake, gpa);

    if (bank == NULL || len > bank->range.size - (gpa - bank->range.base))
        fake_die("%#llx + %zu is not RAM of one bank", (unsigned long long)gpa, len);
    return bank->view + (gpa - bank->range.base);
}

static size_t alias_bytes(size_t offset, size_t len)
{
    return (offset + len + GUEST_PAGE_SIZE - 1) & ~(GUEST_PAGE_SIZE - 1);
}

void *fake_ram_alias(struct fake_hypervisor *fake, uint64_t gpa, size_t len)
{
    size_t offset = gpa & (GUEST_PAGE_SIZE - 1);
    const uint32_t *page = page_of(fake, gpa >> GUEST_PAGE_SHIFT);
    uint8_t *alias;

    if (page == NULL || *page == NO_PAGE)
        fake_die("%#llx is not RAM", (unsigned long long)gpa);
    alias = mmap(NULL, alias_bytes(offset, len), PROT_READ | PROT_WRITE, MAP_SHARED, fake->memfd,
                 (off_t)*page << GUEST_PAGE_SHIFT);
    if (alias == MAP_FAILED)
        fake_die("mmap: %s", strerror(errno));
    return alias + offset;
}

void fake_ram_alias_free(void *alias, size_t len)
{
    size_t offset = (uintptr_t)alias & (GUEST_PAGE_SIZE - 1);

    munmap((uint8_t *)alias - offset, alias_bytes(offset, len));
}

static void poison_page(struct fake_hypervisor *fake, uint32_t page)
{
    uint8_t poison[GUEST_PAGE_SIZE];

    memset(poison, FAKE_POISON, sizeof(poison));
    if (pwrite(fake->memfd, poison, sizeof(poison), (off_t)page << GUEST_PAGE_SHIFT) !=
        (ssize_t)sizeof(poison))
        fake_die("pwrite: %s", strerror(errno));
}

static void remember_given(struct fake_hypervisor *fake, uint32_t page)
{
    if (fake->n_given == fake->given_size) {
        fake->given_size = fake->given_size * 2 + 64;
        fake->given = realloc(fake->given, fake->given_size * sizeof(*fake->given));
        if (fake->given == NULL)
            fake_die("no memory");
    }
    fake->given[fake->n_given++] = page;
    poison_page(fake, page);
}

void fake_settle_given(struct fake_hypervisor *fake)
{
    while (fake->n_settled < fake->n_given)
        poison_page(fake, fake->given[fake->n_settled++]);
}

void fake_check_poison(struct fake_hypervisor *fake)
{
    uint8_t page[GUEST_PAGE_SIZE];

    for (size_t i = 0; i < fake->n_given; i++) {
        if (pread(fake->memfd, page, sizeof(page), (off_t)fake->given[i] << GUEST_PAGE_SHIFT) !=
            (ssize_t)sizeof(page))
            fake_die("pread: %s", strerror(errno));
        for (size_t k = 0; k < sizeof(page); k++) {
            if (page[k] != FAKE_POISON) {
                fake_violation(fake, "the device wrote to a page that the guest had given back");
                return;
            }
        }
    }
}

void fake_balloon_out(struct fake_hypervisor *fake, uint64_t gpa, size_t pages)
{
    pthread_mutex_lock(&fake->lock);
    for (size_t i = 0; i < pages; i++) {
        uint32_t *page = page_of(fake, (gpa >> GUEST_PAGE_SHIFT) + i);

        if (page == NULL)
            fake_die("balloon: %#llx is not RAM", (unsigned long long)gpa);
        if (*page == NO_PAGE)
            continue;
        remember_given(fake, *page);
        *page = NO_PAGE;
        map_pages(fake_ram(fake, gpa + i * GUEST_PAGE_SIZE, 1), 1, PROT_NONE, -1, 0);
    }
    pthread_mutex_unlock(&fake->lock);
}

void fake_balloon_in(struct fake_hypervisor *fake, uint64_t gpa, size_t pages)
{
    pthread_mutex_lock(&fake->lock);
    for (size_t i = 0; i < pages; i++) {
        uint32_t *page = page_of(fake, (gpa >> GUEST_PAGE_SHIFT) + i);

        if (page == NULL)
            fake_die("balloon: %#llx is not RAM", (unsigned long long)gpa);
        if (*page != NO_PAGE)
            continue;
        *page = fake->memfd_pages;
        grow_memfd(fake, 1);
        map_pages(fake_ram(fake, gpa + i * GUEST_PAGE_SIZE, 1), 1, PROT_READ | PROT_WRITE,
                  fake->memfd, *page);
    }
    pthread_mutex_unlock(&fake->lock);
}

size_t fake_stale_pages(struct fake_hypervisor *fake)
{
    size_t stale = 0;

    pthread_mutex_lock(&fake->lock);
    for (struct mapping *m = fake->mappings; m != NULL; m = m->next) {
        for (size_t i = 0; i < m->pages; i++) {
            if (m->page[i] != NO_PAGE && m->page[i] != *page_of(fake, m->gfn + i))
                stale++;
        }
    }
    pthread_mutex_unlock(&fake->lock);
    return stale;
}

/* Maps runs of pages that lie side by side in the memfd with one call, as a real kernel would. */
static void map_runs(struct fake_hypervisor *fake, const struct mapping *m)
{
    for (size_t i = 0; i < m->pages;) {
        size_t run = 1;

        if (m->page[i] != NO_PAGE) {
            while (i + run < m->pages && m->page[i + run] == m->page[i] + run)
                run++;
            map_pages(m->at + i * GUEST_PAGE_SIZE, run, PROT_READ | PROT_WRITE, fake->memfd,
                      m->page[i]);
        }
        i += run;
    }
}

int fake_map_ram(struct hypervisor *hv, uint64_t gfn, size_t pages, void *at, int *err)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct mapping *m = malloc(sizeof(*m) + pages * sizeof(m->page[0]));
    int result;

    if (m == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&fake->lock);
    fake->counts.map_calls++;
    result = fake_injected(fake, FAKE_MAP);
    if (result != 0)
        goto failed;
    for (struct mapping *other = fake->mappings; other != NULL; other = other->next) {
        if ((uint8_t *)at < other->at + other->pages * GUEST_PAGE_SIZE &&
            (uint8_t *)at + pages * GUEST_PAGE_SIZE > other->at)
            fake_violation(fake, "mapped over a mapping that was not unmapped");
    }
    *m = (struct mapping){.next = fake->mappings, .at = at, .gfn = gfn, .pages = pages};
    for (size_t i = 0; i < pages; i++) {
        const uint32_t *page = page_of(fake, gfn + i);

        if (page == NULL)
            fake->counts.outside_ram++;
        m->page[i] = page == NULL ? NO_PAGE : *page;
        err[i] = page == NULL ? -EINVAL : *page == NO_PAGE ? -ENOENT : 0;
        m->good += err[i] == 0;
    }
    /* A page that could not be mapped is inaccessible: touching it ends the test. */
    map_pages(at, pages, PROT_NONE, -1, 0);
    if (m->good == 0) {
        result = -ENOENT;
        goto failed;
    }
    map_runs(fake, m);
    fake->mappings = m;
    fake->counts.mapped_pages += m->good;
    fake->counts.mapped_pages_max = MAX(fake->counts.mapped_pages_max, fake->counts.mapped_pages);
    pthread_mutex_unlock(&fake->lock);
    return 0;

failed:
    pthread_mutex_unlock(&fake->lock);
    free(m);
    return result;
}

void fake_unmap_ram(struct hypervisor *hv, void *at, size_t pages)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);

    pthread_mutex_lock(&fake->lock);
    fake->counts.unmap_calls++;
    for (struct mapping **link = &fake->mappings; *link != NULL; link = &(*link)->next) {
        struct mapping *m = *link;

        if (m->at != at)
            continue;
        if (m->pages != pages)
            fake_violation(fake, "unmapped another range than was mapped");
        map_pages(at, m->pages, PROT_NONE, -1, 0);
        fake->counts.mapped_pages -= m->good;
        *link = m->next;
        free(m);
        pthread_mutex_unlock(&fake->lock);
        return;
    }
    fake_violation(fake, "unmapped what was not mapped");
    pthread_mutex_unlock(&fake->lock);
}

int fake_probe_ram(struct hypervisor *hv, uint64_t gfn)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    int result;

    pthread_mutex_lock(&fake->lock);
    fake->counts.probes++;
    result = fake_injected(fake, FAKE_PROBE);
    if (result == 0) {
        const uint32_t *page = page_of(fake, gfn);

        result = page == NULL ? -EINVAL : *page == NO_PAGE ? -ENOENT : 0;
    }
    pthread_mutex_unlock(&fake->lock);
    return result;
}

uint32_t fake_frame(struct fake_hypervisor *fake, uint64_t gfn)
{
    const uint32_t *page = page_of(fake, gfn);

    return page == NULL ? NO_PAGE : *page;
}

bool fake_is_ram(struct fake_hypervisor *fake, uint64_t gpa, uint64_t len)
{
    const struct bank *bank = bank_of(fake, gpa);
    bool is = bank != NULL && len > 0 && len <= bank->range.size - (gpa - bank->range.base);

    pthread_mutex_lock(&fake->lock);
    for (uint64_t gfn = gpa >> GUEST_PAGE_SHIFT; is && gfn <= (gpa + len - 1) >> GUEST_PAGE_SHIFT;
         gfn++)
        is = fake_frame(fake, gfn) != NO_PAGE;
    pthread_mutex_unlock(&fake->lock);
    return is;
}
