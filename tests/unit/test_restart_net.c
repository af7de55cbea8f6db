/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network devices whose workers die, at each store that outlives them: frames may be lost then, and
 * nothing else. A socket with message boundaries is the TAP, and the test plays its kernel.
 */
#include "driver.h"
#include "kill.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_net.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"

#define HEADER 12u
#define RX 0u
#define QUEUES 3u
#define CONFIG_INTERRUPT 2u
#define BUFFERS 16u
#define BUFFER 256u
#define FRAME 100u
#define LONG_FRAME 600u /* takes three buffers */
#define BEFORE 12u  /* frames that come for the first worker */
#define BACKLOG_FIRST 100u
#define BACKLOG 40u /* and those that wait for its successor */

static unsigned tap_can;

unsigned net_tap_offloads(int fd)
{
    (void)fd;
    return tap_can;
}

int net_tap_set_offloads(int fd, unsigned offloads)
{
    (void)fd, (void)offloads;
    return 0;
}

int net_tap_use_queue(int fd, bool use)
{
    (void)fd, (void)use;
    return 0;
}

struct world {
    struct machine *m;
    struct device_config config;
    struct driver d;
    gpa_t in;
    int host, kept; /* the kernel's end of the TAP; the supervisor's copy of the worker's */
    unsigned before, then; /* the lengths of frames for the first worker, and for its successor */
    unsigned waiting;      /* how many of its frames are there when it starts; the rest comes later */
    uint8_t next;   /* the number of the frame that the guest may get next, at least */
    unsigned got, of_backlog;
    bool died;
};

static unsigned length(const struct world *w, uint8_t number)
{
    return number < BACKLOG_FIRST ? w->before : w->then;
}

static void send_frames(struct world *w, uint8_t first, unsigned n)
{
    unsigned len = length(w, first);
    uint8_t frame[HEADER + LONG_FRAME] = {0};

    memcpy(frame + HEADER, "\x00\x16\x3e\x01\x02\x03\x02\x00\x00\x00\x00\x01\x08\x00", 14);
    for (unsigned i = 0; i < n; i++) {
        memset(frame + HEADER + 14, first + (int)i, len - 14);
        assert_int_equal(send(w->host, frame, HEADER + len, 0), HEADER + len);
    }
}

/* Into frame: one buffer, which goes back under the number that is free, as Linux's driver does it. */
static unsigned take_buffer(struct world *w, const struct ring_used *used, uint8_t *frame, unsigned at)
{
    struct segment in = {{(uint64_t)(uintptr_t)used->token}, BUFFER};

    assert_true(used->len > 0 && at + used->len <= HEADER + LONG_FRAME);
    memcpy(frame + at, fake_ram(w->m->fake, in.addr.addr, BUFFER), used->len);
    assert_true(ring_add(&w->d.rings[RX], NULL, 0, &in, 1, used->token, false) >= 0);
    return at + used->len;
}

/* What the driver does when it looks. */
static void receive(struct world *w)
{
    struct ring *ring = &w->d.rings[RX];
    uint8_t frame[HEADER + LONG_FRAME];
    struct ring_used used;

    while (ring_get(ring, &used)) {
        unsigned at = take_buffer(w, &used, frame, 0), buffers;

        assert_true(at >= HEADER);
        buffers = frame[10] | (unsigned)frame[11] << 8; /* num_buffers */
        /* Those of one frame are used together (5.1.6.4). */
        for (unsigned i = 1; i < buffers; i++) {
            assert_true(ring_get(ring, &used));
            at = take_buffer(w, &used, frame, at);
        }
        assert_int_equal(at, HEADER + length(w, frame[HEADER + 14]));
        assert_true(frame[HEADER + 14] >= w->next); /* in order, and none of them twice */
        for (unsigned i = 14; i < at - HEADER; i++)
            assert_int_equal(frame[HEADER + i], frame[HEADER + 14]);
        w->next = (uint8_t)(frame[HEADER + 14] + 1);
        w->got++;
        w->of_backlog += frame[HEADER + 14] >= BACKLOG_FIRST;
    }
}

static void meanwhile(void *arg)
{
    struct world *w = arg;
    uint8_t frame[HEADER + LONG_FRAME];

    w->config.fds[0] = fcntl(w->kept, F_DUPFD_CLOEXEC, 0);
    /* What came for a worker that is dead by now is lost; more comes. */
    while (recv(w->kept, frame, sizeof(frame), MSG_DONTWAIT) > 0)
        ;
    receive(w);
    send_frames(w, BACKLOG_FIRST, w->waiting);
}

static void die(void *arg)
{
    struct world *w = arg;

    w->died = true;
    machine_take_picture(w->m);
}

static void create(struct world *w, uint64_t features, unsigned before, unsigned then)
{
    static const char *const presets[] = {"mac=00:16:3e:01:02:03", "mtu=1500", "queues=1",
                                          "packed=yes", NULL};
    const struct machine_config machine = {
        .ops = &virtio_net_ops, .device = &w->config, .state = true};
    char error[CONFIG_ERROR_LEN];
    int pair[2];

    memset(w, 0, sizeof(*w));
    w->before = before;
    w->then = then;
    strcpy(w->config.name, "net0");
    w->config.virtio_id = 1;
    w->config.base = MACHINE_BASE;
    w->config.irq = MACHINE_IRQ;
    w->config.n_vcpus = 1;
    if (device_config_fill(&w->config, device_type_by_id(1), NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    w->config.fds[0] = pair[0];
    w->config.n_fds = 1;
    w->host = pair[1];
    w->kept = fcntl(pair[0], F_DUPFD_CLOEXEC, 0);
    w->m = machine_create(&machine);
    w->m->meanwhile = meanwhile;
    w->m->meanwhile_arg = w;
    driver_start(&w->d, w->m, features | F_VERSION_1 | FEATURE(VIRTIO_NET_F_MRG_RXBUF) |
                                  FEATURE(VIRTIO_NET_F_STATUS) | FEATURE(VIRTIO_NET_F_CTRL_VQ),
                 QUEUES, BUFFERS);
    w->in = guest_alloc(&w->m->heap[0], BUFFERS * BUFFER, 4096);
    for (unsigned i = 0; i < BUFFERS; i++) {
        struct segment in = {{w->in.addr + i * BUFFER}, BUFFER};

        assert_true(ring_add(&w->d.rings[RX], NULL, 0, &in, 1, (void *)(uintptr_t)in.addr.addr,
                             false) >= 0);
    }
    driver_kick(&w->d, RX);
    machine_settle(w->m);
}

static void destroy(struct world *w)
{
    (void)driver_take_isr(w->m);
    machine_destroy(w->m);
    driver_end(&w->d);
    device_config_free(&w->config);
    close(w->host);
    close(w->kept);
}

static void settle(struct world *w)
{
    unsigned before;

    do {
        before = w->got;
        machine_settle(w->m);
        receive(w);
        driver_kick(&w->d, RX);
    } while (w->got != before);
}

/* False: it went to its end without a death. */
static bool receives(uint64_t features, unsigned before, unsigned then, unsigned waiting,
                     unsigned stores)
{
    struct world w;

    create(&w, features, before, then);
    w.waiting = waiting;
    kill_arm(stores, die, &w);
    for (unsigned i = 0; i < BEFORE && !w.died; i += 3) {
        send_frames(&w, (uint8_t)i, 3);
        machine_settle(w.m);
        if (!w.died) {
            receive(&w);
            driver_kick(&w.d, RX);
        }
    }
    kill_disarm();
    if (w.died) {
        if (w.m->picture != NULL) /* it died outside of an access */
            machine_succeed(w.m, false);
        settle(&w);
        send_frames(&w, (uint8_t)(BACKLOG_FIRST + waiting), BACKLOG - waiting);
        settle(&w);
        assert_int_equal(w.of_backlog, BACKLOG);
    }
    assert_int_equal(w.m->stats->needs_reset, 0);
    destroy(&w);
    return w.died;
}

static void die_at_each_store(unsigned before, unsigned then, unsigned waiting)
{
    static const uint64_t ways[] = {0, F_EVENT_IDX, F_PACKED, F_PACKED | F_EVENT_IDX};

    for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
        unsigned stores = 0;

        while (receives(ways[i], before, then, waiting, stores))
            stores++;
        assert_true(stores > BEFORE);
    }
}

static void test_reception(void **state)
{
    (void)state;
    die_at_each_store(FRAME, FRAME, BACKLOG);
}

/* Of a frame that takes several buffers some may be completed: they are taken for others then. */
static void test_long_frames(void **state)
{
    (void)state;
    die_at_each_store(LONG_FRAME, LONG_FRAME, BACKLOG);
    /* What is left of them in the ring behind a single buffer. */
    die_at_each_store(LONG_FRAME, FRAME, 1);
}

static unsigned link_status(const struct world *w)
{
    return (unsigned)machine_read(w->m, VIRTIO_MMIO_CONFIG + offsetof(struct virtio_net_config, status),
                                  2);
}

/* What the driver was told of the link last is not known: it is made to look. */
static void test_link(void **state)
{
    struct world w;

    (void)state;
    create(&w, 0, FRAME, FRAME);
    (void)driver_take_isr(w.m);
    assert_int_equal(link_status(&w), VIRTIO_NET_S_LINK_UP);
    machine_take_picture(w.m);
    machine_succeed(w.m, false);
    assert_int_equal(driver_take_isr(w.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
    assert_int_equal(link_status(&w), VIRTIO_NET_S_LINK_UP);
    /* Once. */
    assert_int_equal(driver_take_isr(w.m) & CONFIG_INTERRUPT, 0);
    destroy(&w);
}

/*
 * Interface and bridge are gone when the worker dies: its successor cannot find out what the interface could
 * do, and offers it all the same. The first look tells it to ask for another one.
 */
static void lose(void *arg)
{
    struct world *w = arg;

    tap_can = 0;
    close(w->host);
    w->config.fds[0] = fcntl(w->kept, F_DUPFD_CLOEXEC, 0);
}

static void test_no_interface(void **state)
{
    struct world w;

    (void)state;
    tap_can = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4;
    create(&w, FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
                   FEATURE(VIRTIO_NET_F_HOST_TSO4) | FEATURE(VIRTIO_NET_F_GUEST_TSO4),
           FRAME, FRAME);
    w.m->meanwhile = lose;
    for (unsigned i = 0; i < 2; i++) {
        machine_take_picture(w.m);
        machine_succeed(w.m, false);
        machine_settle(w.m);
        assert_int_equal(w.m->stats->needs_reset, 0);
        assert_int_equal(link_status(&w), 0);
        w.host = fcntl(w.kept, F_DUPFD_CLOEXEC, 0); /* something to close */
    }
    destroy(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reception),
        cmocka_unit_test(test_long_frames),
        cmocka_unit_test(test_link),
        cmocka_unit_test(test_no_interface),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
