/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device in a fake machine, on a backend that the test plays: an array of bytes, with every
 * request in view. (tests/unit/test_blk_image.c puts device and real backend together.)
 */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <unistd.h>

#include "config.h"
#include "devices/table.h"
#include "driver.h"
#include "log.h"

#define SECTORS 8192u /* 4 MiB */
#define IMAGE_SIZE ((size_t)SECTORS * 512)
#define CONFIG_INTERRUPT 2u
#define UNWRITTEN 0xee /* what the driver's buffers hold */
#define NO_STATUS 0xee
#define BIT(n) (UINT64_C(1) << (n))
#define T_GET_LIFETIME 10u
#define HELD_MAX 64u

/* ---- the backend ---- */

struct block_backend {
    int fd;
};
struct block_channel {
    struct event_loop *loop;
};

static struct {
    uint8_t image[IMAGE_SIZE];
    int64_t size;              /* what block_size says */
    int result;                /* of the next requests */
    int flush_error;
    int channel_error;
    bool hold;                 /* keep requests until release */
    struct block_request *held[HELD_MAX];
    unsigned n_held;
    unsigned ops[BLOCK_SECURE_ERASE + 1];
    unsigned fua, unmap;       /* requests that asked for it */
    unsigned channels, channels_made;
    bool created;
    struct block_info info;
} backend;

static void transfer(const struct block_request *r)
{
    uint8_t *at = backend.image + r->offset;
    uint64_t len = 0;

    for (uint32_t i = 0; i < r->n_iov; i++) {
        if (r->op == BLOCK_READ)
            memcpy(r->iov[i].iov_base, at + len, r->iov[i].iov_len);
        else
            memcpy(at + len, r->iov[i].iov_base, r->iov[i].iov_len);
        len += r->iov[i].iov_len;
    }
    assert_int_equal(len, r->len);
}

static void perform(struct block_request *r)
{
    if (backend.result == 0 && r->op != BLOCK_FLUSH)
        assert_true(r->offset <= IMAGE_SIZE && r->len <= IMAGE_SIZE - r->offset);
    if (backend.result == 0 && (r->op == BLOCK_READ || r->op == BLOCK_WRITE))
        transfer(r);
    else if (backend.result == 0 && r->op != BLOCK_FLUSH)
        memset(backend.image + r->offset, 0, r->len);
    r->done(r, backend.result);
}

int block_create(int fd, const struct block_info *info, struct block_backend **out)
{
    assert_false(backend.created);
    backend.created = true;
    backend.info = *info;
    *out = malloc(sizeof(**out));
    (*out)->fd = fd;
    return 0;
}

void block_destroy(struct block_backend *block)
{
    assert_int_equal(backend.channels, 0);
    backend.created = false;
    assert_int_equal(close(block->fd), 0);
    free(block);
}

int block_channel_create(struct block_backend *block, struct event_loop *loop,
                         struct block_channel **out)
{
    (void)block;
    if (backend.channel_error)
        return backend.channel_error;
    *out = malloc(sizeof(**out));
    (*out)->loop = loop;
    backend.channels++;
    backend.channels_made++;
    return 0;
}

void block_channel_destroy(struct block_channel *channel)
{
    assert_int_equal(backend.n_held, 0);
    backend.channels--;
    free(channel);
}

void block_submit(struct block_channel *channel, struct block_request *request)
{
    assert_non_null(channel);
    backend.ops[request->op]++;
    backend.fua += request->fua;
    backend.unmap += request->unmap;
    if (backend.hold) {
        assert_true(backend.n_held < HELD_MAX);
        backend.held[backend.n_held++] = request;
    } else {
        perform(request);
    }
}

int block_flush_error(const struct block_backend *block)
{
    (void)block;
    return backend.flush_error;
}

void block_set_flush_error(struct block_backend *block, int error)
{
    (void)block;
    backend.flush_error = error;
}

int64_t block_size(struct block_backend *block)
{
    (void)block;
    return backend.size;
}

/* Lets the held request number i end. */
static void release(unsigned i)
{
    struct block_request *r = backend.held[i];

    assert_true(i < backend.n_held);
    memmove(&backend.held[i], &backend.held[i + 1],
            (--backend.n_held - i) * sizeof(backend.held[0]));
    perform(r);
}

/* ---- the machine ---- */

struct test {
    struct machine *m;
    struct device_config config;
    struct driver driver;
    gpa_t header, out, in; /* buffers: 16 bytes (and more), 64 KiB, 64 KiB and one */
};

/* How a test differs from the rest; NULL means: not at all. */
struct set_up {
    const char *presets[8];
    struct block_info info;
    uint64_t without; /* features that the driver does not accept */
    unsigned queues;  /* that the driver uses; 0: 1 */
    unsigned vcpus;
    bool grants;
    bool state;       /* a successor finds it */
};

static const struct block_info default_info = {
    .size = IMAGE_SIZE,
    .logical_block = 512,
    .physical_block = 4096,
    .optimal_io = 65536,
    .discard_granularity = 4096,
    .can_write_zeroes = true,
    .can_secure_erase = true,
};

static void make_config(struct device_config *config, const struct set_up *how)
{
    const char *presets[9] = {"path=/image"};
    char error[CONFIG_ERROR_LEN];
    unsigned n = 1;

    for (const char *const *p = how->presets; *p; p++)
        presets[n++] = *p;
    memset(config, 0, sizeof(*config));
    strcpy(config->name, "xvda");
    config->virtio_id = 2;
    config->base = MACHINE_BASE;
    config->irq = MACHINE_IRQ;
    config->n_vcpus = how->vcpus ? how->vcpus : 1;
    config->block = how->info.size ? how->info : default_info;
    if (device_config_fill(config, device_type_by_id(2), NULL, presets, error, sizeof(error)))
        fail_msg("%s", error);
    config->fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
    config->n_fds = 1;
    assert_true(config->fds[0] >= 0);
}

static const struct set_up as_usual;

static void start(struct test *t, const struct set_up *how)
{
    struct machine_config machine = {.ops = &virtio_blk_ops, .device = &t->config};

    if (!how)
        how = &as_usual;
    machine.grants = how->grants;
    machine.state = how->state;
    memset(&backend, 0, sizeof(backend));
    for (size_t i = 0; i < IMAGE_SIZE; i++)
        backend.image[i] = (uint8_t)(i / 512 * 7 + i);
    backend.size = IMAGE_SIZE;
    memset(t, 0, sizeof(*t));
    make_config(&t->config, how);
    t->m = machine_create(&machine);
    assert_int_equal(t->config.fds[0], -1); /* the device's now */
    driver_start(&t->driver, t->m, driver_offered(t->m) & ~how->without,
                 how->queues ? how->queues : 1, 64);
    t->header = guest_alloc(&t->m->heap[0], 4096, 4096);
    t->out = guest_alloc(&t->m->heap[0], 65536, 4096);
    t->in = guest_alloc(&t->m->heap[0], 65536 + 1, 4096);
}

/* The worker is followed by another one. */
static void succeed(struct test *t)
{
    machine_take_picture(t->m);
    t->config.fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
    t->config.n_fds = 1;
    machine_succeed(t->m, false);
}

static void end(struct test *t)
{
    machine_destroy(t->m);
    driver_end(&t->driver);
    device_config_free(&t->config);
    assert_false(backend.created);
    assert_int_equal(backend.channels, 0);
}

static uint8_t *ram(struct test *t, gpa_t at, size_t len)
{
    return fake_ram(t->m->fake, at.addr, len);
}

static struct segment after(gpa_t base, size_t offset, size_t len)
{
    return (struct segment){{base.addr + offset}, (uint32_t)len};
}

static void write_header(struct test *t, uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr header = {.type = htole32(type), .sector = htole64(sector)};

    memcpy(ram(t, t->header, sizeof(header)), &header, sizeof(header));
}

static void add(struct test *t, unsigned queue, const struct segment *out, unsigned n_out,
                const struct segment *in, unsigned n_in)
{
    bool indirect = n_out + n_in > 8;

    memset(ram(t, t->in, 65536 + 1), UNWRITTEN, 65536 + 1);
    assert_true(ring_add(&t->driver.rings[queue], out, n_out, in, n_in, t, indirect) >= 0);
    driver_kick(&t->driver, (uint16_t)queue);
    machine_settle(t->m);
}

/* The used length of the one request that is back. */
static uint32_t take(struct test *t, unsigned queue)
{
    struct ring_used used;

    assert_true(ring_get(&t->driver.rings[queue], &used));
    return used.len;
}

struct answer {
    uint8_t status;
    uint32_t len;
    const uint8_t *data;
};

/* A request as Linux makes it: header, data, status, each in its place. */
static struct answer request(struct test *t, uint32_t type, uint64_t sector, uint32_t out_len,
                             uint32_t in_len)
{
    struct segment out[2] = {after(t->header, 0, 16), after(t->out, 0, out_len)};
    struct segment in[2] = {after(t->in, 0, in_len), after(t->in, in_len, 1)};
    struct answer a;

    write_header(t, type, sector);
    add(t, 0, out, out_len ? 2 : 1, in_len ? in : in + 1, in_len ? 2 : 1);
    a.len = take(t, 0);
    a.data = ram(t, t->in, 65536 + 1);
    a.status = a.data[in_len];
    return a;
}

#define check(got, want_status, want_len)                                                       \
    do {                                                                                           \
        struct answer a_ = (got);                                                                  \
        assert_int_equal(a_.status, want_status);                                                  \
        assert_int_equal(a_.len, want_len);                                                        \
    } while (0)

static void set_range(struct test *t, unsigned i, uint64_t sector, uint32_t n, uint32_t flags)
{
    struct virtio_blk_discard_write_zeroes range = {
        .sector = htole64(sector), .num_sectors = htole32(n), .flags = htole32(flags)};

    memcpy(ram(t, t->out, 65536) + i * sizeof(range), &range, sizeof(range));
}

static struct answer range_request(struct test *t, uint32_t type, uint64_t sector, uint32_t n,
                                   uint32_t flags)
{
    set_range(t, 0, sector, n, flags);
    return request(t, type, 0, 16, 0);
}

static void check_value(const uint8_t *p, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++)
        assert_int_equal(p[i], value);
}

static uint64_t config_field(struct test *t, size_t offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned done = 0; done < size;) {
        unsigned width = size - done >= 4 ? 4 : size - done;

        value |= machine_read(t->m, VIRTIO_MMIO_CONFIG + (uint32_t)offset + done, width)
                 << (8 * done);
        done += width;
    }
    return value;
}
#define CONFIG(t, field)                                                                           \
    config_field(t, offsetof(struct virtio_blk_config, field),                                     \
                 sizeof(((struct virtio_blk_config *)0)->field))

static void write_wce(struct test *t, uint8_t value)
{
    machine_write(t->m, VIRTIO_MMIO_CONFIG + (uint32_t)offsetof(struct virtio_blk_config, wce), 1,
                  value);
}

/* ---- requests that are right ---- */

static void reads_and_writes(void **state)
{
    static const struct set_up ways[] = {
        {.without = 0},
        {.without = F_INDIRECT | F_EVENT_IDX},
        {.presets = {"packed=yes"}},
        {.presets = {"packed=yes", "in-order=yes"}},
        {.grants = true},
        {.grants = true, .presets = {"grant-copy-max=8192"}},
    };
    static const uint32_t lengths[] = {512, 4096, 65536};

    (void)state;
    for (unsigned w = 0; w < ARRAY_SIZE(ways); w++) {
        uint64_t maps;
        struct test t;

        start(&t, &ways[w]);
        check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
        maps = fake_counts(t.m->fake).grant_maps;
        for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
            uint32_t len = lengths[i];
            struct answer a = request(&t, VIRTIO_BLK_T_IN, 17, 0, len);
            uint8_t *out = ram(&t, t.out, len);

            check(a, VIRTIO_BLK_S_OK, len + 1);
            assert_memory_equal(a.data, backend.image + 17 * 512, len);
            for (uint32_t j = 0; j < len; j++)
                out[j] = (uint8_t)(j * 3 + len);
            check(request(&t, VIRTIO_BLK_T_OUT, 40, len, 0), VIRTIO_BLK_S_OK, 1);
            assert_memory_equal(out, backend.image + 40 * 512, len);
        }
        /* The last sector, and nothing at all. */
        check(request(&t, VIRTIO_BLK_T_IN, SECTORS - 1, 0, 512), VIRTIO_BLK_S_OK, 513);
        check(request(&t, VIRTIO_BLK_T_IN, SECTORS, 0, 0), VIRTIO_BLK_S_OK, 1);
        check(request(&t, VIRTIO_BLK_T_OUT, 0, 0, 0), VIRTIO_BLK_S_OK, 1);
        /* What is longer than can be copied, and nothing else. */
        if (ways[w].grants)
            assert_int_equal(fake_counts(t.m->fake).grant_maps - maps, ways[w].presets[0] ? 2 : 0);
        assert_int_equal(stat_get(&t.m->stats->queues[0].requests), 10);
        assert_int_equal(stat_get(&t.m->stats->queues[0].read_bytes), 512 + 512 + 4096 + 65536 + 512);
        assert_int_equal(stat_get(&t.m->stats->queues[0].write_bytes), 512 + 4096 + 65536);
        assert_int_equal(stat_get(&t.m->stats->queues[0].errors), 0);
        end(&t);
    }
}

static void requests_run_at_the_same_time(void **state)
{
    struct segment out = {0}, in[2];
    struct test t;

    (void)state;
    start(&t, NULL);
    backend.hold = true;
    for (unsigned i = 0; i < 8; i++) {
        struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_IN), .sector = htole64(i)};

        out = after(t.header, i * 16, 16);
        memcpy(ram(&t, out.addr, 16), &header, 16);
        in[0] = after(t.in, i * 1024, 512);
        in[1] = after(t.in, i * 1024 + 512, 1);
        add(&t, 0, &out, 1, in, 2);
    }
    assert_int_equal(backend.n_held, 8);
    for (unsigned i = 8; i-- > 0;) {
        release(i);
        machine_settle(t.m);
        assert_int_equal(take(&t, 0), 513);
        assert_memory_equal(ram(&t, t.in, 65536) + i * 1024, backend.image + i * 512, 512);
    }
    end(&t);
}

static void identity(void **state)
{
    static const struct {
        const char *preset, *id;
    } cases[] = {
        {NULL, "xvda"}, {"serial=disk one", "disk one"}, {"serial=12345678901234567890",
                                                           "12345678901234567890"}};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct set_up how = {.presets = {cases[i].preset}};
        char id[21] = {0};
        struct answer a;
        struct test t;

        start(&t, &how);
        a = request(&t, VIRTIO_BLK_T_GET_ID, 0, 0, 20);
        check(a, VIRTIO_BLK_S_OK, 21);
        memcpy(id, a.data, 20);
        assert_string_equal(id, cases[i].id);
        check_value(a.data + strlen(id), 20 - strlen(id), 0);
        /* Shorter: cut. Longer: the rest is not touched, and not claimed to be written. */
        a = request(&t, VIRTIO_BLK_T_GET_ID, 0, 0, 3);
        check(a, VIRTIO_BLK_S_OK, 4);
        assert_memory_equal(a.data, cases[i].id, 3);
        a = request(&t, VIRTIO_BLK_T_GET_ID, 0, 0, 100);
        check(a, VIRTIO_BLK_S_OK, 20);
        check_value(a.data + 20, 80, UNWRITTEN);
        end(&t);
    }
}

static void unknown_requests(void **state)
{
    static const uint32_t types[] = {2, 3, 5, 6, 7, 9, T_GET_LIFETIME, 12, 15, 16, 18, 24, 26,
                                     0x80000000, 0x80000001, UINT32_MAX};
    struct test t;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        struct answer a = request(&t, types[i], 0, 512, 512);

        check(a, VIRTIO_BLK_S_UNSUPP, 0);
        check_value(a.data, 512, UNWRITTEN);
        check(request(&t, types[i], 0, 512, 0), VIRTIO_BLK_S_UNSUPP, 1);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(backend.ops); i++)
        assert_int_equal(backend.ops[i], 0);
    end(&t);
}

static void ranges(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 8, 8, 0), VIRTIO_BLK_S_OK, 1);
    check_value(backend.image + 8 * 512, 8 * 512, 0);
    check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 32, 3, 0), VIRTIO_BLK_S_OK, 1);
    check_value(backend.image + 32 * 512, 3 * 512, 0);
    assert_int_equal(backend.unmap, 0);
    check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 64, 3, 1), VIRTIO_BLK_S_OK, 1);
    assert_int_equal(backend.unmap, 1);
    check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, SECTORS - 1, 1, 0), VIRTIO_BLK_S_OK, 1);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, SECTORS, 0, 0), VIRTIO_BLK_S_OK, 1);
    /* As many ranges as are allowed, one after the other. */
    backend.hold = true;
    backend.ops[BLOCK_DISCARD] = 0;
    for (unsigned i = 0; i < 8; i++)
        set_range(&t, i, 100 + 10 * i, i + 1, 0);
    write_header(&t, VIRTIO_BLK_T_DISCARD, 0);
    struct segment out[2] = {after(t.header, 0, 16), after(t.out, 0, 8 * 16)};
    struct segment in = after(t.in, 0, 1);
    add(&t, 0, out, 2, &in, 1);
    /* They were copied: what becomes of them now is of no interest. */
    memset(ram(&t, t.out, 128), 0xff, 128);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(backend.n_held, 1);
        assert_int_equal(backend.held[0]->offset, (100 + 10 * i) * 512);
        assert_int_equal(backend.held[0]->len, (i + 1) * 512);
        release(0);
        machine_settle(t.m);
    }
    assert_int_equal(take(&t, 0), 1);
    assert_int_equal(ram(&t, t.in, 1)[0], VIRTIO_BLK_S_OK);
    assert_int_equal(backend.ops[BLOCK_DISCARD], 8);
    /* The first that fails ends the request. */
    backend.hold = false;
    backend.result = -EIO;
    backend.ops[BLOCK_DISCARD] = 0;
    for (unsigned i = 0; i < 8; i++)
        set_range(&t, i, i, 1, 0);
    check(request(&t, VIRTIO_BLK_T_DISCARD, 0, 8 * 16, 0), VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(backend.ops[BLOCK_DISCARD], 1);
    end(&t);
}

static void range_flags(void **state)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
                                     VIRTIO_BLK_T_SECURE_ERASE};
    struct test t;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        for (unsigned bit = 1; bit < 32; bit++)
            check(range_request(&t, types[i], 0, 8, 1u << bit), VIRTIO_BLK_S_UNSUPP, 1);
        check(range_request(&t, types[i], 0, 8, UINT32_MAX), VIRTIO_BLK_S_UNSUPP, 1);
    }
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, 8, 1), VIRTIO_BLK_S_UNSUPP, 1);
    check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 1), VIRTIO_BLK_S_UNSUPP, 1);
    /* In the last of several ranges, too, and before the first was touched. */
    for (unsigned i = 0; i < 8; i++)
        set_range(&t, i, i, 1, i == 7 ? 2 : 0);
    check(request(&t, VIRTIO_BLK_T_DISCARD, 0, 8 * 16, 0), VIRTIO_BLK_S_UNSUPP, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(backend.ops); i++)
        assert_int_equal(backend.ops[i], 0);
    end(&t);
}

/* ---- features and configuration ---- */

static void what_is_offered(void **state)
{
    const uint64_t always = BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) |
                            BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
                            BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE);
    const uint64_t device_bits = 0xffffff;
    struct set_up how = {.vcpus = 1};
    struct test t;

    (void)state;
    start(&t, &how);
    assert_int_equal(driver_offered(t.m) & device_bits,
                     always | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                         BIT(VIRTIO_BLK_F_SECURE_ERASE));
    assert_int_equal(CONFIG(&t, capacity), SECTORS);
    assert_int_equal(CONFIG(&t, seg_max), 254);
    assert_int_equal(CONFIG(&t, size_max), 1 << 20);
    assert_int_equal(CONFIG(&t, blk_size), 512);
    assert_int_equal(CONFIG(&t, physical_block_exp), 3);
    assert_int_equal(CONFIG(&t, alignment_offset), 0);
    assert_int_equal(CONFIG(&t, min_io_size), 8);
    assert_int_equal(CONFIG(&t, opt_io_size), 128);
    assert_int_equal(CONFIG(&t, wce), 1);
    assert_int_equal(CONFIG(&t, num_queues), 1);
    assert_int_equal(CONFIG(&t, max_discard_seg), 8);
    assert_int_equal(CONFIG(&t, discard_sector_alignment), 8);
    assert_int_equal(CONFIG(&t, max_write_zeroes_seg), 1);
    assert_int_equal(CONFIG(&t, write_zeroes_may_unmap), 1);
    assert_int_equal(CONFIG(&t, max_secure_erase_seg), 8);
    assert_true(CONFIG(&t, max_discard_sectors) && CONFIG(&t, max_write_zeroes_sectors) &&
                CONFIG(&t, max_secure_erase_sectors));
    end(&t);

    how = (struct set_up){.presets = {"queues=4", "queue-size=64", "logical-block-size=4096"},
                          .info = default_info};
    how.info.discard_granularity = 0;
    how.info.can_secure_erase = false;
    how.info.size = IMAGE_SIZE - 512;
    start(&t, &how);
    assert_int_equal(driver_offered(t.m) & device_bits,
                     always | BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_BLK_F_WRITE_ZEROES));
    assert_int_equal(CONFIG(&t, capacity), SECTORS - 8); /* whole blocks */
    assert_int_equal(CONFIG(&t, seg_max), 62);
    assert_int_equal(CONFIG(&t, blk_size), 4096);
    assert_int_equal(CONFIG(&t, physical_block_exp), 0);
    assert_int_equal(CONFIG(&t, min_io_size), 1);
    assert_int_equal(CONFIG(&t, num_queues), 4);
    assert_int_equal(CONFIG(&t, max_discard_sectors), 0);
    assert_int_equal(CONFIG(&t, write_zeroes_may_unmap), 0);
    /* What is not offered is not supported, and nothing is deallocated behind the back. */
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP, 1);
    check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), VIRTIO_BLK_S_UNSUPP, 1);
    check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 1), VIRTIO_BLK_S_OK, 1);
    assert_int_equal(backend.unmap, 0);
    end(&t);

    how = (struct set_up){.info = default_info};
    how.info.read_only = true;
    start(&t, &how);
    assert_int_equal(driver_offered(t.m) & device_bits, always | BIT(VIRTIO_BLK_F_RO));
    end(&t);
    assert_ptr_equal(virtio_device_ops_by_id(2), &virtio_blk_ops);
    assert_null(virtio_device_ops_by_id(0));
}

static void what_cannot_be(void **state)
{
    static const struct {
        const char *preset;
        uint32_t logical_block;
        bool no_image;
        const char *message;
    } cases[] = {
        {"logical-block-size=512", 4096, false, "cache = writeback"},
        {NULL, 512, true, "no image"},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct set_up how = {.presets = {cases[i].preset}, .info = default_info};
        struct device_config config;
        struct machine_config machine = {.ops = &virtio_blk_ops, .device = &config};
        struct machine *m;
        char error[256] = "";
        int fd;

        memset(&backend, 0, sizeof(backend));
        how.info.logical_block = cases[i].logical_block;
        make_config(&config, &how);
        fd = config.fds[0];
        if (cases[i].no_image)
            config.n_fds = 0;
        assert_true(machine_try_create(&machine, &m, error, sizeof(error)) < 0);
        if (!strstr(error, cases[i].message))
            fail_msg("%s", error);
        /* The image is still the caller's. */
        assert_int_equal(config.fds[0], fd);
        config.n_fds = 1;
        device_config_free(&config);
        assert_int_equal(fcntl(fd, F_GETFD), -1);
    }
}

static void queues(void **state)
{
    const struct set_up how = {.queues = 4, .vcpus = 4};
    struct test t;

    (void)state;
    start(&t, &how);
    assert_int_equal(CONFIG(&t, num_queues), 4);
    assert_int_equal(backend.channels, 1); /* one loop, one channel */
    for (unsigned q = 0; q < 4; q++) {
        struct segment out = after(t.header, 0, 16);
        struct segment in = after(t.in, 0, 513);

        write_header(&t, VIRTIO_BLK_T_IN, q);
        add(&t, q, &out, 1, &in, 1);
        assert_int_equal(take(&t, q), 513);
        assert_memory_equal(ram(&t, t.in, 512), backend.image + q * 512, 512);
        assert_int_equal(stat_get(&t.m->stats->queues[q].requests), 1);
    }
    driver_reset_queue(t.m, 2);
    assert_int_equal(backend.channels, 1);
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(backend.channels, 0);
    driver_restart(&t.driver);
    assert_int_equal(backend.channels, 1);
    check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
    end(&t);
}

static void many_vcpus(void **state)
{
    const struct set_up how = {.vcpus = 100};
    struct test t;

    (void)state;
    start(&t, &how);
    assert_int_equal(CONFIG(&t, num_queues), 16);
    end(&t);
}

/* ---- the write cache ---- */

static unsigned durable_writes(struct test *t)
{
    backend.fua = 0;
    check(request(t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_OK, 1);
    check(range_request(t, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_OK, 1);
    check(request(t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
    return backend.fua;
}

/* Where nothing is volatile, there is nothing to flush or to make durable. */
static void no_write_cache(void **state)
{
    struct set_up how = {.info = default_info};
    struct test t;

    (void)state;
    how.info.write_through = true;
    start(&t, &how);
    assert_int_equal(driver_offered(t.m) &
                         (BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE)), 0);
    assert_int_equal(durable_writes(&t), 0);
    end(&t);
}

static void write_cache(void **state)
{
    struct test t;

    (void)state;
    /* Both negotiated: write-back until the driver says otherwise. */
    start(&t, NULL);
    assert_int_equal(CONFIG(&t, wce), 1);
    assert_int_equal(durable_writes(&t), 0);
    check(request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK, 1);
    assert_int_equal(backend.ops[BLOCK_FLUSH], 1);
    write_wce(&t, 0);
    assert_int_equal(CONFIG(&t, wce), 0);
    assert_int_equal(durable_writes(&t), 2);
    write_wce(&t, 7);
    assert_int_equal(CONFIG(&t, wce), 0);
    write_wce(&t, 1);
    assert_int_equal(CONFIG(&t, wce), 1);
    assert_int_equal(durable_writes(&t), 0);
    /* A reset forgets. */
    write_wce(&t, 0);
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    driver_restart(&t.driver);
    assert_int_equal(CONFIG(&t, wce), 1);
    assert_int_equal(durable_writes(&t), 0);
    end(&t);

    /* No FLUSH: the driver cannot ask for durability, so it gets it always (5.2.5.2, 5.2.6.2). */
    const struct set_up no_flush = {.without = BIT(VIRTIO_BLK_F_FLUSH)};
    start(&t, &no_flush);
    assert_int_equal(CONFIG(&t, wce), 0);
    assert_int_equal(durable_writes(&t), 2);
    write_wce(&t, 1);
    assert_int_equal(CONFIG(&t, wce), 0);
    assert_int_equal(durable_writes(&t), 2);
    end(&t);

    const struct set_up neither = {.without =
                                       BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE)};
    start(&t, &neither);
    assert_int_equal(durable_writes(&t), 2);
    end(&t);

    /* No CONFIG_WCE: read-only configuration. */
    const struct set_up no_wce = {.without = BIT(VIRTIO_BLK_F_CONFIG_WCE)};
    start(&t, &no_wce);
    assert_int_equal(durable_writes(&t), 0);
    write_wce(&t, 0);
    assert_int_equal(CONFIG(&t, wce), 1);
    assert_int_equal(durable_writes(&t), 0);
    end(&t);
}

/* ---- errors of the host ---- */

/* That it said what it cannot write back is known to its successor, whose kernel says it no more. */
static void a_failed_flush_outlives_the_worker(void **state)
{
    const struct set_up how = {.state = true};
    struct test t;

    (void)state;
    start(&t, &how);
    backend.result = -ENOSPC;
    check(request(&t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_IOERR, 1); /* for another reason */
    succeed(&t);
    assert_int_equal(backend.flush_error, 0);
    backend.flush_error = backend.result = -EIO;
    check(request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR, 1);
    for (unsigned i = 0; i < 2; i++) {
        backend.flush_error = 0;
        succeed(&t);
        assert_int_equal(backend.flush_error, -EIO);
        /* Nor does a reset bring back what is lost, also if there is no driver when the next one comes. */
        machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
        backend.flush_error = 0;
        succeed(&t);
        assert_int_equal(backend.flush_error, -EIO);
        driver_restart(&t.driver);
    }
    backend.result = 0;
    check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
    assert_int_equal(t.m->stats->needs_reset, 0);
    end(&t);
}

static void host_errors(void **state)
{
    static const uint32_t ranges_of[] = {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
                                         VIRTIO_BLK_T_SECURE_ERASE};
    struct test t;

    (void)state;
    start(&t, NULL);
    backend.result = -ENOSPC;
    check(request(&t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(ranges_of); i++)
        check(range_request(&t, ranges_of[i], 0, 8, 0), VIRTIO_BLK_S_IOERR, 1);
    backend.result = -EOPNOTSUPP;
    for (unsigned i = 0; i < ARRAY_SIZE(ranges_of); i++)
        check(range_request(&t, ranges_of[i], 0, 8, 0), VIRTIO_BLK_S_UNSUPP, 1);
    check(request(&t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(stat_get(&t.m->stats->queues[0].errors), 9);
    assert_int_equal(stat_get(&t.m->stats->queues[0].write_bytes), 0);
    backend.result = 0;
    check(request(&t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_OK, 1);
    end(&t);
}

static void no_memory_for_a_channel(void **state)
{
    struct test t;

    (void)state;
    start(&t, NULL);
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    backend.channel_error = -ENOMEM;
    driver_restart(&t.driver);
    check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_IOERR, 0);
    check(request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR, 1);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_GET_ID, 0, 0, 20), VIRTIO_BLK_S_OK, 21);
    /* The next driver may have more luck. */
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    backend.channel_error = 0;
    driver_restart(&t.driver);
    check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
    end(&t);
}

/* ---- resize ---- */

static int control(struct test *t, const char *what, char *reply, size_t len)
{
    int ret = t->m->dev->ops->control(t->m->dev, what, reply, len);

    machine_settle(t->m);
    return ret;
}

static void resize(void **state)
{
    uint32_t generation;
    char reply[256];
    struct set_up how = {.info = default_info};
    struct test t;

    (void)state;
    how.info.size = IMAGE_SIZE / 2;
    start(&t, &how);
    driver_take_isr(t.m);
    fake_take_irqs(t.m->fake, MACHINE_IRQ);
    assert_int_equal(CONFIG(&t, capacity), SECTORS / 2);
    check(request(&t, VIRTIO_BLK_T_IN, SECTORS / 2, 0, 512), VIRTIO_BLK_S_IOERR, 0);
    driver_take_isr(t.m);
    fake_take_irqs(t.m->fake, MACHINE_IRQ);

    /* Grown. */
    generation = machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION);
    backend.size = IMAGE_SIZE;
    assert_int_equal(control(&t, "resize", reply, sizeof(reply)), 0);
    assert_non_null(strstr(reply, "4194304"));
    assert_int_equal(CONFIG(&t, capacity), SECTORS);
    assert_int_not_equal(machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 1);
    assert_int_equal(driver_take_isr(t.m), CONFIG_INTERRUPT);
    check(request(&t, VIRTIO_BLK_T_IN, SECTORS / 2, 0, 512), VIRTIO_BLK_S_OK, 513);
    driver_take_isr(t.m);
    fake_take_irqs(t.m->fake, MACHINE_IRQ);

    /* The same: no interrupt. */
    generation = machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION);
    assert_int_equal(control(&t, "resize", reply, sizeof(reply)), 0);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_int_equal(fake_take_irqs(t.m->fake, MACHINE_IRQ), 0);

    /* Shrunk, and odd. */
    backend.size = 10 * 512 + 100;
    assert_int_equal(control(&t, "resize", reply, sizeof(reply)), 0);
    assert_int_equal(CONFIG(&t, capacity), 10);
    assert_int_equal(driver_take_isr(t.m), CONFIG_INTERRUPT);
    check(request(&t, VIRTIO_BLK_T_IN, 9, 0, 512), VIRTIO_BLK_S_OK, 513);
    check(request(&t, VIRTIO_BLK_T_IN, 9, 0, 1024), VIRTIO_BLK_S_IOERR, 0);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 8, 8, 0), VIRTIO_BLK_S_IOERR, 1);
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    driver_restart(&t.driver);
    assert_int_equal(CONFIG(&t, capacity), 10);

    /* It cannot be found out; and what is no request. */
    backend.size = -EIO;
    assert_int_equal(control(&t, "resize", reply, sizeof(reply)), -EIO);
    assert_int_equal(CONFIG(&t, capacity), 10);
    assert_int_equal(control(&t, "explode", reply, sizeof(reply)), -EINVAL);
    assert_non_null(strstr(reply, "resize"));
    end(&t);
}

/* ---- the hostile driver; row numbers of the catalogue ---- */

/* Zero-length, overlapping and misordered descriptors. */
static void row_08_odd_descriptors(void **state)
{
    struct segment out[3], in[4];
    struct test t;
    uint8_t *p;

    (void)state;
    start(&t, NULL);
    write_header(&t, VIRTIO_BLK_T_IN, 5);
    out[0] = after(t.header, 0, 0);
    out[1] = after(t.header, 0, 16);
    out[2] = after(t.header, 0, 0);
    in[0] = after(t.in, 0, 0);
    in[1] = after(t.in, 0, 512);
    in[2] = after(t.in, 512, 1);
    in[3] = after(t.in, 0, 0);
    add(&t, 0, out, 3, in, 4);
    assert_int_equal(take(&t, 0), 513);
    assert_memory_equal(ram(&t, t.in, 512), backend.image + 5 * 512, 512);
    assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_OK);

    /* The status lies within the data: it is written last. */
    in[0] = after(t.in, 0, 512);
    in[1] = after(t.in, 100, 1);
    backend.image[5 * 512 + 100] = 0x77;
    add(&t, 0, &out[1], 1, in, 2);
    assert_int_equal(take(&t, 0), 513);
    p = ram(&t, t.in, 512);
    assert_int_equal(p[100], VIRTIO_BLK_S_OK);
    assert_memory_equal(p, backend.image + 5 * 512, 100);
    assert_memory_equal(p + 101, backend.image + 5 * 512 + 101, 411);

    /* The data lies over the header, and the status too. */
    in[0] = after(t.header, 0, 512);
    in[1] = after(t.header, 3, 1);
    add(&t, 0, &out[1], 1, in, 2);
    assert_int_equal(take(&t, 0), 513);
    assert_int_equal(ram(&t, t.header, 16)[3], VIRTIO_BLK_S_OK);

    /* Everything is empty: no status byte, nothing done. */
    out[0] = after(t.header, 0, 0);
    in[0] = after(t.in, 0, 0);
    backend.ops[BLOCK_READ] = 0;
    add(&t, 0, out, 1, in, 1);
    assert_int_equal(take(&t, 0), 0);
    assert_int_equal(backend.ops[BLOCK_READ], 0);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    end(&t);
}

/* n bytes at `base` in `pieces` descriptors of one byte, and a last one with the rest. */
static unsigned split(struct segment *to, gpa_t base, uint32_t n, uint32_t pieces)
{
    unsigned count = 0;

    while (count < pieces && count < n) {
        to[count] = after(base, count, 1);
        count++;
    }
    if (count < n) {
        to[count] = after(base, count, n - count);
        count++;
    }
    return count;
}

static void row_09_split_header(void **state)
{
    struct segment out[80], in[80];
    struct test t;
    unsigned n;

    (void)state;
    start(&t, NULL);
    /* A read: the header in two pieces at each point, and in single bytes from each point on. */
    for (uint32_t at = 0; at <= 16; at++) {
        write_header(&t, VIRTIO_BLK_T_IN, at);
        out[0] = after(t.header, 0, at);
        out[1] = after(t.header, at, 16 - at);
        in[0] = after(t.in, 0, 513);
        add(&t, 0, out, 2, in, 1);
        assert_int_equal(take(&t, 0), 513);
        assert_memory_equal(ram(&t, t.in, 512), backend.image + at * 512, 512);
        assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_OK);

        n = split(out, t.header, 16, at);
        add(&t, 0, out, n, in, 1);
        assert_int_equal(take(&t, 0), 513);
        assert_memory_equal(ram(&t, t.in, 512), backend.image + at * 512, 512);
        /* The data in pieces, the status in one of them or in its own. */
        for (unsigned own = 0; own < 2; own++) {
            unsigned n_in = split(in, t.in, 512 + !own, at * 3);

            if (own)
                in[n_in++] = after(t.in, 512, 1);
            add(&t, 0, out, n, in, n_in);
            assert_int_equal(take(&t, 0), 513);
            assert_memory_equal(ram(&t, t.in, 512), backend.image + at * 512, 512);
            assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_OK);
        }
    }
    /* A write: header and data in one descriptor, and split in all places around the border. */
    for (uint32_t at = 0; at < 40; at++) {
        uint8_t *p = ram(&t, t.header, 16 + 1024);

        for (unsigned i = 0; i < 1024; i++)
            p[16 + i] = (uint8_t)(i + at);
        write_header(&t, VIRTIO_BLK_T_OUT, 3);
        n = split(out, t.header, 16 + 1024, at);
        in[0] = after(t.in, 0, 1);
        add(&t, 0, out, n, in, 1);
        assert_int_equal(take(&t, 0), 1);
        assert_int_equal(ram(&t, t.in, 1)[0], VIRTIO_BLK_S_OK);
        assert_memory_equal(backend.image + 3 * 512, p + 16, 1024);
    }
    /* Ranges in single bytes. */
    for (uint32_t at = 0; at <= 48; at++) {
        write_header(&t, VIRTIO_BLK_T_DISCARD, 0);
        set_range(&t, 0, 20, 1, 0);
        set_range(&t, 1, 30, 2, 0);
        memcpy(ram(&t, t.header, 48) + 16, ram(&t, t.out, 32), 32);
        memset(backend.image, 0xff, IMAGE_SIZE);
        n = split(out, t.header, 48, at);
        in[0] = after(t.in, 0, 1);
        add(&t, 0, out, n, in, 1);
        assert_int_equal(take(&t, 0), 1);
        assert_int_equal(ram(&t, t.in, 1)[0], VIRTIO_BLK_S_OK);
        check_value(backend.image + 20 * 512, 512, 0);
        check_value(backend.image + 21 * 512, 9 * 512, 0xff);
        check_value(backend.image + 30 * 512, 1024, 0);
    }
    end(&t);
}

static void row_09_header_too_short(void **state)
{
    struct segment out, in;
    struct test t;

    (void)state;
    start(&t, NULL);
    write_header(&t, VIRTIO_BLK_T_FLUSH, 0);
    for (uint32_t len = 0; len < 16; len++) {
        out = after(t.header, 0, len);
        in = after(t.in, 0, 1);
        add(&t, 0, &out, 1, &in, 1);
        assert_int_equal(take(&t, 0), 1);
        assert_int_equal(ram(&t, t.in, 1)[0], VIRTIO_BLK_S_IOERR);
        in = after(t.in, 0, 513);
        add(&t, 0, &out, 1, &in, 1);
        assert_int_equal(take(&t, 0), 0);
        assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_IOERR);
        check_value(ram(&t, t.in, 512), 512, UNWRITTEN);
    }
    /* No room for the status. */
    out = after(t.header, 0, 16);
    add(&t, 0, &out, 1, NULL, 0);
    assert_int_equal(take(&t, 0), 0);
    /* No header, only a status. */
    in = after(t.in, 0, 1);
    add(&t, 0, NULL, 0, &in, 1);
    assert_int_equal(take(&t, 0), 1);
    assert_int_equal(ram(&t, t.in, 1)[0], VIRTIO_BLK_S_IOERR);
    assert_int_equal(backend.ops[BLOCK_FLUSH], 0);
    end(&t);
}

/* Buffers where there is no RAM: the request fails, whole. */
static void row_12_buffers_in_a_hole(void **state)
{
    const uint64_t hole = 0x10000000;
    struct segment out[2], in[3];
    struct test t;

    (void)state;
    start(&t, NULL);
    write_header(&t, VIRTIO_BLK_T_IN, 0);
    out[0] = after(t.header, 0, 16);
    in[0] = after(t.in, 0, 512);
    in[1] = (struct segment){{hole}, 512};
    in[2] = after(t.in, 512, 1);
    add(&t, 0, out, 1, in, 3);
    assert_int_equal(take(&t, 0), 0);
    assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_IOERR);
    check_value(ram(&t, t.in, 512), 512, UNWRITTEN);
    add(&t, 0, out, 1, in + 1, 2);
    assert_int_equal(take(&t, 0), 0);
    assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_IOERR);

    write_header(&t, VIRTIO_BLK_T_OUT, 0);
    out[1] = (struct segment){{MACHINE_BASE}, 512};
    add(&t, 0, out, 2, in + 2, 1);
    assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_IOERR);
    take(&t, 0);
    out[1] = out[0];
    out[0] = (struct segment){{hole}, 16};
    add(&t, 0, out, 2, in + 2, 1);
    assert_int_equal(ram(&t, t.in, 513)[512], VIRTIO_BLK_S_IOERR);
    take(&t, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(backend.ops); i++)
        assert_int_equal(backend.ops[i], 0);
    check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
    end(&t);
}

static void row_14_reset_with_requests_in_flight(void **state)
{
    (void)state;
    for (unsigned done_before = 0; done_before <= 3; done_before++) {
        struct segment out[2], in;
        struct test t;

        start(&t, NULL);
        backend.hold = true;
        write_header(&t, VIRTIO_BLK_T_OUT, 0);
        out[0] = after(t.header, 0, 16);
        out[1] = after(t.out, 0, 512);
        in = after(t.in, 0, 1);
        add(&t, 0, out, 2, &in, 1);
        add(&t, 0, out, 2, &in, 1);
        /* A discard of two ranges: it goes on after the reset began. */
        set_range(&t, 0, 0, 1, 0);
        set_range(&t, 1, 2, 1, 0);
        struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_DISCARD)};
        memcpy(ram(&t, t.header, 32) + 16, &header, 16);
        out[0] = after(t.header, 16, 16);
        out[1] = after(t.out, 0, 32);
        add(&t, 0, out, 2, &in, 1);
        assert_int_equal(backend.n_held, 3);
        for (unsigned i = 0; i < done_before; i++)
            release(0);
        machine_write_start(t.m, 0, VIRTIO_MMIO_STATUS, 0);
        while (backend.n_held > 0) {
            machine_settle(t.m);
            assert_false(fake_answered(t.m->fake, 0, NULL));
            assert_int_equal(backend.channels, 1);
            release(backend.n_held - 1);
        }
        machine_settle(t.m);
        assert_true(fake_answered(t.m->fake, 0, NULL));
        assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS), 0);
        assert_int_equal(backend.channels, 0);
        backend.hold = false;
        driver_restart(&t.driver);
        check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
        end(&t);
    }
}

static void row_17_configuration_space(void **state)
{
    const size_t wce = offsetof(struct virtio_blk_config, wce);
    uint8_t before[256];
    struct test t;

    (void)state;
    start(&t, NULL);
    for (uint32_t i = 0; i < sizeof(before); i++)
        before[i] = (uint8_t)machine_read(t.m, VIRTIO_MMIO_CONFIG + i % 256, 1);
    for (uint32_t at = 0; at < 256; at++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            if (at + size > 256)
                continue;
            machine_write(t.m, VIRTIO_MMIO_CONFIG + at, size, UINT64_C(0x0101010101010101) * 3);
            machine_write(t.m, VIRTIO_MMIO_CONFIG + at, size, 0);
            for (uint32_t i = 0; i < 72; i++)
                if (i != wce)
                    assert_int_equal(t.m->dev->config[i], before[i]);
            machine_read(t.m, VIRTIO_MMIO_CONFIG + at, size);
        }
    }
    /* Beyond the device's fields, and padding. */
    for (uint32_t at = 72; at < 256; at++)
        assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + at, 1), 0);
    assert_int_equal(CONFIG(&t, unused), 0);
    assert_int_equal(before[57] | before[58] | before[59], 0);
    /* A wider write that covers the byte sets it. */
    machine_write(t.m, VIRTIO_MMIO_CONFIG + (uint32_t)wce, 4, 0x00010001);
    assert_int_equal(CONFIG(&t, wce), 1);
    machine_write(t.m, VIRTIO_MMIO_CONFIG + (uint32_t)wce - 1, 2, 0);
    assert_int_equal(CONFIG(&t, wce), 0);
    end(&t);
}

/* Read-only holds, whatever was negotiated. */
static void row_18_read_only(void **state)
{
    (void)state;
    for (unsigned accepted = 0; accepted < 2; accepted++) {
        struct set_up how = {.info = default_info,
                             .without = accepted ? 0 : BIT(VIRTIO_BLK_F_RO)};
        struct test t;

        how.info.read_only = true;
        start(&t, &how);
        assert_true(backend.info.read_only);
        check(request(&t, VIRTIO_BLK_T_OUT, 0, 512, 0), VIRTIO_BLK_S_IOERR, 1);
        check(request(&t, VIRTIO_BLK_T_OUT, 0, 0, 0), VIRTIO_BLK_S_IOERR, 1);
        check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_IOERR, 1);
        check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_IOERR, 1);
        check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), VIRTIO_BLK_S_IOERR, 1);
        assert_int_equal(backend.ops[BLOCK_WRITE] + backend.ops[BLOCK_DISCARD] +
                             backend.ops[BLOCK_WRITE_ZEROES] + backend.ops[BLOCK_SECURE_ERASE],
                         0);
        check(request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK, 1);
        check(request(&t, VIRTIO_BLK_T_IN, 0, 0, 512), VIRTIO_BLK_S_OK, 513);
        check(request(&t, VIRTIO_BLK_T_GET_ID, 0, 0, 20), VIRTIO_BLK_S_OK, 21);
        end(&t);
    }
}

static void row_21_sector_arithmetic(void **state)
{
    static const uint64_t sectors[] = {
        SECTORS,
        SECTORS + 1,
        UINT64_MAX / 512 - 1,
        UINT64_MAX / 512,
        UINT64_MAX / 512 + 1,
        UINT64_C(1) << 55,
        (UINT64_C(1) << 55) + 1,
        INT64_MAX / 512,
        INT64_MAX,
        UINT64_MAX - 1,
        UINT64_MAX,
        UINT64_C(0x0080000000000000),
    };
    struct test t;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(sectors); i++) {
        struct answer a = request(&t, VIRTIO_BLK_T_IN, sectors[i], 0, 512);

        check(a, VIRTIO_BLK_S_IOERR, 0);
        check_value(a.data, 512, UNWRITTEN);
        check(request(&t, VIRTIO_BLK_T_IN, sectors[i], 0, 65536), VIRTIO_BLK_S_IOERR, 0);
        check(request(&t, VIRTIO_BLK_T_OUT, sectors[i], 512, 0), VIRTIO_BLK_S_IOERR, 1);
        if (sectors[i] != SECTORS)
            check(request(&t, VIRTIO_BLK_T_IN, sectors[i], 0, 0), VIRTIO_BLK_S_IOERR, 1);
        for (uint32_t n = 1; n; n <<= 1) {
            check(range_request(&t, VIRTIO_BLK_T_DISCARD, sectors[i], n, 0), VIRTIO_BLK_S_IOERR, 1);
            check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, sectors[i], n, 0),
                  VIRTIO_BLK_S_IOERR, 1);
        }
        check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, sectors[i], UINT32_MAX, 0),
              VIRTIO_BLK_S_IOERR, 1);
    }
    check(request(&t, VIRTIO_BLK_T_IN, SECTORS - 1, 0, 1024), VIRTIO_BLK_S_IOERR, 0);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, SECTORS - 1, 2, 0), VIRTIO_BLK_S_IOERR, 1);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, UINT32_MAX, 0), VIRTIO_BLK_S_IOERR, 1);
    /* A flush and an identity do not look at it. */
    check(request(&t, VIRTIO_BLK_T_FLUSH, UINT64_MAX, 0, 0), VIRTIO_BLK_S_OK, 1);
    check(request(&t, VIRTIO_BLK_T_GET_ID, UINT64_MAX, 0, 20), VIRTIO_BLK_S_OK, 21);
    assert_int_equal(backend.ops[BLOCK_READ] + backend.ops[BLOCK_WRITE] +
                         backend.ops[BLOCK_DISCARD] + backend.ops[BLOCK_WRITE_ZEROES] +
                         backend.ops[BLOCK_SECURE_ERASE],
                     0);
    end(&t);
}

static void row_22_sizes(void **state)
{
    static const uint32_t lengths[] = {1, 15, 17, 100, 511, 513, 1023, 4095};
    struct test t;

    (void)state;
    start(&t, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        struct answer a = request(&t, VIRTIO_BLK_T_IN, 0, 0, lengths[i]);

        check(a, VIRTIO_BLK_S_IOERR, 0);
        check_value(a.data, lengths[i], UNWRITTEN);
        check(request(&t, VIRTIO_BLK_T_OUT, 0, lengths[i], 0), VIRTIO_BLK_S_IOERR, 1);
        check(request(&t, VIRTIO_BLK_T_DISCARD, 0, lengths[i], 0), VIRTIO_BLK_S_IOERR, 1);
        check(request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 0, lengths[i], 0), VIRTIO_BLK_S_IOERR, 1);
    }
    /* No range, and more ranges than the configuration says. */
    memset(ram(&t, t.out, 65536), 0, 65536);
    check(request(&t, VIRTIO_BLK_T_DISCARD, 0, 0, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_DISCARD, 0, 9 * 16, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_DISCARD, 0, 65536, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, 9 * 16, 0), VIRTIO_BLK_S_IOERR, 1);
    check(request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 0, 2 * 16, 0), VIRTIO_BLK_S_IOERR, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(backend.ops); i++)
        assert_int_equal(backend.ops[i], 0);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    end(&t);
}

/* Longer ranges than the configuration says, on a disk that is large enough. */
static void row_22_long_ranges(void **state)
{
    struct set_up how = {.info = default_info};
    struct test t;

    (void)state;
    how.info.size = UINT64_C(1) << 42;
    start(&t, &how);
    backend.hold = true;
    uint32_t discard = (uint32_t)CONFIG(&t, max_discard_sectors);
    uint32_t zeroes = (uint32_t)CONFIG(&t, max_write_zeroes_sectors);
    uint32_t erase = (uint32_t)CONFIG(&t, max_secure_erase_sectors);
    check(range_request(&t, VIRTIO_BLK_T_DISCARD, 0, discard + 1, 0), VIRTIO_BLK_S_IOERR, 1);
    check(range_request(&t, VIRTIO_BLK_T_WRITE_ZEROES, 0, zeroes + 1, 0), VIRTIO_BLK_S_IOERR, 1);
    check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, erase + 1, 0), VIRTIO_BLK_S_IOERR, 1);
    check(range_request(&t, VIRTIO_BLK_T_SECURE_ERASE, 0, UINT32_MAX, 0), VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(backend.n_held, 0);
    backend.result = -EIO; /* the array is not that large */
    set_range(&t, 0, (UINT64_C(1) << 33) - discard, discard, 0);
    write_header(&t, VIRTIO_BLK_T_DISCARD, 0);
    struct segment out[2] = {after(t.header, 0, 16), after(t.out, 0, 16)};
    struct segment in = after(t.in, 0, 1);
    add(&t, 0, out, 2, &in, 1);
    assert_int_equal(backend.n_held, 1);
    assert_int_equal(backend.held[0]->offset, (UINT64_C(1) << 42) - (uint64_t)discard * 512);
    release(0);
    machine_settle(t.m);
    take(&t, 0);
    end(&t);
}

/* What the host did not read is not there, and not claimed to be. */
static void row_23_failed_read(void **state)
{
    struct test t;
    struct answer a;

    (void)state;
    start(&t, NULL);
    backend.result = -EIO;
    a = request(&t, VIRTIO_BLK_T_IN, 0, 0, 65536);
    check(a, VIRTIO_BLK_S_IOERR, 0);
    check_value(a.data, 65536, UNWRITTEN);
    /* A write with room in front of its status: that room is not written. */
    backend.result = 0;
    a = request(&t, VIRTIO_BLK_T_OUT, 0, 512, 100);
    check(a, VIRTIO_BLK_S_OK, 0);
    check_value(a.data, 100, UNWRITTEN);
    a = request(&t, VIRTIO_BLK_T_FLUSH, 0, 0, 100);
    check(a, VIRTIO_BLK_S_OK, 0);
    check_value(a.data, 100, UNWRITTEN);
    end(&t);
}

static int quiet(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    return 0;
}

/* What was read cannot reach the guest: IOERR, in the status that still can. */
static void test_row_20_grant_ends_during_a_read(void **state)
{
    static const struct set_up how = {.grants = true, .without = F_INDIRECT};
    struct ring *ring;
    struct test t;

    (void)state;
    start(&t, &how);
    ring = &t.driver.rings[0];
    for (unsigned revoke = 0; revoke < 2; revoke++) {
        struct segment out = after(t.header, 0, 16);
        struct segment in[2] = {after(t.in, 0, 4096), after(t.in, 8192, 1)};
        int id;

        backend.hold = true;
        write_header(&t, VIRTIO_BLK_T_IN, 3);
        memset(ram(&t, t.in, 8193), UNWRITTEN, 8193);
        id = ring_add(ring, &out, 1, in, 2, &t, false);
        assert_true(id >= 0);
        driver_kick(&t.driver, 0);
        machine_settle(t.m);
        assert_int_equal(ring->buffers[id].n_grants, 3);
        if (revoke)
            fake_grant_revoke(t.m->fake, ring->buffers[id].grants[1].ref);
        release(0);
        machine_settle(t.m);
        assert_int_equal(take(&t, 0), revoke ? 0 : 4097);
        assert_int_equal(*ram(&t, (gpa_t){t.in.addr + 8192}, 1),
                         revoke ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
        if (revoke)
            check_value(ram(&t, t.in, 4096), 4096, UNWRITTEN);
    }
    backend.hold = false;
    check(request(&t, VIRTIO_BLK_T_IN, 3, 0, 4096), VIRTIO_BLK_S_OK, 4097);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_20_grant_ends_during_a_read),
        cmocka_unit_test(reads_and_writes),
        cmocka_unit_test(requests_run_at_the_same_time),
        cmocka_unit_test(identity),
        cmocka_unit_test(unknown_requests),
        cmocka_unit_test(ranges),
        cmocka_unit_test(range_flags),
        cmocka_unit_test(what_is_offered),
        cmocka_unit_test(what_cannot_be),
        cmocka_unit_test(queues),
        cmocka_unit_test(many_vcpus),
        cmocka_unit_test(write_cache),
        cmocka_unit_test(no_write_cache),
        cmocka_unit_test(a_failed_flush_outlives_the_worker),
        cmocka_unit_test(host_errors),
        cmocka_unit_test(no_memory_for_a_channel),
        cmocka_unit_test(resize),
        cmocka_unit_test(row_08_odd_descriptors),
        cmocka_unit_test(row_09_split_header),
        cmocka_unit_test(row_09_header_too_short),
        cmocka_unit_test(row_12_buffers_in_a_hole),
        cmocka_unit_test(row_14_reset_with_requests_in_flight),
        cmocka_unit_test(row_17_configuration_space),
        cmocka_unit_test(row_18_read_only),
        cmocka_unit_test(row_21_sector_arithmetic),
        cmocka_unit_test(row_22_sizes),
        cmocka_unit_test(row_22_long_ranges),
        cmocka_unit_test(row_23_failed_read),
    };

    return cmocka_run_group_tests_name("blk", tests, quiet, NULL);
}
