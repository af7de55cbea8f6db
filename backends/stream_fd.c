/* SPDX-License-Identifier: Apache-2.0 */
/* A descriptor watched for reading and for writing, one event for each wish. */
#include <poll.h>
#include <unistd.h>

#include "backend.h"

static void finish(struct stream_fd *fd)
{
    if (!fd->closing || fd->in_armed || fd->out_armed)
        return;
    close(fd->fd);
    fd->fd = -1;
    fd->closing = false;
    if (fd->closed != NULL)
        fd->closed(fd);
}

static void in_done(struct loop_op *op, int result, bool more)
{
    struct stream_fd *fd = container_of(op, struct stream_fd, in);

    (void)result, (void)more;
    fd->in_armed = false;
    if (fd->closing)
        finish(fd);
    else
        fd->readable(fd);
}

static void out_done(struct loop_op *op, int result, bool more)
{
    struct stream_fd *fd = container_of(op, struct stream_fd, out);

    (void)result, (void)more;
    fd->out_armed = false;
    if (fd->closing)
        finish(fd);
    else
        fd->writable(fd);
}

void stream_fd_open(struct stream_fd *fd, struct event_loop *loop, int number)
{
    fd->loop = loop;
    fd->fd = number;
    fd->in.done = in_done;
    fd->out.done = out_done;
    fd->in_armed = fd->out_armed = fd->closing = false;
}

static void watch(struct stream_fd *fd, struct loop_op *op, short events)
{
    struct io_uring_sqe *sqe = loop_sqe(fd->loop);

    io_uring_prep_poll_add(sqe, fd->fd, (unsigned)events);
    loop_sqe_op(sqe, op);
}

void stream_fd_want_read(struct stream_fd *fd)
{
    if (!stream_fd_is_open(fd) || fd->in_armed)
        return;
    fd->in_armed = true;
    watch(fd, &fd->in, POLLIN);
}

void stream_fd_want_write(struct stream_fd *fd)
{
    if (!stream_fd_is_open(fd) || fd->out_armed)
        return;
    fd->out_armed = true;
    watch(fd, &fd->out, POLLOUT);
}

static void forget(struct stream_fd *fd, struct loop_op *op)
{
    struct io_uring_sqe *sqe = loop_sqe(fd->loop);

    io_uring_prep_poll_remove(sqe, (__u64)(uintptr_t)op);
    loop_sqe_op(sqe, NULL);
}

void stream_fd_close(struct stream_fd *fd)
{
    if (!stream_fd_is_open(fd))
        return;
    fd->closing = true;
    if (fd->in_armed)
        forget(fd, &fd->in);
    if (fd->out_armed)
        forget(fd, &fd->out);
    finish(fd);
}
