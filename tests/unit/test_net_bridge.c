/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two guests, each with its own machine, I/O thread and TAP, on a bridge in a network namespace of the
 * test's own: one streams to the other with a window. Their drivers sleep until an interrupt comes, and
 * notify only when they are asked to: a wake-up that is lost anywhere ends the stream.
 */
#include "driver.h"
#include "unit.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"

#define HEADER 12u
#define LENGTH 1514u
#define RING 32u
#define BUFFER 2048u
/* More frames are on their way than a ring has places, so that its end matters, too. */
#define WINDOW 48u
#define ACK_EVERY 8u
#define PROBE UINT32_MAX /* the bridge forwards nothing before it has heard of the links */
#define PATIENCE_MS 20000

static bool possible;
static unsigned frames = 100000; /* VIOD_FRAMES */

static int bridge_ioctl(unsigned long what, const char *name, const char *port)
{
    struct ifreq request = {0};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;

    strcpy(request.ifr_name, name);
    if (port != NULL)
        request.ifr_ifindex = (int)if_nametoindex(port);
    ret = what == SIOCBRADDBR ? ioctl(s, what, name) : ioctl(s, what, &request);
    if (what == SIOCBRADDBR && ret == 0) {
        request.ifr_flags = IFF_UP;
        ret = ioctl(s, SIOCSIFFLAGS, &request);
    }
    close(s);
    return ret;
}

static int find_out(void **state)
{
    const char *n = getenv("VIOD_FRAMES");
    int fd;

    (void)state;
    possible = unshare(CLONE_NEWNET) == 0 && (fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) >= 0;
    if (possible) {
        close(fd);
        possible = bridge_ioctl(SIOCBRADDBR, "viodbr", NULL) == 0;
    }
    if (!possible)
        print_message("no network namespace, TAP or bridge here: nothing is tested\n");
    if (n != NULL)
        frames = (unsigned)strtoul(n, NULL, 10);
    return 0;
}

/* ---- a guest ---- */

struct guest {
    const char *tap, *format;
    uint8_t number;        /* in its address */
    bool sends;
    pthread_barrier_t *up; /* both are there */
    struct machine *m;
    struct device_config config;
    struct driver driver;
    gpa_t rx, tx;          /* RING buffers each */
    unsigned tx_next;
    unsigned sent, got, acked;
    bool ready;            /* an answer to a probe came */
    unsigned sleeps;
};

static void begin(struct guest *g)
{
    const struct machine_config machine = {
        .ops = &virtio_net_ops, .device = &g->config, .io_thread = true};
    const struct net_tap_config tap = {.name = g->tap, .mtu = 1500, .queues = 1};
    const char *const presets[] = {"mac=00:16:3e:01:02:03", "mtu=1500", "queues=1", g->format, NULL};
    char error[CONFIG_ERROR_LEN];
    uint32_t mtu;

    snprintf(g->config.name, sizeof(g->config.name), "net%u", g->number);
    g->config.base = MACHINE_BASE;
    g->config.irq = MACHINE_IRQ;
    g->config.n_vcpus = 1;
    if (device_config_fill(&g->config, device_type_by_id(1), NULL, presets, error, sizeof(error)) ||
        net_tap_open(&tap, g->config.fds, &mtu, error, sizeof(error)))
        fake_die("%s", error);
    if (bridge_ioctl(SIOCBRADDIF, "viodbr", g->tap) < 0)
        fake_die("%s does not go on the bridge", g->tap);
    g->config.n_fds = 1;
    g->m = machine_create(&machine);
    driver_start(&g->driver, g->m, driver_offered(g->m) & ~FEATURE(VIRTIO_NET_F_MRG_RXBUF), 3, RING);
    g->rx = guest_alloc(&g->m->heap[0], RING * BUFFER, 4096);
    g->tx = guest_alloc(&g->m->heap[0], RING * BUFFER, 4096);
}

static uint8_t *at(struct guest *g, gpa_t base, unsigned i)
{
    return fake_ram(g->m->fake, base.addr + (uint64_t)i * BUFFER, BUFFER);
}

static void post(struct guest *g, uintptr_t i)
{
    struct segment in = {{g->rx.addr + i * BUFFER}, BUFFER};

    if (ring_add(&g->driver.rings[0], NULL, 0, &in, 1, (void *)i, false) < 0)
        fake_die("no room for an rx buffer");
}

/* Frame `n`, or an acknowledgement of so many. False: the ring is full. */
static bool transmit(struct guest *g, unsigned n, bool is_ack)
{
    struct segment out = {{g->tx.addr + (uint64_t)(g->tx_next % RING) * BUFFER},
                          HEADER + (is_ack ? 60 : LENGTH)};
    uint8_t *frame = at(g, g->tx, g->tx_next % RING) + HEADER;

    if (ring_in_flight(&g->driver.rings[1]) == RING)
        return false;
    memset(frame - HEADER, 0, HEADER);
    memcpy(frame, "\x02\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x88\xb5", 14);
    frame[5] = (uint8_t)!g->number;
    frame[11] = g->number;
    memcpy(frame + 14, &n, sizeof(n));
    if (ring_add(&g->driver.rings[1], &out, 1, NULL, 0, NULL, false) < 0)
        fake_die("no room for a frame");
    g->tx_next++;
    return true;
}

/* Everything there is to do now. False: nothing. */
static bool work(struct guest *g)
{
    struct ring_used used;
    bool any = false, added = false, refilled = false;

    while (ring_get(&g->driver.rings[1], &used))
        any = true;
    while (ring_get(&g->driver.rings[0], &used)) {
        const uint8_t *frame = at(g, g->rx, (unsigned)(uintptr_t)used.token) + HEADER;
        unsigned n;

        any = true;
        if (used.len > HEADER + 18 && frame[12] == 0x88 && frame[13] == 0xb5) {
            memcpy(&n, frame + 14, sizeof(n));
            if (n == PROBE) {
                g->ready = true;
                added = !g->sends && transmit(g, PROBE, true);
            } else if (g->sends)
                g->acked = MAX(g->acked, n);
            else if (n != g->got++)
                fake_die("frame %u is here, and %u was to come; %u dropped", n, g->got - 1,
                         (unsigned)stat_get(&g->m->stats->queues[0].drops));
        }
        post(g, (uintptr_t)used.token);
        refilled = true;
    }
    if (refilled)
        driver_kick_if_needed(&g->driver, 0);
    while (g->sends && g->ready && g->sent < frames && g->sent - g->acked < WINDOW && transmit(g, g->sent, false)) {
        g->sent++;
        any = added = true;
    }
    if (!g->sends && (g->got - g->acked >= ACK_EVERY || (g->got == frames && g->acked < frames)) &&
        transmit(g, g->got, true)) {
        g->acked = g->got;
        any = added = true;
    }
    if (added)
        driver_kick_if_needed(&g->driver, 1);
    return any;
}

/* The entry so many places behind the next one to be used. */
static uint16_t position(const struct ring *ring, unsigned ahead)
{
    unsigned where = ring->used + ahead;
    bool wrap = ring->used_wrap;

    if (!ring->packed)
        return (uint16_t)where;
    if (where >= ring->size) {
        where -= ring->size;
        wrap = !wrap;
    }
    return (uint16_t)(where | (unsigned)wrap << 15);
}

/* As Linux does it: of what is transmitted, three quarters may be done before it wants to know. */
static void sleep_until_interrupt(struct guest *g)
{
    struct ring *rx = &g->driver.rings[0], *tx = &g->driver.rings[1];

    ring_interrupt_at(rx, position(rx, 0));
    ring_interrupt_at(tx, position(tx, ring_in_flight(tx) * 3 / 4));
    full_barrier();
    if (!work(g)) {
        g->sleeps++;
        if (!fake_wait_irq(g->m->fake, MACHINE_IRQ, PATIENCE_MS))
            fake_die("%s (%s): nothing comes any more: sent %u, acknowledged %u, got %u; rx: %u "
                     "frames, tx: %u, interrupts %u and %u, kicks %u and %u",
                     g->tap, g->format, g->sent, g->acked, g->got,
                     (unsigned)stat_get(&g->m->stats->queues[0].packets),
                     (unsigned)stat_get(&g->m->stats->queues[1].packets),
                     (unsigned)stat_get(&g->m->stats->queues[0].interrupts),
                     (unsigned)stat_get(&g->m->stats->queues[1].interrupts),
                     (unsigned)stat_get(&g->m->stats->queues[0].kicks),
                     (unsigned)stat_get(&g->m->stats->queues[1].kicks));
        fake_take_irqs(g->m->fake, MACHINE_IRQ);
        driver_take_isr(g->m);
    }
    ring_interrupts_off(rx);
    ring_interrupts_off(tx);
}

static void *live(void *arg)
{
    struct guest *g = arg;

    begin(g);
    for (unsigned i = 0; i < RING; i++)
        post(g, i);
    driver_kick_if_needed(&g->driver, 0);
    pthread_barrier_wait(g->up);
    while (g->sends && !g->ready) {
        transmit(g, PROBE, false);
        driver_kick_if_needed(&g->driver, 1);
        usleep(20000);
        work(g);
    }
    while (g->acked < frames)
        if (!work(g))
            sleep_until_interrupt(g);
    /* What is still on its way out is the other's last word. */
    while (ring_in_flight(&g->driver.rings[1]) > 0)
        if (!work(g))
            usleep(100);
    pthread_barrier_wait(g->up);
    machine_destroy(g->m);
    driver_end(&g->driver);
    device_config_free(&g->config);
    return NULL;
}

static void talk(const char *from, const char *to)
{
    struct guest guests[2] = {{.tap = "viodfrom", .format = from, .number = 0, .sends = true},
                              {.tap = "viodto", .format = to, .number = 1}};
    pthread_barrier_t up;
    pthread_t threads[2];

    pthread_barrier_init(&up, NULL, 2);
    for (unsigned i = 0; i < 2; i++) {
        guests[i].up = &up;
        assert_int_equal(pthread_create(&threads[i], NULL, live, &guests[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&up);
    print_message("%s to %s: %u frames, %u and %u sleeps\n", from, to, frames, guests[0].sleeps,
                  guests[1].sleeps);
    for (int i = 0; i < 500 && (if_nametoindex("viodfrom") != 0 || if_nametoindex("viodto") != 0); i++)
        usleep(10000);
}

static void guests_talk(void **state)
{
    static const char *const formats[] = {"packed=no", "packed=yes"};

    (void)state;
    if (!possible)
        skip();
    for (unsigned i = 0; i < 4; i++)
        talk(formats[i / 2], formats[i % 2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(guests_talk)};

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, find_out, NULL);
}
