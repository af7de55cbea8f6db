/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all virtio devices share: status, features, configuration space, queues, reset, and
 * DEVICE_NEEDS_RESET (VIRTIO 1.2, chapters 2 and 3). A device type is a constant table of functions;
 * a transport (virtio_mmio) drives it.
 *
 * Threads: the MMIO thread owns status, features, configuration space and the registers of queues.
 * Each started queue is owned by one I/O thread. They meet in messages only: start, stop, pause.
 */
#ifndef VIOD_VIRTIO_DEVICE_H
#define VIOD_VIRTIO_DEVICE_H

#include "device_state.h"
#include "event_loop.h"
#include "virtqueue.h"

struct virtio_device;
struct device_config;
struct device_stats;
struct queue_stats;

/* One feature bit that the type can offer; the table also feeds `viodctl show`. */
struct feature {
    uint8_t bit;
    const char *name;
};

struct virtio_device_ops {
    const char *name;        /* "blk": names devices, sections of the configuration, counters */
    uint16_t id;             /* VIRTIO chapter 5 */
    size_t request_size;     /* per-request data, embeds struct chain first */
    /*
     * All buffers are requests that the driver sends and whose end it waits for; none waits for the
     * host. Then how many are out tells how busy it is, and interrupts may wait for company.
     */
    bool requests;
    const struct feature *features; /* device-specific bits (0..23, 50..63); ends with name NULL */
    bool one_loop;           /* all queues belong to the same I/O thread: they share state */
    /* So many queues in a row belong to the same I/O thread, and the next ones to the next; 0: one. */
    uint8_t queues_together;
    /* What a request's last byte, if the device took it alone (chain_take_tail), says when what was
     * written before it cannot reach the guest. */
    uint8_t error_status;
    size_t state_len;        /* of dev->own: what a successor needs to know, at most DEVICE_STATE_OWN */

    /*
     * MMIO thread, once: makes dev->priv; sets dev->offered (device-specific bits), dev->n_queues,
     * dev->queue_size and the configuration space (virtio_device_set_config). On failure a message
     * for the administrator is in error (one line, says what would be right).
     */
    int (*create)(struct virtio_device *dev, const struct device_config *config, char *error,
                  size_t error_len);
    /* MMIO thread. Features are negotiated (FEATURES_OK was accepted). May be NULL. */
    void (*negotiated)(struct virtio_device *dev, uint64_t features);
    /*
     * MMIO thread, instead of `negotiated`, before attach and before any queue starts: a device whose
     * process has died goes on here. Its status, features, registers and queues are as they were, what
     * is in dev->own was its: not to be believed more than what a guest says. Requests that were in
     * flight are popped again. False: it cannot go on; it needs a reset. NULL: `negotiated` does it.
     */
    bool (*adopt)(struct virtio_device *dev, uint64_t features);
    /* I/O thread of the queue, before its first notification. May be NULL. */
    void (*queue_started)(struct virtio_device *dev, struct virtqueue *vq);
    /*
     * I/O thread: buffers may wait. Pop at most `budget` chains (bounded work per turn); return the
     * number taken, or what virtqueue_pop returned if negative. Notifications and publishing what was
     * completed, now or later, are the caller's business.
     */
    int (*queue_work)(struct virtio_device *dev, struct virtqueue *vq, int budget);
    /*
     * I/O thread: the queue is being stopped or paused; nothing is popped any more. Give back (or let
     * finish) every chain that is held without an end in sight (posted receive buffers). Requests
     * that end by themselves need nothing. Called again on each turn until none is out. May be NULL.
     */
    void (*queue_drain)(struct virtio_device *dev, struct virtqueue *vq);
    /*
     * I/O thread: the queue is being stopped and no chain is out. Lets go of what the device has in the
     * loop for this queue (polls, timers, messages); false: not all of it is back, ask again next turn.
     * After true nothing of the device may reach the loop on this queue's behalf. May be NULL.
     */
    bool (*queue_idle)(struct virtio_device *dev, struct virtqueue *vq);
    /* I/O thread: the queue has stopped, nothing is in flight. May be NULL. */
    void (*queue_stopped)(struct virtio_device *dev, struct virtqueue *vq);
    /* MMIO thread: the driver wrote to writable configuration space, within config_len. NULL: the
     * whole space is read-only. The device copies what it accepts into dev->config. */
    void (*config_write)(struct virtio_device *dev, uint32_t offset, const void *data, size_t len);
    /* MMIO thread: all queues are stopped. Back to the state after create. */
    void (*reset)(struct virtio_device *dev);
    /* MMIO thread: administrator's request, e.g. "resize". 0, or -errno with a message. May be NULL. */
    int (*control)(struct virtio_device *dev, const char *request, char *reply, size_t reply_len);
    /*
     * MMIO thread: the answer to virtio_device_ask. status: 0 or -errno. The device takes over what
     * it wants of fds and sets it to -1; the rest is closed. May be NULL.
     */
    void (*answered)(struct virtio_device *dev, uint32_t id, int status, const char *text, int *fds,
                     size_t n_fds);
    /*
     * MMIO thread: the device is complete, and may begin what goes on without a driver: descriptors that
     * it watches, asking the host side. May be NULL.
     */
    void (*attach)(struct virtio_device *dev);
    /*
     * MMIO thread, after attach; all queues are stopped: lets go of loops and descriptors. True: of
     * all. False: called again when the loop has turned. May be NULL.
     */
    bool (*detach)(struct virtio_device *dev);
    /* MMIO thread: all queues are stopped. Frees dev->priv. */
    void (*destroy)(struct virtio_device *dev);
};

#define VIRTIO_QUEUES_MAX 64u
#define VIRTIO_CONFIG_MAX 256u /* bytes of configuration space in the virtio-mmio window of Xen */

enum queue_phase {
    QUEUE_OFF,      /* QueueReady = 0 */
    QUEUE_READY,    /* QueueReady = 1, waits for DRIVER_OK */
    QUEUE_RUNNING,  /* the I/O thread owns it */
    QUEUE_STOPPING, /* asked the I/O thread to stop */
};

/* One queue as the device sees it: the registers (MMIO thread) and the ring (I/O thread). */
struct virtio_queue {
    struct virtio_device *dev;
    struct virtqueue *vq;
    struct event_loop *loop; /* whose thread owns the ring */
    struct queue_stats *stats;
    /* MMIO thread. */
    enum queue_phase phase;
    bool start_deferred; /* becomes RUNNING on the I/O thread when the pause is over */
    bool adopting;       /* it goes on where another process left it; I/O thread once started */
    bool reset_pending;  /* QueueReset reads 1 */
    uint16_t size;
    gpa_t desc, driver, device;
    struct virtqueue_setup setup; /* latched */
    /* Messages to the I/O thread ... */
    struct loop_work start, stop, kick, pause, resume, recheck;
    /* ... and its answers. */
    struct loop_work stopped, paused;
    /* The last message, and its answer: see virtio_device_detach. */
    struct loop_work leave, left;
    /* I/O thread. */
    struct loop_poller poller;
    struct loop_timer recheck_timer;
    struct loop_timer shortage_timer; /* stalled until then: the host had no memory */
    int64_t shortage_ns;              /* how long it was set for last */
    bool running, stopping, pausing, is_paused, stalled, held;
    bool unmapped;           /* adopted, and not looked at yet */
    bool may_hold;           /* interrupts may wait for company: see hold_interrupt */
    bool irq_wanted;
    unsigned completed;      /* since the last interrupt */
    unsigned delivered;      /* by the last interrupt */
    unsigned early;          /* of them, those that were not done yet when it was raised */
    unsigned depth;          /* requests that the driver is believed to keep outstanding */
    int64_t arrival_ns, wanted_ns; /* when buffers last came; when the interrupt was first wanted */
    int64_t full_ns; /* since when all of `depth` are here, while some are not done; or 0 */
    int64_t tail_ns; /* how long that lasts, usually */
    bool napping;    /* the interrupt waits, and hold_timer is set; notifications are off */
    bool probing;    /* it waits to find out what `depth` is */
    bool added;      /* buffers came since the last interrupt */
    unsigned sharing; /* those that wait in the ring for more, to be fetched together */
    unsigned gap_at; /* how many were outstanding when it was raised because no more came; or 0 */
    unsigned patience; /* how many times its own cost an interrupt waits for more to come */
    unsigned probe_in, probe_next; /* interrupts until the next time */
    struct loop_timer hold_timer;
    /* What the driver said about its interrupts: see virtio_queue_coalesce. Any thread. */
    _Atomic uint32_t coalesce_buffers, coalesce_us;
};

struct virtio_device {
    const struct virtio_device_ops *ops;
    void *priv;
    char name[32];             /* "blk0", "xvda" */
    uint32_t irq;
    struct hypervisor *hv;
    struct guest_memory *memory;
    struct grant_memory *grants; /* NULL: the driver's addresses are guest-physical */
    struct event_loop *mmio_loop;
    struct device_stats *stats; /* shared with the supervisor; never NULL */
    struct device_state *state; /* what a successor finds; never NULL */
    void *own;                  /* state_len bytes of it: the type's; zero at first */
    bool own_state;             /* `state` is private memory */
    bool adopted;               /* it was there before this process: `own` is not to be touched by
                                 * create, and `adopt` follows */
    /* The transport's selectors: MMIO thread. */
    uint32_t device_features_sel, driver_features_sel, queue_sel;
    bool features_beyond;       /* the driver accepted bits above 63: none is offered */

    uint64_t offered;          /* device-specific + ring + transport bits */
    uint64_t driver_features;  /* as written */
    uint64_t features;         /* negotiated: valid from FEATURES_OK on */
    _Atomic uint8_t status;    /* I/O threads set DEVICE_NEEDS_RESET only */
    _Atomic uint32_t isr;
    _Atomic uint32_t events_since_isr_read; /* bits of isr */
    _Atomic int64_t irq_raised_ns; /* 0: acknowledged */
    /* The interrupt could not be raised. MMIO thread, but for the bool. */
    atomic_bool raises_again;
    struct loop_work raise_again;
    struct loop_timer raise_timer;
    int64_t raise_ns;
    _Atomic int64_t irq_cost_ns;   /* what an interrupt takes the driver until it acknowledges it */
    int64_t irq_hold_max_ns;       /* an interrupt that waits for company waits no longer */
    int64_t irq_nap_max_ns;        /* nor, without polling, for so long without a look at the rings */
    uint32_t config_generation;
    uint8_t config[VIRTIO_CONFIG_MAX];
    uint16_t config_len;

    uint16_t n_queues;
    uint16_t queue_size;       /* QueueNumMax */
    struct virtio_queue *queues;

    /* Reset in progress: the status write is answered by `reset_done`. */
    bool resetting;
    void (*reset_done)(struct virtio_device *dev);
    /* A queue reset or QueueReady = 0 in progress is over. May be NULL. */
    void (*queue_stop_done)(struct virtio_device *dev, unsigned index);
    /* The worker's: an I/O thread met -EAGAIN of guest_memory. Any thread. */
    void (*memory_stale)(struct virtio_device *dev);
    /* The worker's: asks the supervisor. MMIO thread. NULL: nobody is there to ask. */
    int (*ask)(struct virtio_device *dev, uint32_t id, const char *request);
    /* A pause in progress or in force. */
    bool pausing;
    unsigned pauses_pending;
    void (*pause_done)(struct virtio_device *dev);
    unsigned stops_pending;
    bool leaving;              /* the device has let go of all; messages may still be on their way */
    unsigned leaves_pending;
    void *transport;           /* virtio_mmio's */
    void *worker;              /* the worker's */
};

/* What a device needs around it. All pointers are borrowed for the device's life. */
struct virtio_environment {
    struct hypervisor *hv;
    struct guest_memory *memory;
    struct grant_memory *grants;  /* for devices with grant_usage; NULL: none can be made */
    struct event_loop *mmio_loop;
    struct event_loop **io_loops; /* devices and their queues are spread over them */
    size_t n_io_loops;
    void (*memory_stale)(struct virtio_device *dev);
    int (*ask)(struct virtio_device *dev, uint32_t id, const char *request); /* may be NULL */
    void *worker;
    /*
     * Where the device is kept for a successor, or was left by a predecessor: then it goes on from there,
     * and virtio_device_resume starts its queues. NULL: nowhere.
     */
    struct device_state *state;
    bool sacrifice; /* what a predecessor left kills whoever goes on with it: DEVICE_NEEDS_RESET */
};

/* MMIO thread. On failure nothing is left and error holds one line for the administrator. */
int virtio_device_create(const struct virtio_device_ops *ops, const struct virtio_environment *env,
                         const struct device_config *config, struct device_stats *stats,
                         struct virtio_device **out, char *error, size_t error_len);
/*
 * MMIO thread: all queues are stopped (virtio_device_reset). True: nothing of the device is in a loop, or
 * on its way to one, and virtio_device_destroy may follow. False: ask again when the loop has turned.
 */
bool virtio_device_detach(struct virtio_device *dev);
/* All queues must be stopped and the device detached, unless it never left virtio_device_create. */
void virtio_device_destroy(struct virtio_device *dev);

/* For devices. */
void virtio_device_set_config(struct virtio_device *dev, const void *config, size_t len);
/* MMIO thread: configuration changed by the device: new generation, configuration interrupt. */
void virtio_device_config_changed(struct virtio_device *dev);
/* The same at the driver's own word, which needs no interrupt: a new generation (4.2.2.1). */
void virtio_device_config_touched(struct virtio_device *dev);
static inline bool virtio_has_feature(const struct virtio_device *dev, unsigned bit)
{
    return (dev->features >> bit & 1) != 0;
}
/*
 * I/O thread of the queue: for now the device wants nothing of it (no input for the guest's buffers, no
 * room for its output). What the driver adds waits in the ring, unseen and without notifications, until
 * virtio_queue_release; so nothing has to be given back when the queue stops, and a loop with nothing
 * else to do sleeps. A queue starts released.
 */
void virtio_queue_hold(struct virtio_device *dev, const struct virtqueue *vq);
void virtio_queue_release(struct virtio_device *dev, const struct virtqueue *vq);
/*
 * I/O thread of the queue: may the device pop on its own account, from a poller or a completion? Not
 * while the queue stops or is paused, or the device needs a reset. It leaves errors of pop to queue_work:
 * virtio_queue_release calls it.
 */
bool virtio_queue_active(struct virtio_device *dev, const struct virtqueue *vq);
/*
 * Any thread: the driver wants an interrupt of this queue `us` after the first buffer that it is for, or
 * when there are so many of them (0: however many there are). us = 0: at once, as after a start.
 */
void virtio_queue_coalesce(struct virtio_device *dev, unsigned index, uint32_t buffers, uint32_t us);
/* The loop that owns the queue: where the device's backend I/O for it belongs. */
struct event_loop *virtio_queue_loop(struct virtio_device *dev, const struct virtqueue *vq);
/* Any thread: DEVICE_NEEDS_RESET and a configuration interrupt. `why` is logged (rate-limited). */
void virtio_device_broken(struct virtio_device *dev, const char *why);

/*
 * MMIO thread: asks the host side (config.h, struct device_type, ask) for what only it can open.
 * ops->answered comes later with the same id, unless the device is gone by then. 0 or -errno.
 */
int virtio_device_ask(struct virtio_device *dev, uint32_t id, const char *request);

/*
 * MMIO thread: registers have changed, and what that brings about is done or begun. Before the access is
 * answered: what was answered outlives the process, what was not is done again.
 */
void virtio_device_save(struct virtio_device *dev);

/* For transports; MMIO thread. */
void virtio_device_set_status(struct virtio_device *dev, uint8_t status);
/*
 * Starts a reset. True: done. False: I/O is still in flight; dev->reset_done is called when the
 * queues are quiet, and until then Status keeps its value and queues cannot be enabled.
 */
bool virtio_device_reset(struct virtio_device *dev);
bool virtio_queue_enable(struct virtio_device *dev, unsigned index); /* QueueReady = 1 */
/* QueueReady = 0 or QueueReset = 1. True: stopped. False: dev->queue_stop_done comes. */
bool virtio_queue_disable(struct virtio_device *dev, unsigned index);
void virtio_queue_kick(struct virtio_device *dev, unsigned index);
/* The driver acknowledges these bits of InterruptStatus. */
void virtio_device_acknowledge(struct virtio_device *dev, uint32_t bits);
uint64_t virtio_device_read_config(struct virtio_device *dev, uint32_t offset, unsigned size);
void virtio_device_write_config(struct virtio_device *dev, uint32_t offset, unsigned size,
                                uint64_t value);

/*
 * For the worker; MMIO thread: stop looking at rings and wait for I/O in flight, keep the state.
 * `paused` is called on the MMIO thread when all of the device is quiet (possibly at once).
 */
void virtio_device_pause(struct virtio_device *dev, void (*paused)(struct virtio_device *dev));
void virtio_device_resume(struct virtio_device *dev);

#endif
