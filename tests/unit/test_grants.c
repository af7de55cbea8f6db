/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues whose driver grants its memory page by page: what is copied, what is mapped and until when,
 * how many calls that takes, and grants that are not good (rows 12 and 20).
 */
#include "hostile.h"

#include <errno.h>
#include <linux/virtio_blk.h>

#include "driver.h"
#include "virtqueue_grants.h"

#define LARGE (RIG_COPY_MAX + GUEST_PAGE_SIZE)
#define NO_STATUS 0xee
#define ERROR_STATUS 0xe5 /* unit.h */

static const uint64_t formats[] = {
    F_ACCESS_PLATFORM,
    F_ACCESS_PLATFORM | F_INDIRECT | F_EVENT_IDX,
    F_ACCESS_PLATFORM | F_INDIRECT | F_IN_ORDER,
    F_ACCESS_PLATFORM | F_PACKED,
    F_ACCESS_PLATFORM | F_PACKED | F_INDIRECT | F_IN_ORDER,
};

static uint8_t *ram(struct rig *rig, uint64_t at)
{
    return fake_ram(rig->fake, at, 1);
}

/* A request as block devices have them: 16 bytes read, len bytes written, a status byte. */
static int add_read(struct rig *rig, uint64_t at, uint32_t len, bool indirect)
{
    struct segment out = segment(at, 16);
    struct segment in[] = {segment(at + GUEST_PAGE_SIZE, len), segment(at + 32, 1)};

    memcpy(ram(rig, at), "header of 16 b.", 16);
    memset(ram(rig, at + GUEST_PAGE_SIZE), NO_STATUS, len);
    *ram(rig, at + 32) = NO_STATUS;
    return ring_add(&rig->ring, &out, 1, in, 2, NULL, indirect);
}

/* Takes it as a block device does: the status first, then the header; what is left is the data. */
static uint8_t *take_read(struct rig *rig, struct chain **chain, struct iovec *data)
{
    struct iovec status;
    const struct iovec *rest;
    char header[16];

    *chain = rig_pop(rig);
    assert_false((*chain)->faulted);
    assert_int_equal(chain_take_tail(*chain, 1, &status, 1), 1);
    assert_int_equal(chain_read(*chain, header, 16), 16);
    assert_memory_equal(header, "header of 16 b.", 16);
    assert_int_equal(chain_rest_writable(*chain, &rest) >= 1, 1);
    *data = rest[0];
    return status.iov_base;
}

static unsigned rings_pages(const struct rig *rig)
{
    return rig->ring.areas[0].pages + rig->ring.areas[1].pages + rig->ring.areas[2].pages;
}

/* ---- calls ---- */

static void test_a_batch_shares_its_calls(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        bool indirect = (formats[f] & F_INDIRECT) != 0;
        struct fake_counts before, after;
        struct chain *chains[16];
        uint8_t *status[16];
        struct ring_used used;
        struct rig rig;

        rig_create(&rig, 64, formats[f]);
        rig_expect_empty(&rig); /* the ring is mapped */
        for (unsigned i = 0; i < 16; i++)
            assert_true(add_read(&rig, rig.data.addr + 4 * i * GUEST_PAGE_SIZE, 4096, indirect) >= 0);
        before = fake_counts(rig.fake);
        for (unsigned i = 0; i < 16; i++) {
            struct iovec data;

            status[i] = take_read(&rig, &chains[i], &data);
            assert_int_equal(data.iov_len, 4096);
            memset(data.iov_base, (int)i, 4096);
            *status[i] = 0;
        }
        for (unsigned i = 0; i < 16; i++)
            chain_complete(chains[i], 4097);
        assert_false(ring_get(&rig.ring, &used));
        virtqueue_flush(rig.vq);
        after = fake_counts(rig.fake);
        /* Tables and headers are fetched, data and statuses are brought. */
        assert_int_equal(after.grant_copies - before.grant_copies, indirect ? 3 : 2);
        assert_int_equal(after.grant_maps, before.grant_maps);
        for (unsigned i = 0; i < 16; i++) {
            const uint8_t *at = ram(&rig, rig.data.addr + (4 * i + 1) * GUEST_PAGE_SIZE);

            assert_true(ring_get(&rig.ring, &used));
            assert_true(at[0] == i && at[4095] == i);
            assert_int_equal(*ram(&rig, rig.data.addr + 4 * i * GUEST_PAGE_SIZE + 32), 0);
        }
        rig_destroy(&rig);
    }
}

/* How many would share a call is known before the first one is taken, and only then. */
static void test_those_that_wait_are_counted(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        bool packed = (formats[f] & F_PACKED) != 0; /* its entries would have to be looked at */
        struct iovec data;
        struct chain *chain;
        struct rig rig;

        rig_create(&rig, 64, formats[f]);
        assert_int_equal(virtqueue_sharing(rig.vq), 0); /* its ring is not mapped */
        rig_expect_empty(&rig);
        assert_int_equal(virtqueue_sharing(rig.vq), 0);
        for (unsigned i = 0; i < 3; i++) {
            assert_true(add_read(&rig, rig.data.addr + 4 * i * GUEST_PAGE_SIZE, 4096, false) >= 0);
            assert_int_equal(virtqueue_sharing(rig.vq), packed ? 0 : i + 1);
        }
        *take_read(&rig, &chain, &data) = 0;
        /* The other two were fetched with it. */
        assert_int_equal(virtqueue_sharing(rig.vq), 0);
        assert_true(virtqueue_has_work(rig.vq));
        chain_complete(chain, 4097);
        for (unsigned i = 0; i < 2; i++) {
            *take_read(&rig, &chain, &data) = 0;
            chain_complete(chain, 4097);
        }
        assert_int_equal(virtqueue_sharing(rig.vq), 0);
        if (!packed) {
            /* An index that cannot be is reported by who takes them. */
            ram_store16(avail_idx(&rig.ring), (uint16_t)(3 + 65));
            assert_int_equal(virtqueue_sharing(rig.vq), 0);
            rig_expect_broken(&rig);
        }
        rig_destroy(&rig);
    }
}

static void test_large_requests_are_mapped(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        struct segment out = segment(0, LARGE), in = segment(0, 1);
        struct fake_counts before, after;
        struct ring_used used;
        struct iovec data;
        struct chain *chain;
        struct rig rig;
        uint8_t *status;
        size_t bytes;

        rig_create(&rig, 16, formats[f]);
        rig_expect_empty(&rig);
        assert_int_equal(fake_counts(rig.fake).granted_pages, rings_pages(&rig));
        before = fake_counts(rig.fake);
        /* A read: at an odd address, over one page more than its length says. */
        assert_true(add_read(&rig, rig.data.addr + 24, LARGE, false) >= 0);
        status = take_read(&rig, &chain, &data);
        assert_false(chain->pinnable);
        assert_int_equal(data.iov_len, LARGE);
        assert_int_equal((uintptr_t)data.iov_base % GUEST_PAGE_SIZE, 24);
        memset(data.iov_base, 0x42, LARGE);
        *status = 0;
        chain_complete(chain, LARGE + 1);
        /* It is mapped until the driver is told, and not any longer: ring_get ends the grants. */
        assert_int_equal(fake_counts(rig.fake).granted_pages,
                         rings_pages(&rig) + LARGE / GUEST_PAGE_SIZE + 2);
        virtqueue_flush(rig.vq);
        assert_int_equal(fake_counts(rig.fake).granted_pages, rings_pages(&rig));
        assert_true(ring_get(&rig.ring, &used));
        assert_int_equal(ram(&rig, rig.data.addr + 24 + GUEST_PAGE_SIZE + LARGE)[-1], 0x42);
        assert_int_equal(*ram(&rig, rig.data.addr + 24 + 32), 0);
        /* A write: granted, and mapped, for reading only. */
        out.addr.addr = rig.data.addr + GUEST_PAGE_SIZE;
        in.addr.addr = rig.data.addr;
        assert_true(ring_add(&rig.ring, &out, 1, &in, 1, NULL, false) >= 0);
        chain = rig_pop(&rig);
        assert_false(chain->faulted);
        assert_int_equal(chain_readable(chain, &data, 1, SIZE_MAX, &bytes), 1);
        assert_int_equal(bytes, LARGE);
        assert_int_equal(((uint8_t *)data.iov_base)[LARGE - GUEST_PAGE_SIZE], 0x42);
        chain_complete(chain, 0);
        virtqueue_flush(rig.vq);
        assert_true(ring_get(&rig.ring, &used));
        after = fake_counts(rig.fake);
        assert_int_equal(after.grant_maps - before.grant_maps, 2);
        assert_int_equal(after.grant_unmaps - before.grant_unmaps, 2);
        rig_destroy(&rig);
    }
}

/* Pages that lie anywhere in the guest are one buffer for the device: one operation of the host. */
static void test_copies_of_pages_are_one_buffer(void **state)
{
    enum { PAGES = 32 };

    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++)
        for (unsigned writes = 0; writes < 2; writes++) {
            struct segment out[PAGES + 1], in[PAGES + 1];
            const struct iovec *rest;
            struct ring_used used;
            struct chain *chain;
            struct iovec status;
            struct rig rig;
            char header[16];
            unsigned n;

            rig_create(&rig, 128, formats[f]);
            out[0] = segment(rig.data.addr, sizeof(header));
            memcpy(ram(&rig, rig.data.addr), "header of 16 b.", sizeof(header));
            for (unsigned i = 0; i < PAGES; i++) {
                uint64_t at = rig.data.addr + 2 * (PAGES - i) * GUEST_PAGE_SIZE;

                *(writes ? &in[i] : &out[1 + i]) = segment(at, GUEST_PAGE_SIZE);
                memset(ram(&rig, at), (int)i, GUEST_PAGE_SIZE);
                memset(ram(&rig, at + GUEST_PAGE_SIZE), NO_STATUS, GUEST_PAGE_SIZE);
            }
            in[writes ? PAGES : 0] = segment(rig.data.addr + 32, 1);
            assert_true(ring_add(&rig.ring, out, writes ? 1 : PAGES + 1, in, writes ? PAGES + 1 : 1,
                                 NULL, (formats[f] & F_INDIRECT) != 0) >= 0);
            chain = rig_pop(&rig);
            assert_int_equal(chain_take_tail(chain, 1, &status, 1), 1);
            assert_int_equal(chain_read(chain, header, sizeof(header)), sizeof(header));
            assert_memory_equal(header, "header of 16 b.", sizeof(header));
            n = writes ? chain_rest_writable(chain, &rest) : chain_rest_readable(chain, &rest);
            assert_int_equal(n, 1);
            assert_int_equal(rest->iov_len, PAGES * GUEST_PAGE_SIZE);
            assert_int_equal((uintptr_t)rest->iov_base % GUEST_PAGE_SIZE, 0);
            for (unsigned i = 0; i < PAGES; i++) {
                uint8_t *at = (uint8_t *)rest->iov_base + i * GUEST_PAGE_SIZE;

                if (writes)
                    memset(at, (int)(0x80 | i), GUEST_PAGE_SIZE);
                else
                    assert_true(at[0] == i && at[GUEST_PAGE_SIZE - 1] == i);
            }
            *(uint8_t *)status.iov_base = 7;
            chain_complete(chain, writes ? PAGES * GUEST_PAGE_SIZE + 1 : 1);
            virtqueue_flush(rig.vq);
            assert_true(ring_get(&rig.ring, &used));
            assert_int_equal(*ram(&rig, rig.data.addr + 32), 7);
            for (unsigned i = 0; i < PAGES; i++) {
                const uint8_t *at = ram(&rig, rig.data.addr + 2 * (PAGES - i) * GUEST_PAGE_SIZE);
                uint8_t is = (uint8_t)(writes ? 0x80 | i : i);

                assert_true(at[0] == is && at[GUEST_PAGE_SIZE - 1] == is);
                assert_true(at[GUEST_PAGE_SIZE] == NO_STATUS);
            }
            rig_destroy(&rig);
        }
}

/* What a device says that it wrote is all that reaches the guest, and the status always does. */
static void test_only_what_was_written_is_brought(void **state)
{
    struct ring_used used;
    struct chain *chain;
    struct iovec data;
    struct rig rig;
    uint8_t *status, *at;

    (void)state;
    rig_create(&rig, 16, F_ACCESS_PLATFORM);
    add_read(&rig, rig.data.addr, 4096, false);
    status = take_read(&rig, &chain, &data);
    memset(data.iov_base, 0x11, 4096);
    *status = 7;
    chain_complete(chain, 100);
    virtqueue_flush(rig.vq);
    assert_true(ring_get(&rig.ring, &used));
    at = ram(&rig, rig.data.addr + GUEST_PAGE_SIZE);
    assert_true(at[99] == 0x11 && at[100] == NO_STATUS && at[4095] == NO_STATUS);
    assert_int_equal(*ram(&rig, rig.data.addr + 32), 7);
    rig_destroy(&rig);
}

/* More than the memory for copies holds: chains wait in the ring until others are given back. */
static void test_copies_have_bounded_memory(void **state)
{
    const uint32_t each = RIG_COPY_MAX, n = 128;
    struct chain *chains[128];
    struct ring_used used;
    unsigned out = 0, done = 0;
    struct rig rig;
    uint64_t at;

    (void)state;
    rig_create(&rig, 128, F_ACCESS_PLATFORM);
    at = guest_alloc(&rig.heap, n * each, GUEST_PAGE_SIZE).addr;
    for (uint32_t i = 0; i < n; i++) {
        struct segment in = segment(at + i * each, each);

        assert_true(ring_add(&rig.ring, NULL, 0, &in, 1, NULL, false) >= 0);
    }
    while (done < n) {
        while (virtqueue_pop(rig.vq, &chains[out]) == 1)
            out++;
        assert_in_range(out, 1, GRANTS_POOL_PAGES * GUEST_PAGE_SIZE / each);
        assert_true(virtqueue_starved(rig.vq) || done + out == n);
        while (out > 0) {
            chain_write(chains[--out], "data", 4);
            chain_complete(chains[out], 4);
            done++;
        }
        virtqueue_flush(rig.vq);
        while (ring_get(&rig.ring, &used))
            assert_int_equal(used.len, 4);
    }
    rig_destroy(&rig);
}

static void test_mapped_pages_are_bounded(void **state)
{
    const uint32_t each = (uint32_t)(GRANT_MAP_MAX * GUEST_PAGE_SIZE);
    struct chain *chains[8];
    struct segment in[2];
    unsigned out = 0;
    struct rig rig;

    (void)state;
    rig_create(&rig, 16, F_ACCESS_PLATFORM);
    in[0] = segment(FAKE_BANK1_BASE, each);
    for (unsigned i = 0; i < 6; i++)
        assert_true(ring_add(&rig.ring, NULL, 0, in, 1, NULL, false) >= 0);
    while (virtqueue_pop(rig.vq, &chains[out]) == 1)
        assert_false(chains[out++]->faulted);
    assert_int_equal(out, GRANTS_MAPPED_MAX / GRANT_MAP_MAX);
    while (out > 0)
        chain_complete(chains[--out], 0);
    virtqueue_flush(rig.vq);
    while (virtqueue_pop(rig.vq, &chains[0]) == 1)
        chain_complete(chains[0], 0);
    virtqueue_flush(rig.vq);
    /* A page more than can be mapped at once: the request fails, and can say so. */
    in[1] = segment(FAKE_BANK1_BASE + each, 8);
    assert_true(ring_add(&rig.ring, NULL, 0, in, 2, NULL, false) >= 0);
    chains[0] = rig_pop(&rig);
    assert_true(chains[0]->faulted);
    assert_int_equal(chain_write(chains[0], "12345678", 9), 8);
    chain_complete(chains[0], 8);
    virtqueue_flush(rig.vq);
    assert_memory_equal(ram(&rig, FAKE_BANK1_BASE + each), "12345678", 8);
    rig_destroy(&rig);
}

/* Elements at odd places of their pages need twice the memory that they hold; all of it is there. */
static void test_a_chain_that_needs_most_memory(void **state)
{
    const uint32_t len = GUEST_PAGE_SIZE + 1, n = 255;
    struct segment out[255], in[255];
    struct virtqueue_setup setup;
    struct ring_used used;
    struct chain *chain;
    struct rig rig;
    uint8_t byte = 0;

    (void)state;
    rig_create(&rig, 512, F_ACCESS_PLATFORM);
    setup = ring_setup(&rig.ring);
    virtqueue_stop(rig.vq);
    virtqueue_destroy(rig.vq);
    assert_int_equal(virtqueue_create(&(struct virtqueue_config){.size_max = 512,
                                                                 .request_size = sizeof(struct chain),
                                                                 .grants = rig.grants},
                                      &rig.vq), 0);
    assert_int_equal(virtqueue_start(rig.vq, &setup), 0);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = segment(FAKE_BANK1_BASE + 2 * i * GUEST_PAGE_SIZE + 4095, len);
        in[i] = segment(FAKE_BANK1_BASE + 2 * (n + i) * GUEST_PAGE_SIZE + 2048, len);
    }
    *ram(&rig, FAKE_BANK1_BASE + 4095) = 0x77;
    assert_true(ring_add(&rig.ring, out, n, in, n, NULL, false) >= 0);
    chain = rig_pop(&rig);
    assert_false(chain->faulted);
    assert_int_equal(chain_read(chain, &byte, 1), 1);
    assert_int_equal(byte, 0x77);
    assert_int_equal(chain_write(chain, NULL, SIZE_MAX), n * len);
    chain_complete(chain, n * len);
    virtqueue_flush(rig.vq);
    assert_true(ring_get(&rig.ring, &used));
    assert_int_equal(fake_counts(rig.fake).grant_maps, 3); /* the ring's areas */
    rig_destroy(&rig);
}

static void test_a_device_may_give_back_or_stop(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_SIZE(formats); f++) {
        bool indirect = (formats[f] & F_INDIRECT) != 0;
        struct chain *chain, *held;
        struct iovec data;
        struct rig rig;

        rig_create(&rig, 64, formats[f]);
        for (unsigned i = 0; i < 8; i++)
            add_read(&rig, rig.data.addr + 32 * i * GUEST_PAGE_SIZE, i % 2 ? 64 : LARGE, indirect);
        take_read(&rig, &chain, &data);
        chain_put_back(chain);
        assert_true(virtqueue_has_work(rig.vq));
        take_read(&rig, &held, &data);
        assert_ptr_equal(held, chain);
        assert_int_equal(data.iov_len, LARGE);
        chain_put_back(held);
        /* All that was taken goes back into the ring, and nothing of it is mapped. */
        assert_true(fake_counts(rig.fake).granted_pages > rings_pages(&rig));
        virtqueue_forget_mapping(rig.vq);
        assert_int_equal(fake_counts(rig.fake).granted_pages, rings_pages(&rig));
        for (unsigned i = 0; i < 4; i++) {
            take_read(&rig, &chain, &data);
            assert_int_equal(data.iov_len, i % 2 ? 64 : LARGE);
            if (i > 0)
                chain_complete(chain, 0);
            else
                held = chain;
        }
        /* Stopped with some that wait for pop, some for flush, and one out: that one stays mapped. */
        virtqueue_stop(rig.vq);
        assert_int_equal(fake_counts(rig.fake).granted_pages, LARGE / GUEST_PAGE_SIZE + 1);
        memset(data.iov_base, 0, 1);
        chain_complete(held, LARGE);
        assert_int_equal(fake_counts(rig.fake).granted_pages, 0);
        ring_restart(&rig.ring, 64);
        rig_start(&rig);
        rig_expect_recovery(&rig);
        rig_destroy(&rig);
    }
}

/* ---- grants that are not good ---- */

enum wrong { REVOKED, TO_OTHER, NEVER, NO_GRANT, READ_ONLY, WRONGS };

static uint64_t wrong_address(struct rig *rig, enum wrong wrong, uint64_t at, uint32_t pages)
{
    uint32_t ref = fake_grant(rig->fake, at, pages, wrong == READ_ONLY);

    switch (wrong) {
    case REVOKED:
        fake_grant_revoke(rig->fake, ref + pages - 1);
        break;
    case TO_OTHER:
        fake_grant_to_other(rig->fake, ref + pages - 1);
        break;
    case NEVER:
        return UINT64_C(1) << 63 | UINT64_C(0xfffffff) << 12;
    case NO_GRANT:
        return at;
    default:
        break;
    }
    return fake_grant_address(ref, at);
}

/* A chain of a header, data and a status, one of which is at `bad`. */
static void offer_wrong(struct rig *rig, unsigned which, uint64_t bad, uint32_t len, bool data_read)
{
    uint64_t at = rig->data.addr + 64 * GUEST_PAGE_SIZE;
    uint64_t good = fake_grant_address(fake_grant(rig->fake, at, 1, false), at);
    uint64_t data_at =
        fake_grant_address(fake_grant(rig->fake, at, len / 4096 + 1, false), at);
    struct raw raw[] = {{good, 16, NEXT, 1},
                        {data_at, len, (uint16_t)(NEXT | (data_read ? 0 : WRITE)), 2},
                        {good + 64, 1, WRITE, 0}};

    raw[which].addr = bad;
    *ram(rig, at + 64) = NO_STATUS;
    offer(rig, raw, 3);
}

static void test_row_20_wrong_grants_fail_their_request(void **state)
{
    static const uint32_t lengths[] = {512, 8192, LARGE};

    (void)state;
    for (unsigned wrong = 0; wrong < WRONGS; wrong++)
        for (unsigned packed = 0; packed < 2; packed++)
            for (size_t l = 0; l < ARRAY_SIZE(lengths); l++)
                for (unsigned which = 0; which < 3; which++) {
                    uint32_t len = which == 1 ? lengths[l] : 16;
                    bool reads = which == 0 || (which == 1 && wrong % 2 != 0 && wrong != READ_ONLY);
                    struct iovec status;
                    struct chain *chain;
                    struct rig rig;
                    int ret;

                    rig_create(&rig, SIZE, F_ACCESS_PLATFORM | (packed ? F_PACKED : 0));
                    offer_wrong(&rig, which,
                                wrong_address(&rig, wrong, rig.data.addr, (len + 4095) / 4096), lengths[l],
                                which != 1 ? true : reads);
                    ret = virtqueue_pop(rig.vq, &chain);
                    if (which == 2 && wrong == NO_GRANT) {
                        assert_int_equal(ret, -EPROTO); /* seen at once, as without grants */
                        rig_expect_recovery(&rig);
                        rig_destroy(&rig);
                        continue;
                    }
                    assert_int_equal(ret, 1);
                    /* Mapping finds it out, and copying what is read; what is written is seen later. */
                    if (wrong == READ_ONLY && which == 0)
                        assert_false(chain->faulted);
                    else if (reads || wrong == NO_GRANT || (which == 1 && lengths[l] == LARGE))
                        assert_true(chain->faulted);
                    assert_int_equal(chain_take_tail(chain, 1, &status, 1), 1);
                    *(uint8_t *)status.iov_base = chain->faulted ? 1 : 0;
                    if (!chain->faulted)
                        chain_write(chain, NULL, SIZE_MAX);
                    chain_complete(chain, chain->faulted || which != 1 ? 0 : lengths[l] + 1);
                    virtqueue_flush(rig.vq);
                    if (which == 2) {
                        /* Nobody can say how it went. */
                        rig_expect_broken(&rig);
                    } else {
                        uint8_t said = *ram(&rig, rig.data.addr + 64 * GUEST_PAGE_SIZE + 64);

                        assert_false(virtqueue_broken(rig.vq));
                        if (wrong == READ_ONLY && which == 0)
                            assert_int_equal(said, 0);
                        else
                            assert_true(said == 1 || said == ERROR_STATUS);
                    }
                    rig_expect_recovery(&rig);
                    rig_destroy(&rig);
                }
}

/* The guest takes it back while the request is under way. */
static void test_row_20_revoked_in_flight(void **state)
{
    static const uint32_t lengths[] = {4096, LARGE};

    (void)state;
    for (size_t l = 0; l < ARRAY_SIZE(lengths); l++)
        for (unsigned which = 0; which < 2; which++) {
            uint32_t len = lengths[l];
            struct ring_used used;
            struct ring_buffer *buffer;
            struct chain *chain;
            struct iovec data;
            struct rig rig;
            uint8_t *status;
            int id;

            rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
            id = add_read(&rig, rig.data.addr, len, false);
            status = take_read(&rig, &chain, &data);
            buffer = &rig.ring.buffers[id];
            assert_int_equal(buffer->n_grants, 3);
            /* The grant of the data's last page, or of the status. */
            fake_grant_revoke(rig.fake, buffer->grants[1 + which].ref +
                                            buffer->grants[1 + which].pages - 1);
            memset(data.iov_base, 1, len);
            *status = 0;
            chain_complete(chain, len + 1);
            virtqueue_flush(rig.vq);
            if (len == LARGE) {
                /* It was mapped: Xen keeps it so. */
                assert_true(ring_get(&rig.ring, &used));
                assert_int_equal(*ram(&rig, rig.data.addr + 32), 0);
            } else if (which == 0) {
                assert_true(ring_get(&rig.ring, &used));
                assert_int_equal(used.len, 0);
                assert_int_equal(*ram(&rig, rig.data.addr + 32), ERROR_STATUS);
            } else {
                rig_expect_broken(&rig);
            }
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
}

static void test_row_20_the_host_refuses(void **state)
{
    struct chain *chain;
    struct iovec data;
    struct rig rig;

    (void)state;
    rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
    rig_expect_empty(&rig);
    fake_fail(rig.fake, FAKE_GRANT_COPY, 1, -ENOMEM);
    add_read(&rig, rig.data.addr, 64, false);
    chain = rig_pop(&rig);
    assert_true(chain->faulted);
    chain_complete(chain, 0);
    fake_fail(rig.fake, FAKE_GRANT_MAP, 1, -ENOMEM);
    add_read(&rig, rig.data.addr + 8 * GUEST_PAGE_SIZE, LARGE, false);
    chain = rig_pop(&rig);
    assert_true(chain->faulted);
    assert_int_equal(chain_take_tail(chain, 1, &data, 1), 1);
    *(uint8_t *)data.iov_base = 1;
    chain_complete(chain, 0);
    virtqueue_flush(rig.vq);
    assert_int_equal(*ram(&rig, rig.data.addr + 8 * GUEST_PAGE_SIZE + 32), 1);
    rig_destroy(&rig);

    rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
    fake_fail(rig.fake, FAKE_GRANT_MAP, 3, -ENOMEM); /* the last area of the ring */
    assert_int_equal(virtqueue_pop(rig.vq, &chain), -ENOMEM);
    rig_expect_empty(&rig);
    rig_destroy(&rig);

    rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
    fake_fail(rig.fake, FAKE_GRANT_MAP, 3, -EFAULT);
    rig_expect_broken(&rig);
    rig_expect_recovery(&rig);
    rig_destroy(&rig);
}

/* One page under two references, and one reference twice: the guest's own affair. */
static void test_row_20_references_may_repeat(void **state)
{
    struct raw raw[3];
    struct chain *chain;
    struct rig rig;
    uint64_t at;

    (void)state;
    rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
    at = fake_grant_address(fake_grant(rig.fake, rig.data.addr, LARGE / 4096, false), rig.data.addr);
    raw[0] = (struct raw){at, LARGE, NEXT, 1};
    raw[1] = (struct raw){at, LARGE, NEXT | WRITE, 2};
    raw[2] = (struct raw){at, 16, WRITE, 0};
    offer(&rig, raw, 3);
    chain = rig_pop(&rig);
    assert_false(chain->faulted);
    assert_int_equal(chain_write(chain, NULL, SIZE_MAX), LARGE + 16);
    chain_complete(chain, LARGE + 16);
    virtqueue_flush(rig.vq);
    assert_int_equal(fake_counts(rig.fake).granted_pages, rings_pages(&rig));
    rig_destroy(&rig);
}

static void test_row_12_rings_and_tables(void **state)
{
    (void)state;
    for (unsigned wrong = 0; wrong < WRONGS; wrong++) {
        for (unsigned area = 0; area < 3; area++) {
            struct rig rig;
            uint64_t *at;

            rig_create(&rig, SIZE, F_ACCESS_PLATFORM);
            virtqueue_stop(rig.vq);
            at = &rig.ring.bus[area].addr;
            *at = wrong_address(&rig, wrong, rig.data.addr, 1);
            rig_start(&rig);
            if (wrong == READ_ONLY && area < 2)
                rig_expect_empty(&rig); /* a split ring's device writes the used ring alone */
            else
                rig_expect_broken(&rig);
            assert_in_range(fake_counts(rig.fake).granted_pages, 0, 3);
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
        for (unsigned packed = 0; packed < 2; packed++) {
            struct raw raw = {0, 32, INDIRECT, 0};
            struct rig rig;

            if (wrong == READ_ONLY)
                continue;
            rig_create(&rig, SIZE, F_ACCESS_PLATFORM | F_INDIRECT | (packed ? F_PACKED : 0));
            raw.addr = wrong_address(&rig, wrong, rig.data.addr, 1);
            offer(&rig, &raw, 1);
            rig_expect_broken(&rig);
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
    }
}

/* The address of a grant means nothing to a device that knows physical ones. */
static void test_row_12_a_grant_without_grants(void **state)
{
    struct chain *chain;
    struct raw raw[2];
    struct rig rig;

    (void)state;
    rig_create(&rig, SIZE, 0);
    raw[0] = (struct raw){fake_grant_address(fake_grant(rig.fake, rig.data.addr, 1, false), 0), 16,
                          NEXT, 1};
    raw[1] = (struct raw){rig.data.addr, 1, WRITE, 0};
    offer(&rig, raw, 2);
    chain = rig_pop(&rig);
    assert_true(chain->faulted);
    chain_complete(chain, 0);
    rig_destroy(&rig);
}

static void test_row_11_references_that_wrap(void **state)
{
    struct grant_span span;

    (void)state;
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x8000000000000ffc)}, 8, &span), 0);
    assert_int_equal(span.ref, 0);
    assert_int_equal(span.pages, 2);
    assert_int_equal(span.offset, 0xffc);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x80000ffffffff000)}, 4096, &span), 0);
    assert_int_equal(span.ref, UINT32_MAX);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x80000ffffffff001)}, 4096, &span), -EFAULT);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x8000100000000000)}, 1, &span), -EFAULT);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0xffffffffffffffff)}, UINT32_MAX, &span), -EFAULT);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x8000000000000000)}, UINT32_MAX, &span), 0);
    assert_int_equal(span.pages, 1u << 20);
    assert_int_equal(grant_span_of((gpa_t){UINT64_C(0x8000000000000000)}, 0, &span), -EFAULT);
    assert_int_equal(grant_span_of((gpa_t){0x40000000}, 16, &span), -EFAULT);
}

/* ---- a device ---- */

static void test_access_platform(void **state)
{
    struct machine_config config = {.grants = true};
    struct machine *m = machine_create(&config);

    (void)state;
    assert_true((driver_offered(m) & F_ACCESS_PLATFORM) != 0);
    assert_false(driver_negotiate(m, F_VERSION_1)); /* its addresses would be physical */
    assert_true(driver_negotiate(m, F_VERSION_1 | F_ACCESS_PLATFORM));
    machine_destroy(m);
    if (getenv("VIOD_FAKE_GRANTS") != NULL)
        return;
    m = machine_create(NULL);
    assert_true((driver_offered(m) & F_ACCESS_PLATFORM) == 0);
    assert_false(driver_negotiate(m, F_VERSION_1 | F_ACCESS_PLATFORM));
    machine_destroy(m);
}

/* Status reads 0, and a queue that is reset does, only when nothing is mapped. */
static void test_row_15_resets_leave_nothing_mapped(void **state)
{
    struct machine_config config = {.grants = true};
    struct machine *m = machine_create(&config);
    gpa_t buffer = guest_alloc(&m->heap[0], 2 * LARGE, 4096);
    struct ring_used used;
    struct driver d;

    (void)state;
    driver_start(&d, m, F_VERSION_1 | F_RING_RESET, 1, 16);
    for (unsigned i = 0; i < 4; i++) {
        driver_add_echo(&d.rings[0], buffer, LARGE, i, false);
        driver_kick(&d, 0);
        assert_true(ring_get(&d.rings[0], &used));
        assert_true(driver_check_echo(&d.rings[0], buffer, LARGE, i));
        assert_true(fake_counts(m->fake).granted_pages > 0);
        if (i % 2 == 0) {
            driver_reset_queue(m, 0);
            assert_int_equal(fake_counts(m->fake).granted_pages, 0);
            ring_restart(&d.rings[0], 16);
            driver_enable_queue(m, 0, &d.rings[0]);
        } else {
            machine_write32(m, VIRTIO_MMIO_STATUS, 0);
            assert_int_equal(fake_counts(m->fake).granted_pages, 0);
            driver_restart(&d);
        }
    }
    machine_destroy(m);
    driver_end(&d);
}

/* Grants are pages that the guest cannot give back: the ring stays as it is. */
static void test_row_19_ballooning(void **state)
{
    struct machine_config config = {.grants = true};
    struct machine *m = machine_create(&config);
    gpa_t buffer = guest_alloc(&m->heap[0], 4096, 16), other = guest_alloc(&m->heap[0], 4096, 4096);
    struct ring_used used;
    struct driver d;
    uint64_t maps;

    (void)state;
    driver_start(&d, m, F_VERSION_1, 1, 16);
    driver_add_echo(&d.rings[0], buffer, 64, 1, false);
    driver_kick(&d, 0);
    maps = fake_counts(m->fake).grant_maps;
    machine_balloon_out(m, other.addr, 1);
    assert_true(ring_get(&d.rings[0], &used));
    driver_add_echo(&d.rings[0], buffer, 64, 2, false);
    driver_kick(&d, 0);
    assert_true(ring_get(&d.rings[0], &used));
    assert_int_equal(fake_counts(m->fake).grant_maps, maps);
    machine_destroy(m);
    driver_end(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_shares_its_calls),
        cmocka_unit_test(test_those_that_wait_are_counted),
        cmocka_unit_test(test_large_requests_are_mapped),
        cmocka_unit_test(test_copies_of_pages_are_one_buffer),
        cmocka_unit_test(test_only_what_was_written_is_brought),
        cmocka_unit_test(test_copies_have_bounded_memory),
        cmocka_unit_test(test_mapped_pages_are_bounded),
        cmocka_unit_test(test_a_chain_that_needs_most_memory),
        cmocka_unit_test(test_a_device_may_give_back_or_stop),
        cmocka_unit_test(test_row_20_wrong_grants_fail_their_request),
        cmocka_unit_test(test_row_20_revoked_in_flight),
        cmocka_unit_test(test_row_20_the_host_refuses),
        cmocka_unit_test(test_row_20_references_may_repeat),
        cmocka_unit_test(test_row_12_rings_and_tables),
        cmocka_unit_test(test_row_12_a_grant_without_grants),
        cmocka_unit_test(test_row_11_references_that_wrap),
        cmocka_unit_test(test_access_platform),
        cmocka_unit_test(test_row_15_resets_leave_nothing_mapped),
        cmocka_unit_test(test_row_19_ballooning),
    };

    return cmocka_run_group_tests_name("grants", tests, NULL, NULL);
}
