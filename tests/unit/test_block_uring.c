/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block backend on real files: both ways to the host's disk, with buffers of the kernel's
 * registration and without. Where the file system of TMPDIR has no direct I/O, the bounce path is
 * tested on a descriptor without O_DIRECT, and the test says so.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#define loop_config linux_loop_config /* event_loop.h has another */
#include <linux/loop.h>
#undef loop_config
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../backends/block_internal.h"

#define MIB ((size_t)1 << 20)
#define KIB ((size_t)1 << 10)
#define UNTOUCHED 0xa5

enum way { CACHED, BOUNCED_REGISTERED, BOUNCED_PLAIN };
static const char *const way_names[] = {"cached", "bounced, registered", "bounced, plain"};

static char dir[200];

struct rig {
    struct event_loop *loop;
    struct block_backend *block;
    struct block_channel *channel;
    struct block_info info;
    int registered; /* the pool's, put away for BOUNCED_PLAIN */
    int file;       /* the test's own descriptor of the image */
    char path[256];
};

struct waiter {
    struct block_request request; /* first */
    int result;
    bool done;
    unsigned order; /* in which it was done */
};
static unsigned done_count;

static void waiter_done(struct block_request *request, int result)
{
    struct waiter *w = (struct waiter *)request;

    assert_false(w->done);
    w->done = true;
    w->result = result;
    w->order = done_count++;
}

/* A ring as a worker's: nothing but what the backend says that it needs. */
static struct event_loop *make_loop(void)
{
    static const uint8_t allowed[] = {IORING_OP_READ,       IORING_OP_WRITE, IORING_OP_READV,
                                      IORING_OP_WRITEV,     IORING_OP_FSYNC, IORING_OP_READ_FIXED,
                                      IORING_OP_WRITE_FIXED, IORING_OP_FALLOCATE};
    const struct loop_config config = {
        .entries = 64, .allowed_ops = allowed, .n_allowed_ops = ARRAY_SIZE(allowed)};
    struct event_loop *loop;

    assert_int_equal(event_loop_create(&config, &loop), 0);
    return loop;
}

static void make_channel(struct rig *rig, enum way way)
{
    assert_int_equal(block_channel_create(rig->block, rig->loop, &rig->channel), 0);
    rig->registered = rig->channel->pool.buffer;
    if (way == BOUNCED_REGISTERED && rig->registered < 0)
        print_message("no registered buffers here (RLIMIT_MEMLOCK?): this is the plain way\n");
    if (way == BOUNCED_PLAIN)
        rig->channel->pool.buffer = -1;
}

static void rig_on_fd(struct rig *rig, int fd, const struct block_info *info, enum way way)
{
    memset(rig, 0, sizeof(*rig));
    rig->info = *info;
    rig->file = -1;
    rig->loop = make_loop();
    assert_int_equal(block_create(fd, &rig->info, &rig->block), 0);
    make_channel(rig, way);
}

static void rig_create(struct rig *rig, uint64_t size, enum way way)
{
    enum block_cache cache = way == CACHED ? BLOCK_CACHE_WRITEBACK : BLOCK_CACHE_NONE;
    struct block_info info;
    char error[256], path[256];
    int file, fd;

    snprintf(path, sizeof(path), "%s/image", dir);
    file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    assert_int_equal(ftruncate(file, (off_t)size), 0);
    fd = block_open(path, false, cache, true, &info, error, sizeof(error));
    if (fd == -EINVAL && way != CACHED) {
        print_message("no direct I/O in %s: bounced, but without O_DIRECT\n", dir);
        fd = block_open(path, false, BLOCK_CACHE_WRITEBACK, true, &info, error, sizeof(error));
        info.cache = BLOCK_CACHE_NONE;
    }
    if (fd < 0)
        fail_msg("%s", error);
    assert_int_equal(info.size, size - size % info.logical_block);
    rig_on_fd(rig, fd, &info, way);
    rig->file = file;
    memcpy(rig->path, path, sizeof(path));
}

static void rig_destroy(struct rig *rig)
{
    for (size_t i = 0; i < ARRAY_SIZE(rig->channel->pool.used); i++)
        assert_int_equal(rig->channel->pool.used[i], 0);
    assert_null(rig->channel->waiting);
    if (rig->block->direct)
        rig->channel->pool.buffer = rig->registered;
    block_channel_destroy(rig->channel);
    block_destroy(rig->block);
    event_loop_destroy(rig->loop);
    if (rig->file >= 0)
        close(rig->file);
    if (rig->path[0])
        unlink(rig->path);
}

static void submit(struct rig *rig, struct waiter *w, enum block_op op, const struct iovec *iov,
                   uint32_t n_iov, uint64_t offset, uint64_t len)
{
    bool unmap = w->request.unmap, fua = w->request.fua, pinnable = w->request.pinnable;

    memset(w, 0, sizeof(*w));
    w->request.done = waiter_done;
    w->request.op = op;
    w->request.unmap = unmap;
    w->request.fua = fua;
    w->request.pinnable = pinnable;
    w->request.iov = iov;
    w->request.n_iov = n_iov;
    w->request.offset = offset;
    w->request.len = len;
    block_submit(rig->channel, &w->request);
}

static int wait_for(struct rig *rig, struct waiter *w)
{
    int64_t end = monotonic_ns() + INT64_C(60000000000);

    while (!w->done) {
        if (monotonic_ns() > end)
            fail_msg("request not done after 60 s");
        event_loop_turn(rig->loop, 100000000);
    }
    return w->result;
}

static int run(struct rig *rig, enum block_op op, const struct iovec *iov, uint32_t n_iov,
               uint64_t offset, uint64_t len)
{
    struct waiter w = {.done = false};

    submit(rig, &w, op, iov, n_iov, offset, len);
    return wait_for(rig, &w);
}

static int run_flat(struct rig *rig, enum block_op op, void *data, uint64_t offset, size_t len)
{
    struct iovec iov = {data, len};

    return run(rig, op, &iov, 1, offset, len);
}

static int run_range(struct rig *rig, enum block_op op, bool unmap, bool fua, uint64_t offset,
                     uint64_t len)
{
    struct waiter w = {.request = {.unmap = unmap, .fua = fua}};

    submit(rig, &w, op, NULL, 0, offset, len);
    return wait_for(rig, &w);
}

static unsigned pool_in_use(const struct rig *rig)
{
    unsigned n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(rig->channel->pool.used); i++)
        n += (unsigned)__builtin_popcountll(rig->channel->pool.used[i]);
    return n;
}

/* Content that tells where it belongs. */
static uint8_t pattern(uint64_t at, unsigned seed)
{
    uint64_t x = (at + 1) * UINT64_C(0x9e3779b97f4a7c15) + seed * UINT64_C(0xbf58476d1ce4e5b9);

    return (uint8_t)(x >> 56);
}

static void fill(uint8_t *p, size_t len, uint64_t at, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        p[i] = pattern(at + i, seed);
}

static uint8_t *make(size_t len)
{
    uint8_t *p = malloc(len ? len : 1);

    assert_non_null(p);
    memset(p, UNTOUCHED, len);
    return p;
}

static void check_pattern(const uint8_t *p, size_t len, uint64_t at, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != pattern(at + i, seed))
            fail_msg("byte %zu of %zu is 0x%02x, not 0x%02x", i, len, p[i], pattern(at + i, seed));
}

static void check_all(const uint8_t *p, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != value)
            fail_msg("byte %zu of %zu is 0x%02x, not 0x%02x", i, len, p[i], value);
}

/* What the image holds, past the backend. */
static uint8_t *contents(const struct rig *rig, uint64_t at, size_t len)
{
    uint8_t *p = make(len);

    assert_int_equal(pread(rig->file, p, len, (off_t)at), len);
    return p;
}

static void put(const struct rig *rig, uint64_t at, size_t len, unsigned seed)
{
    uint8_t *p = make(len);

    fill(p, len, at, seed);
    assert_int_equal(pwrite(rig->file, p, len, (off_t)at), len);
    free(p);
}

#define FOR_EACH_WAY(way)                                                                          \
    for (enum way way = CACHED; way <= BOUNCED_PLAIN && (print_message("  %s\n", way_names[way]), 1); \
         way++)

/* ---- reading and writing ---- */

static void small_requests(void **state)
{
    (void)state;
    FOR_EACH_WAY (way) {
        uint8_t *data = make(4096), *back = make(4096);
        struct rig rig;

        rig_create(&rig, MIB, way);
        fill(data, 4096, 8192, 1);
        assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 8192, 4096), 0);
        assert_int_equal(run_flat(&rig, BLOCK_READ, back, 8192, 4096), 0);
        assert_memory_equal(data, back, 4096);
        free(back);
        back = contents(&rig, 8192, 4096);
        assert_memory_equal(data, back, 4096);
        free(back);
        free(data);
        /* Nothing to do, and that is fine. */
        assert_int_equal(run(&rig, BLOCK_READ, NULL, 0, 0, 0), 0);
        assert_int_equal(run(&rig, BLOCK_WRITE, NULL, 0, MIB, 0), 0);
        assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, 0, 0), 0);
        rig_destroy(&rig);
    }
}

static void durable_writes_and_flushes(void **state)
{
    (void)state;
    FOR_EACH_WAY (way) {
        uint8_t *data = make(300 * KIB), *back;
        struct iovec iov = {data, 300 * KIB};
        struct waiter w = {.request = {.fua = true}};
        struct rig rig;

        rig_create(&rig, MIB, way);
        fill(data, 300 * KIB, 4096, 2);
        submit(&rig, &w, BLOCK_WRITE, &iov, 1, 4096, 300 * KIB);
        assert_int_equal(wait_for(&rig, &w), 0);
        assert_int_equal(run(&rig, BLOCK_FLUSH, NULL, 0, 0, 0), 0);
        back = contents(&rig, 4096, 300 * KIB);
        check_pattern(back, 300 * KIB, 4096, 2);
        free(back);
        free(data);
        rig_destroy(&rig);
    }
}

/* The kernel says once that it could not write back. */
static void a_failed_flush_is_not_forgotten(void **state)
{
    (void)state;
    FOR_EACH_WAY (way) {
        uint8_t *data = make(4096);
        struct iovec iov = {data, 4096};
        struct waiter flush = {.done = false}, durable = {.request = {.fua = true}};
        int lost = way == CACHED ? -ENOSPC : 0;
        struct rig rig;

        rig_create(&rig, MIB, way);
        fill(data, 4096, 0, 2);
        submit(&rig, &flush, BLOCK_FLUSH, NULL, 0, 0, 0);
        assert_int_equal(wait_for(&rig, &flush), 0);
        /* As if the kernel had answered it with an error. */
        flush.done = false;
        flush.request.state.retries = UINT8_MAX;
        flush.request.state.op.done(&flush.request.state.op, -EINTR, false);
        assert_int_equal(flush.result, -EINTR);
        assert_int_equal(block_flush_error(rig.block), 0);
        flush.done = false;
        flush.request.state.op.done(&flush.request.state.op, -ENOSPC, false);
        assert_int_equal(flush.result, -ENOSPC);
        assert_int_equal(block_flush_error(rig.block), lost);
        assert_int_equal(run(&rig, BLOCK_FLUSH, NULL, 0, 0, 0), lost);
        submit(&rig, &durable, BLOCK_WRITE, &iov, 1, 0, 4096);
        assert_int_equal(wait_for(&rig, &durable), lost);
        assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, false, true, 0, 4096), lost);
        /* One that was under way: the error was not its own, and what it wrote may be lost with it. */
        flush.done = false;
        flush.request.state.op.done(&flush.request.state.op, 0, false);
        assert_int_equal(flush.result, lost);
        /* The first one counts. */
        block_set_flush_error(rig.block, -EIO);
        assert_int_equal(block_flush_error(rig.block), lost ? lost : -EIO);
        /* Everything else goes on. */
        assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 0, 4096), 0);
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 0, 4096), 0);
        check_pattern(data, 4096, 0, 2);
        free(data);
        rig_destroy(&rig);
    }
}

/* Elements of odd sizes, empty ones among them, `n` in all; returns the length (a multiple of 4096). */
static size_t odd_iov(struct iovec *iov, unsigned n, size_t largest, unsigned seed)
{
    size_t total = 0;

    srand(seed);
    for (unsigned i = 0; i < n; i++) {
        size_t len = i % 7 == 0 ? 0 : (size_t)rand() % largest + 1;

        if (i == n - 2)
            len += 4096 - (total + len) % 4096;
        if (i == n - 1)
            len = 0; /* the last one is empty too */
        iov[i].iov_len = len;
        iov[i].iov_base = make(len);
        total += len;
    }
    return total;
}

static void free_iov(struct iovec *iov, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        free(iov[i].iov_base);
}

static void odd_elements(void **state)
{
    static const struct {
        unsigned n;
        size_t largest;
    } cases[] = {{5, 3}, {9, 5000}, {64, 700}, {300, 9000}, {2600, 300}};

    (void)state;
    assert_true(2600 > 2 * IOV_MAX);
    FOR_EACH_WAY (way) {
        for (unsigned c = 0; c < ARRAY_SIZE(cases); c++) {
            unsigned n = cases[c].n;
            struct iovec *iov = calloc(n, sizeof(*iov));
            size_t len = odd_iov(iov, n, cases[c].largest, c), at = 0;
            struct rig rig;
            uint8_t *back;

            rig_create(&rig, 4 * MIB, way);
            for (unsigned i = 0; i < n; i++) {
                fill(iov[i].iov_base, iov[i].iov_len, 4096 + at, c);
                at += iov[i].iov_len;
            }
            assert_int_equal(run(&rig, BLOCK_WRITE, iov, n, 4096, len), 0);
            back = contents(&rig, 0, len + 8192);
            check_all(back, 4096, 0);
            check_pattern(back + 4096, len, 4096, c);
            check_all(back + 4096 + len, 4096, 0);
            free(back);
            for (unsigned i = 0; i < n; i++)
                memset(iov[i].iov_base, UNTOUCHED, iov[i].iov_len);
            assert_int_equal(run(&rig, BLOCK_READ, iov, n, 4096, len), 0);
            at = 0;
            for (unsigned i = 0; i < n; i++) {
                check_pattern(iov[i].iov_base, iov[i].iov_len, 4096 + at, c);
                at += iov[i].iov_len;
            }
            free_iov(iov, n);
            free(iov);
            rig_destroy(&rig);
        }
    }
}

/* Sixteen times what the pool holds, at once, in sizes that fragment it. */
static void more_than_the_pool_holds(void **state)
{
    enum { N = 160 };
    static struct waiter w[N];
    static struct iovec iov[N];

    (void)state;
    FOR_EACH_WAY (way) {
        uint64_t offset[N + 1] = {0};
        struct rig rig;

        rig_create(&rig, 64 * MIB, way);
        for (unsigned i = 0; i < N; i++) {
            size_t len = (i * 37 % 64 + 1) * 4096;

            iov[i] = (struct iovec){make(len), len};
            offset[i + 1] = offset[i] + len;
            fill(iov[i].iov_base, len, offset[i], 3);
        }
        for (unsigned i = 0; i < N; i++)
            submit(&rig, &w[i], BLOCK_WRITE, &iov[i], 1, offset[i], iov[i].iov_len);
        for (unsigned i = 0; i < N; i++)
            assert_int_equal(wait_for(&rig, &w[i]), 0);
        for (unsigned i = 0; i < N; i++) {
            memset(iov[i].iov_base, UNTOUCHED, iov[i].iov_len);
            submit(&rig, &w[i], BLOCK_READ, &iov[i], 1, offset[i], iov[i].iov_len);
        }
        for (unsigned i = 0; i < N; i++) {
            assert_int_equal(wait_for(&rig, &w[i]), 0);
            check_pattern(iov[i].iov_base, iov[i].iov_len, offset[i], 3);
            free(iov[i].iov_base);
        }
        rig_destroy(&rig);
    }
}

/* ---- first come, first served ---- */

struct stream {
    struct waiter big;
    struct waiter small[8];
    struct iovec iov;
    struct rig *rig;
    unsigned done;
};
static struct stream stream;

static void small_done(struct block_request *request, int result)
{
    const struct block_request *big = &stream.big.request;

    assert_int_equal(result, 0);
    /* It was submitted after the big one: nothing of it may start before all of that has. */
    assert_int_equal(big->state.progress, big->len);
    stream.done++;
    if (stream.big.done)
        return;
    block_submit(stream.rig->channel, request);
}

static void large_requests_are_not_starved(void **state)
{
    static uint8_t small[4096];
    uint8_t *data = make(8 * MIB), *first_data = make(4096);
    struct iovec iov = {data, 8 * MIB}, first_iov = {first_data, 4096};
    struct waiter first = {.done = false};
    struct rig rig;

    (void)state;
    rig_create(&rig, 8 * MIB, BOUNCED_REGISTERED);
    memset(&stream, 0, sizeof(stream));
    stream.rig = &rig;
    stream.iov = (struct iovec){small, sizeof(small)};
    put(&rig, 0, 8 * MIB, 4);
    /* One unit is taken: the big one leaves 31 free, which would do for many small ones. */
    submit(&rig, &first, BLOCK_READ, &first_iov, 1, 0, 4096);
    submit(&rig, &stream.big, BLOCK_READ, &iov, 1, 0, 8 * MIB);
    assert_int_equal(stream.big.request.state.pieces, BOUNCE_UNITS / 32 - 1);
    for (unsigned i = 0; i < ARRAY_SIZE(stream.small); i++) {
        struct block_request *r = &stream.small[i].request;

        r->done = small_done;
        r->op = BLOCK_READ;
        r->iov = &stream.iov;
        r->n_iov = 1;
        r->len = sizeof(small);
        block_submit(rig.channel, r);
        assert_int_equal(r->state.pieces, 0);
    }
    assert_int_equal(wait_for(&rig, &stream.big), 0);
    check_pattern(data, 8 * MIB, 0, 4);
    while (stream.done < ARRAY_SIZE(stream.small) || rig.channel->pool.used[0] ||
           rig.channel->waiting)
        event_loop_turn(rig.loop, 100000000);
    assert_true(first.done);
    free(first_data);
    free(data);
    rig_destroy(&rig);
}

/* The kernel transfers less than 2 GiB at once, and stops within an element. */
static void very_long_read(void **state)
{
    enum { N = 40 };
    const size_t len = 64 * MIB, cut = 0x7ffff000, border = cut / len;
    const struct block_info info = {
        .size = N * len, .logical_block = 512, .cache = BLOCK_CACHE_WRITEBACK};
    uint8_t *shared = make(len), *own = make(len);
    struct iovec iov[N];
    struct rig rig;
    int fd = memfd_create("image", MFD_CLOEXEC);

    (void)state;
    assert_int_equal(ftruncate(fd, (off_t)(N * len)), 0);
    rig_on_fd(&rig, fd, &info, CACHED);
    rig.file = dup(fd);
    put(&rig, cut - 8192, 16384, 9);
    put(&rig, N * len - 4096, 4096, 9);
    for (unsigned i = 0; i < N; i++)
        iov[i] = (struct iovec){i == border ? own : shared, len};
    assert_int_equal(run(&rig, BLOCK_READ, iov, N, 0, N * len), 0);
    /* A page before the end of this element. */
    check_pattern(own + cut % len - 8192, 8192 + 4096, cut - 8192, 9);
    check_pattern(shared + len - 4096, 4096, N * len - 4096, 9);
    rig_destroy(&rig);
    free(shared);
    free(own);
}

/* ---- what goes wrong ---- */

static void wrong_requests(void **state)
{
    uint8_t *data = make(8192);
    struct rig rig;

    (void)state;
    rig_create(&rig, MIB, BOUNCED_REGISTERED);
    rig.block->info.logical_block = 4096;
    assert_int_equal(run_flat(&rig, BLOCK_READ, data, 512, 4096), -EINVAL);
    assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 4096, 4096 + 512), -EINVAL);
    assert_int_equal(run_flat(&rig, BLOCK_READ, data, UINT64_MAX & ~(uint64_t)4095, 4096), -EINVAL);
    assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, INT64_MAX & ~(uint64_t)4095, 8192), -EINVAL);
    assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, 512, UINT64_MAX - 511), -EINVAL);
    assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, false, false, 100, 512), -EINVAL);
    assert_int_equal(run_range(&rig, BLOCK_SECURE_ERASE, false, false, 0, 512), -EOPNOTSUPP);
    check_all(data, 8192, UNTOUCHED);
    rig.block->info.read_only = true;
    assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 0, 4096), -EROFS);
    assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, 0, 4096), -EROFS);
    assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, true, false, 0, 4096), -EROFS);
    assert_int_equal(run(&rig, BLOCK_FLUSH, NULL, 0, 0, 0), 0);
    assert_int_equal(run_flat(&rig, BLOCK_READ, data, 0, 4096), 0);
    rig_destroy(&rig);
    free(data);
}

/* Row 23: what a read did not read stays as it was. */
static void row_23_shrunk_image(void **state)
{
    (void)state;
    FOR_EACH_WAY (way) {
        uint8_t *data = make(MIB);
        size_t whole = way == CACHED ? 300 * KIB : 256 * KIB;
        struct rig rig;

        rig_create(&rig, MIB, way);
        put(&rig, 0, MIB, 5);
        /* Leave the pool full of other data. */
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 0, MIB), 0);
        memset(data, UNTOUCHED, MIB);
        assert_int_equal(ftruncate(rig.file, 300 * KIB), 0);
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 0, MIB), -EIO);
        check_pattern(data, whole, 0, 5);
        check_all(data + whole, MIB - whole, UNTOUCHED);
        memset(data, UNTOUCHED, MIB);
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 512 * KIB, 4096), -EIO);
        check_all(data, MIB, UNTOUCHED);
        /* An end in the middle of a block. */
        assert_int_equal(ftruncate(rig.file, 5000), 0);
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 4096, 8192), -EIO);
        check_all(data + 5000 - 4096, 8192, UNTOUCHED);
        assert_int_equal(block_size(rig.block), 5000 - 5000 % rig.info.logical_block);
        free(data);
        rig_destroy(&rig);
    }
}

static void full_disk(void **state)
{
    const struct block_info info = {.size = MIB, .logical_block = 512};

    (void)state;
    FOR_EACH_WAY (way) {
        uint8_t *data = make(MIB);
        struct block_info full = info;
        struct rig rig;
        int fd = open("/dev/full", O_RDWR | O_CLOEXEC);

        assert_true(fd >= 0);
        full.cache = way == CACHED ? BLOCK_CACHE_WRITEBACK : BLOCK_CACHE_NONE;
        rig_on_fd(&rig, fd, &full, way);
        assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 0, 4096), -ENOSPC);
        assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 0, MIB), -ENOSPC);
        rig_destroy(&rig);
        free(data);
    }
}

/* More than the pool holds, of which one piece fails: over when the last piece is, and once. */
static void one_piece_fails(void **state)
{
    uint8_t *data = make(4 * MIB), *other = make(4096);
    struct iovec iov = {data, 4 * MIB}, other_iov = {other, 4096};
    struct waiter big = {.done = false}, behind = {.done = false};
    struct rig rig;

    (void)state;
    rig_create(&rig, 4 * MIB, BOUNCED_REGISTERED);
    put(&rig, 0, 4 * MIB, 6);
    assert_int_equal(ftruncate(rig.file, 128 * KIB), 0);
    submit(&rig, &big, BLOCK_READ, &iov, 1, 0, 4 * MIB);
    submit(&rig, &behind, BLOCK_READ, &other_iov, 1, 0, 4096);
    assert_int_equal(wait_for(&rig, &big), -EIO);
    assert_int_equal(wait_for(&rig, &behind), 0);
    check_pattern(other, 4096, 0, 6);
    check_all(data + 128 * KIB, 4 * MIB - 128 * KIB, UNTOUCHED);
    rig_destroy(&rig);
    free(data);
    free(other);
}

/* ---- ranges ---- */

static blkcnt_t blocks_of(const struct rig *rig)
{
    struct stat st;

    assert_int_equal(fsync(rig->file), 0);
    assert_int_equal(fstat(rig->file, &st), 0);
    return st.st_blocks;
}

static void check_zeroed(struct rig *rig, size_t at, size_t len)
{
    uint8_t *back = contents(rig, 0, 4 * MIB);

    check_pattern(back, at, 0, 7);
    check_all(back + at, len, 0);
    check_pattern(back + at + len, 4 * MIB - at - len, at + len, 7);
    free(back);
}

static void discards(void **state)
{
    (void)state;
    FOR_EACH_WAY (way) {
        struct rig rig;
        blkcnt_t before;

        rig_create(&rig, 4 * MIB, way);
        put(&rig, 0, 4 * MIB, 7);
        before = blocks_of(&rig);
        if (rig.info.discard_granularity == 0) {
            print_message("no holes in files of %s\n", dir);
        } else {
            assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, MIB, 2 * MIB), 0);
            assert_true(blocks_of(&rig) <= before - (blkcnt_t)(2 * MIB / 512));
            check_zeroed(&rig, MIB, 2 * MIB);
        }
        rig_destroy(&rig);
    }
}

static void zeroes(void **state)
{
    static const struct {
        size_t at, len;
    } cases[] = {{MIB, MIB}, {4096, 8192}, {MIB, 2 * MIB + 68 * KIB}, {0, 4 * MIB}};

    (void)state;
    FOR_EACH_WAY (way) {
        for (unsigned c = 0; c < ARRAY_SIZE(cases); c++) {
            /* Bit 0: unmap; bit 1: durable; bits 2 and 3: what the file system cannot. */
            for (unsigned how = 0; how < 16; how++) {
                struct rig rig;

                if ((how & 2) && c > 0)
                    continue; /* a slow disk makes the test long */
                rig_create(&rig, 4 * MIB, way);
                put(&rig, 0, 4 * MIB, 7);
                atomic_store(&rig.block->no_punch_hole, (how & 4) != 0);
                atomic_store(&rig.block->no_zero_range, (how & 8) != 0);
                assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, (how & 1) != 0,
                                           (how & 2) != 0, cases[c].at, cases[c].len),
                                 0);
                check_zeroed(&rig, cases[c].at, cases[c].len);
                rig_destroy(&rig);
            }
        }
    }
}

/* Memory files have PUNCH_HOLE, and no ZERO_RANGE: zeros are written, and that is remembered. */
static void zeroes_where_the_file_system_cannot(void **state)
{
    const struct block_info info = {
        .size = 4 * MIB, .logical_block = 512, .cache = BLOCK_CACHE_WRITEBACK};
    struct rig rig;
    int fd = memfd_create("image", MFD_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    rig_on_fd(&rig, fd, &info, CACHED);
    rig.file = dup(fd);
    put(&rig, 0, 4 * MIB, 7);
    assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, false, true, 512, MIB + 512), 0);
    assert_true(atomic_load(&rig.block->no_zero_range));
    check_zeroed(&rig, 512, MIB + 512);
    put(&rig, 0, 4 * MIB, 7);
    assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, true, false, 512, MIB + 512), 0);
    assert_false(atomic_load(&rig.block->no_punch_hole));
    check_zeroed(&rig, 512, MIB + 512);
    rig_destroy(&rig);
}

/* Runs before the thread is started. */
static void sync_needs_its_thread(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, MIB, CACHED);
    rig.block->info.is_block_device = true;
    assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, 0, 4096), -EOPNOTSUPP);
    rig_destroy(&rig);
}

static void sync_thread_answers(void **state)
{
    static struct waiter w[200];
    struct rig rig;

    (void)state;
    assert_int_equal(block_sync_start(), 0);
    assert_int_equal(block_sync_start(), 0); /* one is enough */
    rig_create(&rig, MIB, CACHED);
    rig.block->info.is_block_device = true; /* it is not, as the ioctl finds out */
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
        submit(&rig, &w[i], i % 2 ? BLOCK_DISCARD : BLOCK_SECURE_ERASE, NULL, 0, 0, 4096);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
        assert_int_equal(wait_for(&rig, &w[i]), -ENOTTY);
    rig_destroy(&rig);
}

/* ---- channels ---- */

static void channels_share_a_ring(void **state)
{
    enum { N = 5 };
    struct block_channel *channel[N];
    uint8_t *data = make(4096);
    struct rig rig;

    (void)state;
    rig_create(&rig, MIB, BOUNCED_REGISTERED);
    put(&rig, 0, MIB, 8);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(block_channel_create(rig.block, rig.loop, &channel[i]), 0);
        if (geteuid() == 0 && rig.registered >= 0) /* no limit applies */
            assert_true(channel[i]->pool.buffer >= 0);
        for (unsigned j = 0; j < i; j++)
            if (channel[i]->pool.buffer >= 0)
                assert_int_not_equal(channel[i]->pool.buffer, channel[j]->pool.buffer);
    }
    block_channel_destroy(channel[1]);
    assert_int_equal(block_channel_create(rig.block, rig.loop, &channel[1]), 0);
    for (unsigned i = 0; i < N; i++) {
        struct block_channel *first = rig.channel;

        memset(data, UNTOUCHED, 4096);
        rig.channel = channel[i];
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, i * 4096, 4096), 0);
        check_pattern(data, 4096, i * 4096, 8);
        rig.channel = first;
        block_channel_destroy(channel[i]);
    }
    rig_destroy(&rig);
    free(data);
}

static void pool_runs(void **state)
{
    struct event_loop *loop = make_loop();
    static uint8_t owner[BOUNCE_UNITS]; /* the length of the run, at its first unit */
    static bool used[BOUNCE_UNITS];
    struct bounce_pool pool;

    (void)state;
    memset(owner, 0, sizeof(owner));
    memset(used, 0, sizeof(used));
    assert_int_equal(bounce_pool_create(loop_ring(loop), &pool), 0);
    srand(1);
    for (unsigned step = 0; step < 200000; step++) {
        unsigned n = (unsigned)rand() % 32 + 1;
        unsigned unit = (unsigned)rand() % BOUNCE_UNITS;

        if (rand() % 2) {
            int got = bounce_pool_take(&pool, n * BOUNCE_UNIT - (step % 2 ? 0 : 511));
            unsigned run = 0, best = 0;

            for (unsigned i = 0; i < BOUNCE_UNITS; i++) {
                run = used[i] ? 0 : run + 1;
                best = MAX(best, run);
            }
            assert_true(got >= 0 ? best >= n : best < n);
            for (unsigned i = 0; got >= 0 && i < n; i++) {
                assert_false(used[(unsigned)got + i]);
                used[(unsigned)got + i] = true;
            }
            if (got >= 0)
                owner[got] = (uint8_t)n;
        } else if (owner[unit]) {
            bounce_pool_give(&pool, unit, owner[unit] * BOUNCE_UNIT);
            for (unsigned i = 0; i < owner[unit]; i++)
                used[unit + i] = false;
            owner[unit] = 0;
        }
    }
    bounce_pool_destroy(&pool);
    event_loop_destroy(loop);
}

/* ---- opening ---- */

static int try_open(const char *path, bool read_only, enum block_cache cache, char *error,
                    size_t error_len)
{
    struct block_info info;
    int fd = block_open(path, read_only, cache, true, &info, error, error_len);

    if (fd >= 0)
        close(fd);
    return fd;
}

static void says(int fd, int expected, const char *error, const char *word)
{
    if (fd != expected || !strstr(error, word))
        fail_msg("%d (%s), not %d with \"%s\"", fd, error, expected, word);
    assert_null(strchr(error, '\n'));
}

static void open_errors(void **state)
{
    char error[256], path[256];
    int fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/none", dir);
    fd = try_open(path, false, BLOCK_CACHE_WRITEBACK, error, sizeof(error));
    says(fd, -ENOENT, error, "no such image");
    says(fd, -ENOENT, error, path);
    fd = try_open(dir, false, BLOCK_CACHE_NONE, error, sizeof(error));
    says(fd, -EISDIR, error, "directory");
    fd = try_open("/dev/null", false, BLOCK_CACHE_NONE, error, sizeof(error));
    says(fd, -EINVAL, error, "character device");
    fd = try_open("/proc/version/x", false, BLOCK_CACHE_NONE, error, sizeof(error));
    says(fd, -ENOTDIR, error, "path");
    fd = try_open("/proc/version", true, BLOCK_CACHE_NONE, error, sizeof(error));
    says(fd, -EINVAL, error, "cache = writeback");
    assert_int_equal(mkfifo(path, 0600), 0);
    fd = try_open(path, true, BLOCK_CACHE_NONE, error, sizeof(error)); /* does not wait */
    says(fd, -EINVAL, error, "pipe");
    unlink(path);
    assert_int_equal(close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0400)), 0);
    fd = try_open(path, true, BLOCK_CACHE_WRITEBACK, error, sizeof(error));
    says(fd, -EINVAL, error, "empty");
    if (geteuid() != 0) {
        fd = try_open(path, false, BLOCK_CACHE_WRITEBACK, error, sizeof(error));
        says(fd, -EACCES, error, "readonly = yes");
    }
    unlink(path);
    /* An error that does not fit is cut. */
    fd = try_open(path, false, BLOCK_CACHE_WRITEBACK, error, 10);
    assert_int_equal(strlen(error), 9);
}

static void locks(void **state)
{
    char error[256];
    struct block_info info;
    struct rig rig;
    int readers[2], fd;

    (void)state;
    rig_create(&rig, MIB, CACHED);
    says(try_open(rig.path, false, BLOCK_CACHE_WRITEBACK, error, sizeof(error)), -EBUSY, error,
         "in use");
    says(try_open(rig.path, true, BLOCK_CACHE_WRITEBACK, error, sizeof(error)), -EBUSY, error,
         "in use");
    /* The lock is the descriptor's, not the process's: a copy keeps it. */
    fd = dup(rig.block->fd);
    block_destroy(rig.block);
    says(try_open(rig.path, true, BLOCK_CACHE_WRITEBACK, error, sizeof(error)), -EBUSY, error,
         "in use");
    close(fd);
    for (unsigned i = 0; i < 2; i++) {
        readers[i] = block_open(rig.path, true, BLOCK_CACHE_WRITEBACK, true, &info, error,
                                sizeof(error));
        assert_true(readers[i] >= 0);
        assert_true(info.read_only);
        assert_false(info.can_write_zeroes);
        assert_int_equal(info.discard_granularity, 0);
    }
    says(try_open(rig.path, false, BLOCK_CACHE_WRITEBACK, error, sizeof(error)), -EBUSY, error,
         "in use");
    close(readers[0]);
    close(readers[1]);
    fd = block_open(rig.path, false, BLOCK_CACHE_WRITEBACK, true, &info, error, sizeof(error));
    assert_true(fd >= 0);
    assert_int_equal(block_create(fd, &info, &rig.block), 0);
    rig.channel->block = rig.block;
    rig_destroy(&rig);
}

static void odd_size(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, MIB + 700, CACHED);
    assert_int_equal(rig.info.size, MIB + 512);
    assert_int_equal(rig.info.logical_block, 512);
    assert_false(rig.info.is_block_device);
    assert_int_equal(block_size(rig.block), MIB + 512);
    assert_int_equal(ftruncate(rig.file, 3 * MIB), 0);
    assert_int_equal(block_size(rig.block), 3 * MIB);
    rig_destroy(&rig);
}

static void impossible_block_sizes(void **state)
{
    static const uint32_t sizes[] = {0, 256, 513, 768, 1 << 20};
    struct block_backend *block;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        const struct block_info info = {.size = MIB, .logical_block = sizes[i]};

        assert_int_equal(block_create(-1, &info, &block), -EINVAL);
    }
}

/* ---- a real block device: where there are loop devices and the right to make one ---- */

static int make_loop_device(int file, char *path, size_t len)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int fd = -1;

    for (unsigned attempt = 0; control >= 0 && attempt < 20 && fd < 0; attempt++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        struct linux_loop_config config = {.fd = (uint32_t)file,
                                           .block_size = 512,
                                           .info.lo_flags = LO_FLAGS_AUTOCLEAR};

        if (number < 0)
            break;
        snprintf(path, len, "/dev/loop%d", number);
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config)) {
            close(fd); /* somebody else was faster */
            fd = -1;
        }
    }
    if (control >= 0)
        close(control);
    return fd;
}

static void block_device(void **state)
{
    uint8_t *data = make(MIB);
    char path[32], error[256];
    struct block_info info;
    struct rig image, rig;
    int loop, fd;

    (void)state;
    rig_create(&image, 4 * MIB, CACHED);
    loop = make_loop_device(image.file, path, sizeof(path));
    if (loop < 0) {
        rig_destroy(&image);
        free(data);
        print_message("no loop device can be made here: not tested on a block device\n");
        skip();
    }
    /* Somebody has claimed it, as a mount does. */
    fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
    assert_true(fd >= 0);
    says(try_open(path, false, BLOCK_CACHE_NONE, error, sizeof(error)), -EBUSY, error, "mounted");
    close(fd);
    for (unsigned direct = 0; direct < 2; direct++) {
        enum block_cache cache = direct ? BLOCK_CACHE_NONE : BLOCK_CACHE_WRITEBACK;

        memset(&rig, 0, sizeof(rig));
        rig.file = loop;
        put(&rig, 0, 4 * MIB, 7);
        assert_int_equal(fsync(loop), 0);
        fd = block_open(path, false, cache, true, &info, error, sizeof(error));
        if (fd < 0)
            fail_msg("%s", error);
        assert_true(info.is_block_device);
        assert_int_equal(info.size, 4 * MIB);
        assert_int_equal(info.logical_block, 512);
        assert_true(info.can_write_zeroes);
        says(try_open(path, false, cache, error, sizeof(error)), -EBUSY, error, "in use");
        says(try_open(path, true, cache, error, sizeof(error)), -EBUSY, error, "in use");
        rig_on_fd(&rig, fd, &info, direct ? BOUNCED_REGISTERED : CACHED);
        rig.file = dup(loop);
        assert_int_equal(run_flat(&rig, BLOCK_READ, data, 0, MIB), 0);
        check_pattern(data, MIB, 0, 7);
        assert_int_equal(run_flat(&rig, BLOCK_WRITE, data, 0, MIB), 0);
        assert_int_equal(run(&rig, BLOCK_FLUSH, NULL, 0, 0, 0), 0);
        assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, false, true, MIB, 4096), 0);
        assert_int_equal(run_range(&rig, BLOCK_WRITE_ZEROES, true, true, MIB + 4096, 4096), 0);
        check_zeroed(&rig, MIB, 8192);
        if (info.discard_granularity) {
            blkcnt_t before = blocks_of(&image);

            assert_int_equal(run_range(&rig, BLOCK_DISCARD, false, false, MIB, 2 * MIB), 0);
            assert_true(blocks_of(&image) < before);
            check_zeroed(&rig, MIB, 2 * MIB);
        }
        assert_false(info.can_secure_erase);
        assert_int_equal(run_range(&rig, BLOCK_SECURE_ERASE, false, false, 0, 4096), -EOPNOTSUPP);
        rig_destroy(&rig);
    }
    close(loop);
    rig_destroy(&image);
    free(data);
}

static int set_up(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof(dir), "%s/block-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(dir);
}

/* Memory that the kernel may pin goes to the disk as it is, if it is aligned. */
static void pinnable_memory_is_not_bounced(void **state)
{
    uint8_t *memory = aligned_alloc(4096, 5 * 4096), expected[3 * 4096];
    struct waiter w = {.request = {.pinnable = true}};
    struct iovec iov[] = {{memory + 2 * 4096, 8192}, {memory, 4096}};
    struct rig rig;

    (void)state;
    assert_non_null(memory);
    rig_create(&rig, 1u << 20, BOUNCED_PLAIN);
    fill(memory + 2 * 4096, 8192, 0, 1);
    fill(memory, 4096, 8192, 1);
    submit(&rig, &w, BLOCK_WRITE, iov, 2, 4096, 3 * 4096);
    assert_int_equal(pool_in_use(&rig), 0);
    assert_int_equal(wait_for(&rig, &w), 0);
    fill(expected, sizeof(expected), 0, 1);
    memset(memory, 0, 5 * 4096);
    w.done = false;
    submit(&rig, &w, BLOCK_READ, iov, 2, 4096, 3 * 4096);
    assert_int_equal(pool_in_use(&rig), 0);
    assert_int_equal(wait_for(&rig, &w), 0);
    assert_memory_equal(memory + 2 * 4096, expected, 8192);
    assert_memory_equal(memory, expected + 8192, 4096);
    /* At an odd address it is bounced; so is what may not be pinned. */
    iov[1].iov_base = memory + 16;
    w.done = false;
    submit(&rig, &w, BLOCK_READ, iov, 2, 4096, 3 * 4096);
    assert_int_equal(pool_in_use(&rig), 3);
    assert_int_equal(wait_for(&rig, &w), 0);
    assert_memory_equal(memory + 16, expected + 8192, 4096);
    iov[1].iov_base = memory;
    w.request.pinnable = w.done = false;
    submit(&rig, &w, BLOCK_READ, iov, 2, 4096, 3 * 4096);
    assert_int_equal(pool_in_use(&rig), 3);
    assert_int_equal(wait_for(&rig, &w), 0);
    rig_destroy(&rig);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pinnable_memory_is_not_bounced),
        cmocka_unit_test(pool_runs),
        cmocka_unit_test(small_requests),
        cmocka_unit_test(durable_writes_and_flushes),
        cmocka_unit_test(a_failed_flush_is_not_forgotten),
        cmocka_unit_test(odd_elements),
        cmocka_unit_test(more_than_the_pool_holds),
        cmocka_unit_test(large_requests_are_not_starved),
        cmocka_unit_test(very_long_read),
        cmocka_unit_test(wrong_requests),
        cmocka_unit_test(row_23_shrunk_image),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(one_piece_fails),
        cmocka_unit_test(discards),
        cmocka_unit_test(zeroes),
        cmocka_unit_test(zeroes_where_the_file_system_cannot),
        cmocka_unit_test(sync_needs_its_thread),
        cmocka_unit_test(sync_thread_answers),
        cmocka_unit_test(channels_share_a_ring),
        cmocka_unit_test(open_errors),
        cmocka_unit_test(locks),
        cmocka_unit_test(odd_size),
        cmocka_unit_test(impossible_block_sizes),
        cmocka_unit_test(block_device),
    };

    return cmocka_run_group_tests_name("block_uring", tests, set_up, tear_down);
}
