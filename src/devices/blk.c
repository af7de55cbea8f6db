/* SPDX-License-Identifier: Apache-2.0 */
/* The block device (VIRTIO 1.2, 5.2): its life and its registers. Requests are in blk_requests.c. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "devices/blk_internal.h"
#include "devices/table.h"
#include "log.h"

#define SEGMENT_MAX (1u << 20)      /* bytes: size_max */

#define FEATURE(bit) (UINT64_C(1) << (bit))

static_assert(offsetof(struct virtio_blk_config, blk_size) == 20, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, wce) == 32, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, max_discard_sectors) == 36, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, write_zeroes_may_unmap) == 56, "5.2.4");
static_assert(offsetof(struct virtio_blk_config, max_secure_erase_sectors) == 60, "5.2.4");
/* Up to the fields of zoned devices, which newer headers have and this device is not. */
#define CONFIG_LEN 72u
static_assert(offsetof(struct virtio_blk_config, secure_erase_sector_alignment) + 4 == CONFIG_LEN,
              "5.2.4");

static const struct feature blk_features[] = {
    {VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"},
    {VIRTIO_BLK_F_SEG_MAX, "SEG_MAX"},
    {VIRTIO_BLK_F_RO, "RO"},
    {VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"},
    {VIRTIO_BLK_F_FLUSH, "FLUSH"},
    {VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"},
    {VIRTIO_BLK_F_CONFIG_WCE, "CONFIG_WCE"},
    {VIRTIO_BLK_F_MQ, "MQ"},
    {VIRTIO_BLK_F_DISCARD, "DISCARD"},
    {VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"},
    {VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"},
    {0, NULL},
};

/* ---- queues: I/O thread ---- */

/* Queues of one loop share a channel, and with it the memory of its bounce pool. */
static void blk_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    struct blk *blk = dev->priv;
    struct event_loop *loop = virtio_queue_loop(dev, vq);
    struct blk_channel *shared = NULL;
    int err = 0;

    pthread_mutex_lock(&blk->lock);
    for (size_t i = 0; i < ARRAY_SIZE(blk->channels); i++) {
        struct blk_channel *c = &blk->channels[i];

        if (c->users && c->loop == loop) {
            shared = c;
            break;
        }
        if (!c->users && !shared)
            shared = c;
    }
    if (shared && !shared->users) {
        shared->loop = loop;
        err = block_channel_create(blk->backend, loop, &shared->channel);
    }
    if (err) {
        log_host("%s: no memory for I/O: %s", dev->name, strerror(-err));
        shared = NULL;
    }
    if (shared)
        shared->users++;
    blk->queues[virtqueue_index(vq)] = shared;
    pthread_mutex_unlock(&blk->lock);
}

static void blk_queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    struct blk *blk = dev->priv;
    struct blk_channel **shared = &blk->queues[virtqueue_index(vq)];

    pthread_mutex_lock(&blk->lock);
    if (*shared && --(*shared)->users == 0) {
        block_channel_destroy((*shared)->channel);
        (*shared)->channel = NULL;
    }
    *shared = NULL;
    pthread_mutex_unlock(&blk->lock);
}

/* ---- registers: MMIO thread ---- */

/* In dev->own, for a successor. */
struct blk_state {
    uint64_t write_through; /* 0 or 1, sealed: a wrong bit would cost the guest what it has written */
    uint64_t capacity;      /* that the driver was told of last; sectors */
    uint64_t flush_error;   /* block_flush_error, positive and sealed; 0 (also of an older version): none */
};

static void show_write_through(struct blk *blk, bool write_through)
{
    atomic_store_explicit(&blk->write_through, write_through, memory_order_relaxed);
    blk->dev->config[offsetof(struct virtio_blk_config, wce)] = !write_through;
}

static void set_write_through(struct blk *blk, bool write_through)
{
    struct blk_state *state = blk->dev->own;

    state_store64(&state->write_through, state_sealed(write_through, 0, SALT_OWN));
    show_write_through(blk, write_through);
}

static void keep_capacity(struct blk *blk)
{
    struct blk_state *state = blk->dev->own;

    state_store64(&state->capacity, atomic_load_explicit(&blk->capacity, memory_order_relaxed));
}

static int flush_error_of(uint64_t word)
{
    return state_is_sealed(word, 0, SALT_OWN) && (word & STATE_LOW48) <= 4095 ? -(int)(word & STATE_LOW48)
                                                                               : 0;
}

/* What a predecessor has heard is not heard again, whatever the driver does meanwhile. */
static void adopt_flush_error(struct blk *blk)
{
    const struct blk_state *state = blk->dev->own;
    int error = flush_error_of(state_load64(&state->flush_error));

    if (error == 0)
        return;
    block_set_flush_error(blk->backend, error);
    atomic_store_explicit(&blk->flush_failed, true, memory_order_relaxed);
}

void blk_request_failed(struct blk *blk)
{
    struct blk_state *state = blk->dev->own;
    int error = block_flush_error(blk->backend);

    if (error == 0 || atomic_exchange_explicit(&blk->flush_failed, true, memory_order_relaxed))
        return;
    state_store64(&state->flush_error, state_sealed((uint64_t)-error, 0, SALT_OWN));
    log_error("%s: the host could not write what the guest has written (%s), and does not say what of it is "
              "lost: from now on no flush of the guest succeeds; see to the storage, then shut the guest "
              "down, check its file systems, and create it again", blk->dev->name, strerror(-error));
}

static bool blk_adopt(struct virtio_device *dev, uint64_t features)
{
    const struct blk_state *state = dev->own;
    struct blk *blk = dev->priv;
    uint64_t word = state_load64(&state->write_through), write_through = word & STATE_LOW48;

    if (!state_is_sealed(word, 0, SALT_OWN) || write_through > 1)
        return false;
    word = state_load64(&state->flush_error);
    if (word != 0 && flush_error_of(word) == 0)
        return false;
    show_write_through(dev->priv, write_through != 0 || !(features & FEATURE(VIRTIO_BLK_F_FLUSH)));
    if (state_load64(&state->capacity) != atomic_load(&blk->capacity))
        state_store64(&dev->state->config_changed, 1); /* resized meanwhile */
    keep_capacity(blk);
    return true;
}

/* The cache's mode after negotiation: 5.2.5, and for CONFIG_WCE without FLUSH 5.2.5.2. */
static void blk_negotiated(struct virtio_device *dev, uint64_t features)
{
    set_write_through(dev->priv, !(features & FEATURE(VIRTIO_BLK_F_FLUSH)));
    keep_capacity(dev->priv);
}

static void blk_config_write(struct virtio_device *dev, uint32_t offset, const void *data,
                             size_t len)
{
    const uint32_t wce = offsetof(struct virtio_blk_config, wce);
    uint8_t value;

    if (!virtio_has_feature(dev, VIRTIO_BLK_F_CONFIG_WCE) || wce < offset || wce - offset >= len)
        return;
    value = ((const uint8_t *)data)[wce - offset];
    /* A driver that cannot flush must not lose what it wrote. */
    if (value == 0)
        set_write_through(dev->priv, true);
    else if (value == 1 && virtio_has_feature(dev, VIRTIO_BLK_F_FLUSH))
        set_write_through(dev->priv, false);
}

static void blk_reset(struct virtio_device *dev)
{
    set_write_through(dev->priv, false);
}

static void set_capacity(struct blk *blk, uint64_t bytes)
{
    uint64_t capacity = bytes / blk->block_size * (blk->block_size / BLK_SECTOR);
    uint64_t wire = htole64(capacity);

    atomic_store_explicit(&blk->capacity, capacity, memory_order_relaxed);
    memcpy(&blk->dev->config[offsetof(struct virtio_blk_config, capacity)], &wire, sizeof(wire));
}

static int blk_control(struct virtio_device *dev, const char *request, char *reply, size_t reply_len)
{
    struct blk *blk = dev->priv;
    uint64_t old = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    uint64_t now;
    int64_t size;

    if (strcmp(request, "resize") != 0) {
        snprintf(reply, reply_len, "%s: a block device does not know \"%s\"; it knows \"resize\"",
                 dev->name, request);
        return -EINVAL;
    }
    size = block_size(blk->backend);
    if (size < 0) {
        snprintf(reply, reply_len, "%s: cannot find out the image's size: %s", dev->name,
                 strerror((int)-size));
        return (int)size;
    }
    set_capacity(blk, (uint64_t)size);
    now = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    if (now == old) {
        snprintf(reply, reply_len, "%s: still %llu bytes", dev->name,
                 (unsigned long long)now * BLK_SECTOR);
        return 0;
    }
    /* In this order: a successor that finds another capacity kept tells the driver again. */
    virtio_device_config_changed(dev);
    keep_capacity(blk);
    log_info("%s: resized from %llu to %llu bytes", dev->name,
             (unsigned long long)old * BLK_SECTOR, (unsigned long long)now * BLK_SECTOR);
    snprintf(reply, reply_len, "%s: %llu bytes, was %llu", dev->name,
             (unsigned long long)now * BLK_SECTOR, (unsigned long long)old * BLK_SECTOR);
    return 0;
}

/* ---- life: MMIO thread ---- */

static void fill_config(struct blk *blk)
{
    const struct block_info *info = &blk->info;
    uint32_t physical = MAX(info->physical_block, blk->block_size);
    uint32_t ratio = physical / blk->block_size;
    uint32_t alignment = MAX(info->discard_granularity, blk->block_size) / BLK_SECTOR;
    struct virtio_blk_config config;

    memset(&config, 0, sizeof(config));
    config.size_max = htole32(SEGMENT_MAX);
    /* Header and status take two descriptors of a chain, which is never longer than the queue. */
    config.seg_max = htole32(blk->dev->queue_size - 2u);
    config.blk_size = htole32(blk->block_size);
    config.physical_block_exp = (uint8_t)__builtin_ctz(ratio);
    config.min_io_size = htole16((uint16_t)MIN(ratio, UINT32_C(0x8000)));
    config.opt_io_size = htole32(info->optimal_io / blk->block_size);
    config.wce = 1;
    config.num_queues = htole16(blk->dev->n_queues);
    if (info->discard_granularity) {
        config.max_discard_sectors = htole32(DISCARD_SECTORS_MAX);
        config.max_discard_seg = htole32(DISCARD_RANGES_MAX);
        config.discard_sector_alignment = htole32(alignment);
        config.write_zeroes_may_unmap = 1;
    }
    if (info->can_write_zeroes) {
        config.max_write_zeroes_sectors = htole32(ZEROES_SECTORS_MAX);
        config.max_write_zeroes_seg = htole32(ZEROES_RANGES_MAX);
    }
    if (info->can_secure_erase) {
        config.max_secure_erase_sectors = htole32(DISCARD_SECTORS_MAX);
        config.max_secure_erase_seg = htole32(DISCARD_RANGES_MAX);
        config.secure_erase_sector_alignment = htole32(alignment);
    }
    virtio_device_set_config(blk->dev, &config, CONFIG_LEN);
    set_capacity(blk, info->size);
}

static uint64_t offered_features(const struct blk *blk)
{
    const struct block_info *info = &blk->info;
    uint64_t features = FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |
                        FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY);

    /* Without a volatile cache a flush would only cost the guest a request (5.2.5). */
    if (!info->write_through)
        features |= FEATURE(VIRTIO_BLK_F_FLUSH) | FEATURE(VIRTIO_BLK_F_CONFIG_WCE);
    if (blk->dev->n_queues > 1)
        features |= FEATURE(VIRTIO_BLK_F_MQ);
    if (info->read_only)
        return features | FEATURE(VIRTIO_BLK_F_RO);
    if (info->discard_granularity)
        features |= FEATURE(VIRTIO_BLK_F_DISCARD);
    if (info->can_write_zeroes)
        features |= FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
    if (info->can_secure_erase)
        features |= FEATURE(VIRTIO_BLK_F_SECURE_ERASE);
    return features;
}

static int blk_configure(struct blk *blk, const struct device_config *config, char *error,
                         size_t error_len)
{
    const char *serial = device_config_string(config, "serial");
    uint64_t block_size = device_config_uint(config, "logical-block-size");
    uint64_t queue_size = device_config_uint(config, "queue-size");
    uint64_t queues = device_config_uint(config, "queues");

    if (queue_size < 4 || queue_size > VIRTQUEUE_SIZE_MAX || (queue_size & (queue_size - 1))) {
        snprintf(error, error_len, "%s: queue-size is a power of 2 from 4 to %u, not %llu",
                 config->name, VIRTQUEUE_SIZE_MAX, (unsigned long long)queue_size);
        return -EINVAL;
    }
    if (block_size == 0)
        block_size = blk->info.logical_block;
    if (block_size < BLK_SECTOR || block_size > (1u << 20) || (block_size & (block_size - 1))) {
        snprintf(error, error_len, "%s: logical-block-size is 512 or 4096, not %llu", config->name,
                 (unsigned long long)block_size);
        return -EINVAL;
    }
    if (block_size < blk->info.logical_block && blk->info.cache == BLOCK_CACHE_NONE) {
        snprintf(error, error_len,
                 "%s: the image needs blocks of %u bytes with cache = none; say cache = writeback, "
                 "or leave logical-block-size out",
                 config->name, blk->info.logical_block);
        return -EINVAL;
    }
    if (serial == NULL || serial[0] == '\0')
        serial = config->name;
    else if (strlen(serial) > sizeof(blk->id)) {
        snprintf(error, error_len, "%s: serial has %zu characters; %zu are possible", config->name,
                 strlen(serial), sizeof(blk->id));
        return -EINVAL;
    }
    /* 5.2.6: padded with NUL, and without one if it is 20 bytes long. */
    memcpy(blk->id, serial, MIN(strlen(serial), sizeof(blk->id)));
    if (queues == 0)
        queues = MAX(config->n_vcpus, 1u);
    blk->block_size = (uint32_t)block_size;
    blk->dev->n_queues = (uint16_t)MIN(queues, (uint64_t)BLK_QUEUES_MAX);
    blk->dev->queue_size = (uint16_t)queue_size;
    return 0;
}

static int blk_create(struct virtio_device *dev, const struct device_config *config, char *error,
                      size_t error_len)
{
    struct blk *blk;
    int err;

    if (config->n_fds < 1 || config->fds[0] < 0) {
        snprintf(error, error_len, "%s: there is no image", config->name);
        return -EBADF;
    }
    blk = calloc(1, sizeof(*blk));
    if (blk == NULL) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    blk->dev = dev;
    blk->info = config->block;
    pthread_mutex_init(&blk->lock, NULL);
    err = blk_configure(blk, config, error, error_len);
    if (err)
        goto fail;
    err = block_create(config->fds[0], &config->block, &blk->backend);
    if (err) {
        snprintf(error, error_len, "%s: cannot use the image: %s", config->name, strerror(-err));
        goto fail;
    }
    /* Taken over: closed by block_destroy, and by nobody else. */
    ((struct device_config *)config)->fds[0] = -1;
    dev->priv = blk;
    dev->offered = offered_features(blk);
    fill_config(blk);
    show_write_through(blk, false);
    if (dev->adopted)
        adopt_flush_error(blk);
    return 0;
fail:
    pthread_mutex_destroy(&blk->lock);
    free(blk);
    return err;
}

static void blk_destroy(struct virtio_device *dev)
{
    struct blk *blk = dev->priv;

    block_destroy(blk->backend);
    pthread_mutex_destroy(&blk->lock);
    free(blk);
    dev->priv = NULL;
}

const struct virtio_device_ops virtio_blk_ops = {
    .name = "blk",
    .id = 2,
    .request_size = sizeof(struct blk_request),
    .requests = true,
    .error_status = VIRTIO_BLK_S_IOERR,
    .features = blk_features,
    .create = blk_create,
    .negotiated = blk_negotiated,
    .state_len = sizeof(struct blk_state),
    .adopt = blk_adopt,
    .queue_started = blk_queue_started,
    .queue_work = blk_queue_work,
    .queue_stopped = blk_queue_stopped,
    .config_write = blk_config_write,
    .reset = blk_reset,
    .control = blk_control,
    .destroy = blk_destroy,
};
