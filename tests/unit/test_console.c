/* SPDX-License-Identifier: Apache-2.0 */
/* The console in a fake machine, with real streams on the host's side: sockets, a pty, files. */
#include "driver.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_console.h>
#include <poll.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "config.h"
#include "devices/console_state.h"
#include "devices/table.h"
#include "log.h"

#define RX 0u
#define TX 1u
#define CONTROL_RX 2u
#define CONTROL_TX 3u
#define CONFIG_INTERRUPT 2u
#define F_SIZE FEATURE(VIRTIO_CONSOLE_F_SIZE)
#define F_MULTIPORT FEATURE(VIRTIO_CONSOLE_F_MULTIPORT)
#define RING_SIZE (128u * 1024u)
#define GUEST CONSOLE_GUEST_OPEN

struct test {
    struct machine *m;
    struct device_config config;
    struct guest_identity guest;
    struct driver driver;
    gpa_t out, in; /* 1 MiB, 64 KiB */
    char answer[128];
};

/* The supervisor's half, answered at once: the real one's code. */
static struct test *current;
static unsigned asks, answers_fail;
static bool io_thread; /* of the next machine */

static int ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    const struct device_type *type = device_type_by_id(3);
    int fds[DEVICE_FDS_MAX], ret;
    char error[CONFIG_ERROR_LEN] = "";

    asks++;
    for (unsigned i = 0; i < DEVICE_FDS_MAX; i++)
        fds[i] = -1;
    ret = answers_fail > 0 ? -EIO : type->ask(&current->config, request, fds, error, sizeof(error));
    if (answers_fail > 0)
        answers_fail--;
    dev->ops->answered(dev, id, ret < 0 ? ret : 0, error, fds, ret > 0 ? (size_t)ret : 0);
    for (unsigned i = 0; i < DEVICE_FDS_MAX; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return 0;
}

static void create(struct test *t, const char *const *presets)
{
    const struct machine_config machine = {.ops = &virtio_console_ops, .device = &t->config};
    const struct device_type *type = device_type_by_id(3);
    char error[CONFIG_ERROR_LEN];
    static char text[8192];
    int fd, len, memory;

    memset(t, 0, sizeof(*t));
    current = t;
    asks = answers_fail = 0;
    strcpy(t->guest.run_dir, "/tmp/viod-test-console.XXXXXX");
    assert_non_null(mkdtemp(t->guest.run_dir));
    strcpy(t->config.name, "console0");
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = 1;
    if (device_config_fill(&t->config, type, NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    t->config.guest = &t->guest;
    if (type->open(&t->config, error, sizeof(error)) < 0)
        fail_msg("%s", error);
    assert_int_equal(t->config.n_fds, 2);
    fd = t->config.fds[0];
    memory = t->config.fds[1];
    /* The worker's copy went through a text. */
    len = device_config_encode(&t->config, text, sizeof(text));
    assert_true(len > 0);
    struct device_config copy;
    if (device_config_decode(text, (size_t)len, &copy, error, sizeof(error)))
        fail_msg("%s", error);
    copy.fds[0] = fd;
    copy.fds[1] = memory;
    copy.n_fds = 2;
    t->config.fds[0] = t->config.fds[1] = -1;
    t->config.n_fds = 0;
    struct machine_config with_copy = machine;
    with_copy.device = &copy;
    with_copy.io_thread = io_thread;
    t->m = machine_create(&with_copy);
    assert_int_equal(copy.fds[0], -1);
    device_config_free(&copy);
    t->m->dev->ask = ask;
    machine_settle(t->m);
    t->out = guest_alloc(&t->m->heap[0], 1u << 20, 4096);
    t->in = guest_alloc(&t->m->heap[0], 65536, 4096);
}

static void start(struct test *t, const char *const *presets, uint64_t features, unsigned queues)
{
    create(t, presets);
    driver_start(&t->driver, t->m, (driver_offered(t->m) & (F_SIZE | F_MULTIPORT)) | features | F_VERSION_1,
                 queues, 64);
}

static void end(struct test *t)
{
    char command[256];

    machine_destroy(t->m);
    driver_end(&t->driver);
    device_type_by_id(3)->close(&t->config);
    device_config_free(&t->config);
    snprintf(command, sizeof(command), "rm -r %s", t->guest.run_dir);
    assert_int_equal(system(command), 0);
}

static uint8_t *ram(struct test *t, gpa_t at) { return fake_ram(t->m->fake, at.addr, 1); }

/* Lets the machine and the host's other ends go on. */
static void wait_a_bit(struct test *t)
{
    for (int i = 0; i < 5; i++) {
        event_loop_turn(t->m->loop, 1000000);
        machine_settle(t->m);
    }
}

/* Output of the guest; the buffer comes back when it was taken. */
static void send_at(struct test *t, unsigned queue, size_t offset, const void *data, size_t len)
{
    struct segment out = {{t->out.addr + offset}, (uint32_t)len};

    memcpy(fake_ram(t->m->fake, out.addr.addr, len), data, len);
    assert_true(ring_add(&t->driver.rings[queue], &out, 1, NULL, 0, t, false) >= 0);
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
}

static bool is_taken(struct test *t, unsigned queue)
{
    struct ring_used used;

    return ring_get(&t->driver.rings[queue], &used);
}

static void print(struct test *t, unsigned queue, const char *text)
{
    send_at(t, queue, 0, text, strlen(text));
    assert_true(is_taken(t, queue));
}

/* A buffer for input. */
static void post(struct test *t, unsigned queue, uint32_t len)
{
    struct segment in = {t->in, len};

    assert_true(ring_add(&t->driver.rings[queue], NULL, 0, &in, 1, t, false) >= 0);
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
}

static int64_t received(struct test *t, unsigned queue)
{
    struct ring_used used;

    wait_a_bit(t);
    return ring_get(&t->driver.rings[queue], &used) ? (int64_t)used.len : -1;
}

static void expect_input(struct test *t, unsigned queue, const char *text)
{
    int64_t len = -1;

    /* The host's side takes what it takes. */
    for (unsigned i = 0; i < 2000 && len < 0; i++)
        len = received(t, queue);
    assert_int_equal(len, (int64_t)strlen(text));
    assert_memory_equal(ram(t, t->in), text, strlen(text));
}

static void control(struct test *t, uint32_t id, uint16_t event, uint16_t value)
{
    struct virtio_console_control c = {htole32(id), htole16(event), htole16(value)};

    send_at(t, CONTROL_TX, 512 * 1024, &c, sizeof(c));
    assert_true(is_taken(t, CONTROL_TX));
}

static void expect_control(struct test *t, uint32_t id, uint16_t event, uint16_t value,
                           const void *more, size_t more_len)
{
    struct virtio_console_control c;
    int64_t len;

    post(t, CONTROL_RX, 256);
    len = received(t, CONTROL_RX);
    assert_int_equal(len, (int64_t)(sizeof(c) + more_len));
    memcpy(&c, ram(t, t->in), sizeof(c));
    assert_int_equal(le32toh(c.id), id);
    assert_int_equal(le16toh(c.event), event);
    assert_int_equal(le16toh(c.value), value);
    assert_memory_equal(ram(t, t->in) + sizeof(c), more, more_len);
}

/* The whole greeting, as Linux does it. */
static void greet(struct test *t, unsigned port, const char *name, bool is_console, bool open)
{
    control(t, port, VIRTIO_CONSOLE_PORT_READY, 1);
    if (is_console)
        expect_control(t, port, VIRTIO_CONSOLE_CONSOLE_PORT, 1, "", 0);
    expect_control(t, port, VIRTIO_CONSOLE_PORT_NAME, 1, name, strlen(name));
    expect_control(t, port, VIRTIO_CONSOLE_PORT_OPEN, open, "", 0);
}

/* ---- the host's side ---- */

static int connect_to(struct test *t, const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    assert_true((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s",
                                 t->guest.run_dir, name) < sizeof(address.sun_path));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    wait_a_bit(t);
    return fd;
}

static int attach(struct test *t, unsigned port)
{
    int fd = connect_to(t, "console0.attach", SOCK_SEQPACKET);
    char open[2] = {ATTACH_OPEN, (char)port};

    assert_int_equal(send(fd, open, 2, MSG_NOSIGNAL), 2);
    wait_a_bit(t);
    return fd;
}

static const char *path_of(const struct test *t, const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", t->guest.run_dir, name);
    return path;
}

static int open_pty(struct test *t, const char *name)
{
    int fd = open(path_of(t, name), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    assert_true(fd >= 0);
    wait_a_bit(t);
    return fd;
}

/* What is there to read, at most len; sockets with packets: without their kinds. */
/* At least so much is waited for: a peer's connection may still be on its way (up to 10 s of idle turns). */
static size_t drain(struct test *t, int fd, char *to, size_t at_least, size_t len, bool packets)
{
    size_t got = 0;

    for (int idle = 0; idle < (got < at_least ? 2000 : 3) && got < len;) {
        char packet[1 + ATTACH_DATA_MAX];
        ssize_t n = read(fd, packet, packets ? sizeof(packet) : MIN(sizeof(packet), len - got));

        if (n <= 0) {
            idle++;
            wait_a_bit(t);
            continue;
        }
        idle = 0;
        if (packets) {
            assert_int_equal(packet[0], ATTACH_DATA);
            n--;
        }
        assert_true(got + (size_t)n <= len);
        memcpy(to + got, packet + packets, (size_t)n);
        got += (size_t)n;
    }
    return got;
}

static void expect_output(struct test *t, int fd, const char *text, bool packets)
{
    static char got[4096];
    size_t n = drain(t, fd, got, strlen(text), sizeof(got) - 1, packets);

    got[n] = '\0';
    assert_string_equal(got, text);
}

static uint64_t dropped(struct test *t, unsigned queue) { return stat_get(&t->m->stats->queues[queue].dropped); }
static uint64_t state_of(struct test *t, unsigned queue) { return stat_get(&t->m->stats->queues[queue].state); }

static void expect_state(struct test *t, unsigned queue, uint64_t state)
{
    for (int i = 0; i < 2000 && state_of(t, queue) != state; i++)
        wait_a_bit(t);
    assert_int_equal(state_of(t, queue), state);
}

static const char *const listen_console[] = {"ports=console", "console.backend=listen", NULL};
static const char *const listen_data[] = {"ports=console data", "data.backend=listen", NULL};

/* ---- tests ---- */

static void test_registers(void **state)
{
    static const char *const two[] = {"ports=console gnss", NULL};
    struct test t;

    (void)state;
    start(&t, NULL, 0, 2);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_DEVICE_ID), 3);
    assert_int_equal(driver_offered(t.m) & 7, FEATURE(VIRTIO_CONSOLE_F_SIZE) | FEATURE(VIRTIO_CONSOLE_F_EMERG_WRITE));
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG, 2), 80);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + 2, 2), 24);
    end(&t);
    start(&t, two, 0, 6);
    assert_int_equal(driver_offered(t.m) & 7, 7);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_CONFIG + 4), 2);
    end(&t);
}

static void test_both_ways(void **state)
{
    static const uint64_t features[] = {0, F_EVENT_IDX};
    struct test t;
    int fd;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        start(&t, listen_console, features[i], 2);
        fd = connect_to(&t, "console", SOCK_STREAM);
        print(&t, TX, "hello ");
        print(&t, TX, "world");
        expect_output(&t, fd, "hello world", false);
        assert_int_equal(write(fd, "typed", 5), 5);
        post(&t, RX, 4096);
        expect_input(&t, RX, "typed");
        post(&t, RX, 3);
        assert_int_equal(write(fd, "again", 5), 5);
        expect_input(&t, RX, "aga");
        post(&t, RX, 100);
        expect_input(&t, RX, "in");
        assert_int_equal(state_of(&t, TX), GUEST | CONSOLE_HOST_PRESENT);
        close(fd);
        end(&t);
    }
}

static void test_pty(void **state)
{
    size_t sent = 0, got = 0;
    static char text[1000];
    struct test t;
    int fd;

    (void)state;
    start(&t, NULL, 0, 2);
    assert_int_equal(state_of(&t, TX), GUEST); /* nobody has opened it */
    print(&t, TX, "before\n");
    fd = open_pty(&t, "console");
    assert_int_equal(state_of(&t, TX), GUEST | CONSOLE_HOST_PRESENT);
    expect_output(&t, fd, "before\n", false);
    assert_int_equal(write(fd, "\x03\r\n", 3), 3); /* raw: as they are, and no echo */
    post(&t, RX, 100);
    expect_input(&t, RX, "\x03\r\n");
    expect_output(&t, fd, "", false);
    close(fd);
    expect_state(&t, TX, GUEST);
    print(&t, TX, "between\n");
    fd = open_pty(&t, "console");
    expect_output(&t, fd, "before\nbetween\n", false); /* a console: the last screenful again */
    /* Who writes and goes has written all the same: more than there is room for. */
    memset(text, 'x', sizeof(text));
    for (ssize_t n; (n = write(fd, text, sizeof(text))) > 0; wait_a_bit(&t))
        sent += (size_t)n;
    close(fd);
    wait_a_bit(&t);
    assert_true(sent > 16384);
    for (int64_t len; got < sent; got += (size_t)len) {
        post(&t, RX, 4096);
        len = received(&t, RX);
        assert_true(len > 0);
    }
    assert_int_equal(state_of(&t, TX), GUEST);
    fd = open_pty(&t, "console");
    assert_int_equal(write(fd, "back", 4), 4);
    post(&t, RX, 4096);
    expect_input(&t, RX, "back");
    close(fd);
    wait_a_bit(&t);
    /* And who is gone before anybody has seen him, as `echo >console`. */
    for (int i = 0; i < 3; i++) {
        fd = open(path_of(&t, "console"), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        assert_int_equal(write(fd, "short", 5), 5);
        close(fd);
        post(&t, RX, 4096);
        expect_input(&t, RX, "short");
        expect_state(&t, TX, GUEST);
    }
    end(&t);
}

static void test_multiport(void **state)
{
    static const char *const three[] = {"ports=console gnss bt", "gnss.backend=listen", "bt.backend=listen",
                                        "bt.announce=yes", "bt.console=yes", NULL};
    struct test t;
    int fd;

    (void)state;
    start(&t, three, 0, 8);
    post(&t, CONTROL_RX, 256);
    assert_int_equal(received(&t, CONTROL_RX), -1); /* nothing is said before the driver is ready */
    driver_restart(&t.driver);
    control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
    for (unsigned i = 0; i < 3; i++)
        expect_control(&t, i, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
    greet(&t, 0, "console", true, true);
    greet(&t, 1, "gnss", false, true);
    greet(&t, 2, "bt", true, false);
    fd = connect_to(&t, "bt", SOCK_STREAM);
    expect_control(&t, 2, VIRTIO_CONSOLE_PORT_OPEN, 1, "", 0);
    close(fd);
    expect_control(&t, 2, VIRTIO_CONSOLE_PORT_OPEN, 0, "", 0);
    /* Input waits until the guest has the port open. */
    fd = connect_to(&t, "gnss", SOCK_STREAM);
    assert_int_equal(write(fd, "$GPGGA", 6), 6);
    post(&t, 4, 100);
    assert_int_equal(received(&t, 4), -1);
    control(&t, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    expect_input(&t, 4, "$GPGGA");
    print(&t, 5, "query");
    expect_output(&t, fd, "query", false);
    close(fd);
    end(&t);
}

static void test_attach(void **state)
{
    char size[5] = {ATTACH_SIZE, 100, 0, 50, 0};
    struct test t;
    int fd, second;

    (void)state;
    start(&t, NULL, 0, 2);
    print(&t, TX, "login: ");
    fd = attach(&t, 0);
    expect_output(&t, fd, "login: ", true);
    second = attach(&t, 0);
    expect_output(&t, second, "login: ", true);
    print(&t, TX, "more");
    expect_output(&t, fd, "more", true);
    expect_output(&t, second, "more", true);
    assert_int_equal(state_of(&t, TX), GUEST | UINT64_C(2) << CONSOLE_ATTACHED_SHIFT);
    assert_int_equal(send(second, "droot", 5, 0), 5);
    post(&t, RX, 100);
    expect_input(&t, RX, "root");
    /* The size: registers and an interrupt, once. */
    driver_take_isr(t.m);
    assert_int_equal(send(fd, size, 5, 0), 5);
    wait_a_bit(&t);
    assert_int_equal(driver_take_isr(t.m) & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG, 2), 100);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + 2, 2), 50);
    assert_int_equal(send(fd, size, 5, 0), 5);
    wait_a_bit(&t);
    assert_int_equal(driver_take_isr(t.m), 0);
    close(second);
    expect_state(&t, TX, GUEST | UINT64_C(1) << CONSOLE_ATTACHED_SHIFT);
    close(fd);
    end(&t);
}

static void test_attach_resize_of_a_port(void **state)
{
    static const char *const old_linux[] = {"ports=console second", "second.console=yes",
                                            "resize-order=rows-cols", NULL};
    static const char *const two[] = {"ports=console second", "second.console=yes", NULL};
    const char size[5] = {ATTACH_SIZE, 100, 0, 50, 0};
    struct test t;
    int fd;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        start(&t, i ? old_linux : two, 0, 6);
        control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        for (unsigned j = 0; j < 2; j++)
            expect_control(&t, j, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
        greet(&t, 1, "second", true, true);
        fd = attach(&t, 1);
        assert_int_equal(send(fd, size, 5, 0), 5);
        expect_control(&t, 1, VIRTIO_CONSOLE_RESIZE, 1, i ? "\x32\0\x64\0" : "\x64\0\x32\0", 4);
        close(fd);
        end(&t);
    }
}

static void fill_pattern(uint8_t *p, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)((i * 7 + seed) ^ (i >> 8));
}

/* A data port whose reader is slow: nothing is lost, and its guest waits. */
static void test_slow_reader(void **state)
{
    static uint8_t data[1u << 20], sum[1u << 20];
    struct test t;
    size_t got = 0;
    int fd;

    (void)state;
    start(&t, listen_data, 0, 6);
    fd = connect_to(&t, "data", SOCK_STREAM);
    fill_pattern(data, sizeof(data), 1);
    for (size_t i = 0; i < 16; i++)
        send_at(&t, 5, i * 65536, data + i * 65536, 65536);
    wait_a_bit(&t);
    assert_true(ring_in_flight(&t.driver.rings[5]) > 4); /* it waits: neither takes nor drops more */
    /* Another port does not. */
    print(&t, TX, "I am fine");
    got = drain(&t, fd, (char *)sum, sizeof(sum), sizeof(sum), false);
    assert_int_equal(got, sizeof(sum));
    assert_memory_equal(sum, data, sizeof(sum));
    while (is_taken(&t, 5))
        ;
    assert_int_equal(ring_in_flight(&t.driver.rings[5]), 0);
    assert_int_equal(dropped(&t, 5), 0);
    close(fd);
    end(&t);
}

/* Nobody reads: the guest never waits, and the last of it is there for who comes late. */
static void test_absent_reader(void **state)
{
    static uint8_t data[65536], got[RING_SIZE + 1];
    struct test t;
    int fd;

    (void)state;
    start(&t, listen_data, 0, 6);
    for (unsigned i = 0; i < 100; i++) {
        fill_pattern(data, sizeof(data), i);
        send_at(&t, 5, 0, data, sizeof(data));
        assert_true(is_taken(&t, 5));
    }
    assert_int_equal(dropped(&t, 5), 100 * 65536 - RING_SIZE);
    fd = connect_to(&t, "data", SOCK_STREAM);
    assert_int_equal(drain(&t, fd, (char *)got, RING_SIZE, sizeof(got), false), RING_SIZE);
    assert_memory_equal(got + 65536, data, 65536);
    /* Gone and back: what came meanwhile is there. */
    close(fd);
    wait_a_bit(&t);
    print(&t, 5, "meanwhile");
    fd = connect_to(&t, "data", SOCK_STREAM);
    expect_output(&t, fd, "meanwhile", false);
    close(fd);
    end(&t);
}

/* A console's reader that stops reading holds its guest up for half a second, and no longer. */
static void test_stopped_reader_of_a_console(void **state)
{
    static uint8_t data[65536];
    int64_t begin = monotonic_ns();
    struct test t;
    int fd;

    (void)state;
    start(&t, listen_console, 0, 2);
    fd = connect_to(&t, "console", SOCK_STREAM);
    for (unsigned i = 0; i < 40; i++) {
        send_at(&t, TX, 0, data, sizeof(data));
        while (!is_taken(&t, TX)) {
            event_loop_turn(t.m->loop, 100000000);
            machine_settle(t.m);
            assert_true(monotonic_ns() - begin < INT64_C(10000000000));
        }
    }
    assert_true(monotonic_ns() - begin >= INT64_C(400000000));
    assert_true(monotonic_ns() - begin < INT64_C(3000000000));
    close(fd);
    end(&t);
}

static void test_input_waits(void **state)
{
    static uint8_t data[1u << 20];
    size_t written = 0, got = 0;
    struct test t;
    int fd;

    (void)state;
    start(&t, listen_console, 0, 2);
    fd = connect_to(&t, "console", SOCK_STREAM);
    fill_pattern(data, sizeof(data), 3);
    while (got < sizeof(data)) {
        ssize_t n = written < sizeof(data) ? write(fd, data + written, sizeof(data) - written) : 0;
        int64_t len;

        if (n > 0)
            written += (size_t)n;
        assert_true(written - got < 600 * 1024); /* bounded: the sender waits */
        post(&t, RX, 65536);
        len = received(&t, RX);
        if (len > 0) {
            assert_memory_equal(ram(&t, t.in), data + got, (size_t)len);
            got += (size_t)len;
        }
    }
    close(fd);
    end(&t);
}

static void test_file_and_log(void **state)
{
    char file[64] = "/tmp/viod-test-file.XXXXXX", preset[2][128], old[80];
    const char *presets[] = {"ports=console log", "console.backend=file", preset[0], "log.backend=log",
                             preset[1], "log.max-size=4096", "log.old-files=2", NULL};
    char line[1001];
    struct test t;
    struct stat st;

    (void)state;
    close(mkstemp(file));
    snprintf(preset[0], sizeof(preset[0]), "console.path=%s", file);
    snprintf(preset[1], sizeof(preset[1]), "log.path=%s.log", file);
    start(&t, presets, 0, 6);
    print(&t, TX, "into the file");
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_size, 13);
    memset(line, 'x', 1000);
    line[1000] = '\0';
    for (unsigned i = 0; i < 25; i++) {
        if (i == 4) /* the next one has to be put aside before it, and that fails once */
            answers_fail = 1;
        print(&t, 5, line);
        for (int64_t until = monotonic_ns() + (i == 5 ? INT64_C(1200000000) : 0);
             monotonic_ns() < until;)
            event_loop_turn(t.m->loop, 10000000);
        wait_a_bit(&t);
    }
    assert_int_equal(answers_fail, 0);
    /* 25000 bytes in files of 4000 to 5000: this one and two old ones are left. */
    for (unsigned i = 0; i < 4; i++) {
        snprintf(old, sizeof(old), i ? "%s.log.%u" : "%s.log", file, i);
        assert_int_equal(stat(old, &st), i < 3 ? 0 : -1);
        if (i < 3) {
            assert_true(st.st_size >= (i ? 4096 : 0) && st.st_size <= 6000);
            unlink(old);
        }
    }
    unlink(file);
    assert_int_equal(dropped(&t, 5), 0);
    end(&t);
}

/* A log that is full and cannot be put aside: the guest does not wait for it, and most of it comes later. */
static void test_full_log(void **state)
{
    char file[64] = "/tmp/viod-test-file.XXXXXX", preset[128], name[80], line[1001];
    const char *presets[] = {"ports=console log", "console.backend=none", "log.backend=log", preset,
                             "log.max-size=4096", "log.old-files=0", NULL};
    const unsigned lines = 300;
    struct stat st;
    struct test t;

    (void)state;
    close(mkstemp(file));
    snprintf(preset, sizeof(preset), "log.path=%s.log", file);
    start(&t, presets, 0, 6);
    answers_fail = UINT_MAX;
    memset(line, 'x', 1000);
    line[1000] = '\0';
    for (unsigned i = 0; i < lines; i++)
        print(&t, 5, line); /* is taken */
    answers_fail = 0;
    snprintf(name, sizeof(name), "%s.log", file);
    for (int64_t until = monotonic_ns() + INT64_C(30000000000);;) {
        event_loop_turn(t.m->loop, 10000000);
        machine_settle(t.m);
        if (stat(name, &st) == 0 && st.st_size > 100000)
            break;
        assert_true(monotonic_ns() < until);
    }
    /* 5000 bytes were in the file before it was full. */
    assert_int_equal(dropped(&t, 5), 1000 * lines - 5000 - PORT_OUT_SIZE);
    unlink(name);
    unlink(file);
    end(&t);
}

/* Nobody looks at a file's last screenful when it is there again: it has had it. */
static void test_full_log_of_a_console(void **state)
{
    char file[64] = "/tmp/viod-test-file.XXXXXX", preset[128], line[1001];
    const char *presets[] = {"console.backend=log", preset, "console.max-size=4096", "console.old-files=0",
                             NULL};
    struct stat st;
    struct test t;

    (void)state;
    close(mkstemp(file));
    unlink(file);
    snprintf(preset, sizeof(preset), "console.path=%s", file);
    start(&t, presets, 0, 2);
    memset(line, 'x', 1000);
    line[1000] = '\0';
    for (unsigned i = 0; i < 5; i++)
        print(&t, TX, line);
    answers_fail = 1;
    print(&t, TX, "afterwards");
    for (int64_t until = monotonic_ns() + INT64_C(30000000000);;) {
        event_loop_turn(t.m->loop, 10000000);
        machine_settle(t.m);
        if (stat(file, &st) == 0 && st.st_size > 0 && st.st_size != 5000)
            break;
        assert_true(monotonic_ns() < until);
    }
    assert_int_equal(st.st_size, 10);
    unlink(file);
    end(&t);
}

static void test_connect_and_again(void **state)
{
    char path[64] = "/tmp/viod-test-sock.XXXXXX", preset[128], error[256];
    const char *presets[] = {"ports=console data", "data.backend=connect", preset, NULL};
    struct test t;
    int listener, fd = -1;

    (void)state;
    close(mkstemp(path));
    unlink(path);
    snprintf(preset, sizeof(preset), "data.path=%s", path);
    start(&t, presets, 0, 6);
    print(&t, 5, "early ");
    assert_int_equal(state_of(&t, 5), 0);
    listener = stream_listen(path, SOCK_STREAM, error, sizeof(error));
    assert_true(listener >= 0);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 2000 && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) < 0; i++) {
            event_loop_turn(t.m->loop, 20000000);
            machine_settle(t.m);
        }
        assert_true(fd >= 0);
        print(&t, 5, "x");
        expect_output(&t, fd, round ? "x" : "early x", false);
        close(fd);
        expect_state(&t, 5, 0);
    }
    close(listener);
    unlink(path);
    end(&t);
}

/* A socket that somebody has is not taken away, whatever its type; one that nobody has any more is. */
static void test_listen_where_something_is(void **state)
{
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[64] = "/tmp/viod-test-sock.XXXXXX", error[256];
    int fd;

    (void)state;
    close(mkstemp(path));
    strcpy(address.sun_path, path);
    assert_int_equal(stream_listen(path, SOCK_STREAM, error, sizeof(error)), -EEXIST);
    assert_non_null(strstr(error, "is no socket; remove it"));
    unlink(path);
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        fd = socket(AF_UNIX, types[i], 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        if (types[i] != SOCK_DGRAM)
            assert_int_equal(listen(fd, 1), 0);
        assert_int_equal(stream_listen(path, SOCK_STREAM, error, sizeof(error)), -EADDRINUSE);
        assert_non_null(strstr(error, "choose another path"));
        assert_int_equal(vsock_listen(path, true, error, sizeof(error)), -EADDRINUSE);
        assert_int_equal(access(path, F_OK), 0);
        close(fd);
        fd = stream_listen(path, SOCK_STREAM, error, sizeof(error));
        assert_true(fd >= 0);
        close(fd);
        fd = vsock_listen(path, true, error, sizeof(error));
        assert_true(fd >= 0);
        close(fd);
        unlink(path);
    }
}

/* The files that viod itself has in the guest's folder. */
static void test_names_that_are_taken(void **state)
{
    const char *presets[][2] = {{"ports=state", NULL}, {"ports=console vsock", NULL}};
    struct guest_identity guest = {.run_dir = "/tmp/viod-test-console.XXXXXX"};
    const struct device_type *type = device_type_by_id(3);
    char error[CONFIG_ERROR_LEN];

    (void)state;
    assert_non_null(mkdtemp(guest.run_dir));
    for (size_t i = 0; i < ARRAY_SIZE(presets); i++) {
        struct device_config config = {.name = "console0", .guest = &guest};

        assert_int_equal(device_config_fill(&config, type, NULL, presets[i], error, sizeof(error)),
                         -EEXIST);
        assert_non_null(strstr(error, "give the port another one"));
        device_config_free(&config);
    }
    assert_int_equal(rmdir(guest.run_dir), 0);
}

/* A serial line; the end of a pty stands for it. */
static void test_serial_line(void **state)
{
    char preset[128], name[64];
    const char *presets[] = {"ports=console gnss", "gnss.backend=device", preset, "gnss.baud=9600", NULL};
    struct termios termios;
    struct test t;
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    (void)state;
    assert_int_equal(unlockpt(master), 0);
    assert_int_equal(ptsname_r(master, name, sizeof(name)), 0);
    snprintf(preset, sizeof(preset), "gnss.path=%s", name);
    start(&t, presets, 0, 6);
    wait_a_bit(&t);
    assert_int_equal(tcgetattr(master, &termios), 0);
    assert_int_equal(cfgetospeed(&termios), B9600);
    assert_int_equal(termios.c_lflag & (tcflag_t)(ECHO | ICANON | ISIG), 0);
    assert_int_equal(state_of(&t, 5), CONSOLE_HOST_PRESENT);
    print(&t, 5, "\n\x03");
    expect_output(&t, master, "\n\x03", false);
    control(&t, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    post(&t, 4, 64);
    assert_int_equal(write(master, "$GP\r\n", 5), 5);
    expect_input(&t, 4, "$GP\r\n");
    /* Unplugged: seen, and asked for again after a while. */
    asks = 0;
    close(master);
    expect_state(&t, 5, CONSOLE_GUEST_OPEN);
    print(&t, 5, "nobody there");
    for (int64_t until = monotonic_ns() + INT64_C(1300000000); monotonic_ns() < until;) {
        event_loop_turn(t.m->loop, 10000000);
        machine_settle(t.m);
    }
    assert_int_equal(asks, 1);
    end(&t);
}

static void test_emergency_write(void **state)
{
    struct test t;
    int fd;

    (void)state;
    create(&t, listen_console);
    fd = connect_to(&t, "console", SOCK_STREAM);
    for (const char *c = "PANIC"; *c; c++)
        machine_write32(t.m, VIRTIO_MMIO_CONFIG + 8, 0xabcdef00u | (uint8_t)*c);
    machine_write(t.m, VIRTIO_MMIO_CONFIG + 8, 1, '!');
    expect_output(&t, fd, "PANIC!", false);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_CONFIG + 8), 0);
    close(fd);
    machine_destroy(t.m);
    t.driver.n_queues = 0;
    device_type_by_id(3)->close(&t.config);
    device_config_free(&t.config);
    rmdir(t.guest.run_dir);
}

/* All of it once more, with registers and queues in two threads. */
static void test_io_thread(void **state)
{
    const char size[5] = {ATTACH_SIZE, 100, 0, 50, 0};
    struct test t;
    char got[16];
    int fd, viodctl;

    (void)state;
    io_thread = true;
    start(&t, listen_console, 0, 2);
    io_thread = false;
    fd = connect_to(&t, "console", SOCK_STREAM);
    viodctl = attach(&t, 0);
    for (unsigned i = 0; i < 200; i++) {
        send_at(&t, TX, 0, "0123456789", 10);
        machine_write32(t.m, VIRTIO_MMIO_CONFIG + 8, '!');
        for (unsigned wait = 0; !is_taken(&t, TX); wait++) {
            assert_true(wait < 1000);
            wait_a_bit(&t);
        }
        assert_int_equal(drain(&t, fd, got, 11, 11, false), 11);
        assert_int_equal(write(fd, "abc", 3), 3);
        post(&t, RX, 64);
        for (unsigned wait = 0; received(&t, RX) != 3; wait++)
            assert_true(wait < 1000);
        if (i == 100)
            driver_restart(&t.driver);
    }
    assert_int_equal(send(viodctl, size, 5, 0), 5);
    for (unsigned wait = 0; machine_read(t.m, VIRTIO_MMIO_CONFIG, 2) != 100; wait++) {
        assert_true(wait < 1000);
        wait_a_bit(&t);
    }
    close(viodctl);
    close(fd);
    end(&t);
}

/* ---- the hostile driver; row numbers of the catalogue ---- */

static void test_row_08_odd_buffers(void **state)
{
    struct segment s[3];
    struct test t;
    int fd;

    (void)state;
    start(&t, listen_console, 0, 2);
    fd = connect_to(&t, "console", SOCK_STREAM);
    /* Writable in TX, readable in RX: given back, nothing in them. */
    s[0] = (struct segment){t.in, 64};
    assert_true(ring_add(&t.driver.rings[TX], NULL, 0, s, 1, &t, false) >= 0);
    driver_kick(&t.driver, TX);
    machine_settle(t.m);
    assert_true(is_taken(&t, TX));
    assert_int_equal(write(fd, "kept", 4), 4);
    wait_a_bit(&t);
    assert_true(ring_add(&t.driver.rings[RX], s, 1, NULL, 0, &t, false) >= 0);
    driver_kick(&t.driver, RX);
    assert_int_equal(received(&t, RX), 0);
    post(&t, RX, 64);
    expect_input(&t, RX, "kept");
    /* Length 0 and overlaps. */
    memcpy(ram(&t, t.out), "abcd", 4);
    s[0] = (struct segment){t.out, 0};
    s[1] = (struct segment){t.out, 4};
    s[2] = (struct segment){{t.out.addr + 2}, 2};
    assert_true(ring_add(&t.driver.rings[TX], s, 3, NULL, 0, &t, false) >= 0);
    driver_kick(&t.driver, TX);
    machine_settle(t.m);
    assert_true(is_taken(&t, TX));
    expect_output(&t, fd, "abcdcd", false);
    close(fd);
    end(&t);
}

static void test_row_09_control_messages_cut_anywhere(void **state)
{
    struct virtio_console_control c = {0, 0, htole16(1)};
    struct test t;

    (void)state;
    start(&t, listen_data, 0, 6);
    for (size_t cut = 1; cut <= sizeof(c); cut++) {
        struct segment s[2] = {{t.out, (uint32_t)cut},
                               {{t.out.addr + 4096}, (uint32_t)(sizeof(c) - cut)}};

        driver_restart(&t.driver);
        memcpy(ram(&t, t.out), &c, cut);
        memcpy(ram(&t, t.out) + 4096, (char *)&c + cut, sizeof(c) - cut);
        assert_true(ring_add(&t.driver.rings[CONTROL_TX], s, cut < sizeof(c) ? 2 : 1, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, CONTROL_TX);
        machine_settle(t.m);
        expect_control(&t, 0, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
    }
    /* Too short: an error, and nothing else. */
    driver_restart(&t.driver);
    send_at(&t, CONTROL_TX, 0, &c, 7);
    post(&t, CONTROL_RX, 64);
    assert_int_equal(received(&t, CONTROL_RX), -1);
    assert_int_equal(stat_get(&t.m->stats->queues[CONTROL_TX].errors), 1);
    end(&t);
}

static void test_row_22_control_messages(void **state)
{
    static const uint32_t ids[] = {0, 1, 2, 30, 31, 0x7fffffff, 0xffffffff};
    struct test t;

    (void)state;
    start(&t, listen_data, 0, 6);
    for (uint16_t event = 0; event < 12; event++)
        for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
            for (uint16_t value = 0; value < 3; value++)
                control(&t, ids[i], event, value);
    /* However often they ask, no more waits for them than there is to say: each once. */
    driver_restart(&t.driver);
    for (unsigned i = 0; i < 1000; i++) {
        control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        control(&t, 1, VIRTIO_CONSOLE_PORT_READY, 1);
    }
    expect_control(&t, 0, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
    expect_control(&t, 1, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
    expect_control(&t, 1, VIRTIO_CONSOLE_PORT_NAME, 1, "data", 4);
    expect_control(&t, 1, VIRTIO_CONSOLE_PORT_OPEN, 1, "", 0);
    post(&t, CONTROL_RX, 64);
    assert_int_equal(received(&t, CONTROL_RX), -1);
    /* A buffer that is too small for one. */
    driver_restart(&t.driver);
    post(&t, CONTROL_RX, 5);
    control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
    assert_int_equal(received(&t, CONTROL_RX), 5);
    expect_control(&t, 1, VIRTIO_CONSOLE_PORT_ADD, 1, "", 0);
    end(&t);
}

static void test_row_12_buffers_in_a_hole(void **state)
{
    struct segment s[2];
    struct test t;

    (void)state;
    start(&t, listen_data, 0, 6);
    s[0] = (struct segment){{MACHINE_BASE}, 64};
    s[1] = (struct segment){t.out, 64};
    for (unsigned queue = 0; queue < 6; queue++) {
        assert_true(ring_add(&t.driver.rings[queue], queue % 2 ? s : NULL, queue % 2 ? 2 : 0,
                             queue % 2 ? NULL : s, queue % 2 ? 0 : 2, &t, false) >= 0);
        driver_kick(&t.driver, (uint16_t)queue);
        machine_settle(t.m);
    }
    assert_int_equal(stat_get(&t.m->stats->queues[TX].errors), 1);
    assert_int_equal(stat_get(&t.m->stats->queues[CONTROL_TX].errors), 1);
    end(&t);
}

static void test_row_14_reset_with_output_waiting(void **state)
{
    static uint8_t data[1u << 20];
    struct test t;
    int fd;

    (void)state;
    for (unsigned round = 0; round < 3; round++) {
        start(&t, listen_data, F_RING_RESET, 6);
        fd = connect_to(&t, "data", SOCK_STREAM);
        /* One chain larger than all rings: it is popped, and waits half taken. */
        send_at(&t, 5, 0, data, sizeof(data));
        wait_a_bit(&t);
        assert_false(is_taken(&t, 5));
        assert_int_equal(virtqueue_in_flight(t.m->dev->queues[5].vq), 1);
        if (round == 0)
            driver_reset_queue(t.m, 5);
        else if (round == 1)
            machine_balloon_out(t.m, t.in.addr, 1);
        machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
        assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS), 0);
        assert_int_equal(virtqueue_in_flight(t.m->dev->queues[5].vq), 0);
        assert_true(dropped(&t, 5) > 0);
        if (round == 1)
            fake_balloon_in(t.m->fake, t.in.addr, 1);
        driver_restart(&t.driver);
        print(&t, TX, "works");
        drain(&t, fd, (char *)data, 0, sizeof(data), false);
        print(&t, 5, "this one, too");
        close(fd);
        end(&t);
    }
}

static void test_row_17_configuration_space(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL, 0, 2);
    for (uint32_t offset = 0; offset < 0x100; offset++)
        for (unsigned size = 1; size <= 8; size *= 2) {
            machine_write(t.m, VIRTIO_MMIO_CONFIG + offset, size, UINT64_MAX);
            if (offset >= 12)
                assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + offset, size) & 0xff, 0);
        }
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG, 2), 80);
    end(&t);
}

static void test_row_23_nothing_of_others(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t, listen_console, 0, 2);
    fd = connect_to(&t, "console", SOCK_STREAM);
    memset(ram(&t, t.in), 0xee, 4096);
    post(&t, RX, 4096);
    assert_int_equal(write(fd, "ab", 2), 2);
    expect_input(&t, RX, "ab");
    for (unsigned i = 2; i < 4096; i++)
        assert_int_equal(ram(&t, t.in)[i], 0xee);
    close(fd);
    end(&t);
}

/* Row 18: without MULTIPORT there is one port, and nobody asks or is told of others. */
static void test_row_18_without_multiport(void **state)
{
    struct test t;
    int fd;

    (void)state;
    create(&t, listen_data);
    driver_start(&t.driver, t.m, F_VERSION_1, 6, 64);
    for (uint16_t event = 0; event < 8; event++)
        control(&t, 1, event, 1);
    post(&t, CONTROL_RX, 256);
    assert_int_equal(received(&t, CONTROL_RX), -1);
    /* What the other port's back end sends stays there, although the guest has said that it is open. */
    fd = connect_to(&t, "data", SOCK_STREAM);
    assert_int_equal(write(fd, "kept", 4), 4);
    post(&t, 4, 64);
    assert_int_equal(received(&t, 4), -1);
    print(&t, TX, "works");
    /* The next driver negotiates it, and begins where nothing was said. */
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    t.driver.features |= F_MULTIPORT;
    driver_restart(&t.driver);
    post(&t, CONTROL_RX, 256);
    assert_int_equal(received(&t, CONTROL_RX), -1);
    close(fd);
    end(&t);
}

/* Row 19: pages go in which output waits for a slow reader, and input is to be put. */
static void test_row_19_ballooning(void **state)
{
    static uint8_t data[300000];
    struct test t;
    gpa_t page;
    int fd;

    (void)state;
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        skip(); /* a page that is granted cannot go */
    start(&t, listen_data, 0, 6);
    fd = connect_to(&t, "data", SOCK_STREAM);
    page = guest_alloc(&t.m->heap[0], GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    greet(&t, 1, "data", false, true);
    control(&t, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    for (unsigned i = 0; i < 20; i++) {
        struct segment in[2] = {{page, 8}, {t.in, 64}};
        int64_t len = -1;

        /* More than the ring takes: the chain is in hand when its pages go. */
        while (drain(&t, fd, (char *)data, 0, sizeof(data), false) > 0)
            ;
        for (unsigned n = 0; n < 8 && virtqueue_in_flight(t.m->dev->queues[5].vq) == 0; n++) {
            memset(data, 'x', sizeof(data));
            send_at(&t, 5, 0, data, sizeof(data));
        }
        assert_int_equal(ring_add(&t.driver.rings[4], NULL, 0, in, 2, &t, false) < 0, 0);
        driver_kick(&t.driver, 4);
        machine_balloon_out(t.m, page.addr, 1);
        assert_int_equal(virtqueue_in_flight(t.m->dev->queues[5].vq), 0);
        while (is_taken(&t, 5))
            ;
        /* The buffer without its first page comes back empty, and what was said waits for the next one. */
        assert_int_equal(write(fd, "hello", 5), 5);
        for (unsigned n = 0; n < 2000 && len < 0; n++)
            len = received(&t, 4);
        assert_int_equal(len, 0);
        post(&t, 4, 64);
        expect_input(&t, 4, "hello");
        fake_balloon_in(t.m->fake, page.addr, 1);
    }
    close(fd);
    end(&t);
}

/* Row 25: control messages and buffers without sense, by the thousand. */
static void test_row_25_log_flood(void **state)
{
    int pipe_fds[2], saved = dup(STDERR_FILENO);
    static char text[65536];
    int64_t begun = monotonic_ns();
    unsigned lines = 0;
    struct test t;
    ssize_t n;

    (void)state;
    start(&t, listen_data, 0, 6);
    assert_int_equal(pipe(pipe_fds), 0);
    dup2(pipe_fds[1], STDERR_FILENO);
    close(pipe_fds[1]);
    log_set_level(LOG_LEVEL_INFO);
    for (unsigned i = 0; i < 3000; i++) {
        control(&t, 77, 99, 1);
        control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 0);
        control(&t, 1, VIRTIO_CONSOLE_PORT_READY, 0);
        control(&t, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        post(&t, CONTROL_RX, 3); /* no message has room there */
        while (is_taken(&t, CONTROL_RX))
            ;
    }
    log_set_level(LOG_LEVEL_ERROR);
    dup2(saved, STDERR_FILENO);
    close(saved);
    n = read(pipe_fds[0], text, sizeof(text));
    close(pipe_fds[0]);
    for (ssize_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    /* Four sites, a line a second each. */
    assert_in_range(lines, 1, 4 * (2 + (monotonic_ns() - begun) / 1000000000));
    end(&t);
}

static void test_row_26_output_without_end(void **state)
{
    static uint8_t data[4096];
    uint64_t turns;
    struct test t;
    int64_t begin;

    (void)state;
    start(&t, listen_data, 0, 6);
    turns = stat_get(&loop_stats(t.m->loop)->turns);
    begin = monotonic_ns();
    /* A gigabyte in a chain that names the same memory again and again; nobody reads it. */
    struct segment s[60];
    memset(data, 'x', sizeof(data));
    for (unsigned i = 0; i < 60; i++)
        s[i] = (struct segment){t.out, 1u << 20};
    for (unsigned i = 0; i < 20; i++) {
        assert_true(ring_add(&t.driver.rings[5], s, 60, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, 5);
        machine_settle(t.m);
        assert_true(is_taken(&t, 5));
    }
    /* With grants such a chain is refused: it is more than can be mapped. */
    if (getenv("VIOD_FAKE_GRANTS") == NULL)
        assert_true(stat_get(&t.m->stats->queues[5].write_bytes) > UINT64_C(1000000000));
    assert_true(monotonic_ns() - begin < INT64_C(2000000000));
    assert_true(stat_get(&loop_stats(t.m->loop)->turns) - turns < 2000);
    end(&t);
}

static void test_many_attach(void **state)
{
    int fds[12];
    struct test t;
    char open[2] = {ATTACH_OPEN, 9}, packet[200];

    (void)state;
    start(&t, NULL, 0, 2);
    for (unsigned i = 0; i < 12; i++)
        fds[i] = i < 8 ? attach(&t, 0) : connect_to(&t, "console0.attach", SOCK_SEQPACKET);
    print(&t, TX, "x");
    expect_output(&t, fds[7], "x", true);
    assert_int_equal(state_of(&t, TX), GUEST | UINT64_C(8) << CONSOLE_ATTACHED_SHIFT);
    /* The ninth comes in when one goes; and what it says is wrong. */
    close(fds[0]);
    wait_a_bit(&t);
    assert_int_equal(send(fds[8], open, 2, 0), 2);
    wait_a_bit(&t);
    assert_true(read(fds[8], packet, sizeof(packet)) > 1);
    assert_int_equal(packet[0], ATTACH_ERROR);
    for (unsigned i = 1; i < 12; i++)
        close(fds[i]);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registers),
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_pty),
        cmocka_unit_test(test_multiport),
        cmocka_unit_test(test_attach),
        cmocka_unit_test(test_attach_resize_of_a_port),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_absent_reader),
        cmocka_unit_test(test_stopped_reader_of_a_console),
        cmocka_unit_test(test_input_waits),
        cmocka_unit_test(test_file_and_log),
        cmocka_unit_test(test_full_log),
        cmocka_unit_test(test_full_log_of_a_console),
        cmocka_unit_test(test_connect_and_again),
        cmocka_unit_test(test_listen_where_something_is),
        cmocka_unit_test(test_names_that_are_taken),
        cmocka_unit_test(test_serial_line),
        cmocka_unit_test(test_emergency_write),
        cmocka_unit_test(test_many_attach),
        cmocka_unit_test(test_io_thread),
        cmocka_unit_test(test_row_08_odd_buffers),
        cmocka_unit_test(test_row_09_control_messages_cut_anywhere),
        cmocka_unit_test(test_row_12_buffers_in_a_hole),
        cmocka_unit_test(test_row_14_reset_with_output_waiting),
        cmocka_unit_test(test_row_17_configuration_space),
        cmocka_unit_test(test_row_18_without_multiport),
        cmocka_unit_test(test_row_19_ballooning),
        cmocka_unit_test(test_row_25_log_flood),
        cmocka_unit_test(test_row_22_control_messages),
        cmocka_unit_test(test_row_23_nothing_of_others),
        cmocka_unit_test(test_row_26_output_without_end),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
