/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network device in a fake machine: frames in any layout, what the driver may ask of it, its link,
 * and a hostile driver. A socket with message boundaries is the TAP, and the test plays its kernel.
 */
#include "driver.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_net.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"

#define HEADER 12u
#define UNWRITTEN 0xee
#define CONFIG_INTERRUPT 2u
#define PAIRS_MAX 3u
#define OWN_MAC "\x00\x16\x3e\x01\x02\x03"
#define ALL_OFFLOADS                                                                               \
    (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO)
#define NET(bit) FEATURE(VIRTIO_NET_F_##bit)
#ifndef VIRTIO_NET_F_HOST_USO
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/* ---- the TAP ---- */

static struct {
    unsigned can, offloads;
    int error;             /* of the settings */
    unsigned changes;      /* of queues */
    unsigned offload_changes;
    int fds[PAIRS_MAX];    /* the device's, to know them by */
    bool used[PAIRS_MAX];
    int host[PAIRS_MAX];   /* the other ends */
} tap;

unsigned net_tap_offloads(int fd)
{
    (void)fd;
    return tap.can;
}

int net_tap_set_offloads(int fd, unsigned offloads)
{
    assert_int_equal(fd, tap.fds[0]);
    tap.offload_changes++;
    if (tap.error == 0)
        tap.offloads = offloads;
    return tap.error;
}

int net_tap_use_queue(int fd, bool use)
{
    for (unsigned i = 0; i < PAIRS_MAX; i++)
        if (tap.fds[i] == fd) {
            tap.used[i] = use;
            tap.changes++;
            return tap.error;
        }
    fail_msg("not a queue: %d", fd);
    return 0;
}

static void make_tap(int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        int pair[2], size = 1 << 20;

        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
                         0);
        setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        fds[i] = pair[0];
        tap.host[i] = pair[1];
    }
}

static void lose_tap(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        close(tap.host[i]);
        tap.host[i] = -1;
    }
}

/* ---- the machine ---- */

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    unsigned pairs;
    gpa_t out, in; /* 128 KiB each */
    uint64_t next; /* of `in` */
    unsigned asked;
    uint32_t ask_id;
    char request[32];
};

struct set_up {
    const char *presets[6];
    uint64_t without;
    unsigned pairs;   /* 0: 1 */
    unsigned can;     /* 0: ALL_OFFLOADS; UINT32_MAX: none */
    uint16_t size;    /* of the rings; 0: 64 */
    bool io_thread;
};

static struct test *asking;

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    (void)dev;
    asking->asked++;
    asking->ask_id = id;
    snprintf(asking->request, sizeof(asking->request), "%s", request);
    return 0;
}

static void start(struct test *t, const struct set_up *how)
{
    static const struct set_up usual;
    struct machine_config machine = {.ops = &virtio_net_ops, .device = &t->config};
    const char *presets[12] = {"mac=00:16:3e:01:02:03", "mtu=1500"};
    char error[CONFIG_ERROR_LEN], queues[24];
    unsigned n = 2;

    if (how == NULL)
        how = &usual;
    memset(t, 0, sizeof(*t));
    memset(&tap, 0, sizeof(tap));
    t->pairs = how->pairs ? how->pairs : 1;
    tap.can = how->can == UINT32_MAX ? 0 : how->can ? how->can : ALL_OFFLOADS;
    tap.offloads = ~0u;
    snprintf(queues, sizeof(queues), "queues=%u", t->pairs);
    presets[n++] = queues;
    for (const char *const *p = how->presets; *p; p++)
        presets[n++] = *p;
    strcpy(t->config.name, "net0");
    t->config.virtio_id = 1;
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = 1;
    if (device_config_fill(&t->config, device_type_by_id(1), NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    make_tap(t->config.fds, t->pairs);
    t->config.n_fds = t->pairs;
    memcpy(tap.fds, t->config.fds, sizeof(tap.fds));
    machine.io_thread = how->io_thread;
    t->m = machine_create(&machine);
    assert_int_equal(t->config.fds[0], -1); /* the device's now */
    asking = t;
    t->m->dev->ask = ask;
    driver_start(&t->driver, t->m, driver_offered(t->m) & ~how->without, 2 * t->pairs + 1,
                 how->size ? how->size : 64);
    t->out = guest_alloc(&t->m->heap[0], 131072, 4096);
    t->in = guest_alloc(&t->m->heap[0], 131072, 4096);
    memset(fake_ram(t->m->fake, t->in.addr, 131072), UNWRITTEN, 131072);
}

static void end(struct test *t)
{
    for (unsigned i = 0; i < t->m->dev->n_queues; i++)
        driver_take_isr(t->m);
    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
    for (unsigned i = 0; i < t->pairs; i++)
        if (tap.host[i] >= 0) {
            char byte;

            /* The device closed its end. */
            while (recv(tap.host[i], &byte, 1, 0) > 0)
                ;
            assert_int_equal(recv(tap.host[i], &byte, 1, 0), 0);
            close(tap.host[i]);
        }
}

static uint8_t *ram(struct test *t, gpa_t at, size_t offset)
{
    return fake_ram(t->m->fake, at.addr + offset, 1);
}

static unsigned config_field(struct test *t, size_t offset, unsigned size)
{
    return (unsigned)machine_read(t->m, VIRTIO_MMIO_CONFIG + (uint32_t)offset, size);
}
#define CONFIG(t, field)                                                                           \
    config_field(t, offsetof(struct virtio_net_config, field),                                     \
                 sizeof(((struct virtio_net_config *)0)->field))

static const struct queue_stats *stats(struct test *t, unsigned queue)
{
    return &t->m->stats->queues[queue];
}

/* A frame to this address, with bytes that tell where they belong. */
static void make_frame(uint8_t *frame, const char *to, size_t len, unsigned seed)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, "\x02\x00\x00\x00\x00\x01\x08\x00", 8);
    for (size_t i = 14; i < len; i++)
        frame[i] = (uint8_t)(i * 7 + (i >> 8) * 13 + seed);
}

/* ---- reception ---- */

static void post(struct test *t, unsigned queue, const struct segment *in, unsigned n)
{
    assert_true(ring_add(&t->driver.rings[queue], NULL, 0, in, n, (void *)(uintptr_t)in[0].addr.addr,
                         n > 8) >= 0);
}

/* Posts n buffers of `len` bytes, one behind the other in `in`. */
static void post_many(struct test *t, unsigned queue, unsigned n, uint32_t len)
{
    for (unsigned i = 0; i < n; i++) {
        struct segment in = {{t->in.addr + t->next}, len};

        t->next += len;
        assert_true(t->next <= 131072);
        post(t, queue, &in, 1);
    }
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
}

static const struct virtio_net_hdr_v1 no_header;

static void host_sends_header(struct test *t, unsigned pair, const struct virtio_net_hdr_v1 *header,
                              const uint8_t *frame, size_t len)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)header, HEADER}, {(void *)(uintptr_t)frame, len}};

    assert_int_equal(writev(tap.host[pair], iov, 2), HEADER + len);
    machine_settle(t->m);
}

static void host_sends(struct test *t, unsigned pair, const uint8_t *frame, size_t len)
{
    host_sends_header(t, pair, &no_header, frame, len);
}

static uint8_t command(struct test *t, uint8_t class, uint8_t cmd, const void *data, uint32_t len);

/* The next frame that the guest got: its length; 0: none. Buffers follow each other in `in`. */
static size_t guest_gets(struct test *t, unsigned queue, struct virtio_net_hdr_v1 *header,
                         uint8_t *frame)
{
    size_t len = 0;
    struct ring_used used;
    uint16_t buffers = 1;
    uint8_t all[80000];

    for (unsigned i = 0; i < buffers; i++) {
        if (!ring_get(&t->driver.rings[queue], &used)) {
            assert_int_equal(i, 0);
            return 0;
        }
        memcpy(all + len, fake_ram(t->m->fake, (uintptr_t)used.token, used.len), used.len);
        len += used.len;
        if (i == 0) {
            assert_true(used.len >= HEADER);
            memcpy(header, all, HEADER);
            buffers = le16toh(header->num_buffers);
            assert_true(buffers > 0);
        }
    }
    memcpy(frame, all + HEADER, len - HEADER);
    return len - HEADER;
}

#define assert_gets(t, queue, want, want_len)                                                      \
    do {                                                                                           \
        struct virtio_net_hdr_v1 h_;                                                               \
        uint8_t got_[80000];                                                                       \
        assert_int_equal(guest_gets(t, queue, &h_, got_), want_len);                               \
        assert_memory_equal(got_, want, want_len);                                                 \
    } while (0)

static bool gets_nothing(struct test *t, unsigned queue)
{
    struct ring_used used;

    return !ring_get(&t->driver.rings[queue], &used);
}

static void receives(void **state)
{
    static const struct set_up ways[] = {
        {.presets = {NULL}},
        {.without = F_INDIRECT | F_EVENT_IDX},
        {.presets = {"packed=yes"}},
        {.presets = {"packed=yes", "in-order=yes"}},
        {.presets = {"in-order=yes"}},
        {.without = NET(MRG_RXBUF)},
    };
    static const size_t lengths[] = {14, 60, 1514, 1518};
    uint8_t frame[2000];

    (void)state;
    for (unsigned w = 0; w < ARRAY_SIZE(ways); w++) {
        struct test t;

        start(&t, &ways[w]);
        for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
            post_many(&t, 0, 2, 2048);
            make_frame(frame, OWN_MAC, lengths[i], i);
            host_sends(&t, 0, frame, lengths[i]);
            assert_gets(&t, 0, frame, lengths[i]);
            host_sends(&t, 0, frame, lengths[i]);
            assert_gets(&t, 0, frame, lengths[i]);
        }
        assert_int_equal(stat_get(&stats(&t, 0)->packets), 8);
        assert_int_equal(stat_get(&stats(&t, 0)->read_bytes), 2 * (14 + 60 + 1514 + 1518));
        assert_int_equal(stat_get(&stats(&t, 0)->drops), 0);
        end(&t);
    }
}

/* 5.1.6.4: over as many buffers as it takes, the header in the first; also when they are cut up. */
static void receives_into_many_buffers(void **state)
{
    static const uint32_t sizes[] = {12, 13, 26, 100, 1526, 4096};
    uint8_t frame[2000];
    struct test t;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        size_t len = MIN(sizes[i] * 20, 1514u);

        start(&t, NULL);
        post_many(&t, 0, 30, sizes[i]);
        make_frame(frame, OWN_MAC, len, i);
        host_sends(&t, 0, frame, len);
        assert_gets(&t, 0, frame, len);
        end(&t);
    }
    for (unsigned cut = 1; cut < 40; cut++) {
        struct segment in[3];

        start(&t, NULL);
        in[0] = (struct segment){t.in, cut};
        in[1] = (struct segment){{t.in.addr + cut}, 1};
        in[2] = (struct segment){{t.in.addr + cut + 1}, 1500};
        make_frame(frame, OWN_MAC, 700, cut);
        post(&t, 0, in, 3);
        driver_kick(&t.driver, 0);
        host_sends(&t, 0, frame, 700);
        struct ring_used used;
        assert_true(ring_get(&t.driver.rings[0], &used));
        assert_int_equal(used.len, 712);
        assert_memory_equal(ram(&t, t.in, HEADER), frame, 700);
        assert_int_equal(*ram(&t, t.in, 10), 1); /* num_buffers */
        assert_int_equal(*ram(&t, t.in, 712), UNWRITTEN);
        end(&t);
    }
}

/* Large frames begin as a surprise: they go through the spill, then straight into buffers. */
static void receives_large_frames(void **state)
{
    static uint8_t frame[65550];
    struct test t;

    (void)state;
    start(&t, NULL);
    for (unsigned round = 0; round < 6; round++) {
        t.next = 0;
        post_many(&t, 0, 44, 1536);
        make_frame(frame, OWN_MAC, 65500, round);
        host_sends(&t, 0, frame, 65500);
        assert_gets(&t, 0, frame, 65500);
        host_sends(&t, 0, frame, 1400);
        assert_gets(&t, 0, frame, 1400);
    }
    end(&t);
}

static void waits_for_buffers(void **state)
{
    static uint8_t frame[9000];
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 1);
    /* None at all: it stays in the TAP. */
    host_sends(&t, 0, frame, 1000);
    assert_true(gets_nothing(&t, 0));
    post_many(&t, 0, 1, 2048);
    assert_gets(&t, 0, frame, 1000);
    /* Too few: it stays with the device. */
    post_many(&t, 0, 2, 2048);
    host_sends(&t, 0, frame, 9000);
    assert_true(gets_nothing(&t, 0));
    post_many(&t, 0, 1, 2048);
    assert_true(gets_nothing(&t, 0));
    post_many(&t, 0, 2, 2048);
    assert_gets(&t, 0, frame, 9000);
    assert_int_equal(stat_get(&stats(&t, 0)->drops), 0);
    end(&t);
}

static void gives_up_what_never_fits(void **state)
{
    static uint8_t frame[9000];
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.size = 4});
    make_frame(frame, OWN_MAC, sizeof(frame), 1);
    post_many(&t, 0, 4, 1536);
    host_sends(&t, 0, frame, 9000);
    host_sends(&t, 0, frame, 100);
    assert_true(gets_nothing(&t, 0));
    for (int i = 0; i < 100 && stat_get(&stats(&t, 0)->drops) == 0; i++) {
        usleep(10000);
        machine_settle(t.m);
    }
    assert_int_equal(stat_get(&stats(&t, 0)->drops), 1);
    machine_settle(t.m);
    assert_gets(&t, 0, frame, 100);
    end(&t);
    /* Without MRG_RXBUF each frame has one buffer (5.1.6.3.2). */
    start(&t, &(struct set_up){.without = NET(MRG_RXBUF)});
    post_many(&t, 0, 2, 1536);
    host_sends(&t, 0, frame, 9000);
    assert_int_equal(stat_get(&stats(&t, 0)->drops), 1);
    host_sends(&t, 0, frame, 1514);
    assert_gets(&t, 0, frame, 1514);
    end(&t);
}

/* 5.1.6.4: the driver hears of nothing that it did not negotiate. */
static void receives_headers(void **state)
{
    struct virtio_net_hdr_v1 header = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM |
                                                VIRTIO_NET_HDR_F_DATA_VALID | 0xf0,
                                       .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                                       .hdr_len = 54,
                                       .gso_size = 1448,
                                       .csum_start = 34,
                                       .csum_offset = 16,
                                       .num_buffers = 0x7777};
    struct virtio_net_hdr_v1 got;
    uint8_t frame[2000], copy[80000];
    struct test t;

    (void)state;
    make_frame(frame, OWN_MAC, 1514, 3);
    start(&t, NULL);
    post_many(&t, 0, 2, 2048);
    host_sends_header(&t, 0, &header, frame, 1514);
    assert_int_equal(guest_gets(&t, 0, &got, copy), 1514);
    assert_int_equal(got.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID);
    assert_int_equal(got.num_buffers, 1);
    header.flags = got.flags;
    header.num_buffers = got.num_buffers;
    assert_memory_equal(&got, &header, HEADER);
    end(&t);
    start(&t, &(struct set_up){.without = NET(GUEST_CSUM) | NET(GUEST_TSO4) | NET(GUEST_TSO6) |
                                          NET(GUEST_ECN) | NET(GUEST_USO4) | NET(GUEST_USO6)});
    post_many(&t, 0, 2, 2048);
    header = (struct virtio_net_hdr_v1){.flags = VIRTIO_NET_HDR_F_DATA_VALID};
    host_sends_header(&t, 0, &header, frame, 1514);
    assert_int_equal(guest_gets(&t, 0, &got, copy), 1514);
    assert_int_equal(got.flags, 0);
    end(&t);
}

/* 5.1.6.4.1: also not of what lay in the TAP when it was told otherwise. */
static void receives_no_leftovers(void **state)
{
    static const struct virtio_net_hdr_v1 leftovers[] = {
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16},
        {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
         .gso_size = 1448, .csum_start = 34, .csum_offset = 16},
        {.gso_type = VIRTIO_NET_HDR_GSO_TCPV6, .gso_size = 1448},
        {.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4, .gso_size = 1448},
        {.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN, .gso_size = 1448},
        {.gso_type = VIRTIO_NET_HDR_GSO_UDP, .gso_size = 1448},
        {.gso_type = 77},
    };
    uint8_t frame[1514];
    uint64_t none = 0;
    struct test t;

    (void)state;
    make_frame(frame, OWN_MAC, sizeof(frame), 3);
    start(&t, NULL);
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
                             &none, 8), VIRTIO_NET_OK);
    post_many(&t, 0, 2, 2048);
    for (unsigned i = 0; i < ARRAY_SIZE(leftovers); i++) {
        host_sends_header(&t, 0, &leftovers[i], frame, sizeof(frame));
        assert_true(gets_nothing(&t, 0));
        assert_int_equal(stat_get(&stats(&t, 0)->drops), i + 1);
    }
    host_sends(&t, 0, frame, sizeof(frame));
    assert_gets(&t, 0, frame, sizeof(frame));
    end(&t);
    /* And never what there is no offload for. */
    start(&t, NULL);
    post_many(&t, 0, 2, 2048);
    host_sends_header(&t, 0, &leftovers[5], frame, sizeof(frame));
    host_sends_header(&t, 0, &leftovers[6], frame, sizeof(frame));
    assert_true(gets_nothing(&t, 0));
    host_sends_header(&t, 0, &leftovers[2], frame, sizeof(frame));
    assert_gets(&t, 0, frame, sizeof(frame));
    end(&t);
}

/* A driver that refills its ring need not say so while there are enough buffers. */
static void buffers_without_notifications(void **state)
{
    uint8_t frame[2000];
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, 1000, 1);
    post_many(&t, 0, 8, 2048);
    assert_true(ring_needs_kick(&t.driver.rings[0]) || true); /* counts from here on */
    for (unsigned i = 0; i < 20; i++) {
        struct segment in = {{t.in.addr + t.next}, 2048};

        t.next += 2048;
        host_sends(&t, 0, frame, 1000);
        assert_gets(&t, 0, frame, 1000);
        event_loop_turn(t.m->loop, 1000000); /* it slept and asked for what it needs */
        post(&t, 0, &in, 1);
        assert_false(ring_needs_kick(&t.driver.rings[0]));
    }
    end(&t);
}

/* Pages go and come: what was posted stays posted, and no buffer comes back empty. */
static void pause_keeps_buffers(void **state)
{
    static const char *const formats[] = {"packed=no", "packed=yes"};
    static const char *const orders[] = {"in-order=no", "in-order=yes"};
    static uint8_t frame[9000];

    (void)state;
    for (unsigned f = 0; f < 4; f++) {
        struct test t;
        gpa_t page;

        /* A small ring, so that its end comes by often; small buffers, so that several are held. */
        start(&t, &(struct set_up){.presets = {formats[f % 2], orders[f / 2]}, .size = 16});
        page = guest_alloc(&t.m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
        make_frame(frame, OWN_MAC, sizeof(frame), 1);
        post_many(&t, 0, 11, 600);
        for (unsigned i = 0; i < 60; i++) {
            unsigned drops = t.m->drops;

            if (i % 2 == 0)
                machine_balloon_out(t.m, page.addr, 1);
            else
                fake_balloon_in(t.m->fake, page.addr, 1);
            assert_int_equal(t.m->drops, drops + (i % 2 == 0));
            assert_true(gets_nothing(&t, 0));
            assert_int_equal(virtqueue_in_flight(t.m->dev->queues[0].vq) > 4, 0);
            host_sends(&t, 0, frame, 1000);
            assert_gets(&t, 0, frame, 1000);
            post_many(&t, 0, i % 5 == 0 ? 1 : 2, 600);
            if (i % 5 == 0) {
                host_sends(&t, 0, frame, 500); /* one buffer: the positions shift */
                assert_gets(&t, 0, frame, 500);
                post_many(&t, 0, 2, 600);
            }
        }
        /* A frame that waits for more buffers is lost, and nothing else is. */
        host_sends(&t, 0, frame, 9000);
        assert_true(gets_nothing(&t, 0));
        fake_balloon_in(t.m->fake, page.addr, 1);
        machine_balloon_out(t.m, page.addr, 1);
        assert_int_equal(stat_get(&stats(&t, 0)->drops), 1);
        host_sends(&t, 0, frame, 500);
        assert_gets(&t, 0, frame, 500);
        end(&t);
    }
}

/* ---- transmission ---- */

/* The next frame that the host got; 0: none. */
static size_t host_gets(unsigned pair, struct virtio_net_hdr_v1 *header, uint8_t *frame)
{
    struct iovec iov[2] = {{header, HEADER}, {frame, 80000}};
    ssize_t len = readv(tap.host[pair], iov, 2);

    if (len < 0)
        assert_int_equal(errno, EAGAIN);
    return len < (ssize_t)HEADER ? 0 : (size_t)len - HEADER;
}

static void send_segments(struct test *t, unsigned queue, const struct segment *out, unsigned n)
{
    struct ring_used used;

    assert_true(ring_add(&t->driver.rings[queue], out, n, NULL, 0, t, n > 8) >= 0);
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
    assert_true(ring_get(&t->driver.rings[queue], &used)); /* whatever it was, it comes back */
    assert_int_equal(used.len, 0);
}

/* Header and frame one behind the other in `out`. */
static void put(struct test *t, const struct virtio_net_hdr_v1 *header, const uint8_t *frame,
                size_t len)
{
    memcpy(ram(t, t->out, 0), header, HEADER);
    memcpy(fake_ram(t->m->fake, t->out.addr + HEADER, len), frame, len);
}

static void guest_sends(struct test *t, unsigned queue, const struct virtio_net_hdr_v1 *header,
                        const uint8_t *frame, size_t len)
{
    struct segment out = {t->out, (uint32_t)(HEADER + len)};

    put(t, header, frame, len);
    send_segments(t, queue, &out, 1);
}

#define assert_host_gets(pair, want, want_len)                                                     \
    do {                                                                                           \
        struct virtio_net_hdr_v1 h_;                                                               \
        static uint8_t got_[80000];                                                                \
        assert_int_equal(host_gets(pair, &h_, got_), want_len);                                    \
        assert_memory_equal(got_, want, want_len);                                                 \
    } while (0)

static void transmits(void **state)
{
    static const struct set_up ways[] = {
        {.presets = {NULL}},
        {.without = F_INDIRECT | F_EVENT_IDX},
        {.presets = {"packed=yes"}},
        {.presets = {"packed=yes", "in-order=yes"}},
    };
    static const size_t lengths[] = {14, 60, 1514, 65549};
    static uint8_t frame[65550];

    (void)state;
    for (unsigned w = 0; w < ARRAY_SIZE(ways); w++) {
        struct test t;

        start(&t, &ways[w]);
        for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
            make_frame(frame, "\xff\xff\xff\xff\xff\xff", lengths[i], i);
            guest_sends(&t, 1, &no_header, frame, lengths[i]);
            assert_host_gets(0, frame, lengths[i]);
        }
        assert_int_equal(stat_get(&stats(&t, 1)->packets), 4);
        assert_int_equal(stat_get(&stats(&t, 1)->write_bytes), 14 + 60 + 1514 + 65549);
        assert_int_equal(stat_get(&stats(&t, 1)->errors), 0);
        end(&t);
    }
}

/* Row 9 for frames: the header cut anywhere, and the rest into ever more pieces. */
static void test_row_09_any_layout(void **state)
{
    uint8_t frame[1514];
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 5);
    put(&t, &no_header, frame, sizeof(frame));
    for (uint32_t cut = 1; cut < 30; cut++) {
        struct segment out[2] = {{t.out, cut}, {{t.out.addr + cut}, HEADER + 1514 - cut}};

        send_segments(&t, 1, out, 2);
        assert_host_gets(0, frame, 1514);
    }
    for (unsigned n = 3; n < 60; n += 7) {
        struct segment out[64];

        for (uint32_t i = 0; i < n; i++)
            out[i] = (struct segment){{t.out.addr + i}, i + 1 < n ? 1 : HEADER + 1514 - i};
        send_segments(&t, 1, out, n);
        assert_host_gets(0, frame, 1514);
    }
    for (unsigned n = 7; n < 60; n += 7) { /* the header with data behind it, in long lists */
        struct segment out[64];

        for (uint32_t i = 0; i < n; i++)
            out[i] = (struct segment){{t.out.addr + (i == 0 ? 0 : 19 + i)},
                                      i == 0 ? 20 : i + 1 < n ? 1 : HEADER + 1514 - 19 - i};
        send_segments(&t, 1, out, n);
        assert_host_gets(0, frame, 1514);
    }
    /* Too short for a header, or for an Ethernet header behind it. */
    for (uint32_t len = 1; len < HEADER + 14; len++) {
        struct segment out = {t.out, len};

        send_segments(&t, 1, &out, 1);
    }
    assert_int_equal(stat_get(&stats(&t, 1)->errors), HEADER + 13);
    guest_sends(&t, 1, &no_header, frame, 64);
    assert_host_gets(0, frame, 64); /* and nothing before it */
    end(&t);
}

struct header_case {
    struct virtio_net_hdr_v1 header;
    uint32_t len;
    bool good;
    uint64_t without;
};

static void checks_headers(void **state)
{
#define CSUM .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16
    static const struct header_case cases[] = {
        {.header = {.flags = 0}, .len = 65553, .good = true},
        {.header = {.flags = 0}, .len = 65554},
        {.header = {CSUM}, .len = 1000, .good = true},
        {.header = {CSUM}, .len = 52, .good = true},
        {.header = {CSUM}, .len = 51},
        {.header = {.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff}, .len = 1000},
        {.header = {.flags = 0, .csum_start = 0xffff, .csum_offset = 0xffff}, .len = 1000, .good = true},
        {.header = {CSUM, .gso_type = 1, .gso_size = 1448, .hdr_len = 66}, .len = 9000, .good = true},
        {.header = {CSUM, .gso_type = 4, .gso_size = 1448}, .len = 9000, .good = true},
        {.header = {CSUM, .gso_type = 0x81, .gso_size = 1448}, .len = 9000, .good = true},
        {.header = {CSUM, .gso_type = 5, .gso_size = 1400}, .len = 9000, .good = true},
        {.header = {CSUM, .gso_type = 1, .gso_size = 1448, .hdr_len = 0xffff}, .len = 9000, .good = true},
        {.header = {CSUM, .gso_type = 1}, .len = 9000},                  /* segments of nothing */
        {.header = {CSUM, .gso_type = 1, .gso_size = 1}, .len = 9000},
        {.header = {CSUM, .gso_type = 5, .gso_size = 8}, .len = 9000},
        {.header = {CSUM, .gso_type = 0x85, .gso_size = 1400}, .len = 9000},
        {.header = {CSUM, .gso_type = 3, .gso_size = 1448}, .len = 9000}, /* UFO: never offered */
        {.header = {CSUM, .gso_type = 2, .gso_size = 1448}, .len = 9000},
        {.header = {CSUM, .gso_type = 0x80, .gso_size = 1448}, .len = 9000},
        {.header = {CSUM, .gso_type = 0x7f, .gso_size = 1448}, .len = 9000},
        {.header = {.gso_type = 1, .gso_size = 1448}, .len = 9000},       /* without NEEDS_CSUM */
        {.header = {CSUM, .gso_type = 1, .gso_size = 1448}, .len = 9000, .without = NET(HOST_TSO4)},
        {.header = {CSUM, .gso_type = 4, .gso_size = 1448}, .len = 9000, .without = NET(HOST_TSO6)},
        {.header = {CSUM, .gso_type = 0x81, .gso_size = 1448}, .len = 9000, .without = NET(HOST_ECN)},
        {.header = {CSUM, .gso_type = 5, .gso_size = 1448}, .len = 9000, .without = NET(HOST_USO)},
    };
    static uint8_t frame[65560], got[80000];

    (void)state;
    make_frame(frame, OWN_MAC, sizeof(frame), 5);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct header_case *c = &cases[i];
        struct virtio_net_hdr_v1 header;
        struct test t;
        size_t len;

        start(&t, &(struct set_up){.without = c->without});
        guest_sends(&t, 1, &c->header, frame, c->len);
        len = host_gets(0, &header, got);
        if (len != (c->good ? c->len : 0))
            fail_msg("case %u: %zu bytes of %u", i, len, c->len);
        assert_int_equal(stat_get(&stats(&t, 1)->errors), !c->good);
        if (c->good) {
            assert_int_equal(header.gso_type, c->header.gso_type);
            assert_int_equal(header.gso_size, c->header.gso_size);
            assert_int_equal(header.num_buffers, 0);
            assert_true(header.hdr_len <= c->len);
        }
        end(&t);
    }
    /* Flags that mean nothing here are not passed on, and without CSUM none is. */
    for (unsigned i = 0; i < 2; i++) {
        struct virtio_net_hdr_v1 header = {.flags = 0xff, .csum_start = 34, .csum_offset = 16};
        struct test t;

        start(&t, &(struct set_up){.without = i == 0 ? 0 : NET(CSUM)});
        guest_sends(&t, 1, &header, frame, 100);
        assert_int_equal(host_gets(0, &header, got), 100);
        assert_int_equal(header.flags, i == 0 ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0);
        end(&t);
    }
}

static void transmits_in_batches(void **state)
{
    uint8_t frame[100];
    struct test t;
    uint64_t before, batches;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < 32; i++) {
        struct segment out = {{t.out.addr + i * 256}, HEADER + 100};

        memset(ram(&t, out.addr, 0), 0, HEADER);
        make_frame(fake_ram(t.m->fake, out.addr.addr + HEADER, 100), OWN_MAC, 100, i);
        assert_true(ring_add(&t.driver.rings[1], &out, 1, NULL, 0, &t, false) >= 0);
    }
    before = stat_get(&loop_stats(t.m->loop)->syscalls);
    driver_kick(&t.driver, 1);
    machine_settle(t.m);
    batches = stat_get(&stats(&t, 1)->batches);
    assert_true(stat_get(&loop_stats(t.m->loop)->syscalls) - before <= 3);
    assert_true(batches >= 1 && batches <= 2);
    for (unsigned i = 0; i < 32; i++) {
        make_frame(frame, OWN_MAC, 100, i);
        assert_host_gets(0, frame, 100);
    }
    end(&t);
}

/* ---- commands ---- */

static uint8_t command(struct test *t, uint8_t class, uint8_t cmd, const void *data, uint32_t len)
{
    unsigned queue = 2 * t->pairs;
    struct segment out[2] = {{t->out, 2}, {{t->out.addr + 2}, len}};
    struct segment in = {t->in, 1};
    struct ring_used used;

    *ram(t, t->out, 0) = class;
    *ram(t, t->out, 1) = cmd;
    if (len > 0)
        memcpy(fake_ram(t->m->fake, t->out.addr + 2, len), data, len);
    *ram(t, t->in, 0) = UNWRITTEN;
    assert_true(ring_add(&t->driver.rings[queue], out, len > 0 ? 2 : 1, &in, 1, t, false) >= 0);
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
    assert_true(ring_get(&t->driver.rings[queue], &used));
    assert_int_equal(used.len, 1);
    return *ram(t, t->in, 0);
}

static uint8_t mode(struct test *t, uint8_t cmd, uint8_t on)
{
    return command(t, VIRTIO_NET_CTRL_RX, cmd, &on, 1);
}

static uint8_t vlan(struct test *t, uint8_t cmd, uint16_t id)
{
    id = htole16(id);
    return command(t, VIRTIO_NET_CTRL_VLAN, cmd, &id, 2);
}

/* Does a frame to this address (and in this VLAN, if it is not 0) come through? */
static bool passes(struct test *t, const char *to, uint16_t id)
{
    struct virtio_net_hdr_v1 header;
    uint8_t frame[64], got[80000];
    struct segment in = {{t->in.addr + 4096}, 2048};
    uint64_t drops = stat_get(&stats(t, 0)->drops);
    size_t len;

    make_frame(frame, to, sizeof(frame), 0);
    if (id != 0)
        memcpy(frame + 12, (uint8_t[]){0x81, 0, (uint8_t)(0xe0 | id >> 8), (uint8_t)id}, 4);
    if (ring_in_flight(&t->driver.rings[0]) < 2) {
        post(t, 0, &in, 1);
        driver_kick(&t->driver, 0);
    }
    host_sends(t, 0, frame, sizeof(frame));
    len = guest_gets(t, 0, &header, got);
    assert_int_equal(stat_get(&stats(t, 0)->drops) - drops, len == 0);
    return len > 0;
}

#define BROADCAST "\xff\xff\xff\xff\xff\xff"
#define OTHER "\x00\x16\x3e\x09\x09\x09"
#define GROUP "\x33\x33\x00\x00\x00\x01"
#define GROUP2 "\x01\x00\x5e\x00\x00\x01"

static void filters(void **state)
{
    static const char no_macs[8];
    static const char macs[] = "\x01\x00\x00\x00" OTHER "\x01\x00\x00\x00" GROUP;
    static char many[4 + 100 * 6 + 4];
    struct test t;

    (void)state;
    start(&t, NULL);
    /* At first everything. */
    assert_true(passes(&t, OTHER, 0) && passes(&t, GROUP, 0) && passes(&t, BROADCAST, 0));
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    assert_true(passes(&t, OWN_MAC, 0) && passes(&t, BROADCAST, 0));
    assert_false(passes(&t, OTHER, 0) || passes(&t, GROUP, 0));
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, macs,
                             sizeof(macs) - 1),
                     VIRTIO_NET_OK);
    assert_true(passes(&t, OTHER, 0) && passes(&t, GROUP, 0));
    assert_false(passes(&t, GROUP2, 0) || passes(&t, "\x00\x16\x3e\x09\x09\x08", 0));
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, no_macs, 8),
                     VIRTIO_NET_OK);
    assert_false(passes(&t, OTHER, 0) || passes(&t, GROUP, 0));
    /* More than the table holds: all of that kind. */
    many[0] = 100;
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, many,
                             sizeof(many)),
                     VIRTIO_NET_OK);
    assert_true(passes(&t, OTHER, 0));
    assert_false(passes(&t, GROUP, 0));
    command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, no_macs, 8);
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_ALLMULTI, 1), VIRTIO_NET_OK);
    assert_true(passes(&t, GROUP2, 0) && !passes(&t, OTHER, 0));
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_NOMULTI, 1), VIRTIO_NET_OK);
    assert_false(passes(&t, GROUP2, 0));
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_ALLUNI, 1), VIRTIO_NET_OK);
    assert_true(passes(&t, OTHER, 0));
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_NOUNI, 1), VIRTIO_NET_OK);
    assert_false(passes(&t, OTHER, 0) || passes(&t, OWN_MAC, 0));
    assert_true(passes(&t, BROADCAST, 0));
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_NOBCAST, 1), VIRTIO_NET_OK);
    assert_false(passes(&t, BROADCAST, 0));
    /* A reset takes all of it back. */
    driver_restart(&t.driver);
    assert_true(passes(&t, OTHER, 0) && passes(&t, GROUP, 0) && passes(&t, BROADCAST, 0));
    end(&t);
}

static void filters_vlans(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL);
    assert_true(passes(&t, OWN_MAC, 5)); /* 5.1.6.5.1.1: all that comes */
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    assert_true(passes(&t, OWN_MAC, 0));
    assert_false(passes(&t, OWN_MAC, 5) || passes(&t, OWN_MAC, 4095));
    assert_int_equal(vlan(&t, VIRTIO_NET_CTRL_VLAN_ADD, 5), VIRTIO_NET_OK);
    assert_int_equal(vlan(&t, VIRTIO_NET_CTRL_VLAN_ADD, 4095), VIRTIO_NET_OK);
    assert_true(passes(&t, OWN_MAC, 5) && passes(&t, OWN_MAC, 4095) && !passes(&t, OWN_MAC, 6));
    assert_int_equal(vlan(&t, VIRTIO_NET_CTRL_VLAN_DEL, 5), VIRTIO_NET_OK);
    assert_false(passes(&t, OWN_MAC, 5));
    assert_int_equal(vlan(&t, VIRTIO_NET_CTRL_VLAN_ADD, 4096), VIRTIO_NET_ERR);
    assert_int_equal(vlan(&t, 2, 5), VIRTIO_NET_ERR);
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 1), VIRTIO_NET_OK);
    assert_true(passes(&t, OTHER, 6));
    end(&t);
    start(&t, &(struct set_up){.without = NET(CTRL_VLAN)});
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    assert_true(passes(&t, OWN_MAC, 5));
    end(&t);
}

static void changes_its_address(void **state)
{
    uint32_t generation;
    struct test t;

    (void)state;
    start(&t, NULL);
    mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 0);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(config_field(&t, i, 1), (uint8_t)OWN_MAC[i]);
    generation = machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION);
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, OTHER, 6),
                     VIRTIO_NET_OK);
    /* Another CPU may be reading it, in several accesses. */
    assert_int_not_equal(machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_int_equal(driver_take_isr(t.m) & VIRTIO_MMIO_INT_CONFIG, 0);
    assert_true(passes(&t, OTHER, 0) && !passes(&t, OWN_MAC, 0));
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(config_field(&t, i, 1), (uint8_t)OTHER[i]);
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, GROUP, 6),
                     VIRTIO_NET_ERR);
    driver_restart(&t.driver);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(config_field(&t, i, 1), (uint8_t)OWN_MAC[i]);
    end(&t);
}

static uint8_t pairs(struct test *t, uint16_t n)
{
    n = htole16(n);
    return command(t, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &n, 2);
}

static void uses_many_queues(void **state)
{
    uint8_t frame[64];
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.pairs = 3});
    assert_int_equal(CONFIG(&t, max_virtqueue_pairs), 3);
    assert_true(tap.used[0] && !tap.used[1] && !tap.used[2]);
    assert_int_equal(pairs(&t, 3), VIRTIO_NET_OK);
    assert_true(tap.used[0] && tap.used[1] && tap.used[2]);
    for (unsigned i = 0; i < 3; i++) {
        make_frame(frame, OWN_MAC, sizeof(frame), i);
        post_many(&t, 2 * i, 1, 2048);
        host_sends(&t, i, frame, sizeof(frame));
        assert_gets(&t, 2 * i, frame, sizeof(frame));
        guest_sends(&t, 2 * i + 1, &no_header, frame, sizeof(frame));
        assert_host_gets(i, frame, sizeof(frame));
    }
    assert_int_equal(pairs(&t, 0), VIRTIO_NET_ERR);
    assert_int_equal(pairs(&t, 4), VIRTIO_NET_ERR);
    assert_int_equal(pairs(&t, 0x8000), VIRTIO_NET_ERR);
    assert_int_equal(pairs(&t, 2), VIRTIO_NET_OK);
    assert_true(tap.used[0] && tap.used[1] && !tap.used[2]);
    driver_restart(&t.driver);
    assert_true(tap.used[0] && !tap.used[1]);
    end(&t);
    /* 5.1.2: without MQ the third queue is for commands, and the rest mean nothing. */
    start(&t, &(struct set_up){.pairs = 2, .without = NET(MQ)});
    t.pairs = 1;
    assert_int_equal(mode(&t, VIRTIO_NET_CTRL_RX_PROMISC, 0), VIRTIO_NET_OK);
    assert_int_equal(pairs(&t, 2), VIRTIO_NET_ERR);
    t.pairs = 2;
    post_many(&t, 3, 2, 100);
    assert_int_equal(ring_in_flight(&t.driver.rings[3]), 2);
    struct ring_used used;
    assert_true(ring_get(&t.driver.rings[3], &used));
    assert_int_equal(used.len, 0);
    assert_true(ring_get(&t.driver.rings[3], &used));
    end(&t);
}

/*
 * Row 26: each change in the host costs the whole host. What changes nothing is free; a driver that
 * changes all the time has to wait.
 */
static void test_row_26_changes_the_host(void **state)
{
    struct segment out = {{0}, 4}, in = {{0}, 1};
    struct ring_used used;
    unsigned before, answers = 0;
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.pairs = 3});
    before = tap.changes;
    for (unsigned i = 0; i < 500; i++)
        assert_int_equal(pairs(&t, 1), VIRTIO_NET_OK);
    assert_int_equal(tap.changes, before);
    for (unsigned i = 0; i < 500; i++) {
        out.addr.addr = t.out.addr + i % 2 * 4;
        in.addr.addr = t.in.addr;
        memcpy(fake_ram(t.m->fake, out.addr.addr, 4),
               i % 2 ? "\x04\x00\x03\x00" : "\x04\x00\x01\x00", 4);
        if (ring_add(&t.driver.rings[6], &out, 1, &in, 1, &t, false) < 0)
            break;
        driver_kick(&t.driver, 6);
        while (ring_get(&t.driver.rings[6], &used))
            answers++;
    }
    assert_in_range(tap.changes - before, 10, 150);
    /* It goes on by itself. */
    for (int i = 0; i < 300 && !ring_get(&t.driver.rings[6], &used); i++) {
        usleep(10000);
        machine_settle(t.m);
    }
    assert_ptr_equal(used.token, &t);
    assert_true(answers > 0);
    /* A reset does not wait, and nor does what has nothing to do with it. */
    driver_restart(&t.driver);
    assert_true(tap.used[0] && !tap.used[1]);
    end(&t);
}

/* The same for one that resets the device again and again, which nobody can make wait. */
static void test_row_26_resets_change_the_host(void **state)
{
    const uint64_t features = NET(GUEST_TSO4) | NET(GUEST_TSO6) | NET(GUEST_ECN) | NET(GUEST_USO4);
    struct test t;
    unsigned before;
    int64_t begin;

    (void)state;
    start(&t, NULL);
    begin = monotonic_ns();
    before = tap.offload_changes;
    for (unsigned i = 0; i < 500; i++)
        driver_restart(&t.driver);
    assert_int_equal(tap.offload_changes, before);
    for (unsigned i = 0; i < 3001; i++) {
        t.driver.features ^= features;
        driver_restart(&t.driver);
    }
    /* A second's worth at once, and one for each millisecond that this took. */
    assert_in_range(tap.offload_changes - before, 900,
                    1002 + (monotonic_ns() - begin) / INT64_C(1000000));
    for (unsigned i = 0; i < 500 && tap.offloads != NET_OFFLOAD_CSUM; i++) {
        usleep(10000);
        machine_settle(t.m);
    }
    assert_int_equal(tap.offloads, NET_OFFLOAD_CSUM);
    end(&t);
}

#define COALESCE_NS INT64_C(40000000)
#define FOREVER_US 4000000000

static uint8_t coalesce(struct test *t, uint8_t cmd, uint32_t packets, uint32_t us)
{
    const uint32_t wire[2] = {htole32(packets), htole32(us)};

    return command(t, 6 /* NOTF_COAL */, cmd, wire, sizeof(wire));
}

static void listen_for_interrupts(struct test *t, unsigned queue)
{
    struct ring_used used;

    while (ring_get(&t->driver.rings[queue], &used))
        ;
    ring_interrupts_on(&t->driver.rings[queue]);
    driver_take_isr(t->m);
    fake_take_irqs(t->m->fake, MACHINE_IRQ);
}

/* When an interrupt comes. */
static int64_t interrupted_ns(struct test *t)
{
    while (fake_take_irqs(t->m->fake, MACHINE_IRQ) == 0)
        machine_settle(t->m);
    return monotonic_ns();
}

/* 5.1.6.5.9: an interrupt waits as long, or for as many, as the driver says, and no longer. */
static void coalesces_interrupts(void **state)
{
    static const struct set_up ways[] = {
        {.presets = {NULL}},
        {.without = F_EVENT_IDX},
        {.presets = {"packed=yes"}},
    };
    enum { TX_SET, RX_SET };
    uint8_t frame[100];
    struct test t0;

    (void)state;
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    for (unsigned w = 0; w < ARRAY_SIZE(ways); w++) {
        uint64_t slept;
        int64_t sent;
        struct test t;

        start(&t, &ways[w]);
        ring_interrupts_off(&t.driver.rings[1]);
        ring_interrupts_off(&t.driver.rings[2]);
        post_many(&t, 0, 30, 2048);
        listen_for_interrupts(&t, 0);
        host_sends(&t, 0, frame, sizeof(frame));
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1); /* nobody said anything yet */
        assert_int_equal(coalesce(&t, RX_SET, 4, FOREVER_US), VIRTIO_NET_OK);
        /* A lone one. The loop sleeps meanwhile. */
        listen_for_interrupts(&t, 0);
        sent = monotonic_ns();
        host_sends(&t, 0, frame, sizeof(frame));
        slept = stat_get(&loop_stats(t.m->loop)->sleeps);
        for (unsigned i = 0; i < 5; i++)
            event_loop_turn(t.m->loop, 1000000);
        assert_true(stat_get(&loop_stats(t.m->loop)->sleeps) - slept >= 4);
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);
        assert_int_equal(coalesce(&t, RX_SET, 4, COALESCE_NS / 1000), VIRTIO_NET_OK);
        assert_true(interrupted_ns(&t) - sent >= COALESCE_NS);
        assert_int_equal(coalesce(&t, RX_SET, 4, FOREVER_US), VIRTIO_NET_OK);
        /* Four. */
        listen_for_interrupts(&t, 0);
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);
            host_sends(&t, 0, frame, sizeof(frame));
        }
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1);
        /* The driver does not want it any more, or came by itself: 5.1.6.5.9.2. */
        listen_for_interrupts(&t, 0);
        host_sends(&t, 0, frame, sizeof(frame));
        if (w == 0)
            listen_for_interrupts(&t, 0);
        else
            ring_interrupts_off(&t.driver.rings[0]);
        assert_int_equal(coalesce(&t, RX_SET, 4, 0), VIRTIO_NET_OK);
        machine_settle(t.m);
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);
        /* It wants to wait no longer. */
        assert_int_equal(coalesce(&t, RX_SET, 0, FOREVER_US), VIRTIO_NET_OK);
        listen_for_interrupts(&t, 0);
        for (unsigned i = 0; i < 6; i++)
            host_sends(&t, 0, frame, sizeof(frame));
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);
        assert_int_equal(coalesce(&t, RX_SET, 0, 0), VIRTIO_NET_OK);
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1);
        ring_interrupts_off(&t.driver.rings[0]);
        /* The other direction has its own. */
        assert_int_equal(coalesce(&t, TX_SET, 2, FOREVER_US), VIRTIO_NET_OK);
        listen_for_interrupts(&t, 1);
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1);
        ring_interrupts_off(&t.driver.rings[1]);
        /* A queue that is reset owes nothing; a device that was knows nothing. */
        assert_int_equal(coalesce(&t, RX_SET, 9, FOREVER_US), VIRTIO_NET_OK);
        listen_for_interrupts(&t, 0);
        host_sends(&t, 0, frame, sizeof(frame));
        driver_restart(&t.driver);
        t.next = 0;
        post_many(&t, 0, 2, 2048);
        listen_for_interrupts(&t, 0);
        host_sends(&t, 0, frame, sizeof(frame));
        assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1);
        /* What makes no sense. */
        assert_int_equal(coalesce(&t, 2, 1, 1), VIRTIO_NET_ERR);
        assert_int_equal(command(&t, 6, RX_SET, frame, 7), VIRTIO_NET_ERR);
        end(&t);
    }
    start(&t0, &(struct set_up){.without = FEATURE(53)});
    assert_int_equal(coalesce(&t0, RX_SET, 1, 1), VIRTIO_NET_ERR);
    end(&t0);
}

/* Both queues of a pair belong to one I/O thread, and each pair to another than its neighbour. */
static void spreads_pairs(void **state)
{
    static const struct loop_config loop = {.entries = 8};
    const char *const presets[] = {"mac=00:16:3e:01:02:03", "mtu=1500", "queues=3", NULL};
    static struct device_stats counters;
    struct event_loop *loops[2];
    struct device_config config = {.name = "net1", .n_vcpus = 1};
    char error[CONFIG_ERROR_LEN];
    struct test t;

    (void)state;
    start(&t, NULL);
    loops[0] = t.m->loop;
    assert_int_equal(event_loop_create(&loop, &loops[1]), 0);
    const struct virtio_environment env = {.hv = t.m->hv, .memory = t.m->memory,
                                           .mmio_loop = t.m->loop, .io_loops = loops,
                                           .n_io_loops = 2};
    assert_int_equal(device_config_fill(&config, device_type_by_id(1), NULL, presets, error,
                                        sizeof(error)), 0);
    for (config.irq = MACHINE_IRQ; config.irq < MACHINE_IRQ + 2; config.irq++) {
        struct virtio_device *dev;
        int host = tap.host[0], fd = tap.fds[0];

        make_tap(config.fds, 3);
        config.n_fds = 3;
        memcpy(tap.fds, config.fds, sizeof(tap.fds));
        assert_int_equal(virtio_device_create(&virtio_net_ops, &env, &config, &counters, &dev, error,
                                              sizeof(error)), 0);
        for (unsigned i = 0; i < 6; i++)
            assert_ptr_equal(dev->queues[i].loop, loops[(config.irq + i / 2) % 2]);
        virtio_device_destroy(dev);
        lose_tap(3);
        tap.host[0] = host;
        tap.fds[0] = fd;
    }
    event_loop_destroy(loops[1]);
    device_config_free(&config);
    end(&t);
}

static void sets_offloads(void **state)
{
    const uint64_t guest = NET(GUEST_CSUM) | NET(GUEST_TSO4) | NET(GUEST_TSO6) | NET(GUEST_ECN) |
                           NET(GUEST_USO4) | NET(GUEST_USO6);
    uint64_t set;
    struct test t;

    (void)state;
    start(&t, NULL);
    assert_int_equal(tap.offloads, ALL_OFFLOADS);
#define SET(features)                                                                              \
    (set = htole64(features),                                                                      \
     command(&t, VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &set, 8))
    assert_int_equal(SET(0), VIRTIO_NET_OK);
    assert_int_equal(tap.offloads, 0);
    assert_int_equal(SET(NET(GUEST_CSUM) | NET(GUEST_TSO4)), VIRTIO_NET_OK);
    assert_int_equal(tap.offloads, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
    assert_int_equal(SET(NET(GUEST_TSO4)), VIRTIO_NET_OK); /* nothing without checksums */
    assert_int_equal(tap.offloads, 0);
    assert_int_equal(SET(guest), VIRTIO_NET_OK);
    assert_int_equal(tap.offloads, ALL_OFFLOADS);
    assert_int_equal(SET(NET(HOST_TSO4)), VIRTIO_NET_ERR);
    assert_int_equal(SET(UINT64_MAX), VIRTIO_NET_ERR);
    tap.error = -EIO;
    assert_int_equal(SET(0), VIRTIO_NET_ERR);
    tap.error = 0;
    end(&t);
    start(&t, &(struct set_up){.without = NET(GUEST_TSO6) | NET(GUEST_USO4)});
    assert_int_equal(tap.offloads, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_ECN);
    assert_int_equal(SET(NET(GUEST_CSUM) | NET(GUEST_TSO6)), VIRTIO_NET_ERR);
    end(&t);
    /* A TAP that can nothing. */
    start(&t, &(struct set_up){.can = UINT32_MAX});
    assert_int_equal(driver_offered(t.m) & (guest | NET(CSUM) | NET(HOST_TSO4) | NET(HOST_TSO6) |
                                            NET(HOST_ECN) | NET(HOST_USO) | NET(CTRL_GUEST_OFFLOADS)),
                     0);
    assert_int_equal(tap.offloads, 0);
    end(&t);
}

/* Row 22: sizes in commands that promise more than there is, or that nobody can hold. */
static void test_row_22_command_sizes(void **state)
{
    static const uint32_t counts[] = {1, 2, 64, 65, 0xffff, 0x2aaaaaab, 0x80000000, 0xffffffff};
    struct segment out, in;
    struct ring_used used;
    struct test t;
    uint8_t byte = 0;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        uint32_t table[2] = {htole32(counts[i]), 0};

        assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, 8),
                         VIRTIO_NET_ERR);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) { /* the second table only */
        uint32_t tables[2] = {0, htole32(counts[i])};

        assert_int_equal(command(&t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, 8),
                         VIRTIO_NET_ERR);
    }
    for (unsigned class = 0; class < 256; class += class < 7 ? 1 : 31)
        for (unsigned cmd = 0; cmd < 256; cmd += cmd < 7 ? 1 : 31)
            for (unsigned len = 0; len < 10; len++) {
                static const uint8_t ones[10] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
                uint8_t answer = command(&t, (uint8_t)class, (uint8_t)cmd, ones, len);

                assert_true(answer == VIRTIO_NET_ERR ||
                            (class == VIRTIO_NET_CTRL_ANNOUNCE && cmd == 0) ||
                            /* 4 G packets or an hour: a driver may want that */
                            (class == 6 /* NOTF_COAL */ && cmd < 2 && len >= 8));
            }
    /* No room for the answer; and nothing but that. */
    out = (struct segment){t.out, 3};
    assert_true(ring_add(&t.driver.rings[2], &out, 1, NULL, 0, &t, false) >= 0);
    in = (struct segment){t.in, 1};
    assert_true(ring_add(&t.driver.rings[2], NULL, 0, &in, 1, &t, false) >= 0);
    driver_kick(&t.driver, 2);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[2], &used) && used.len == 0);
    assert_true(ring_get(&t.driver.rings[2], &used) && used.len == 1);
    assert_int_equal(*ram(&t, t.in, 0), VIRTIO_NET_ERR);
    assert_int_equal(command(&t, VIRTIO_NET_CTRL_RX, 0, &byte, 1), VIRTIO_NET_OK);
    end(&t);
}

/* ---- the link ---- */

static int control(struct test *t, const char *request)
{
    char reply[256];
    int ret = t->m->dev->ops->control(t->m->dev, request, reply, sizeof(reply));

    machine_settle(t->m);
    return ret;
}

static void link_changes(void **state)
{
    uint8_t frame[64];
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    post_many(&t, 0, 4, 2048);
    driver_take_isr(t.m);
    assert_int_equal(CONFIG(&t, status), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(control(&t, "link down"), 0);
    assert_int_equal(driver_take_isr(t.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
    assert_int_equal(CONFIG(&t, status), 0);
    host_sends(&t, 0, frame, sizeof(frame));
    assert_true(gets_nothing(&t, 0));
    guest_sends(&t, 1, &no_header, frame, sizeof(frame));
    assert_int_equal(stat_get(&stats(&t, 0)->drops), 1);
    assert_int_equal(stat_get(&stats(&t, 1)->drops), 1);
    driver_take_isr(t.m);
    assert_int_equal(control(&t, "link down"), 0); /* as it was */
    assert_int_equal(driver_take_isr(t.m), 0);
    driver_restart(&t.driver); /* a reset plugs no cable in */
    assert_int_equal(CONFIG(&t, status), 0);
    assert_int_equal(control(&t, "link up"), 0);
    assert_int_equal(driver_take_isr(t.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
    assert_int_equal(CONFIG(&t, status), VIRTIO_NET_S_LINK_UP);
    guest_sends(&t, 1, &no_header, frame, sizeof(frame));
    assert_host_gets(0, frame, sizeof(frame)); /* and what was sent without a link is not there */
    t.next = 0;
    post_many(&t, 0, 1, 2048);
    host_sends(&t, 0, frame, sizeof(frame));
    assert_gets(&t, 0, frame, sizeof(frame));
    assert_int_equal(control(&t, "link sideways"), -EINVAL);
    assert_int_equal(control(&t, "resize"), -EINVAL);
    end(&t);
    start(&t, &(struct set_up){.presets = {"link=down"}});
    assert_int_equal(CONFIG(&t, status), 0);
    end(&t);
}

static void answer(struct test *t, int status, bool with_tap)
{
    int fds[PAIRS_MAX] = {-1, -1, -1};

    if (with_tap)
        make_tap(fds, t->pairs);
    t->m->dev->ops->answered(t->m->dev, t->ask_id, status, "no", fds, with_tap ? t->pairs : 0);
    for (unsigned i = 0; i < t->pairs; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    machine_settle(t->m);
}

static void wait_asked(struct test *t, unsigned asked)
{
    for (int i = 0; i < 1000 && t->asked < asked; i++) {
        usleep(10000);
        machine_settle(t->m);
    }
    assert_int_equal(t->asked, asked);
}

/* What the test and the device write to the log until then. */
static int log_pipe[2], log_saved;
static void take_log(void)
{
    assert_int_equal(pipe(log_pipe), 0);
    log_saved = dup(STDERR_FILENO);
    dup2(log_pipe[1], STDERR_FILENO);
    close(log_pipe[1]);
    log_set_level(LOG_LEVEL_INFO);
}

/* The lines; those with `what` are *found. */
static unsigned logged(const char *what, unsigned *found)
{
    static char text[65536];
    unsigned lines = 0;
    ssize_t n;

    log_set_level(LOG_LEVEL_ERROR);
    dup2(log_saved, STDERR_FILENO); /* the pipe's last end for writing */
    close(log_saved);
    n = read(log_pipe[0], text, sizeof(text) - 1);
    close(log_pipe[0]);
    text[n > 0 ? n : 0] = '\0';
    *found = 0;
    for (const char *p = text; (p = strstr(p, what)) != NULL; p++)
        ++*found;
    for (const char *p = text; (p = strchr(p, '\n')) != NULL; p++)
        lines++;
    return lines;
}

/*
 * Somebody takes each connection and ends it at once. He gets one a second, and the log says it twice:
 * that the interface is gone, and that the next one was gone as soon as it came.
 */
static void backend_flaps(void **state)
{
    unsigned gone, lines;
    struct test t;

    (void)state;
    start(&t, NULL);
    post_many(&t, 0, 4, 2048);
    take_log();
    lose_tap(1);
    machine_settle(t.m);
    assert_int_equal(t.asked, 1); /* the first time at once */
    for (unsigned i = 1; i < 4; i++) {
        int64_t came = monotonic_ns();

        answer(&t, 0, true);
        lose_tap(1);
        wait_asked(&t, i + 1);
        assert_true(monotonic_ns() - came >= INT64_C(1000000000));
    }
    /* One that stays is spoken of, and the end of that one, too: it is asked for at once. */
    answer(&t, 0, true);
    for (int64_t begun = monotonic_ns(); monotonic_ns() - begun < INT64_C(1100000000);)
        event_loop_turn(t.m->loop, 100000000);
    lose_tap(1);
    machine_settle(t.m);
    assert_int_equal(t.asked, 5);
    lines = logged("its interface is gone", &gone);
    assert_int_equal(gone, 3);
    assert_int_equal(lines, 3 + 1 /* has a new interface */ + 1 /* stays */);
    end(&t);
}

static void tap_is_lost(void **state)
{
    uint8_t frame[64];
    struct test t;

    (void)state;
    for (unsigned by_writing = 0; by_writing < 2; by_writing++) {
        start(&t, &(struct set_up){.pairs = 2});
        make_frame(frame, OWN_MAC, sizeof(frame), 0);
        assert_int_equal(pairs(&t, 2), VIRTIO_NET_OK);
        if (!by_writing)
            for (unsigned i = 0; i < 2; i++)
                post_many(&t, 2 * i, 4, 2048);
        driver_take_isr(t.m);
        lose_tap(2);
        tap.error = -EBADFD;
        machine_settle(t.m);
        if (by_writing)
            guest_sends(&t, 3, &no_header, frame, sizeof(frame));
        assert_int_equal(t.asked, 1);
        assert_string_equal(t.request, "tap 2");
        assert_int_equal(CONFIG(&t, status), 0);
        assert_int_equal(driver_take_isr(t.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
        for (unsigned i = 0; i < 50; i++)
            guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_int_equal(t.asked, 1);
        assert_int_equal(stat_get(&stats(&t, 1)->drops), 50);
        /* Settings while there is no TAP hold for the next one. */
        assert_int_equal(pairs(&t, 1), VIRTIO_NET_OK);
        answer(&t, -ENODEV, false);
        assert_int_equal(t.asked, 1); /* not before a second is over */
        for (int i = 0; i < 300 && t.asked == 1; i++) {
            usleep(10000);
            machine_settle(t.m);
        }
        assert_int_equal(t.asked, 2);
        tap.error = 0;
        tap.offloads = 0;
        tap.used[0] = false;
        tap.used[1] = true;
        answer(&t, 0, true);
        assert_int_equal(tap.offloads, ALL_OFFLOADS);
        assert_true(tap.used[0] && !tap.used[1]);
        assert_int_equal(CONFIG(&t, status), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
        assert_int_equal(driver_take_isr(t.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
        assert_int_equal(command(&t, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0),
                         VIRTIO_NET_OK);
        assert_int_equal(CONFIG(&t, status), VIRTIO_NET_S_LINK_UP);
        t.next = 0;
        post_many(&t, 0, 1, 2048);
        host_sends(&t, 0, frame, sizeof(frame));
        assert_gets(&t, 0, frame, sizeof(frame));
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_host_gets(0, frame, sizeof(frame));
        /* And again, with an answer that is too small, and one to another question. */
        lose_tap(2);
        post_many(&t, 0, 1, 2048);
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        wait_asked(&t, 3);
        answer(&t, 0, false);
        assert_int_equal(CONFIG(&t, status), 0);
        t.ask_id++;
        answer(&t, 0, true);
        assert_int_equal(CONFIG(&t, status), 0);
        lose_tap(2);
        end(&t);
    }
}

static void configuration(void **state)
{
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.pairs = 2});
    assert_int_equal(CONFIG(&t, mtu), 1500);
    assert_int_equal(CONFIG(&t, speed), 10000);
    assert_int_equal(CONFIG(&t, duplex), 1);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_DEVICE_ID), 1);
    end(&t);
    start(&t, NULL);
    assert_int_equal(driver_offered(t.m) & NET(MQ), 0);
    end(&t);
}

/* Row 17: nothing in configuration space can be written, at any width, and nothing lies behind it. */
static void test_row_17_configuration_space(void **state)
{
    static const unsigned widths[] = {1, 2, 4, 8};
    uint8_t before[0x100];
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.pairs = 2});
    for (uint32_t i = 0; i < 0x100; i++) {
        before[i] = (uint8_t)machine_read(t.m, VIRTIO_MMIO_CONFIG + i, 1);
        assert_true(i < 18 || before[i] == 0);
    }
    for (unsigned w = 0; w < ARRAY_SIZE(widths); w++)
        for (uint32_t i = 0; i + widths[w] <= 0x100; i++)
            machine_write(t.m, VIRTIO_MMIO_CONFIG + i, widths[w], UINT64_C(0x5a5a5a5a5a5a5a5a));
    for (uint32_t i = 0; i < 0x100; i++)
        assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + i, 1), before[i]);
    end(&t);
}

/* ---- hostile ---- */

/* Row 8, and 12 in the middle of a chain: buffers of nothing, too small ones, ones that are not there. */
static void test_row_08_useless_buffers(void **state)
{
    uint8_t frame[64];
    struct ring_used used;
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    for (uint32_t len = 0; len < HEADER; len++) {
        struct segment in = {t.in, len};

        post(&t, 0, &in, 1);
    }
    struct segment out = {t.out, 100}; /* to be read, where the device writes */
    assert_true(ring_add(&t.driver.rings[0], &out, 1, NULL, 0, &t, false) >= 0);
    struct segment gap[2] = {{{MACHINE_BASE}, 100}, {t.in, 2000}};
    post(&t, 0, gap, 2);
    driver_kick(&t.driver, 0);
    host_sends(&t, 0, frame, sizeof(frame));
    for (unsigned i = 0; i < HEADER + 2; i++) {
        assert_true(ring_get(&t.driver.rings[0], &used));
        assert_int_equal(used.len, 0);
    }
    assert_int_equal(stat_get(&stats(&t, 0)->errors), HEADER + 2);
    post_many(&t, 0, 1, 2048);
    assert_gets(&t, 0, frame, sizeof(frame));
    /* A frame to send that is not there, or partly. */
    struct segment missing[2] = {{{MACHINE_BASE}, 100}, {t.out, 100}};
    send_segments(&t, 1, missing, 2);
    struct segment late[3] = {{t.out, 50}, {{UINT64_MAX - 100}, 20}, {t.out, 50}};
    send_segments(&t, 1, late, 3);
    assert_int_equal(stat_get(&stats(&t, 1)->errors), 2);
    guest_sends(&t, 1, &no_header, frame, sizeof(frame));
    assert_host_gets(0, frame, sizeof(frame));
    /* Behind a good one that is too small for the largest frame: both come back, in order, and later. */
    if (virtio_has_feature(t.m->dev, VIRTIO_NET_F_MRG_RXBUF)) {
        struct segment small[2] = {{t.in, 100}, {t.in, 5}};

        while (ring_get(&t.driver.rings[0], &used))
            ;
        post(&t, 0, &small[0], 1);
        post(&t, 0, &small[1], 1);
        driver_kick(&t.driver, 0);
        host_sends(&t, 0, frame, sizeof(frame));
        for (unsigned i = 0; i < 2; i++) {
            assert_true(ring_get(&t.driver.rings[0], &used));
            assert_int_equal(used.len, 0);
        }
        assert_int_equal(stat_get(&stats(&t, 0)->errors), HEADER + 3);
        post_many(&t, 0, 1, 2048);
        assert_gets(&t, 0, frame, sizeof(frame));
    }
    end(&t);
}

static bool needs_reset(struct test *t)
{
    return (machine_read32(t->m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

/* Row 12: chains that end outside the guest's RAM, and commands that lie there. */
static void test_row_12_outside_ram(void **state)
{
    const struct segment hole = {{MACHINE_BASE}, 2048};
    struct ring_used used;
    uint8_t frame[64];
    struct test t;

    (void)state;
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    start(&t, NULL);
    for (unsigned queue = 0; queue < 3; queue++) {
        struct segment out = {t.out, 20};

        t.next = 0;
        assert_true(ring_add(&t.driver.rings[queue], queue == 0 ? NULL : queue == 1 ? &hole : &out,
                             queue > 0, queue == 1 ? NULL : &hole, queue != 1, &t, false) >= 0);
        driver_kick(&t.driver, (uint16_t)queue);
        if (queue != 1)
            host_sends(&t, 0, frame, sizeof(frame));
        /* Of a frame that is sent nothing is reported: it is one that was not. */
        assert_int_equal(needs_reset(&t), queue != 1);
        if (queue == 1) {
            assert_true(ring_get(&t.driver.rings[1], &used));
            assert_int_equal(stat_get(&t.m->stats->queues[1].errors), 1);
        }
        driver_restart(&t.driver);
        if (queue == 1)
            host_sends(&t, 0, frame, sizeof(frame));
        post_many(&t, 0, 4, 2048);
        assert_gets(&t, 0, frame, sizeof(frame)); /* it waited */
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_host_gets(0, frame, sizeof(frame));
    }
    /* A command of which a part is nowhere is not carried out, in parts neither. */
    struct segment command[3] = {{t.out, 2}, hole, {{t.out.addr + 2}, 1}};
    struct segment ack = {t.in, 1};
    memcpy(ram(&t, t.out, 0), "\0\0\0", 3); /* not promiscuous any more */
    assert_true(ring_add(&t.driver.rings[2], command, 3, &ack, 1, &t, false) >= 0);
    driver_kick(&t.driver, 2);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[2], &used));
    assert_int_equal(*ram(&t, t.in, 0), VIRTIO_NET_ERR);
    assert_true(passes(&t, OTHER, 0));
    end(&t);
}

/* Row 18: what was not negotiated cannot be commanded, nor sent. */
static void test_row_18_features(void **state)
{
    static const struct {
        uint64_t feature;
        uint8_t class, cmd, len;
    } commands[] = {
        {NET(CTRL_RX), VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1},
        {NET(CTRL_RX), VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, 8},
        {NET(CTRL_RX_EXTRA), VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, 1},
        {NET(CTRL_MAC_ADDR), VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 6},
        {NET(CTRL_VLAN), VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, 2},
        {NET(GUEST_ANNOUNCE), VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, 0},
        {NET(CTRL_GUEST_OFFLOADS), VIRTIO_NET_CTRL_GUEST_OFFLOADS,
         VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, 8},
        {FEATURE(53), 6 /* NOTF_COAL */, 0, 8},
    };
    static const uint8_t zeros[8];
    struct test t;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
        for (unsigned without = 0; without < 2; without++) {
            start(&t, &(struct set_up){.without = without ? commands[i].feature : 0});
            assert_int_equal(command(&t, commands[i].class, commands[i].cmd, zeros, commands[i].len),
                             without ? VIRTIO_NET_ERR : VIRTIO_NET_OK);
            end(&t);
        }
    /* Without CTRL_VQ the third queue is none, and gives back what is put there. */
    start(&t, &(struct set_up){.without = NET(CTRL_VQ)});
    struct segment out = {t.out, 3}, in = {t.in, 1};
    struct ring_used used;
    memcpy(ram(&t, t.out, 0), "\0\0\0", 3);
    assert_true(ring_add(&t.driver.rings[2], &out, 1, &in, 1, &t, false) >= 0);
    driver_kick(&t.driver, 2);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[2], &used));
    assert_int_equal(used.len, 0);
    assert_int_equal(*ram(&t, t.in, 0), UNWRITTEN);
    assert_true(passes(&t, OTHER, 0));
    end(&t);
}

/* Row 19: pages go in which buffers were posted, and frames lie that are to be sent. */
static void test_row_19_ballooning(void **state)
{
    uint8_t frame[1000];
    struct test t;
    gpa_t page;

    (void)state;
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        skip(); /* a page that is granted cannot go */
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    for (unsigned way = 0; way < 4; way++) {
        struct segment in[2], out[2];
        struct ring_used used;

        start(&t, NULL);
        page = guest_alloc(&t.m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
        in[way % 2] = (struct segment){page, 2048}; /* first or last of its chain */
        in[1 - way % 2] = (struct segment){t.in, 2048};
        out[way % 2] = in[way % 2];
        out[1 - way % 2] = (struct segment){t.out, 2048};
        if (way < 2)
            post(&t, 0, in, 2);
        else
            assert_true(ring_add(&t.driver.rings[1], out, 2, NULL, 0, &t, false) >= 0);
        if (way < 2)
            driver_kick(&t.driver, 0);
        machine_balloon_out(t.m, page.addr, 1);
        driver_kick(&t.driver, way < 2 ? 0 : 1);
        host_sends(&t, 0, frame, sizeof(frame)); /* the fake hypervisor watches where it goes */
        if (way != 1) {
            assert_false(needs_reset(&t));
            assert_true(ring_get(&t.driver.rings[way < 2 ? 0 : 1], &used));
            assert_int_equal(used.len, 0);
            assert_int_equal(stat_get(&stats(&t, way < 2 ? 0 : 1)->errors), 1);
        } else { /* where it would report, there is nothing */
            assert_true(needs_reset(&t));
            driver_restart(&t.driver);
        }
        t.next = 4096;
        post_many(&t, 0, 2, 2048);
        assert_gets(&t, 0, frame, sizeof(frame));
        fake_balloon_in(t.m->fake, page.addr, 1);
        end(&t);
    }
    /* Again and again, with frames on their way. */
    start(&t, NULL);
    page = guest_alloc(&t.m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    for (unsigned i = 0; i < 300; i++) {
        t.next = 0;
        post_many(&t, 0, 1, 2048);
        machine_balloon_out(t.m, page.addr, 1);
        host_sends(&t, 0, frame, sizeof(frame));
        assert_gets(&t, 0, frame, sizeof(frame));
        fake_balloon_in(t.m->fake, page.addr, 1);
        guest_sends(&t, 1, &no_header, frame, sizeof(frame));
        assert_host_gets(0, frame, sizeof(frame));
    }
    end(&t);
}

/* Row 25: thousands of frames and commands that cannot be, each worth a line of the log. */
static void test_row_25_log_flood(void **state)
{
    const struct virtio_net_hdr_v1 wrong = {.gso_type = 77};
    uint8_t frame[100];
    struct ring_used used;
    unsigned lines, found;
    int64_t begun;
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    begun = monotonic_ns();
    take_log();
    for (unsigned i = 0; i < 3000; i++) {
        struct segment in = {t.in, 3}, out = {t.out, 3};

        guest_sends(&t, 1, &wrong, frame, sizeof(frame));
        assert_int_equal(command(&t, 99, 99, frame, 10), VIRTIO_NET_ERR);
        post(&t, 0, &in, 1);
        driver_kick(&t.driver, 0);
        assert_true(ring_add(&t.driver.rings[2], &out, 1, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, 2);
        host_sends(&t, 0, frame, sizeof(frame));
        while (ring_get(&t.driver.rings[0], &used) || ring_get(&t.driver.rings[2], &used))
            ;
        if (i % 16 == 0) { /* the frames that came in vain */
            t.next = 0;
            post_many(&t, 0, 16, 2048);
            while (!gets_nothing(&t, 0))
                ;
        }
    }
    lines = logged("net0", &found);
    /* Four sites, a line a second each. */
    assert_in_range(lines, 1, 4 * (2 + (monotonic_ns() - begun) / 1000000000));
    assert_int_equal(stat_get(&stats(&t, 1)->errors), 3000);
    end(&t);
}

/* Row 11: a chain of gigabytes is not a frame. */
static void test_row_11_endless_frame(void **state)
{
    struct segment out[40];
    struct test t;

    (void)state;
    start(&t, NULL);
    memset(ram(&t, t.out, 0), 0, HEADER);
    for (unsigned i = 0; i < ARRAY_SIZE(out); i++)
        out[i] = (struct segment){{FAKE_BANK0_BASE}, (uint32_t)(32 << 20)};
    out[0] = (struct segment){t.out, 64};
    send_segments(&t, 1, out, ARRAY_SIZE(out));
    assert_int_equal(stat_get(&stats(&t, 1)->errors), 1);
    end(&t);
}

/* Row 11: a frame goes where the buffers say, also if those together have more than 4 GiB. */
static void test_row_11_endless_buffer(void **state)
{
    struct segment in[RING_INDIRECT_MAX];
    struct virtio_net_hdr_v1 header;
    uint64_t total = 0;
    uint8_t frame[1000];
    struct ring_used used;
    struct test t;

    (void)state;
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        skip(); /* nobody has references for 4 GiB, and what cannot be mapped at once is refused */
    start(&t, NULL);
    in[0] = (struct segment){t.in, HEADER};
    post(&t, 0, in, 1);
    in[0] = (struct segment){{t.in.addr + HEADER}, 2048};
    for (unsigned i = 1; i < ARRAY_SIZE(in); i++) {
        in[i] = (struct segment){{FAKE_BANK0_BASE}, 33818600};
        total += in[i].len;
    }
    /* With the header they make 4 GiB and 8 bytes. */
    in[127].len += (uint32_t)(UINT32_MAX - 3 - 2048 - total);
    post(&t, 0, in, ARRAY_SIZE(in));
    driver_kick(&t.driver, 0);
    machine_settle(t.m);
    make_frame(frame, OWN_MAC, sizeof(frame), 9);
    host_sends(&t, 0, frame, sizeof(frame));
    assert_true(ring_get(&t.driver.rings[0], &used));
    assert_int_equal(used.len, HEADER);
    assert_true(ring_get(&t.driver.rings[0], &used));
    assert_int_equal(used.len, sizeof(frame));
    memcpy(&header, ram(&t, t.in, 0), HEADER);
    assert_int_equal(header.num_buffers, 2);
    assert_memory_equal(fake_ram(t.m->fake, t.in.addr + HEADER, sizeof(frame)), frame, sizeof(frame));
    end(&t);
}

/* Row 14: resets, of the device and of each queue, at every moment of traffic. */
static void test_row_14_resets(void **state)
{
    static uint8_t frame[9000];
    static const char *const formats[] = {"packed=no", "packed=yes"};

    (void)state;
    make_frame(frame, OWN_MAC, sizeof(frame), 1);
    for (unsigned f = 0; f < 2; f++) {
        struct test t;

        start(&t, &(struct set_up){.presets = {formats[f]}});
        for (unsigned step = 0; step < 6; step++)
            for (unsigned queue = 0; queue < 2; queue++) {
                t.next = 0;
                post_many(&t, 0, step >= 1 ? 3 : 0, 2048);
                if (step >= 2)
                    host_sends(&t, 0, frame, 1000);
                if (step >= 3) /* one that waits for buffers */
                    host_sends(&t, 0, frame, 9000);
                if (step >= 4)
                    host_sends(&t, 0, frame, 1000);
                if (step == 5)
                    guest_sends(&t, 1, &no_header, frame, 100);
                driver_reset_queue(t.m, (uint16_t)queue);
                assert_int_equal(virtqueue_in_flight(t.m->dev->queues[queue].vq), 0);
                driver_restart(&t.driver);
                machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
                driver_restart(&t.driver);
                t.next = 0;
                post_many(&t, 0, 20, 2048);
                while (!gets_nothing(&t, 0))
                    ;
                host_sends(&t, 0, frame, 600);
                assert_gets(&t, 0, frame, 600);
                driver_restart(&t.driver);
                for (struct virtio_net_hdr_v1 h; step == 5;) {
                    static uint8_t got[80000];

                    if (host_gets(0, &h, got) == 0)
                        break;
                }
            }
        end(&t);
    }
}

/* Row 23: a frame's bytes and no others reach the guest. */
static void test_row_23_only_what_was_read(void **state)
{
    uint8_t frame[100];
    struct ring_used used;
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    post_many(&t, 0, 2, 2048);
    host_sends(&t, 0, frame, sizeof(frame));
    assert_true(ring_get(&t.driver.rings[0], &used));
    assert_int_equal(used.len, HEADER + sizeof(frame));
    for (unsigned i = HEADER + sizeof(frame); i < 4096; i++)
        assert_int_equal(*ram(&t, t.in, i), UNWRITTEN);
    /* What is no frame is not passed on at all. */
    assert_int_equal(write(tap.host[0], frame, HEADER + 13), HEADER + 13);
    assert_int_equal(write(tap.host[0], frame, 1), 1);
    machine_settle(t.m);
    assert_true(gets_nothing(&t, 0));
    assert_int_equal(stat_get(&stats(&t, 0)->errors), 2);
    end(&t);
}

/* Row 26: a guest that takes nothing costs nothing; one that breaks a queue is reset. */
static void test_row_26_never_receives(void **state)
{
    uint8_t frame[1000];
    uint64_t turns;
    struct test t;
    unsigned sent = 0;

    (void)state;
    start(&t, NULL);
    memset(frame, 0, HEADER);
    make_frame(frame + HEADER, OWN_MAC, sizeof(frame) - HEADER, 0);
    while (send(tap.host[0], frame, sizeof(frame), MSG_DONTWAIT) > 0)
        sent++;
    assert_true(sent > 10);
    machine_settle(t.m);
    turns = stat_get(&loop_stats(t.m->loop)->sleeps);
    for (unsigned i = 0; i < 10; i++)
        event_loop_turn(t.m->loop, 1000000);
    assert_int_equal(stat_get(&loop_stats(t.m->loop)->sleeps) - turns, 10); /* it slept each time */
    ram_store16(avail_idx(&t.driver.rings[0]), 5000);
    driver_kick(&t.driver, 0);
    machine_settle(t.m);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET,
                     VIRTIO_CONFIG_S_NEEDS_RESET);
    driver_restart(&t.driver);
    post_many(&t, 0, 1, 2048);
    assert_false(gets_nothing(&t, 0));
    end(&t);
}

/* A ring that breaks while frames come is found on the way to the TAP, too. */
static void breaks_under_traffic(void **state)
{
    uint8_t frame[1000];
    struct test t;

    (void)state;
    start(&t, NULL);
    make_frame(frame, OWN_MAC, sizeof(frame), 0);
    post_many(&t, 0, 2, 2048); /* one more: the device wants none now and looks at no ring */
    host_sends(&t, 0, frame, sizeof(frame));
    assert_gets(&t, 0, frame, sizeof(frame));
    ram_store16(avail_idx(&t.driver.rings[0]), 5000); /* without a word */
    host_sends(&t, 0, frame, sizeof(frame)); /* is lost with the ring */
    host_sends(&t, 0, frame, sizeof(frame));
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET,
                     VIRTIO_CONFIG_S_NEEDS_RESET);
    driver_restart(&t.driver);
    t.next = 0;
    post_many(&t, 0, 2, 2048);
    assert_gets(&t, 0, frame, sizeof(frame)); /* it had stayed in the TAP */
    end(&t);
}

/* As a good driver does it: a ring kept full, notified only if the device asks. Nothing may stall. */
static void streams(void **state)
{
    static const char *const formats[] = {"packed=no", "packed=yes"};
    static const uint64_t withouts[] = {0, F_EVENT_IDX};
    static uint8_t frame[65550], got[80000];
    static size_t lens[500];
    const uint32_t size = 2048;

    (void)state;
    for (unsigned f = 0; f < 4; f++) {
        unsigned sent = 0, received = 0, random = 1;
        struct virtio_net_hdr_v1 header;
        struct test t;

        start(&t, &(struct set_up){.presets = {formats[f % 2]}, .without = withouts[f / 2]});
        for (unsigned i = 0; i < 64; i++) {
            struct segment in = {{t.in.addr + (uint64_t)i * size}, size};

            post(&t, 0, &in, 1);
        }
        driver_kick_if_needed(&t.driver, 0);
        for (unsigned idle = 0; received < 500; idle++) {
            size_t len;

            if (idle > 200)
                fail_msg("%s: stalled after %u of %u frames", formats[f % 2], received, sent);
            while (sent < 500 && sent - received < 12) {
                struct iovec iov[2] = {{(void *)(uintptr_t)&no_header, HEADER}, {frame, 0}};

                random = random * 1103515245u + 12345u;
                len = (random >> 16) % 3 == 0 ? 30000 + (random >> 16) % 35000 : 60 + (random >> 16) % 9000;
                make_frame(frame, OWN_MAC, len, sent);
                iov[1].iov_len = len;
                if (writev(tap.host[0], iov, 2) < 0)
                    break;
                lens[sent++] = len;
            }
            event_loop_turn(t.m->loop, 1000000);
            machine_turn(t.m);
            /* What came; its buffers go straight back, in another order than they came in. */
            for (;;) {
                struct ring_used used;
                gpa_t back[64];
                unsigned n = 0, buffers = 1;

                len = 0;
                while (n < buffers && ring_get(&t.driver.rings[0], &used)) {
                    back[n] = (gpa_t){(uintptr_t)used.token};
                    memcpy(got + len, fake_ram(t.m->fake, back[n++].addr, used.len), used.len);
                    len += used.len;
                    if (n == 1) {
                        memcpy(&header, got, HEADER);
                        buffers = le16toh(header.num_buffers);
                    }
                }
                if (n == 0)
                    break;
                assert_int_equal(n, buffers);
                assert_int_equal(len, HEADER + lens[received]);
                make_frame(frame, OWN_MAC, lens[received], received);
                assert_memory_equal(got + HEADER, frame, lens[received]);
                received++;
                idle = 0;
                while (n > 0)
                    post(&t, 0, &(struct segment){back[--n], size}, 1);
                driver_kick_if_needed(&t.driver, 0);
            }
        }
        assert_int_equal(stat_get(&stats(&t, 0)->drops), 0);
        end(&t);
    }
}

/* Traffic, commands, pauses, a lost TAP and resets, with queues in a thread of their own. */
static void wait_used(struct test *t, unsigned queue, struct ring_used *used)
{
    int64_t end = monotonic_ns() + INT64_C(10000000000);

    while (!ring_get(&t->driver.rings[queue], used)) {
        assert_true(monotonic_ns() < end);
        machine_turn(t->m);
    }
}

static void with_threads(void **state)
{
    static uint8_t packet[HEADER + 1000], got[80000];
    struct segment in, out, ack;
    struct ring_used used;
    struct test t;

    (void)state;
    start(&t, &(struct set_up){.io_thread = true});
    memset(packet, 0, HEADER);
    make_frame(packet + HEADER, OTHER, 1000, 1);
    in = (struct segment){t.in, 2048};
    out = (struct segment){t.out, HEADER + 1000};
    ack = (struct segment){{t.in.addr + 4096}, 1};
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned i = 0; i < 8; i++) {
            post(&t, 0, &in, 1);
            driver_kick(&t.driver, 0);
            assert_int_equal(write(tap.host[0], packet, sizeof(packet)), sizeof(packet));
            memcpy(ram(&t, t.out, 0), packet, sizeof(packet));
            assert_true(ring_add(&t.driver.rings[1], &out, 1, NULL, 0, &t, false) >= 0);
            driver_kick(&t.driver, 1);
            wait_used(&t, 0, &used);
            assert_int_equal(used.len, sizeof(packet));
            wait_used(&t, 1, &used);
            while (read(tap.host[0], got, sizeof(got)) < 0)
                ;
            assert_memory_equal(got, packet, sizeof(packet));
            /* The address is in configuration space when the command is answered (5.1.6.5.2). */
            memcpy(ram(&t, t.out, 0), "\1\1\0\x16\x3e\2\2", 7);
            *ram(&t, t.out, 7) = (uint8_t)(round + i);
            struct segment set = {t.out, 8};
            assert_true(ring_add(&t.driver.rings[2], &set, 1, &ack, 1, &t, false) >= 0);
            driver_kick(&t.driver, 2);
            wait_used(&t, 2, &used);
            assert_int_equal(*ram(&t, t.in, 4096), VIRTIO_NET_OK);
            assert_int_equal(config_field(&t, 5, 1), (uint8_t)(round + i));
        }
        if (round % 4 == 0)
            machine_balloon_out(t.m, FAKE_BANK1_BASE, 1);
        if (round % 4 == 1)
            driver_restart(&t.driver);
        if (round % 20 == 2) { /* the next one comes a second later */
            int64_t end = monotonic_ns() + INT64_C(10000000000);
            unsigned asked = t.asked;

            post(&t, 0, &in, 1);
            driver_kick(&t.driver, 0);
            lose_tap(1);
            while (t.asked == asked) {
                assert_true(monotonic_ns() < end);
                machine_turn(t.m);
            }
            answer(&t, 0, true);
            driver_restart(&t.driver);
        }
    }
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(receives),
        cmocka_unit_test(receives_into_many_buffers),
        cmocka_unit_test(receives_large_frames),
        cmocka_unit_test(waits_for_buffers),
        cmocka_unit_test(gives_up_what_never_fits),
        cmocka_unit_test(receives_headers),
        cmocka_unit_test(receives_no_leftovers),
        cmocka_unit_test(buffers_without_notifications),
        cmocka_unit_test(pause_keeps_buffers),
        cmocka_unit_test(transmits),
        cmocka_unit_test(test_row_09_any_layout),
        cmocka_unit_test(checks_headers),
        cmocka_unit_test(transmits_in_batches),
        cmocka_unit_test(filters),
        cmocka_unit_test(filters_vlans),
        cmocka_unit_test(changes_its_address),
        cmocka_unit_test(uses_many_queues),
        cmocka_unit_test(coalesces_interrupts),
        cmocka_unit_test(spreads_pairs),
        cmocka_unit_test(test_row_26_changes_the_host),
        cmocka_unit_test(test_row_26_resets_change_the_host),
        cmocka_unit_test(sets_offloads),
        cmocka_unit_test(test_row_22_command_sizes),
        cmocka_unit_test(link_changes),
        cmocka_unit_test(tap_is_lost),
        cmocka_unit_test(backend_flaps),
        cmocka_unit_test(configuration),
        cmocka_unit_test(test_row_12_outside_ram),
        cmocka_unit_test(test_row_17_configuration_space),
        cmocka_unit_test(test_row_18_features),
        cmocka_unit_test(test_row_19_ballooning),
        cmocka_unit_test(test_row_25_log_flood),
        cmocka_unit_test(test_row_08_useless_buffers),
        cmocka_unit_test(test_row_11_endless_frame),
        cmocka_unit_test(test_row_11_endless_buffer),
        cmocka_unit_test(test_row_14_resets),
        cmocka_unit_test(test_row_23_only_what_was_read),
        cmocka_unit_test(test_row_26_never_receives),
        cmocka_unit_test(breaks_under_traffic),
        cmocka_unit_test(streams),
        cmocka_unit_test(with_threads),
    };

    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
