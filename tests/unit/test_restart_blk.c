/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device with a real image whose worker dies at each store that outlives it: what the driver was
 * told is done is on the image, and with a wrong bit anywhere in what was kept, no other block is
 * written than the driver's requests say.
 */
#include "driver.h"
#include "kill.h"
#include "unit.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"

#define SECTOR 512u
#define SECTORS 128u
#define SIZE 32u
#define WRITES 6u
#define REQUESTS (WRITES + 2) /* a flush and a read behind them */
#define SLOT 2048u            /* header, data at SECTOR, status at its end */
#define FLIPS 8u

static char path[] = "/tmp/viod-test-restart-blk.XXXXXX";

struct world {
    struct machine *m;
    struct device_config config;
    struct driver d;
    gpa_t slots;
    uint64_t features;
    uint32_t random; /* 0: no bit is wrong */
    bool died;
    bool done[REQUESTS];
};

static uint32_t next_random(struct world *w)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 17;
    w->random ^= w->random << 5;
    return w->random;
}

static uint8_t first_content(unsigned sector) { return (uint8_t)sector; }
static uint8_t content_of(unsigned i) { return (uint8_t)(0x80 + i); }
static unsigned sector_of(unsigned i) { return 11 * i + 3; }

static void make_image(void)
{
    uint8_t sector[SECTOR];
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    for (unsigned i = 0; i < SECTORS; i++) {
        memset(sector, first_content(i), sizeof(sector));
        assert_int_equal(write(fd, sector, sizeof(sector)), (ssize_t)sizeof(sector));
    }
    close(fd);
}

static void check_image(const struct world *w)
{
    uint8_t sector[SECTOR];
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    for (unsigned s = 0; s < SECTORS; s++) {
        uint8_t expected = first_content(s);

        assert_int_equal(read(fd, sector, sizeof(sector)), (ssize_t)sizeof(sector));
        for (unsigned i = 0; i < WRITES; i++)
            if (sector_of(i) == s && (w->done[i] || sector[0] == content_of(i)))
                expected = content_of(i);
        for (unsigned at = 0; at < SECTOR; at++)
            if (sector[at] != expected)
                fail_msg("sector %u, byte %u: 0x%02x, not 0x%02x", s, at, sector[at], expected);
    }
    close(fd);
}

/* The dead one's descriptor is closed, and with it the lock on the image. */
static void successor(void *arg)
{
    struct world *w = arg;
    char error[CONFIG_ERROR_LEN] = "";

    if (device_type_by_id(2)->reopen(&w->config, error, sizeof(error)) < 0)
        fail_msg("%s", error);
}

static void die(void *arg)
{
    struct world *w = arg;
    uint8_t *bytes;
    size_t len, at, queue;

    w->died = true;
    machine_take_picture(w->m);
    if (w->random == 0)
        return;
    bytes = machine_pictured_state(w->m, &len);
    queue = offsetof(struct device_state, queues);
    switch (next_random(w) % 4) {
    case 0: /* words of the device, its registers, and what is its own */
        at = next_random(w) % (offsetof(struct device_state, own) + 64);
        break;
    case 1: /* positions */
        at = queue + next_random(w) % offsetof(struct state_queue, serving);
        break;
    case 2:
        at = queue + offsetof(struct state_queue, requests) +
             next_random(w) % (SIZE * sizeof(struct state_request));
        break;
    default:
        at = queue + offsetof(struct state_queue, descriptors) +
             next_random(w) % (SIZE * sizeof(struct state_descriptor));
    }
    assert_true(at < len);
    bytes[at] ^= (uint8_t)(1u << next_random(w) % 8);
}

static uint8_t *slot(struct world *w, unsigned i)
{
    return fake_ram(w->m->fake, w->slots.addr + i * SLOT, SLOT);
}

static void add(struct world *w, unsigned i)
{
    struct virtio_blk_outhdr header = {0};
    gpa_t at = {w->slots.addr + i * SLOT};
    struct segment out[2] = {{at, sizeof(header)}, {{at.addr + SECTOR}, SECTOR}};
    struct segment in[2] = {{{at.addr + SECTOR}, SECTOR}, {{at.addr + SLOT - 1}, 1}};
    bool read = i == WRITES + 1;

    header.type = htole32(i < WRITES ? VIRTIO_BLK_T_OUT : read ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_FLUSH);
    header.sector = htole64(i < WRITES ? sector_of(i) : read ? 1 : 0);
    memcpy(slot(w, i), &header, sizeof(header));
    memset(slot(w, i) + SECTOR, content_of(i), SECTOR);
    slot(w, i)[SLOT - 1] = 0xee;
    assert_true(ring_add(&w->d.rings[0], out, i < WRITES ? 2 : 1, read ? in : in + 1, read ? 2 : 1,
                         (void *)(uintptr_t)(i + 1), (w->features & F_INDIRECT) != 0) >= 0);
}

static void create(struct world *w)
{
    const struct machine_config machine = {
        .ops = &virtio_blk_ops, .device = &w->config, .state = true};
    const struct device_type *type = device_type_by_id(2);
    char error[CONFIG_ERROR_LEN], preset[64];
    const char *presets[] = {preset, "cache=writeback", "packed=yes", "in-order=yes", NULL};

    make_image();
    strcpy(w->config.name, "vda");
    w->config.virtio_id = 2;
    w->config.base = MACHINE_BASE;
    w->config.irq = MACHINE_IRQ;
    w->config.n_vcpus = 1;
    snprintf(preset, sizeof(preset), "path=%s", path);
    if (device_config_fill(&w->config, type, NULL, presets, error, sizeof(error)) < 0 ||
        type->open(&w->config, error, sizeof(error)) < 0)
        fail_msg("%s", error);
    w->m = machine_create(&machine);
    w->m->meanwhile = successor;
    w->m->meanwhile_arg = w;
    w->slots = guest_alloc(&w->m->heap[0], (size_t)REQUESTS * SLOT, 4096);
    driver_start(&w->d, w->m, w->features | F_VERSION_1 | FEATURE(VIRTIO_BLK_F_FLUSH), 1, SIZE);
}

static bool needs_reset(struct world *w)
{
    return (machine_read32(w->m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

static void collect(struct world *w)
{
    struct ring_used used;

    while (ring_get(&w->d.rings[0], &used)) {
        unsigned i = (unsigned)(uintptr_t)used.token - 1;

        assert_true(i < REQUESTS);
        assert_false(w->done[i]);
        assert_int_equal(slot(w, i)[SLOT - 1], VIRTIO_BLK_S_OK);
        w->done[i] = true;
        if (i != WRITES + 1)
            continue;
        for (unsigned at = 0; at < SECTOR; at++)
            assert_int_equal(slot(w, i)[SECTOR + at], first_content(1));
    }
}

static bool all_done(const struct world *w)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (!w->done[i])
            return false;
    return true;
}

/* Until all is done, or the device needs a reset: the host's I/O takes what it takes. */
static void go_on(struct world *w)
{
    int64_t end = monotonic_ns() + INT64_C(60000000000);

    while (!all_done(w) && !needs_reset(w)) {
        assert_true(monotonic_ns() < end);
        event_loop_turn(w->m->loop, 1000000);
        machine_settle(w->m);
        collect(w);
    }
}

/* False: it went to its end without a death. */
static bool live(uint64_t features, unsigned stores, uint32_t random, unsigned *resets)
{
    struct world w = {.features = features, .random = random};

    create(&w);
    for (unsigned i = 0; i < REQUESTS; i++)
        add(&w, i);
    kill_arm(stores, die, &w);
    driver_kick(&w.d, 0);
    for (unsigned i = 0; i < 3; i++) { /* the host's I/O, of which some is done when it dies */
        event_loop_turn(w.m->loop, 1000000);
        machine_settle(w.m);
    }
    kill_disarm();
    if (w.m->picture != NULL)
        machine_succeed(w.m, false);
    collect(&w);
    go_on(&w);
    check_image(&w);
    if (needs_reset(&w)) {
        assert_int_not_equal(random, 0);
        ++*resets;
        driver_restart(&w.d);
        memset(w.done, 0, sizeof(w.done));
        for (unsigned i = 0; i < REQUESTS; i++)
            add(&w, i);
        driver_kick(&w.d, 0);
        go_on(&w);
        assert_false(needs_reset(&w));
        check_image(&w);
    }
    assert_true(all_done(&w));
    machine_destroy(w.m);
    driver_end(&w.d);
    device_config_free(&w.config);
    return w.died;
}

static void each_store(uint64_t features)
{
    unsigned stores = 0, resets = 0;

    while (live(features, stores, 0, &resets))
        stores++;
    assert_true(stores > REQUESTS);
    assert_int_equal(resets, 0);
}

static void wrong_bits(uint64_t features)
{
    unsigned stores = 0, resets = 0;
    bool died = true;

    for (; died; stores += 3)
        for (unsigned i = 0; i < FLIPS; i++)
            died = live(features, stores, 0x9e3779b9u * (stores * FLIPS + i + 1) | 1, &resets);
    assert_true(resets > stores / 3);
}

static void test_split(void **state) { (void)state; each_store(0); }
static void test_split_in_order(void **state) { (void)state; each_store(F_IN_ORDER | F_INDIRECT); }
static void test_packed(void **state) { (void)state; each_store(F_PACKED); }
static void test_packed_in_order(void **state) { (void)state; each_store(F_PACKED | F_IN_ORDER); }
static void test_row_29_split(void **state) { (void)state; wrong_bits(0); }
static void test_row_29_packed(void **state) { (void)state; wrong_bits(F_PACKED | F_INDIRECT); }

static int make_path(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_in_order),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_in_order),
        cmocka_unit_test(test_row_29_split),
        cmocka_unit_test(test_row_29_packed),
    };

    return cmocka_run_group_tests(tests, make_path, remove_path);
}
