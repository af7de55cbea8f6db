/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Row 7: the guest changes a field between two loads of it. The core is built with a hook in every
 * load from guest memory; for every k, the k-th load returns something else than is there, and from
 * then on the memory holds a third thing. Whatever comes out, the device works or gives up cleanly.
 */
#include "driver.h"
#include "unit.h"

uint64_t viod_guest_load_hook(const volatile void *p, unsigned size);

#define SIZE 8u
#define LOADS_MAX 4096u

static struct {
    unsigned n;            /* loads so far */
    unsigned target;       /* the load to falsify, from 1 on; 0: none */
    bool flip;             /* memory changes after it */
    bool flip_bit;         /* the value is the true one with bit `value` flipped */
    uint64_t value;
    bool record;           /* note the addresses */
    struct {
        uintptr_t at;
        unsigned size;
    } seen[LOADS_MAX];
    unsigned n_seen;
} hook;

static uint64_t true_value(const volatile void *p, unsigned size)
{
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)p;
    case 2:
        return *(const volatile uint16_t *)p;
    case 4:
        return *(const volatile uint32_t *)p;
    default:
        return *(const volatile uint64_t *)p;
    }
}

uint64_t viod_guest_load_hook(const volatile void *p, unsigned size)
{
    uint64_t value = true_value(p, size);

    if (hook.record) {
        assert_true(hook.n_seen < LOADS_MAX);
        hook.seen[hook.n_seen].at = (uintptr_t)p;
        hook.seen[hook.n_seen++].size = size;
    }
    if (++hook.n != hook.target)
        return value;
    if (hook.flip) {
        uint8_t *memory = (uint8_t *)(uintptr_t)p;

        for (unsigned i = 0; i < size; i++)
            memory[i] = (uint8_t)~memory[i];
    }
    if (hook.flip_bit)
        return value ^ UINT64_C(1) << hook.value;
    return size == 8 ? hook.value : hook.value & ((UINT64_C(1) << (8 * size)) - 1);
}

/* What a field might become, besides each single bit of it. */
static const uint64_t nasty[] = {
    0,
    1,
    SIZE - 1,
    SIZE,
    SIZE + 1,
    0x7fff,
    0x8000,
    0x8080,
    0xffff,
    0x7fffffff,
    0xffffffff,
    UINT64_MAX,
    UINT64_MAX - 7,
    UINT64_C(0x0001000700000010), /* as a descriptor's second half: table, next, write, length 16 */
    UINT64_C(0x0000000400000010),
    UINT64_C(0x0000000100000000),
    UINT64_C(0xffff000100000008),
    FAKE_BANK0_BASE,
    FAKE_BANK0_BASE + FAKE_BANK_SIZE - 1,
    FAKE_BANK1_BASE + FAKE_BANK_SIZE,
    UINT64_C(0x02000050),
    UINT64_C(1) << 63 | FAKE_BANK0_BASE,
};

struct format {
    uint64_t features;
    bool indirect;
};
static const struct format formats[] = {
    {0, false},
    {F_EVENT_IDX, false},
    {F_INDIRECT, true},
    {F_IN_ORDER, false},
    {F_PACKED, false},
    {F_PACKED | F_EVENT_IDX, false},
    {F_PACKED | F_INDIRECT | F_EVENT_IDX, true},
    {F_PACKED | F_IN_ORDER, false},
};

static void hook_off(void)
{
    memset(&hook, 0, sizeof(hook));
}

/* Every element that a chain got is there: its first and its last byte can be read and written. */
static void touch(struct chain *chain)
{
    unsigned n = (unsigned)chain->n_readable + chain->n_writable;
    uint64_t readable = 0, writable = 0;

    for (unsigned i = 0; i < n; i++) {
        volatile uint8_t *p = chain->iov[i].iov_base;
        size_t len = chain->iov[i].iov_len;

        assert_true(len > 0);
        (void)p[0];
        (void)p[len - 1];
        if (i >= chain->n_readable) {
            p[0] = 1;
            p[len - 1] = 1;
            writable += len;
        } else {
            readable += len;
        }
    }
    assert_true(readable == chain->readable_bytes && writable == chain->writable_bytes);
}

/* All ring operations that there are, on three requests. Returns false if the queue broke. */
static bool run_operations(struct rig *rig, bool indirect)
{
    struct segment s[4];
    struct chain *chains[2 * SIZE];
    unsigned n = 0;
    int ret = 0;

    for (unsigned i = 0; i < 4; i++)
        s[i] = segment(rig->data.addr + 64 * i, 16);
    assert_true(ring_add(&rig->ring, s, 2, s + 2, 1, NULL, indirect) >= 0);
    assert_true(ring_add(&rig->ring, s, 1, NULL, 0, NULL, indirect) >= 0);
    virtqueue_has_work(rig->vq);
    virtqueue_enable_notify(rig->vq);
    while (n < ARRAY_SIZE(chains) && (ret = virtqueue_pop(rig->vq, &chains[n])) == 1)
        touch(chains[n++]);
    assert_true(ret == 1 || ret == 0 || ret == -EPROTO);
    while (n > 0) {
        char text[16];
        size_t got = chain_read(chains[--n], text, sizeof(text));

        chain_complete(chains[n], (uint32_t)chain_write(chains[n], text, got));
    }
    virtqueue_flush(rig->vq);
    virtqueue_enable_notify(rig->vq);
    if (!virtqueue_broken(rig->vq))
        ring_add(&rig->ring, NULL, 0, s + 3, 1, NULL, false);
    virtqueue_has_work(rig->vq);
    virtqueue_disable_notify(rig->vq);
    if (virtqueue_pop(rig->vq, &chains[0]) == 1) {
        touch(chains[0]);
        chain_complete(chains[0], 0);
    }
    virtqueue_flush(rig->vq);
    assert_int_equal(virtqueue_in_flight(rig->vq), 0);
    if (virtqueue_broken(rig->vq)) {
        assert_true(virtqueue_error(rig->vq)[0] != '\0');
        return false;
    }
    return true;
}

static void restart(struct rig *rig)
{
    virtqueue_stop(rig->vq);
    ring_restart(&rig->ring, SIZE);
    rig_start(rig);
}

static void test_row_07_each_load_falsified(void **state)
{
    unsigned served = 0, broken = 0;

    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        unsigned loads;
        struct rig rig;

        rig_create(&rig, SIZE, formats[f].features);
        hook_off();
        assert_true(run_operations(&rig, formats[f].indirect));
        loads = hook.n;
        assert_in_range(loads, 15, 200);
        for (unsigned k = 1; k <= loads; k++) {
            for (unsigned v = 0; v < ARRAY_SIZE(nasty) + 64; v++) {
                for (unsigned flip = 0; flip < 2; flip++) {
                    restart(&rig);
                    hook_off();
                    hook.target = k;
                    hook.flip = flip != 0;
                    hook.flip_bit = v >= ARRAY_SIZE(nasty);
                    hook.value = hook.flip_bit ? v - ARRAY_SIZE(nasty) : nasty[v];
                    if (run_operations(&rig, formats[f].indirect))
                        served++;
                    else
                        broken++;
                }
            }
        }
        hook_off();
        rig_expect_recovery(&rig);
        rig_destroy(&rig);
    }
    /* Both ends are really reached. */
    assert_true(served > 1000 && broken > 1000);
}

/* Within one pop no byte of guest memory is loaded twice: what was checked is what is used. */
static void test_row_07_no_field_is_loaded_twice(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        struct segment s[6];
        struct rig rig;

        rig_create(&rig, SIZE, formats[f].features);
        for (unsigned i = 0; i < 6; i++)
            s[i] = segment(rig.data.addr + 64 * i, 16);
        for (unsigned round = 0; round < 20; round++) {
            unsigned n_out = round % 4, n_in = 1 + round % 3;
            struct ring_used used;
            struct chain *chain;

            assert_true(ring_add(&rig.ring, s, n_out, s + 3, n_in, &rig,
                                 formats[f].indirect && round % 2) >= 0);
            hook_off();
            hook.record = true;
            chain = rig_pop(&rig);
            hook.record = false;
            for (unsigned i = 0; i < hook.n_seen; i++) {
                for (unsigned k = 0; k < i; k++) {
                    assert_true(hook.seen[i].at >= hook.seen[k].at + hook.seen[k].size ||
                                hook.seen[k].at >= hook.seen[i].at + hook.seen[i].size);
                }
            }
            /* A descriptor is 16 bytes: no more loads than its fields. */
            assert_in_range(hook.n_seen, 1, 4 + 4 * (n_out + n_in));
            chain_complete(chain, 0);
            virtqueue_flush(rig.vq);
            assert_true(ring_get(&rig.ring, &used));
        }
        rig_destroy(&rig);
    }
}

/* The same through a device: it serves, or it asks for a reset with a configuration interrupt. */
static void test_row_07_device_works_or_needs_reset(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        struct machine_config config = {.test = {.echo_max = 4096}};
        struct machine *m = machine_create(&config);
        gpa_t buffer = guest_alloc(&m->heap[0], 4096, 16);
        struct driver d;
        unsigned broken = 0;

        driver_start(&d, m, formats[f].features | F_VERSION_1, 1, SIZE);
        for (unsigned k = 1; k < 40; k++) {
            for (size_t v = 0; v < ARRAY_SIZE(nasty); v++) {
                uint32_t status;

                hook_off();
                hook.target = k;
                hook.flip = v % 2 != 0;
                hook.value = nasty[v];
                for (uint32_t i = 0; i < 3; i++)
                    driver_add_echo(&d.rings[0], (gpa_t){buffer.addr + 256 * i}, 64, i,
                                    formats[f].indirect);
                driver_kick(&d, 0);
                driver_kick(&d, 0);
                hook_off();
                status = machine_read32(m, VIRTIO_MMIO_STATUS);
                if ((status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0) {
                    broken++;
                    assert_true((driver_take_isr(m) & VIRTIO_MMIO_INT_CONFIG) != 0);
                }
                assert_int_equal(virtqueue_in_flight(m->dev->queues[0].vq), 0);
                driver_restart(&d);
                assert_int_equal(machine_read32(m, VIRTIO_MMIO_STATUS) &
                                     VIRTIO_CONFIG_S_NEEDS_RESET,
                                 0);
            }
        }
        assert_true(broken > 10);
        /* And an honest request goes through. */
        struct ring_used used;
        driver_add_echo(&d.rings[0], buffer, 64, 99, false);
        driver_kick(&d, 0);
        assert_true(ring_get(&d.rings[0], &used));
        assert_true(driver_check_echo(&d.rings[0], buffer, 64, 99));
        machine_destroy(m);
        driver_end(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_07_each_load_falsified),
        cmocka_unit_test(test_row_07_no_field_is_loaded_twice),
        cmocka_unit_test(test_row_07_device_works_or_needs_reset),
    };

    return cmocka_run_group_tests_name("double_fetch_hooked", tests, NULL, NULL);
}
