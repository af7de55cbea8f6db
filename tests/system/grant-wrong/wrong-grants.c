/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's hostile driver: gives a virtio block device (virtio-mmio, split ring, grant_usage=1) grants
 * that are not good, and says what came of it. Runs in the guest, on a device without a driver:
 *
 *     wrong-grants BASE BACKEND-DOMID
 *
 * BASE is the physical address of the device's registers. The pages are those of gntalloc, whose grants
 * end when we say so. Numbers of sections are those of the virtio specification, version 1.3.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/gntalloc.h>

#define PAGE 4096u
#define QUEUE 16u
#define GRANT (UINT64_C(1) << 63)
#define NEEDS_RESET VIRTIO_CONFIG_S_NEEDS_RESET
#define NOT_THERE 0xee /* a status that no device writes */

static volatile uint8_t *registers;
static int gntalloc;
static unsigned backend, failures, checks;

static void die(const char *what)
{
    fprintf(stderr, "after %u checks: %s: %s\n", checks, what, strerror(errno));
    exit(2);
}

static void expect(bool holds, const char *what, const char *kind)
{
    checks++;
    if (!holds) {
        failures++;
        printf("FAILED %s (%s)\n", what, kind);
    }
}

/* ---- grants ---- */

struct page {
    uint8_t *at;
    uint64_t index;
    uint32_t ref;
};

static struct page grant(unsigned domid, bool writable)
{
    struct ioctl_gntalloc_alloc_gref op = {
        .domid = (uint16_t)domid, .flags = writable ? GNTALLOC_FLAG_WRITABLE : 0, .count = 1};
    struct page page;

    if (ioctl(gntalloc, IOCTL_GNTALLOC_ALLOC_GREF, &op) < 0)
        die("cannot grant a page");
    page.at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gntalloc, (off_t)op.index);
    if (page.at == MAP_FAILED)
        die("cannot map a page that is granted");
    page.index = op.index;
    page.ref = op.gref_ids[0];
    return page;
}

static void end_grant(const struct page *page)
{
    struct ioctl_gntalloc_dealloc_gref op = {.index = page->index, .count = 1};

    munmap(page->at, PAGE);
    if (ioctl(gntalloc, IOCTL_GNTALLOC_DEALLOC_GREF, &op) < 0)
        die("cannot end a grant");
}

static uint64_t address(const struct page *page)
{
    return GRANT | (uint64_t)page->ref << 12;
}

enum kind { ENDED, TO_OTHER, NEVER, NO_GRANT, READ_ONLY, KINDS };
static const char *const kinds[] = {"a grant that has ended", "a grant to another domain",
                                    "a reference that never was", "an address without a grant",
                                    "a grant for reading only"};

/* An address of that kind; *page is to be ended afterwards if it is there. */
static uint64_t wrong(enum kind kind, struct page *page)
{
    uint64_t at;

    page->at = NULL;
    switch (kind) {
    case NEVER:
        return GRANT | UINT64_C(0x7ffffff) << 12;
    case NO_GRANT:
        return 0x40000000; /* GUEST_RAM0_BASE, arch-arm.h */
    default:
        *page = grant(kind == TO_OTHER ? backend + 1000 : backend, kind != READ_ONLY);
        at = address(page);
        if (kind == ENDED) {
            end_grant(page);
            page->at = NULL;
        }
        return at;
    }
}

static void forget(struct page *page)
{
    if (page->at != NULL)
        end_grant(page);
}

/* ---- the device ---- */

static uint32_t get(unsigned at)
{
    return *(volatile uint32_t *)(registers + at);
}

static void set(unsigned at, uint32_t value)
{
    *(volatile uint32_t *)(registers + at) = value;
}

static void set64(unsigned at, uint64_t value)
{
    set(at, (uint32_t)value);
    set(at + 4, (uint32_t)(value >> 32));
}

static struct page ring, header, data;
static struct vring_desc *descs;
static struct vring_avail *avail;
static struct vring_used *used;
static uint16_t seen;

/* 3.1.1; areas[] are descriptors, driver and device area. */
static void start(const uint64_t areas[3])
{
    uint64_t wanted = UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_F_ACCESS_PLATFORM;

    set(VIRTIO_MMIO_STATUS, 0);
    for (unsigned i = 0; get(VIRTIO_MMIO_STATUS) != 0; i++)
        if (i > 10000000)
            die("the device is not reset");
    memset(ring.at, 0, PAGE);
    seen = 0;
    set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    for (unsigned word = 0; word < 2; word++) {
        set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        set(VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(wanted >> 32 * word));
    }
    set(VIRTIO_MMIO_STATUS, get(VIRTIO_MMIO_STATUS) | VIRTIO_CONFIG_S_FEATURES_OK);
    if ((get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
        die("the device does not want VERSION_1 and ACCESS_PLATFORM");
    set(VIRTIO_MMIO_QUEUE_SEL, 0);
    set(VIRTIO_MMIO_QUEUE_NUM, QUEUE);
    set64(VIRTIO_MMIO_QUEUE_DESC_LOW, areas[0]);
    set64(VIRTIO_MMIO_QUEUE_AVAIL_LOW, areas[1]);
    set64(VIRTIO_MMIO_QUEUE_USED_LOW, areas[2]);
    set(VIRTIO_MMIO_QUEUE_READY, 1);
    set(VIRTIO_MMIO_STATUS, get(VIRTIO_MMIO_STATUS) | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void start_well(void)
{
    start((uint64_t[]){address(&ring), address(&ring) + 1024, address(&ring) + 2048});
}

/* A request (5.2.6) of 16 bytes, one page and a byte at these addresses. */
static void offer(uint32_t type, uint64_t header_at, uint64_t data_at, uint64_t status_at)
{
    *(struct virtio_blk_outhdr *)(void *)header.at =
        (struct virtio_blk_outhdr){.type = type, .sector = 8};
    header.at[64] = NOT_THERE;
    descs[0] = (struct vring_desc){header_at, 16, VRING_DESC_F_NEXT, 1};
    descs[1] = (struct vring_desc){data_at, PAGE,
                                   (uint16_t)(VRING_DESC_F_NEXT |
                                              (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0)), 2};
    descs[2] = (struct vring_desc){status_at, 1, VRING_DESC_F_WRITE, 0};
    avail->ring[avail->idx % QUEUE] = 0;
    __atomic_store_n(&avail->idx, (uint16_t)(avail->idx + 1), __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

/* Until it is used or the device needs a reset, for half a minute; true: it was used. */
static bool await(void)
{
    for (unsigned i = 0; i < 30000; i++) {
        if (__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) != seen) {
            seen++;
            return true;
        }
        if ((get(VIRTIO_MMIO_STATUS) & NEEDS_RESET) != 0)
            return false;
        usleep(1000);
    }
    errno = ETIMEDOUT;
    die("the device says nothing any more");
    return false;
}

/* All is as it should be: what is written can be read. */
static void works(const char *after)
{
    uint8_t byte = (uint8_t)(0x40 + checks % 64);

    memset(data.at, byte, PAGE);
    offer(VIRTIO_BLK_T_OUT, address(&header), address(&data), address(&header) + 64);
    expect(await() && header.at[64] == VIRTIO_BLK_S_OK, "a good write, afterwards", after);
    memset(data.at, 0, PAGE);
    offer(VIRTIO_BLK_T_IN, address(&header), address(&data), address(&header) + 64);
    expect(await() && header.at[64] == VIRTIO_BLK_S_OK, "a good read, afterwards", after);
    expect(data.at[0] == byte && data.at[PAGE - 1] == byte, "it reads what was written", after);
}

int main(int argc, char **argv)
{
    uint64_t base = argc == 3 ? strtoull(argv[1], NULL, 0) : 0;
    struct page page;
    int memory;

    if (base == 0)
        return 2;
    backend = (unsigned)strtoul(argv[2], NULL, 0);
    memory = open("/dev/mem", O_RDWR | O_SYNC);
    gntalloc = open("/dev/xen/gntalloc", O_RDWR);
    if (memory < 0 || gntalloc < 0)
        die("/dev/mem, /dev/xen/gntalloc");
    registers = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory,
                     (off_t)(base & ~(uint64_t)(PAGE - 1)));
    if (registers == MAP_FAILED)
        die("mmap /dev/mem");
    registers += base % PAGE;
    if (get(VIRTIO_MMIO_MAGIC_VALUE) != 0x74726976 || get(VIRTIO_MMIO_DEVICE_ID) != 2) {
        errno = ENODEV;
        die("no block device there");
    }
    ring = grant(backend, true);
    header = grant(backend, true);
    data = grant(backend, true);
    descs = (void *)ring.at;
    avail = (void *)(ring.at + 1024);
    used = (void *)(ring.at + 2048);
    start_well();
    works("nothing yet");

    for (enum kind kind = 0; kind < KINDS; kind++) {
        uint64_t bad;

        /* The data: what the device reads, what it writes. */
        bad = wrong(kind, &page);
        offer(VIRTIO_BLK_T_OUT, address(&header), bad, address(&header) + 64);
        expect(await() && header.at[64] == (kind == READ_ONLY ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR),
               "data to be read: the request's error", kinds[kind]);
        offer(VIRTIO_BLK_T_IN, address(&header), bad, address(&header) + 64);
        expect(await() && header.at[64] == VIRTIO_BLK_S_IOERR,
               "data to be written: the request's error", kinds[kind]);
        works(kinds[kind]);
        /* The header. */
        if (kind != READ_ONLY) {
            offer(VIRTIO_BLK_T_IN, bad, address(&data), address(&header) + 64);
            expect(await() && header.at[64] == VIRTIO_BLK_S_IOERR, "header: the request's error",
                   kinds[kind]);
            works(kinds[kind]);
        }
        /* The status: nobody could be told how it went. */
        offer(VIRTIO_BLK_T_IN, address(&header), address(&data), bad);
        expect(!await(), "status: the device needs a reset", kinds[kind]);
        start_well();
        works(kinds[kind]);
        /* The ring's areas, of which the device writes the third only. */
        for (unsigned area = kind == READ_ONLY ? 2 : 0; area < 3; area++) {
            uint64_t areas[] = {address(&ring), address(&ring) + 1024, address(&ring) + 2048};

            areas[area] = bad + area * 1024;
            start(areas);
            offer(VIRTIO_BLK_T_IN, address(&header), address(&data), address(&header) + 64);
            expect(!await(), "ring: the device needs a reset", kinds[kind]);
            start_well();
            works(kinds[kind]);
        }
        forget(&page);
    }

    /* Ended at any moment of a request; what it says of that one is its own affair. */
    for (unsigned i = 0; i < 300; i++) {
        page = grant(backend, true);
        offer(i % 2 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, address(&header), address(&page),
              address(&header) + 64);
        for (volatile unsigned spin = 0; spin < i * 200; spin++)
            ;
        end_grant(&page);
        expect(await() && (header.at[64] == VIRTIO_BLK_S_OK || header.at[64] == VIRTIO_BLK_S_IOERR),
               "ended during the request: it has a status", "at any moment");
    }
    works("grants that ended during requests");
    set(VIRTIO_MMIO_STATUS, 0);
    end_grant(&data);
    end_grant(&header);
    end_grant(&ring);
    printf("%u checks, %u failed\n", checks, failures);
    return failures > 0;
}
