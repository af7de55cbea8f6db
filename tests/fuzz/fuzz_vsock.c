/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device under any driver, any supervisor, and any clients and services of the host. Whatever
 * they did, it works after a reset.
 */
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices/vsock_internal.h"
#include "fuzz_machine.h"

#define PEERS 8u
#define QUESTIONS 32u

struct host {
    struct sockaddr_un at[2];
    socklen_t at_len[2];
    int peers[PEERS];
    int channel; /* calls of other guests */
    uint32_t questions[QUESTIONS];
    unsigned n_questions;
    bool busy; /* nobody takes questions */
};

static struct host host;

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    unsigned port;
    char word[24];

    (void)dev;
    if (sscanf(request, "%23s %u", word, &port) != 2)
        fake_die("a question that is none: %s", request);
    if (host.busy || host.n_questions == QUESTIONS)
        return -EAGAIN;
    host.questions[host.n_questions++] = id;
    return 0;
}

static int listen_somewhere(unsigned which)
{
    int fd = socket(AF_UNIX, (which == 0 ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    host.at[which].sun_family = AF_UNIX;
    host.at_len[which] = sizeof(host.at[which]);
    /* Without a name the kernel makes one up. */
    if (fd < 0 || bind(fd, (struct sockaddr *)&host.at[which], sizeof(sa_family_t)) < 0 ||
        listen(fd, 8) < 0 ||
        getsockname(fd, (struct sockaddr *)&host.at[which], &host.at_len[which]) < 0)
        fake_die("no socket: %s", strerror(errno));
    return fd;
}

static void set_peer(unsigned i, int fd)
{
    if (host.peers[i] >= 0)
        close(host.peers[i]);
    host.peers[i] = fd;
}

static void answer(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);
    unsigned which;
    int pair[2] = {-1, -1};
    uint32_t id;

    if (host.n_questions == 0)
        return;
    which = fuzz_u8(f) % host.n_questions;
    id = host.questions[which];
    if ((how & 64) == 0) /* else it will be answered twice */
        host.questions[which] = host.questions[--host.n_questions];
    if (how % 8 < 6 &&
        socketpair(AF_UNIX, (how % 2 ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0, pair) == 0)
        set_peer(fuzz_u8(f) % PEERS, pair[1]);
    f->m->dev->ops->answered(f->m->dev, how & 128 ? fuzz_u32(f) : id,
                             how % 8 < 6 ? 0 : how % 8 == 6 ? -EAGAIN : -ENOENT, "", pair,
                             pair[0] >= 0 ? 1 : 0);
    if (pair[0] >= 0)
        close(pair[0]);
}

/* A packet that a driver could send, with few ports, so that they meet. */
static void packet(struct fuzz *f)
{
    struct virtio_vsock_hdr h = {.src_cid = htole64(3), .dst_cid = htole64(2)};
    uint8_t how = fuzz_u8(f);
    uint32_t len = how & 16 ? fuzz_u16(f) % 1900 : 0;

    h.op = htole16(fuzz_u8(f) % 10);
    h.type = htole16(how % 16 == 15 ? 3 : 1 + (how & 1));
    {
        uint8_t port = fuzz_u8(f);

        h.src_port = htole32(port % 4);
        if (port & 128) /* another guest */
            h.dst_cid = htole64(4 + (port >> 4) % 2);
    }
    h.dst_port = htole32(fuzz_u8(f) % 2);
    if (how & 32) /* an answer to a call of the host */
        h.dst_port = htole32(0x40000000u + fuzz_u8(f) % 8);
    h.len = htole32(how & 64 ? fuzz_u32(f) : len);
    h.flags = htole32(fuzz_u8(f) % 4);
    h.buf_alloc = htole32(how & 128 ? fuzz_u32(f) : 65536);
    h.fwd_cnt = htole32(how & 8 ? fuzz_u32(f) : 0);
    memcpy(fake_ram(f->m->fake, f->buffer.addr + QUEUE_TX * 2048, sizeof(h)), &h, sizeof(h));
    fuzz_post(f, QUEUE_TX, (uint32_t)sizeof(h) + len, 0);
    driver_kick(&f->driver, QUEUE_TX);
}

static void other_guest_calls(struct fuzz *f, bool seqpacket, unsigned i)
{
    uint8_t what = fuzz_u8(f);
    struct vsock_call call = {.from_cid = 4 + what % 2, .from_port = what / 2 % 2,
                              .to_port = what / 4 % 4, .seqpacket = seqpacket};
    int pair[2];

    if (socketpair(AF_UNIX, (seqpacket ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0, pair) < 0)
        return;
    (void)vsock_pass_call(host.channel, &call, pair[0]);
    close(pair[0]);
    set_peer(i, pair[1]);
}

/* A word that an accepted call ends with; or nearly. */
static void other_guest_answers(int fd, uint8_t what)
{
    static const char *const words[] = {"OK 1\n", "OK", " 2\n", "NO\n"};
    const char *word = words[what % 4];

    (void)!send(fd, word, strlen(word), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void host_step(struct fuzz *f)
{
    static char data[65536];
    uint8_t what = fuzz_u8(f);
    unsigned i = fuzz_u8(f) % PEERS;
    int fd = host.peers[i];

    switch (what % 16) {
    case 0: case 1: case 2: case 3: case 4: packet(f); return;
    case 5: case 6: answer(f); return;
    case 7: {
        unsigned which = what / 16 % 2;
        int made;

        if (what & 128) {
            other_guest_calls(f, which == 1, i);
            return;
        }
        made = socket(AF_UNIX, (which ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

        if (connect(made, (struct sockaddr *)&host.at[which], host.at_len[which]) < 0) {
            close(made);
            return;
        }
        set_peer(i, made);
        return;
    }
    case 8: {
        char text[32];
        int n;

        if (what & 128) {
            other_guest_answers(fd, fuzz_u8(f));
            return;
        }
        n = snprintf(text, sizeof(text), "CONNECT %u\n", fuzz_u8(f) % 4);

        (void)!send(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        return;
    }
    case 9: {
        size_t n = what & 128 ? fuzz_u16(f) : fuzz_u8(f) % 16;

        for (size_t k = 0; k < MIN(n, (size_t)16); k++)
            data[k] = (char)fuzz_u8(f);
        (void)!send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        return;
    }
    case 10: (void)!recv(fd, data, sizeof(data), MSG_DONTWAIT); return;
    case 11:
        if (fd >= 0)
            shutdown(fd, what / 16 % 3);
        return;
    case 12: set_peer(i, -1); return;
    case 13: {
        struct vsock *vs = f->m->dev->priv;
        struct vsock_connection *c;

        /* Time passes. */
        TAILQ_FOREACH(c, &vs->timed, timed_link)
            if (what & 16 || c->deadline_ns % 2)
                c->deadline_ns = 1;
        if (vs->loop != NULL)
            vsock_tick(&vs->tick);
        return;
    }
    case 14: {
        char reply[128];

        if (what & 128)
            (void)f->m->dev->ops->control(f->m->dev, "transport-reset", reply, sizeof(reply));
        host.busy = what & 16;
        return;
    }
    default:
        for (unsigned n = fuzz_u8(f) % 4; n > 0; n--)
            fuzz_post(f, QUEUE_RX, 0, 1 + fuzz_u16(f) % 2048u);
        driver_kick(&f->driver, QUEUE_RX);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const presets[] = {"cid=3", "connections=6", "buffer-size=4", NULL};
    struct fuzz f = {.host_step = host_step};

    memset(&host, 0, sizeof(host));
    for (unsigned i = 0; i < PEERS; i++)
        host.peers[i] = -1;
    fuzz_configure(&f, 19, "vsock0", presets);
    for (unsigned i = 0; i < 2; i++)
        f.config.fds[i] = listen_somewhere(i);
    {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
            fake_die("no channel: %s", strerror(errno));
        host.channel = pair[0];
        f.config.fds[2] = pair[1];
    }
    f.config.n_fds = 3;
    f.ask = ask;
    fuzz_run(&f, &virtio_vsock_ops, QUEUES, data, size);
    /* It works. */
    close(host.channel);
    for (unsigned i = 0; i < PEERS; i++)
        set_peer(i, -1);
    fuzz_post(&f, QUEUE_RX, 0, 1000);
    driver_kick(&f.driver, QUEUE_RX);
    {
        struct virtio_vsock_hdr h = {.src_cid = htole64(3), .dst_cid = htole64(2),
                                     .type = htole16(9), .op = htole16(1)};

        memcpy(fake_ram(f.m->fake, f.buffer.addr + QUEUE_TX * 2048, sizeof(h)), &h, sizeof(h));
        fuzz_post(&f, QUEUE_TX, sizeof(h), 0);
        driver_kick(&f.driver, QUEUE_TX);
    }
    machine_settle(f.m);
    if (!fuzz_used(&f, QUEUE_RX))
        fake_die("the device does not work after a reset");
    fuzz_end(&f);
    return 0;
}
