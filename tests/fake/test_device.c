/* SPDX-License-Identifier: Apache-2.0 */
#include "test_device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_hypervisor.h"

static const struct feature features[] = {
    {0, "ZERO"}, {5, "FIVE"}, {23, "TWENTYTHREE"}, {50, "FIFTY"}, {63, "SIXTYTHREE"}, {0, NULL},
};

/* The keys of every device type that concern rings. */
static const struct config_key ring_keys[] = {
    {.name = "packed", .type = KEY_BOOL, .default_value = "yes"},
    {.name = "in-order", .type = KEY_BOOL, .default_value = "yes"},
    {.name = "event-idx", .type = KEY_BOOL, .default_value = "yes"},
    {.name = "indirect", .type = KEY_BOOL, .default_value = "yes"},
    {.name = "grant-copy-max", .type = KEY_UINT, .default_value = "1048576"},
};

void test_device_config_init(struct test_device_config *config)
{
    static_assert(ARRAY_SIZE(ring_keys) == ARRAY_SIZE(config->values), "one value for each key");
    for (size_t i = 0; i < ARRAY_SIZE(ring_keys); i++)
        config->values[i].key = &ring_keys[i]; /* the value is the test's; NULL: the default */
    config->base.values = config->values;
    config->base.n_values = ARRAY_SIZE(config->values);
    config->base.virtio_id = TEST_DEVICE_ID;
    snprintf(config->base.name, sizeof(config->base.name), "test0");
}

uint32_t test_echo(struct chain *chain, uint32_t max)
{
    uint8_t buffer[512];
    uint32_t written = 0;
    size_t n, put;

    if (chain->faulted)
        return 0;
    while ((n = chain_read(chain, buffer, MIN(sizeof(buffer), max - written))) > 0) {
        put = chain_write(chain, buffer, n);
        written += (uint32_t)put;
        if (put < n)
            break;
    }
    return written;
}

static uint32_t echo(struct test_device *td, struct chain *chain)
{
    return test_echo(chain, td->config.echo_max == 0 ? UINT32_MAX : td->config.echo_max);
}

static int create(struct virtio_device *dev, const struct device_config *config, char *error,
                  size_t error_len)
{
    struct test_device *td = calloc(1, sizeof(*td));

    if (td == NULL)
        return -ENOMEM;
    td->dev = dev;
    td->config = *container_of(config, struct test_device_config, base);
    if (td->config.create_error != 0) {
        snprintf(error, error_len, "the test wants an error");
        int result = td->config.create_error;
        free(td);
        return result;
    }
    dev->priv = td;
    dev->offered |= td->config.offered;
    dev->n_queues = td->config.n_queues == 0 ? 1 : td->config.n_queues;
    dev->queue_size = td->config.queue_size == 0 ? 256 : td->config.queue_size;
    virtio_device_set_config(dev, td->config.config, td->config.config_len);
    return 0;
}

static void negotiated(struct virtio_device *dev, uint64_t bits)
{
    test_device(dev)->negotiated++;
    test_device(dev)->negotiated_features = bits;
}

static void queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    (void)vq;
    test_device(dev)->started++;
}

static void hold(struct test_device *td, struct test_request *request)
{
    if (td->n_held == TEST_HELD_MAX)
        fake_die("more than %u requests are held", TEST_HELD_MAX);
    td->held[td->n_held++] = request;
    td->max_held = MAX(td->max_held, td->n_held);
}

static int queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct test_device *td = test_device(dev);
    struct chain *chain;
    int n = 0, ret = 0;

    if (td->work_error != 0) {
        ret = td->work_error;
        td->work_error = 0;
        return ret;
    }
    while (n < budget && (ret = virtqueue_pop(vq, &chain)) == 1) {
        struct test_request *request = container_of(chain, struct test_request, chain);

        n++;
        request->number = td->requests++;
        td->bytes += chain->readable_bytes;
        td->faulted += chain->faulted;
        if (td->taken != NULL)
            td->taken(td, chain);
        if (td->config.mode == TEST_HOLD)
            hold(td, request);
        else
            chain_complete(chain, echo(td, chain));
    }
    return ret < 0 ? ret : n;
}

static void finish(struct test_device *td, unsigned i, bool copy)
{
    struct test_request *request;

    if (i >= td->n_held)
        fake_die("request %u of %u held", i, td->n_held);
    request = td->held[i];
    td->n_held--;
    memmove(&td->held[i], &td->held[i + 1], (td->n_held - i) * sizeof(td->held[0]));
    chain_complete(&request->chain, copy ? echo(td, &request->chain) : 0);
}

void test_device_complete(struct test_device *td, unsigned i) { finish(td, i, true); }
void test_device_drop(struct test_device *td, unsigned i) { finish(td, i, false); }

static void queue_drain(struct virtio_device *dev, struct virtqueue *vq)
{
    struct test_device *td = test_device(dev);

    td->drained++;
    if (td->config.drain_keeps)
        return;
    for (unsigned i = td->n_held; i-- > 0;) {
        if (td->held[i]->chain.vq == vq)
            test_device_drop(td, i);
    }
}

static void queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    if (virtqueue_in_flight(vq) != 0)
        fake_die("queue_stopped with %u requests in flight", virtqueue_in_flight(vq));
    test_device(dev)->stopped++;
}

static void config_write(struct virtio_device *dev, uint32_t offset, const void *data, size_t len)
{
    struct test_device *td = test_device(dev);

    if (offset > dev->config_len || len > dev->config_len - offset)
        fake_die("configuration write at %u + %zu of %u", offset, len, dev->config_len);
    td->config_writes++;
    td->last_write_offset = offset;
    td->last_write_len = len;
    if (td->config.config_writable)
        memcpy(dev->config + offset, data, len);
}

static void reset(struct virtio_device *dev)
{
    struct test_device *td = test_device(dev);

    if (td->n_held != 0)
        fake_die("reset with %u requests held", td->n_held);
    td->resets++;
}

static void destroy(struct virtio_device *dev)
{
    struct test_device *td = test_device(dev);

    if (td->n_held != 0)
        fake_die("destroyed with %u requests held", td->n_held);
    free(td);
}

const struct virtio_device_ops test_device_ops = {
    .name = "test",
    .id = TEST_DEVICE_ID,
    .request_size = sizeof(struct test_request),
    .requests = true,
    .features = features,
    .create = create,
    .negotiated = negotiated,
    .queue_started = queue_started,
    .queue_work = queue_work,
    .queue_drain = queue_drain,
    .queue_stopped = queue_stopped,
    .config_write = config_write,
    .reset = reset,
    .destroy = destroy,
};
