/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that die: at any store that outlives them, again and again. A driver that does only what it
 * must (it notifies when it is asked to, it looks when it is interrupted) sees each request done, once.
 *
 * A thousand times in each of ten kinds of rings; which stores these are follows from a seed. Others:
 *   VIOD_SEED=0x1234 VIOD_KILLS=100000 test_restart
 */
#include "driver.h"
#include "kill.h"
#include "unit.h"

#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define QUEUES 2u
#define QUEUE_SIZE 16u
#define BUFFERS 24u
#define BUFFER_LEN 128u

struct buffer {
    gpa_t at;
    uint32_t len, seed;
    bool out;
};

struct world {
    struct machine *m;
    struct driver d;
    struct buffer buffers[QUEUES][BUFFERS];
    uint32_t random, seed;
    unsigned kills, done;
    uint64_t trace;       /* of all that each one that died left */
    bool trapped[QUEUES]; /* vCPU 2 and on: one for each queue */
    bool starting;        /* the driver is not up */
};

/*
 * The clock that viod goes by here, in the place of src/clock.c's: what viod does depends on how long
 * things take, and the same seed is to lead to the same deaths on any machine, under any tool.
 */
int64_t monotonic_ns(void)
{
    static int64_t now_ns = 1000000000;

    return now_ns += 2000;
}

static uint32_t next_random(struct world *w)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 17;
    w->random ^= w->random << 5;
    return w->random;
}

static void die(void *arg)
{
    struct world *w = arg;
    const uint8_t *left;
    uint64_t word;
    size_t len;

    w->kills++;
    machine_take_picture(w->m);
    left = machine_pictured_state(w->m, &len);
    w->trace = state_hash(w->trace, w->done);
    for (size_t i = 0; i + sizeof(word) <= len; i += sizeof(word)) {
        memcpy(&word, left + i, sizeof(word));
        w->trace = state_hash(w->trace, word);
    }
}

static void maybe_kill(struct world *w, unsigned stores)
{
    if (next_random(w) % 2 == 0)
        kill_arm(next_random(w) % stores, die, w);
}

/* If it has died without an access in which that was seen. */
static void survive(struct world *w)
{
    kill_disarm();
    if (w->m->picture != NULL)
        machine_succeed(w->m, false);
}

static void add_to(struct world *w, unsigned queue, unsigned n)
{
    struct ring *ring = &w->d.rings[queue];

    for (unsigned i = 0; i < BUFFERS && n > 0; i++) {
        struct buffer *b = &w->buffers[queue][i];
        bool indirect = (ring->features & F_INDIRECT) != 0 && next_random(w) % 2 == 0;

        if (b->out)
            continue;
        b->len = 1 + next_random(w) % BUFFER_LEN;
        b->seed = w->seed++;
        if (driver_add_echo(ring, b->at, b->len, b->seed, indirect) < 0)
            break;
        b->out = true;
        n--;
    }
}

static void add(struct world *w)
{
    unsigned queue = next_random(w) % QUEUES;

    add_to(w, queue, 1 + next_random(w) % 4);
    maybe_kill(w, 60);
    driver_kick_if_needed(&w->d, (uint16_t)queue);
    survive(w);
}

static unsigned take_all(struct world *w, unsigned queue)
{
    struct ring *ring = &w->d.rings[queue];
    struct ring_used used;
    unsigned n = 0;

    while (ring_get(ring, &used)) {
        struct buffer *b = NULL;

        for (unsigned i = 0; i < BUFFERS; i++)
            if (w->buffers[queue][i].out &&
                w->buffers[queue][i].seed + 1 == (uint32_t)(uintptr_t)used.token)
                b = &w->buffers[queue][i];
        assert_non_null(b);
        assert_int_equal(used.len, b->len);
        assert_true(driver_check_echo(ring, b->at, b->len, b->seed));
        b->out = false;
        n++;
    }
    w->done += n;
    return n;
}

static void take_used(struct world *w, unsigned queue)
{
    take_all(w, queue);
    do {
        ring_interrupts_on(&w->d.rings[queue]);
        full_barrier();
    } while (take_all(w, queue) > 0);
}

/* The worker is dead: the driver looks at its rings, adds to them, and is stuck in a notification. */
static void meanwhile(void *arg)
{
    struct world *w = arg;
    unsigned queue = next_random(w) % QUEUES;

    if (w->starting || next_random(w) % 2 == 0)
        return;
    take_used(w, queue);
    add_to(w, queue, next_random(w) % 8);
    if (!ring_needs_kick(&w->d.rings[queue]))
        return;
    if (!w->trapped[queue] || fake_answered(w->m->fake, 2 + queue, NULL)) {
        w->trapped[queue] = true;
        fake_trap(w->m->fake, 2 + queue, REQUEST_WRITE, MACHINE_BASE + VIRTIO_MMIO_QUEUE_NOTIFY, 4,
                  ring_notify_value(&w->d.rings[queue], (uint16_t)queue));
    }
}

/* The driver's interrupt handler: 4.2.3.4. */
static bool interrupts(struct world *w)
{
    bool any = false;

    while (fake_take_irqs(w->m->fake, MACHINE_IRQ) > 0) {
        any = true;
        maybe_kill(w, 20);
        driver_take_isr(w->m);
        survive(w);
        for (unsigned i = 0; i < QUEUES; i++)
            take_used(w, i);
    }
    return any;
}

static void complete(struct world *w)
{
    struct test_device *td = test_device(w->m->dev);
    unsigned n = td->n_held == 0 ? 0 : 1 + next_random(w) % td->n_held;

    maybe_kill(w, 40);
    for (unsigned i = 0; i < n; i++)
        test_device_complete(td, next_random(w) % td->n_held);
    machine_settle(w->m);
    survive(w);
}

static void restart_driver(struct world *w)
{
    w->starting = true;
    maybe_kill(w, 200);
    driver_restart(&w->d);
    survive(w);
    w->starting = false;

    for (unsigned i = 0; i < QUEUES; i++)
        for (unsigned j = 0; j < BUFFERS; j++)
            w->buffers[i][j].out = false;
    for (unsigned i = 0; i < QUEUES; i++)
        ring_interrupts_on(&w->d.rings[i]);
}

static unsigned out(const struct world *w)
{
    unsigned n = 0;

    for (unsigned i = 0; i < QUEUES; i++)
        n += ring_in_flight(&w->d.rings[i]);
    return n;
}

/* All that was added comes back, without another word of the driver. */
static void finish(struct world *w)
{
    for (unsigned i = 0; i < 1000 && out(w) > 0; i++) {
        machine_settle(w->m);
        complete(w);
        interrupts(w);
    }
    assert_int_equal(out(w), 0);
}

static uint64_t live_and_die(uint64_t features, enum test_mode mode, uint32_t random, unsigned kills)
{
    const struct machine_config config = {
        .state = true, .test = {.n_queues = QUEUES, .queue_size = QUEUE_SIZE, .mode = mode}};
    struct world w = {.m = machine_create(&config), .random = random != 0 ? random : 1};

    for (unsigned i = 0; i < QUEUES; i++)
        for (unsigned j = 0; j < BUFFERS; j++)
            w.buffers[i][j].at = guest_alloc(&w.m->heap[0], 2 * (size_t)BUFFER_LEN, 16);
    driver_start(&w.d, w.m, features | F_VERSION_1, QUEUES, QUEUE_SIZE);
    for (unsigned i = 0; i < QUEUES; i++)
        ring_interrupts_on(&w.d.rings[i]);
    w.m->meanwhile = meanwhile;
    w.m->meanwhile_arg = &w;
    while (w.kills < kills) {
        switch (next_random(&w) % 32) {
        case 0:
            finish(&w);
            break;
        case 1:
            restart_driver(&w);
            break;
        case 2 ... 12:
            add(&w);
            break;
        case 13 ... 22:
            complete(&w);
            break;
        default:
            interrupts(&w);
        }
        assert_int_equal(w.m->stats->needs_reset, 0);
    }
    finish(&w);
    assert_true(w.done > kills / 4);
    kill_disarm();
    driver_end(&w.d);
    machine_destroy(w.m);
    return w.trace;
}

static uint32_t setting(const char *name, uint32_t otherwise)
{
    const char *word = getenv(name);

    return word != NULL ? (uint32_t)strtoul(word, NULL, 0) : otherwise;
}

static void live(uint64_t features, enum test_mode mode)
{
    uint32_t seed = setting("VIOD_SEED", 0x5eed), kills = setting("VIOD_KILLS", 1000);

    print_message("VIOD_SEED=%#x VIOD_KILLS=%u\n", seed, kills);
    /* What was found once is found again. */
    assert_int_equal(live_and_die(features, mode, seed, 20), live_and_die(features, mode, seed, 20));
    assert_int_not_equal(live_and_die(features, mode, seed + 1, 20),
                         live_and_die(features, mode, seed, 20));
    live_and_die(features, mode, seed, kills);
}

/*
 * A queue with many requests in flight is adopted by a process in a sandbox: nothing that the C library
 * does for it may need a system call of its own.
 */
#define MANY 200u

static void adopt_many(uint64_t features)
{
    const struct machine_config config = {
        .state = true, .test = {.n_queues = 1, .queue_size = 256, .mode = TEST_HOLD}};
    struct machine *m = machine_create(&config);
    gpa_t at = guest_alloc(&m->heap[0], MANY * 2 * BUFFER_LEN, 16);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    struct driver d;

    driver_start(&d, m, features | F_VERSION_1 | F_INDIRECT, 1, 256);
    for (unsigned i = 0; i < MANY; i++)
        if (driver_add_echo(&d.rings[0], (gpa_t){at.addr + (uint64_t)i * 2 * BUFFER_LEN}, BUFFER_LEN, i,
                            true) < 0)
            _exit(2);
    driver_kick(&d, 0);
    machine_settle(m);
    if (test_device(m->dev)->n_held != MANY)
        _exit(3);
    machine_take_picture(m);
    if (filter == NULL || seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, SCMP_SYS(sysinfo), 0) != 0 ||
        seccomp_load(filter) != 0)
        _exit(4);
    machine_succeed(m, false);
    machine_settle(m);
    _exit(test_device(m->dev)->n_held == MANY && m->stats->needs_reset == 0 ? 0 : 5);
}

static void test_many_in_flight(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        pid_t child = fork();
        int status;

        if (child == 0)
            adopt_many(packed ? F_PACKED : 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

#define LIVE(name, features, mode)                                                                 \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        (void)state;                                                                               \
        live(features, mode);                                                                      \
    }
LIVE(split, 0, TEST_ECHO)
LIVE(split_held, 0, TEST_HOLD)
LIVE(split_event_idx, F_EVENT_IDX | F_INDIRECT, TEST_ECHO)
LIVE(split_event_idx_held, F_EVENT_IDX | F_INDIRECT, TEST_HOLD)
LIVE(split_in_order, F_IN_ORDER | F_EVENT_IDX, TEST_HOLD)
LIVE(packed, F_PACKED, TEST_ECHO)
LIVE(packed_held, F_PACKED, TEST_HOLD)
LIVE(packed_event_idx, F_PACKED | F_EVENT_IDX | F_INDIRECT, TEST_ECHO)
LIVE(packed_event_idx_held, F_PACKED | F_EVENT_IDX | F_INDIRECT, TEST_HOLD)
LIVE(packed_in_order, F_PACKED | F_IN_ORDER | F_EVENT_IDX, TEST_HOLD)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_in_flight),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_held),
        cmocka_unit_test(test_split_event_idx),
        cmocka_unit_test(test_split_event_idx_held),
        cmocka_unit_test(test_split_in_order),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_held),
        cmocka_unit_test(test_packed_event_idx),
        cmocka_unit_test(test_packed_event_idx_held),
        cmocka_unit_test(test_packed_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
