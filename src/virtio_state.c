/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device as its registers show it, kept for a successor, and adopted by one: the MMIO thread's part.
 * What happens to requests is in virtqueue_state.c.
 *
 * An access that is not answered when the process dies is served again by the successor. So what an
 * access does may be done twice, and is kept before it is answered.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/mman.h>

#include "log.h"
#include "virtio_device_internal.h"

static_assert(DEVICE_STATE_QUEUES >= VIRTIO_QUEUES_MAX, "device_state.h");
static_assert(DEVICE_STATE_QUEUE_SIZE >= VIRTQUEUE_SIZE_MAX, "device_state.h");

int virtio_state_open(struct virtio_device *dev, struct device_state *state)
{
    assert(dev->ops->state_len <= DEVICE_STATE_OWN);
    dev->own_state = state == NULL;
    if (dev->own_state)
        state = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (state == MAP_FAILED)
        return -ENOMEM;
    dev->state = state;
    dev->own = state->own;
    dev->adopted = state_load64(&state->current) != 0;
    if (!dev->adopted)
        memset(dev->own, 0, dev->ops->state_len);
    return 0;
}

void virtio_state_close(struct virtio_device *dev)
{
    if (dev->own_state && dev->state != NULL)
        munmap(dev->state, sizeof(*dev->state));
    dev->state = NULL;
}

static uint8_t phase_to_keep(enum queue_phase phase)
{
    switch (phase) {
    case QUEUE_OFF:
        return STATE_QUEUE_OFF;
    case QUEUE_READY:
        return STATE_QUEUE_READY;
    case QUEUE_RUNNING:
    case QUEUE_STOPPING: /* it runs until it has stopped; the access that wants it will come again */
        return STATE_QUEUE_RUNNING;
    }
    return STATE_QUEUE_OFF;
}

void virtio_device_save(struct virtio_device *dev)
{
    struct state_transport t;

    if (!STATE_KEPT)
        return;
    /* All of it, with what lies between its members: the check is over bytes. */
    memset(&t, 0, offsetof(struct state_transport, queues) + dev->n_queues * sizeof(t.queues[0]));
    t.device_id = dev->ops->id;
    t.generation = dev->config_generation;
    t.driver_features = dev->driver_features;
    t.features = dev->features;
    t.device_features_sel = dev->device_features_sel;
    t.driver_features_sel = dev->driver_features_sel;
    t.queue_sel = dev->queue_sel;
    t.features_beyond = dev->features_beyond;
    t.status = status_of(dev) & (uint8_t)~VIRTIO_CONFIG_S_NEEDS_RESET; /* see `broken` */
    t.n_queues = dev->n_queues;
    for (unsigned i = 0; i < dev->n_queues; i++) {
        const struct virtio_queue *q = &dev->queues[i];

        t.queues[i] = (struct state_registers){.desc = q->desc.addr,
                                               .driver = q->driver.addr,
                                               .device = q->device.addr,
                                               .size = q->size,
                                               .phase = phase_to_keep(q->phase),
                                               .reset_pending = q->reset_pending};
    }
    device_state_save(dev->state, &t);
}

static const char *adopt_queue(struct virtio_queue *q, const struct state_registers *kept)
{
    uint8_t status = status_of(q->dev);

    q->size = kept->size;
    q->desc.addr = kept->desc;
    q->driver.addr = kept->driver;
    q->device.addr = kept->device;
    if (kept->phase == STATE_QUEUE_OFF)
        return NULL;
    if (kept->reset_pending) { /* 2.6.1.1: nothing of it is in flight any more: it is done */
        q->size = q->dev->queue_size;
        q->desc = q->driver = q->device = (gpa_t){0};
        return NULL;
    }
    q->setup = (struct virtqueue_setup){.size = q->size,
                                        .desc = q->desc,
                                        .driver = q->driver,
                                        .device = q->device,
                                        .features = q->dev->features};
    if ((status & VIRTIO_CONFIG_S_FEATURES_OK) == 0 || virtqueue_check(q->vq, &q->setup) < 0)
        return "a queue is not as it can be";
    q->phase = QUEUE_READY;
    if (kept->phase == STATE_QUEUE_READY)
        return NULL;
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) == 0)
        return "a queue runs without a driver";
    if (!device_state_broken(q->dev->state)) {
        q->phase = QUEUE_RUNNING;
        q->start_deferred = true;
        q->adopting = true;
    }
    return NULL;
}

/* NULL, or why the device cannot go on from there. */
static const char *adopt(struct virtio_device *dev, const struct state_transport *t)
{
    if (t->device_id != dev->ops->id || t->n_queues != dev->n_queues)
        return "it is that of another device";
    if ((t->status & ~STATUS_OF_DRIVER) != 0)
        return "its status cannot be";
    if ((t->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0 && (t->features & ~dev->offered) != 0)
        return "features were negotiated that are not offered any more";
    if ((t->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0 && dev->grants != NULL &&
        (t->features >> VIRTIO_F_ACCESS_PLATFORM & 1) == 0)
        return "its driver gives no grants";
    dev->driver_features = t->driver_features;
    dev->device_features_sel = t->device_features_sel;
    dev->driver_features_sel = t->driver_features_sel;
    dev->queue_sel = t->queue_sel;
    dev->features_beyond = t->features_beyond != 0;
    /* What the configuration space says may be different now. */
    dev->config_generation = t->generation + 1;
    atomic_store(&dev->status, t->status);
    if ((t->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0) {
        dev->features = t->features;
        if (dev->ops->adopt != NULL) {
            if (!dev->ops->adopt(dev, dev->features))
                return "what its type keeps there cannot be";
        } else if (dev->ops->negotiated != NULL) {
            dev->ops->negotiated(dev, dev->features);
        }
    }
    for (unsigned i = 0; i < dev->n_queues; i++) {
        const char *wrong = adopt_queue(&dev->queues[i], &t->queues[i]);

        if (wrong != NULL)
            return wrong;
    }
    return NULL;
}

static void give_up(struct virtio_device *dev)
{
    for (unsigned i = 0; i < dev->n_queues; i++) {
        struct virtio_queue *q = &dev->queues[i];

        if (q->phase == QUEUE_RUNNING) /* reads as ready, and never runs */
            q->phase = QUEUE_READY;
        q->start_deferred = q->adopting = false;
    }
    virtio_device_set_needs_reset(dev);
}

void virtio_state_adopt(struct virtio_device *dev, bool sacrifice)
{
    struct state_transport t;
    int ret = device_state_load(dev->state, &t);
    const char *wrong = "it is damaged";

    /* Nothing is in hand yet: one that dies before it takes this up does not die of it. */
    state_access_drop(&dev->state->serving);
    if (ret == 0) {
        device_state_set_broken(dev->state, false);
        state_store64(&dev->state->config_changed, 0);
        virtio_device_save(dev);
        return;
    }
    if (sacrifice)
        device_state_set_broken(dev->state, true);
    if (ret == 1)
        wrong = adopt(dev, &t);
    if (wrong != NULL) {
        log_error("%s: needs reset: what was kept of it is of no use: %s", dev->name, wrong);
        /* How far the driver got is not known: it is told in any case. */
        atomic_fetch_or(&dev->status, STATUS_OF_DRIVER & ~VIRTIO_CONFIG_S_FAILED);
        give_up(dev);
    } else if (device_state_broken(dev->state)) {
        if (sacrifice)
            log_error("%s: needs reset: going on with its requests kills the worker", dev->name);
        give_up(dev);
    }
    virtio_device_save(dev);
    /*
     * An interrupt may have been lost between publishing and raising it, and which one is not known: the
     * driver looks.
     */
    if ((status_of(dev) & VIRTIO_CONFIG_S_DRIVER_OK) == 0)
        return;
    virtio_device_interrupt(dev, VIRTIO_MMIO_INT_VRING);
    if (state_load64(&dev->state->config_changed) != 0)
        virtio_device_interrupt(dev, VIRTIO_MMIO_INT_CONFIG);
}
