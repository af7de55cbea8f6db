/* SPDX-License-Identifier: Apache-2.0 */
/* The register window: VIRTIO 1.2, 4.2.2, and rows 1, 2, 3, 17 and 18. */
#include "driver.h"
#include "unit.h"

#include <time.h>
#include <linux/virtio_config.h>

#define ALL_STATUS                                                                                 \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |          \
     VIRTIO_CONFIG_S_DRIVER_OK)

static struct machine *two_queues(void)
{
    struct machine_config config = {.test = {.n_queues = 2,
                                             .queue_size = 64,
                                             .offered = FEATURE(0) | FEATURE(5) | FEATURE(63)}};

    return machine_create(&config);
}

static void select_queue(struct machine *m, uint32_t queue)
{
    machine_write32(m, VIRTIO_MMIO_QUEUE_SEL, queue);
}

static void test_identity(void **state)
{
    struct machine *m = two_queues();

    (void)state;
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_VERSION), 2);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_DEVICE_ID), TEST_DEVICE_ID);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), 0);
    assert_ptr_equal(virtio_mmio_device(m->mmio), m->dev);
    machine_destroy(m);
}

static void test_empty_slot(void **state)
{
    (void)state;
    for (uint32_t offset = 0; offset < VIRTIO_MMIO_WINDOW; offset++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            uint64_t expected = 0;

            if (size == 4 && offset == VIRTIO_MMIO_MAGIC_VALUE)
                expected = 0x74726976;
            if (size == 4 && offset == VIRTIO_MMIO_VERSION)
                expected = 2;
            assert_int_equal(virtio_mmio_empty_read(offset, size), expected);
        }
    }
}

static void test_feature_words(void **state)
{
    struct machine *m = two_queues();
    uint64_t offered = driver_offered(m);

    (void)state;
    assert_true((offered & F_VERSION_1) != 0);
    assert_int_equal(offered & (FEATURE(24) - 1), FEATURE(0) | FEATURE(5));
    assert_int_equal(offered >> 50, FEATURE(13));
    for (uint32_t word = 2; word != 0; word <<= 1) {
        machine_write32(m, VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }
    machine_write32(m, VIRTIO_MMIO_DEVICE_FEATURES_SEL, UINT32_MAX);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    machine_destroy(m);
}

/* 2.2.2: what the administrator switched off is not offered. */
static void test_ring_formats_by_configuration(void **state)
{
    static const uint64_t bits[] = {F_PACKED, F_IN_ORDER, F_EVENT_IDX, F_INDIRECT};
    char no[] = "no";

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
        struct machine_config config = {0};
        struct machine *m;

        config.test.values[i].value = no;
        m = machine_create(&config);
        for (size_t k = 0; k < ARRAY_SIZE(bits); k++)
            assert_int_equal((driver_offered(m) & bits[k]) != 0, k != i);
        machine_destroy(m);
    }
}

/* 3.1.1, steps 5 and 6. */
static void test_row_18_features_that_were_not_offered(void **state)
{
    struct machine *m = two_queues();
    uint64_t offered = driver_offered(m);

    (void)state;
    assert_true(driver_negotiate(m, offered));
    assert_int_equal(test_device(m->dev)->negotiated_features, offered);
    assert_true(driver_negotiate(m, F_VERSION_1));
    for (unsigned bit = 0; bit < 64; bit++) {
        bool ok = driver_negotiate(m, F_VERSION_1 | FEATURE(bit));

        assert_int_equal(ok, (offered >> bit & 1) != 0);
        if (!ok) {
            /* Without FEATURES_OK there is no way on: not DRIVER_OK, not a queue. */
            assert_int_equal(driver_add_status(m, VIRTIO_CONFIG_S_DRIVER_OK) &
                                 VIRTIO_CONFIG_S_DRIVER_OK,
                             0);
        }
    }
    /* 6.1: a driver that does not accept VERSION_1 is a legacy driver. */
    assert_false(driver_negotiate(m, 0));
    assert_false(driver_negotiate(m, offered & ~F_VERSION_1));
    /* Bits beyond 63 were never offered either. */
    for (uint32_t word = 2; word != 0; word <<= 1) {
        machine_write32(m, VIRTIO_MMIO_STATUS, 0);
        machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(F_VERSION_1 >> 32));
        machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES, 1);
        assert_int_equal(driver_add_status(m, 3 | VIRTIO_CONFIG_S_FEATURES_OK) &
                             VIRTIO_CONFIG_S_FEATURES_OK,
                         0);
    }
    /* Each failure is forgotten by a reset. */
    assert_true(driver_negotiate(m, F_VERSION_1));
    machine_destroy(m);
}

/* After FEATURES_OK the set is fixed until a reset. */
static void test_row_18_no_second_negotiation(void **state)
{
    struct machine *m = two_queues();

    (void)state;
    assert_true(driver_negotiate(m, F_VERSION_1 | FEATURE(5)));
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    machine_write32(m, VIRTIO_MMIO_DRIVER_FEATURES, UINT32_MAX);
    machine_write32(m, VIRTIO_MMIO_STATUS, 3 | VIRTIO_CONFIG_S_FEATURES_OK);
    machine_write32(m, VIRTIO_MMIO_STATUS, 3);
    machine_write32(m, VIRTIO_MMIO_STATUS, 3 | VIRTIO_CONFIG_S_FEATURES_OK);
    assert_int_equal(m->dev->features, F_VERSION_1 | FEATURE(5));
    assert_int_equal(test_device(m->dev)->negotiated, 1);
    machine_destroy(m);
}

static void test_row_18_driver_ok_without_features_ok(void **state)
{
    struct machine *m = two_queues();
    struct ring ring;

    (void)state;
    ring_create(&ring, &m->heap[0], 64, F_VERSION_1);
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(driver_add_status(m, 3), 3);
    /* 3.1.1: the queues come after FEATURES_OK, and DRIVER_OK too. */
    driver_enable_queue(m, 0, &ring);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_int_equal(driver_add_status(m, VIRTIO_CONFIG_S_DRIVER_OK), 3);
    assert_int_equal(test_device(m->dev)->started, 0);
    machine_destroy(m);
    ring_destroy(&ring);
}

/* 2.1.1: the driver clears no bit but all of them; NEEDS_RESET is the device's to set. */
static void test_row_18_status_bits(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS);
    machine_write32(m, VIRTIO_MMIO_STATUS, 1);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS);
    machine_write32(m, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS);
    machine_write32(m, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS | VIRTIO_CONFIG_S_FAILED);
    /* Bits that Status does not have. */
    machine_write32(m, VIRTIO_MMIO_STATUS, 0x30);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS | VIRTIO_CONFIG_S_FAILED);
    machine_write32(m, VIRTIO_MMIO_STATUS, 0xffffff00);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS) & 0xffffff00, 0);
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), 0);
    machine_destroy(m);
    driver_end(&d);
}

static const uint32_t no_queue[] = {2,      3,       0x16,       0x40,      0x7fff,
                                    0xffff, 0x10000, 0x80000000, 0xffffffff};

static void test_row_01_queue_select_out_of_range(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 2, 16);
    for (size_t i = 0; i < ARRAY_SIZE(no_queue); i++) {
        select_queue(m, no_queue[i]);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_RESET), 0);
        for (uint32_t at = VIRTIO_MMIO_QUEUE_NUM; at <= VIRTIO_MMIO_QUEUE_READY; at += 4)
            machine_write32(m, at, 1);
        for (uint32_t at = VIRTIO_MMIO_QUEUE_DESC_LOW; at < VIRTIO_MMIO_SHM_SEL; at += 4)
            machine_write32(m, at, 1);
        machine_write32(m, VIRTIO_MMIO_QUEUE_RESET, 1);
        machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 0);
    }
    /* Queues 0 and 1 never noticed. */
    for (uint16_t q = 0; q < 2; q++) {
        struct ring_used used;
        gpa_t buffer = guest_alloc(&m->heap[0], 64, 8);

        select_queue(m, q);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
        driver_add_echo(&d.rings[q], buffer, 32, q, false);
        driver_kick(&d, q);
        assert_true(ring_get(&d.rings[q], &used));
    }
    machine_destroy(m);
    driver_end(&d);
}

static void test_row_01_notify_of_no_queue(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    /* Before anything is set up, without a queue, of an unready queue. */
    machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver_start(&d, m, F_VERSION_1, 1, 16);
    for (size_t i = 0; i < ARRAY_SIZE(no_queue); i++)
        machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, no_queue[i]);
    machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS);
    assert_int_equal(test_device(m->dev)->requests, 0);
    machine_destroy(m);
    driver_end(&d);
}

/* 2.9: with NOTIFICATION_DATA the upper half is an offset, and it may be a lie. */
static void test_row_01_notification_data(void **state)
{
    struct machine *m = two_queues();
    gpa_t buffer = guest_alloc(&m->heap[0], 64, 8);
    struct ring_used used;
    struct driver d;

    (void)state;
    assert_true((driver_offered(m) & F_NOTIFICATION_DATA) != 0);
    driver_start(&d, m, F_VERSION_1 | F_NOTIFICATION_DATA, 2, 16);
    driver_add_echo(&d.rings[1], buffer, 32, 1, false);
    driver_kick(&d, 1);
    assert_true(ring_get(&d.rings[1], &used));
    machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0xffff0001);
    machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0xffffffff);
    driver_add_echo(&d.rings[1], buffer, 32, 2, false);
    machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0x80000001);
    assert_true(ring_get(&d.rings[1], &used));
    machine_destroy(m);
    driver_end(&d);
}

static void test_notify_is_recognised(void **state)
{
    struct mmio_request request = {.kind = REQUEST_WRITE, .size = 4};

    (void)state;
    assert_true(virtio_mmio_is_notify(VIRTIO_MMIO_QUEUE_NOTIFY, &request));
    assert_false(virtio_mmio_is_notify(VIRTIO_MMIO_QUEUE_NOTIFY + 4, &request));
    request.size = 2;
    assert_false(virtio_mmio_is_notify(VIRTIO_MMIO_QUEUE_NOTIFY, &request));
    request.size = 4;
    request.kind = REQUEST_READ;
    assert_false(virtio_mmio_is_notify(VIRTIO_MMIO_QUEUE_NOTIFY, &request));
}

/* 4.2.2.2: while QueueReady is 1 the set-up is latched; what is written is dropped. */
static void test_row_02_reconfigured_while_ready(void **state)
{
    struct machine *m = two_queues();
    gpa_t buffer = guest_alloc(&m->heap[0], 64, 8);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    select_queue(m, 0);
    for (uint32_t round = 0; round < 40; round++) {
        static const uint32_t values[] = {0, 1, 3, 32, 65535, 0x40000000, 0xffffffff};
        uint32_t value = values[round % ARRAY_SIZE(values)];
        struct ring_used used;

        machine_write32(m, VIRTIO_MMIO_QUEUE_NUM, value);
        for (uint32_t at = VIRTIO_MMIO_QUEUE_DESC_LOW; at < VIRTIO_MMIO_SHM_SEL; at += 4)
            machine_write32(m, at, value);
        machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
        machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 2);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
        driver_add_echo(&d.rings[0], buffer, 32, round, false);
        driver_kick(&d, 0);
        assert_true(ring_get(&d.rings[0], &used));
        assert_true(driver_check_echo(&d.rings[0], buffer, 32, round));
    }
    /* Nor is it remembered for the next time: off and on again, the registers are the old ones. */
    machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 0);
    ring_restart(&d.rings[0], 16);
    machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
    for (uint32_t round = 0; round < 40; round++) {
        struct ring_used used;

        driver_add_echo(&d.rings[0], buffer, 32, round, false);
        driver_kick(&d, 0);
        assert_true(ring_get(&d.rings[0], &used));
    }
    machine_destroy(m);
    driver_end(&d);
}

static void test_row_03_queue_sizes_that_cannot_be(void **state)
{
    static const struct {
        uint32_t size;
        bool split, packed;
    } sizes[] = {{0, false, false},     {1, true, true},          {3, false, true},
                 {63, false, true},     {64, true, true},         {65, false, false},
                 {128, false, false},   {65535, false, false},    {65536 + 16, false, false},
                 {1u << 31, false, false}, {0xffffffff, false, false}};

    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct machine *m = two_queues();
        uint64_t features = F_VERSION_1 | (packed ? F_PACKED : 0);
        struct ring ring;

        ring_create(&ring, &m->heap[0], 64, features);
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
            assert_true(driver_negotiate(m, features));
            driver_enable_queue(m, 0, &ring);
            machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 0);
            machine_write32(m, VIRTIO_MMIO_QUEUE_NUM, sizes[i].size);
            machine_write32(m, VIRTIO_MMIO_QUEUE_READY, 1);
            assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY),
                             packed ? sizes[i].packed : sizes[i].split);
            driver_add_status(m, VIRTIO_CONFIG_S_DRIVER_OK);
            machine_write32(m, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        }
        machine_destroy(m);
        ring_destroy(&ring);
    }
}

/* 4.2.2: misaligned areas are refused when the queue is enabled. */
static void test_row_03_misaligned_areas(void **state)
{
    struct machine *m = two_queues();
    struct ring ring, bad;

    (void)state;
    ring_create(&ring, &m->heap[0], 64, F_VERSION_1);
    assert_true(driver_negotiate(m, F_VERSION_1));
    for (unsigned area = 0; area < 3; area++) {
        bad = ring;
        (area == 0 ? &bad.desc : area == 1 ? &bad.driver : &bad.device)->addr += 1;
        driver_enable_queue(m, 0, &bad);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver_enable_queue(m, 0, &ring);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
    machine_destroy(m);
    ring_destroy(&ring);
}

/* Registers by 1, 2 and 8 bytes, misaligned, in the wrong direction: 0, and nothing happens. */
static void test_row_17_registers_of_odd_widths(void **state)
{
    struct machine *m = two_queues();
    gpa_t buffer = guest_alloc(&m->heap[0], 64, 8);
    struct ring_used used;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 2, 16);
    select_queue(m, 0);
    for (uint32_t offset = 0; offset < VIRTIO_MMIO_CONFIG; offset++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            if (size == 4 && offset % 4 == 0)
                continue;
            assert_int_equal(machine_read(m, offset, size), 0);
            machine_write(m, offset, size, 0);
            machine_write(m, offset, size, UINT64_MAX);
        }
    }
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS), ALL_STATUS);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_QUEUE_READY), 1);
    /* Write-only registers read 0; read-only and unknown ones ignore writes. */
    static const uint32_t write_only[] = {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_SEL,
        VIRTIO_MMIO_QUEUE_NUM,           VIRTIO_MMIO_QUEUE_NOTIFY,
        VIRTIO_MMIO_INTERRUPT_ACK,       VIRTIO_MMIO_QUEUE_DESC_LOW,
        VIRTIO_MMIO_QUEUE_DESC_HIGH,     VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH,    VIRTIO_MMIO_QUEUE_USED_LOW,
        VIRTIO_MMIO_QUEUE_USED_HIGH,     VIRTIO_MMIO_SHM_SEL};
    for (size_t i = 0; i < ARRAY_SIZE(write_only); i++)
        assert_int_equal(machine_read32(m, write_only[i]), 0);
    static const uint32_t ignored[] = {0x000, 0x004, 0x008, 0x00c, 0x010, 0x018, 0x01c, 0x028,
                                       0x02c, 0x034, 0x03c, 0x040, 0x048, 0x04c, 0x054, 0x05c,
                                       0x060, 0x068, 0x06c, 0x074, 0x07c, 0x088, 0x08c, 0x098,
                                       0x0a8, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0c4, 0x0f8, 0x0fc};
    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
        machine_write32(m, ignored[i], UINT32_MAX);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_DEVICE_ID), TEST_DEVICE_ID);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_CONFIG_GENERATION), 0);
    driver_add_echo(&d.rings[0], buffer, 32, 3, false);
    driver_kick(&d, 0);
    assert_true(ring_get(&d.rings[0], &used));
    machine_destroy(m);
    driver_end(&d);
}

/* Every offset and width in configuration space, for every length of it: bytes beyond read 0. */
static void test_row_17_configuration_space_reads(void **state)
{
    static const uint16_t lengths[] = {0, 1, 7, 60, 255, 256};

    (void)state;
    for (size_t l = 0; l < ARRAY_SIZE(lengths); l++) {
        struct machine_config config = {.test = {.config_len = lengths[l]}};
        struct machine *m;

        for (unsigned i = 0; i < lengths[l]; i++)
            config.test.config[i] = (uint8_t)(i + 1);
        m = machine_create(&config);
        for (uint32_t offset = 0; offset < 256; offset++) {
            for (unsigned size = 1; size <= 8; size *= 2) {
                uint64_t expected = 0;

                for (unsigned k = 0; k < size; k++) {
                    if (offset + k < lengths[l])
                        expected |= (uint64_t)(uint8_t)(offset + k + 1) << (8 * k);
                }
                assert_int_equal(machine_read(m, VIRTIO_MMIO_CONFIG + offset, size), expected);
            }
        }
        machine_destroy(m);
    }
}

/* Writes reach the device only if all of it is within configuration space. */
static void test_row_17_configuration_space_writes(void **state)
{
    (void)state;
    for (unsigned writable = 0; writable < 2; writable++) {
        struct machine_config config = {
            .test = {.config_len = 20, .config_writable = writable != 0}};
        struct machine *m = machine_create(&config);
        struct test_device *td = test_device(m->dev);

        for (uint32_t offset = 0; offset < 256; offset++) {
            for (unsigned size = 1; size <= 8; size *= 2) {
                unsigned before = td->config_writes;
                bool inside = offset + size <= 20;

                machine_write(m, VIRTIO_MMIO_CONFIG + offset, size, UINT64_C(0x8877665544332211));
                assert_int_equal(td->config_writes, before + inside);
                if (inside) {
                    assert_int_equal(td->last_write_offset, offset);
                    assert_int_equal(td->last_write_len, size);
                    assert_int_equal(machine_read(m, VIRTIO_MMIO_CONFIG + offset, 1),
                                     writable ? 0x11 : 0);
                    assert_int_equal(machine_read(m, VIRTIO_MMIO_CONFIG + offset + size - 1, 1),
                                     writable ? size * 0x11 : 0);
                }
            }
        }
        machine_destroy(m);
    }
}

static void test_config_generation_and_interrupt(void **state)
{
    struct machine_config config = {.test = {.config_len = 8}};
    struct machine *m = machine_create(&config);
    uint32_t before = machine_read32(m, VIRTIO_MMIO_CONFIG_GENERATION), after;
    struct driver d;

    (void)state;
    m->dev->config[0] = 1;
    virtio_device_config_changed(m->dev);
    after = machine_read32(m, VIRTIO_MMIO_CONFIG_GENERATION);
    assert_int_not_equal(before, after);
    /* 2.1.2: no notification before DRIVER_OK. */
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver_start(&d, m, F_VERSION_1, 1, 16);
    m->dev->config[0] = 2;
    virtio_device_config_changed(m->dev);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
    assert_int_not_equal(machine_read32(m, VIRTIO_MMIO_CONFIG_GENERATION), after);
    assert_int_equal(driver_take_isr(m), VIRTIO_MMIO_INT_CONFIG);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    machine_destroy(m);
    driver_end(&d);
}

static void one_request(struct driver *d)
{
    gpa_t buffer = {d->m->heap[0].end - 4096};
    struct ring_used used;

    driver_add_echo(&d->rings[0], buffer, 16, 1, false);
    driver_kick(d, 0);
    assert_true(ring_get(&d->rings[0], &used));
}

/* Longer than the device lets a driver look at the rings after its acknowledgement. */
static void wait_for_recheck(struct machine *m)
{
    const struct timespec pause = {.tv_nsec = 5000000};

    nanosleep(&pause, NULL);
    machine_settle(m);
}

/* A driver that has seen the event that came in between says so by used_event, and is left alone. */
static void test_no_interrupt_for_what_was_seen(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_EVENT_IDX, 1, 16);
    for (int seen = 1; seen >= 0; seen--) {
        uint16_t next = seen ? 1 : 3; /* entries used after the first request of this lap */

        one_request(&d);
        assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
        guest_store16(used_event(&d.rings[0]), next); /* looked at all, wants the next */
        one_request(&d);
        fake_take_irqs(m->fake, MACHINE_IRQ);
        if (seen)
            guest_store16(used_event(&d.rings[0]), (uint16_t)(next + 1));
        machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        wait_for_recheck(m);
        assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), seen ? 0 : 1);
        driver_take_isr(m);
    }
    machine_destroy(m);
    driver_end(&d);
}

/* 4.2.2.1: a bit is there from the event until it is acknowledged, and no event is lost. */
static void test_interrupt_status_and_acknowledge(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    one_request(&d);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    /* Acknowledging something else changes nothing. */
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, ~(uint32_t)VIRTIO_MMIO_INT_VRING);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);

    /*
     * An event between the driver's read and its acknowledgement is announced again, a while later,
     * as this driver still wants interrupts and may not have seen it.
     */
    one_request(&d);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    fake_take_irqs(m->fake, MACHINE_IRQ);
    one_request(&d);
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
    wait_for_recheck(m);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
    assert_int_equal(driver_take_isr(m), VIRTIO_MMIO_INT_VRING);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    /* The same with the other kind of event. */
    one_request(&d);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    virtio_device_config_changed(m->dev);
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_true((machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG) != 0);
    assert_true(fake_take_irqs(m->fake, MACHINE_IRQ) >= 1);

    /* Reset clears what is pending. */
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, 3);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 0);
    machine_destroy(m);
    driver_end(&d);
}

/* The hypervisor refuses: the event stays in InterruptStatus, and nothing else happens. */
static void test_interrupt_that_cannot_be_raised(void **state)
{
    struct machine *m = two_queues();
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    fake_fail(m->fake, FAKE_RAISE, 0, -EPERM);
    one_request(&d);
    assert_int_equal(machine_read32(m, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    one_request(&d);
    machine_write32(m, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    fake_fail(m->fake, FAKE_RAISE, 0, 0);
    driver_take_isr(m);
    one_request(&d);
    assert_int_equal(fake_take_irqs(m->fake, MACHINE_IRQ), 1);
    machine_destroy(m);
    driver_end(&d);
}

/* Once, for a policy that is being loaded, say: it comes a little later, without a word of the driver's. */
static void test_interrupt_that_is_raised_later(void **state)
{
    struct machine *m = two_queues();
    int64_t until = monotonic_ns() + INT64_C(20000000000);
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    for (unsigned round = 0; round < 2; round++) {
        fake_fail(m->fake, FAKE_RAISE, 1, -EACCES);
        one_request(&d);
        while (fake_take_irqs(m->fake, MACHINE_IRQ) == 0) {
            event_loop_turn(m->loop, 5000000);
            assert_true(monotonic_ns() < until);
        }
        assert_int_equal(driver_take_isr(m), VIRTIO_MMIO_INT_VRING);
    }
    fake_fail(m->fake, FAKE_RAISE, 1, -EACCES);
    one_request(&d); /* it waits when the device goes */
    machine_destroy(m);
    driver_end(&d);
}

/* 4.2.2: no shared memory region: length and base read all ones. */
static void test_no_shared_memory(void **state)
{
    struct machine *m = two_queues();

    (void)state;
    machine_write32(m, VIRTIO_MMIO_SHM_SEL, 0);
    for (uint32_t at = VIRTIO_MMIO_SHM_LEN_LOW; at <= VIRTIO_MMIO_SHM_BASE_HIGH; at += 4)
        assert_int_equal(machine_read32(m, at), UINT32_MAX);
    machine_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_empty_slot),
        cmocka_unit_test(test_feature_words),
        cmocka_unit_test(test_ring_formats_by_configuration),
        cmocka_unit_test(test_row_18_features_that_were_not_offered),
        cmocka_unit_test(test_row_18_no_second_negotiation),
        cmocka_unit_test(test_row_18_driver_ok_without_features_ok),
        cmocka_unit_test(test_row_18_status_bits),
        cmocka_unit_test(test_row_01_queue_select_out_of_range),
        cmocka_unit_test(test_row_01_notify_of_no_queue),
        cmocka_unit_test(test_row_01_notification_data),
        cmocka_unit_test(test_notify_is_recognised),
        cmocka_unit_test(test_row_02_reconfigured_while_ready),
        cmocka_unit_test(test_row_03_queue_sizes_that_cannot_be),
        cmocka_unit_test(test_row_03_misaligned_areas),
        cmocka_unit_test(test_row_17_registers_of_odd_widths),
        cmocka_unit_test(test_row_17_configuration_space_reads),
        cmocka_unit_test(test_row_17_configuration_space_writes),
        cmocka_unit_test(test_config_generation_and_interrupt),
        cmocka_unit_test(test_interrupt_status_and_acknowledge),
        cmocka_unit_test(test_no_interrupt_for_what_was_seen),
        cmocka_unit_test(test_interrupt_that_cannot_be_raised),
        cmocka_unit_test(test_interrupt_that_is_raised_later),
        cmocka_unit_test(test_no_shared_memory),
    };

    return cmocka_run_group_tests_name("virtio_mmio", tests, NULL, NULL);
}
