/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network device on real TAP interfaces, in a network namespace of the test's own. Passes over
 * everything where the host does not let it make one.
 */
#include "driver.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"

#define HEADER 12u
#define LENGTH 200u

static bool possible;

static int find_out(void **state)
{
    int fd;

    (void)state;
    possible = unshare(CLONE_NEWNET) == 0 && (fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) >= 0;
    if (possible)
        close(fd);
    else
        print_message("no network namespace or no TAP here: nothing is tested\n");
    return 0;
}

#define need_tap()                                                                                 \
    do {                                                                                           \
        if (!possible)                                                                             \
            skip();                                                                                \
    } while (0)

static int open_tap(const char *name, unsigned queues, uint32_t mtu, int *fds)
{
    const struct net_tap_config config = {.name = name, .mtu = mtu, .queues = queues};
    char error[CONFIG_ERROR_LEN] = "";
    uint32_t got;
    int ret = net_tap_open(&config, fds, &got, error, sizeof(error));

    if (ret < 0)
        print_message("%s\n", error);
    else
        assert_int_equal(got, mtu ? mtu : 1500);
    return ret;
}

static int interface_mtu(const char *name)
{
    struct ifreq request = {0};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;

    strcpy(request.ifr_name, name);
    ret = ioctl(s, SIOCGIFMTU, &request);
    close(s);
    return ret < 0 ? -errno : request.ifr_mtu;
}

static void delete_interface(const char *name)
{
    struct {
        struct nlmsghdr head;
        struct ifinfomsg info;
    } request = {.head = {.nlmsg_len = sizeof(request), .nlmsg_type = RTM_DELLINK,
                          .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
                 .info = {.ifi_index = (int)if_nametoindex(name)}};
    char answer[1024];
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    assert_true(request.info.ifi_index > 0);
    assert_int_equal(send(s, &request, sizeof(request), 0), sizeof(request));
    assert_true(recv(s, answer, sizeof(answer), 0) > 0); /* done when answered */
    close(s);
    assert_int_equal(if_nametoindex(name), 0);
}

/* What the host's network sees and sends. */
static int packet_socket(const char *name)
{
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htobe16(ETH_P_ALL),
                             .sll_ifindex = (int)if_nametoindex(name)};
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htobe16(ETH_P_ALL));

    assert_true(s >= 0);
    assert_int_equal(bind(s, (struct sockaddr *)&to, sizeof(to)), 0);
    return s;
}

static void make_frame(uint8_t *frame, unsigned seed)
{
    memcpy(frame, "\x00\x16\x3e\x01\x02\x03\x02\x00\x00\x00\x00\x01\x88\xb5", 14);
    for (unsigned i = 14; i < LENGTH; i++)
        frame[i] = (uint8_t)(i + seed);
}

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    gpa_t buffer;
};

static void start(struct test *t, unsigned queues)
{
    const struct machine_config machine = {.ops = &virtio_net_ops, .device = &t->config};
    char error[CONFIG_ERROR_LEN], text[24];
    const char *const presets[] = {"mac=00:16:3e:01:02:03", "mtu=1500", text, NULL};

    memset(t, 0, sizeof(*t));
    snprintf(text, sizeof(text), "queues=%u", queues);
    strcpy(t->config.name, "net0");
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = 1;
    if (device_config_fill(&t->config, device_type_by_id(1), NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    assert_int_equal(open_tap("viodtest", queues, 0, t->config.fds), 0);
    t->config.n_fds = queues;
    t->m = machine_create(&machine);
    driver_start(&t->driver, t->m, driver_offered(t->m), 2 * queues + 1, 64);
    t->buffer = guest_alloc(&t->m->heap[0], 65536, 4096);
}

static void end(struct test *t)
{
    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
    /* With its last descriptor goes the interface; the kernel takes a moment. */
    for (int i = 0; i < 500 && if_nametoindex("viodtest") != 0; i++)
        usleep(10000);
    assert_int_equal(if_nametoindex("viodtest"), 0);
}

/* One frame each way. */
static void exchange(struct test *t, unsigned seed)
{
    int s = packet_socket("viodtest");
    uint8_t frame[LENGTH], got[2000];
    struct segment in = {t->buffer, 2048}, out = {{t->buffer.addr + 4096}, HEADER + LENGTH};
    struct ring_used used = {0};
    ssize_t len = -1;

    make_frame(frame, seed);
    assert_true(ring_add(&t->driver.rings[0], NULL, 0, &in, 1, t, false) >= 0);
    driver_kick(&t->driver, 0);
    assert_int_equal(write(s, frame, LENGTH), LENGTH);
    for (int i = 0; i < 500; i++) {
        machine_settle(t->m);
        if (ring_get(&t->driver.rings[0], &used)) {
            if (used.len == HEADER + LENGTH)
                break;
            /* The host's own chatter: router solicitations and the like. */
            assert_true(ring_add(&t->driver.rings[0], NULL, 0, &in, 1, t, false) >= 0);
            driver_kick(&t->driver, 0);
        }
        usleep(1000);
    }
    assert_int_equal(used.len, HEADER + LENGTH);
    assert_memory_equal(fake_ram(t->m->fake, t->buffer.addr + HEADER, LENGTH), frame, LENGTH);

    frame[0] = 0x02; /* the other way */
    memset(fake_ram(t->m->fake, out.addr.addr, HEADER), 0, HEADER);
    memcpy(fake_ram(t->m->fake, out.addr.addr + HEADER, LENGTH), frame, LENGTH);
    assert_true(ring_add(&t->driver.rings[1], &out, 1, NULL, 0, t, false) >= 0);
    driver_kick(&t->driver, 1);
    machine_settle(t->m);
    assert_true(ring_get(&t->driver.rings[1], &used));
    for (int i = 0; i < 500 && !(len == LENGTH && got[0] == 0x02); i++) {
        len = recv(s, got, sizeof(got), 0);
        if (len < 0)
            usleep(1000);
    }
    assert_int_equal(len, LENGTH);
    assert_memory_equal(got, frame, LENGTH);
    close(s);
}

static void frames(void **state)
{
    struct test t;

    (void)state;
    need_tap();
    start(&t, 1);
    for (unsigned i = 0; i < 5; i++)
        exchange(&t, i);
    driver_restart(&t.driver);
    exchange(&t, 9);
    assert_int_equal(stat_get(&t.m->stats->queues[1].packets), 6);
    assert_int_equal(stat_get(&t.m->stats->queues[1].errors), 0);
    end(&t);
}

/* The kernel's own checks: what it refuses is an error, and nothing more. */
static void frames_that_the_kernel_refuses(void **state)
{
    struct virtio_net_hdr_v1 header = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                       .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                                       .gso_size = 1448,
                                       .hdr_len = 14,
                                       .csum_start = 180,
                                       .csum_offset = 16};
    struct segment out;
    struct ring_used used;
    struct test t;

    (void)state;
    need_tap();
    start(&t, 1);
    out = (struct segment){t.buffer, HEADER + LENGTH};
    make_frame(fake_ram(t.m->fake, t.buffer.addr + HEADER, LENGTH), 0); /* no TCP at all */
    memcpy(fake_ram(t.m->fake, t.buffer.addr, HEADER), &header, HEADER);
    assert_true(ring_add(&t.driver.rings[1], &out, 1, NULL, 0, &t, false) >= 0);
    driver_kick(&t.driver, 1);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[1], &used));
    exchange(&t, 1);
    end(&t);
}

/*
 * What is lost within a second of its coming is asked for a second later, which is not what this looks at.
 * Meanwhile the host chatters, and the driver gives its buffers back.
 */
static void stay(struct test *t)
{
    struct segment in = {t->buffer, 2048};
    struct ring_used used;

    for (unsigned i = 0; i < 110; i++) {
        usleep(10000);
        machine_settle(t->m);
        while (ring_get(&t->driver.rings[0], &used))
            assert_true(ring_add(&t->driver.rings[0], NULL, 0, &in, 1, t, false) >= 0);
        driver_kick(&t->driver, 0);
    }
}

static void tap_is_deleted(void **state)
{
    struct test t;
    uint32_t before;

    (void)state;
    need_tap();
    start(&t, 2);
    /* As in any guest, there is always a buffer left. */
    struct segment in = {t.buffer, 2048};
    for (unsigned i = 0; i < 2; i++)
        assert_true(ring_add(&t.driver.rings[0], NULL, 0, &in, 1, &t, false) >= 0);
    exchange(&t, 1);
    for (unsigned round = 0; round < 3; round++) {
        int fds[2];

        before = t.m->dev->config[6];
        assert_int_equal(before & 1, 1);
        delete_interface("viodtest");
        for (int i = 0; i < 500 && t.m->dev->config[6] & 1; i++) {
            machine_settle(t.m);
            usleep(1000);
        }
        assert_int_equal(t.m->dev->config[6] & 1, 0);
        assert_int_equal(open_tap("viodtest", 2, 0, fds), 0);
        /* Nobody is there to ask here, so nobody was asked: question number 1, 2, ... */
        t.m->dev->ops->answered(t.m->dev, round + 1, 0, "", fds, 2);
        close(fds[0]);
        close(fds[1]);
        assert_int_equal(t.m->dev->config[6] & 1, 1);
        exchange(&t, round + 10);
        stay(&t);
    }
    end(&t);
}

static void offloads_and_queues(void **state)
{
    const unsigned tcp = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN;
    int fds[NET_PAIRS_MAX];
    char byte[1];

    (void)state;
    need_tap();
    assert_int_equal(open_tap("viodtest", 4, 9000, fds), 0);
    assert_int_equal(interface_mtu("viodtest"), 9000);
    assert_int_equal(net_tap_offloads(fds[0]) & tcp, tcp);
    assert_int_equal(net_tap_set_offloads(fds[0], tcp), 0);
    assert_int_equal(net_tap_set_offloads(fds[0], NET_OFFLOAD_TSO4), 0); /* none, without CSUM */
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 1; i < 4; i++) {
            assert_int_equal(net_tap_use_queue(fds[i], false), 0);
            assert_int_equal(net_tap_use_queue(fds[i], false), 0); /* as it is */
            assert_int_equal(net_tap_use_queue(fds[i], true), 0);
            assert_int_equal(net_tap_use_queue(fds[i], true), 0);
        }
    delete_interface("viodtest");
    assert_int_equal(net_tap_set_offloads(fds[0], tcp), -EBADFD);
    assert_int_equal(net_tap_offloads(fds[0]), 0);
    for (unsigned i = 0; i < 4; i++)
        close(fds[i]);
    /* There may never have been one. */
    assert_int_equal(net_tap_gone(4, fds), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(net_tap_set_offloads(fds[i], tcp), -EBADFD);
        assert_int_equal(read(fds[i], byte, sizeof(byte)), -1);
        assert_int_equal(errno, EBADFD);
        close(fds[i]);
    }
}

static void failures(void **state)
{
    static const struct {
        struct net_tap_config config;
        const char *says;
    } cases[] = {
        {{.name = "viodtest", .bridge = "nobridge", .queues = 1}, "there is no bridge \"nobridge\""},
        {{.name = "viodtest", .bridge = "lo", .queues = 1}, "is not a bridge"},
        {{.name = "lo", .queues = 1}, "interface lo: exists and cannot be used"},
        {{.name = "viodtest", .mtu = 60, .queues = 1}, "cannot set its MTU"},
    };
    int before = dup(0), after;

    (void)state;
    need_tap();
    close(before);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        char error[CONFIG_ERROR_LEN] = "";
        int fds[NET_PAIRS_MAX];
        uint32_t mtu;

        assert_true(net_tap_open(&cases[i].config, fds, &mtu, error, sizeof(error)) < 0);
        if (strstr(error, cases[i].says) == NULL)
            fail_msg("%s", error);
    }
    after = dup(0); /* no descriptor was left behind */
    close(after);
    assert_int_equal(before, after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames),
        cmocka_unit_test(frames_that_the_kernel_refuses),
        cmocka_unit_test(tap_is_deleted),
        cmocka_unit_test(offloads_and_queues),
        cmocka_unit_test(failures),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, find_out, NULL);
}
