/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device and its real backend together, as a worker has them: a driver with several queues
 * keeps many requests in flight on an image file, queues belong to an I/O thread, memory is dropped
 * and the device is reset in between. At the end the image is what the driver wrote.
 */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "driver.h"

#define BLOCKS 512u            /* 2 MiB in blocks of 4 KiB */
#define BLOCK 4096u
#define IMAGE_SIZE (BLOCKS * BLOCK)
#define SLOTS 16u              /* requests in flight per queue */
#define QUEUES 4u
#define SLOT_LEN (256u + 64u * BLOCK + 256u) /* header, data, status */

static char path[256];

struct slot {
    gpa_t at;
    bool busy, write;
    uint32_t block, n;
    uint8_t value;
};

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    struct slot slots[QUEUES][SLOTS];
    uint8_t value[BLOCKS]; /* what each block holds */
    bool busy[BLOCKS];     /* in a request: left alone until it is done */
    unsigned done;
    bool indirect;         /* the device takes such tables */
};

static void make_image(void)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, IMAGE_SIZE), 0);
    close(fd);
}

static void start(struct test *t, bool direct, bool io_thread)
{
    struct machine_config machine = {
        .ops = &virtio_blk_ops, .device = &t->config, .io_thread = io_thread};
    char error[CONFIG_ERROR_LEN], preset[300];
    const char *presets[] = {preset, direct ? "cache=none" : "cache=writeback", "discard=yes", NULL};
    const struct device_type *type = device_type_by_id(2);

    memset(t, 0, sizeof(*t));
    make_image();
    strcpy(t->config.name, "vda");
    t->config.virtio_id = 2;
    t->config.base = MACHINE_BASE;
    t->config.irq = MACHINE_IRQ;
    t->config.n_vcpus = QUEUES;
    snprintf(preset, sizeof(preset), "path=%s", path);
    if (device_config_fill(&t->config, type, NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    if (type->open(&t->config, error, sizeof(error))) {
        if (!direct)
            fail_msg("%s", error);
        print_message("%s\n", error);
        device_config_free(&t->config);
        skip();
    }
    t->m = machine_create(&machine);
    t->indirect = (driver_offered(t->m) & FEATURE(VIRTIO_RING_F_INDIRECT_DESC)) != 0;
    driver_start(&t->driver, t->m, driver_offered(t->m), QUEUES, 128);
    for (unsigned q = 0; q < QUEUES; q++)
        for (unsigned i = 0; i < SLOTS; i++)
            t->slots[q][i].at = guest_alloc(&t->m->heap[q % 2], SLOT_LEN, BLOCK);
}

static void end(struct test *t)
{
    uint8_t *image = malloc(IMAGE_SIZE);
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
    assert_non_null(image);
    assert_int_equal(pread(fd, image, IMAGE_SIZE, 0), IMAGE_SIZE);
    for (unsigned b = 0; b < BLOCKS; b++)
        for (unsigned i = 0; i < BLOCK; i++)
            if (image[b * BLOCK + i] != t->value[b])
                fail_msg("block %u, byte %u: 0x%02x, not 0x%02x", b, i, image[b * BLOCK + i],
                         t->value[b]);
    free(image);
    close(fd);
    unlink(path);
}

static uint8_t *ram(struct test *t, const struct slot *s)
{
    return fake_ram(t->m->fake, s->at.addr, SLOT_LEN);
}

/* Data starts at an odd address and is cut at odd places, so that nothing is aligned. */
static void issue(struct test *t, unsigned q, struct slot *s)
{
    struct virtio_blk_outhdr header = {0};
    struct segment out[4], in[4];
    unsigned n_out = 0, n_in = 0;
    uint8_t *p = ram(t, s);

    s->n = 1u << (unsigned)rand() % 7;
    s->block = (unsigned)rand() % (BLOCKS - s->n + 1);
    for (unsigned i = 0; i < s->n; i++)
        if (t->busy[s->block + i])
            return;
    s->write = rand() % 2;
    s->value = (uint8_t)rand();
    s->busy = true;
    for (unsigned i = 0; i < s->n; i++)
        t->busy[s->block + i] = true;
    header.type = htole32(s->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
    header.sector = htole64((uint64_t)s->block * (BLOCK / 512));
    memcpy(p, &header, sizeof(header));
    memset(p + 101, s->write ? s->value : 0xee, s->n * BLOCK);
    p[SLOT_LEN - 1] = 0xee;
    out[n_out++] = segment(s->at.addr, 16);
    struct segment *data = s->write ? out : in;
    unsigned *n = s->write ? &n_out : &n_in;
    uint32_t len = s->n * BLOCK, cut = (uint32_t)rand() % (len - 1) + 1;
    data[(*n)++] = segment(s->at.addr + 101, cut);
    data[(*n)++] = segment(s->at.addr + 101 + cut, len - cut);
    in[n_in++] = segment(s->at.addr + SLOT_LEN - 1, 1);
    assert_true(ring_add(&t->driver.rings[q], out, n_out, in, n_in, s, rand() % 2 && t->indirect) >= 0);
    driver_kick_if_needed(&t->driver, (uint16_t)q);
}

static void finish(struct test *t, struct slot *s, uint32_t len)
{
    const uint8_t *p = ram(t, s);

    assert_int_equal(p[SLOT_LEN - 1], VIRTIO_BLK_S_OK);
    assert_int_equal(len, s->write ? 1 : s->n * BLOCK + 1);
    for (unsigned i = 0; i < s->n * BLOCK && !s->write; i++)
        if (p[101 + i] != t->value[s->block + i / BLOCK])
            fail_msg("block %u holds 0x%02x, not 0x%02x", s->block + i / BLOCK, p[101 + i],
                     t->value[s->block + i / BLOCK]);
    for (unsigned i = 0; i < s->n; i++) {
        if (s->write)
            t->value[s->block + i] = s->value;
        t->busy[s->block + i] = false;
    }
    s->busy = false;
    t->done++;
}

static void collect(struct test *t)
{
    struct ring_used used;

    machine_turn(t->m);
    for (unsigned q = 0; q < QUEUES; q++)
        while (ring_get(&t->driver.rings[q], &used))
            finish(t, used.token, used.len);
}

static bool any_busy(const struct test *t)
{
    for (unsigned q = 0; q < QUEUES; q++)
        for (unsigned i = 0; i < SLOTS; i++)
            if (t->slots[q][i].busy)
                return true;
    return false;
}

static void wait_for_all(struct test *t)
{
    int64_t end_ns = monotonic_ns() + INT64_C(60000000000);

    while (any_busy(t)) {
        if (monotonic_ns() > end_ns)
            fail_msg("requests are lost");
        collect(t);
    }
}

static void traffic(struct test *t, unsigned requests)
{
    unsigned goal = t->done + requests;
    int64_t end_ns = monotonic_ns() + INT64_C(120000000000);

    while (t->done < goal) {
        if (monotonic_ns() > end_ns)
            fail_msg("%u of %u requests done", t->done, goal);
        for (unsigned q = 0; q < QUEUES; q++)
            for (unsigned i = 0; i < SLOTS; i++)
                if (!t->slots[q][i].busy)
                    issue(t, q, &t->slots[q][i]);
        collect(t);
    }
    wait_for_all(t);
}

static uint8_t simple(struct test *t, uint32_t type, const void *data, uint32_t len)
{
    struct virtio_blk_outhdr header = {.type = htole32(type)};
    struct slot *s = &t->slots[0][0];
    struct segment out[2] = {segment(s->at.addr, 16), segment(s->at.addr + 16, len)};
    struct segment in = segment(s->at.addr + SLOT_LEN - 1, 1);
    int64_t end_ns = monotonic_ns() + INT64_C(60000000000);
    struct ring_used used;
    uint8_t *p = ram(t, s);

    memcpy(p, &header, sizeof(header));
    if (len)
        memcpy(p + 16, data, len);
    assert_true(ring_add(&t->driver.rings[0], out, len ? 2 : 1, &in, 1, NULL, false) >= 0);
    driver_kick_if_needed(&t->driver, 0);
    while (!ring_get(&t->driver.rings[0], &used)) {
        if (monotonic_ns() > end_ns)
            fail_msg("request %u is lost", type);
        machine_turn(t->m);
    }
    assert_int_equal(used.len, 1);
    return p[SLOT_LEN - 1];
}

static void run(bool direct, bool io_thread)
{
    static struct test t;

    srand(1);
    start(&t, direct, io_thread);
    traffic(&t, 2000);
    assert_int_equal(simple(&t, VIRTIO_BLK_T_FLUSH, NULL, 0), VIRTIO_BLK_S_OK);

    /* Write-through. */
    machine_write(t.m, VIRTIO_MMIO_CONFIG + (uint32_t)offsetof(struct virtio_blk_config, wce), 1, 0);
    traffic(&t, 100);
    machine_write(t.m, VIRTIO_MMIO_CONFIG + (uint32_t)offsetof(struct virtio_blk_config, wce), 1, 1);

    struct virtio_blk_discard_write_zeroes range = {.sector = htole64(80), .num_sectors = htole32(16)};
    assert_int_equal(simple(&t, VIRTIO_BLK_T_WRITE_ZEROES, &range, sizeof(range)), VIRTIO_BLK_S_OK);
    t.value[10] = t.value[11] = 0;
    range.sector = htole64(160);
    if (driver_offered(t.m) & FEATURE(VIRTIO_BLK_F_DISCARD)) {
        assert_int_equal(simple(&t, VIRTIO_BLK_T_DISCARD, &range, sizeof(range)), VIRTIO_BLK_S_OK);
        t.value[20] = t.value[21] = 0;
    }
    traffic(&t, 200);

    /* All mappings are dropped with requests in flight; the guest notices nothing. */
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned q = 0; q < QUEUES; q++)
            for (unsigned i = 0; i < SLOTS; i++)
                if (!t.slots[q][i].busy)
                    issue(&t, q, &t.slots[q][i]);
        fake_trap(t.m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
        while (!fake_answered(t.m->fake, 1, NULL))
            collect(&t);
        traffic(&t, 100);
    }

    /* A reset with requests in flight: each was done, or was not. */
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned q = 0; q < QUEUES; q++)
            for (unsigned i = 0; i < SLOTS; i++)
                issue(&t, q, &t.slots[q][i]);
        machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        for (unsigned b = 0; b < BLOCKS; b++) {
            assert_int_equal(pread(fd, &t.value[b], 1, (off_t)b * BLOCK), 1);
            t.busy[b] = false;
        }
        close(fd);
        for (unsigned q = 0; q < QUEUES; q++)
            for (unsigned i = 0; i < SLOTS; i++)
                t.slots[q][i].busy = false;
        driver_restart(&t.driver);
        traffic(&t, 100);
    }
    end(&t);
}

static void cached(void **state)
{
    (void)state;
    run(false, false);
}

static void direct(void **state)
{
    (void)state;
    run(true, false);
}

static void cached_with_io_thread(void **state)
{
    (void)state;
    run(false, true);
}

static void direct_with_io_thread(void **state)
{
    (void)state;
    run(true, true);
}

static int set_up(void **state)
{
    const char *tmp = getenv("TMPDIR");
    int fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/blk-image-XXXXXX", tmp ? tmp : "/tmp");
    fd = mkstemp(path);
    return fd >= 0 ? close(fd) : -1;
}

/* What the guest was told when the image was opened first holds, whatever is found out now. */
static void opened_again(void **state)
{
    const struct device_type *type = device_type_by_id(2);
    struct device_config config = {.name = "vda"};
    char error[CONFIG_ERROR_LEN], preset[300];
    const char *presets[] = {preset, "cache=writeback", "discard=no", NULL};

    (void)state;
    make_image();
    snprintf(preset, sizeof(preset), "path=%s", path);
    assert_int_equal(device_config_fill(&config, type, NULL, presets, error, sizeof(error)), 0);
    assert_int_equal(type->open(&config, error, sizeof(error)), 0);
    assert_int_equal(config.block.discard_granularity, 0);
    assert_false(config.block.can_secure_erase || config.block.write_through);
    for (unsigned round = 0; round < 2; round++) {
        close(config.fds[0]);
        /* As if it had been able to do more, and had had no cache. */
        config.block.discard_granularity = 65536;
        config.block.can_secure_erase = config.block.write_through = true;
        if (round == 1) /* found anew by a supervisor that knows it from the one before */
            device_config_close_kept(&config);
        assert_int_equal(type->reopen(&config, error, sizeof(error)), 0);
        assert_int_equal(config.block.discard_granularity, 65536);
        assert_true(config.block.can_secure_erase);
        assert_false(config.block.write_through); /* it must be able to flush */
        assert_int_equal(config.block.size, IMAGE_SIZE);
    }
    close(config.fds[0]);
    config.fds[0] = -1;
    device_config_close_kept(&config);
    device_config_free(&config);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opened_again),
        cmocka_unit_test(cached),
        cmocka_unit_test(direct),
        cmocka_unit_test(cached_with_io_thread),
        cmocka_unit_test(direct_with_io_thread),
    };

    return cmocka_run_group_tests_name("blk_image", tests, set_up, NULL);
}
