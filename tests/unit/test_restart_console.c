/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Consoles whose workers die, at each store that outlives them: what the guest has said is there once,
 * and so is what was typed.
 */
#include "driver.h"
#include "kill.h"
#include "unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config.h"
#include "devices/console_internal.h"
#include "devices/table.h"

#define RX 0u
#define TX 1u
#define CHUNKS 6u
#define CHUNK 1000u
#define TYPED 300u
#define TYPED_BUFFER 64u

struct world {
    struct machine *m;
    struct device_config host, worker; /* the supervisor's, and what the worker gets */
    struct guest_identity guest;
    struct driver d;
    gpa_t out, in;
    void *memory; /* of the ports, when the worker died */
    size_t memory_len;
    bool died;
};

static int no_answer(struct virtio_device *dev, uint32_t id, const char *request)
{
    (void)dev, (void)id, (void)request;
    return 0;
}

/* As a message does: the worker's copies are its own. */
static void hand_over(struct world *w)
{
    for (size_t i = 0; i < w->worker.n_fds; i++)
        if (w->worker.fds[i] >= 0)
            close(w->worker.fds[i]);
    for (size_t i = 0; i < w->host.n_fds; i++) {
        w->worker.fds[i] = w->host.fds[i];
        w->host.fds[i] = -1;
    }
    w->worker.n_fds = w->host.n_fds;
    w->host.n_fds = 0;
}

/* What is shared with the supervisor is as it was then, whatever the ghost has done. */
static void successor(void *arg)
{
    struct world *w = arg;
    char error[CONFIG_ERROR_LEN] = "";

    assert_int_equal(device_type_by_id(3)->reopen(&w->host, error, sizeof(error)), 0);
    hand_over(w);
    assert_int_equal(pwrite(w->worker.fds[1], w->memory, w->memory_len, 0), (ssize_t)w->memory_len);
}

static void die(void *arg)
{
    struct world *w = arg;

    w->died = true;
    machine_take_picture(w->m);
    assert_int_equal(pread(w->worker.fds[1], w->memory, w->memory_len, 0), (ssize_t)w->memory_len);
}

static void survive(struct world *w)
{
    kill_disarm();
    if (w->m->picture != NULL)
        machine_succeed(w->m, false);
}

static void create(struct world *w, uint64_t features)
{
    static char text[8192];
    static const char *const presets[] = {NULL};
    const struct device_type *type = device_type_by_id(3);
    const struct machine_config machine = {
        .ops = &virtio_console_ops, .device = &w->worker, .state = true};
    char error[CONFIG_ERROR_LEN] = "";
    struct guest_file *file;
    int len;

    memset(w, 0, sizeof(*w));
    strcpy(w->guest.run_dir, "/tmp/viod-test-restart-console.XXXXXX");
    assert_non_null(mkdtemp(w->guest.run_dir));
    strcpy(w->host.name, "console0");
    w->host.base = MACHINE_BASE;
    w->host.irq = MACHINE_IRQ;
    w->host.n_vcpus = 1;
    w->host.guest = &w->guest;
    snprintf(text, sizeof(text), "[console0]\npacked = yes\n[console0.console]\nbackend = none\n");
    assert_int_equal(guest_file_parse("test", text, strlen(text), &file, error, sizeof(error)), 0);
    if (device_config_fill(&w->host, type, file, presets, error, sizeof(error)) < 0)
        fail_msg("%s", error);
    guest_file_free(file);
    if (type->open(&w->host, error, sizeof(error)) < 0)
        fail_msg("%s", error);
    len = device_config_encode(&w->host, text, sizeof(text));
    assert_true(len > 0);
    assert_int_equal(device_config_decode(text, (size_t)len, &w->worker, error, sizeof(error)), 0);
    hand_over(w);
    w->memory_len = sizeof(struct port_memory);
    w->memory = malloc(w->memory_len);
    assert_non_null(w->memory);
    w->m = machine_create(&machine);
    w->m->dev->ask = w->m->ask = no_answer;
    w->m->meanwhile = successor;
    w->m->meanwhile_arg = w;
    machine_settle(w->m);
    w->out = guest_alloc(&w->m->heap[0], (size_t)CHUNKS * CHUNK, 4096);
    w->in = guest_alloc(&w->m->heap[0], TYPED, 4096);
    driver_start(&w->d, w->m, features | F_VERSION_1, 2, 16);
}

static void destroy(struct world *w)
{
    char command[256];

    machine_destroy(w->m);
    driver_end(&w->d);
    device_config_free(&w->worker);
    device_type_by_id(3)->close(&w->host);
    device_config_free(&w->host);
    free(w->memory);
    snprintf(command, sizeof(command), "rm -r %s", w->guest.run_dir);
    assert_int_equal(system(command), 0);
}

static void turn(struct world *w)
{
    for (int i = 0; i < 5; i++) {
        event_loop_turn(w->m->loop, 1000000);
        machine_settle(w->m);
    }
}

/* A viodctl console from `at` on; *at is where it really begins. */
static int attach(struct world *w, uint64_t *at)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t wire = htole64(*at);
    char packet[10] = {ATTACH_OPEN, 0}, back[1 + ATTACH_DATA_MAX];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_true((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s/console0.attach",
                                 w->guest.run_dir) < sizeof(address.sun_path));
    memcpy(packet + 2, &wire, sizeof(wire));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(send(fd, packet, sizeof(packet), 0), sizeof(packet));
    turn(w);
    assert_int_equal(recv(fd, back, sizeof(back), 0), 5);
    assert_int_equal(back[0], ATTACH_TAKEN);
    assert_int_equal(recv(fd, back, sizeof(back), 0), 9);
    assert_int_equal(back[0], ATTACH_AT);
    memcpy(&wire, back + 1, sizeof(wire));
    *at = le64toh(wire);
    return fd;
}

static size_t hear(struct world *w, int fd, char *to, size_t len)
{
    char packet[1 + ATTACH_DATA_MAX];
    size_t n = 0;
    ssize_t got;

    turn(w);
    while ((got = recv(fd, packet, sizeof(packet), 0)) > 0) {
        assert_int_equal(packet[0], ATTACH_DATA);
        assert_true(n + (size_t)got - 1 <= len);
        memcpy(to + n, packet + 1, (size_t)got - 1);
        n += (size_t)got - 1;
        turn(w);
    }
    return n;
}

static void collect(struct world *w, unsigned queue, unsigned *n)
{
    struct ring_used used;

    while (ring_get(&w->d.rings[queue], &used))
        ++*n;
}

/* False: it went to its end without a death. */
static bool say(uint64_t features, unsigned stores)
{
    static char said[CHUNKS * CHUNK], heard[2 * CHUNKS * CHUNK];
    uint64_t at = 0;
    unsigned taken = 0;
    struct world w;
    size_t n;
    bool died;
    int fd;

    create(&w, features);
    for (size_t i = 0; i < sizeof(said); i++)
        said[i] = (char)('a' + i * 7 % 26 + i / 1000);
    memcpy(fake_ram(w.m->fake, w.out.addr, sizeof(said)), said, sizeof(said));
    for (unsigned i = 0; i < CHUNKS; i++) {
        struct segment out = {{w.out.addr + i * CHUNK}, CHUNK};

        assert_true(ring_add(&w.d.rings[TX], &out, 1, NULL, 0, &w, false) >= 0);
    }
    kill_arm(stores, die, &w);
    driver_kick(&w.d, TX);
    survive(&w);
    machine_settle(w.m);
    collect(&w, TX, &taken);
    assert_int_equal(taken, CHUNKS);
    assert_int_equal(w.m->stats->needs_reset, 0);
    fd = attach(&w, &at);
    assert_int_equal(at, 0);
    n = hear(&w, fd, heard, sizeof(heard));
    assert_int_equal(n, sizeof(said));
    assert_memory_equal(heard, said, n);
    close(fd);
    died = w.died;
    destroy(&w);
    return died;
}

/* Bytes of input that wait for the guest. */
static uint64_t heard_of(const struct world *w)
{
    uint64_t in_head = 0;

    assert_int_equal(pread(w->worker.fds[1], &in_head, sizeof(in_head),
                           offsetof(struct port_memory, in_head)), sizeof(in_head));
    return in_head;
}

static bool type(uint64_t features, unsigned stores)
{
    char typed[1 + TYPED] = {ATTACH_DATA};
    uint64_t at = ATTACH_SCREEN;
    struct ring_used used;
    struct world w;
    size_t n = 0;
    bool died;
    int fd;

    create(&w, features);
    for (size_t i = 1; i < sizeof(typed); i++)
        typed[i] = (char)('a' + i * 7 % 26);
    fd = attach(&w, &at);
    assert_int_equal(send(fd, typed, sizeof(typed), 0), sizeof(typed));
    turn(&w);
    for (unsigned i = 0; i < 5; i++) {
        struct segment in = {{w.in.addr + i * TYPED_BUFFER}, i < 4 ? TYPED_BUFFER : TYPED % TYPED_BUFFER};

        assert_true(ring_add(&w.d.rings[RX], NULL, 0, &in, 1, &w, false) >= 0);
    }
    for (unsigned i = 0; i < 2000 && heard_of(&w) < TYPED; i++) /* until it is in the ring */
        turn(&w);
    kill_arm(stores, die, &w);
    driver_kick(&w.d, RX);
    survive(&w);
    turn(&w);
    while (ring_get(&w.d.rings[RX], &used))
        n += used.len;
    assert_int_equal(n, TYPED);
    assert_memory_equal(fake_ram(w.m->fake, w.in.addr, TYPED), typed + 1, TYPED);
    assert_int_equal(w.m->stats->needs_reset, 0);
    close(fd);
    died = w.died;
    turn(&w);
    destroy(&w);
    return died;
}

static void each(bool (*scene)(uint64_t features, unsigned stores), uint64_t features)
{
    unsigned stores = 0;

    while (scene(features, stores))
        stores++;
    assert_true(stores > 20);
}

static void test_say_split(void **state) { (void)state; each(say, 0); }
static void test_say_packed(void **state) { (void)state; each(say, F_PACKED); }
static void test_type_split(void **state) { (void)state; each(type, 0); }
static void test_type_packed(void **state) { (void)state; each(type, F_PACKED); }

/* Who was attached goes on where it was. */
static void test_attached(void **state)
{
    static char heard[2 * CHUNK];
    struct segment out;
    struct world w;
    uint64_t at = ATTACH_SCREEN;
    unsigned taken = 0;
    size_t n;
    int fd;

    (void)state;
    create(&w, 0);
    memset(fake_ram(w.m->fake, w.out.addr, 2 * CHUNK), 'x', 2 * CHUNK);
    for (unsigned i = 0; i < 2; i++) {
        out = (struct segment){{w.out.addr + i * CHUNK}, CHUNK};
        assert_true(ring_add(&w.d.rings[TX], &out, 1, NULL, 0, &w, false) >= 0);
        driver_kick(&w.d, TX);
        fd = attach(&w, &at);
        n = hear(&w, fd, heard, sizeof(heard));
        assert_int_equal(n, CHUNK);
        at += n;
        close(fd);
        turn(&w);
        die(&w);
        survive(&w);
    }
    collect(&w, TX, &taken);
    assert_int_equal(taken, 2);
    assert_int_equal(at, 2 * CHUNK);
    /* What is none of the positions there are. */
    at = 1u << 30;
    fd = attach(&w, &at);
    assert_int_equal(at, 0);
    assert_int_equal(hear(&w, fd, heard, sizeof(heard)), 2 * CHUNK);
    close(fd);
    turn(&w);
    destroy(&w);
}

/* Nobody was there to take it: a successor still has all that the ring holds. */
static void test_absent_reader(void **state)
{
    struct ring_used used;
    const struct port *port;
    struct world w;

    (void)state;
    create(&w, 0);
    for (unsigned i = 0; i < PORT_OUT_SIZE / CHUNK + 20; i++) {
        struct segment out = {{w.out.addr}, CHUNK};

        assert_true(ring_add(&w.d.rings[TX], &out, 1, NULL, 0, &w, false) >= 0);
        driver_kick(&w.d, TX);
        machine_settle(w.m);
        assert_true(ring_get(&w.d.rings[TX], &used));
    }
    die(&w);
    survive(&w);
    port = &((const struct console *)w.m->dev->priv)->ports[0];
    assert_true(port->head > PORT_OUT_SIZE);
    assert_int_equal(port->sink.at, port->head - PORT_OUT_SIZE);
    destroy(&w);
}

/* Positions that cannot be are not believed. */
static void test_damaged(void **state)
{
    uint64_t at = ATTACH_SCREEN;
    static char heard[PORT_OUT_SIZE];
    struct world w;
    int fd;

    (void)state;
    for (unsigned value = 0; value < 256; value += 51) {
        create(&w, 0);
        die(&w);
        memset(w.memory, (int)value, offsetof(struct port_memory, out));
        survive(&w);
        fd = attach(&w, &at);
        (void)hear(&w, fd, heard, sizeof(heard));
        close(fd);
        turn(&w);
        destroy(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_say_split),
        cmocka_unit_test(test_say_packed),
        cmocka_unit_test(test_type_split),
        cmocka_unit_test(test_type_packed),
        cmocka_unit_test(test_attached),
        cmocka_unit_test(test_absent_reader),
        cmocka_unit_test(test_damaged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
