/* SPDX-License-Identifier: Apache-2.0 */
/* A worker's way from the supervisor's first word to the sandbox. */
#include "worker_internal.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "backend.h"
#include "log.h"
#include "sandbox.h"

#define RING_ENTRIES 256u
#define DESCRIPTORS_MAX 65536u

/* What the backends use; the rings can do nothing else. */
static const uint8_t ring_ops[] = {
    IORING_OP_READ,       IORING_OP_WRITE,       IORING_OP_READV, IORING_OP_WRITEV,
    IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
    IORING_OP_NOP,
};

static void *io_thread_main(void *arg)
{
    struct io_thread *t = arg;
    struct worker *w = t->worker;
    const struct loop_config config = {.entries = RING_ENTRIES,
                                       .poll_max_ns = w->settings.poll_max_us * 1000,
                                       .allowed_ops = ring_ops,
                                       .n_allowed_ops = sizeof(ring_ops),
                                       .stats = &w->stats->threads[1 + t->index]};
    char name[16];
    int ret;

    snprintf(name, sizeof(name), "io%u", t->index);
    pthread_setname_np(pthread_self(), name);
    /* A ring works for the thread that made it only; and none can be made in the sandbox. */
    ret = event_loop_create(&config, &t->loop);
    if (ret < 0)
        log_error("cannot make an io_uring: %s%s", strerror(-ret),
                  ret == -ENOSYS || ret == -EPERM ? " (is it enabled? see kernel.io_uring_disabled)"
                                                  : "");
    pthread_barrier_wait(&w->threads_ready);
    if (t->loop != NULL)
        event_loop_run(t->loop);
    return NULL;
}

static int start_threads(struct worker *w)
{
    unsigned n = MIN(w->settings.iothreads, IO_THREADS_MAX);
    sigset_t all, old;
    int ret;

    if (n == 0) {
        w->io_loops[0] = w->mmio_loop;
        w->n_io_loops = 1;
        return 0;
    }
    /* A heap of a thread's own looks into /proc when it shrinks: the sandbox would end the process. */
    (void)mallopt(M_ARENA_MAX, 1);
    pthread_barrier_init(&w->threads_ready, NULL, n + 1);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (unsigned i = 0; i < n; i++) {
        w->threads[i] = (struct io_thread){.worker = w, .index = i};
        ret = pthread_create(&w->threads[i].thread, NULL, io_thread_main, &w->threads[i]);
        if (ret != 0)
            return -ret; /* the process ends */
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_barrier_wait(&w->threads_ready);
    for (unsigned i = 0; i < n; i++) {
        if (w->threads[i].loop == NULL)
            return -ENOSYS;
        w->io_loops[i] = w->threads[i].loop;
    }
    w->n_io_loops = n;
    return 0;
}

int worker_receive_start(struct worker *w)
{
    static struct message message;
    void *p;
    int ret;

    if (message_receive(w->socket, &message) != 1 || message.type != MESSAGE_START ||
        message.text_len != sizeof(w->settings) || message.n_fds != 2)
        return -EPROTO;
    memcpy(&w->settings, message.text, sizeof(w->settings));
    p = mmap(NULL, sizeof(*w->stats), PROT_READ | PROT_WRITE, MAP_SHARED, message.fds[0], 0);
    ret = p == MAP_FAILED ? -errno
                          : device_state_map(message.fds[1], w->settings.domid, &w->state);
    message_close_fds(&message); /* the supervisor trusts that no descriptor of stats is left */
    if (ret < 0)
        return ret;
    w->stats = p;
    for (unsigned i = 0; i < DEVICE_STATE_SLOTS; i++)
        if ((w->settings.adopted >> i & 1) == 0)
            device_state_clear(&w->state->slots[i]);
    return 0;
}

/*
 * A predecessor may have died before it was told to yield, and the IOREQ server has its claims. Not so in
 * a driver domain: where a device of its own was removed, nobody else answers.
 */
static int leave_slot(struct slot *slot)
{
    int ret;

    slot->claimed = true;
    ret = worker_claim_slot(slot, false);
    slot->claimed = false;
    return ret == -ENOENT ? 0 : ret;
}

int worker_start(struct worker *w, char *error, size_t error_len)
{
    struct loop_config config = {.entries = RING_ENTRIES,
                                 .allowed_ops = ring_ops,
                                 .n_allowed_ops = sizeof(ring_ops)};
    int ret;

    /* Some devices have a descriptor for each connection; each bounds them by its configuration. */
    (void)setrlimit(RLIMIT_NOFILE, &(struct rlimit){DESCRIPTORS_MAX, DESCRIPTORS_MAX});
    ret = sandbox_prepare();
    if (ret < 0) {
        snprintf(error, error_len, "cannot drop the capability bounding set: %s", strerror(-ret));
        return ret;
    }
    ret = xen_hypervisor_open(w->settings.domid, w->settings.precedence != 0, &w->hv,
                              &w->n_vcpus, error, error_len);
    if (ret < 0)
        return ret;
    w->hv->calls = &w->stats->hypervisor_calls;
    snprintf(error, error_len, "cannot start the worker's threads and memory");
    ret = guest_memory_create(w->hv, xen_ram_banks, xen_n_ram_banks, &w->memory);
    if (ret < 0)
        return ret;
    ret = grant_memory_create(w->hv, &w->grants);
    if (ret < 0)
        return ret;
    ret = 0;
    for (size_t i = 0; i < ARRAY_SIZE(w->slots) && ret == 0; i++)
        if ((w->settings.claimed >> i & 1) != 0)
            ret = worker_claim_slot(&w->slots[i], true);
        else if (w->settings.precedence != 0)
            ret = leave_slot(&w->slots[i]);
    if (ret < 0) {
        snprintf(error, error_len, "cannot claim the guest's virtio-mmio window: %s",
                 strerror(-ret));
        return ret;
    }
    config.poll_max_ns = w->settings.poll_max_us * 1000;
    config.stats = &w->stats->threads[0];
    ret = event_loop_create(&config, &w->mmio_loop);
    if (ret < 0)
        return ret;
    ret = start_threads(w);
    if (ret < 0)
        return ret;
    ret = block_sync_start();
    if (ret < 0)
        return ret;
    atomic_store(&w->stats->n_threads, (uint32_t)(w->settings.iothreads == 0
                                                      ? 1
                                                      : 1 + w->n_io_loops));
    ret = w->hv->ops->lock_down(w->hv);
    if (ret < 0) {
        snprintf(error, error_len, "cannot restrict the Xen handles to domain %u: %s",
                 w->settings.domid, strerror(-ret));
        return ret;
    }
    return sandbox_enter(w->settings.root, w->settings.uid, error, error_len);
}
