/* SPDX-License-Identifier: Apache-2.0 */
#include "event_loop.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CQES_PER_TURN 64u
#define RESTRICTIONS_MAX 48u
/* The first step of the adaptive poll; it doubles from there. */
#define POLL_START_NS 50000
/* Misses in a row, at the full window, after which polling does not pay here. */
#define POLL_MISSES_MAX 4u
#define POLL_BACKOFF_MIN 64u
/* Between two looks, which take a microsecond or two: somebody else had this CPU meanwhile. */
#define PREEMPTED_NS 50000
#define POLL_BACKOFF_MAX 4096u

struct event_loop {
    struct io_uring ring;
    _Atomic(struct loop_work *) inbox; /* newest first */
    atomic_bool sleeping;
    atomic_bool stopping;
    int event_fd;
    uint64_t event_value; /* where the ring reads event_fd into */
    struct loop_op event_op;
    bool event_armed;
    bool submit_later, submit_now; /* asked for in this turn */
    struct loop_poller *pollers;
    struct loop_timer *timers;
    int64_t poll_max_ns, poll_window_ns, poll_since_ns;
    int64_t poll_seen_ns;  /* the last look, if nothing was there; or 0 */
    bool poll_preempted;   /* since poll_since_ns */
    /* What was said to come soon: to be polled for as long as is allowed; said in this turn, for the next. */
    bool expecting, expects_next;
    unsigned poll_missed_in_row, poll_backoff, poll_backoff_next; /* backoff: in sleeps */
    struct thread_stats own_stats;
    struct thread_stats *stats;
    struct loop_fd *asleep_fds;
};

static void count_one(_Atomic uint64_t *counter)
{
    stat_add(counter, 1);
}

/* liburing 2.3 declares these two calls and does not export them. */
static int ring_register(struct io_uring *ring, unsigned opcode, const void *arg, unsigned n)
{
    return syscall(__NR_io_uring_register, ring->ring_fd, opcode, arg, n) < 0 ? -errno : 0;
}

/*
 * io_uring carries out operations that no seccomp filter sees; so a ring that is handed to code that
 * a guest may subvert can do what its backends need, and nothing else.
 */
static int restrict_ring(struct io_uring *ring, const struct loop_config *config)
{
    struct io_uring_restriction res[RESTRICTIONS_MAX];
    /* The loop's own. */
    static const uint8_t own_ops[] = {IORING_OP_READ, IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE,
                                      IORING_OP_ASYNC_CANCEL};
    static const uint8_t registers[] = {IORING_REGISTER_BUFFERS2, IORING_REGISTER_BUFFERS_UPDATE,
                                        IORING_UNREGISTER_BUFFERS, IORING_REGISTER_ENABLE_RINGS};
    unsigned n = 0;

    if (config->n_allowed_ops + ARRAY_SIZE(own_ops) + ARRAY_SIZE(registers) + 1 > RESTRICTIONS_MAX)
        return -EINVAL;
    memset(res, 0, sizeof(res));
    for (size_t i = 0; i < ARRAY_SIZE(own_ops); i++) {
        res[n].opcode = IORING_RESTRICTION_SQE_OP;
        res[n++].sqe_op = own_ops[i];
    }
    for (size_t i = 0; i < config->n_allowed_ops; i++) {
        res[n].opcode = IORING_RESTRICTION_SQE_OP;
        res[n++].sqe_op = config->allowed_ops[i];
    }
    for (size_t i = 0; i < ARRAY_SIZE(registers); i++) {
        res[n].opcode = IORING_RESTRICTION_REGISTER_OP;
        res[n++].register_op = registers[i];
    }
    res[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    res[n++].sqe_flags = IOSQE_ASYNC | IOSQE_IO_LINK;
    return ring_register(ring, IORING_REGISTER_RESTRICTIONS, res, n);
}

static void woken(struct loop_op *op, int result, bool more)
{
    struct event_loop *loop = container_of(op, struct event_loop, event_op);

    (void)result;
    (void)more;
    loop->event_armed = false;
}

int event_loop_create(const struct loop_config *config, struct event_loop **out)
{
    /* Completions are collected when we ask, in one call with the submission: Linux 6.1. */
    unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                     IORING_SETUP_TASKRUN_FLAG;
    unsigned disabled = config->allowed_ops != NULL ? IORING_SETUP_R_DISABLED : 0;
    struct event_loop *loop = calloc(1, sizeof(*loop));
    int ret;

    if (loop == NULL)
        return -ENOMEM;
    loop->event_fd = eventfd(0, EFD_CLOEXEC);
    if (loop->event_fd < 0) {
        ret = -errno;
        goto fail_free;
    }
    ret = io_uring_queue_init(config->entries, &loop->ring, flags | disabled);
    if (ret == -EINVAL)
        ret = io_uring_queue_init(config->entries, &loop->ring, disabled);
    if (ret < 0)
        goto fail_close;
    if (disabled != 0) {
        ret = restrict_ring(&loop->ring, config);
        if (ret == 0)
            ret = ring_register(&loop->ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
        if (ret < 0)
            goto fail_ring;
    }
    loop->stats = config->stats != NULL ? config->stats : &loop->own_stats;
    loop->event_op.done = woken;
    loop->poll_max_ns = config->poll_max_ns;
    loop->poll_backoff_next = POLL_BACKOFF_MIN;
    *out = loop;
    return 0;
fail_ring:
    io_uring_queue_exit(&loop->ring);
fail_close:
    close(loop->event_fd);
fail_free:
    free(loop);
    return ret;
}

void event_loop_destroy(struct event_loop *loop)
{
    if (loop == NULL)
        return;
    io_uring_queue_exit(&loop->ring);
    close(loop->event_fd);
    free(loop);
}

void loop_post(struct event_loop *loop, struct loop_work *work)
{
    struct loop_work *head;

    if (atomic_exchange_explicit(&work->pending, true, memory_order_acq_rel))
        return;
    head = atomic_load_explicit(&loop->inbox, memory_order_relaxed);
    do {
        work->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&loop->inbox, &head, work,
                                                    memory_order_seq_cst, memory_order_relaxed));
    /* Pairs with the loop's "sleeping = true, then look at the inbox". */
    if (atomic_exchange(&loop->sleeping, false)) {
        uint64_t one = 1;

        (void)!write(loop->event_fd, &one, sizeof(one));
    }
}

void loop_found(struct event_loop *loop)
{
    if (loop->poll_since_ns == 0 || loop->poll_seen_ns == 0)
        return;
    if (monotonic_ns() - loop->poll_seen_ns > PREEMPTED_NS)
        loop->poll_preempted = true;
    loop->poll_seen_ns = 0; /* what follows is work */
}

static bool run_inbox(struct event_loop *loop)
{
    struct loop_work *work, *next, *first = NULL;

    if (atomic_load_explicit(&loop->inbox, memory_order_relaxed) == NULL)
        return false;
    loop_found(loop);
    work = atomic_exchange_explicit(&loop->inbox, NULL, memory_order_acquire);
    for (; work != NULL; work = next) { /* oldest first */
        next = work->next;
        work->next = first;
        first = work;
    }
    for (work = first; work != NULL; work = next) {
        next = work->next;
        /* Not a store: who found it still set did not post, and what it did before is to be seen. */
        (void)atomic_exchange_explicit(&work->pending, false, memory_order_acq_rel);
        work->run(work);
    }
    return true;
}

static void wake(struct event_loop *loop)
{
    if (atomic_exchange(&loop->sleeping, false)) {
        uint64_t one = 1;

        (void)!write(loop->event_fd, &one, sizeof(one));
    }
}

void loop_stop(struct event_loop *loop)
{
    atomic_store(&loop->stopping, true);
    wake(loop);
}

unsigned loop_unsubmitted(const struct event_loop *loop)
{
    return io_uring_sq_ready(&loop->ring);
}

void loop_submit_later(struct event_loop *loop)
{
    loop->submit_later = true;
}

void loop_submit_now(struct event_loop *loop)
{
    loop->submit_now = true;
}

struct io_uring *loop_ring(struct event_loop *loop)
{
    return &loop->ring;
}

struct io_uring_sqe *loop_sqe(struct event_loop *loop)
{
    struct io_uring_sqe *sqe;

    while ((sqe = io_uring_get_sqe(&loop->ring)) == NULL) {
        count_one(&loop->stats->syscalls);
        (void)io_uring_submit(&loop->ring);
    }
    io_uring_sqe_set_data(sqe, NULL);
    return sqe;
}

void loop_sqe_op(struct io_uring_sqe *sqe, struct loop_op *op)
{
    io_uring_sqe_set_data(sqe, op);
}

static bool reap(struct event_loop *loop)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    struct {
        struct loop_op *op;
        int res;
        unsigned flags;
    } done[CQES_PER_TURN];

    io_uring_for_each_cqe(&loop->ring, head, cqe)
    {
        done[n].op = io_uring_cqe_get_data(cqe);
        done[n].res = cqe->res;
        done[n].flags = cqe->flags;
        if (++n == CQES_PER_TURN)
            break;
    }
    if (n == 0)
        return false;
    loop_found(loop);
    io_uring_cq_advance(&loop->ring, n);
    for (unsigned i = 0; i < n; i++)
        if (done[i].op != NULL)
            done[i].op->done(done[i].op, done[i].res, (done[i].flags & IORING_CQE_F_MORE) != 0);
    return true;
}

/* What is prepared goes to the kernel, and what the kernel has finished comes back: one call. */
static void submit(struct event_loop *loop)
{
    unsigned flags = IO_URING_READ_ONCE(*loop->ring.sq.kflags);

    if ((io_uring_sq_ready(&loop->ring) > 0 && (!loop->submit_later || loop->submit_now)) ||
        (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) {
        count_one(&loop->stats->syscalls);
        (void)io_uring_submit_and_get_events(&loop->ring);
    }
}

static bool run_timers(struct event_loop *loop)
{
    bool progress = false;
    int64_t now;

    if (loop->timers == NULL)
        return false;
    now = monotonic_ns();
    while (loop->timers != NULL && loop->timers->due_ns <= now) {
        struct loop_timer *timer = loop->timers;

        loop->timers = timer->next;
        timer->due_ns = 0;
        timer->expired(timer);
        progress = true;
    }
    return progress;
}

void loop_cancel_timer(struct event_loop *loop, struct loop_timer *timer)
{
    if (timer->due_ns == 0)
        return;
    for (struct loop_timer **p = &loop->timers; *p != NULL; p = &(*p)->next)
        if (*p == timer) {
            *p = timer->next;
            break;
        }
    timer->due_ns = 0;
}

void loop_set_timer(struct event_loop *loop, struct loop_timer *timer, int64_t delay_ns)
{
    struct loop_timer **p = &loop->timers;

    loop_cancel_timer(loop, timer);
    timer->due_ns = MAX(monotonic_ns() + delay_ns, 1);
    while (*p != NULL && (*p)->due_ns <= timer->due_ns)
        p = &(*p)->next;
    timer->next = *p;
    *p = timer;
}

void loop_add_poller(struct event_loop *loop, struct loop_poller *poller)
{
    struct loop_poller **p = &loop->pollers;

    while (*p != NULL)
        p = &(*p)->next;
    poller->next = NULL;
    poller->armed = false;
    *p = poller;
}

void loop_remove_poller(struct event_loop *loop, struct loop_poller *poller)
{
    for (struct loop_poller **p = &loop->pollers; *p != NULL; p = &(*p)->next)
        if (*p == poller) {
            *p = poller->next;
            return;
        }
}

static void watch_fd(struct loop_fd *fd)
{
    struct io_uring_sqe *sqe = loop_sqe(fd->loop);

    io_uring_prep_poll_add(sqe, fd->fd, POLLIN);
    loop_sqe_op(sqe, &fd->op);
    fd->polling = true;
}

static void fd_polled(struct loop_op *op, int result, bool more)
{
    struct loop_fd *fd = container_of(op, struct loop_fd, op);

    (void)more;
    fd->polling = false;
    if (!fd->removing && result >= 0) {
        fd->in_ready = true;
        fd->ready(fd);
        fd->in_ready = false;
    }
    if (fd->removing) {
        if (fd->removed != NULL)
            fd->removed(fd);
    } else if (!fd->only_asleep && result >= 0) {
        watch_fd(fd); /* an error is final: watching again would find it again, for ever */
    }
}

void loop_add_fd(struct event_loop *loop, struct loop_fd *fd)
{
    fd->loop = loop;
    fd->op.done = fd_polled;
    fd->removing = false;
    fd->polling = false;
    fd->in_ready = false;
    if (fd->only_asleep) {
        fd->next = loop->asleep_fds;
        loop->asleep_fds = fd;
    } else {
        watch_fd(fd);
    }
}

void loop_remove_fd(struct loop_fd *fd)
{
    struct io_uring_sqe *sqe;

    if (fd->removing)
        return;
    fd->removing = true;
    for (struct loop_fd **p = &fd->loop->asleep_fds; *p != NULL; p = &(*p)->next)
        if (*p == fd) {
            *p = fd->next;
            break;
        }
    if (fd->in_ready)
        return; /* fd_polled goes on */
    if (!fd->polling) {
        if (fd->removed != NULL)
            fd->removed(fd);
        return;
    }
    sqe = loop_sqe(fd->loop);
    io_uring_prep_poll_remove(sqe, (__u64)(uintptr_t)&fd->op);
    loop_sqe_op(sqe, NULL);
}

static bool serve(struct event_loop *loop)
{
    bool progress;

    count_one(&loop->stats->turns);
    loop->submit_later = loop->submit_now = false;
    progress = run_inbox(loop);
    progress |= reap(loop);
    for (struct loop_poller *p = loop->pollers, *next; p != NULL; p = next) {
        next = p->next; /* poll may remove itself */
        progress |= p->poll(p);
    }
    progress |= run_timers(loop);
    submit(loop);
    if (io_uring_cq_ready(&loop->ring) > 0)
        progress = true; /* completed at once: go round again before thinking of sleep */
    return progress;
}

/* True: something in memory to watch is worth a CPU for a little longer. */
static bool keep_polling(struct event_loop *loop)
{
    int64_t now, window = loop->expecting ? loop->poll_max_ns : loop->poll_window_ns;
    bool hot = false;

    if (window == 0)
        return false;
    for (struct loop_poller *p = loop->pollers; p != NULL; p = p->next)
        hot |= p->hot;
    if (!hot)
        return false;
    now = monotonic_ns();
    if (loop->poll_since_ns == 0) {
        loop->poll_since_ns = now;
        loop->poll_preempted = false;
    } else if (now - loop->poll_seen_ns > PREEMPTED_NS) {
        loop->poll_preempted = true;
    }
    loop->poll_seen_ns = now;
    if (now - loop->poll_since_ns < window)
        return true;
    count_one(&loop->stats->poll_misses);
    if (window == loop->poll_max_ns)
        loop->poll_missed_in_row++;
    loop->expecting = false;
    return false;
}

/*
 * Where the guest needs this very CPU to go on, polling meets nothing, however short the sleeps, or
 * only what the guest did when the hypervisor took the CPU from the poller at last: after a few of these
 * in a row it is given up for a number of sleeps, which doubles each time.
 */
static void give_up_polling(struct event_loop *loop)
{
    loop->poll_missed_in_row = 0;
    loop->poll_window_ns = 0;
    loop->poll_backoff = loop->poll_backoff_next;
    loop->poll_backoff_next = MIN(loop->poll_backoff_next * 2, POLL_BACKOFF_MAX);
}

static void end_poll(struct event_loop *loop)
{
    loop->poll_since_ns = 0;
    if (loop->poll_preempted) {
        count_one(&loop->stats->poll_misses);
        if (++loop->poll_missed_in_row >= POLL_MISSES_MAX)
            give_up_polling(loop);
    } else {
        count_one(&loop->stats->poll_hits);
        loop->poll_missed_in_row = 0;
        loop->poll_backoff_next = POLL_BACKOFF_MIN;
    }
}

/*
 * The window doubles when a sleep was so short that polling would have met its end, and halves, soon
 * to nothing, when work is rarer than the longest poll allowed: an idle loop costs nothing.
 */
static void adapt(struct event_loop *loop, int64_t slept_ns)
{
    if (loop->poll_max_ns == 0)
        return;
    if (loop->poll_backoff > 0) {
        loop->poll_backoff--;
        return;
    }
    if (loop->poll_missed_in_row >= POLL_MISSES_MAX) {
        give_up_polling(loop);
        return;
    }
    if (slept_ns > loop->poll_max_ns) {
        loop->poll_window_ns = loop->poll_window_ns > POLL_START_NS ? loop->poll_window_ns / 2 : 0;
        return;
    }
    loop->poll_window_ns =
        MIN(MAX(loop->poll_window_ns * 2, (int64_t)POLL_START_NS), loop->poll_max_ns);
}

void loop_expect(struct event_loop *loop)
{
    loop->expects_next = loop->poll_backoff == 0;
}

bool loop_polling_pays(const struct event_loop *loop)
{
    return loop->poll_max_ns > 0 && loop->poll_backoff == 0;
}

static void disarm(struct event_loop *loop)
{
    for (struct loop_poller *p = loop->pollers; p != NULL; p = p->next)
        if (p->armed) {
            p->armed = false;
            p->disarm(p);
        }
}

static void arm_event(struct event_loop *loop)
{
    struct io_uring_sqe *sqe;

    if (loop->event_armed)
        return;
    sqe = loop_sqe(loop);
    io_uring_prep_read(sqe, loop->event_fd, &loop->event_value, sizeof(loop->event_value), 0);
    loop_sqe_op(sqe, &loop->event_op);
    loop->event_armed = true;
}

static void sleep_until_work(struct event_loop *loop, int64_t timeout_ns)
{
    struct __kernel_timespec ts;
    struct io_uring_cqe *cqe;
    bool work = false;
    int64_t before;
    int ret;

    for (struct loop_poller *p = loop->pollers; p != NULL && !work; p = p->next) {
        p->armed = true;
        work = p->arm(p);
    }
    arm_event(loop);
    for (struct loop_fd *fd = loop->asleep_fds; fd != NULL; fd = fd->next)
        if (!fd->polling)
            watch_fd(fd);
    /* From here on a post writes to event_fd. Pairs with the exchange in loop_post. A real barrier: an
     * emulated Arm (QEMU on x86) lets a load pass an earlier store, even if both are seq_cst. */
    atomic_store_explicit(&loop->sleeping, true, memory_order_relaxed);
    full_barrier();
    if (work || atomic_load(&loop->inbox) != NULL || atomic_load(&loop->stopping))
        goto out;
    before = monotonic_ns();
    if (loop->timers != NULL) {
        int64_t left = MAX(loop->timers->due_ns - before, 0);

        timeout_ns = timeout_ns < 0 ? left : MIN(left, timeout_ns);
    }
    count_one(&loop->stats->syscalls);
    count_one(&loop->stats->sleeps);
    if (timeout_ns < 0) {
        ret = io_uring_submit_and_wait(&loop->ring, 1);
    } else {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
        ret = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &ts, NULL);
    }
    (void)ret; /* -EINTR, -ETIME: the next turn looks at everything anyway */
    adapt(loop, monotonic_ns() - before);
out:
    loop->expecting = false;
    atomic_store(&loop->sleeping, false);
    disarm(loop);
    loop->poll_since_ns = 0;
}

int event_loop_turn(struct event_loop *loop, int64_t timeout_ns)
{
    if (serve(loop))
        return 1;
    if (timeout_ns == 0)
        return 0;
    sleep_until_work(loop, timeout_ns);
    return serve(loop) ? 1 : 0;
}

int event_loop_run(struct event_loop *loop)
{
    while (!atomic_load_explicit(&loop->stopping, memory_order_relaxed)) {
        if (serve(loop)) {
            if (loop->poll_since_ns != 0)
                end_poll(loop);
            /* When it has come, how long to poll for the next thing is what was learned. */
            loop->expecting = loop->expects_next;
            loop->expects_next = false;
            continue;
        }
        if (keep_polling(loop))
            cpu_relax();
        else
            sleep_until_work(loop, -1);
    }
    return 0;
}

const struct thread_stats *loop_stats(const struct event_loop *loop)
{
    return loop->stats;
}
