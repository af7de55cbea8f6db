/* SPDX-License-Identifier: Apache-2.0 */
/* The network device under any driver, with any frames and losses on the host's side. */
#include "fuzz_machine.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend.h"

/* So that a few buffers of a page are always enough. */
#define FRAME_LIMIT 9000u

static struct {
    int ends[2]; /* the TAP: a socket with message boundaries */
    bool asked;
    uint32_t id;
} host;

unsigned net_tap_offloads(int fd)
{
    (void)fd;
    return NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO;
}

int net_tap_set_offloads(int fd, unsigned offloads)
{
    (void)fd;
    (void)offloads;
    return 0;
}

int net_tap_use_queue(int fd, bool use)
{
    (void)fd;
    (void)use;
    return 0;
}

static int make_tap(void)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
        fake_die("socketpair");
    host.ends[0] = pair[1];
    return pair[0];
}

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    (void)dev;
    (void)request;
    host.asked = true;
    host.id = id;
    return 0;
}

/* What the device sent must be a frame behind a header that was checked. */
static void take_frames(void)
{
    static uint8_t frame[70000];
    ssize_t len;

    while ((len = recv(host.ends[0], frame, sizeof(frame), 0)) > 0)
        if (len < 12 + 14 || (frame[0] & ~1) != 0 || len > 12 + 65553)
            fake_die("a frame of %zd bytes with flags %#x", len, frame[0]);
}

static void host_step(struct fuzz *f)
{
    static uint8_t frame[70000];
    uint8_t what = fuzz_u8(f);
    size_t len = fuzz_u16(f);

    take_frames();
    if (f->m->dev->ask == NULL)
        f->m->dev->ask = ask;
    if (what % 16 == 0 && host.ends[0] >= 0 && !host.asked) {
        close(host.ends[0]);
        host.ends[0] = -1;
    } else if (host.asked) {
        int fd = what % 2 ? make_tap() : -1;

        host.asked = false;
        f->m->dev->ops->answered(f->m->dev, host.id, fd < 0 ? -ENODEV : 0, "", &fd, fd >= 0);
        if (fd >= 0)
            close(fd);
    } else if (what % 16 == 2) { /* a command, well-formed but for what it says */
        uint8_t *at = fake_ram(f->m->fake, f->buffer.addr + 2 * 2048, 32);

        for (unsigned i = 0; i < 16; i++)
            at[i] = fuzz_u8(f);
        at[0] %= 8;
        at[1] %= 8;
        fuzz_post(f, 2, 2 + (uint32_t)len % 20, 1);
        driver_kick(&f->driver, 2);
    } else if (what % 16 == 1) {
        char reply[256];

        f->m->dev->ops->control(f->m->dev, what & 16 ? "link up" : "link down", reply, sizeof(reply));
    } else {
        len = 1 + len % (what % 4 != 0 ? 3000 : FRAME_LIMIT); /* 0 would be the end of a socket */
        memset(frame, what, sizeof(frame));
        for (unsigned i = 0; i < 8 && i < len; i++)
            frame[i + 10] = fuzz_u8(f);
        (void)!send(host.ends[0], frame, len, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const presets[] = {"mac=00:16:3e:01:02:03", "mtu=1500", NULL};
    struct fuzz f = {.left = 0};

    signal(SIGPIPE, SIG_IGN);
    host.asked = false;
    f.host_step = host_step;
    fuzz_configure(&f, 1, "net0", presets);
    f.config.fds[0] = make_tap();
    f.config.n_fds = 1;
    fuzz_run(&f, &virtio_net_ops, 3, data, size);
    /* It works, if there is a TAP. */
    if (host.ends[0] >= 0 && f.m->dev->config[6] & 1) {
        static const uint8_t frame[12 + 60];

        for (unsigned i = 0; !fuzz_used(&f, 0); i++) {
            if (i < 8) {
                fuzz_post(&f, 0, 0, 2000);
                driver_kick(&f.driver, 0);
            }
            (void)!send(host.ends[0], frame, sizeof(frame), 0); /* or what is there already */
            machine_settle(f.m);
            if (i > 64)
                fake_die("the device does not work after a reset");
        }
    }
    fuzz_end(&f);
    if (host.ends[0] >= 0)
        close(host.ends[0]);
    return 0;
}
