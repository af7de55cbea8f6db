/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Discards on block devices are ioctls that block: one thread of the worker does them, for all
 * devices in turn, in pieces, so that a large one holds up neither the others nor the end of the
 * worker.
 */
#include <errno.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "block_internal.h"

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct block_request *head, **tail;
    bool started;
} sync_thread = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .tail = &sync_thread.head,
};

static void enqueue(struct block_request *request)
{
    request->state.next = NULL;
    *sync_thread.tail = request;
    sync_thread.tail = &request->state.next;
}

/* In the loop's thread. */
static void answered(struct loop_work *work)
{
    struct block_request *request = container_of(work, struct block_request, state.answer);

    request->done(request, request->state.result);
}

/* Does one piece. True: the request is over. */
static bool do_piece(struct block_request *request)
{
    uint64_t rest = request->len - request->state.progress;
    uint64_t range[2] = {request->offset + request->state.progress, MIN(rest, BLOCK_RANGE_MAX)};
    unsigned long command = request->op == BLOCK_SECURE_ERASE ? BLKSECDISCARD : BLKDISCARD;

    if (ioctl(request->state.channel->block->fd, command, range)) {
        if (errno == EINTR && request->state.retries++ < 16)
            return false;
        request->state.result = -errno;
        return true;
    }
    request->state.progress += range[1];
    return request->state.progress == request->len;
}

static void *sync_main(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&sync_thread.lock);
    for (;;) {
        struct block_request *request = sync_thread.head;

        if (!request) {
            pthread_cond_wait(&sync_thread.work, &sync_thread.lock);
            continue;
        }
        sync_thread.head = request->state.next;
        if (!sync_thread.head)
            sync_thread.tail = &sync_thread.head;
        pthread_mutex_unlock(&sync_thread.lock);
        bool over = do_piece(request);
        pthread_mutex_lock(&sync_thread.lock);
        if (over) /* with the lock held: see block_sync_settle */
            loop_post(request->state.channel->loop, &request->state.answer);
        else
            enqueue(request); /* the others' turn */
    }
    return NULL;
}

int block_sync_start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int err = 0;

    pthread_mutex_lock(&sync_thread.lock);
    if (sync_thread.started)
        goto out;
    err = pthread_attr_init(&attr);
    if (err)
        goto out;
    /* It ends with the process: its work is never more than what devices wait for. */
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&thread, &attr, sync_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    sync_thread.started = err == 0;
out:
    pthread_mutex_unlock(&sync_thread.lock);
    return -err;
}

void block_sync_submit(struct block_request *request)
{
    bool started;

    request->state.answer.run = answered;
    atomic_init(&request->state.answer.pending, false);
    pthread_mutex_lock(&sync_thread.lock);
    started = sync_thread.started;
    if (started) {
        enqueue(request);
        pthread_cond_signal(&sync_thread.work);
    }
    pthread_mutex_unlock(&sync_thread.lock);
    if (!started)
        request->done(request, -EOPNOTSUPP);
}

void block_sync_settle(void)
{
    pthread_mutex_lock(&sync_thread.lock);
    pthread_mutex_unlock(&sync_thread.lock);
}
