/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by worker.c (serving) and worker_start.c (up to there) only. */
#ifndef VIOD_WORKER_INTERNAL_H
#define VIOD_WORKER_INTERNAL_H

#include <pthread.h>

#include "device_state.h"
#include "grant_memory.h"
#include "message.h"
#include "virtio_mmio.h"
#include "xen/xen.h"

#define IO_THREADS_MAX (STATS_THREADS_MAX - 1)
/* vCPUs that can wait at once: Xen on Arm has at most 128. */
#define VCPUS_MAX 128u

struct io_thread {
    struct worker *worker;
    pthread_t thread;
    struct event_loop *loop;
    unsigned index;
};

struct slot {
    struct worker *worker;
    unsigned index;
    struct virtio_device *dev; /* NULL: empty */
    struct virtio_mmio *mmio;
    bool claimed;              /* accesses come to us */
    bool expected;             /* a device is being set up here: hold accesses */
    bool removing;
};

struct worker {
    int socket;
    struct start_settings settings;
    struct worker_stats *stats;
    struct state_file *state;
    struct hypervisor *hv;
    uint32_t n_vcpus;
    struct guest_memory *memory;
    struct grant_memory *grants; /* usable once gntdev was handed over */
    struct event_loop *mmio_loop;
    struct io_thread threads[IO_THREADS_MAX];
    struct event_loop *io_loops[IO_THREADS_MAX];
    size_t n_io_loops;
    pthread_barrier_t threads_ready;
    struct loop_poller poller;
    struct loop_fd events, control;
    struct slot slots[XEN_VIRTIO_SLOTS];
    unsigned n_removing;
    bool quitting;

    /* Accesses to slots whose device is expected. */
    struct mmio_request held[VCPUS_MAX];
    unsigned n_held;
    struct loop_timer hold_bound;
    int64_t alone_ns; /* since when there is no supervisor; 0: there is one */

    /* All I/O stands still, or is about to, so that mappings can be dropped. */
    bool pausing;
    bool drop_all;
    unsigned pauses_pending;
    struct mmio_request invalidates[VCPUS_MAX];
    unsigned n_invalidates;
    struct loop_work refresh;  /* an I/O thread met a stale mapping */
};

/* worker_start.c */
/* What the supervisor says first. 0 or -errno. */
int worker_receive_start(struct worker *w);
/* Handles, memory, loops, threads; and all that the worker may do no more. -errno with a message. */
int worker_start(struct worker *w, char *error, size_t error_len);

/* worker.c: the guest's accesses to the slot come to this process, or not. 0 or -errno. */
int worker_claim_slot(struct slot *slot, bool claim);

#endif
