/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio_mmio.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#ifndef VIRTIO_MMIO_QUEUE_RESET
#define VIRTIO_MMIO_QUEUE_RESET 0x0c0 /* VIRTIO 1.2; not in the kernel's header */
#endif
#ifndef VIRTIO_F_RING_RESET
#define VIRTIO_F_RING_RESET 40
#endif

#define MAGIC 0x74726976u  /* "virt" */
#define VERSION 2u
#define VENDOR 0x444f4956u /* "VIOD" */

/* Writes that wait for quiet queues: at most one per vCPU, and Xen on Arm has at most 128. */
#define WAITING_MAX 128u
/* How long a write may keep its vCPU waiting for I/O of the host. */
#define WAIT_BOUND_NS (INT64_C(30) * 1000000000)

#define ALL_QUEUES UINT32_MAX

struct waiting {
    struct mmio_request request;
    uint32_t queue; /* or ALL_QUEUES: a reset */
};

struct virtio_mmio {
    struct virtio_device *dev;
    void (*finished)(struct virtio_mmio *mmio, void *arg, const struct mmio_request *request);
    void *arg;
    struct waiting waiting[WAITING_MAX];
    unsigned n_waiting;
    struct loop_timer bound;
};

enum outcome { DONE, WAIT_QUEUE, WAIT_RESET };

/* One 32-bit register. NULL: not readable (reads 0), not writable (writes are ignored). */
struct mmio_register {
    uint16_t offset;
    uint32_t (*read)(struct virtio_mmio *mmio);
    enum outcome (*write)(struct virtio_mmio *mmio, uint32_t value);
};

static struct virtio_queue *selected(struct virtio_mmio *mmio)
{
    return mmio->dev->queue_sel < mmio->dev->n_queues ? &mmio->dev->queues[mmio->dev->queue_sel] : NULL;
}

/* A queue whose registers may be written: selected, and not enabled (4.2.2.2). */
static struct virtio_queue *selected_off(struct virtio_mmio *mmio)
{
    struct virtio_queue *q = selected(mmio);

    return q != NULL && q->phase == QUEUE_OFF ? q : NULL;
}

static uint8_t status_of(struct virtio_mmio *mmio)
{
    return atomic_load_explicit(&mmio->dev->status, memory_order_relaxed);
}

static uint32_t read_magic(struct virtio_mmio *mmio)
{
    (void)mmio;
    return MAGIC;
}

static uint32_t read_version(struct virtio_mmio *mmio)
{
    (void)mmio;
    return VERSION;
}

static uint32_t read_device_id(struct virtio_mmio *mmio)
{
    return mmio->dev->ops->id;
}

static uint32_t read_vendor(struct virtio_mmio *mmio)
{
    (void)mmio;
    return VENDOR;
}

static uint32_t read_device_features(struct virtio_mmio *mmio)
{
    if (mmio->dev->device_features_sel > 1)
        return 0;
    return (uint32_t)(mmio->dev->offered >> (32 * mmio->dev->device_features_sel));
}

static enum outcome write_device_features_sel(struct virtio_mmio *mmio, uint32_t value)
{
    mmio->dev->device_features_sel = value;
    return DONE;
}

static enum outcome write_driver_features(struct virtio_mmio *mmio, uint32_t value)
{
    struct virtio_device *dev = mmio->dev;
    unsigned shift = 32 * (mmio->dev->driver_features_sel & 1);

    /* 3.1.1: after FEATURES_OK the set is fixed, until a reset. */
    if ((status_of(mmio) & VIRTIO_CONFIG_S_FEATURES_OK) != 0)
        return DONE;
    if (mmio->dev->driver_features_sel > 1) {
        mmio->dev->features_beyond |= value != 0;
        return DONE;
    }
    dev->driver_features &= ~((uint64_t)UINT32_MAX << shift);
    dev->driver_features |= (uint64_t)value << shift;
    return DONE;
}

static enum outcome write_driver_features_sel(struct virtio_mmio *mmio, uint32_t value)
{
    mmio->dev->driver_features_sel = value;
    return DONE;
}

static enum outcome write_queue_sel(struct virtio_mmio *mmio, uint32_t value)
{
    mmio->dev->queue_sel = value;
    return DONE;
}

static uint32_t read_queue_size_max(struct virtio_mmio *mmio)
{
    return selected(mmio) != NULL ? mmio->dev->queue_size : 0;
}

static enum outcome write_queue_size(struct virtio_mmio *mmio, uint32_t value)
{
    struct virtio_queue *q = selected_off(mmio);

    /* A size that cannot be leaves the queue unusable; it must not start with another size than the
     * driver believes. */
    if (q != NULL)
        q->size = value <= mmio->dev->queue_size ? (uint16_t)value : 0;
    return DONE;
}

static uint32_t read_queue_ready(struct virtio_mmio *mmio)
{
    struct virtio_queue *q = selected(mmio);

    return q != NULL && q->phase != QUEUE_OFF;
}

static enum outcome write_queue_ready(struct virtio_mmio *mmio, uint32_t value)
{
    if (selected(mmio) == NULL)
        return DONE;
    if (value == 1)
        virtio_queue_enable(mmio->dev, mmio->dev->queue_sel);
    else if (value == 0 && !virtio_queue_disable(mmio->dev, mmio->dev->queue_sel))
        return WAIT_QUEUE;
    return DONE;
}

static enum outcome write_queue_notify(struct virtio_mmio *mmio, uint32_t value)
{
    /* With NOTIFICATION_DATA (2.9) the upper half says how far the driver got; we look ourselves. */
    bool with_data = virtio_has_feature(mmio->dev, 38);

    virtio_queue_kick(mmio->dev, with_data ? value & 0xffff : value);
    return DONE;
}

static uint32_t read_interrupt_status(struct virtio_mmio *mmio)
{
    /* Cleared before the bits are read: what comes later sets it again. */
    (void)atomic_exchange(&mmio->dev->events_since_isr_read, 0);
    return atomic_load(&mmio->dev->isr);
}

static enum outcome write_interrupt_ack(struct virtio_mmio *mmio, uint32_t value)
{
    virtio_device_acknowledge(mmio->dev, value);
    return DONE;
}

static uint32_t read_status(struct virtio_mmio *mmio)
{
    return status_of(mmio);
}

static void clear_selectors(struct virtio_mmio *mmio)
{
    mmio->dev->device_features_sel = 0;
    mmio->dev->driver_features_sel = 0;
    mmio->dev->queue_sel = 0;
    mmio->dev->features_beyond = false;
}

static enum outcome write_status(struct virtio_mmio *mmio, uint32_t value)
{
    if (value == 0) {
        if (!virtio_device_reset(mmio->dev))
            return WAIT_RESET;
        clear_selectors(mmio);
        return DONE;
    }
    if (mmio->dev->features_beyond)
        value &= ~(uint32_t)VIRTIO_CONFIG_S_FEATURES_OK;
    virtio_device_set_status(mmio->dev, (uint8_t)value);
    return DONE;
}

static void set_low(gpa_t *gpa, uint32_t value)
{
    gpa->addr = (gpa->addr & ~(uint64_t)UINT32_MAX) | value;
}

static void set_high(gpa_t *gpa, uint32_t value)
{
    gpa->addr = (gpa->addr & UINT32_MAX) | (uint64_t)value << 32;
}

#define AREA_REGISTERS(area)                                                                       \
    static enum outcome write_##area##_low(struct virtio_mmio *mmio, uint32_t value)               \
    {                                                                                              \
        struct virtio_queue *q = selected_off(mmio);                                               \
                                                                                                   \
        if (q != NULL)                                                                             \
            set_low(&q->area, value);                                                              \
        return DONE;                                                                               \
    }                                                                                              \
    static enum outcome write_##area##_high(struct virtio_mmio *mmio, uint32_t value)              \
    {                                                                                              \
        struct virtio_queue *q = selected_off(mmio);                                               \
                                                                                                   \
        if (q != NULL)                                                                             \
            set_high(&q->area, value);                                                             \
        return DONE;                                                                               \
    }
AREA_REGISTERS(desc)
AREA_REGISTERS(driver)
AREA_REGISTERS(device)

/* No device here has shared memory: length and base of every region read all ones (4.2.2). */
static uint32_t read_no_shared_memory(struct virtio_mmio *mmio)
{
    (void)mmio;
    return UINT32_MAX;
}

static uint32_t read_queue_reset(struct virtio_mmio *mmio)
{
    struct virtio_queue *q = selected(mmio);

    return q != NULL && q->reset_pending;
}

static enum outcome write_queue_reset(struct virtio_mmio *mmio, uint32_t value)
{
    struct virtio_queue *q = selected(mmio);

    if (q == NULL || value != 1 || q->phase == QUEUE_OFF || q->reset_pending ||
        !virtio_has_feature(mmio->dev, VIRTIO_F_RING_RESET))
        return DONE;
    /* The driver reads this register back until it is 0, so the write is answered at once. */
    q->reset_pending = true;
    if (virtio_queue_disable(mmio->dev, mmio->dev->queue_sel)) {
        q->reset_pending = false;
        q->size = mmio->dev->queue_size;
        q->desc = q->driver = q->device = (gpa_t){0};
    }
    return DONE;
}

static uint32_t read_config_generation(struct virtio_mmio *mmio)
{
    return mmio->dev->config_generation;
}

/* 4.2.2: in order of offset. */
static const struct mmio_register registers[] = {
    {VIRTIO_MMIO_MAGIC_VALUE, read_magic, NULL},
    {VIRTIO_MMIO_VERSION, read_version, NULL},
    {VIRTIO_MMIO_DEVICE_ID, read_device_id, NULL},
    {VIRTIO_MMIO_VENDOR_ID, read_vendor, NULL},
    {VIRTIO_MMIO_DEVICE_FEATURES, read_device_features, NULL},
    {VIRTIO_MMIO_DEVICE_FEATURES_SEL, NULL, write_device_features_sel},
    {VIRTIO_MMIO_DRIVER_FEATURES, NULL, write_driver_features},
    {VIRTIO_MMIO_DRIVER_FEATURES_SEL, NULL, write_driver_features_sel},
    {VIRTIO_MMIO_QUEUE_SEL, NULL, write_queue_sel},
    {VIRTIO_MMIO_QUEUE_NUM_MAX, read_queue_size_max, NULL},
    {VIRTIO_MMIO_QUEUE_NUM, NULL, write_queue_size},
    {VIRTIO_MMIO_QUEUE_READY, read_queue_ready, write_queue_ready},
    {VIRTIO_MMIO_QUEUE_NOTIFY, NULL, write_queue_notify},
    {VIRTIO_MMIO_INTERRUPT_STATUS, read_interrupt_status, NULL},
    {VIRTIO_MMIO_INTERRUPT_ACK, NULL, write_interrupt_ack},
    {VIRTIO_MMIO_STATUS, read_status, write_status},
    {VIRTIO_MMIO_QUEUE_DESC_LOW, NULL, write_desc_low},
    {VIRTIO_MMIO_QUEUE_DESC_HIGH, NULL, write_desc_high},
    {VIRTIO_MMIO_QUEUE_AVAIL_LOW, NULL, write_driver_low},
    {VIRTIO_MMIO_QUEUE_AVAIL_HIGH, NULL, write_driver_high},
    {VIRTIO_MMIO_QUEUE_USED_LOW, NULL, write_device_low},
    {VIRTIO_MMIO_QUEUE_USED_HIGH, NULL, write_device_high},
    {VIRTIO_MMIO_SHM_LEN_LOW, read_no_shared_memory, NULL},
    {VIRTIO_MMIO_SHM_LEN_HIGH, read_no_shared_memory, NULL},
    {VIRTIO_MMIO_SHM_BASE_LOW, read_no_shared_memory, NULL},
    {VIRTIO_MMIO_SHM_BASE_HIGH, read_no_shared_memory, NULL},
    {VIRTIO_MMIO_QUEUE_RESET, read_queue_reset, write_queue_reset},
    {VIRTIO_MMIO_CONFIG_GENERATION, read_config_generation, NULL},
};

static const struct mmio_register *find_register(uint32_t offset)
{
    for (size_t i = 0; i < ARRAY_SIZE(registers); i++)
        if (registers[i].offset == offset)
            return &registers[i];
    return NULL;
}

static void answer(struct virtio_mmio *mmio, uint32_t queue)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < mmio->n_waiting; i++)
        if (mmio->waiting[i].queue == queue)
            mmio->finished(mmio, mmio->arg, &mmio->waiting[i].request);
        else
            mmio->waiting[kept++] = mmio->waiting[i];
    mmio->n_waiting = kept;
    if (kept == 0)
        loop_cancel_timer(mmio->dev->mmio_loop, &mmio->bound);
}

static void reset_done(struct virtio_device *dev)
{
    struct virtio_mmio *mmio = dev->transport;

    clear_selectors(mmio);
    answer(mmio, ALL_QUEUES);
}

static void queue_stop_done(struct virtio_device *dev, unsigned index)
{
    answer(dev->transport, index);
}

/*
 * I/O of the host does not end. The vCPU gets its answer, but the truth with it: Status stays what it
 * was and QueueReady reads 1, so the driver knows that nothing was reset (4.2.2.1, 2.4.1).
 */
static void bound_reached(struct loop_timer *timer)
{
    struct virtio_mmio *mmio = container_of(timer, struct virtio_mmio, bound);

    log_host("%s: I/O of the host has not ended for 30 s; the guest's reset stays unfinished",
             mmio->dev->name);
    for (unsigned i = 0; i < mmio->n_waiting; i++)
        mmio->finished(mmio, mmio->arg, &mmio->waiting[i].request);
    mmio->n_waiting = 0;
}

/* False: there is no room, answer at once. */
static bool wait_for(struct virtio_mmio *mmio, uint32_t queue, const struct mmio_request *request)
{
    if (mmio->n_waiting == WAITING_MAX)
        return false;
    mmio->waiting[mmio->n_waiting++] = (struct waiting){.request = *request, .queue = queue};
    if (mmio->n_waiting == 1)
        loop_set_timer(mmio->dev->mmio_loop, &mmio->bound, WAIT_BOUND_NS);
    return true;
}

int virtio_mmio_create(struct virtio_device *dev,
                       void (*finished)(struct virtio_mmio *mmio, void *arg,
                                        const struct mmio_request *request),
                       void *arg, struct virtio_mmio **out)
{
    struct virtio_mmio *mmio = calloc(1, sizeof(*mmio));

    if (mmio == NULL)
        return -ENOMEM;
    mmio->dev = dev;
    mmio->finished = finished;
    mmio->arg = arg;
    mmio->bound.expired = bound_reached;
    dev->transport = mmio;
    dev->reset_done = reset_done;
    dev->queue_stop_done = queue_stop_done;
    *out = mmio;
    return 0;
}

void virtio_mmio_destroy(struct virtio_mmio *mmio)
{
    if (mmio == NULL)
        return;
    loop_cancel_timer(mmio->dev->mmio_loop, &mmio->bound);
    mmio->dev->transport = NULL;
    mmio->dev->reset_done = NULL;
    mmio->dev->queue_stop_done = NULL;
    free(mmio);
}

struct virtio_device *virtio_mmio_device(struct virtio_mmio *mmio)
{
    return mmio->dev;
}

bool virtio_mmio_is_notify(uint32_t offset, const struct mmio_request *request)
{
    return request->kind == REQUEST_WRITE && offset == VIRTIO_MMIO_QUEUE_NOTIFY &&
           request->size == 4;
}

uint64_t virtio_mmio_empty_read(uint32_t offset, unsigned size)
{
    if (size != 4)
        return 0;
    if (offset == VIRTIO_MMIO_MAGIC_VALUE)
        return MAGIC;
    return offset == VIRTIO_MMIO_VERSION ? VERSION : 0;
}

static bool serve(struct virtio_mmio *mmio, uint32_t offset, struct mmio_request *request)
{
    const struct mmio_register *reg;
    bool write = request->kind == REQUEST_WRITE;
    enum outcome outcome = DONE;

    if (offset >= VIRTIO_MMIO_CONFIG) {
        offset -= VIRTIO_MMIO_CONFIG;
        if (write)
            virtio_device_write_config(mmio->dev, offset, request->size, request->data);
        else
            request->data = virtio_device_read_config(mmio->dev, offset, request->size);
        return true;
    }
    /* 4.2.2.2: registers are 32 bits wide and aligned; anything else reads 0 and writes nothing. */
    reg = request->size == 4 ? find_register(offset) : NULL;
    if (write) {
        if (reg != NULL && reg->write != NULL)
            outcome = reg->write(mmio, (uint32_t)request->data);
        if (offset != VIRTIO_MMIO_QUEUE_NOTIFY && offset != VIRTIO_MMIO_INTERRUPT_ACK)
            virtio_device_save(mmio->dev);
    } else {
        request->data = reg != NULL && reg->read != NULL ? reg->read(mmio) : 0;
    }
    if (outcome == DONE)
        return true;
    return !wait_for(mmio, outcome == WAIT_RESET ? ALL_QUEUES : mmio->dev->queue_sel, request);
}

bool virtio_mmio_access(struct virtio_mmio *mmio, uint32_t offset, struct mmio_request *request)
{
    uint64_t *serving = &mmio->dev->state->serving;
    bool done;

    state_access_begin(serving);
    done = serve(mmio, offset, request);
    state_access_end(serving);
    return done;
}
