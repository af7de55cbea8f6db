/* SPDX-License-Identifier: Apache-2.0 */
#include "blk_scene.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/table.h"

#define SECTOR 512u
#define SECTORS 128u
#define SLOT 2048u /* header, data at SECTOR, status at its end */
#define WRITES BLK_SCENE_WRITES
#define REQUESTS BLK_SCENE_REQUESTS

#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fake_die("%s:%d: not so: %s", __FILE__, __LINE__, #condition);                         \
    } while (0)

static uint8_t first_content(unsigned sector) { return (uint8_t)sector; }
static uint8_t content_of(unsigned i) { return (uint8_t)(0x80 + i); }
static unsigned sector_of(unsigned i) { return 11 * i + 3; }

static void make_image(const char *path)
{
    uint8_t sector[SECTOR];
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);

    check(fd >= 0);
    for (unsigned i = 0; i < SECTORS; i++) {
        memset(sector, first_content(i), sizeof(sector));
        check(write(fd, sector, sizeof(sector)) == (ssize_t)sizeof(sector));
    }
    close(fd);
}

static void check_image(const struct blk_scene *s)
{
    uint8_t sector[SECTOR];
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);

    check(fd >= 0);
    for (unsigned number = 0; number < SECTORS; number++) {
        uint8_t expected = first_content(number);

        check(read(fd, sector, sizeof(sector)) == (ssize_t)sizeof(sector));
        for (unsigned i = 0; i < WRITES; i++)
            if (sector_of(i) == number && (s->done[i] || sector[0] == content_of(i)))
                expected = content_of(i);
        for (unsigned at = 0; at < SECTOR; at++)
            if (sector[at] != expected)
                fake_die("sector %u, byte %u: 0x%02x, not 0x%02x", number, at, sector[at], expected);
    }
    close(fd);
}

static uint8_t *slot(struct blk_scene *s, unsigned i)
{
    return fake_ram(s->m->fake, s->slots.addr + i * SLOT, SLOT);
}

static void add(struct blk_scene *s, unsigned i)
{
    struct virtio_blk_outhdr header = {0};
    gpa_t at = {s->slots.addr + i * SLOT};
    struct segment out[2] = {{at, sizeof(header)}, {{at.addr + SECTOR}, SECTOR}};
    struct segment in[2] = {{{at.addr + SECTOR}, SECTOR}, {{at.addr + SLOT - 1}, 1}};
    bool read = i == WRITES + 1;

    header.type = htole32(i < WRITES ? VIRTIO_BLK_T_OUT : read ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_FLUSH);
    header.sector = htole64(i < WRITES ? sector_of(i) : read ? 1 : 0);
    memcpy(slot(s, i), &header, sizeof(header));
    memset(slot(s, i) + SECTOR, content_of(i), SECTOR);
    slot(s, i)[SLOT - 1] = 0xee;
    check(ring_add(&s->d.rings[0], out, i < WRITES ? 2 : 1, read ? in : in + 1, read ? 2 : 1,
                   (void *)(uintptr_t)(i + 1), (s->features & F_INDIRECT) != 0) >= 0);
}

static void add_all(struct blk_scene *s)
{
    memset(s->done, 0, sizeof(s->done));
    for (unsigned i = 0; i < REQUESTS; i++)
        add(s, i);
}

/*
 * The descriptor of the one before is closed; the lock on the image ends with its last use. That is when the
 * kernel has taken a dead one's ring apart, or, where the loop and its ring live on, when this thread lets
 * the ring put away a request that a kernel's worker has ended.
 */
static void open_image(struct blk_scene *s, int (*open_it)(struct device_config *, char *, size_t))
{
    int64_t end = monotonic_ns() + INT64_C(60000000000);
    char error[CONFIG_ERROR_LEN] = "";
    int ret;

    while ((ret = open_it(&s->config, error, sizeof(error))) == -EBUSY && monotonic_ns() < end) {
        if (s->m != NULL)
            event_loop_turn(s->m->loop, 1000000);
        else
            usleep(1000);
    }
    if (ret < 0)
        fake_die("%s", error);
}

static void open_again(void *arg)
{
    open_image(arg, device_type_by_id(2)->reopen);
}

void blk_scene_begin(struct blk_scene *s, const char *path, uint64_t features)
{
    const struct machine_config machine = {
        .ops = &virtio_blk_ops, .device = &s->config, .state = true};
    const struct device_type *type = device_type_by_id(2);
    char error[CONFIG_ERROR_LEN], preset[64];
    const char *presets[] = {preset, "cache=writeback", "packed=yes", "in-order=yes", NULL};

    *s = (struct blk_scene){.path = path, .features = features};
    make_image(path);
    strcpy(s->config.name, "vda");
    s->config.virtio_id = 2;
    s->config.base = MACHINE_BASE;
    s->config.irq = MACHINE_IRQ;
    s->config.n_vcpus = 1;
    snprintf(preset, sizeof(preset), "path=%s", path);
    if (device_config_fill(&s->config, type, NULL, presets, error, sizeof(error)) < 0)
        fake_die("%s", error);
    open_image(s, type->open);
    s->m = machine_create(&machine);
    s->m->meanwhile = open_again;
    s->m->meanwhile_arg = s;
    s->slots = guest_alloc(&s->m->heap[0], (size_t)REQUESTS * SLOT, 4096);
    driver_start(&s->d, s->m, features | F_VERSION_1 | (UINT64_C(1) << VIRTIO_BLK_F_FLUSH), 1,
                 BLK_SCENE_SIZE);
    add_all(s);
}

void blk_scene_serve(struct blk_scene *s, unsigned turns)
{
    for (unsigned i = 0; i < turns; i++) {
        event_loop_turn(s->m->loop, 1000000);
        machine_settle(s->m);
    }
}

void blk_scene_die(struct blk_scene *s)
{
    s->died = true;
    machine_take_picture(s->m);
}

static bool needs_reset(struct blk_scene *s)
{
    return (machine_read32(s->m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

static void collect(struct blk_scene *s)
{
    struct ring_used used;

    while (ring_get(&s->d.rings[0], &used)) {
        unsigned i = (unsigned)(uintptr_t)used.token - 1;

        check(i < REQUESTS);
        check(!s->done[i]);
        check(slot(s, i)[SLOT - 1] == VIRTIO_BLK_S_OK);
        s->done[i] = true;
        for (unsigned at = 0; i == WRITES + 1 && at < SECTOR; at++)
            check(slot(s, i)[SECTOR + at] == first_content(1));
    }
}

static bool all_done(const struct blk_scene *s)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (!s->done[i])
            return false;
    return true;
}

/* Until all is done, or the device needs a reset: the host's I/O takes what it takes. */
static void go_on(struct blk_scene *s)
{
    int64_t end = monotonic_ns() + INT64_C(60000000000);

    while (!all_done(s) && !needs_reset(s)) {
        if (monotonic_ns() >= end)
            fake_die("a request does not come back");
        blk_scene_serve(s, 1);
        collect(s);
    }
}

bool blk_scene_end(struct blk_scene *s)
{
    bool reset;

    if (s->m->picture != NULL)
        machine_succeed(s->m, false);
    collect(s);
    go_on(s);
    check_image(s);
    reset = needs_reset(s);
    if (reset) {
        driver_restart(&s->d);
        add_all(s);
        driver_kick(&s->d, 0);
        go_on(s);
        check(!needs_reset(s));
        check_image(s);
    }
    check(all_done(s));
    machine_destroy(s->m);
    driver_end(&s->d);
    device_config_free(&s->config);
    return reset;
}
