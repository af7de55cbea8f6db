/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor's half of the block backend: opens an image, makes sure that nobody else uses it,
 * and finds out what it can do.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "block_internal.h"
#include "log.h"

struct opening {
    const char *path;
    int node, fd;
    struct stat st;
    struct block_info *info;
    char *error;
    size_t error_len;
};

__attribute__((format(printf, 3, 4))) static int fail(struct opening *o, int err,
                                                      const char *format, ...)
{
    va_list args;

    if (o->error_len) {
        int n = snprintf(o->error, o->error_len, "%s: ", o->path);

        if (n >= 0 && (size_t)n < o->error_len) {
            va_start(args, format);
            vsnprintf(o->error + n, o->error_len - (size_t)n, format, args);
            va_end(args);
        }
    }
    return err;
}

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFCHR:
        return "a character device";
    case S_IFIFO:
        return "a pipe";
    case S_IFSOCK:
        return "a socket";
    default:
        return "no file";
    }
}

static int fail_to_open(struct opening *o, int err)
{
    bool read_only = o->info->read_only;

    switch (err) {
    case -ENOENT:
        return fail(o, err, "there is no such image; create it, or correct the path");
    case -ENOTDIR:
        return fail(o, err, "a part of the path is not a directory; correct the path");
    case -ELOOP:
        return fail(o, err, "the path has too many symbolic links; correct the path");
    case -EACCES:
    case -EPERM:
        return fail(o, err, "no permission to %s the image%s", read_only ? "read" : "write",
                    read_only ? "" : "; if it is meant to be read-only, say so (readonly = yes)");
    case -EROFS:
        return fail(o, err, "the image is on a read-only file system or is write-protected; "
                            "say readonly = yes");
    case -EBUSY:
        return fail(o, err, "the block device is in use (mounted, or served to another guest); "
                            "stop that use, or say readonly = yes");
    case -ETXTBSY:
        return fail(o, err, "the file is in use as a program or for swapping; use another image");
    case -ENXIO:
    case -ENODEV:
    case -ENOMEDIUM:
        return fail(o, err, "there is no device behind this device node");
    case -EINVAL:
        if (o->info->cache == BLOCK_CACHE_NONE)
            return fail(o, err, "cache = none is not possible on this file system (it has no "
                                "direct I/O); say cache = writeback");
        break;
    }
    return fail(o, err, "cannot open the image: %s", strerror(-err));
}

/*
 * In two steps: what it is, first, because opening a pipe would wait for its other end, and opening
 * some devices does something.
 */
static int open_image(struct opening *o)
{
    const struct block_info *info = o->info;
    int flags = (info->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
    char self[32];

    if (fstat(o->node, &o->st))
        return fail_to_open(o, -errno);
    if (!S_ISREG(o->st.st_mode) && !S_ISBLK(o->st.st_mode))
        return fail(o, S_ISDIR(o->st.st_mode) ? -EISDIR : -EINVAL,
                    "this is %s; an image is a file or a block device", kind_of(o->st.st_mode));
    if (info->cache == BLOCK_CACHE_NONE)
        flags |= O_DIRECT;
    /* Fails while the device is mounted or otherwise claimed, and keeps others from doing so. */
    if (S_ISBLK(o->st.st_mode) && !info->read_only)
        flags |= O_EXCL;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", o->node);
    o->fd = open(self, flags);
    return o->fd < 0 ? fail_to_open(o, -errno) : 0;
}

/*
 * One writer, or any number of readers. The lock belongs to the open file description: it goes to
 * the worker with the descriptor, and ends when the last copy of that is closed.
 */
static int lock_image(struct opening *o)
{
    struct flock lock = {
        .l_type = o->info->read_only ? F_RDLCK : F_WRLCK,
        .l_whence = SEEK_SET,
    };

    if (fcntl(o->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return fail(o, -EBUSY, "the image is in use (served to another guest?)%s",
                    o->info->read_only ? " for writing; stop that use"
                                       : "; stop that use, or say readonly = yes for both");
    log_warning("%s: the file system has no locks (%s): make sure that nobody else uses the image",
                o->path, strerror(errno));
    return 0;
}

static bool power_of_2(uint64_t n) { return n && !(n & (n - 1)); }

/* The first line of a file of the block device's request queue; empty if there is none. */
static void queue_line(const struct opening *o, const char *name, char *line, size_t len)
{
    /* A partition has its disk's queue one folder up. */
    static const char *const folders[] = {"queue", "../queue"};
    char path[128];

    line[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s", major(o->st.st_rdev),
                 minor(o->st.st_rdev), folders[i], name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        if (!fgets(line, (int)len, file))
            line[0] = '\0';
        fclose(file);
        break;
    }
}

static uint64_t queue_limit(const struct opening *o, const char *name)
{
    char line[32];

    queue_line(o, name, line, sizeof(line));
    return strtoull(line, NULL, 10);
}

/* The kernel's word for a device whose cache, if it has one, does not forget. */
static bool is_write_through(const struct opening *o)
{
    char line[32];

    queue_line(o, "write_cache", line, sizeof(line));
    return strcmp(line, "write through\n") == 0;
}

/* Asks with a range that is refused in any case: EOPNOTSUPP comes before EINVAL. */
static bool can_secure_erase(int fd)
{
    uint64_t nonsense[2] = {1, 1};

    return ioctl(fd, BLKSECDISCARD, nonsense) == 0 || errno == EINVAL;
}

static int inspect_device(struct opening *o, bool discard)
{
    struct block_info *info = o->info;
    int logical = 0, write_protected = 0;
    unsigned physical = 0, optimal = 0;

    info->is_block_device = true;
    if (ioctl(o->fd, BLKGETSIZE64, &info->size) || ioctl(o->fd, BLKSSZGET, &logical))
        return fail(o, -errno, "cannot ask the block device for its size: %s", strerror(errno));
    if (!info->read_only && ioctl(o->fd, BLKROGET, &write_protected) == 0 && write_protected)
        return fail_to_open(o, -EROFS);
    if (ioctl(o->fd, BLKPBSZGET, &physical))
        physical = 0;
    if (ioctl(o->fd, BLKIOOPT, &optimal))
        optimal = 0;
    info->logical_block = (uint32_t)logical;
    info->physical_block = physical;
    info->optimal_io = optimal;
    if (discard && !info->read_only && queue_limit(o, "discard_max_bytes")) {
        info->discard_granularity = (uint32_t)MIN(queue_limit(o, "discard_granularity"),
                                                  UINT64_C(1) << 30);
        if (info->discard_granularity == 0)
            info->discard_granularity = info->logical_block;
    }
    info->write_through = info->cache == BLOCK_CACHE_NONE && is_write_through(o);
    info->can_secure_erase = discard && !info->read_only && can_secure_erase(o->fd);
    return 0;
}

/* The alignment that O_DIRECT needs on this file; 0: it is not possible at all. */
static uint32_t direct_alignment(const struct opening *o)
{
    uint32_t alignment = 4096;
    void *buffer;

#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(o->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN)) {
        /* A bounce buffer starts at a unit of the pool. */
        if (stx.stx_dio_offset_align == 0 || stx.stx_dio_mem_align > BOUNCE_UNIT)
            return 0;
        return stx.stx_dio_offset_align;
    }
#endif
    buffer = aligned_alloc(4096, 4096);
    if (!buffer)
        return alignment;
    if (pread(o->fd, buffer, 512, 0) >= 0)
        alignment = 512;
    else if (errno == EINVAL && pread(o->fd, buffer, 4096, 0) < 0 && errno == EINVAL)
        alignment = 0;
    free(buffer);
    return alignment;
}

/* Asks behind the end of the file, where there is nothing to lose. */
static bool can_punch_holes(const struct opening *o)
{
    off_t block = o->st.st_blksize > 0 ? o->st.st_blksize : 4096;
    off_t end = o->st.st_size - o->st.st_size % block + block;

    return fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end, block) == 0;
}

static int inspect_file(struct opening *o, bool discard)
{
    struct block_info *info = o->info;
    uint32_t block = o->st.st_blksize > 0 ? (uint32_t)MIN(o->st.st_blksize, 1 << 20) : 4096;

    info->size = (uint64_t)o->st.st_size;
    info->logical_block = 512;
    if (info->cache == BLOCK_CACHE_NONE) {
        uint32_t alignment = direct_alignment(o);

        if (alignment == 0)
            return fail_to_open(o, -EINVAL);
        info->logical_block = MAX(alignment, 512u);
    }
    info->physical_block = MAX(block, info->logical_block);
    if (discard && !info->read_only && can_punch_holes(o))
        info->discard_granularity = MAX(block, info->logical_block);
    return 0;
}

int block_find(const char *path, bool read_only, char *error, size_t error_len)
{
    struct block_info info = {.read_only = read_only, .cache = BLOCK_CACHE_WRITEBACK};
    struct opening o = {.path = path, .info = &info, .error = error, .error_len = error_len};
    int node = open(path, O_PATH | O_CLOEXEC);

    return node < 0 ? fail_to_open(&o, -errno) : node;
}

uint64_t block_identity(int node)
{
    struct stat st;
    uint64_t parts[2], hash = UINT64_C(0xcbf29ce484222325);

    if (fstat(node, &st))
        return 0;
    /* Block devices of one number are one device, however many nodes lead to it. */
    parts[0] = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    parts[1] = S_ISBLK(st.st_mode) ? 0 : st.st_ino;
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        hash = (hash ^ parts[i] ^ (uint64_t)S_ISBLK(st.st_mode)) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return MAX(hash, UINT64_C(1));
}

int block_open(const char *path, bool read_only, enum block_cache cache, bool discard,
               struct block_info *info, char *error, size_t error_len)
{
    int node = block_find(path, read_only, error, error_len), ret = node;

    if (node < 0)
        return ret;
    ret = block_open_found(node, path, read_only, cache, discard, info, error, error_len);
    close(node);
    return ret;
}

int block_open_found(int node, const char *path, bool read_only, enum block_cache cache, bool discard,
                     struct block_info *info, char *error, size_t error_len)
{
    struct opening o = {.path = path,
                        .node = node,
                        .fd = -1,
                        .info = info,
                        .error = error,
                        .error_len = error_len};
    int err;

    memset(info, 0, sizeof(*info));
    info->read_only = read_only;
    info->cache = cache;
    if (error_len)
        error[0] = '\0';
    info->identity = block_identity(node);
    err = open_image(&o);
    if (err)
        return err;
    err = lock_image(&o);
    if (!err)
        err = S_ISBLK(o.st.st_mode) ? inspect_device(&o, discard) : inspect_file(&o, discard);
    if (err)
        goto fail;

    if (!power_of_2(info->logical_block) || info->logical_block < 512 ||
        info->logical_block > BOUNCE_RUN_MAX) {
        err = fail(&o, -EINVAL, "the block size of %u bytes is not supported", info->logical_block);
        goto fail;
    }
    if (!power_of_2(info->physical_block) || info->physical_block < info->logical_block)
        info->physical_block = info->logical_block;
    /* Always possible: what cannot be done in the file system or device is written. */
    info->can_write_zeroes = !read_only;

    uint64_t odd = info->size % info->logical_block;
    info->size -= odd;
    if (info->size == 0) {
        err = fail(&o, -EINVAL, "the image is empty; give it a size (truncate -s 10G FILE)");
        goto fail;
    }
    if (odd)
        log_warning("%s: the size is not a multiple of %u bytes: the last %llu bytes are not used",
                    path, info->logical_block, (unsigned long long)odd);
    return o.fd;
fail:
    close(o.fd);
    return err;
}

int block_forget_errors(int fd)
{
    /* Waits for one page at most, and reports what fsync would: without writing anything back. */
    return sync_file_range(fd, 0, 1, SYNC_FILE_RANGE_WAIT_BEFORE) ? -errno : 0;
}
