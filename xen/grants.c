/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that the guest granted, with gntdev's own ioctls: libxengnttab allocates on each call.
 *
 * A mapping is two steps: gntdev takes a list of references, and mmap maps all of them by one
 * hypercall, or fails. So is giving it back: munmap, then gntdev forgets the list and unmaps, by one
 * hypercall, unless the kernel still has one of the pages pinned; then it does so later.
 */
#include "hypervisor_internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xen/grant_table.h>
#include <xen/sys/gntdev.h>

#include "log.h"

#define GNTDEV_DEVICE "/dev/xen/gntdev"
/* Pieces in one ioctl. Linux makes hypercalls of 16 of them. */
#define COPIES_MAX 256u

int xen_gntdev_open(char *error, size_t error_len)
{
    int fd = open(GNTDEV_DEVICE, O_RDWR | O_CLOEXEC);
    int err = errno;

    if (fd >= 0)
        return fd;
    if (err == ENOENT || err == ENODEV || err == ENXIO)
        snprintf(error, error_len,
                 "grant_usage=1 needs %s: build this domain's kernel with CONFIG_XEN_GNTDEV, or "
                 "load the module xen-gntdev",
                 GNTDEV_DEVICE);
    else
        snprintf(error, error_len, "%s: %s", GNTDEV_DEVICE, strerror(err));
    return -err;
}

void xen_hypervisor_use_gntdev(struct hypervisor *hv, int fd)
{
    struct xen_hypervisor *xen = to_xen(hv);

    if (xen->gntdev >= 0)
        close(fd);
    else
        xen->gntdev = fd;
}

bool xen_hypervisor_has_gntdev(const struct hypervisor *hv)
{
    return container_of(hv, const struct xen_hypervisor, hv)->gntdev >= 0;
}

static void forget(struct xen_hypervisor *xen, uint64_t index, size_t pages)
{
    struct ioctl_gntdev_unmap_grant_ref op = {.index = index, .count = (uint32_t)pages};

    hypervisor_count(&xen->hv, 1);
    if (ioctl(xen->gntdev, IOCTL_GNTDEV_UNMAP_GRANT_REF, &op) < 0)
        log_host("cannot give granted pages back: %s", strerror(errno));
}

int xen_map_grants(struct hypervisor *hv, const uint32_t *refs, size_t n, bool writable,
                   struct grant_map *map)
{
    struct xen_hypervisor *xen = to_xen(hv);
    struct {
        struct ioctl_gntdev_map_grant_ref op;
        struct ioctl_gntdev_grant_ref more[GRANT_MAP_MAX - 1];
    } list;
    struct ioctl_gntdev_grant_ref *wire = list.op.refs;
    void *p;
    int err;

    static_assert(offsetof(__typeof__(list), more) ==
                      offsetof(struct ioctl_gntdev_map_grant_ref, refs) + sizeof(*wire),
                  "the references follow each other");
    if (xen->gntdev < 0)
        return -EOPNOTSUPP;
    if (n == 0 || n > GRANT_MAP_MAX)
        return -EINVAL;
    list.op.count = (uint32_t)n;
    list.op.pad = 0;
    list.op.index = 0;
    for (size_t i = 0; i < n; i++)
        wire[i] = (struct ioctl_gntdev_grant_ref){.domid = xen->domid, .ref = refs[i]};
    hypervisor_count(&xen->hv, 2);
    if (ioctl(xen->gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, &list.op) < 0)
        return -errno;
    p = mmap(NULL, n * GUEST_PAGE_SIZE, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
             xen->gntdev, (off_t)list.op.index);
    if (p == MAP_FAILED) {
        err = -errno;
        forget(xen, list.op.index, n);
        return err;
    }
    *map = (struct grant_map){.at = p, .pages = n, .handle = list.op.index};
    return 0;
}

void xen_unmap_grants(struct hypervisor *hv, struct grant_map *map)
{
    struct xen_hypervisor *xen = to_xen(hv);

    hypervisor_count(&xen->hv, 1);
    munmap(map->at, map->pages * GUEST_PAGE_SIZE);
    forget(xen, map->handle, map->pages);
    map->at = NULL;
}

static int copy_some(struct xen_hypervisor *xen, struct grant_copy *copies, size_t n)
{
    struct ioctl_gntdev_grant_copy_segment segments[COPIES_MAX];
    struct ioctl_gntdev_grant_copy call = {.count = (unsigned int)n, .segments = segments};

    for (size_t i = 0; i < n; i++) {
        struct ioctl_gntdev_grant_copy_segment *s = &segments[i];
        const struct grant_copy *c = &copies[i];

        memset(s, 0, sizeof(*s));
        s->len = c->len;
        s->status = GNTST_general_error;
        if (c->to_guest) {
            s->flags = GNTCOPY_dest_gref;
            s->source.virt = c->host;
            s->dest.foreign.ref = c->ref;
            s->dest.foreign.offset = c->offset;
            s->dest.foreign.domid = xen->domid;
        } else {
            s->flags = GNTCOPY_source_gref;
            s->source.foreign.ref = c->ref;
            s->source.foreign.offset = c->offset;
            s->source.foreign.domid = xen->domid;
            s->dest.virt = c->host;
        }
    }
    hypervisor_count(&xen->hv, 1);
    if (ioctl(xen->gntdev, IOCTL_GNTDEV_GRANT_COPY, &call) < 0)
        return -errno;
    for (size_t i = 0; i < n; i++)
        copies[i].result = segments[i].status == GNTST_okay ? 0 : -EFAULT;
    return 0;
}

int xen_copy_grants(struct hypervisor *hv, struct grant_copy *copies, size_t n)
{
    struct xen_hypervisor *xen = to_xen(hv);

    if (xen->gntdev < 0)
        return -EOPNOTSUPP;
    for (size_t done = 0; done < n; done += COPIES_MAX) {
        int ret = copy_some(xen, &copies[done], MIN(n - done, (size_t)COPIES_MAX));

        if (ret < 0)
            return ret;
    }
    return 0;
}
