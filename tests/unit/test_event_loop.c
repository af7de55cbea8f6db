/* SPDX-License-Identifier: Apache-2.0 */
/* One thread's loop: messages, operations, descriptors, timers, pollers, sleep. */
#include "unit.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "event_loop.h"

#define MS INT64_C(1000000)

static struct event_loop *make(void)
{
    const struct loop_config config = {.entries = 8};
    struct event_loop *loop;

    assert_int_equal(event_loop_create(&config, &loop), 0);
    return loop;
}

static void settle(struct event_loop *loop)
{
    for (unsigned i = 0; event_loop_turn(loop, 0) != 0; i++)
        assert_true(i < 1000);
}

/* ---- messages ---- */

struct message {
    struct loop_work work;
    struct event_loop *loop;
    _Atomic unsigned runs;
    unsigned again;
    unsigned order;
};

static unsigned sequence;

static void run_message(struct loop_work *work)
{
    struct message *message = container_of(work, struct message, work);

    atomic_fetch_add(&message->runs, 1);
    message->order = ++sequence;
    if (message->again > 0) {
        message->again--;
        loop_post(message->loop, work);
    }
}

static void test_messages_in_order_and_once(void **state)
{
    struct event_loop *loop = make();
    struct message messages[5];

    (void)state;
    memset(messages, 0, sizeof(messages));
    sequence = 0;
    for (unsigned i = 0; i < 5; i++) {
        messages[i].work.run = run_message;
        messages[i].loop = loop;
    }
    for (unsigned k = 0; k < 3; k++) {
        for (unsigned i = 0; i < 5; i++)
            loop_post(loop, &messages[i].work);
    }
    messages[2].again = 4;
    settle(loop);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(messages[i].runs, i == 2 ? 5 : 1);
        if (i != 2)
            assert_int_equal(messages[i].order, i + 1);
    }
    assert_int_equal(event_loop_turn(loop, 0), 0);
    event_loop_destroy(loop);
    event_loop_destroy(NULL);
}

struct poster {
    struct event_loop *loop;
    struct message message;
    unsigned posts;
    pthread_t thread;
};

static void *post_many(void *arg)
{
    struct poster *poster = arg;

    for (unsigned i = 0; i < poster->posts; i++) {
        /* Each post is seen: by a run that begins after it. */
        unsigned before = atomic_load(&poster->message.runs);

        loop_post(poster->loop, &poster->message.work);
        while (atomic_load(&poster->message.runs) == before)
            cpu_relax();
    }
    return NULL;
}

/* A loop that sleeps whenever it can, and four threads that wake it. No wake-up is lost. */
static void test_messages_from_other_threads_wake_the_loop(void **state)
{
    struct event_loop *loop = make();
    struct poster posters[4];
    unsigned running;

    (void)state;
    memset(posters, 0, sizeof(posters));
    for (unsigned i = 0; i < 4; i++) {
        posters[i].loop = loop;
        posters[i].posts = 5000;
        posters[i].message.loop = loop;
        posters[i].message.work.run = run_message;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    do {
        event_loop_turn(loop, 5000 * MS);
        running = 0;
        for (unsigned i = 0; i < 4; i++)
            running += atomic_load(&posters[i].message.runs) < 5000;
    } while (running > 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(posters[i].thread, NULL);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(posters[i].message.runs, 5000);
    event_loop_destroy(loop);
}

/* ---- operations ---- */

struct operation {
    struct loop_op op;
    int result;
    unsigned done;
};

static void operation_done(struct loop_op *op, int result, bool more)
{
    struct operation *operation = container_of(op, struct operation, op);

    assert_false(more);
    operation->result = result;
    operation->done++;
}

static void test_more_operations_than_entries(void **state)
{
    static struct operation operations[500];
    struct event_loop *loop = make();

    (void)state;
    memset(operations, 0, sizeof(operations));
    for (unsigned i = 0; i < 500; i++) {
        struct io_uring_sqe *sqe = loop_sqe(loop);

        assert_non_null(sqe);
        io_uring_prep_nop(sqe);
        operations[i].op.done = operation_done;
        loop_sqe_op(sqe, &operations[i].op);
    }
    settle(loop);
    for (unsigned i = 0; i < 500; i++) {
        assert_int_equal(operations[i].done, 1);
        assert_int_equal(operations[i].result, 0);
    }
    assert_non_null(loop_ring(loop));
    event_loop_destroy(loop);
}

/* A restricted ring does what its backends said, and nothing else. */
static void test_operations_that_are_not_allowed(void **state)
{
    static const uint8_t allowed[] = {IORING_OP_WRITE};
    const struct loop_config config = {.entries = 8, .allowed_ops = allowed, .n_allowed_ops = 1};
    static const uint8_t too_many[64];
    const struct loop_config greedy = {
        .entries = 8, .allowed_ops = too_many, .n_allowed_ops = sizeof(too_many)};
    struct operation nop = {.op.done = operation_done}, write_op = {.op.done = operation_done};
    struct event_loop *loop;
    struct io_uring_sqe *sqe;
    uint64_t one = 1;
    int fd = eventfd(0, 0);

    (void)state;
    assert_int_equal(event_loop_create(&greedy, &loop), -EINVAL);
    assert_int_equal(event_loop_create(&config, &loop), 0);
    sqe = loop_sqe(loop);
    io_uring_prep_write(sqe, fd, &one, sizeof(one), 0);
    loop_sqe_op(sqe, &write_op.op);
    for (unsigned i = 0; i < 100 && write_op.done == 0; i++)
        event_loop_turn(loop, 10 * MS);
    assert_int_equal(write_op.done, 1);
    assert_int_equal(write_op.result, 8);
    sqe = loop_sqe(loop);
    io_uring_prep_nop(sqe);
    loop_sqe_op(sqe, &nop.op);
    settle(loop);
    assert_int_equal(nop.done, 1);
    assert_int_equal(nop.result, -EACCES);
    event_loop_destroy(loop);
    close(fd);
}

/* ---- descriptors ---- */

struct watch {
    struct loop_fd fd;
    unsigned ready, removed;
    bool remove_when_ready;
};

static void watch_ready(struct loop_fd *fd)
{
    struct watch *watch = container_of(fd, struct watch, fd);
    uint64_t value;

    assert_int_equal(read(fd->fd, &value, sizeof(value)), 8);
    watch->ready++;
    if (watch->remove_when_ready)
        loop_remove_fd(fd);
}

static void watch_removed(struct loop_fd *fd)
{
    container_of(fd, struct watch, fd)->removed++;
}

static void signal_fd(int fd)
{
    uint64_t one = 1;

    assert_int_equal(write(fd, &one, sizeof(one)), 8);
}

static void watch_one(bool only_asleep, bool from_ready)
{
    struct event_loop *loop = make();
    struct watch *watch = calloc(1, sizeof(*watch));
    int fd = eventfd(0, EFD_NONBLOCK);

    watch->fd = (struct loop_fd){
        .fd = fd, .ready = watch_ready, .removed = watch_removed, .only_asleep = only_asleep};
    loop_add_fd(loop, &watch->fd);
    for (unsigned i = 1; i <= 5; i++) {
        /* Watched only while it sleeps: then something must have been there to wake it. */
        signal_fd(fd);
        event_loop_turn(loop, 1000 * MS);
        settle(loop);
        assert_int_equal(watch->ready, i);
        event_loop_turn(loop, 1);
        assert_int_equal(watch->ready, i);
    }
    watch->remove_when_ready = from_ready;
    if (from_ready) {
        signal_fd(fd);
        event_loop_turn(loop, 1000 * MS);
        settle(loop);
        assert_int_equal(watch->ready, 6);
    } else {
        loop_remove_fd(&watch->fd);
        loop_remove_fd(&watch->fd);
    }
    for (unsigned i = 0; i < 10 && watch->removed == 0; i++)
        event_loop_turn(loop, 10 * MS);
    settle(loop);
    assert_int_equal(watch->removed, 1);
    signal_fd(fd);
    event_loop_turn(loop, MS);
    assert_int_equal(watch->ready, from_ready ? 6 : 5);
    assert_int_equal(watch->removed, 1);
    event_loop_destroy(loop);
    close(fd);
    free(watch);
}

static void test_descriptors(void **state)
{
    (void)state;
    watch_one(false, false);
    watch_one(false, true);
    watch_one(true, false);
    watch_one(true, true);
}

/* The owner may free its structure in `removed`: nothing is looked at afterwards. */
static void free_watch(struct loop_fd *fd)
{
    close(fd->fd);
    free(container_of(fd, struct watch, fd));
}

static void test_descriptor_freed_when_removed(void **state)
{
    (void)state;
    for (unsigned variant = 0; variant < 4; variant++) {
        struct event_loop *loop = make();
        struct watch *watch = calloc(1, sizeof(*watch));
        int fd = eventfd(0, EFD_NONBLOCK);

        watch->fd = (struct loop_fd){.fd = fd,
                                     .ready = watch_ready,
                                     .removed = free_watch,
                                     .only_asleep = (variant & 1) != 0};
        watch->remove_when_ready = (variant & 2) != 0;
        loop_add_fd(loop, &watch->fd);
        if (watch->remove_when_ready) {
            signal_fd(fd);
            event_loop_turn(loop, 1000 * MS);
        } else {
            loop_remove_fd(&watch->fd);
        }
        for (unsigned i = 0; i < 5; i++)
            event_loop_turn(loop, MS);
        event_loop_destroy(loop);
    }
}

/* ---- timers ---- */

struct alarm_clock {
    struct loop_timer timer;
    unsigned expired, order;
    struct event_loop *again;
};

static void alarm_expired(struct loop_timer *timer)
{
    struct alarm_clock *alarm = container_of(timer, struct alarm_clock, timer);

    alarm->expired++;
    alarm->order = ++sequence;
    if (alarm->again != NULL && alarm->expired < 3)
        loop_set_timer(alarm->again, timer, 0);
}

static void test_timers(void **state)
{
    struct event_loop *loop = make();
    struct alarm_clock alarms[5];
    int64_t start = monotonic_ns();

    (void)state;
    sequence = 0;
    memset(alarms, 0, sizeof(alarms));
    for (unsigned i = 0; i < 5; i++)
        alarms[i].timer.expired = alarm_expired;
    loop_set_timer(loop, &alarms[0].timer, 30 * MS);
    loop_set_timer(loop, &alarms[1].timer, 10 * MS);
    loop_set_timer(loop, &alarms[2].timer, 20 * MS);
    loop_set_timer(loop, &alarms[3].timer, 1 * MS);
    loop_set_timer(loop, &alarms[4].timer, 5 * MS);
    loop_cancel_timer(loop, &alarms[3].timer);
    loop_cancel_timer(loop, &alarms[3].timer);
    loop_set_timer(loop, &alarms[4].timer, 40 * MS); /* moved */
    for (unsigned i = 0; i < 1000 && alarms[4].expired == 0; i++)
        event_loop_turn(loop, -1);
    assert_true(monotonic_ns() - start >= 40 * MS);
    assert_int_equal(alarms[1].order, 1);
    assert_int_equal(alarms[2].order, 2);
    assert_int_equal(alarms[0].order, 3);
    assert_int_equal(alarms[4].order, 4);
    assert_int_equal(alarms[3].expired, 0);
    alarms[3].again = loop;
    loop_set_timer(loop, &alarms[3].timer, 0);
    settle(loop);
    assert_int_equal(alarms[3].expired, 3);
    event_loop_destroy(loop);
}

static void test_turn_sleeps_no_longer_than_asked(void **state)
{
    struct event_loop *loop = make();
    int64_t start = monotonic_ns();

    (void)state;
    assert_int_equal(event_loop_turn(loop, 20 * MS), 0);
    assert_true(monotonic_ns() - start >= 15 * MS);
    assert_true(monotonic_ns() - start < 2000 * MS);
    assert_int_equal(atomic_load(&loop_stats(loop)->sleeps), 1);
    event_loop_destroy(loop);
}

/* ---- pollers ---- */

struct test_poller {
    struct loop_poller poller;
    struct event_loop *loop;
    unsigned polls, work, arms, disarms;
    bool arm_finds_work, remove_self;
    atomic_bool flag;
    unsigned served;
};

static bool poller_poll(struct loop_poller *poller)
{
    struct test_poller *p = container_of(poller, struct test_poller, poller);

    p->polls++;
    if (p->remove_self) {
        loop_remove_poller(p->loop, poller);
        return true;
    }
    if (atomic_exchange(&p->flag, false)) {
        p->served++;
        return true;
    }
    if (p->work == 0)
        return false;
    p->work--;
    return true;
}

static bool poller_arm(struct loop_poller *poller)
{
    struct test_poller *p = container_of(poller, struct test_poller, poller);

    p->arms++;
    return p->arm_finds_work || atomic_load(&p->flag);
}

static void poller_disarm(struct loop_poller *poller)
{
    container_of(poller, struct test_poller, poller)->disarms++;
}

static struct test_poller poller_of(struct event_loop *loop)
{
    return (struct test_poller){
        .poller = {.poll = poller_poll, .arm = poller_arm, .disarm = poller_disarm}, .loop = loop};
}

struct patient {
    struct loop_poller poller;
    struct event_loop *loop;
    bool later, now;
};

static bool patient_poll(struct loop_poller *poller)
{
    struct patient *p = container_of(poller, struct patient, poller);

    if (p->later)
        loop_submit_later(p->loop);
    if (p->now)
        loop_submit_now(p->loop);
    return p->later;
}

/* What is prepared may wait for more, and what cannot wait takes the rest along. */
static void test_submission_that_waits(void **state)
{
    struct event_loop *loop = make();
    struct patient patient = {.poller.poll = patient_poll, .loop = loop};
    struct operation operation = {.op.done = operation_done};
    struct io_uring_sqe *sqe;

    (void)state;
    settle(loop);
    loop_add_poller(loop, &patient.poller);
    for (unsigned round = 1; round <= 2; round++) {
        patient.later = true;
        patient.now = false;
        sqe = loop_sqe(loop);
        io_uring_prep_nop(sqe);
        loop_sqe_op(sqe, &operation.op);
        for (unsigned i = 0; i < 10; i++)
            assert_int_equal(event_loop_turn(loop, 0), 1);
        assert_int_equal(loop_unsubmitted(loop), 1);
        assert_int_equal(operation.done, round - 1);
        patient.now = round == 1;
        patient.later = round == 1;
        event_loop_turn(loop, 0);
        assert_int_equal(loop_unsubmitted(loop), 0);
        event_loop_turn(loop, 0);
        assert_int_equal(operation.done, round);
    }
    loop_remove_poller(loop, &patient.poller);
    event_loop_destroy(loop);
}

static void test_pollers(void **state)
{
    struct event_loop *loop = make();
    struct test_poller a = poller_of(loop), b = poller_of(loop), c = poller_of(loop);
    int64_t start = monotonic_ns();

    (void)state;
    loop_add_poller(loop, &a.poller);
    loop_add_poller(loop, &b.poller);
    loop_add_poller(loop, &c.poller);
    a.work = 3;
    settle(loop);
    assert_int_equal(a.polls, 4);
    assert_int_equal(c.polls, 4);
    assert_int_equal(a.arms, 0);
    /* Before sleep all are armed, afterwards disarmed; if one finds work there is no sleep. */
    b.arm_finds_work = true;
    event_loop_turn(loop, 10000 * MS);
    assert_true(monotonic_ns() - start < 5000 * MS);
    assert_int_equal(a.arms, 1);
    assert_int_equal(a.disarms, 1);
    assert_int_equal(b.disarms, 1);
    assert_int_equal(c.arms, c.disarms);
    b.arm_finds_work = false;
    event_loop_turn(loop, 1);
    assert_int_equal(c.arms, c.disarms);
    assert_int_equal(a.arms, 2);
    /* One leaves from within its own poll. */
    b.remove_self = true;
    settle(loop);
    a.polls = b.polls = c.polls = 0;
    settle(loop);
    assert_int_equal(a.polls, 1);
    assert_int_equal(b.polls, 0);
    assert_int_equal(c.polls, 1);
    loop_remove_poller(loop, &b.poller);
    loop_remove_poller(loop, &a.poller);
    loop_remove_poller(loop, &c.poller);
    event_loop_destroy(loop);
}

/* ---- a running loop ---- */

struct runner {
    struct event_loop *loop;
    struct test_poller poller;
    struct loop_config config;
    pthread_t thread;
    pthread_barrier_t ready;
    int result;
};

static void *run_loop(void *arg)
{
    struct runner *runner = arg;

    assert_int_equal(event_loop_create(&runner->config, &runner->loop), 0);
    runner->poller = poller_of(runner->loop);
    runner->poller.poller.hot = true;
    loop_add_poller(runner->loop, &runner->poller.poller);
    pthread_barrier_wait(&runner->ready);
    runner->result = event_loop_run(runner->loop);
    return NULL;
}

static void run_start(struct runner *runner, uint32_t poll_max_ns)
{
    *runner = (struct runner){.config = {.entries = 8, .poll_max_ns = poll_max_ns}};
    pthread_barrier_init(&runner->ready, NULL, 2);
    assert_int_equal(pthread_create(&runner->thread, NULL, run_loop, runner), 0);
    pthread_barrier_wait(&runner->ready);
}

static void run_end(struct runner *runner)
{
    loop_stop(runner->loop);
    pthread_join(runner->thread, NULL);
    assert_int_equal(runner->result, 0);
    event_loop_destroy(runner->loop);
    pthread_barrier_destroy(&runner->ready);
}

static void test_stop_wakes_a_sleeping_loop(void **state)
{
    struct runner runner;

    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        run_start(&runner, 0);
        if (i % 2)
            usleep(1000);
        run_end(&runner);
    }
}

/* Sooner or later there is a tenth of a second without a turn, however busy the machine is. */
static void expect_sleep(struct event_loop *loop)
{
    uint64_t turns;
    unsigned tries = 0;

    do {
        assert_true(tries++ < 100);
        turns = stat_get(&loop_stats(loop)->turns);
        usleep(100000);
    } while (stat_get(&loop_stats(loop)->turns) != turns);
}

/* Idle: the loop sleeps and nothing wakes it. */
static void test_idle_loop_makes_no_turn(void **state)
{
    struct runner runner;

    (void)state;
    run_start(&runner, 100000);
    expect_sleep(runner.loop);
    run_end(&runner);
}

struct preempted {
    struct loop_poller poller;
    struct event_loop *loop;
    unsigned polls;
};

/* Work is there whenever this thread has not run for a while, and never else. */
static bool preempted_poll(struct loop_poller *poller)
{
    struct preempted *p = container_of(poller, struct preempted, poller);
    int64_t until = monotonic_ns() + 200000;

    if (p->polls++ == 0) {
        loop_expect(p->loop);
        return true;
    }
    if (p->polls > 1000 || !loop_polling_pays(p->loop)) {
        loop_stop(p->loop);
        return false;
    }
    if (p->polls % 3 != 0)
        return false;
    while (monotonic_ns() < until)
        ;
    loop_found(p->loop);
    loop_expect(p->loop);
    return true;
}

static bool never_arm(struct loop_poller *poller)
{
    (void)poller;
    return true;
}

static void ignore(struct loop_poller *poller) { (void)poller; }

/* The guest shares this CPU: what it does when the poller is stopped is nothing that polling has met. */
static void test_polling_that_stops_the_guest(void **state)
{
    struct loop_config config = {.entries = 8, .poll_max_ns = 1000000000};
    struct preempted p = {
        .poller = {.poll = preempted_poll, .arm = never_arm, .disarm = ignore, .hot = true}};

    (void)state;
    assert_int_equal(event_loop_create(&config, &p.loop), 0);
    loop_add_poller(p.loop, &p.poller);
    assert_true(loop_polling_pays(p.loop));
    assert_int_equal(event_loop_run(p.loop), 0);
    assert_false(loop_polling_pays(p.loop));
    assert_int_equal(stat_get(&loop_stats(p.loop)->poll_hits), 0);
    assert_int_equal(stat_get(&loop_stats(p.loop)->poll_misses), 4);
    assert_in_range(p.polls, 12, 20);
    event_loop_destroy(p.loop);
}

struct expecting {
    struct loop_poller poller;
    struct event_loop *loop;
    unsigned polls, polls_after;
};

/* The first turn's work is followed by another thing, sure to come, which comes a hundred polls later. */
static bool expecting_poll(struct loop_poller *poller)
{
    struct expecting *e = container_of(poller, struct expecting, poller);

    e->polls++;
    if (e->polls == 1)
        loop_expect(e->loop);
    if (e->polls > 100)
        e->polls_after++;
    return e->polls == 1 || e->polls == 100;
}

static bool expecting_arm(struct loop_poller *poller)
{
    struct expecting *e = container_of(poller, struct expecting, poller);

    loop_stop(e->loop);
    return true;
}

/* It is polled for until it has come, and not for what nobody said. */
static void test_expecting_one_thing(void **state)
{
    struct loop_config config = {.entries = 8, .poll_max_ns = UINT32_MAX};
    struct expecting e = {
        .poller = {.poll = expecting_poll, .arm = expecting_arm, .disarm = ignore, .hot = true}};

    (void)state;
    assert_int_equal(event_loop_create(&config, &e.loop), 0);
    loop_add_poller(e.loop, &e.poller);
    assert_int_equal(event_loop_run(e.loop), 0);
    assert_int_equal(e.polls, 101);
    assert_int_equal(e.polls_after, 1);
    event_loop_destroy(e.loop);
}

/* Frequent messages: the loop learns to poll for them; then silence, and it sleeps again. */
static void test_adaptive_polling(void **state)
{
    struct message message = {.work.run = run_message};
    struct runner runner;

    (void)state;
    run_start(&runner, 2000000);
    message.loop = runner.loop;
    for (unsigned i = 0; i < 100000; i++) {
        unsigned before = atomic_load(&message.runs);

        loop_post(runner.loop, &message.work);
        while (atomic_load(&message.runs) == before)
            cpu_relax();
        for (unsigned k = 0; k < 200; k++)
            cpu_relax();
        if (i >= 1000 && stat_get(&loop_stats(runner.loop)->poll_hits) > 0)
            break;
    }
    assert_true(stat_get(&loop_stats(runner.loop)->poll_hits) > 0);
    expect_sleep(runner.loop);
    run_end(&runner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_in_order_and_once),
        cmocka_unit_test(test_messages_from_other_threads_wake_the_loop),
        cmocka_unit_test(test_more_operations_than_entries),
        cmocka_unit_test(test_operations_that_are_not_allowed),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_descriptor_freed_when_removed),
        cmocka_unit_test(test_timers),
        cmocka_unit_test(test_turn_sleeps_no_longer_than_asked),
        cmocka_unit_test(test_pollers),
        cmocka_unit_test(test_submission_that_waits),
        cmocka_unit_test(test_stop_wakes_a_sleeping_loop),
        cmocka_unit_test(test_idle_loop_makes_no_turn),
        cmocka_unit_test(test_polling_that_stops_the_guest),
        cmocka_unit_test(test_expecting_one_thing),
        cmocka_unit_test(test_adaptive_polling),
    };

    return cmocka_run_group_tests_name("event_loop", tests, NULL, NULL);
}
