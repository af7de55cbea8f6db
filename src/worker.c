/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <errno.h>
#include <linux/virtio_mmio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"
#include "worker_internal.h"

#define WINDOW_LEN (XEN_VIRTIO_SLOTS * XEN_VIRTIO_MMIO_SLOT)
/* Requests served per turn of the loop: other work gets its turn too. */
#define REQUEST_BUDGET 32
/* How long an access waits for a device that is still being set up. */
#define HOLD_BOUND_NS (INT64_C(10) * 1000000000)
#define ALONE_BOUND_NS (INT64_C(300) * 1000000000)

static void tell(struct worker *w, enum message_type type, uint32_t slot, uint32_t id,
                 int32_t status, const char *text)
{
    static struct message message; /* the MMIO thread only */

    message_set(&message, type, slot, text);
    message.id = id;
    message.status = status;
    (void)message_send(w->socket, &message); /* if the supervisor is gone, control says so */
}

/* ---- all I/O stands still ---- */

static void pause_is_over(struct worker *w)
{
    if (w->drop_all)
        guest_memory_drop(w->memory);
    else
        guest_memory_drop_stale(w->memory);
    w->drop_all = false;
    w->pausing = false;
    for (unsigned i = 0; i < w->n_invalidates; i++)
        w->hv->ops->finish_request(w->hv, &w->invalidates[i]);
    w->n_invalidates = 0;
    for (size_t i = 0; i < ARRAY_SIZE(w->slots); i++)
        if (w->slots[i].dev != NULL)
            virtio_device_resume(w->slots[i].dev);
}

static void device_paused(struct virtio_device *dev)
{
    struct worker *w = ((struct slot *)dev->worker)->worker;

    if (--w->pauses_pending == 0)
        pause_is_over(w);
}

static void pause_all(struct worker *w)
{
    if (w->pausing)
        return;
    w->pausing = true;
    w->pauses_pending = 1; /* ours, until all were asked */
    for (size_t i = 0; i < ARRAY_SIZE(w->slots); i++)
        if (w->slots[i].dev != NULL) {
            w->pauses_pending++;
            virtio_device_pause(w->slots[i].dev, device_paused);
        }
    if (--w->pauses_pending == 0)
        pause_is_over(w);
}

static void run_refresh(struct loop_work *work)
{
    pause_all(container_of(work, struct worker, refresh));
}

/* Any thread. */
static void memory_stale(struct virtio_device *dev)
{
    struct worker *w = ((struct slot *)dev->worker)->worker;

    loop_post(w->mmio_loop, &w->refresh);
}

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    static struct message message; /* the MMIO thread only */
    struct slot *slot = dev->worker;

    message_set(&message, MESSAGE_ASK, slot->index, request);
    message.id = id;
    return message_send(slot->worker->socket, &message);
}

/* ---- trapped accesses ---- */

static void finish(struct worker *w, const struct mmio_request *request)
{
    w->hv->ops->finish_request(w->hv, request);
}

static void device_finished(struct virtio_mmio *mmio, void *arg,
                            const struct mmio_request *request)
{
    (void)mmio;
    finish(arg, request);
}

static void access_slot(struct worker *w, struct slot *slot, struct mmio_request *request)
{
    uint32_t offset = (uint32_t)(request->addr % XEN_VIRTIO_MMIO_SLOT);

    if (slot->mmio == NULL || slot->removing) {
        if (request->kind == REQUEST_READ)
            request->data = virtio_mmio_empty_read(offset, request->size);
        finish(w, request);
    } else if (virtio_mmio_is_notify(offset, request)) {
        /* The vCPU runs on while the queue is looked at. */
        stat_add(&w->stats->notifies, 1);
        finish(w, request);
        virtio_mmio_access(slot->mmio, offset, request);
    } else if (virtio_mmio_access(slot->mmio, offset, request)) {
        finish(w, request);
        /* 4.2.3.4: the driver has looked at InterruptStatus, so it will write InterruptACK. */
        if (offset == VIRTIO_MMIO_INTERRUPT_STATUS)
            loop_expect(w->mmio_loop);
    }
}

static void serve_access(struct worker *w, struct mmio_request *request)
{
    uint64_t offset = request->addr - XEN_VIRTIO_MMIO_BASE;
    struct slot *slot;

    if (offset >= WINDOW_LEN ||
        offset % XEN_VIRTIO_MMIO_SLOT + request->size > XEN_VIRTIO_MMIO_SLOT) {
        request->data = ~UINT64_C(0); /* not claimed by us: as Xen answers where nobody is */
        finish(w, request);
        return;
    }
    slot = &w->slots[offset / XEN_VIRTIO_MMIO_SLOT];
    if (slot->expected && w->n_held < VCPUS_MAX) {
        w->held[w->n_held++] = *request;
        if (w->n_held == 1)
            loop_set_timer(w->mmio_loop, &w->hold_bound, HOLD_BOUND_NS);
        return;
    }
    access_slot(w, slot, request);
}

static void release_held(struct worker *w, const struct slot *slot)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < w->n_held; i++) {
        struct mmio_request request = w->held[i];
        uint64_t index = (request.addr - XEN_VIRTIO_MMIO_BASE) / XEN_VIRTIO_MMIO_SLOT;

        if (slot != NULL && index != slot->index)
            w->held[kept++] = request;
        else
            access_slot(w, &w->slots[index], &request);
    }
    w->n_held = kept;
    if (kept == 0)
        loop_cancel_timer(w->mmio_loop, &w->hold_bound);
}

/*
 * One that the guest has been using stays expected, however long the host needs to let go of what it is on:
 * a driver that found nothing there would give it up, or go on with a device that knows nothing of it. But
 * without a supervisor nobody says how that ends.
 */
static void hold_bound_reached(struct loop_timer *timer)
{
    struct worker *w = container_of(timer, struct worker, hold_bound);
    bool alone = w->alone_ns != 0 && monotonic_ns() - w->alone_ns > ALONE_BOUND_NS;

    for (size_t i = 0; i < ARRAY_SIZE(w->slots); i++) {
        struct slot *slot = &w->slots[i];

        if (!slot->expected || (!alone && state_load64(&w->state->slots[i].current) != 0))
            continue;
        log_host("the device in slot %zu was not set up in time: the guest sees its slot empty", i);
        slot->expected = false;
        release_held(w, slot);
    }
    if (w->n_held > 0)
        loop_set_timer(w->mmio_loop, &w->hold_bound, HOLD_BOUND_NS);
}

static bool poll_requests(struct loop_poller *poller)
{
    struct worker *w = container_of(poller, struct worker, poller);
    struct mmio_request request;
    int served = 0;

    while (served < REQUEST_BUDGET && w->hv->ops->next_request(w->hv, &request) == 1) {
        if (served++ == 0)
            loop_found(w->mmio_loop);
        switch (request.kind) {
        case REQUEST_READ:
            stat_add(&w->stats->mmio_reads, 1);
            serve_access(w, &request);
            break;
        case REQUEST_WRITE:
            stat_add(&w->stats->mmio_writes, 1);
            serve_access(w, &request);
            break;
        case REQUEST_INVALIDATE:
            /* Answered when nothing of the guest's RAM is mapped any more: one per vCPU waits. */
            stat_add(&w->stats->invalidates, 1);
            if (w->n_invalidates == VCPUS_MAX) {
                finish(w, &request);
                break;
            }
            w->invalidates[w->n_invalidates++] = request;
            w->drop_all = true;
            pause_all(w);
            break;
        case REQUEST_UNKNOWN:
            stat_add(&w->stats->unknown_requests, 1);
            log_guest("unknown kind of request from vCPU %u", request.vcpu);
            request.data = ~UINT64_C(0);
            finish(w, &request);
            break;
        }
    }
    return served > 0;
}

static void copy_memory_stats(struct worker *w)
{
    struct guest_memory_stats stats = guest_memory_stats(w->memory);

    atomic_store_explicit(&w->stats->map_calls, stats.map_calls, memory_order_relaxed);
    for (size_t i = 0; i < GUEST_BANKS_MAX; i++)
        atomic_store_explicit(&w->stats->mapped_kib[i],
                              stats.mapped_pages[i] * (GUEST_PAGE_SIZE >> 10),
                              memory_order_relaxed);
    atomic_store_explicit(&w->stats->memory_drops, stats.drops, memory_order_relaxed);
}

static void copy_grant_stats(struct worker *w)
{
    struct grant_memory_stats stats = grant_memory_stats(w->grants);

    stat_set(&w->stats->grant_maps, stats.maps);
    stat_set(&w->stats->grant_unmaps, stats.unmaps);
    stat_set(&w->stats->grant_copies, stats.copies);
    stat_set(&w->stats->granted_kib, stats.mapped_pages * (GUEST_PAGE_SIZE >> 10));
}

static bool arm_requests(struct loop_poller *poller)
{
    struct worker *w = container_of(poller, struct worker, poller);

    copy_memory_stats(w);
    copy_grant_stats(w);
    return w->hv->ops->arm(w->hv);
}

static void disarm_requests(struct loop_poller *poller)
{
    struct worker *w = container_of(poller, struct worker, poller);

    w->hv->ops->disarm(w->hv);
}

/* ---- devices come and go ---- */

static int add_device(struct worker *w, struct slot *slot, struct message *message, char *error,
                      size_t error_len)
{
    const bool has_gntdev = xen_hypervisor_has_gntdev(w->hv);
    const struct virtio_environment env = {.hv = w->hv,
                                           .memory = w->memory,
                                           .grants = has_gntdev ? w->grants : NULL,
                                           .mmio_loop = w->mmio_loop,
                                           .io_loops = w->io_loops,
                                           .n_io_loops = w->n_io_loops,
                                           .memory_stale = memory_stale,
                                           .ask = ask,
                                           .worker = slot,
                                           .state = &w->state->slots[slot->index],
                                           .sacrifice =
                                               (w->settings.sacrificed >> slot->index & 1) != 0};
    const struct virtio_device_ops *ops;
    struct device_config config = {0};
    int ret;

    ret = device_config_decode(message->text, message->text_len, &config, error, error_len);
    if (ret < 0)
        return ret;
    config.n_vcpus = w->n_vcpus;
    for (size_t i = 0; i < DEVICE_FDS_MAX; i++)
        config.fds[i] = -1;
    config.n_fds = MIN(message->n_fds, DEVICE_FDS_MAX);
    for (size_t i = 0; i < config.n_fds; i++) {
        config.fds[i] = message->fds[i];
        message->fds[i] = -1;
    }
    ops = virtio_device_ops_by_id(config.virtio_id);
    if (ops == NULL) {
        snprintf(error, error_len, "no such device type: %u", config.virtio_id);
        ret = -ENODEV;
        goto out;
    }
    ret = virtio_device_create(ops, &env, &config, &w->stats->devices[slot->index], &slot->dev,
                               error, error_len);
    if (ret < 0)
        goto out;
    ret = virtio_mmio_create(slot->dev, device_finished, w, &slot->mmio);
    if (ret < 0) {
        snprintf(error, error_len, "out of memory");
        virtio_device_destroy(slot->dev);
        slot->dev = NULL;
        goto out;
    }
    if (w->pausing) /* it has no queue running; it joins in at the end */
        slot->dev->pausing = true;
    else
        virtio_device_resume(slot->dev); /* the queues that it has adopted */
out:
    device_config_free(&config); /* and the descriptors that the device did not take over */
    return ret;
}

static bool has_devices(const struct worker *w)
{
    for (size_t i = 0; i < ARRAY_SIZE(w->slots); i++)
        if (w->slots[i].dev != NULL)
            return true;
    return false;
}

static void finish_removals(struct worker *w)
{
    for (size_t i = 0; i < ARRAY_SIZE(w->slots) && w->n_removing > 0; i++) {
        struct slot *slot = &w->slots[i];

        if (!slot->removing || slot->dev->resetting || slot->dev->stops_pending > 0 ||
            w->pausing || !virtio_device_detach(slot->dev))
            continue;
        virtio_mmio_destroy(slot->mmio);
        virtio_device_destroy(slot->dev);
        device_state_clear(&w->state->slots[i]);
        slot->mmio = NULL;
        slot->dev = NULL;
        slot->removing = false;
        w->n_removing--;
        /* A page that we hold would keep the destroyed domain from going away. */
        if (!has_devices(w))
            guest_memory_drop(w->memory);
        tell(w, MESSAGE_REMOVED, (uint32_t)i, 0, 0, NULL);
    }
    if (w->quitting && w->n_removing == 0)
        loop_stop(w->mmio_loop);
}

static void remove_device(struct worker *w, struct slot *slot)
{
    if (slot->removing)
        return;
    if (slot->dev == NULL) {
        tell(w, MESSAGE_REMOVED, slot->index, 0, 0, NULL);
        return;
    }
    slot->removing = true;
    w->n_removing++;
    virtio_device_reset(slot->dev);
}

static void control_device(struct worker *w, struct slot *slot, const struct message *message)
{
    char reply[256] = "";
    int ret = -ENODEV;

    if (slot->dev != NULL && !slot->removing) {
        ret = -EOPNOTSUPP;
        if (slot->dev->ops->control != NULL)
            ret = slot->dev->ops->control(slot->dev, message->text, reply, sizeof(reply));
    }
    if (ret < 0 && reply[0] == '\0')
        snprintf(reply, sizeof(reply), "%s", strerror(-ret));
    tell(w, MESSAGE_CONTROL_REPLY, slot->index, message->id, ret, reply);
}

static void give_answer(struct slot *slot, struct message *message)
{
    if (slot->dev != NULL && !slot->removing && slot->dev->ops->answered != NULL)
        slot->dev->ops->answered(slot->dev, message->id, message->status, message->text,
                                 message->fds, message->n_fds);
}

static void quit(struct worker *w)
{
    w->quitting = true;
    for (size_t i = 0; i < ARRAY_SIZE(w->slots); i++)
        if (w->slots[i].dev != NULL)
            remove_device(w, &w->slots[i]);
}

/*
 * Of two IOREQ servers that claim an address, Xen asks only one (see create_above in xen/ioreq.c): a
 * slot that another domain serves must not be claimed here. An access where nobody listens makes a
 * Linux guest panic.
 */
int worker_claim_slot(struct slot *slot, bool claim)
{
    struct hypervisor *hv = slot->worker->hv;
    uint64_t base = XEN_VIRTIO_MMIO_BASE + (uint64_t)slot->index * XEN_VIRTIO_MMIO_SLOT;
    int ret = 0;

    if (claim && !slot->claimed)
        ret = hv->ops->claim_mmio(hv, base, XEN_VIRTIO_MMIO_SLOT);
    else if (!claim && slot->claimed)
        ret = hv->ops->release_mmio(hv, base, XEN_VIRTIO_MMIO_SLOT);
    if (ret == -EEXIST) /* a predecessor's, whose IOREQ server was taken over */
        ret = 0;
    if (ret == 0)
        slot->claimed = claim;
    return ret;
}

/* It comes behind the descriptors of the device. */
static void take_gntdev(struct worker *w, struct message *message)
{
    if (message->n_fds > 0)
        xen_hypervisor_use_gntdev(w->hv, message->fds[--message->n_fds]);
}

static void serve_message(struct worker *w, struct message *message)
{
    char error[CONFIG_ERROR_LEN];
    struct slot *slot;
    bool was_claimed;
    int ret;

    if (message->type == MESSAGE_QUIT) {
        quit(w);
        return;
    }
    if (message->slot >= ARRAY_SIZE(w->slots))
        return;
    slot = &w->slots[message->slot];
    switch (message->type) {
    case MESSAGE_YIELD:
        if (slot->dev != NULL)
            break;
        slot->expected = false;
        release_held(w, slot);
        ret = worker_claim_slot(slot, false);
        if (ret < 0)
            log_host("cannot leave slot %u to another domain: %s", slot->index, strerror(-ret));
        break;
    case MESSAGE_EXPECT:
    case MESSAGE_TAKE:
        was_claimed = slot->claimed;
        ret = worker_claim_slot(slot, true);
        if (ret < 0)
            log_host("cannot claim slot %u: %s", slot->index, strerror(-ret));
        if (message->type == MESSAGE_TAKE) {
            if (ret == 0 && !was_claimed)
                log_warning("slot %u: the domain that served it is gone: from now on the guest is "
                            "told that it is empty",
                            slot->index);
            break;
        }
        slot->expected = slot->dev == NULL && message->status != 0;
        if (slot->dev == NULL && message->status == 0)
            device_state_clear(&w->state->slots[message->slot]); /* nobody takes it over any more */
        if (!slot->expected)
            release_held(w, slot);
        break;
    case MESSAGE_ADD:
        if (slot->dev != NULL) {
            tell(w, MESSAGE_ADD_FAILED, message->slot, 0, -EEXIST, "the slot is taken");
            break;
        }
        if (message->status != 0)
            take_gntdev(w, message);
        ret = add_device(w, slot, message, error, sizeof(error));
        slot->expected = false;
        if (ret < 0)
            tell(w, MESSAGE_ADD_FAILED, message->slot, 0, ret, error);
        else
            tell(w, MESSAGE_ADDED, message->slot, 0, 0, NULL);
        release_held(w, slot);
        break;
    case MESSAGE_REMOVE:
        remove_device(w, slot);
        break;
    case MESSAGE_CONTROL:
        control_device(w, slot, message);
        break;
    case MESSAGE_ANSWER:
        give_answer(slot, message);
        break;
    default:
        log_warning("unknown message %u from the supervisor", message->type);
    }
}

static void control_ready(struct loop_fd *fd)
{
    static struct message message; /* the MMIO thread only; too large for a stack */
    struct worker *w = container_of(fd, struct worker, control);
    int ret = message_receive(fd->fd, &message);

    if (ret == -EAGAIN)
        return;
    if (ret <= 0) {
        /* The next one ends this worker, and its successor adopts what it serves. What is asked of
         * the host until then fails: w->socket stays open, but nobody reads it. */
        log_warning("the supervisor is gone: this guest is served on until there is another one");
        w->alone_ns = monotonic_ns();
        loop_remove_fd(fd);
        return;
    }
    serve_message(w, &message);
    message_close_fds(&message);
}

/* The requests are found by poll_requests. */
static void events_ready(struct loop_fd *fd)
{
    (void)fd;
}

/* ---- removals are looked at whenever the loop turns ---- */

static bool poll_all(struct loop_poller *poller)
{
    struct worker *w = container_of(poller, struct worker, poller);
    bool progress = poll_requests(poller);

    if (w->n_removing > 0 || w->quitting)
        finish_removals(w);
    return progress;
}

/* ---- the process ---- */

int worker_main(int socket)
{
    static struct worker worker;
    struct worker *w = &worker;
    char error[CONFIG_ERROR_LEN] = "", name[96];
    int ret;

    w->socket = socket;
    /* The other end of a socket may go at any time: that is an error of the write, and nothing more. */
    signal(SIGPIPE, SIG_IGN);
    ret = worker_receive_start(w);
    if (ret < 0) {
        log_error("no instructions from the supervisor: %s", strerror(-ret));
        return EXIT_FAILURE;
    }
    snprintf(name, sizeof(name), "domain %u (%.63s)", w->settings.domid, w->settings.name);
    /* It was executed as /proc/self/exe, which says nothing in ps and top. */
    pthread_setname_np(pthread_self(), "viod-worker");
    log_set_name(name);
    log_set_level((enum log_level)w->settings.log_level);
    w->stats->version = STATS_VERSION;
    for (unsigned i = 0; i < ARRAY_SIZE(w->slots); i++) {
        w->slots[i].worker = w;
        w->slots[i].index = i;
        w->slots[i].expected = (w->settings.expected >> i & 1) != 0;
    }
    ret = worker_start(w, error, sizeof(error));
    if (ret < 0) {
        log_error("%s", error);
        tell(w, MESSAGE_FAILED, 0, 0, ret, error);
        return EXIT_FAILURE;
    }
    w->hold_bound.expired = hold_bound_reached;
    w->refresh.run = run_refresh;
    w->poller.poll = poll_all;
    w->poller.arm = arm_requests;
    w->poller.disarm = disarm_requests;
    w->poller.hot = true;
    loop_add_poller(w->mmio_loop, &w->poller);
    w->events.fd = w->hv->ops->event_fd(w->hv);
    w->events.only_asleep = true;
    w->events.ready = events_ready;
    loop_add_fd(w->mmio_loop, &w->events);
    w->control.fd = socket;
    w->control.ready = control_ready;
    loop_add_fd(w->mmio_loop, &w->control);
    tell(w, MESSAGE_READY, 0, 0, (int32_t)w->n_vcpus, NULL);
    ret = event_loop_run(w->mmio_loop);
    /* Nothing is in flight. The IOREQ server stays: see hypervisor.h. */
    guest_memory_destroy(w->memory);
    grant_memory_destroy(w->grants);
    w->hv->ops->close(w->hv);
    _exit(ret == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}
