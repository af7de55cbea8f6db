/* SPDX-License-Identifier: Apache-2.0 */
/* Guest addresses to ours: borders, holes, ballooning, failures: rows 11, 12, 15 and 19. */
#include "unit.h"

#define CHUNK GUEST_CHUNK_SIZE

struct memory {
    struct fake_hypervisor *fake;
    struct hypervisor *hv;
    struct guest_memory *gm;
};

static struct memory create(const struct fake_config *config)
{
    struct memory m = {.fake = fake_create(config)};
    const struct ram_bank *banks;
    size_t n;

    m.hv = fake_seam(m.fake);
    banks = fake_banks(m.fake, &n);
    assert_int_equal(guest_memory_create(m.hv, banks, n, &m.gm), 0);
    return m;
}

static void destroy(struct memory *m)
{
    guest_memory_destroy(m->gm);
    assert_int_equal(fake_counts(m->fake).mapped_pages, 0);
    assert_int_equal(fake_counts(m->fake).outside_ram, 0);
    fake_destroy(m->fake);
}

static int translate(struct memory *m, uint64_t gpa, uint64_t len, void **out)
{
    return guest_memory_translate(m->gm, (gpa_t){gpa}, len, out);
}

/* What one side writes the other one reads, at both ends of the range. */
static void check_same(struct memory *m, uint64_t gpa, uint64_t len)
{
    uint8_t *ram = fake_ram(m->fake, gpa, len), *p;
    void *out = NULL;

    assert_int_equal(translate(m, gpa, len, &out), 0);
    p = out;
    assert_ptr_not_equal(p, ram);
    ram[0] = 0x11;
    ram[len - 1] = (uint8_t)(ram[len - 1] + 1);
    assert_int_equal(p[0], ram[0]);
    assert_int_equal(p[len - 1], ram[len - 1]);
    p[len - 1] = 0x22;
    assert_int_equal(ram[len - 1], 0x22);
}

static void check_fault(struct memory *m, uint64_t gpa, uint64_t len)
{
    void *out = NULL;

    assert_int_equal(translate(m, gpa, len, &out), -EFAULT);
    assert_null(out);
}

static void test_both_banks_and_their_borders(void **state)
{
    static const uint64_t bases[] = {FAKE_BANK0_BASE, FAKE_BANK1_BASE};
    struct memory m = create(NULL);

    (void)state;
    assert_int_equal(fake_counts(m.fake).map_calls, 0); /* lazily */
    for (size_t i = 0; i < ARRAY_SIZE(bases); i++) {
        uint64_t base = bases[i], end = base + FAKE_BANK_SIZE;

        check_same(&m, base, 1);
        check_same(&m, base + CHUNK - 1, 2);         /* across a chunk border */
        check_same(&m, base + CHUNK - 8, 3 * CHUNK); /* across several */
        check_same(&m, end - 1, 1);
        check_same(&m, end - CHUNK - 1, CHUNK + 1);
        check_same(&m, base, FAKE_BANK_SIZE);
        check_fault(&m, base - 1, 1);
        check_fault(&m, base - 1, 2);
        check_fault(&m, end, 1);
        check_fault(&m, end - 1, 2);
        check_fault(&m, base, FAKE_BANK_SIZE + 1);
        check_fault(&m, end - CHUNK, UINT64_MAX);
    }
    assert_int_equal(guest_memory_stats(m.gm).mapped_chunks, 2 * FAKE_BANK_SIZE / CHUNK);
    assert_int_equal(guest_memory_stats(m.gm).map_calls, 2 * FAKE_BANK_SIZE / CHUNK);
    destroy(&m);
}

static void test_row_11_ranges_that_wrap(void **state)
{
    static const uint64_t at[] = {0, 0x02000000, 0x80000000, UINT64_C(1) << 63, UINT64_MAX,
                                  UINT64_MAX - 0xfff, UINT64_MAX - FAKE_BANK_SIZE};
    struct memory m = create(NULL);

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(at); i++) {
        check_fault(&m, at[i], 1);
        check_fault(&m, at[i], GUEST_PAGE_SIZE);
        check_fault(&m, at[i], UINT64_MAX - at[i]);
        check_fault(&m, at[i], UINT64_MAX);
        check_fault(&m, at[i], FAKE_BANK0_BASE - at[i] + 1);
    }
    check_fault(&m, FAKE_BANK0_BASE, UINT64_MAX - FAKE_BANK0_BASE + 2);
    check_fault(&m, FAKE_BANK0_BASE, 0);
    assert_int_equal(fake_counts(m.fake).map_calls, 0);
    destroy(&m);
}

static void test_row_12_holes(void **state)
{
    uint64_t hole = FAKE_BANK0_BASE + 3 * CHUNK + 7 * GUEST_PAGE_SIZE;
    struct memory m = create(NULL);

    (void)state;
    fake_balloon_out(m.fake, hole, 2);
    check_fault(&m, hole, 1);
    check_fault(&m, hole + GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    check_fault(&m, hole - 1, 2);
    check_fault(&m, hole + 2 * GUEST_PAGE_SIZE - 1, 2);
    check_fault(&m, FAKE_BANK0_BASE, FAKE_BANK_SIZE);
    check_same(&m, hole - 1, 1);
    check_same(&m, hole + 2 * GUEST_PAGE_SIZE, 1);
    /* A chunk without a page, and one with the last page only. */
    fake_balloon_out(m.fake, FAKE_BANK0_BASE + 8 * CHUNK, CHUNK / GUEST_PAGE_SIZE);
    check_fault(&m, FAKE_BANK0_BASE + 8 * CHUNK, 1);
    check_fault(&m, FAKE_BANK0_BASE + 8 * CHUNK - 1, 2);
    check_fault(&m, FAKE_BANK0_BASE + 9 * CHUNK - 1, 1);
    fake_balloon_out(m.fake, FAKE_BANK0_BASE + 10 * CHUNK, CHUNK / GUEST_PAGE_SIZE - 1);
    check_fault(&m, FAKE_BANK0_BASE + 11 * CHUNK - 2 * GUEST_PAGE_SIZE, 1);
    check_same(&m, FAKE_BANK0_BASE + 11 * CHUNK - GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
    destroy(&m);
}

/* Every page of a chunk, alone missing: the bitmap's words and their borders. */
static void test_every_page_of_a_chunk_as_the_hole(void **state)
{
    struct memory m = create(NULL);

    (void)state;
    for (uint64_t page = 0; page < CHUNK / GUEST_PAGE_SIZE; page += page < 130 ? 1 : 61) {
        uint64_t at = FAKE_BANK1_BASE + page * GUEST_PAGE_SIZE;

        fake_balloon_out(m.fake, at, 1);
        check_fault(&m, FAKE_BANK1_BASE, CHUNK);
        check_fault(&m, at, 1);
        if (page > 0)
            check_same(&m, FAKE_BANK1_BASE, page * GUEST_PAGE_SIZE);
        check_same(&m, at + GUEST_PAGE_SIZE, CHUNK - page * GUEST_PAGE_SIZE);
        fake_balloon_in(m.fake, at, 1);
        guest_memory_drop(m.gm);
    }
    destroy(&m);
}

/* One that is there again is reason enough to map the chunk anew: the others are not asked for. */
static void test_row_26_many_that_come_back(void **state)
{
    uint64_t page = FAKE_BANK0_BASE + 5 * CHUNK, before;
    struct memory m = create(NULL);
    void *out;

    (void)state;
    fake_balloon_out(m.fake, page, 300);
    check_fault(&m, page, 1);
    fake_balloon_in(m.fake, page, 300);
    before = guest_memory_stats(m.gm).probes;
    assert_int_equal(translate(&m, page, 300 * GUEST_PAGE_SIZE, &out), -EAGAIN);
    assert_int_equal(guest_memory_stats(m.gm).probes - before, 1);
    guest_memory_drop_stale(m.gm);
    check_same(&m, page, 300 * GUEST_PAGE_SIZE);
    destroy(&m);
}

static void test_row_19_page_that_comes_back(void **state)
{
    uint64_t page = FAKE_BANK0_BASE + 5 * CHUNK;
    struct memory m = create(NULL);
    void *out;

    (void)state;
    fake_balloon_out(m.fake, page, 1);
    check_fault(&m, page, 1);
    check_fault(&m, page, 1);
    check_same(&m, page + GUEST_PAGE_SIZE, 8);
    check_fault(&m, page, 1);
    assert_true(guest_memory_stats(m.gm).probes >= 1);
    fake_balloon_in(m.fake, page, 1);
    assert_int_equal(translate(&m, page, 8, &out), -EAGAIN);
    assert_int_equal(translate(&m, page, 8, &out), -EAGAIN);
    /* The rest of the chunk still works, and so do the others. */
    check_same(&m, page + GUEST_PAGE_SIZE, 8);
    check_same(&m, FAKE_BANK1_BASE, 8);
    guest_memory_drop_stale(m.gm);
    assert_int_equal(guest_memory_stats(m.gm).mapped_chunks, 1);
    check_same(&m, page, 8);
    /* Nothing was recorded: nothing is dropped. */
    guest_memory_drop_stale(m.gm);
    assert_int_equal(guest_memory_stats(m.gm).mapped_chunks, 2);
    destroy(&m);
}

/* More stale chunks than are remembered one by one; and a range over several of them. */
static void test_row_19_many_stale_chunks(void **state)
{
    struct memory m = create(NULL);
    void *out;

    (void)state;
    for (unsigned i = 0; i < 30; i++)
        fake_balloon_out(m.fake, FAKE_BANK0_BASE + i * CHUNK, 1);
    for (unsigned i = 0; i < 30; i++)
        check_same(&m, FAKE_BANK0_BASE + i * CHUNK + GUEST_PAGE_SIZE, 1);
    for (unsigned i = 0; i < 30; i++)
        fake_balloon_in(m.fake, FAKE_BANK0_BASE + i * CHUNK, 1);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE, 3 * CHUNK, &out), -EAGAIN);
    guest_memory_drop_stale(m.gm);
    check_same(&m, FAKE_BANK0_BASE, 3 * CHUNK);
    for (unsigned i = 3; i < 30; i++) {
        assert_int_equal(translate(&m, FAKE_BANK0_BASE + i * CHUNK, 1, &out), -EAGAIN);
        assert_int_equal(translate(&m, FAKE_BANK0_BASE + i * CHUNK, 1, &out), -EAGAIN);
    }
    guest_memory_drop_stale(m.gm);
    for (unsigned i = 0; i < 30; i++)
        check_same(&m, FAKE_BANK0_BASE + i * CHUNK, 1);
    assert_int_equal(fake_stale_pages(m.fake), 0);
    destroy(&m);
}

/* After a drop nothing is mapped, and what comes then is the guest's memory of that moment. */
static void test_row_19_drop(void **state)
{
    struct memory m = create(NULL);

    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        uint64_t page = FAKE_BANK1_BASE + i * GUEST_PAGE_SIZE;

        check_same(&m, page, 8);
        check_same(&m, FAKE_BANK0_BASE, 8);
        fake_balloon_out(m.fake, page, 1);
        fake_balloon_in(m.fake, page, 1);
        assert_int_equal(fake_stale_pages(m.fake), 1);
        guest_memory_drop(m.gm);
        assert_int_equal(fake_counts(m.fake).mapped_pages, 0);
        assert_int_equal(guest_memory_stats(m.gm).mapped_chunks, 0);
        check_same(&m, page, 8);
        assert_int_equal(fake_stale_pages(m.fake), 0);
    }
    assert_int_equal(guest_memory_stats(m.gm).drops, 50);
    destroy(&m);
}

/* While a guest balloons, little is mapped at a time; after that, large chunks come back. */
static void test_row_19_small_chunks_while_ballooning(void **state)
{
    const struct fake_config config = {.banks = {{FAKE_BANK0_BASE, UINT64_C(80) << 20}}, .n_banks = 1};
    struct memory m = create(&config);
    const uint64_t small = 16 * GUEST_PAGE_SIZE;
    void *out;

    (void)state;
    guest_memory_drop(m.gm);
    check_same(&m, FAKE_BANK0_BASE, 1);
    assert_int_equal(fake_counts(m.fake).mapped_pages, CHUNK / GUEST_PAGE_SIZE);
    guest_memory_drop(m.gm);
    check_same(&m, FAKE_BANK0_BASE + small - 1, 2);
    assert_int_equal(fake_counts(m.fake).mapped_pages, 32);
    /* A page that comes back is still noticed, in a chunk that shares a word of the bitmap. */
    fake_balloon_out(m.fake, FAKE_BANK0_BASE + 2 * small, 1);
    check_same(&m, FAKE_BANK0_BASE + 2 * small + GUEST_PAGE_SIZE, 1);
    fake_balloon_in(m.fake, FAKE_BANK0_BASE + 2 * small, 1);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE + 2 * small, 1, &out), -EAGAIN);
    guest_memory_drop_stale(m.gm);
    assert_int_equal(fake_counts(m.fake).mapped_pages, 32);
    check_same(&m, FAKE_BANK0_BASE, 1);
    /* Many small ones are in use: they become large ones. */
    for (unsigned i = 0; i < 1024; i++)
        check_same(&m, FAKE_BANK0_BASE + i * small, 1);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE + 1024 * small, 1, &out), -EAGAIN);
    guest_memory_drop_stale(m.gm);
    assert_int_equal(fake_counts(m.fake).mapped_pages, 0);
    check_same(&m, FAKE_BANK0_BASE + 1024 * small, 1);
    assert_int_equal(fake_counts(m.fake).mapped_pages, CHUNK / GUEST_PAGE_SIZE);
    destroy(&m);
}

static void test_row_15_map_and_probe_fail(void **state)
{
    struct memory m = create(NULL);
    void *out;

    (void)state;
    fake_fail(m.fake, FAKE_MAP, 1, -EFAULT);
    check_fault(&m, FAKE_BANK0_BASE, 1);
    /* That the host has no memory is no fault of the guest's. */
    fake_fail(m.fake, FAKE_MAP, 1, -ENOMEM);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE, 1, &out), -ENOMEM);
    check_same(&m, FAKE_BANK0_BASE, 1);
    /* The second chunk of three. */
    fake_fail(m.fake, FAKE_MAP, 2, -EFAULT);
    check_fault(&m, FAKE_BANK1_BASE, 3 * CHUNK);
    check_same(&m, FAKE_BANK1_BASE, 3 * CHUNK);
    fake_balloon_out(m.fake, FAKE_BANK0_BASE + CHUNK, 1);
    check_same(&m, FAKE_BANK0_BASE + CHUNK + GUEST_PAGE_SIZE, 1);
    fake_balloon_in(m.fake, FAKE_BANK0_BASE + CHUNK, 1);
    fake_fail(m.fake, FAKE_PROBE, 1, -EFAULT);
    check_fault(&m, FAKE_BANK0_BASE + CHUNK, 1);
    fake_fail(m.fake, FAKE_PROBE, 1, -ENOMEM);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE + CHUNK, 1, &out), -ENOMEM);
    assert_int_equal(translate(&m, FAKE_BANK0_BASE + CHUNK, 1, &out), -EAGAIN);
    guest_memory_drop_stale(m.gm);
    check_same(&m, FAKE_BANK0_BASE + CHUNK, 1);
    destroy(&m);
}

/* Banks that are no multiple of a chunk, a tiny one, one after another without a gap. */
static void test_odd_banks(void **state)
{
    const struct fake_config config = {
        .banks = {{0x40000000, CHUNK + 3 * GUEST_PAGE_SIZE},
                  {0x40000000 + CHUNK + 3 * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE},
                  {0x80001000, 2 * CHUNK},
                  {0x200000000, 67 * GUEST_PAGE_SIZE}},
        .n_banks = 4};
    struct memory m = create(&config);

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        uint64_t end = config.banks[i].base + config.banks[i].size;

        check_same(&m, config.banks[i].base, config.banks[i].size);
        check_same(&m, end - 1, 1);
        check_fault(&m, end - 1, 2);
    }
    check_fault(&m, 0x80000fff, 1);
    guest_memory_drop(m.gm);
    check_same(&m, 0x40000000 + CHUNK, 3 * GUEST_PAGE_SIZE);
    destroy(&m);
}

static void test_create_refuses_nonsense(void **state)
{
    static const struct ram_bank bad[] = {
        {0x40000000, 0}, {0x40000001, 0x1000}, {0x40000000, 0x1001},
        {UINT64_MAX - 0xfff, 0x2000}, {0x40000000, 0xfff}};
    struct fake_hypervisor *fake = fake_create(NULL);
    const struct ram_bank many[9] = {{0x40000000, 0x1000}};
    struct guest_memory *gm;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(guest_memory_create(fake_seam(fake), &bad[i], 1, &gm), -EINVAL);
    assert_int_equal(guest_memory_create(fake_seam(fake), many, 0, &gm), -EINVAL);
    assert_int_equal(guest_memory_create(fake_seam(fake), many, 9, &gm), -EINVAL);
    guest_memory_destroy(NULL);
    fake_destroy(fake);
}

/* A bank as large as Xen's second one (1016 GiB): addresses are reserved, not memory. */
static void test_bank_of_a_terabyte(void **state)
{
    const struct ram_bank bank = {0x200000000, UINT64_C(0xfe00000000)};
    struct fake_hypervisor *fake = fake_create(NULL);
    struct guest_memory *gm;
    void *out;

    (void)state;
    assert_int_equal(guest_memory_create(fake_seam(fake), &bank, 1, &gm), 0);
    assert_int_equal(guest_memory_translate(gm, (gpa_t){FAKE_BANK1_BASE}, 8, &out), 0);
    assert_int_equal(guest_memory_translate(gm, (gpa_t){FAKE_BANK1_BASE + FAKE_BANK_SIZE}, 8, &out),
                     -EFAULT);
    assert_int_equal(guest_memory_translate(gm, (gpa_t){bank.base + bank.size - 1}, 1, &out),
                     -EFAULT);
    guest_memory_destroy(gm);
    fake_destroy(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_banks_and_their_borders),
        cmocka_unit_test(test_row_11_ranges_that_wrap),
        cmocka_unit_test(test_row_12_holes),
        cmocka_unit_test(test_every_page_of_a_chunk_as_the_hole),
        cmocka_unit_test(test_row_26_many_that_come_back),
        cmocka_unit_test(test_row_19_page_that_comes_back),
        cmocka_unit_test(test_row_19_many_stale_chunks),
        cmocka_unit_test(test_row_19_drop),
        cmocka_unit_test(test_row_19_small_chunks_while_ballooning),
        cmocka_unit_test(test_row_15_map_and_probe_fail),
        cmocka_unit_test(test_odd_banks),
        cmocka_unit_test(test_create_refuses_nonsense),
        cmocka_unit_test(test_bank_of_a_terabyte),
    };

    return cmocka_run_group_tests_name("guest_memory", tests, NULL, NULL);
}
