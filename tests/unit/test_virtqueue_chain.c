/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and filling chains, however the driver cut them up: rows 8, 9 and 11. */
#include "unit.h"

#include <stdlib.h>

#define MESSAGE 40u /* bytes, each way */

/* One chain with these segments, taken off the ring. */
static struct chain *make(struct rig *rig, const struct segment *out, unsigned n_out,
                          const struct segment *in, unsigned n_in)
{
    bool indirect = n_out + n_in > 4 && (rig->ring.features & F_INDIRECT) != 0;

    assert_true(ring_add(&rig->ring, out, n_out, in, n_in, rig, indirect) >= 0);
    return rig_pop(rig);
}

static void finish(struct rig *rig, struct chain *chain, uint32_t written)
{
    struct ring_used used;

    chain_complete(chain, written);
    virtqueue_flush(rig->vq);
    assert_true(ring_get(&rig->ring, &used));
    assert_int_equal(used.len, written);
}

/* Cuts [base, base + len) at the places given by the bits of `cuts`. */
static unsigned cut(struct segment *to, uint64_t base, uint32_t len, uint64_t cuts)
{
    unsigned n = 0;
    uint32_t start = 0;

    for (uint32_t i = 1; i <= len; i++) {
        if (i == len || (cuts >> i & 1) != 0) {
            to[n++] = segment(base + start, i - start);
            start = i;
        }
    }
    return n;
}

static void fill(struct rig *rig)
{
    uint8_t *p = fake_ram(rig->fake, rig->data.addr, 2 * MESSAGE);

    for (unsigned i = 0; i < MESSAGE; i++)
        p[i] = (uint8_t)(i * 7 + 1);
    memset(p + MESSAGE, 0xee, MESSAGE);
}

static void check_copy(struct rig *rig)
{
    const uint8_t *p = fake_ram(rig->fake, rig->data.addr, 2 * MESSAGE);

    for (unsigned i = 0; i < MESSAGE; i++)
        assert_int_equal(p[MESSAGE + i], (uint8_t)(i * 7 + 1));
}

static void cuts_of_one_message(struct rig *rig, uint64_t out_cuts, uint64_t in_cuts, size_t step)
{
    struct segment out[MESSAGE], in[MESSAGE];
    unsigned n_out = cut(out, rig->data.addr, MESSAGE, out_cuts);
    unsigned n_in = cut(in, rig->data.addr + MESSAGE, MESSAGE, in_cuts);
    struct chain *chain;
    uint8_t buffer[MESSAGE + 8];
    size_t done = 0;

    fill(rig);
    chain = make(rig, out, n_out, in, n_in);
    assert_int_equal(chain->readable_bytes, MESSAGE);
    assert_int_equal(chain->writable_bytes, MESSAGE);
    assert_int_equal(chain->n_readable, n_out);
    assert_int_equal(chain->n_writable, n_in);
    while (done < MESSAGE) {
        size_t n = chain_read(chain, buffer, MIN(step, sizeof(buffer)));

        assert_int_equal(n, MIN(step, MESSAGE - done));
        assert_int_equal(chain_write(chain, buffer, n), n);
        done += n;
        assert_int_equal(chain->readable_bytes, MESSAGE - done);
        assert_int_equal(chain->writable_bytes, MESSAGE - done);
    }
    assert_int_equal(chain_read(chain, buffer, 8), 0);
    assert_int_equal(chain_write(chain, buffer, 8), 0);
    finish(rig, chain, MESSAGE);
    check_copy(rig);
}

/* A message in two pieces at every place, in single bytes, in random pieces; read in any step. */
static void test_row_09_every_split_of_a_message(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct rig rig;
        uint32_t seed = 77;

        rig_create(&rig, 128, F_INDIRECT | (packed ? F_PACKED : 0));
        for (unsigned k = 1; k < MESSAGE; k++) {
            for (size_t step = 1; step <= MESSAGE + 1; step += 5)
                cuts_of_one_message(&rig, UINT64_C(1) << k, UINT64_C(1) << (MESSAGE - k), step);
        }
        for (size_t step = 1; step <= MESSAGE + 8; step++)
            cuts_of_one_message(&rig, UINT64_MAX, UINT64_MAX, step);
        for (unsigned i = 0; i < 500; i++) {
            seed = seed * 1103515245 + 12345;
            cuts_of_one_message(&rig, (uint64_t)seed * seed, ~(uint64_t)seed * 3, seed % 41 + 1);
        }
        rig_destroy(&rig);
    }
}

/* A header that is longer than what the driver sent: less comes back, nothing beyond is touched. */
static void test_row_09_header_longer_than_the_buffer(void **state)
{
    (void)state;
    for (uint32_t len = 1; len < 16; len++) {
        struct segment out, in;
        struct chain *chain;
        uint8_t header[16];
        struct rig rig;

        rig_create(&rig, 8, 0);
        fill(&rig);
        out = segment(rig.data.addr, len);
        in = segment(rig.data.addr + MESSAGE, len);
        chain = make(&rig, &out, 1, &in, 1);
        memset(header, 0x99, sizeof(header));
        assert_int_equal(chain_read(chain, header, sizeof(header)), len);
        assert_int_equal(header[len], 0x99);
        assert_int_equal(chain_write(chain, header, sizeof(header)), len);
        finish(&rig, chain, len);
        assert_int_equal(*(uint8_t *)fake_ram(rig.fake, rig.data.addr + MESSAGE + len, 1), 0xee);
        rig_destroy(&rig);
    }
}

static void test_skip_and_zeros(void **state)
{
    struct segment out[MESSAGE], in[MESSAGE];
    struct chain *chain;
    uint8_t byte, *p;
    struct rig rig;

    (void)state;
    rig_create(&rig, 128, 0);
    fill(&rig);
    cut(out, rig.data.addr, MESSAGE, UINT64_C(1) << 7 | UINT64_C(1) << 8);
    cut(in, rig.data.addr + MESSAGE, MESSAGE, UINT64_C(1) << 9 | UINT64_C(1) << 30);
    chain = make(&rig, out, 3, in, 3);
    assert_int_equal(chain_skip_readable(chain, 7), 7);
    assert_int_equal(chain_read(chain, &byte, 1), 1);
    assert_int_equal(byte, 7 * 7 + 1);
    assert_int_equal(chain_skip_readable(chain, 1000), MESSAGE - 8);
    assert_int_equal(chain_skip_readable(chain, 1), 0);
    assert_int_equal(chain_skip_writable(chain, 5), 5);
    assert_int_equal(chain_write(chain, NULL, 20), 20);
    assert_int_equal(chain_skip_writable(chain, 1000), MESSAGE - 25);
    finish(&rig, chain, 25);
    p = fake_ram(rig.fake, rig.data.addr + MESSAGE, MESSAGE);
    for (unsigned i = 0; i < MESSAGE; i++)
        assert_int_equal(p[i], i >= 5 && i < 25 ? 0 : 0xee);

    /* Zeros over more than any buffer of zeros. */
    struct segment long_in = segment(rig.data.addr, 100000);
    p = fake_ram(rig.fake, rig.data.addr, 100001);
    memset(p, 0x55, 100001);
    chain = make(&rig, NULL, 0, &long_in, 1);
    assert_int_equal(chain_write(chain, NULL, SIZE_MAX), 100000);
    finish(&rig, chain, 100000);
    for (unsigned i = 0; i < 100000; i++)
        assert_int_equal(p[i], 0);
    assert_int_equal(p[100000], 0x55);
    rig_destroy(&rig);
}

static size_t total(const struct iovec *iov, unsigned n)
{
    size_t bytes = 0;

    for (unsigned i = 0; i < n; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

/* The driver's address of what the device sees at p. */
static uint64_t offset_of(const struct chain *chain, const void *p)
{
    return (uint64_t)((const uint8_t *)p - (const uint8_t *)chain->iov[0].iov_base);
}

static void test_zero_copy_lists(void **state)
{
    struct segment out[3], in[4];
    struct iovec iov[8];
    const struct iovec *rest;
    struct chain *chain;
    unsigned n_rest;
    size_t bytes;
    struct rig rig;
    int n;

    (void)state;
    rig_create(&rig, 16, 0);
    for (unsigned i = 0; i < 3; i++)
        out[i] = segment(rig.data.addr + 100 * i, 10);
    for (unsigned i = 0; i < 4; i++)
        in[i] = segment(rig.data.addr + 1000 + 100 * i, 10);
    chain = make(&rig, out, 3, in, 4);

    n = chain_readable(chain, iov, 8, SIZE_MAX, &bytes);
    assert_int_equal(n, 3);
    assert_int_equal(bytes, 30);
    /* Limited by bytes, by elements, by the cursor. */
    n = chain_readable(chain, iov, 8, 15, &bytes);
    assert_int_equal(n, 2);
    assert_int_equal(bytes, 15);
    assert_int_equal(iov[1].iov_len, 5);
    n = chain_readable(chain, iov, 1, 15, &bytes);
    assert_int_equal(n, 1);
    assert_int_equal(bytes, 10);
    assert_int_equal(chain_readable(chain, iov, 0, 15, &bytes), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(chain_readable(chain, iov, 8, 0, &bytes), 0);
    chain_skip_readable(chain, 13);
    n = chain_readable(chain, iov, 8, 9, &bytes);
    assert_int_equal(n, 2);
    assert_int_equal(bytes, 9);
    assert_int_equal(offset_of(chain, iov[0].iov_base), 103);
    assert_int_equal(iov[0].iov_len, 7);
    assert_int_equal(iov[1].iov_len, 2);
    n_rest = chain_rest_readable(chain, &rest);
    assert_int_equal(total(rest, n_rest), 17);
    assert_int_equal(chain->readable_bytes, 17);
    /* The list is the chain's own: the cursor goes on as if nothing had happened. */
    assert_int_equal(chain_skip_readable(chain, 17), 17);
    assert_int_equal(chain_rest_readable(chain, &rest) == 0 || total(rest, 1) == 0, 1);

    assert_int_equal(chain_write(chain, NULL, 3), 3);
    n = chain_writable(chain, iov, 8, SIZE_MAX, &bytes);
    assert_int_equal(n, 4);
    assert_int_equal(bytes, 37);
    assert_int_equal(offset_of(chain, iov[0].iov_base), 1003);
    n = chain_take_tail(chain, 12, iov, 8);
    assert_int_equal(n, 2);
    assert_int_equal(iov[0].iov_len, 2);
    assert_int_equal(iov[1].iov_len, 10);
    assert_int_equal(offset_of(chain, iov[0].iov_base), 1208);
    assert_int_equal(chain->writable_bytes, 25);
    n_rest = chain_rest_writable(chain, &rest);
    assert_int_equal(total(rest, n_rest), 25);
    assert_int_equal(chain_write(chain, NULL, 100), 25);
    finish(&rig, chain, 40);
    rig_destroy(&rig);
}

/* A footer of every length out of every split, also with the cursor somewhere in the middle. */
static void test_footer_of_every_length(void **state)
{
    struct rig rig;

    (void)state;
    rig_create(&rig, 128, 0);
    for (uint32_t len = 1; len <= 12; len++) {
        for (uint64_t cuts = 0; cuts < 1u << 12; cuts += 5) {
            for (uint32_t before = 0; before <= 12 - len; before += 3) {
                struct segment in[12];
                unsigned n_in = cut(in, rig.data.addr, 12, cuts);
                struct chain *chain = make(&rig, NULL, 0, in, n_in);
                const uint8_t *ram = fake_ram(rig.fake, rig.data.addr, 12);
                struct iovec iov[12];
                int n;

                memset(fake_ram(rig.fake, rig.data.addr, 12), 0, 12);
                assert_int_equal(chain_write(chain, "aaaaaaaaaaaa", before), before);
                n = chain_take_tail(chain, len, iov, 12);
                assert_in_range(n, 1, 12);
                assert_int_equal(total(iov, (unsigned)n), len);
                for (int i = 0; i < n; i++)
                    memset(iov[i].iov_base, 'f', iov[i].iov_len);
                assert_int_equal(chain_write(chain, "bbbbbbbbbbbb", 12), 12 - len - before);
                for (uint32_t i = 0; i < 12; i++)
                    assert_int_equal(ram[i], i < before ? 'a' : i < 12 - len ? 'b' : 'f');
                finish(&rig, chain, 12);
            }
        }
    }
    rig_destroy(&rig);
}

static void test_footer_that_is_not_there(void **state)
{
    struct segment in[3];
    struct iovec iov[4];
    struct chain *chain;
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, 0);
    for (unsigned i = 0; i < 3; i++)
        in[i] = segment(rig.data.addr + 8 * i, 4);
    chain = make(&rig, NULL, 0, in, 3);
    assert_int_equal(chain_take_tail(chain, 13, iov, 4), -EINVAL);
    assert_int_equal(chain_take_tail(chain, 9, iov, 2), -EINVAL);
    /* What failed changed nothing. */
    assert_int_equal(chain->writable_bytes, 12);
    assert_int_equal(chain_write(chain, NULL, 4), 4);
    assert_int_equal(chain_take_tail(chain, 9, iov, 4), -EINVAL);
    assert_int_equal(chain_take_tail(chain, 8, iov, 4), 2);
    assert_int_equal(chain_take_tail(chain, 1, iov, 4), -EINVAL);
    assert_int_equal(chain_write(chain, NULL, 4), 0);
    finish(&rig, chain, 4);
    chain = make(&rig, in, 1, NULL, 0);
    assert_int_equal(chain_take_tail(chain, 1, iov, 4), -EINVAL);
    finish(&rig, chain, 0);
    rig_destroy(&rig);
}

/* Elements of length 0, everywhere, also alone: they count for nothing. */
static void test_row_08_zero_length_elements(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned indirect = 0; indirect < 2; indirect++) {
            struct segment out[3], in[3];
            struct ring_used used;
            struct chain *chain;
            char text[8];
            struct rig rig;

            rig_create(&rig, 16, (packed ? F_PACKED : 0) | F_INDIRECT);
            for (unsigned zeros = 0; zeros < 64; zeros++) {
                uint32_t readable = 0, writable = 0;

                for (unsigned i = 0; i < 3; i++) {
                    out[i] = segment(rig.data.addr + 8 * i, (zeros >> i & 1) != 0 ? 0 : 2);
                    in[i] = segment(rig.data.addr + 8 * i, (zeros >> (3 + i) & 1) != 0 ? 0 : 2);
                    readable += out[i].len;
                    writable += in[i].len;
                }
                ring_add(&rig.ring, out, 3, in, 3, &rig, indirect != 0);
                chain = rig_pop(&rig);
                assert_int_equal(chain->readable_bytes, readable);
                assert_int_equal(chain->writable_bytes, writable);
                assert_int_equal(chain_read(chain, text, 8), readable);
                assert_int_equal(chain_write(chain, text, 8), writable);
                chain_complete(chain, writable);
                virtqueue_flush(rig.vq);
                assert_true(ring_get(&rig.ring, &used));
            }
            rig_destroy(&rig);
        }
    }
}

/* The same memory read and written by one request: the device sees its own writes, no more. */
static void test_row_08_overlapping_elements(void **state)
{
    struct segment out, in[2];
    struct iovec tail[2];
    struct chain *chain;
    char text[16];
    struct rig rig;

    (void)state;
    rig_create(&rig, 8, 0);
    out = segment(rig.data.addr, 16);
    in[0] = segment(rig.data.addr + 4, 16);
    in[1] = segment(rig.data.addr + 8, 1); /* a status byte inside the data */
    memcpy(fake_ram(rig.fake, rig.data.addr, 16), "0123456789abcdef", 16);
    chain = make(&rig, &out, 1, in, 2);
    assert_int_equal(chain_take_tail(chain, 1, tail, 2), 1);
    assert_int_equal(chain_read(chain, text, 16), 16);
    assert_memory_equal(text, "0123456789abcdef", 16);
    assert_int_equal(chain_write(chain, text, 16), 16);
    *(char *)tail[0].iov_base = '!';
    finish(&rig, chain, 17);
    assert_memory_equal(fake_ram(rig.fake, rig.data.addr, 20), "01230123!56789abcdef", 20);
    rig_destroy(&rig);
}

/* Sums of lengths beyond 32 bits are refused; up to there they are counted right. */
static void test_row_11_chain_longer_than_4_gib(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        for (unsigned readable = 0; readable < 2; readable++) {
            struct segment s[70];
            struct ring_used used;
            struct chain *chain;
            struct rig rig;

            rig_create(&rig, 128, packed ? F_PACKED : 0);
            /* 64 times 64 MiB is one byte more than a 32-bit sum can hold. */
            for (unsigned i = 0; i < 70; i++)
                s[i] = segment(FAKE_BANK0_BASE, FAKE_BANK_SIZE);
            s[63].len--;
            ring_add(&rig.ring, s, readable ? 64 : 0, s, readable ? 0 : 64, &rig, false);
            chain = rig_pop(&rig);
            assert_int_equal(readable ? chain->readable_bytes : chain->writable_bytes, UINT32_MAX);
            assert_int_equal(readable ? chain_skip_readable(chain, SIZE_MAX)
                                      : chain_skip_writable(chain, SIZE_MAX),
                             UINT32_MAX);
            chain_complete(chain, 0);
            virtqueue_flush(rig.vq);
            assert_true(ring_get(&rig.ring, &used));
            s[63].len++;
            ring_add(&rig.ring, s, readable ? 64 : 0, s, readable ? 0 : 64, &rig, false);
            rig_expect_broken(&rig);
            rig_expect_recovery(&rig);
            rig_destroy(&rig);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_09_every_split_of_a_message),
        cmocka_unit_test(test_row_09_header_longer_than_the_buffer),
        cmocka_unit_test(test_skip_and_zeros),
        cmocka_unit_test(test_zero_copy_lists),
        cmocka_unit_test(test_footer_of_every_length),
        cmocka_unit_test(test_footer_that_is_not_there),
        cmocka_unit_test(test_row_08_zero_length_elements),
        cmocka_unit_test(test_row_08_overlapping_elements),
        cmocka_unit_test(test_row_11_chain_longer_than_4_gib),
    };

    return cmocka_run_group_tests_name("virtqueue_chain", tests, NULL, NULL);
}
