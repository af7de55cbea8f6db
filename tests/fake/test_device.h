/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio device type under full control of the test: it echoes the readable part of a request
 * into the writable part, at once, or when the test says so and in the order that it says.
 */
#ifndef VIOD_TEST_DEVICE_H
#define VIOD_TEST_DEVICE_H

#include "config.h"
#include "virtio_device.h"

#define TEST_DEVICE_ID 42u
#define TEST_HELD_MAX 1024u

enum test_mode {
    TEST_ECHO, /* completed at once, in order */
    TEST_HOLD, /* kept until test_device_complete */
};

/* Pass &config.base to virtio_device_create. */
struct test_device_config {
    struct device_config base; /* first */
    uint64_t offered;          /* device-specific bits */
    uint16_t n_queues;         /* 0: 1 */
    uint16_t queue_size;       /* 0: 256 */
    uint16_t config_len;
    bool config_writable;
    uint8_t config[VIRTIO_CONFIG_MAX];
    enum test_mode mode;
    uint32_t echo_max;         /* bytes copied per request; 0: all */
    bool drain_keeps;          /* queue_drain does not give back what is held */
    struct config_value values[5]; /* base.values: all ring formats are offered */
    int create_error;
};

struct test_request {
    struct chain chain; /* first */
    uint64_t number;    /* of the device, from 0 */
};

/* dev->priv. The counters are for the test to read while the device is quiet. */
struct test_device {
    struct virtio_device *dev;
    struct test_device_config config;
    struct test_request *held[TEST_HELD_MAX]; /* in the order they were taken */
    unsigned n_held, max_held;
    uint64_t requests, bytes, faulted;
    unsigned negotiated, started, drained, stopped, resets, config_writes;
    uint64_t negotiated_features;
    uint32_t last_write_offset;
    size_t last_write_len;
    int work_error;  /* queue_work returns this once, without popping */
    /* Called for each request before it is echoed or held; may be NULL. */
    void (*taken)(struct test_device *td, struct chain *chain);
    void *arg;
};

extern const struct virtio_device_ops test_device_ops;
/* Fills base.values, base.name and base.virtio_id. The structure must not move afterwards. */
void test_device_config_init(struct test_device_config *config);

static inline struct test_device *test_device(const struct virtio_device *dev) { return dev->priv; }

/* Thread of the queue. Echoes held request number i and gives it back; the others move up. */
void test_device_complete(struct test_device *td, unsigned i);
/* The same without copying or writing a byte. */
void test_device_drop(struct test_device *td, unsigned i);
/* Copies what is readable into what is writable, at most `max` bytes. Returns the bytes written. */
uint32_t test_echo(struct chain *chain, uint32_t max);

#endif
