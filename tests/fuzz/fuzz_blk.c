/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device under any driver, on an image that shrinks and grows under it, or cannot be read,
 * written or zeroed. No request writes outside of it.
 */
#include "fuzz_machine.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <sys/mman.h>

#include "backend.h"

#define IMAGE_SIZE (256u << 10)
#define QUEUES 2u

enum kind { GOOD, SEALED, READ_ONLY, NOT_AT_ALL, KINDS };

static struct {
    int fd;     /* ours: the image again */
    off_t most; /* the largest that it ever was */
} host;

/* A request that a driver could send: what it says may be wrong, how it says it is not. */
static void request(struct fuzz *f, uint8_t what)
{
    static const uint32_t types[] = {
        VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,          VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,  VIRTIO_BLK_T_DISCARD,      VIRTIO_BLK_T_WRITE_ZEROES,
        VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_T_IN,
    };
    unsigned queue = what / 16 % QUEUES;
    struct virtio_blk_outhdr header = {.type = htole32(types[fuzz_u8(f) % ARRAY_SIZE(types)])};
    struct virtio_blk_discard_write_zeroes ranges[9];
    uint8_t *at = fake_ram(f->m->fake, f->buffer.addr + queue * 2048, 2048);
    uint8_t how = fuzz_u8(f);
    unsigned sectors = how % 4, n = how / 4 % 10;
    uint32_t out = sizeof(header), in = 1;

    header.sector = htole64(how & 128 ? (uint64_t)fuzz_u32(f) << 32 | fuzz_u32(f) : fuzz_u16(f) % 600);
    memcpy(at, &header, sizeof(header));
    switch (le32toh(header.type)) {
    case VIRTIO_BLK_T_IN:
        in += 512 * sectors + (how & 64 ? 1 : 0);
        break;
    case VIRTIO_BLK_T_OUT:
        out += 512 * sectors + (how & 64 ? 1 : 0);
        break;
    case VIRTIO_BLK_T_GET_ID:
        in += 20;
        break;
    case VIRTIO_BLK_T_FLUSH:
        break;
    default:
        for (unsigned i = 0; i < MIN(n, (unsigned)ARRAY_SIZE(ranges)); i++)
            ranges[i] = (struct virtio_blk_discard_write_zeroes){
                .sector = htole64(fuzz_u16(f) % 600),
                .num_sectors = htole32(how & 64 ? fuzz_u32(f) : fuzz_u8(f)),
                .flags = htole32(fuzz_u8(f) % 3),
            };
        n = MIN(n, (unsigned)ARRAY_SIZE(ranges));
        memcpy(at + sizeof(header), ranges, n * sizeof(ranges[0]));
        out += n * (uint32_t)sizeof(ranges[0]);
    }
    fuzz_post(f, queue, out, in);
    driver_kick(&f->driver, (uint16_t)queue);
}

static void host_step(struct fuzz *f)
{
    uint8_t what = fuzz_u8(f);
    char reply[256];

    switch (what % 16) {
    case 0: {
        off_t size = fuzz_u16(f) * 8;

        if (ftruncate(host.fd, size) == 0)
            host.most = MAX(host.most, size);
        break;
    }
    case 1:
        f->m->dev->ops->control(f->m->dev, "resize", reply, sizeof(reply));
        break;
    case 2:
        machine_write(f->m, VIRTIO_MMIO_CONFIG + 32, 1, fuzz_u8(f) % 3); /* writeback */
        break;
    default:
        request(f, what);
    }
}

static void make_image(struct fuzz *f, enum kind kind)
{
    char path[32];
    int fd = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, IMAGE_SIZE) < 0)
        fake_die("no memory for an image");
    if (kind == SEALED) /* it does not grow: a write behind its end fails */
        (void)fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    host.fd = fd;
    host.most = IMAGE_SIZE;
    f->config.fds[0] = kind == NOT_AT_ALL  ? open("/proc/self/fd", O_RDONLY | O_CLOEXEC)
                       : kind == READ_ONLY ? open(path, O_RDONLY | O_CLOEXEC)
                                           : dup(fd);
    f->config.n_fds = 1;
    if (f->config.fds[0] < 0)
        fake_die("no image");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const presets[] = {"path=/image", "queues=2", "serial=fuzz", NULL};
    struct fuzz f = {.host_step = host_step, .waits = true};
    uint8_t kind = size > 0 ? data[0] : 0, *answer;
    struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_GET_ID)};

    fuzz_configure(&f, 2, "xvda", presets);
    f.config.block = (struct block_info){
        .size = IMAGE_SIZE,
        .logical_block = 512,
        .physical_block = 4096,
        .discard_granularity = kind & 4 ? 0 : 4096,
        .read_only = kind & 8,
        .can_write_zeroes = true,
        .write_through = kind & 16,
        /* Bounce buffers; that the host's cache is used all the same, the backend does not know. */
        .cache = kind & 32 ? BLOCK_CACHE_NONE : BLOCK_CACHE_WRITEBACK,
    };
    make_image(&f, kind % KINDS);
    fuzz_run(&f, &virtio_blk_ops, QUEUES, data + (size > 0), size - (size > 0));
    if (lseek(host.fd, 0, SEEK_END) > host.most)
        fake_die("something was written behind the end of the image");
    /* It works. */
    memcpy(fake_ram(f.m->fake, f.buffer.addr, sizeof(header)), &header, sizeof(header));
    answer = fake_ram(f.m->fake, f.buffer.addr + 8192, 21);
    answer[20] = 0xff;
    fuzz_post(&f, 0, sizeof(header), 21);
    driver_kick(&f.driver, 0);
    if (!fuzz_used(&f, 0) || memcmp(answer, "fuzz", 5) != 0 || answer[20] != VIRTIO_BLK_S_OK)
        fake_die("the device does not work after a reset");
    fuzz_end(&f);
    close(host.fd);
    return 0;
}
