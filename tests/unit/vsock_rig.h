/* SPDX-License-Identifier: Apache-2.0 */
/* A vsock device in a fake machine: the guest's driver, and the host's sockets. */
#ifndef VIOD_VSOCK_RIG_H
#define VIOD_VSOCK_RIG_H

#include "unit.h"

#include <errno.h>
#include <linux/virtio_vsock.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "devices/vsock_internal.h"
#include "driver.h"
#include "log.h"

#define GUEST_CID 42u
#define RING 64u
#define RX_LEN 4096u
#define POISON 0xee
#define STREAM VIRTIO_VSOCK_TYPE_STREAM
#define MESSAGE VIRTIO_VSOCK_TYPE_SEQPACKET
#define ASKED_MAX 64u
#define OP_REQUEST VIRTIO_VSOCK_OP_REQUEST
#define OP_RESPONSE VIRTIO_VSOCK_OP_RESPONSE
#define OP_RST VIRTIO_VSOCK_OP_RST
#define OP_SHUTDOWN VIRTIO_VSOCK_OP_SHUTDOWN
#define OP_RW VIRTIO_VSOCK_OP_RW
#define OP_UPDATE VIRTIO_VSOCK_OP_CREDIT_UPDATE
#define OP_ASK VIRTIO_VSOCK_OP_CREDIT_REQUEST
#define NO_RCV VIRTIO_VSOCK_SHUTDOWN_RCV
#define NO_SEND VIRTIO_VSOCK_SHUTDOWN_SEND
#define BUFFER (128u * 1024)

struct packet {
    struct virtio_vsock_hdr h; /* in our byte order */
    uint32_t used;             /* bytes, as the device says */
    uint8_t data[RX_LEN];
};

struct question {
    uint32_t id;
    char text[64];
};

static struct {
    struct question questions[ASKED_MAX];
    unsigned n;
    int error; /* virtio_device_ask's */
} asked;

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    char folder[64], path[2][96];
    gpa_t rx, tx;
    bool consume;       /* rx buffers go back at once */
    unsigned rx_out;    /* rx buffers that the device has */
    uint32_t buf_alloc, fwd_cnt; /* what the guest says in its packets */
    uint32_t peer;      /* with whom it speaks: the host, unless said otherwise */
    int channel;        /* the supervisor's, with guest-to-guest=yes; -1: none */
};

static inline int vsock_rig_ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    (void)dev;
    if (asked.error != 0)
        return asked.error;
    assert_true(asked.n < ASKED_MAX);
    asked.questions[asked.n].id = id;
    snprintf(asked.questions[asked.n++].text, sizeof(asked.questions[0].text), "%s", request);
    return 0;
}

static inline struct vsock *vs_of(struct test *t) { return t->m->dev->priv; }

static inline uint64_t counter(struct test *t, enum vsock_counter which)
{
    return stat_get(&t->m->stats->own[which]);
}

static inline void post_rx(struct test *t, unsigned slot, uint32_t len)
{
    struct segment in = segment(t->rx.addr + slot * RX_LEN, len);

    memset(fake_ram(t->m->fake, in.addr.addr, RX_LEN), POISON, RX_LEN);
    assert_true(ring_add(&t->driver.rings[QUEUE_RX], NULL, 0, &in, 1,
                         (void *)(uintptr_t)(slot + 1), false) >= 0);
    t->rx_out++;
}

static inline void rig_begin(struct test *t, const char *const *presets, uint64_t without)
{
    struct machine_config machine = {.ops = &virtio_vsock_ops, .device = &t->config};
    const char *all[10] = {"cid=42", "queue-size=64"};
    char error[CONFIG_ERROR_LEN];
    unsigned n = 2;

    memset(t, 0, sizeof(*t));
    memset(&asked, 0, sizeof(asked));
    for (; presets != NULL && *presets != NULL; presets++)
        all[n++] = *presets;
    strcpy(t->config.name, "vsock0");
    t->config.virtio_id = 19;
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = 1;
    if (device_config_fill(&t->config, device_type_by_id(19), NULL, all, error, sizeof(error)))
        fail_msg("%s", error);
    strcpy(t->folder, "/tmp/test_vsock.XXXXXX");
    assert_non_null(mkdtemp(t->folder));
    for (unsigned i = 0; i < 2; i++) {
        snprintf(t->path[i], sizeof(t->path[i]), "%s/vsock%u", t->folder, i);
        t->config.fds[i] = vsock_listen(t->path[i], i == 1, error, sizeof(error));
        assert_true(t->config.fds[i] >= 0);
    }
    t->config.n_fds = 2;
    t->peer = VSOCK_HOST_CID;
    t->channel = -1;
    if (strcmp(device_config_string(&t->config, "guest-to-guest"), "no") != 0) {
        int pair[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
                         0);
        t->channel = pair[0];
        t->config.fds[t->config.n_fds++] = pair[1];
    }
    t->m = machine_create(&machine);
    assert_int_equal(t->config.fds[0], -1);
    t->m->dev->ask = vsock_rig_ask;
    driver_start(&t->driver, t->m, driver_offered(t->m) & ~without, QUEUES,
                 RING);
    t->rx = guest_alloc(&t->m->heap[0], RING * RX_LEN, 4096);
    t->tx = guest_alloc(&t->m->heap[0], 1u << 20, 4096);
    t->consume = true;
    t->buf_alloc = 256 * 1024;
}

static inline void rig_post_all(struct test *t)
{
    for (unsigned i = 0; i < RING; i++)
        post_rx(t, i, RX_LEN);
    driver_kick(&t->driver, QUEUE_RX);
}

static inline void start_with(struct test *t, const char *const *presets)
{
    rig_begin(t, presets, 0);
    rig_post_all(t);
}

static inline void start(struct test *t) { start_with(t, NULL); }

static inline void end(struct test *t)
{
    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
    if (t->channel >= 0)
        close(t->channel);
    for (unsigned i = 0; i < 2; i++)
        unlink(t->path[i]);
    assert_int_equal(rmdir(t->folder), 0);
}

/* The next packet for the guest. */
static inline bool receive_packet(struct test *t, struct packet *p)
{
    struct ring_used used;
    const uint8_t *at;
    unsigned slot;

    machine_settle(t->m);
    if (!ring_get(&t->driver.rings[QUEUE_RX], &used))
        return false;
    slot = (unsigned)(uintptr_t)used.token - 1;
    t->rx_out--;
    at = fake_ram(t->m->fake, t->rx.addr + slot * RX_LEN, RX_LEN);
    memset(p, 0, sizeof(*p));
    memcpy(&p->h, at, sizeof(p->h));
    memcpy(p->data, at + sizeof(p->h), RX_LEN - sizeof(p->h));
    p->used = used.len;
    for (unsigned i = used.len; i < RX_LEN; i++)
        assert_int_equal(at[i], POISON); /* nothing beyond what it says */
    if (t->consume) {
        post_rx(t, slot, RX_LEN);
        driver_kick(&t->driver, QUEUE_RX);
    }
    if (used.len == 0)
        return true;
    assert_int_equal(used.len, sizeof(p->h) + p->h.len);
    assert_int_equal(p->h.src_cid, t->peer);
    return true;
}

static inline void expect_nothing(struct test *t)
{
    struct packet p;

    if (receive_packet(t, &p))
        fail_msg("a packet %u for port %u", p.h.op, p.h.dst_port);
}

static inline struct packet *expect_packet(struct test *t, unsigned op, uint32_t host_port,
                                           uint32_t guest_port)
{
    static struct packet p;

    if (!receive_packet(t, &p))
        fail_msg("no packet, where %u was expected", op);
    assert_int_equal(p.h.op, op);
    assert_int_equal(p.h.src_port, host_port);
    assert_int_equal(p.h.dst_port, guest_port);
    assert_int_equal(p.h.dst_cid, GUEST_CID);
    return &p;
}

static inline struct virtio_vsock_hdr header(struct test *t, unsigned type, unsigned op,
                                             uint32_t guest_port, uint32_t host_port, uint32_t len,
                                             uint32_t flags)
{
    return (struct virtio_vsock_hdr){.src_cid = GUEST_CID,
                                     .dst_cid = t->peer,
                                     .src_port = guest_port,
                                     .dst_port = host_port,
                                     .len = len,
                                     .type = (uint16_t)type,
                                     .op = (uint16_t)op,
                                     .flags = flags,
                                     .buf_alloc = t->buf_alloc,
                                     .fwd_cnt = t->fwd_cnt};
}

/* A packet of the guest, with its data. Does not wait. */
static inline void post_tx(struct test *t, const struct virtio_vsock_hdr *h, const void *data,
                           uint32_t len)
{
    struct segment out[2] = {segment(t->tx.addr, sizeof(*h)), segment(t->tx.addr + 64, len)};
    struct ring_used used;

    memcpy(fake_ram(t->m->fake, t->tx.addr, sizeof(*h)), h, sizeof(*h));
    if (data != NULL)
        memcpy(fake_ram(t->m->fake, t->tx.addr + 64, len), data, len);
    assert_true(ring_add(&t->driver.rings[QUEUE_TX], out, len > 0 ? 2 : 1, NULL, 0, t, false) >= 0);
    driver_kick(&t->driver, QUEUE_TX);
    machine_settle(t->m);
    while (ring_get(&t->driver.rings[QUEUE_TX], &used))
        assert_int_equal(used.len, 0);
}

static inline void guest_says(struct test *t, unsigned type, unsigned op, uint32_t guest_port,
                              uint32_t host_port, uint32_t flags)
{
    struct virtio_vsock_hdr h = header(t, type, op, guest_port, host_port, 0, flags);

    post_tx(t, &h, NULL, 0);
}

static inline void guest_sends(struct test *t, unsigned type, uint32_t guest_port,
                               uint32_t host_port, const void *data, uint32_t len, uint32_t flags)
{
    struct virtio_vsock_hdr h =
        header(t, type, VIRTIO_VSOCK_OP_RW, guest_port, host_port, len, flags);

    post_tx(t, &h, data, len);
}

/* The supervisor's answer to the question number i. */
static inline void answer_question(struct test *t, unsigned i, int status, int fd)
{
    int fds[1] = {fd};

    t->m->dev->ops->answered(t->m->dev, asked.questions[i].id, status, "said the test", fds,
                             fd >= 0 ? 1 : 0);
    if (fd >= 0 && fds[0] >= 0)
        close(fds[0]); /* as the worker does */
    machine_settle(t->m);
}

/* The guest's call to a port; the host's end of it. */
static inline int guest_call(struct test *t, unsigned type, uint32_t guest_port, uint32_t host_port)
{
    unsigned before = asked.n;
    char text[64];
    int pair[2];

    guest_says(t, type, VIRTIO_VSOCK_OP_REQUEST, guest_port, host_port, 0);
    assert_int_equal(asked.n, before + 1);
    snprintf(text, sizeof(text), type == STREAM ? "connect %u" : "connect-seqpacket %u", host_port);
    assert_string_equal(asked.questions[before].text, text);
    assert_int_equal(socketpair(AF_UNIX, (type == STREAM ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC,
                                0, pair), 0);
    answer_question(t, before, 0, pair[0]);
    expect_packet(t, VIRTIO_VSOCK_OP_RESPONSE, host_port, guest_port);
    return pair[1];
}

static inline int host_connect(struct test *t, unsigned type)
{
    int fd = vsock_connect(t->path[type == MESSAGE], type == MESSAGE);

    assert_true(fd >= 0);
    return fd;
}

static inline void host_says(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* What the host's end gets; "" at the end of it, NULL: nothing yet. */
static inline const char *host_hears(int fd)
{
    static char text[4096];
    ssize_t n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);

    if (n < 0)
        return errno == EAGAIN ? NULL : "error";
    text[n] = '\0';
    return text;
}

#define assert_hears(fd, what)                                                                     \
    do {                                                                                           \
        const char *heard_ = host_hears(fd);                                                       \
        assert_non_null(heard_);                                                                   \
        assert_string_equal(heard_, what);                                                         \
    } while (0)

/* The host's call to the guest's port, accepted; *host_port is its own. */
static inline int host_call(struct test *t, unsigned type, uint32_t guest_port, uint32_t *host_port)
{
    int fd = host_connect(t, type);
    char text[64], line[64];
    struct packet p;

    snprintf(text, sizeof(text), "CONNECT %u\n", guest_port);
    host_says(fd, text);
    assert_true(receive_packet(t, &p));
    assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_REQUEST);
    assert_int_equal(p.h.dst_port, guest_port);
    assert_int_equal(p.h.type, type);
    *host_port = p.h.src_port;
    assert_null(host_hears(fd));
    guest_says(t, type, VIRTIO_VSOCK_OP_RESPONSE, guest_port, *host_port, 0);
    snprintf(line, sizeof(line), "OK %u\n", *host_port);
    assert_hears(fd, line);
    return fd;
}

/* Nothing of any connection is left. */
static inline void expect_no_connection(struct test *t)
{
    machine_settle(t->m);
    assert_int_equal(counter(t, COUNT_CONNECTIONS), 0);
    assert_int_equal(vs_of(t)->n_used, 0);
    assert_true(vs_of(t)->watches <= 3);
}

static inline uint8_t pattern(uint32_t i) { return (uint8_t)(i * 2654435761u >> 13 ^ i); }

static uint8_t big[1u << 20];

static inline void fill_big(void)
{
    for (uint32_t i = 0; i < sizeof(big); i++)
        big[i] = pattern(i);
}

/* Sends as a guest with credit does, until it has none; the bytes sent. */
static inline uint32_t send_to_the_end(struct test *t, unsigned type, uint32_t port, uint32_t fwd,
                                uint32_t sent, uint32_t piece, uint32_t flags)
{
    while (BUFFER - (sent - fwd) >= piece) {
        guest_sends(t, type, port, 1, big + sent, piece, flags);
        sent += piece;
        assert_true(sent <= sizeof(big) - piece);
        for (struct packet p; t->consume && receive_packet(t, &p);) {
            assert_int_equal(p.h.op, OP_UPDATE);
            assert_true(p.h.fwd_cnt - fwd <= sent - fwd);
            fwd = p.h.fwd_cnt;
        }
    }
    return sent;
}

static inline uint32_t read_all(int fd, uint32_t got)
{
    static uint8_t some[65536];
    ssize_t n;

    while ((n = recv(fd, some, sizeof(some), MSG_DONTWAIT)) > 0) {
        assert_memory_equal(some, big + got, (size_t)n);
        got += (uint32_t)n;
    }
    return got;
}

static inline struct packet *next_but_updates(struct test *t)
{
    static struct packet p;

    do
        assert_true(receive_packet(t, &p));
    while (p.h.op == OP_UPDATE);
    return &p;
}

#endif
