/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block requests on the loop's io_uring.
 *
 * With the host's page cache, requests go straight from and to the guest's memory. Without
 * (O_DIRECT) they go through a bounce pool, cut into pieces of at most BOUNCE_RUN_MAX.
 *
 * What a sandbox must allow:
 *   ring operations  IORING_OP_READ, WRITE, READV, WRITEV, READ_FIXED, WRITE_FIXED, FSYNC, FALLOCATE
 *   ring registers   IORING_REGISTER_BUFFERS2, IORING_REGISTER_BUFFERS_UPDATE,
 *                    IORING_UNREGISTER_BUFFERS (refused: READ and WRITE are used instead of _FIXED)
 *   system calls     io_uring_register (the above), mmap and munmap (private, anonymous), lseek,
 *                    close, ioctl (BLKGETSIZE64); of the helper thread in block_sync.c: futex,
 *                    ioctl (BLKDISCARD, BLKSECDISCARD), and what loop_post needs (write to an eventfd)
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "block_internal.h"

/* Of one operation, after EINTR or EAGAIN, or ECANCELED: the kernel could not make a thread for it. */
#define RETRIES_MAX 16u
/* One element of an iovec in one operation: the kernel transfers less than 2 GiB anyway. */
#define ELEMENT_MAX (UINT64_C(1) << 30)

/* Where a WRITE_ZEROES stands: each step is tried when the one before is not supported. */
enum { ZERO_BY_PUNCH_HOLE, ZERO_BY_ZERO_RANGE, ZERO_BY_WRITING, ZERO_SYNC };

/* Zeros to write, never written to: an untouched page costs nothing. */
#define ZEROS_LEN (64u << 10)
#define ZEROS_IOV 16u
static _Alignas(BOUNCE_UNIT) uint8_t zeros[ZEROS_LEN];
#define Z {zeros, ZEROS_LEN}
static const struct iovec zeros_iov[ZEROS_IOV] = {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z};
#undef Z

static void start_bounced(struct block_channel *channel);
static void next_range(struct block_request *request);

static struct block_request *request_of(struct loop_op *op)
{
    return container_of(op, struct block_request, state.op);
}

static void finish(struct block_request *request, int result)
{
    request->done(request, result);
}

static bool may_retry(int result, uint8_t *retries)
{
    return (result == -EINTR || result == -EAGAIN || result == -ECANCELED) && (*retries)++ < RETRIES_MAX;
}

/* ---- FLUSH ---- */

int block_flush_error(const struct block_backend *block)
{
    return atomic_load_explicit(&block->flush_error, memory_order_relaxed);
}

void block_set_flush_error(struct block_backend *block, int error)
{
    int none = 0;

    atomic_compare_exchange_strong_explicit(&block->flush_error, &none, error, memory_order_relaxed,
                                            memory_order_relaxed);
}

static bool was_not_tried(int result)
{
    return result == -EINTR || result == -EAGAIN || result == -ECANCELED || result == -EINVAL ||
           result == -EOPNOTSUPP;
}

static void submit_fsync(struct block_request *request);

static void fsync_done(struct loop_op *op, int result, bool more)
{
    struct block_request *request = request_of(op);
    struct block_backend *block = request->state.channel->block;

    (void)more;
    if (may_retry(result, &request->state.retries)) {
        submit_fsync(request);
        return;
    }
    if (!block->direct && result < 0 && !was_not_tried(result))
        block_set_flush_error(block, result);
    finish(request, result < 0 ? result : block_flush_error(block));
}

static void submit_fsync(struct block_request *request)
{
    struct block_channel *channel = request->state.channel;
    struct io_uring_sqe *sqe = loop_sqe(channel->loop);

    request->state.op.done = fsync_done;
    io_uring_prep_fsync(sqe, channel->block->fd, IORING_FSYNC_DATASYNC);
    loop_sqe_op(sqe, &request->state.op);
}

/* ---- READ and WRITE on guest memory ---- */

/* Passes `len` bytes of the request's data and steps over empty elements. */
static void advance(const struct block_request *request, uint32_t *index, size_t *offset, size_t len)
{
    while (*index < request->n_iov) {
        size_t left = request->iov[*index].iov_len - *offset;

        if (len < left) {
            *offset += len;
            return;
        }
        len -= left;
        *offset = 0;
        ++*index;
    }
}

/*
 * With the page cache, a durable write is a write and a flush: of an error of RWF_DSYNC, which is both, it
 * could not be told whether something else was lost.
 */
static bool is_synced_afterwards(const struct block_request *request)
{
    return request->op == BLOCK_WRITE && request->fua && !request->state.channel->block->direct;
}

static void next_vectored(struct block_request *request);

static void vectored_done(struct loop_op *op, int result, bool more)
{
    struct block_request *request = request_of(op);

    (void)more;
    if (result <= 0) {
        if (may_retry(result, &request->state.retries))
            next_vectored(request);
        else
            finish(request, result ? result : -EIO); /* 0: the image ends before its size */
        return;
    }
    request->state.progress += (uint64_t)result;
    if (request->state.progress >= request->len) {
        request->state.retries = 0;
        if (is_synced_afterwards(request))
            submit_fsync(request);
        else
            finish(request, 0);
        return;
    }
    advance(request, &request->state.iov_index, &request->state.iov_offset, (size_t)result);
    next_vectored(request);
}

static void next_vectored(struct block_request *request)
{
    struct block_channel *channel = request->state.channel;
    uint32_t index = request->state.iov_index;
    uint32_t n = request->n_iov - index;
    size_t skip = request->state.iov_offset;
    uint64_t at = request->offset + request->state.progress;
    int fd = channel->block->fd;

    if (n == 0) { /* iov is shorter than len: the owner's mistake */
        finish(request, -EINVAL);
        return;
    }
    const struct iovec *iov = &request->iov[index];
    struct io_uring_sqe *sqe = loop_sqe(channel->loop);
    if (n == 1 || skip) {
        uint8_t *base = (uint8_t *)iov->iov_base + skip;
        unsigned len = (unsigned)MIN(iov->iov_len - skip, ELEMENT_MAX);

        if (request->op == BLOCK_READ)
            io_uring_prep_read(sqe, fd, base, len, at);
        else
            io_uring_prep_write(sqe, fd, base, len, at);
    } else {
        n = MIN(n, (uint32_t)IOV_MAX);
        if (request->op == BLOCK_READ)
            io_uring_prep_readv(sqe, fd, iov, n, at);
        else
            io_uring_prep_writev(sqe, fd, iov, n, at);
    }
    if (request->op == BLOCK_WRITE && request->fua && !is_synced_afterwards(request))
        sqe->rw_flags = RWF_DSYNC;
    loop_sqe_op(sqe, &request->state.op);
}

static void submit_vectored(struct block_request *request)
{
    request->state.op.done = vectored_done;
    advance(request, &request->state.iov_index, &request->state.iov_offset, 0);
    next_vectored(request);
}

/* ---- READ and WRITE through the bounce pool ---- */

/* Copies between the guest's memory and `buffer`, and moves the cursor. Each byte is touched once. */
static void copy_data(const struct block_request *request, uint32_t *index, size_t *offset,
                      uint8_t *buffer, size_t len)
{
    while (len > 0 && *index < request->n_iov) {
        const struct iovec *iov = &request->iov[*index];
        size_t n = MIN(iov->iov_len - *offset, len);

        if (n) {
            uint8_t *guest = (uint8_t *)iov->iov_base + *offset;

            if (request->op == BLOCK_READ)
                memcpy(guest, buffer, n);
            else
                memcpy(buffer, guest, n);
        }
        buffer += n;
        len -= n;
        *offset += n;
        if (*offset == iov->iov_len) {
            *offset = 0;
            ++*index;
        }
    }
}

static bool handed_out(const struct block_request *request)
{
    return request->state.result < 0 || request->state.progress == request->len;
}

static void issue_piece(struct block_channel *channel, struct bounce_piece *piece)
{
    unsigned unit = (unsigned)(piece - channel->pieces);
    uint8_t *buffer = bounce_pool_at(&channel->pool, unit) + piece->done;
    unsigned len = piece->len - piece->done;
    uint64_t at = piece->offset + piece->done;
    int fixed = channel->pool.buffer;
    int fd = channel->block->fd;
    struct io_uring_sqe *sqe = loop_sqe(channel->loop);

    if (piece->request->op == BLOCK_READ) {
        if (fixed >= 0)
            io_uring_prep_read_fixed(sqe, fd, buffer, len, at, fixed);
        else
            io_uring_prep_read(sqe, fd, buffer, len, at);
    } else {
        if (fixed >= 0)
            io_uring_prep_write_fixed(sqe, fd, buffer, len, at, fixed);
        else
            io_uring_prep_write(sqe, fd, buffer, len, at);
        if (piece->request->fua)
            sqe->rw_flags = RWF_DSYNC;
    }
    loop_sqe_op(sqe, &piece->op);
}

static void piece_done(struct loop_op *op, int result, bool more)
{
    struct bounce_piece *piece = container_of(op, struct bounce_piece, op);
    struct block_request *request = piece->request;
    struct block_channel *channel = request->state.channel;
    unsigned unit = (unsigned)(piece - channel->pieces);

    (void)more;
    if (may_retry(result, &piece->retries)) {
        issue_piece(channel, piece);
        return;
    }
    if (result > 0) {
        piece->done += (uint32_t)result;
        if (piece->done < piece->len) {
            issue_piece(channel, piece);
            return;
        }
        /* Only now: of a read that fails, nothing of the buffer may reach the guest. */
        if (request->op == BLOCK_READ)
            copy_data(request, &piece->iov_index, &piece->iov_offset,
                      bounce_pool_at(&channel->pool, unit), piece->len);
    } else if (request->state.result == 0) {
        /* The image ends within the piece: 0, or EINVAL for the unaligned rest. */
        bool short_image = result == 0 || (result == -EINVAL && piece->done);

        request->state.result = short_image ? -EIO : result;
    }
    bounce_pool_give(&channel->pool, unit, piece->len);
    request->state.pieces--;
    start_bounced(channel);
    if (request->state.pieces == 0 && handed_out(request))
        finish(request, request->state.result);
}

/* False: the pool has no room for the next piece now. */
static bool start_piece(struct block_channel *channel, struct block_request *request)
{
    uint64_t rest = request->len - request->state.progress;
    uint32_t len = (uint32_t)MIN(rest, (uint64_t)BOUNCE_RUN_MAX);
    int unit = bounce_pool_take(&channel->pool, len);

    if (unit < 0)
        return false;
    struct bounce_piece *piece = &channel->pieces[unit];
    piece->op.done = piece_done;
    piece->request = request;
    piece->offset = request->offset + request->state.progress;
    piece->len = len;
    piece->done = 0;
    piece->retries = 0;
    piece->iov_index = request->state.iov_index;
    piece->iov_offset = request->state.iov_offset;
    request->state.progress += len;
    request->state.pieces++;
    if (request->op == BLOCK_WRITE)
        copy_data(request, &request->state.iov_index, &request->state.iov_offset,
                  bounce_pool_at(&channel->pool, (unsigned)unit), len);
    else if (request->state.progress < request->len)
        advance(request, &request->state.iov_index, &request->state.iov_offset, len);
    issue_piece(channel, piece);
    return true;
}

/*
 * Serves the queue from its head as far as the pool allows. A request that waits for a long run gets
 * it, since nobody else takes from the pool until it does. Never finishes a request: what is taken off
 * the queue here has pieces in flight, or is finished by the caller, whose last piece failed.
 */
static void start_bounced(struct block_channel *channel)
{
    struct block_request *request;

    while ((request = channel->waiting) != NULL) {
        while (!handed_out(request))
            if (!start_piece(channel, request))
                return;
        channel->waiting = request->state.next;
        if (!channel->waiting)
            channel->waiting_tail = &channel->waiting;
    }
}

static void submit_bounced(struct block_request *request)
{
    struct block_channel *channel = request->state.channel;

    if (!channel->waiting)
        while (start_piece(channel, request))
            if (handed_out(request))
                return;
    request->state.next = NULL;
    *channel->waiting_tail = request;
    channel->waiting_tail = &request->state.next;
}

/* ---- DISCARD and WRITE_ZEROES ---- */

/* liburing's own changed the types of its arguments between versions. */
static void prep_fallocate(struct io_uring_sqe *sqe, int fd, unsigned mode, uint64_t at,
                           uint64_t len)
{
    io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, fd, NULL, mode, at);
    sqe->addr = len;
}

static void range_done(struct loop_op *op, int result, bool more)
{
    struct block_request *request = request_of(op);
    struct block_backend *block = request->state.channel->block;

    (void)more;
    if (result == -EOPNOTSUPP && request->op == BLOCK_WRITE_ZEROES &&
        request->state.step < ZERO_BY_WRITING) {
        /* Remembered: this request goes on with the next step, and later ones need not try. */
        atomic_store_explicit(request->state.step == ZERO_BY_PUNCH_HOLE ? &block->no_punch_hole
                                                                       : &block->no_zero_range,
                              true, memory_order_relaxed);
    } else if (result < 0 || (result == 0 && request->state.step == ZERO_BY_WRITING)) {
        if (!may_retry(result, &request->state.retries)) {
            finish(request, result ? result : -EIO);
            return;
        }
    } else {
        /* fallocate does all or nothing; a write may be short. */
        uint64_t rest = request->len - request->state.progress;
        uint64_t done = request->state.step == ZERO_BY_WRITING ? (uint64_t)result
                                                               : MIN(rest, BLOCK_RANGE_MAX);

        request->state.progress += MIN(done, rest);
    }
    next_range(request);
}

static void next_range(struct block_request *request)
{
    struct block_channel *channel = request->state.channel;
    struct block_backend *block = channel->block;
    uint64_t at = request->offset + request->state.progress;
    uint64_t rest = request->len - request->state.progress;

    if (rest == 0) {
        if (request->op == BLOCK_WRITE_ZEROES && request->fua)
            submit_fsync(request);
        else
            finish(request, 0);
        return;
    }
    if (request->state.step == ZERO_BY_PUNCH_HOLE && request->op == BLOCK_WRITE_ZEROES &&
        (!request->unmap || atomic_load_explicit(&block->no_punch_hole, memory_order_relaxed)))
        request->state.step = ZERO_BY_ZERO_RANGE;
    if (request->state.step == ZERO_BY_ZERO_RANGE &&
        atomic_load_explicit(&block->no_zero_range, memory_order_relaxed))
        request->state.step = ZERO_BY_WRITING;

    struct io_uring_sqe *sqe = loop_sqe(channel->loop);
    uint64_t len = MIN(rest, BLOCK_RANGE_MAX);
    if (request->state.step == ZERO_BY_PUNCH_HOLE)
        prep_fallocate(sqe, block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len);
    else if (request->state.step == ZERO_BY_ZERO_RANGE)
        prep_fallocate(sqe, block->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len);
    else if (rest >= ZEROS_LEN)
        io_uring_prep_writev(sqe, block->fd, zeros_iov,
                             (unsigned)MIN(rest / ZEROS_LEN, (uint64_t)ZEROS_IOV), at);
    else
        io_uring_prep_write(sqe, block->fd, zeros, (unsigned)rest, at);
    loop_sqe_op(sqe, &request->state.op);
}

/* On files and block devices alike: the kernel knows PUNCH_HOLE and ZERO_RANGE for both. */
static void submit_range(struct block_request *request)
{
    request->state.op.done = range_done;
    request->state.step = ZERO_BY_PUNCH_HOLE;
    next_range(request);
}

/* ---- the interface ---- */

/* 0, or why the request cannot be. */
static int check(const struct block_backend *block, const struct block_request *request)
{
    uint64_t unit = request->op == BLOCK_READ || request->op == BLOCK_WRITE
                        ? (block->direct ? block->info.logical_block : 1)
                        : 512;

    if (request->op == BLOCK_FLUSH)
        return 0; /* the kernel is to say what it has to say, whatever becomes of it */
    if (request->fua && block_flush_error(block) != 0)
        return block_flush_error(block);
    if (block->info.read_only && request->op != BLOCK_READ)
        return -EROFS;
    if (request->offset % unit || request->len % unit || request->offset > INT64_MAX ||
        request->len > INT64_MAX - request->offset)
        return -EINVAL;
    return 0;
}

/* O_DIRECT takes the request's own memory: no bounce buffer is needed. */
static bool is_direct(const struct block_backend *block, const struct block_request *request)
{
    uintptr_t all = 0;

    if (!request->pinnable)
        return false;
    for (uint32_t i = 0; i < request->n_iov; i++)
        all |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
    return all % block->info.logical_block == 0;
}

void block_submit(struct block_channel *channel, struct block_request *request)
{
    struct block_backend *block = channel->block;

    request->state.channel = channel;
    request->state.progress = 0;
    request->state.iov_index = 0;
    request->state.iov_offset = 0;
    request->state.pieces = 0;
    request->state.result = 0;
    request->state.retries = 0;
    request->state.step = 0;

    int err = check(block, request);
    if (err || (request->len == 0 && request->op != BLOCK_FLUSH)) {
        finish(request, err);
        return;
    }
    switch (request->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        if (block->direct && !is_direct(block, request))
            submit_bounced(request);
        else
            submit_vectored(request);
        return;
    case BLOCK_FLUSH:
        submit_fsync(request);
        return;
    case BLOCK_WRITE_ZEROES:
        submit_range(request);
        return;
    case BLOCK_DISCARD:
        if (block->info.is_block_device)
            block_sync_submit(request);
        else
            submit_range(request);
        return;
    case BLOCK_SECURE_ERASE:
        if (block->info.is_block_device)
            block_sync_submit(request);
        else
            finish(request, -EOPNOTSUPP);
        return;
    }
    finish(request, -EOPNOTSUPP);
}

int block_create(int fd, const struct block_info *info, struct block_backend **out)
{
    struct block_backend *block;

    /* O_DIRECT divides by it, and the pool's units must be multiples of it or divide it. */
    if (info->logical_block < 512 || (info->logical_block & (info->logical_block - 1)) ||
        info->logical_block > BOUNCE_RUN_MAX)
        return -EINVAL;
    block = calloc(1, sizeof(*block));
    if (!block)
        return -ENOMEM;
    block->fd = fd;
    block->info = *info;
    block->direct = info->cache == BLOCK_CACHE_NONE;
    atomic_init(&block->no_punch_hole, false);
    atomic_init(&block->no_zero_range, false);
    atomic_init(&block->flush_error, 0);
    *out = block;
    return 0;
}

void block_destroy(struct block_backend *block)
{
    if (!block)
        return;
    close(block->fd);
    free(block);
}

int block_channel_create(struct block_backend *block, struct event_loop *loop,
                         struct block_channel **out)
{
    struct block_channel *channel = calloc(1, sizeof(*channel));
    int err = -ENOMEM;

    if (!channel)
        return -ENOMEM;
    channel->block = block;
    channel->loop = loop;
    channel->waiting_tail = &channel->waiting;
    if (block->direct) {
        channel->pieces = calloc(BOUNCE_UNITS, sizeof(*channel->pieces));
        if (!channel->pieces)
            goto fail;
        err = bounce_pool_create(loop_ring(loop), &channel->pool);
        if (err)
            goto fail;
    }
    *out = channel;
    return 0;
fail:
    block_channel_destroy(channel);
    return err;
}

void block_channel_destroy(struct block_channel *channel)
{
    if (!channel)
        return;
    block_sync_settle();
    bounce_pool_destroy(&channel->pool);
    free(channel->pieces);
    free(channel);
}

int64_t block_size(struct block_backend *block)
{
    uint64_t size;
    off_t end;

    /* Not lseek: on a block device that waits for a discard in progress, and the guest's CPU with it. */
    if (block->info.is_block_device) {
        if (ioctl(block->fd, BLKGETSIZE64, &size))
            return -errno;
        end = (off_t)MIN(size, (uint64_t)INT64_MAX);
    } else {
        end = lseek(block->fd, 0, SEEK_END);
        if (end < 0)
            return -errno;
    }
    return end - end % block->info.logical_block;
}
