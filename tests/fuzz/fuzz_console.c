/* SPDX-License-Identifier: Apache-2.0 */
/* The console between any driver and a host's side that talks, listens, stops and leaves as it likes. */
#include "fuzz_machine.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PORTS 2u
#define CLIENTS 3u
#define QUEUES 6u

struct host {
    int peers[PORTS], clients[CLIENTS];
    struct sockaddr_un attach;
    socklen_t attach_len;
};
static struct host host;

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    int pair[2], fds[2] = {-1, -1};

    (void)request;
    if (id >= PORTS || host.peers[id] >= 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0) {
        dev->ops->answered(dev, id, -EAGAIN, "no", fds, 0);
        return 0;
    }
    host.peers[id] = pair[0];
    fds[0] = pair[1];
    dev->ops->answered(dev, id, 0, "", fds, 1);
    if (fds[0] >= 0)
        close(fds[0]);
    return 0;
}

static void drop(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void host_step(struct fuzz *f)
{
    uint8_t what = fuzz_u8(f), which = fuzz_u8(f);
    int *peer = &host.peers[which % PORTS], *client = &host.clients[which % CLIENTS];
    uint8_t bytes[256];
    size_t n = fuzz_u8(f);

    for (size_t i = 0; i < n; i++)
        bytes[i] = i < 8 ? fuzz_u8(f) : (uint8_t)i;
    switch (what % 8) {
    case 0: case 1:
        (void)!send(*peer, bytes, n, MSG_NOSIGNAL);
        break;
    case 2:
        while (recv(*peer, bytes, sizeof(bytes), 0) > 0)
            ;
        break;
    case 3:
        if (n > 200)
            drop(peer);
        break;
    case 4:
        drop(client);
        *client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)connect(*client, (struct sockaddr *)&host.attach, host.attach_len);
        break;
    case 5:
        bytes[0] = (uint8_t)"odse"[bytes[0] % 4];
        if (bytes[0] == ATTACH_OPEN) {
            bytes[1] %= 3;
            n = 2;
        }
        (void)!send(*client, bytes, n, MSG_NOSIGNAL);
        break;
    case 6:
        while (recv(*client, bytes, sizeof(bytes), 0) > 0)
            ;
        break;
    case 7:
        drop(client);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const presets[] = {"ports=console data", "console.backend=connect",
                                          "console.path=/a", "data.backend=connect", "data.path=/b",
                                          "data.announce=yes", NULL};
    struct fuzz f = {.host_step = host_step, .ask = ask};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    host.attach = (struct sockaddr_un){.sun_family = AF_UNIX};
    host.attach_len = sizeof(host.attach);
    /* A name in the abstract, chosen by the kernel. */
    if (bind(listener, (struct sockaddr *)&host.attach, sizeof(sa_family_t)) < 0 ||
        listen(listener, 8) < 0 ||
        getsockname(listener, (struct sockaddr *)&host.attach, &host.attach_len) < 0)
        fake_die("no socket");
    for (unsigned i = 0; i < PORTS; i++)
        host.peers[i] = -1;
    for (unsigned i = 0; i < CLIENTS; i++)
        host.clients[i] = -1;
    fuzz_configure(&f, 3, "console0", presets);
    f.config.fds[0] = listener;
    f.config.n_fds = 1;
    fuzz_run(&f, &virtio_console_ops, QUEUES, data, size);
    for (unsigned i = 0; i < PORTS; i++)
        drop(&host.peers[i]);
    for (unsigned i = 0; i < CLIENTS; i++)
        drop(&host.clients[i]);
    machine_settle(f.m);
    /* With nobody there, output is taken at once. */
    fuzz_post(&f, 1, 100, 0);
    driver_kick(&f.driver, 1);
    if (!fuzz_used(&f, 1))
        fake_die("the device does not work after a reset");
    fuzz_end(&f);
    return 0;
}
