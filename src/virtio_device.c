/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio_device.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "log.h"
#include "stats.h"
#include "virtio_device_internal.h"

#ifndef VIRTIO_F_NOTIFICATION_DATA
#define VIRTIO_F_NOTIFICATION_DATA 38 /* Linux 6.4 */
#endif

#define BIT64(n) (UINT64_C(1) << (n))
/* When an interrupt that could not be raised is tried again: at first, and at most. */
#define RAISE_FIRST_NS INT64_C(10000000)
#define RAISE_MAX_NS INT64_C(1000000000)

void virtio_device_publish_status(struct virtio_device *dev)
{
    atomic_store_explicit(&dev->stats->status, status_of(dev), memory_order_relaxed);
    atomic_store_explicit(&dev->stats->features, dev->features, memory_order_relaxed);
}

/* ---- interrupts: any thread ---- */

static int raise_irq(struct virtio_device *dev)
{
    int ret = dev->hv->ops->raise_irq(dev->hv, dev->irq);

    if (ret < 0)
        log_host("%s: cannot raise interrupt %u: %s", dev->name, dev->irq, strerror(-ret));
    return ret;
}

/*
 * Sets a bit of InterruptStatus and raises the interrupt. While the driver has not acknowledged an
 * earlier one there is no need to raise it again: it will look at the rings. But it may have looked
 * just before this event and acknowledge just after it (4.2.3.4.1 lets it handle first, then
 * acknowledge); events_since_isr_read, set before the bit, tells virtio_device_acknowledge.
 */
void virtio_device_interrupt(struct virtio_device *dev, uint32_t bit)
{
    int ret;

    if ((bit & VIRTIO_MMIO_INT_CONFIG) != 0)
        state_store64(&dev->state->config_changed, 1);
    atomic_fetch_or(&dev->events_since_isr_read, bit);
    if ((atomic_fetch_or(&dev->isr, bit) & bit) != 0)
        return;
    atomic_store_explicit(&dev->irq_raised_ns, monotonic_ns(), memory_order_relaxed);
    ret = raise_irq(dev);
    /* A driver that hears nothing acknowledges nothing, and no later event would be raised. */
    if (ret < 0 && !atomic_exchange(&dev->raises_again, true))
        loop_post(dev->mmio_loop, &dev->raise_again);
}

static void run_raise_again(struct loop_work *work)
{
    struct virtio_device *dev = container_of(work, struct virtio_device, raise_again);

    dev->raise_ns = RAISE_FIRST_NS;
    loop_set_timer(dev->mmio_loop, &dev->raise_timer, dev->raise_ns);
}

static void raise_now(struct loop_timer *timer)
{
    struct virtio_device *dev = container_of(timer, struct virtio_device, raise_timer);

    atomic_store(&dev->raises_again, false); /* first: another thread may fail just now */
    if (atomic_load(&dev->isr) == 0 || raise_irq(dev) == 0 || atomic_exchange(&dev->raises_again, true))
        return;
    dev->raise_ns = MIN(2 * dev->raise_ns, RAISE_MAX_NS);
    loop_set_timer(dev->mmio_loop, timer, dev->raise_ns);
}

/* Two traps and what the guest does around them: hardware and load decide, so it is measured. */
static void learn_irq_cost(struct virtio_device *dev)
{
    int64_t raised = atomic_exchange_explicit(&dev->irq_raised_ns, 0, memory_order_relaxed);
    int64_t old = atomic_load_explicit(&dev->irq_cost_ns, memory_order_relaxed), cost;

    if (raised == 0)
        return;
    cost = MAX(MIN(monotonic_ns() - raised, IRQ_COST_MAX_NS), IRQ_COST_MIN_NS);
    atomic_store_explicit(&dev->irq_cost_ns, (7 * old + cost) / 8, memory_order_relaxed);
}

/*
 * An event came after the driver read InterruptStatus. Most drivers acknowledge first and look at the
 * rings then, and see it; one more interrupt would cost them two traps for nothing. So a while later
 * the rings tell whether this driver has seen it.
 */
void virtio_device_acknowledge(struct virtio_device *dev, uint32_t bits)
{
    uint32_t missed;

    learn_irq_cost(dev);
    bits &= atomic_fetch_and(&dev->isr, ~bits);
    missed = bits & atomic_fetch_and(&dev->events_since_isr_read, ~bits);
    if ((missed & VIRTIO_MMIO_INT_CONFIG) != 0)
        virtio_device_interrupt(dev, VIRTIO_MMIO_INT_CONFIG); /* it stays changed */
    else if ((bits & VIRTIO_MMIO_INT_CONFIG) != 0)
        state_store64(&dev->state->config_changed, 0);
    if ((missed & VIRTIO_MMIO_INT_VRING) != 0)
        for (unsigned i = 0; i < dev->n_queues; i++)
            if (dev->queues[i].phase == QUEUE_RUNNING && !dev->queues[i].start_deferred)
                loop_post(dev->queues[i].loop, &dev->queues[i].recheck);
}

bool virtio_device_set_needs_reset(struct virtio_device *dev)
{
    uint8_t old = atomic_fetch_or(&dev->status, VIRTIO_CONFIG_S_NEEDS_RESET);

    if ((old & VIRTIO_CONFIG_S_NEEDS_RESET) != 0)
        return false;
    device_state_set_broken(dev->state, true);
    stat_add(&dev->stats->needs_reset, 1);
    virtio_device_publish_status(dev);
    if ((old & VIRTIO_CONFIG_S_DRIVER_OK) != 0) /* 2.1.2 */
        virtio_device_interrupt(dev, VIRTIO_MMIO_INT_CONFIG);
    return true;
}

void virtio_device_broken(struct virtio_device *dev, const char *why)
{
    if (virtio_device_set_needs_reset(dev))
        log_guest("%s: needs reset: the driver broke the protocol: %s", dev->name, why);
}

/* ---- starting and stopping: MMIO thread ---- */

static void clear_queue_registers(struct virtio_queue *q)
{
    q->size = q->dev->queue_size;
    q->desc = q->driver = q->device = (gpa_t){0};
}

/* All that are ready. */
static void start_queues(struct virtio_device *dev)
{
    bool starting[VIRTIO_QUEUES_MAX] = {false};

    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];

        if (q->phase != QUEUE_READY)
            continue;
        starting[i] = true;
        q->phase = QUEUE_RUNNING;
        virtqueue_reset_state(q->vq);
    }
    /* A successor must know that they run before they do. */
    virtio_device_save(dev);
    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];

        if (starting[i] && dev->pausing)
            q->start_deferred = true;
        else if (starting[i])
            loop_post(q->loop, &q->start);
    }
}

/* True if it is stopped already. */
static bool stop_queue(struct virtio_queue *q)
{
    switch (q->phase) {
    case QUEUE_OFF:
        return true;
    case QUEUE_READY:
        q->phase = QUEUE_OFF;
        return true;
    case QUEUE_RUNNING:
        if (q->start_deferred) {
            q->start_deferred = false;
            q->phase = QUEUE_OFF;
            return true;
        }
        q->phase = QUEUE_STOPPING;
        q->dev->stops_pending++;
        loop_post(q->loop, &q->stop);
        return false;
    case QUEUE_STOPPING:
        return false;
    }
    return true;
}

static void finish_reset(struct virtio_device *dev)
{
    dev->ops->reset(dev);
    dev->features = 0;
    dev->driver_features = 0;
    atomic_store(&dev->isr, 0);
    atomic_store(&dev->events_since_isr_read, 0);
    atomic_store(&dev->irq_raised_ns, 0);
    atomic_store(&dev->status, 0);
    for (unsigned i = 0; i < dev->n_queues; i++) {
        clear_queue_registers(&dev->queues[i]);
        dev->queues[i].reset_pending = false;
    }
    dev->resetting = false;
    /* In this order: what killed workers must not be taken up again by one that begins in between. */
    virtio_device_save(dev);
    device_state_set_broken(dev->state, false);
    stat_add(&dev->stats->resets, 1);
    virtio_device_publish_status(dev);
}

static void run_stopped(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, stopped);
    struct virtio_device *dev = q->dev;

    q->phase = QUEUE_OFF;
    dev->stops_pending--;
    if (q->reset_pending) {
        /* 2.6.1.1: as if it had just been reset; the driver sets it up anew. */
        q->reset_pending = false;
        clear_queue_registers(q);
    }
    virtio_device_save(dev);
    if (dev->queue_stop_done != NULL)
        dev->queue_stop_done(dev, virtqueue_index(q->vq));
    if (dev->resetting && dev->stops_pending == 0) {
        finish_reset(dev);
        if (dev->reset_done != NULL)
            dev->reset_done(dev);
    }
}

bool virtio_device_reset(struct virtio_device *dev)
{
    for (unsigned i = 0; i < dev->n_queues; i++)
        stop_queue(&dev->queues[i]);
    if (dev->stops_pending > 0) {
        dev->resetting = true;
        return false;
    }
    finish_reset(dev);
    return true;
}

bool virtio_queue_enable(struct virtio_device *dev, unsigned index)
{
    struct virtio_queue *q;
    uint8_t status = status_of(dev);

    if (index >= dev->n_queues || dev->resetting)
        return false;
    q = &dev->queues[index];
    if (q->phase != QUEUE_OFF || (status & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
        return false;
    q->setup = (struct virtqueue_setup){.size = q->size,
                                        .desc = q->desc,
                                        .driver = q->driver,
                                        .device = q->device,
                                        .features = dev->features};
    if (virtqueue_check(q->vq, &q->setup) < 0) {
        log_guest("%s: queue %u: the driver asked for size %u and addresses that cannot be",
                  dev->name, index, q->size);
        return false;
    }
    q->phase = QUEUE_READY;
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
        start_queues(dev);
    return true;
}

bool virtio_queue_disable(struct virtio_device *dev, unsigned index)
{
    return stop_queue(&dev->queues[index]);
}

void virtio_queue_kick(struct virtio_device *dev, unsigned index)
{
    struct virtio_queue *q;

    if (index >= dev->n_queues)
        return;
    q = &dev->queues[index];
    stat_add(&q->stats->kicks, 1);
    if (q->phase == QUEUE_RUNNING && !q->start_deferred)
        loop_post(q->loop, &q->kick);
}

static bool features_acceptable(const struct virtio_device *dev)
{
    return (dev->driver_features & ~dev->offered) == 0 &&
           (dev->driver_features & BIT64(VIRTIO_F_VERSION_1)) != 0 && /* 6.1: no legacy */
           /* 6.1: without it the addresses would be physical ones. */
           (dev->grants == NULL || (dev->driver_features & BIT64(VIRTIO_F_ACCESS_PLATFORM)) != 0);
}

void virtio_device_set_status(struct virtio_device *dev, uint8_t value)
{
    uint8_t old = status_of(dev), set;

    /* 2.1.1: the driver clears no bit but by reset; NEEDS_RESET is ours, and the others are nobody's. */
    set = value & (uint8_t)~old & STATUS_OF_DRIVER;
    if (dev->resetting || set == 0)
        return;
    if ((set & VIRTIO_CONFIG_S_FEATURES_OK) != 0) {
        if (features_acceptable(dev)) {
            dev->features = dev->driver_features;
            if (dev->ops->negotiated != NULL)
                dev->ops->negotiated(dev, dev->features);
        } else {
            log_guest("%s: the driver accepts features that were not offered, or not VERSION_1%s "
                      "(%#llx of %#llx)",
                      dev->name, dev->grants != NULL ? " and ACCESS_PLATFORM" : "", (unsigned long long)dev->driver_features,
                      (unsigned long long)dev->offered);
            set &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
        }
    }
    if ((set & VIRTIO_CONFIG_S_DRIVER_OK) != 0 &&
        ((old | set) & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
        set &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK; /* 3.1.1, steps 5 to 8 */
    atomic_fetch_or(&dev->status, set);
    virtio_device_publish_status(dev);
    if ((set & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
        start_queues(dev);
}

/* ---- pause ---- */

static void run_paused(struct loop_work *work)
{
    struct virtio_device *dev = container_of(work, struct virtio_queue, paused)->dev;

    if (--dev->pauses_pending == 0)
        dev->pause_done(dev);
}

void virtio_device_pause(struct virtio_device *dev, void (*paused)(struct virtio_device *dev))
{
    dev->pausing = true;
    dev->pause_done = paused;
    dev->pauses_pending = 1; /* ours, until all are posted */
    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];

        if (q->phase == QUEUE_STOPPING || (q->phase == QUEUE_RUNNING && !q->start_deferred)) {
            dev->pauses_pending++;
            loop_post(q->loop, &q->pause);
        }
    }
    if (--dev->pauses_pending == 0)
        paused(dev);
}

void virtio_device_resume(struct virtio_device *dev)
{
    dev->pausing = false;
    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];

        if (q->start_deferred) {
            q->start_deferred = false;
            loop_post(q->loop, &q->start);
        } else if (q->phase == QUEUE_RUNNING || q->phase == QUEUE_STOPPING) {
            loop_post(q->loop, &q->resume);
        }
    }
}

/* ---- configuration space ---- */

void virtio_device_set_config(struct virtio_device *dev, const void *config, size_t len)
{
    assert(len <= sizeof(dev->config));
    memcpy(dev->config, config, len);
    dev->config_len = (uint16_t)len;
}

void virtio_device_config_touched(struct virtio_device *dev)
{
    dev->config_generation++;
    virtio_device_save(dev);
}

void virtio_device_config_changed(struct virtio_device *dev)
{
    virtio_device_config_touched(dev);
    stat_add(&dev->stats->config_changes, 1);
    if ((status_of(dev) & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
        virtio_device_interrupt(dev, VIRTIO_MMIO_INT_CONFIG);
}

uint64_t virtio_device_read_config(struct virtio_device *dev, uint32_t offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size && i < 8; i++)
        if (offset < dev->config_len && i < dev->config_len - offset)
            value |= (uint64_t)dev->config[offset + i] << (8 * i);
    return value;
}

void virtio_device_write_config(struct virtio_device *dev, uint32_t offset, unsigned size,
                                uint64_t value)
{
    uint8_t bytes[8];

    if (dev->ops->config_write == NULL || size > sizeof(bytes) || offset >= dev->config_len ||
        size > dev->config_len - offset)
        return;
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    dev->ops->config_write(dev, offset, bytes, size);
}

/* ---- life ---- */

/* Each device begins with the next loop (slots and so interrupts are consecutive), and goes on from there. */
static struct event_loop *home_of(const struct virtio_device *dev,
                                  const struct virtio_environment *env, unsigned index)
{
    unsigned together = MAX(dev->ops->queues_together, 1);

    return env->io_loops[(dev->irq + (dev->ops->one_loop ? 0 : index / together)) % env->n_io_loops];
}

static void run_left(struct loop_work *work)
{
    container_of(work, struct virtio_queue, left)->dev->leaves_pending--;
}

static int create_queues(struct virtio_device *dev, const struct virtio_environment *env,
                         const struct device_config *device)
{
    dev->queues = calloc(dev->n_queues, sizeof(*dev->queues));
    if (dev->queues == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];
        const struct virtqueue_config config = {.memory = dev->memory,
                                                .index = (uint16_t)i,
                                                .size_max = dev->queue_size,
                                                .request_size = dev->ops->request_size,
                                                .owner = dev,
                                                .grants = dev->grants,
                                                .copy_max = (uint32_t)device_config_uint(
                                                    device, "grant-copy-max"),
                                                .error_status = dev->ops->error_status,
                                                .state = &dev->state->queues[i]};
        int ret = virtqueue_create(&config, &q->vq);

        if (ret < 0)
            return ret;
        q->dev = dev;
        q->loop = home_of(dev, env, i);
        q->stats = &dev->stats->queues[MIN(i, STATS_QUEUES_MAX - 1)];
        q->stopped.run = run_stopped;
        q->paused.run = run_paused;
        q->left.run = run_left;
        virtio_queue_init(q);
        clear_queue_registers(q);
    }
    return 0;
}

/* What rings and transport can do for every device, less what the administrator switched off. */
static uint64_t common_features(const struct device_config *config)
{
    uint64_t features = virtqueue_features() | BIT64(VIRTIO_F_NOTIFICATION_DATA);

    if (!device_config_bool(config, "packed"))
        features &= ~BIT64(VIRTIO_F_RING_PACKED);
    if (!device_config_bool(config, "in-order"))
        features &= ~BIT64(VIRTIO_F_IN_ORDER);
    if (!device_config_bool(config, "event-idx"))
        features &= ~BIT64(VIRTIO_RING_F_EVENT_IDX);
    if (!device_config_bool(config, "indirect"))
        features &= ~BIT64(VIRTIO_RING_F_INDIRECT_DESC);
    /* The driver is not to take what the device tree says of DMA for granted: it gives grants. */
    if (config->grant_usage)
        features |= BIT64(VIRTIO_F_ACCESS_PLATFORM);
    return features;
}

int virtio_device_create(const struct virtio_device_ops *ops, const struct virtio_environment *env,
                         const struct device_config *config, struct device_stats *stats,
                         struct virtio_device **out, char *error, size_t error_len)
{
    struct virtio_device *dev = calloc(1, sizeof(*dev));
    int ret;

    if (dev == NULL) {
        snprintf(error, error_len, "out of memory");
        return -ENOMEM;
    }
    dev->ops = ops;
    snprintf(dev->name, sizeof(dev->name), "%s", config->name);
    dev->irq = config->irq;
    dev->hv = env->hv;
    dev->memory = env->memory;
    if (config->grant_usage) {
        if (env->grants == NULL) {
            snprintf(error, error_len, "grant_usage=1, and there is no way to granted memory");
            ret = -EOPNOTSUPP;
            goto fail;
        }
        dev->grants = env->grants;
    }
    dev->mmio_loop = env->mmio_loop;
    dev->memory_stale = env->memory_stale;
    dev->raise_again.run = run_raise_again;
    dev->raise_timer.expired = raise_now;
    atomic_store(&dev->irq_cost_ns, IRQ_COST_FIRST_NS);
    dev->irq_hold_max_ns = HOLD_MAX_NS;
    dev->irq_nap_max_ns = NAP_MAX_NS;
    dev->ask = env->ask;
    dev->worker = env->worker;
    dev->stats = stats;
    ret = virtio_state_open(dev, env->state);
    if (ret < 0) {
        snprintf(error, error_len, "out of memory");
        goto fail;
    }
    ret = ops->create(dev, config, error, error_len);
    if (ret < 0)
        goto fail;
    if (dev->n_queues == 0 || dev->n_queues > VIRTIO_QUEUES_MAX) {
        snprintf(error, error_len, "%u queues: 1 to %u are possible", dev->n_queues,
                 VIRTIO_QUEUES_MAX);
        ret = -EINVAL;
        goto fail_device;
    }
    dev->offered |= common_features(config);
    ret = create_queues(dev, env, config);
    if (ret < 0) {
        snprintf(error, error_len, "cannot make %u queues of size %u: %s", dev->n_queues,
                 dev->queue_size, strerror(-ret));
        goto fail_device;
    }
    snprintf(stats->name, sizeof(stats->name), "%s", dev->name);
    atomic_store_explicit(&stats->device_id, ops->id, memory_order_relaxed);
    atomic_store_explicit(&stats->n_queues, dev->n_queues, memory_order_relaxed);
    atomic_store_explicit(&stats->offered, dev->offered, memory_order_relaxed);
    virtio_state_adopt(dev, env->sacrifice);
    virtio_device_publish_status(dev);
    if (ops->attach != NULL)
        ops->attach(dev);
    *out = dev;
    return 0;
fail_device:
    virtio_device_destroy(dev);
    return ret;
fail:
    virtio_state_close(dev);
    free(dev);
    return ret;
}

/*
 * A message to a queue that has stopped means nothing, but it is a part of the queue, and may still be in
 * its loop's inbox (the end of a pause, a new limit for interrupts). A last one arrives behind all others.
 */
bool virtio_device_detach(struct virtio_device *dev)
{
    if (!dev->leaving) {
        if (dev->ops->detach != NULL && !dev->ops->detach(dev))
            return false;
        dev->leaving = true;
        dev->leaves_pending = dev->n_queues;
        for (unsigned i = 0; i < dev->n_queues; i++)
            loop_post(dev->queues[i].loop, &dev->queues[i].leave);
    }
    return dev->leaves_pending == 0;
}

void virtio_device_destroy(struct virtio_device *dev)
{
    if (dev == NULL)
        return;
    loop_cancel_timer(dev->mmio_loop, &dev->raise_timer);
    dev->ops->destroy(dev);
    if (dev->queues != NULL)
        for (unsigned i = 0; i < dev->n_queues; i++)
            virtqueue_destroy(dev->queues[i].vq);
    atomic_store_explicit(&dev->stats->device_id, 0, memory_order_relaxed);
    free(dev->queues);
    virtio_state_close(dev);
    free(dev);
}

int virtio_device_ask(struct virtio_device *dev, uint32_t id, const char *request)
{
    return dev->ask != NULL ? dev->ask(dev, id, request) : -EOPNOTSUPP;
}
