/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xen/ioreq.c against a model of Xen and of the kernel's devices: the order of its operations, taking
 * over from a process that died at any of them, and what would crash the machine or the guest:
 *  - a server enabled whose page was never mapped (Xen panics at the guest's next access);
 *  - a server destroyed that was ever enabled (a waiting vCPU hangs, and an event for it panics Xen);
 *  - a slot's state that goes back (Xen crashes the guest);
 *  - a request that is not answered (the vCPU hangs);
 *  - a page that is not mapped, in foreign memory, taken for one that is (a system call on it crashes
 *    dom0's kernel).
 */
#include "unit.h"

#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../xen/hypervisor_internal.h"

#include <xen/hvm/hvm_op.h>
#include <xen/hvm/ioreq.h>
#include <xen/memory.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/privcmd.h>

#define PRIVCMD 1000
#define EVTCHN 1001
#define SERVERS 8u
#define VCPUS 3u
#define RANGES 8u
#define FRAMES 8u
#define OTHERS 2u /* the id of another device model's server */

struct server {
    bool exists, mapped, enabled, foreign, was_enabled;
    struct {
        uint32_t type;
        uint64_t first, last;
        bool used;
    } ranges[RANGES];
    struct ioreq_slot *slots;
};

static struct {
    struct server servers[SERVERS];
    bool bound[VCPUS];          /* by whatever process */
    unsigned notified[VCPUS];
    unsigned still_dying;       /* so many binds fail, yet */
    unsigned calls, die_after;  /* 0: immortal */
    bool ram;                   /* what is mapped of privcmd is foreign memory, not a server's page */
    int frame_error[FRAMES], map_error;
    jmp_buf death;
} world;

static void may_die(void)
{
    if (world.die_after != 0 && ++world.calls == world.die_after) {
        world.die_after = 0;
        longjmp(world.death, 1);
    }
}

static int fail_with(int error)
{
    errno = error;
    return -1;
}

static struct server *server_of(ioservid_t id)
{
    return id < SERVERS && world.servers[id].exists ? &world.servers[id] : NULL;
}

static int range_op(const struct xen_dm_op_ioreq_server_range *r, bool add)
{
    struct server *server = server_of(r->id);

    if (server == NULL)
        return fail_with(ENOENT);
    assert_false(server->foreign);
    for (unsigned i = 0; i < RANGES; i++)
        if (server->ranges[i].used && server->ranges[i].type == r->type &&
            server->ranges[i].first == r->start && server->ranges[i].last == r->end) {
            server->ranges[i].used = add;
            return add ? fail_with(EEXIST) : 0;
        }
    for (unsigned i = 0; i < RANGES && add; i++)
        if (!server->ranges[i].used) {
            server->ranges[i].type = r->type;
            server->ranges[i].first = r->start;
            server->ranges[i].last = r->end;
            server->ranges[i].used = true;
            return 0;
        }
    return fail_with(add ? ENOSPC : ENOENT);
}

static int create_server(struct xen_dm_op *op)
{
    for (ioservid_t id = 0; id < SERVERS; id++) {
        struct server *server = &world.servers[id];

        if (server->exists)
            continue;
        assert_int_equal(op->u.create_ioreq_server.handle_bufioreq, HVM_IOREQSRV_BUFIOREQ_OFF);
        server->exists = true;
        world.still_dying = 0; /* the ports are new: nobody else has them */
        server->slots = aligned_alloc(GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
        memset(server->slots, 0, GUEST_PAGE_SIZE);
        for (unsigned i = 0; i < VCPUS; i++)
            server->slots[i].vp_eport = 10 + i;
        op->u.create_ioreq_server.id = id;
        return 0;
    }
    return fail_with(ENOSPC);
}

static int dm_op(struct xen_dm_op *op)
{
    struct server *server;

    switch (op->op) {
    case XEN_DMOP_create_ioreq_server:
        return create_server(op);
    case XEN_DMOP_get_ioreq_server_info:
        server = server_of(op->u.get_ioreq_server_info.id);
        if (server == NULL)
            return fail_with(ENOENT);
        return server->foreign ? fail_with(EPERM) : 0;
    case XEN_DMOP_map_io_range_to_ioreq_server:
        return range_op(&op->u.map_io_range_to_ioreq_server, true);
    case XEN_DMOP_unmap_io_range_from_ioreq_server:
        return range_op(&op->u.unmap_io_range_from_ioreq_server, false);
    case XEN_DMOP_set_ioreq_server_state:
        server = server_of(op->u.set_ioreq_server_state.id);
        assert_non_null(server);
        if (op->u.set_ioreq_server_state.enabled && !server->mapped)
            fail_msg("enabled before its page was mapped: Xen panics");
        server->enabled = op->u.set_ioreq_server_state.enabled != 0;
        server->was_enabled |= server->enabled;
        return 0;
    case XEN_DMOP_destroy_ioreq_server:
        server = server_of(op->u.destroy_ioreq_server.id);
        assert_non_null(server);
        if (server->foreign || server->was_enabled)
            fail_msg("destroyed: a waiting vCPU hangs, an event panics Xen");
        free(server->slots);
        memset(server, 0, sizeof(*server));
        return 0;
    }
    return fail_with(EOPNOTSUPP);
}

static int bind_port(const struct ioctl_evtchn_bind_interdomain *bind)
{
    unsigned vcpu = bind->remote_port - 10;

    assert_true(vcpu < VCPUS);
    if (world.still_dying > 0) {
        world.still_dying--;
        return fail_with(EINVAL);
    }
    if (world.bound[vcpu])
        return fail_with(EINVAL);
    world.bound[vcpu] = true;
    return 100 + (int)vcpu;
}

static int map_batch(const struct privcmd_mmapbatch_v2 *batch)
{
    bool holes = false;

    if (world.map_error != 0)
        return fail_with(world.map_error);
    for (unsigned i = 0; i < batch->num; i++) {
        batch->err[i] = world.frame_error[batch->arr[i] % FRAMES];
        holes |= batch->err[i] != 0;
    }
    return holes ? fail_with(ENOENT) : 0;
}

int __wrap_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
    int ret = 0;

    may_die();
    if (request == IOCTL_PRIVCMD_DM_OP) {
        const struct privcmd_dm_op *call = arg;

        assert_int_equal(fd, PRIVCMD);
        ret = dm_op(call->ubufs[0].uptr);
    } else if (request == IOCTL_PRIVCMD_MMAP_RESOURCE) {
        const struct privcmd_mmap_resource *resource = arg;
        struct server *server = server_of((ioservid_t)resource->id);

        assert_non_null(server);
        assert_int_equal(resource->num, 1);
        assert_int_equal(resource->idx, 1);
        server->mapped = true;
    } else if (request == IOCTL_PRIVCMD_MMAPBATCH_V2) {
        ret = map_batch(arg);
    } else if (request == IOCTL_EVTCHN_BIND_INTERDOMAIN) {
        assert_int_equal(fd, EVTCHN);
        ret = bind_port(arg);
    } else if (request == IOCTL_EVTCHN_NOTIFY) {
        world.notified[((const struct ioctl_evtchn_notify *)arg)->port - 100]++;
    } else if (request != IOCTL_EVTCHN_UNBIND) {
        fail_msg("ioctl %#lx", request);
    }
    may_die();
    return ret;
}

/* The page of the server that is being opened: the last one that was made. */
static void *our_page(void)
{
    for (unsigned id = SERVERS; id-- > 0;)
        if (world.servers[id].exists && !world.servers[id].foreign)
            return world.servers[id].slots;
    return MAP_FAILED;
}

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    if (fd != PRIVCMD)
        return __real_mmap(at, len, prot, flags, fd, offset);
    if (world.ram)
        return __real_mmap(at, len, prot, (flags & MAP_FIXED) | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return our_page();
}

int __real_munmap(void *at, size_t len);
int __wrap_munmap(void *at, size_t len);
int __wrap_munmap(void *at, size_t len)
{
    return at == our_page() ? 0 : __real_munmap(at, len);
}

static void begin(void)
{
    for (unsigned i = 0; i < SERVERS; i++)
        free(world.servers[i].slots);
    memset(&world, 0, sizeof(world));
    for (unsigned i = 0; i < OTHERS; i++)
        world.servers[i].exists = world.servers[i].foreign = true;
}

static bool precedence; /* of the next one */

static int open_as(struct xen_hypervisor *xen)
{
    char error[256] = "";

    *xen = (struct xen_hypervisor){.domid = 7,
                                   .privcmd = PRIVCMD,
                                   .evtchn = EVTCHN,
                                   .n_vcpus = VCPUS,
                                   .precedence = precedence};
    return xen_ioreq_open(xen, error, sizeof(error));
}

/* The kernel lets go of what a dead process had; Xen does not. */
static void bury(unsigned still_dying)
{
    memset(world.bound, 0, sizeof(world.bound));
    memset(world.notified, 0, sizeof(world.notified));
    world.still_dying = still_dying;
}

static void set_slot(struct xen_hypervisor *xen, unsigned vcpu, unsigned state)
{
    struct ioreq_slot *slot = &xen->slots[vcpu];

    slot->addr = 0x02000070 + vcpu;
    slot->size = 4;
    slot->count = 1;
    slot->type = IOREQ_TYPE_COPY;
    atomic_store(&slot->flags, (uint8_t)(state | 0x20));
}

static unsigned state_of(struct xen_hypervisor *xen, unsigned vcpu)
{
    return atomic_load(&xen->slots[vcpu].flags) & 0x0f;
}

static void test_created_in_order(void **state)
{
    struct xen_hypervisor xen;

    (void)state;
    begin();
    assert_int_equal(open_as(&xen), 0);
    assert_int_equal(xen.server, OTHERS);
    assert_true(world.servers[OTHERS].enabled);
    for (unsigned i = 0; i < VCPUS; i++)
        assert_int_equal(world.notified[i], 0);
}

/* Whatever the dead one was doing: its successor has the same server, with all ports. */
static void test_adopted_at_every_point(void **state)
{
    struct xen_hypervisor xen;
    volatile unsigned point;

    (void)state;
    for (point = 1;; point++) {
        begin();
        world.die_after = point;
        if (setjmp(world.death) == 0) {
            assert_int_equal(open_as(&xen), 0);
            break; /* it has lived */
        }
        bury(point % 4);
        assert_int_equal(open_as(&xen), 0);
        assert_true(world.servers[xen.server].enabled);
        for (unsigned i = 0; i < VCPUS; i++)
            assert_true(world.bound[i]);
        /* Not two of them, unless it died in the one moment before it was marked. */
        if (precedence)
            assert_true(xen.server >= SERVERS / 2);
        else
            assert_true(xen.server <= OTHERS + 1);
        bury(0);
        assert_int_equal(open_as(&xen), 0);
        for (unsigned i = 0; i < VCPUS; i++)
            assert_int_equal(world.notified[i], 1);
    }
    assert_true(point > 10);
}

/* As in dom0: servers are made for a moment that are not to stay. */
static void test_adopted_with_precedence(void **state)
{
    precedence = true;
    test_adopted_at_every_point(state);
    precedence = false;
}

static bool is_accessible(const void *at)
{
    int ends[2];
    bool yes;

    assert_int_equal(pipe(ends), 0);
    yes = write(ends[1], at, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return yes;
}

/* Whoever maps is told of each page that is not there; without any, nothing is left that looks so. */
static void test_foreign_pages(void **state)
{
    struct xen_hypervisor xen = {.domid = 7, .privcmd = PRIVCMD, .evtchn = EVTCHN};
    size_t len = FRAMES * GUEST_PAGE_SIZE;
    int err[FRAMES];
    uint8_t *at;

    (void)state;
    begin();
    world.ram = true;
    at = __real_mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(at, MAP_FAILED);
    world.frame_error[2] = -EINVAL;
    world.frame_error[5] = -ENOENT;
    memset(err, 0x55, sizeof(err));
    assert_int_equal(xen_map_ram(&xen.hv, FRAMES, FRAMES, at, err), 0);
    assert_memory_equal(err, world.frame_error, sizeof(err));
    assert_true(is_accessible(at));
    xen_unmap_ram(&xen.hv, at, FRAMES);
    assert_false(is_accessible(at));
    assert_int_equal(xen_probe_ram(&xen.hv, 2), -EINVAL);
    assert_int_equal(xen_probe_ram(&xen.hv, 3), 0);

    for (unsigned i = 0; i < FRAMES; i++)
        world.frame_error[i] = -EINVAL;
    assert_int_equal(xen_map_ram(&xen.hv, 0, FRAMES, at, err), -EINVAL);
    assert_false(is_accessible(at));
    /* Out of memory for page tables, Linux hands back frame numbers: nothing is known of any page. */
    memset(world.frame_error, 0, sizeof(world.frame_error));
    world.frame_error[3] = 77;
    assert_int_equal(xen_map_ram(&xen.hv, 0, FRAMES, at, err), -ENOMEM);
    assert_false(is_accessible(at));
    memset(world.frame_error, 0, sizeof(world.frame_error));
    world.map_error = EFAULT;
    assert_int_equal(xen_map_ram(&xen.hv, 0, FRAMES, at, err), -EFAULT);
    assert_false(is_accessible(at));
    assert_int_equal(__real_munmap(at, len), 0);
}

static void test_requests_of_the_dead(void **state)
{
    struct xen_hypervisor xen;
    struct mmio_request request;
    unsigned found = 0;

    (void)state;
    begin();
    assert_int_equal(open_as(&xen), 0);
    set_slot(&xen, 0, STATE_IOREQ_READY);
    set_slot(&xen, 1, STATE_IOREQ_INPROCESS);
    set_slot(&xen, 2, STATE_IORESP_READY);
    bury(3);
    assert_int_equal(open_as(&xen), 0);
    for (unsigned i = 0; i < VCPUS; i++)
        assert_int_equal(world.notified[i], 1);
    while (xen_ioreq_next(&xen.hv, &request) == 1) {
        found |= 1u << request.vcpu;
        assert_int_equal(state_of(&xen, request.vcpu), STATE_IOREQ_INPROCESS); /* never back */
        assert_int_equal(request.addr, 0x02000070 + request.vcpu);
        request.data = 0;
        xen_ioreq_finish(&xen.hv, &request);
        assert_int_equal(state_of(&xen, request.vcpu), STATE_IORESP_READY);
    }
    assert_int_equal(found, 3); /* the third was answered already */
    assert_int_equal(state_of(&xen, 2), STATE_IORESP_READY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_created_in_order),
        cmocka_unit_test(test_adopted_at_every_point),
        cmocka_unit_test(test_adopted_with_precedence),
        cmocka_unit_test(test_foreign_pages),
        cmocka_unit_test(test_requests_of_the_dead),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
