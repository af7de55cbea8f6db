/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake hypervisor notices what would crash a real machine. Without this, a test that passes
 * says nothing.
 */
#include "unit.h"

#include <poll.h>
#include <sys/mman.h>

static struct fake_hypervisor *lenient(void)
{
    const struct fake_config config = {.count_violations = true};

    return fake_create(&config);
}

static void expect_violations(struct fake_hypervisor *fake, unsigned n)
{
    assert_int_equal(fake_counts(fake).violations, n);
}

static void *reserve(size_t pages)
{
    void *p = mmap(NULL, pages * GUEST_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

static void test_close_with_a_request_outstanding(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    struct mmio_request request;

    (void)state;
    hv->ops->claim_mmio(hv, 0x02000000, 0x200);
    fake_trap(fake, 0, REQUEST_READ, 0x02000000, 4, 0);
    fake_trap(fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
    assert_int_equal(hv->ops->next_request(hv, &request), 1);
    hv->ops->close(hv);
    expect_violations(fake, 2);
    fake_destroy(fake);
}

static void test_answers_that_do_not_fit(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    struct mmio_request request, other;

    (void)state;
    hv->ops->claim_mmio(hv, 0x02000000, 0x200);
    fake_trap(fake, 0, REQUEST_READ, 0x02000000, 4, 0);
    other = (struct mmio_request){.kind = REQUEST_READ, .addr = 0x02000000, .size = 4};
    hv->ops->finish_request(hv, &other); /* before it was fetched */
    expect_violations(fake, 1);
    assert_int_equal(hv->ops->next_request(hv, &request), 1);
    other.vcpu = 7;
    hv->ops->finish_request(hv, &other);
    expect_violations(fake, 2);
    request.data = 5;
    hv->ops->finish_request(hv, &request);
    hv->ops->finish_request(hv, &request); /* twice */
    expect_violations(fake, 3);
    hv->ops->lock_down(hv);
    expect_violations(fake, 4); /* too late */
    fake_destroy(fake);
}

static void test_invalidation_answered_with_mappings(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    struct mmio_request request;
    uint8_t *p = reserve(4);
    int err[4];

    (void)state;
    assert_int_equal(hv->ops->map_ram(hv, FAKE_BANK0_BASE >> 12, 4, p, err), 0);
    fake_trap(fake, 0, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
    assert_int_equal(hv->ops->next_request(hv, &request), 1);
    hv->ops->finish_request(hv, &request);
    expect_violations(fake, 1);
    hv->ops->close(hv);
    expect_violations(fake, 2); /* and never unmapped */
    fake_destroy(fake);
    munmap(p, 4 * GUEST_PAGE_SIZE);
}

static void test_unmaps_that_do_not_fit(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    uint8_t *p = reserve(8);
    int err[8];

    (void)state;
    hv->ops->unmap_ram(hv, p, 4);
    expect_violations(fake, 1);
    assert_int_equal(hv->ops->map_ram(hv, FAKE_BANK0_BASE >> 12, 4, p, err), 0);
    assert_int_equal(
        hv->ops->map_ram(hv, FAKE_BANK0_BASE >> 12, 4, p + 3 * GUEST_PAGE_SIZE, err), 0);
    expect_violations(fake, 2);
    hv->ops->unmap_ram(hv, p, 3);
    expect_violations(fake, 3);
    hv->ops->unmap_ram(hv, p + 3 * GUEST_PAGE_SIZE, 4);
    expect_violations(fake, 3);
    fake_destroy(fake);
    munmap(p, 8 * GUEST_PAGE_SIZE);
}

/* Stale: the old mapping stays readable, and is not the guest's memory any more. */
static void test_stale_mappings_are_seen(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    uint8_t *p = reserve(4);
    int err[4];

    (void)state;
    assert_int_equal(hv->ops->map_ram(hv, FAKE_BANK1_BASE >> 12, 4, p, err), 0);
    p[GUEST_PAGE_SIZE] = 7;
    assert_int_equal(*(uint8_t *)fake_ram(fake, FAKE_BANK1_BASE + GUEST_PAGE_SIZE, 1), 7);
    fake_balloon_out(fake, FAKE_BANK1_BASE + GUEST_PAGE_SIZE, 1);
    assert_int_equal(fake_stale_pages(fake), 1);
    assert_int_equal(p[GUEST_PAGE_SIZE], FAKE_POISON);
    assert_int_equal(hv->ops->probe_ram(hv, (FAKE_BANK1_BASE >> 12) + 1), -ENOENT);
    fake_balloon_in(fake, FAKE_BANK1_BASE + GUEST_PAGE_SIZE, 1);
    assert_int_equal(hv->ops->probe_ram(hv, (FAKE_BANK1_BASE >> 12) + 1), 0);
    assert_int_equal(*(uint8_t *)fake_ram(fake, FAKE_BANK1_BASE + GUEST_PAGE_SIZE, 1), 0);
    assert_int_equal(fake_stale_pages(fake), 1);
    p[GUEST_PAGE_SIZE] = 8;
    assert_int_equal(*(uint8_t *)fake_ram(fake, FAKE_BANK1_BASE + GUEST_PAGE_SIZE, 1), 0);
    hv->ops->unmap_ram(hv, p, 4);
    assert_int_equal(fake_stale_pages(fake), 0);
    expect_violations(fake, 0);
    fake_destroy(fake); /* would count the write to poison, if anybody looked */
    munmap(p, 4 * GUEST_PAGE_SIZE);
}

static void test_holes_map_as_holes(void **state)
{
    struct fake_hypervisor *fake = fake_create(NULL);
    struct hypervisor *hv = fake_seam(fake);
    uint8_t *p = reserve(8);
    int err[8];

    (void)state;
    fake_balloon_out(fake, FAKE_BANK0_BASE + 2 * GUEST_PAGE_SIZE, 2);
    assert_int_equal(hv->ops->map_ram(hv, FAKE_BANK0_BASE >> 12, 8, p, err), 0);
    for (int i = 0; i < 8; i++)
        assert_int_equal(err[i], i == 2 || i == 3 ? -ENOENT : 0);
    assert_int_equal(fake_counts(fake).mapped_pages, 6);
    p[5 * GUEST_PAGE_SIZE] = 1;
    assert_int_equal(*(uint8_t *)fake_ram(fake, FAKE_BANK0_BASE + 5 * GUEST_PAGE_SIZE, 1), 1);
    hv->ops->unmap_ram(hv, p, 8);
    /* None at all: fails as a whole. */
    assert_int_equal(hv->ops->map_ram(hv, (FAKE_BANK0_BASE >> 12) + 2, 2, p, err), -ENOENT);
    assert_int_equal(hv->ops->map_ram(hv, 0x1000, 2, p, err), -ENOENT);
    assert_int_equal(fake_counts(fake).outside_ram, 2);
    assert_int_equal(fake_counts(fake).mapped_pages, 0);
    assert_int_equal(fake_counts(fake).mapped_pages_max, 6);
    fake_destroy(fake);
    munmap(p, 8 * GUEST_PAGE_SIZE);
}

static void test_grants_are_checked(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    const uint64_t at = FAKE_BANK0_BASE + 3 * GUEST_PAGE_SIZE;
    char text[8] = "to guest", back[8] = "";
    uint32_t ref, read_only, refs[2];
    struct grant_map map;
    uint8_t *ram = fake_ram(fake, at, 2 * GUEST_PAGE_SIZE);

    (void)state;
    ref = fake_grant(fake, at, 2, false);
    read_only = fake_grant(fake, at, 1, true);
    assert_int_equal(fake_grant_address(ref, at + 5), UINT64_C(1) << 63 | (uint64_t)ref << 12 | 5);

    struct grant_copy out[] = {{.host = text, .ref = ref, .offset = 16, .len = 8, .to_guest = true},
                               {.host = text, .ref = read_only, .len = 8, .to_guest = true},
                               {.host = text, .ref = ref + 2, .len = 8, .to_guest = true}};
    struct grant_copy in[] = {{.host = back, .ref = read_only, .offset = 16, .len = 8}};
    assert_int_equal(hv->ops->copy_grants(hv, out, 3), 0);
    assert_int_equal(out[0].result, 0);
    assert_int_equal(out[1].result, -EFAULT);
    assert_int_equal(out[2].result, -EFAULT);
    assert_int_equal(hv->ops->copy_grants(hv, in, 1), 0);
    assert_memory_equal(back, "to guest", 8);

    refs[0] = ref + 1;
    refs[1] = ref;
    assert_int_equal(hv->ops->map_grants(hv, refs, 2, true, &map), 0);
    ((uint8_t *)map.at)[0] = 0x5a;
    assert_int_equal(ram[GUEST_PAGE_SIZE], 0x5a);
    assert_int_equal(fake_counts(fake).granted_pages, 2);
    fake_grant_end(fake, ref, 2);
    assert_int_equal(fake_counts(fake).violations, 2); /* both are mapped */
    hv->ops->unmap_grants(hv, &map);
    assert_null(map.at);
    assert_int_equal(fake_counts(fake).granted_pages, 0);
    assert_int_equal(hv->ops->map_grants(hv, refs, 2, true, &map), -EINVAL); /* ended */
    refs[0] = read_only;
    assert_int_equal(hv->ops->map_grants(hv, refs, 1, true, &map), -EINVAL);
    fake_grant_to_other(fake, read_only);
    assert_int_equal(hv->ops->map_grants(hv, refs, 1, false, &map), -EINVAL);
    ref = fake_grant(fake, at, 1, false);
    assert_int_equal(hv->ops->map_grants(hv, &ref, 1, true, &map), 0);
    hv->ops->close(hv);
    assert_int_equal(fake_counts(fake).violations, 3); /* closed with a page mapped */
    fake_destroy(fake);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

static void test_requests_and_events(void **state)
{
    struct fake_hypervisor *fake = lenient();
    struct hypervisor *hv = fake_seam(fake);
    struct mmio_request a, b, none;
    uint64_t data;

    (void)state;
    assert_int_equal(hv->ops->claim_mmio(hv, 0x02000000, 0x200), 0);
    assert_int_equal(hv->ops->claim_mmio(hv, 0x02000100, 0x200), -EEXIST);
    assert_int_equal(hv->ops->claim_mmio(hv, 0x02000200, 0x200), 0);
    assert_int_equal(hv->ops->claim_mmio(hv, 0, 0), -EINVAL);
    assert_int_equal(hv->ops->release_mmio(hv, 0x02000200, 0x200), 0);
    assert_int_equal(hv->ops->release_mmio(hv, 0x02000200, 0x200), -ENOENT);
    /* Nobody's address: all ones, and no request. */
    fake_trap(fake, 0, REQUEST_READ, 0x02000200, 2, 0);
    assert_true(fake_answered(fake, 0, &data));
    assert_int_equal(data, 0xffff);

    assert_false(hv->ops->arm(hv));
    assert_false(readable(hv->ops->event_fd(hv)));
    fake_trap(fake, 3, REQUEST_WRITE, 0x02000010, 4, 42);
    assert_true(readable(hv->ops->event_fd(hv)));
    hv->ops->next_request(hv, &none);
    expect_violations(fake, 1); /* armed */
    hv->ops->disarm(hv);
    assert_false(readable(hv->ops->event_fd(hv)));
    hv->ops->finish_request(hv, &none);
    expect_violations(fake, 1);

    /* In the order of the traps; each once; several outstanding. */
    fake_trap(fake, 2, REQUEST_READ, 0x02000000, 1, 0);
    fake_trap(fake, 1, REQUEST_READ, 0x02000004, 8, 0);
    assert_true(hv->ops->arm(hv));
    hv->ops->disarm(hv);
    assert_int_equal(hv->ops->next_request(hv, &a), 1);
    assert_int_equal(hv->ops->next_request(hv, &b), 1);
    assert_int_equal(hv->ops->next_request(hv, &none), 0);
    assert_int_equal(a.vcpu, 2);
    assert_int_equal(b.vcpu, 1);
    a.data = b.data = UINT64_C(0x1122334455667788);
    hv->ops->finish_request(hv, &b);
    assert_false(fake_answered(fake, 2, NULL));
    assert_true(fake_wait_answer(fake, 1, &data, 0));
    assert_true(data == UINT64_C(0x1122334455667788));
    hv->ops->finish_request(hv, &a);
    assert_true(fake_wait_answer(fake, 2, &data, 0));
    assert_int_equal(data, 0x88);
    expect_violations(fake, 1);
    fake_destroy(fake);
}

static void test_interrupts_and_faults(void **state)
{
    struct fake_hypervisor *fake = fake_create(NULL);
    struct hypervisor *hv = fake_seam(fake);

    (void)state;
    assert_int_equal(hv->ops->raise_irq(hv, 33), 0);
    assert_int_equal(hv->ops->raise_irq(hv, 33), 0);
    assert_int_equal(hv->ops->raise_irq(hv, FAKE_IRQS_MAX), -EINVAL);
    assert_true(fake_wait_irq(fake, 33, 0));
    assert_int_equal(fake_take_irqs(fake, 33), 2);
    assert_int_equal(fake_take_irqs(fake, 33), 0);
    assert_false(fake_wait_irq(fake, 33, 1));
    fake_fail(fake, FAKE_RAISE, 2, -EPERM);
    assert_int_equal(hv->ops->raise_irq(hv, 33), 0);
    assert_int_equal(hv->ops->raise_irq(hv, 33), -EPERM);
    assert_int_equal(hv->ops->raise_irq(hv, 33), 0);
    fake_fail(fake, FAKE_CLAIM, 0, -EBUSY);
    assert_int_equal(hv->ops->claim_mmio(hv, 0, 1), -EBUSY);
    assert_int_equal(hv->ops->claim_mmio(hv, 0, 1), -EBUSY);
    fake_fail(fake, FAKE_CLAIM, 0, 0);
    assert_int_equal(hv->ops->claim_mmio(hv, 0, 1), 0);
    assert_int_equal(hv->ops->lock_down(hv), 0);
    assert_true(fake_counts(fake).locked_down);
    fake_destroy(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_close_with_a_request_outstanding),
        cmocka_unit_test(test_answers_that_do_not_fit),
        cmocka_unit_test(test_invalidation_answered_with_mappings),
        cmocka_unit_test(test_unmaps_that_do_not_fit),
        cmocka_unit_test(test_stale_mappings_are_seen),
        cmocka_unit_test(test_holes_map_as_holes),
        cmocka_unit_test(test_grants_are_checked),
        cmocka_unit_test(test_requests_and_events),
        cmocka_unit_test(test_interrupts_and_faults),
    };

    return cmocka_run_group_tests_name("fake", tests, NULL, NULL);
}
