/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One fake machine with one virtio-mmio device, put together as a worker does it: hypervisor, guest
 * memory, loops, device, registers; requests are dispatched, notifications answered first, and
 * invalidations after all mappings are dropped. Works with every device type.
 *
 * By default one thread does everything: an access or machine_settle runs the loop until nothing is
 * left to do. With io_thread, queues belong to a real I/O thread.
 */
#ifndef VIOD_FAKE_MACHINE_H
#define VIOD_FAKE_MACHINE_H

#include <linux/virtio_mmio.h>
#include <pthread.h>
#include "fake_hypervisor.h"
#include "ring.h"
#include "stats.h"
#include "test_device.h"
#include "virtio_mmio.h"

#define MACHINE_BASE 0x02000000u
#define MACHINE_IRQ 33u
#ifndef VIRTIO_MMIO_QUEUE_RESET
#define VIRTIO_MMIO_QUEUE_RESET 0x0c0
#endif

struct machine_config {
    struct fake_config hypervisor;
    const struct virtio_device_ops *ops;  /* NULL: test_device_ops */
    const struct device_config *device;   /* NULL: `test`. Say MACHINE_BASE and MACHINE_IRQ in it */
    struct test_device_config test;
    bool io_thread;
    bool no_polling;                      /* without io_thread */
    bool grants; /* grant_usage=1; also with VIOD_FAKE_GRANTS in the environment */
    bool state;                           /* keep it for a successor: see machine_picture */
};

struct machine {
    struct fake_hypervisor *fake;
    struct hypervisor *hv;
    struct guest_memory *memory;
    struct grant_memory *grants; /* NULL: the device knows guest-physical addresses */
    struct event_loop *loop, *io_loop; /* the same one without io_thread */
    struct virtio_device *dev;
    struct virtio_mmio *mmio;
    struct device_stats *stats;
    struct test_device_config test;
    struct guest_heap heap[2];   /* in the first bank (2 MiB from its end), and in the second */
    /* Requests of the MMIO thread that wait for quiet queues. */
    unsigned deferred;
    /* The worker's dance around guest memory. */
    atomic_bool stale;
    bool pausing, invalidating;
    struct mmio_request invalidate;
    unsigned drops;
    bool io_threaded;
    pthread_t thread;
    pthread_barrier_t ready;
    /* For successors. */
    const struct virtio_device_ops *ops;
    const struct device_config *device;
    struct device_state *state;
    uint64_t heap_base;          /* where heap[0] begins */
    struct machine_picture *picture;
    bool succeeding;
    /* Of successors: virtio_environment.ask. The first one's is the test's affair. */
    int (*ask)(struct virtio_device *dev, uint32_t id, const char *request);
    /* The guest goes on while nobody serves it: called between the death and the successor. */
    void (*meanwhile)(void *arg);
    void *meanwhile_arg;
};

/* Aborts on failure. machine_try_create: -errno, with the message of the device type. */
struct machine *machine_create(const struct machine_config *config);
int machine_try_create(const struct machine_config *config, struct machine **out, char *error,
                       size_t error_len);
/* Resets the device as a worker does at its end; checks that nothing is left behind. */
void machine_destroy(struct machine *m);

/*
 * With config.state: a picture of all that outlives the worker, and its successor that begins there. In
 * between the old worker may do what it likes: it will not have happened. An access during which a
 * picture was taken is followed by the successor. Not with io_thread.
 */
void machine_take_picture(struct machine *m);
void machine_succeed(struct machine *m, bool sacrifice);
/* What the successor will find, to be damaged before. */
void *machine_pictured_state(struct machine *m, size_t *len);

/* One turn: requests, then the loop. True if there was work. */
bool machine_turn(struct machine *m);
/* Turns until there is no work (of this thread). Aborts after 10,000 turns. */
void machine_settle(struct machine *m);

/* An access of vCPU 0 to the device's window. Waits for the answer; a write that the device leaves
 * open for a second (10 s with io_thread) aborts. */
uint64_t machine_read(struct machine *m, uint32_t offset, unsigned size);
void machine_write(struct machine *m, uint32_t offset, unsigned size, uint64_t value);
/* The same for a vCPU of choice, without waiting: fake_answered tells. */
void machine_write_start(struct machine *m, unsigned vcpu, uint32_t offset, uint64_t value);

static inline uint32_t machine_read32(struct machine *m, uint32_t offset)
{
    return (uint32_t)machine_read(m, offset, 4);
}
static inline void machine_write32(struct machine *m, uint32_t offset, uint32_t value)
{
    machine_write(m, offset, 4, value);
}

/* Xen says that pages went: an INVALIDATE request of vCPU 1. */
void machine_invalidate(struct machine *m);
/* The guest gives pages back, and Xen says so at once. */
void machine_balloon_out(struct machine *m, uint64_t gpa, size_t pages);

#endif
