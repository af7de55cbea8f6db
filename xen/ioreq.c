/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The IOREQ server of one domain: Xen puts each trapped access of a vCPU into that vCPU's slot of a
 * shared page, marks it READY and sends an event; the vCPU sleeps until we mark it RESP_READY and
 * send one back.
 *
 * Four rules keep Xen alive:
 *  - The page is mapped before the server is enabled. Xen makes the page when it is first mapped
 *    and dereferences it at every access to an enabled server. (Ranges may come at any time: Xen
 *    looks them up under a lock of their own at each access.)
 *  - The server, once enabled, is never destroyed here. It belongs to this domain, not to this process: it
 *    outlives us, a vCPU that waits for an answer waits on, and our successor adopts it. Destroying
 *    it under a waiting vCPU hangs that vCPU for good. The end of the guest ends it.
 *  - A state only ever goes up, READY → INPROCESS → RESP_READY; Xen crashes a guest whose slot goes
 *    back.
 *  - Every request is answered, even one that nobody understands.
 */
#include "hypervisor_internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <xen/hvm/hvm_op.h>
#include <xen/hvm/ioreq.h>
#include <xen/memory.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/privcmd.h>

#include "log.h"

#define IOREQ_SERVERS_MAX 8 /* per domain, in Xen */

/* How long a dead predecessor may take to let go of its ports: it unmaps guest memory first. */
#define BIND_TIMEOUT_MS 15000

/* The byte that struct ioreq's bit fields share, on a little-endian machine. */
#define IOREQ_STATE_MASK 0x0fu
#define IOREQ_FLAG_DATA_IS_PTR 0x10u
#define IOREQ_FLAG_READ 0x20u

static_assert(sizeof(struct ioreq_slot) == sizeof(struct ioreq), "slot layout");
#define CHECK_FIELD(field)                                                                         \
    static_assert(offsetof(struct ioreq_slot, field) == offsetof(struct ioreq, field), "layout")
CHECK_FIELD(addr);
CHECK_FIELD(data);
CHECK_FIELD(count);
CHECK_FIELD(size);
CHECK_FIELD(vp_eport);
CHECK_FIELD(type);
static_assert(offsetof(struct ioreq_slot, flags) == offsetof(struct ioreq, type) - 1,
              "slot layout");
static_assert(IOREQ_SLOTS_MAX * sizeof(struct ioreq_slot) <= GUEST_PAGE_SIZE, "one page");
static_assert(XENMEM_resource_ioreq_server_frame_ioreq(0) == 1, "frame 0 is the buffered page");

/*
 * What tells our server from that of another device model in this domain: two claimed I/O ports
 * that no Arm guest can access. Two, because asking means to unclaim and claim again: whenever we
 * die in between, the other one is still there.
 */
static const uint64_t marks[2] = {0x76696f64, 0x76696f66}; /* "viod" */

static int range_op(struct xen_hypervisor *xen, ioservid_t id, bool claim, uint32_t type,
                    uint64_t first, uint64_t last)
{
    struct xen_dm_op op = {.op = claim ? XEN_DMOP_map_io_range_to_ioreq_server
                                       : XEN_DMOP_unmap_io_range_from_ioreq_server};
    struct xen_dm_op_ioreq_server_range *range =
        claim ? &op.u.map_io_range_to_ioreq_server : &op.u.unmap_io_range_from_ioreq_server;

    range->id = id;
    range->type = type;
    range->start = first;
    range->end = last;
    return xen_dm_op(xen, &op);
}

static int set_mark(struct xen_hypervisor *xen, ioservid_t id, uint64_t mark)
{
    int err = range_op(xen, id, true, XEN_DMOP_IO_RANGE_PORT, mark, mark);

    return err == -EEXIST ? 0 : err;
}

/* 1, 0 or -errno. */
static int is_ours(struct xen_hypervisor *xen, ioservid_t id)
{
    /* Without frames to be made for it, the question has no side effect. */
    struct xen_dm_op op = {.op = XEN_DMOP_get_ioreq_server_info,
                           .u.get_ioreq_server_info = {.id = id, .flags = XEN_DMOP_no_gfns}};
    bool found = false;
    int err = xen_dm_op(xen, &op);

    if (err == -ENOENT || err == -EPERM) /* free, or of another domain */
        return 0;
    if (err)
        return err;

    for (size_t i = 0; i < ARRAY_SIZE(marks) && !found; i++) {
        err = range_op(xen, id, false, XEN_DMOP_IO_RANGE_PORT, marks[i], marks[i]);
        if (!err)
            found = true;
        else if (err != -ENOENT)
            return err;
    }
    if (!found)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(marks); i++) {
        err = set_mark(xen, id, marks[i]);
        if (err)
            return err;
    }
    return 1;
}

static int create_one(struct xen_hypervisor *xen, ioservid_t *id)
{
    struct xen_dm_op op = {.op = XEN_DMOP_create_ioreq_server,
                           .u.create_ioreq_server.handle_bufioreq = HVM_IOREQSRV_BUFIOREQ_OFF};
    int err = xen_dm_op(xen, &op);

    if (!err)
        *id = op.u.create_ioreq_server.id;
    return err;
}

/*
 * Where ranges overlap, Xen asks the server with the highest number, and a new one gets the lowest
 * that is free. So those below ours are taken for a moment, and left to the others. They are never
 * enabled: nothing can wait for them.
 */
static int create_above(struct xen_hypervisor *xen, ioservid_t least)
{
    ioservid_t others[IOREQ_SERVERS_MAX], id = 0;
    size_t n = 0;
    int err = create_one(xen, &id);

    while (!err && id < least && n < ARRAY_SIZE(others)) {
        others[n++] = id;
        err = create_one(xen, &id);
    }
    if (err == -ENOSPC && n > 0) { /* so many others: the highest there is */
        id = others[--n];
        err = 0;
    }
    while (n > 0) {
        struct xen_dm_op op = {.op = XEN_DMOP_destroy_ioreq_server,
                               .u.destroy_ioreq_server.id = others[--n]};
        int ret = xen_dm_op(xen, &op);

        if (!err)
            err = ret;
    }
    xen->server = id;
    return err;
}

static int create(struct xen_hypervisor *xen)
{
    int err = create_above(xen, xen->precedence ? IOREQ_SERVERS_MAX / 2 : 0);

    if (err)
        return err;
    for (size_t i = 0; i < ARRAY_SIZE(marks) && !err; i++)
        err = set_mark(xen, xen->server, marks[i]);
    return err;
}

/* Xen makes the page at the first call and hands out the same one ever after. */
static int map_page(struct xen_hypervisor *xen)
{
    struct privcmd_mmap_resource resource = {
        .dom = xen->domid,
        .type = XENMEM_resource_ioreq_server,
        .id = xen->server,
        .idx = XENMEM_resource_ioreq_server_frame_ioreq(0),
        .num = 1,
    };
    void *page = mmap(NULL, GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, xen->privcmd, 0);

    if (page == MAP_FAILED)
        return -errno;
    resource.addr = (uintptr_t)page;
    if (ioctl(xen->privcmd, IOCTL_PRIVCMD_MMAP_RESOURCE, &resource) < 0) {
        int err = -errno;

        munmap(page, GUEST_PAGE_SIZE);
        return err;
    }
    xen->slots = page;
    return 0;
}

static int enable(struct xen_hypervisor *xen)
{
    struct xen_dm_op op = {.op = XEN_DMOP_set_ioreq_server_state,
                           .u.set_ioreq_server_state = {.id = xen->server, .enabled = 1}};

    return xen_dm_op(xen, &op);
}

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/*
 * Binding marks the port pending, so a request from before is not missed. EINVAL means that the
 * other end is bound: by a predecessor that the kernel has not yet finished off.
 */
static int bind_vcpu(struct xen_hypervisor *xen, uint32_t vcpu, uint64_t deadline)
{
    struct ioctl_evtchn_bind_interdomain bind = {.remote_domain = xen->domid,
                                                 .remote_port = xen->slots[vcpu].vp_eport};
    struct timespec pause = {.tv_nsec = 1000000};

    if (bind.remote_port == 0)
        return -EPROTO;
    for (;;) {
        int port = ioctl(xen->evtchn, IOCTL_EVTCHN_BIND_INTERDOMAIN, &bind);

        if (port > 0) {
            xen->ports[vcpu] = (evtchn_port_t)port;
            return 0;
        }
        if (errno != EINVAL || now_ms() >= deadline)
            return -errno;
        nanosleep(&pause, NULL);
    }
}

static void notify(struct xen_hypervisor *xen, uint32_t vcpu)
{
    struct ioctl_evtchn_notify event = {.port = xen->ports[vcpu]};

    hypervisor_count(&xen->hv, 1);
    if (ioctl(xen->evtchn, IOCTL_EVTCHN_NOTIFY, &event) < 0)
        log_host("waking vCPU %u: %s", vcpu, strerror(errno));
}

int xen_ioreq_open(struct xen_hypervisor *xen, char *error, size_t error_len)
{
    bool adopted = false;
    uint64_t deadline, began;
    int err;

    for (ioservid_t id = 0; id < IOREQ_SERVERS_MAX && !adopted; id++) {
        int ours = is_ours(xen, id);

        if (ours < 0)
            return xen_explain(xen, "looking for its IOREQ servers", ours, error, error_len);
        adopted = ours;
        xen->server = id;
    }
    if (!adopted) {
        err = create(xen);
        if (err)
            return xen_explain(xen, "creating an IOREQ server", err, error, error_len);
    }
    err = map_page(xen);
    if (err)
        return xen_explain(xen, "mapping the IOREQ page", err, error, error_len);
    err = enable(xen);
    if (err)
        return xen_explain(xen, "enabling the IOREQ server", err, error, error_len);

    began = now_ms();
    deadline = began + (adopted ? BIND_TIMEOUT_MS : 0);
    for (uint32_t i = 0; i < xen->n_vcpus; i++) {
        err = bind_vcpu(xen, i, deadline);
        if (err == -EINVAL && adopted) {
            snprintf(error, error_len, "domain %u: another process serves it", xen->domid);
            return -EBUSY;
        }
        if (err)
            return xen_explain(xen, "binding the vCPUs' event channels", err, error, error_len);
    }
    /*
     * Requests that a predecessor left READY or INPROCESS are found by next_request like any other:
     * nothing is outstanding here yet. Where it died between RESP_READY and its event, the vCPU
     * still needs the event; for all others one more does no harm.
     */
    if (adopted) {
        for (uint32_t i = 0; i < xen->n_vcpus; i++)
            notify(xen, i);
        log_info("took over IOREQ server %u; its ports were free after %llu ms", xen->server,
                 (unsigned long long)(now_ms() - began));
    }
    return 0;
}

void xen_ioreq_close(struct xen_hypervisor *xen)
{
    for (uint32_t i = 0; i < xen->n_vcpus; i++) {
        struct ioctl_evtchn_unbind unbind = {.port = xen->ports[i]};

        if (xen->ports[i])
            ioctl(xen->evtchn, IOCTL_EVTCHN_UNBIND, &unbind);
        xen->ports[i] = 0;
    }
    if (xen->slots)
        munmap(xen->slots, GUEST_PAGE_SIZE);
    xen->slots = NULL;
}

static int claim_op(struct hypervisor *hv, bool claim, uint64_t base, uint64_t len)
{
    struct xen_hypervisor *xen = to_xen(hv);

    if (len == 0 || base > UINT64_MAX - (len - 1))
        return -EINVAL;
    return range_op(xen, xen->server, claim, XEN_DMOP_IO_RANGE_MEMORY, base, base + len - 1);
}

int xen_ioreq_claim(struct hypervisor *hv, uint64_t base, uint64_t len)
{
    return claim_op(hv, true, base, len);
}

int xen_ioreq_release(struct hypervisor *hv, uint64_t base, uint64_t len)
{
    return claim_op(hv, false, base, len);
}

int xen_ioreq_event_fd(struct hypervisor *hv)
{
    return to_xen(hv)->evtchn;
}

/* One relaxed load per vCPU: this is what polling costs. */
static bool is_waiting(const struct xen_hypervisor *xen, uint32_t vcpu)
{
    uint8_t flags = atomic_load_explicit(&xen->slots[vcpu].flags, memory_order_relaxed);
    unsigned state = flags & IOREQ_STATE_MASK;

    if (xen->outstanding[vcpu])
        return false;
    return state == STATE_IOREQ_READY || state == STATE_IOREQ_INPROCESS;
}

static void set_state(struct ioreq_slot *slot, uint8_t flags, unsigned state, memory_order order)
{
    atomic_store_explicit(&slot->flags, (uint8_t)((flags & ~IOREQ_STATE_MASK) | state), order);
}

static uint64_t low_bytes(uint64_t value, uint32_t size)
{
    return size == 8 ? value : value & ((UINT64_C(1) << (size * 8)) - 1);
}

static void decode(const struct ioreq_slot *slot, uint8_t flags, struct mmio_request *request)
{
    request->addr = slot->addr;
    request->size = slot->size;
    request->data = 0;
    if (slot->type == IOREQ_TYPE_INVALIDATE) {
        request->kind = REQUEST_INVALIDATE;
        return;
    }
    request->kind = REQUEST_UNKNOWN;
    if (slot->type != IOREQ_TYPE_COPY || slot->count != 1 || (flags & IOREQ_FLAG_DATA_IS_PTR))
        return;
    if (slot->size != 1 && slot->size != 2 && slot->size != 4 && slot->size != 8)
        return;
    if (slot->addr > UINT64_MAX - slot->size)
        return;
    if (flags & IOREQ_FLAG_READ) {
        request->kind = REQUEST_READ;
    } else {
        request->kind = REQUEST_WRITE;
        request->data = low_bytes(slot->data, slot->size);
    }
}

int xen_ioreq_next(struct hypervisor *hv, struct mmio_request *request)
{
    struct xen_hypervisor *xen = to_xen(hv);
    uint32_t vcpu = xen->next_vcpu;

    for (uint32_t i = 0; i < xen->n_vcpus; i++) {
        if (is_waiting(xen, vcpu)) {
            struct ioreq_slot *slot = &xen->slots[vcpu], copy;
            uint8_t flags;

            /* Pairs with the barrier that Xen has between filling the slot and READY. */
            atomic_thread_fence(memory_order_acquire);
            flags = atomic_load_explicit(&slot->flags, memory_order_relaxed);
            memcpy(&copy, slot, offsetof(struct ioreq_slot, flags));
            copy.type = slot->type;

            set_state(slot, flags, STATE_IOREQ_INPROCESS, memory_order_relaxed);
            xen->outstanding[vcpu] = true;
            xen->next_vcpu = vcpu + 1 == xen->n_vcpus ? 0 : vcpu + 1;
            request->vcpu = vcpu;
            decode(&copy, flags, request);
            return 1;
        }
        vcpu = vcpu + 1 == xen->n_vcpus ? 0 : vcpu + 1;
    }
    return 0;
}

void xen_ioreq_finish(struct hypervisor *hv, const struct mmio_request *request)
{
    struct xen_hypervisor *xen = to_xen(hv);
    uint32_t vcpu = request->vcpu;
    struct ioreq_slot *slot = &xen->slots[vcpu];

    assert(vcpu < xen->n_vcpus && xen->outstanding[vcpu]);

    xen->outstanding[vcpu] = false;
    slot->data = request->data;
    /* Xen reads the state, then (smp_rmb) the data. From here on the slot is Xen's. */
    set_state(slot, atomic_load_explicit(&slot->flags, memory_order_relaxed), STATE_IORESP_READY,
              memory_order_release);
    notify(xen, vcpu);
}

/*
 * Why no wake-up is lost. A port fires once: the kernel masks it when it puts it into the
 * descriptor's queue, and it stays masked until it is written back. An event on a masked port sets
 * its pending bit in Xen, and unmasking delivers it. So a request is always in one of these places:
 *  - its port is unmasked: the event makes the descriptor readable;
 *  - its port is in the queue: the descriptor is readable, or we read it just now;
 *  - its port was read by us and is masked (polling leaves it so: no interrupts, no system calls):
 *    it is pending in Xen, and the write below delivers it.
 * After the write every port is in one of the first two. The look at the slots at the end is only
 * there to save a sleep that would end at once. An event for a request that polling has answered
 * already ends a sleep early, which costs one turn.
 *
 * One read takes all ports: a masked port cannot be queued twice, so at most n_vcpus are queued.
 */
bool xen_ioreq_arm(struct hypervisor *hv)
{
    struct xen_hypervisor *xen = to_xen(hv);
    evtchn_port_t fired[IOREQ_SLOTS_MAX];
    ssize_t len = read(xen->evtchn, fired, sizeof(fired));

    hypervisor_count(hv, len > 0 ? 2 : 1);
    if (len < 0 && errno != EAGAIN && errno != EINTR) {
        /* The queue is lost, and which ports are masked. Unmasking one that is not does nothing. */
        log_host("reading event channels: %s", strerror(errno));
        ioctl(xen->evtchn, IOCTL_EVTCHN_RESET);
        memcpy(fired, xen->ports, xen->n_vcpus * sizeof(fired[0]));
        len = (ssize_t)(xen->n_vcpus * sizeof(fired[0]));
    }
    if (len > 0 && write(xen->evtchn, fired, (size_t)len) != len)
        log_host("unmasking event channels: %s", strerror(errno));

    for (uint32_t i = 0; i < xen->n_vcpus; i++) {
        if (is_waiting(xen, i))
            return true;
    }
    return false;
}

/* Ports stay unmasked until they fire once: each vCPU costs at most one interrupt per sleep. */
void xen_ioreq_disarm(struct hypervisor *hv)
{
    (void)hv;
}
