/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread's loop on one io_uring: backend I/O, file descriptors, timers and messages from other
 * threads, with one system call per turn. Before it sleeps it polls, for an adaptive time.
 *
 * A loop belongs to the thread that runs it. loop_post, loop_stop and the stats are for any thread;
 * everything else is for the owner (or for anybody before the owner's thread starts).
 */
#ifndef VIOD_EVENT_LOOP_H
#define VIOD_EVENT_LOOP_H

#include <liburing.h>
#include "clock.h"
#include "stats.h"
#include "types.h"

struct event_loop;

/*
 * Work that another thread hands to a loop. Never allocated per message: embed it. Posting it while
 * it is pending has no effect; once `run` was entered it may be posted again. All stores before
 * loop_post are visible to `run`.
 */
struct loop_work {
    void (*run)(struct loop_work *work);
    struct loop_work *next;
    atomic_bool pending;
};

/* One operation in flight on the ring. `done` gets the CQE's result; more = multishot goes on. */
struct loop_op {
    void (*done)(struct loop_op *op, int result, bool more);
};

/*
 * Something in memory to look at while the loop polls (a ring's index, the ioreq page). All
 * functions run in the loop's thread.
 */
struct loop_poller {
    /*
     * Looks and serves. True if there was work. Bounded: leaves the rest for the next turn. Before it
     * serves what it has found, it calls loop_found.
     */
    bool (*poll)(struct loop_poller *poller);
    /* About to sleep: ask the other side for notifications, look again. True: work is there. */
    bool (*arm)(struct loop_poller *poller);
    /* Awake, or arm found work somewhere: notifications are not needed now. */
    void (*disarm)(struct loop_poller *poller);
    struct loop_poller *next; /* the loop's */
    /* Worth spinning for? A loop spins only while one of its pollers is hot. Set by the owner. */
    bool hot;
    bool armed; /* the loop's */
};

struct loop_config {
    unsigned entries;         /* SQ entries: a power of 2 */
    uint32_t poll_max_ns;     /* longest adaptive poll before sleeping; 0 = never poll */
    const uint8_t *allowed_ops; /* IORING_OP_* allowed on this ring; NULL: no restriction */
    size_t n_allowed_ops;
    struct thread_stats *stats; /* where to count, borrowed; NULL: the loop's own */
};

/*
 * With single_issuer rings the creating thread must be the running one: create it in that thread.
 * -errno of io_uring_setup.
 */
int event_loop_create(const struct loop_config *config, struct event_loop **out);
void event_loop_destroy(struct event_loop *loop);

/* Runs until loop_stop. 0 or -errno. */
int event_loop_run(struct event_loop *loop);
/* One turn; sleeps at most timeout_ns (0: not at all, -1: as long as it takes). 1 if it did work. */
int event_loop_turn(struct event_loop *loop, int64_t timeout_ns);
void loop_stop(struct event_loop *loop);

/*
 * The next thing is sure to come soon (the answer to an interrupt): poll for it as long as is allowed, if
 * polling pays at all. When something has come, that is over.
 */
void loop_expect(struct event_loop *loop);

/* A poller has found work, and does it now: what is between its looks is no work until then. */
void loop_found(struct event_loop *loop);

/* Is it worth waiting for something in memory? Not if the other side needs this very CPU. */
bool loop_polling_pays(const struct event_loop *loop);

void loop_post(struct event_loop *loop, struct loop_work *work);

/*
 * A submission entry whose completion calls op->done. Never NULL: submits when the queue is full. It
 * reaches the kernel at the end of the turn. The caller prepares it with io_uring_prep_*, which
 * leaves user_data alone only in this order: sqe = loop_sqe(loop); prep(sqe); loop_sqe_op(sqe, op).
 */
struct io_uring_sqe *loop_sqe(struct event_loop *loop);
void loop_sqe_op(struct io_uring_sqe *sqe, struct loop_op *op);
/* The ring, to register buffers and files on. */
struct io_uring *loop_ring(struct event_loop *loop);

/*
 * For a poller, while it polls: it expects more to submit very soon. What is prepared waits for the
 * next turn, if all goes as usual; the poller returns true, so that there is one. loop_unsubmitted:
 * how many entries wait.
 */
void loop_submit_later(struct event_loop *loop);
/* What was prepared in this turn takes the host long: no waiting for more. */
void loop_submit_now(struct event_loop *loop);
unsigned loop_unsubmitted(const struct event_loop *loop);

void loop_add_poller(struct event_loop *loop, struct loop_poller *poller);
void loop_remove_poller(struct event_loop *loop, struct loop_poller *poller);

/* Calls `ready` each time the descriptor becomes readable, until removed. */
struct loop_fd {
    struct loop_op op; /* the loop's */
    void (*ready)(struct loop_fd *fd);
    void (*removed)(struct loop_fd *fd); /* after loop_remove_fd: the loop has let go; may be NULL */
    struct event_loop *loop;             /* the loop's */
    int fd;
    /* Watch only while the loop sleeps: for a descriptor whose cause a poller serves anyway. */
    bool only_asleep;
    bool polling, removing, in_ready; /* the loop's */
    struct loop_fd *next;   /* the loop's */
};
void loop_add_fd(struct event_loop *loop, struct loop_fd *fd);
/* `fd` stays the loop's until `removed` is called (possibly from within this call). */
void loop_remove_fd(struct loop_fd *fd);

/* A one-shot timer. Setting it again moves it. */
struct loop_timer {
    void (*expired)(struct loop_timer *timer);
    struct loop_timer *next;
    int64_t due_ns; /* CLOCK_MONOTONIC; 0 = not set */
};
void loop_set_timer(struct event_loop *loop, struct loop_timer *timer, int64_t delay_ns);
void loop_cancel_timer(struct event_loop *loop, struct loop_timer *timer);

const struct thread_stats *loop_stats(const struct event_loop *loop);

#endif
