/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy device (VIRTIO 1.2, 5.4): random numbers of the host's kernel.
 *
 * A guest gets at most max-bytes in each period; when they are used up its requests wait in the ring
 * for the next one. A reset does not renew them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "config.h"
#include "devices/table.h"
#include "log.h"
#include "stats.h"

#define QUEUE_SIZE 64u
/* 5.4.6.2 allows to use less than the buffer: one request takes bounded time. */
#define REQUEST_MAX 4096u
/* getrandom gives as many at once, whole or not at all. */
#define PIECE 256u
/* When the host's kernel has no entropy yet. */
#define RETRY_NS (INT64_C(1) * 1000000000)

struct rng {
    struct virtio_device *dev;
    uint64_t max_bytes; /* 0: no limit */
    int64_t period_ns;
    /* I/O thread of the queue. */
    struct virtqueue *vq;
    struct loop_timer timer; /* set: the queue is held */
    uint64_t left;           /* bytes ... */
    int64_t until_ns;        /* ... in the period that ends then */
};

static void wait_until(struct rng *rng, int64_t delay_ns)
{
    virtio_queue_hold(rng->dev, rng->vq);
    loop_set_timer(virtio_queue_loop(rng->dev, rng->vq), &rng->timer, delay_ns);
}

static void rng_waited(struct loop_timer *timer)
{
    struct rng *rng = container_of(timer, struct rng, timer);

    virtio_queue_release(rng->dev, rng->vq);
}

/* How many bytes may be given now; if none, the queue waits. */
static uint64_t allowance(struct rng *rng)
{
    int64_t now;

    if (rng->max_bytes == 0)
        return UINT64_MAX;
    now = monotonic_ns();
    if (now >= rng->until_ns) {
        rng->left = rng->max_bytes;
        rng->until_ns = now + rng->period_ns;
    }
    if (rng->left == 0)
        wait_until(rng, rng->until_ns - now);
    return rng->left;
}

static void serve(struct rng *rng, struct chain *chain, size_t most)
{
    struct queue_stats *stats = &rng->dev->stats->queues[0];
    size_t want = chain->faulted ? 0 : MIN(most, (size_t)chain->writable_bytes);
    size_t written = 0;
    uint8_t bytes[PIECE];

    while (written < want) {
        ssize_t n = getrandom(bytes, MIN(want - written, sizeof(bytes)), GRND_NONBLOCK);

        if (n <= 0) {
            log_host("%s: no random numbers: %s", rng->dev->name, strerror(errno));
            wait_until(rng, RETRY_NS);
            break;
        }
        written += chain_write(chain, bytes, (size_t)n);
    }
    explicit_bzero(bytes, sizeof(bytes));
    if (rng->max_bytes != 0)
        rng->left -= written;
    stat_add(&stats->requests, 1);
    stat_add(&stats->read_bytes, written);
    stat_add(&stats->errors, written == 0);
    chain_complete(chain, (uint32_t)written);
}

static int rng_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct rng *rng = dev->priv;
    struct chain *chain;
    uint64_t most;
    int taken = 0, ret;

    while (taken < budget && rng->timer.due_ns == 0 && (most = allowance(rng)) > 0) {
        ret = virtqueue_pop(vq, &chain);
        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        serve(rng, chain, (size_t)MIN(most, (uint64_t)REQUEST_MAX));
    }
    return taken;
}

static void rng_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    ((struct rng *)dev->priv)->vq = vq;
}

static void rng_queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    loop_cancel_timer(virtio_queue_loop(dev, vq), &((struct rng *)dev->priv)->timer);
}

static void rng_reset(struct virtio_device *dev) { (void)dev; }

static int rng_create(struct virtio_device *dev, const struct device_config *config, char *error,
                      size_t error_len)
{
    struct rng *rng = calloc(1, sizeof(*rng));

    if (rng == NULL) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    rng->dev = dev;
    rng->max_bytes = device_config_uint(config, "max-bytes");
    rng->period_ns = (int64_t)device_config_uint(config, "period") * 1000000;
    rng->timer.expired = rng_waited;
    dev->priv = rng;
    dev->n_queues = 1;
    dev->queue_size = QUEUE_SIZE;
    return 0;
}

static void rng_destroy(struct virtio_device *dev) { free(dev->priv); }

static const struct feature rng_features[] = {{0, NULL}};

const struct virtio_device_ops virtio_rng_ops = {
    .name = "rng",
    .id = 4,
    .request_size = sizeof(struct chain),
    .features = rng_features,
    .create = rng_create,
    .queue_started = rng_queue_started,
    .queue_work = rng_queue_work,
    .queue_stopped = rng_queue_stopped,
    .reset = rng_reset,
    .destroy = rng_destroy,
};
