/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapping the guest's frames, with privcmd's own ioctl.
 *
 * Linux keeps one array of pages for each mapping of privcmd and frees all of it when the mapping
 * is closed. So a mapping is made by one mmap and one ioctl over all of it, is never retried in
 * part, and is replaced only as a whole.
 */
#include "hypervisor_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <xen/sys/privcmd.h>

#include "log.h"

static int reserve(void *at, size_t len)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *p = mmap(at, len, PROT_NONE, flags, -1, 0);

    return p == MAP_FAILED ? -errno : 0;
}

/*
 * Back to a bare reservation. If even that fails, the mapping itself is certainly gone (munmap of a
 * whole mapping needs no memory), but the addresses would be free for anybody: the next map_ram
 * would overwrite whatever the C library put there. There is no safe way on.
 */
static void unreserve_pages(void *at, size_t len)
{
    if (!reserve(at, len))
        return;
    munmap(at, len);
    if (!reserve(at, len))
        return;
    log_error("cannot keep the addresses of unmapped guest memory: %s", strerror(errno));
    abort();
}

/*
 * Asks for all frames of one new mapping. 0 if at least one page is there; err[] says which.
 */
static int fill(struct xen_hypervisor *xen, uint64_t gfn, size_t pages, void *at, int *err)
{
    struct privcmd_mmapbatch_v2 batch = {.num = (unsigned int)pages,
                                         .dom = xen->domid,
                                         .addr = (uintptr_t)at,
                                         .err = err};
    xen_pfn_t *frames = calloc(pages, sizeof(*frames));
    size_t mapped = 0;
    int first = 0, ret = 0;

    if (!frames)
        return -ENOMEM;
    for (size_t i = 0; i < pages; i++)
        frames[i] = (xen_pfn_t)(gfn + i);
    batch.arr = frames;

    /* ENOENT speaks of some pages; err[] has it. Any other failure is of the call. */
    hypervisor_count(&xen->hv, 1);
    if (ioctl(xen->privcmd, IOCTL_PRIVCMD_MMAPBATCH_V2, &batch) < 0 && errno != ENOENT) {
        ret = -errno;
        goto out;
    }
    for (size_t i = 0; i < pages; i++) {
        if (err[i] == 0) {
            mapped++;
        } else if (err[i] > 0) {
            /* Out of page tables, Linux hands back frame numbers for errors: believe none of it. */
            ret = -ENOMEM;
            goto out;
        } else if (!first) {
            first = err[i];
        }
    }
    if (!mapped)
        ret = first;
out:
    free(frames);
    return ret;
}

static bool frames_in_range(uint64_t gfn, size_t pages)
{
    return pages > 0 && pages <= INT_MAX / 8 && gfn <= ((xen_pfn_t)-1) - pages;
}

int xen_map_ram(struct hypervisor *hv, uint64_t gfn, size_t pages, void *at, int *err)
{
    struct xen_hypervisor *xen = to_xen(hv);
    size_t len = pages * GUEST_PAGE_SIZE;
    void *p;
    int ret;

    if (!frames_in_range(gfn, pages) || (uintptr_t)at % GUEST_PAGE_SIZE)
        return -EINVAL;
    p = mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, xen->privcmd, 0);
    if (p == MAP_FAILED) {
        ret = -errno;
        unreserve_pages(at, len); /* MAP_FIXED may have removed the reservation before it failed */
        return ret;
    }
    ret = fill(xen, gfn, pages, at, err);
    if (ret)
        unreserve_pages(at, len);
    return ret;
}

void xen_unmap_ram(struct hypervisor *hv, void *at, size_t pages)
{
    (void)hv;
    unreserve_pages(at, pages * GUEST_PAGE_SIZE);
}

int xen_probe_ram(struct hypervisor *hv, uint64_t gfn)
{
    struct xen_hypervisor *xen = to_xen(hv);
    int err = 0, ret;
    void *p;

    if (!frames_in_range(gfn, 1))
        return -EINVAL;
    p = mmap(NULL, GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, xen->privcmd, 0);
    if (p == MAP_FAILED)
        return -errno;
    ret = fill(xen, gfn, 1, p, &err);
    munmap(p, GUEST_PAGE_SIZE);
    return ret;
}
