/* SPDX-License-Identifier: Apache-2.0 */
/* What can be written into viod's files, and how the host side of each device type is opened. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "config_types.h"
#include "log.h"

#ifndef VIOD_CONFIG_DIR
#define VIOD_CONFIG_DIR "/etc/viod"
#endif
#ifndef VIOD_RUN_DIR
#define VIOD_RUN_DIR "/run/viod"
#endif

/* clang-format off */

const struct config_key daemon_keys[] = {
    {.name = "config-dir", .type = KEY_PATH, .default_value = VIOD_CONFIG_DIR,
     .help = "folder of the guests' files, <domain name>.conf"},
    {.name = "run-dir", .type = KEY_PATH, .default_value = VIOD_RUN_DIR,
     .help = "folder of the control socket"},
    {.name = "log-level", .type = KEY_CHOICE, .default_value = "info",
     .choices = "error warning info debug", .help = "how much is written to the journal"},
    /* The last uid is (uid_t)-1, which means "unchanged"; domids end below 32752. */
    {.name = "worker-uid-base", .type = KEY_UINT, .default_value = "1996488704", .min = 65536,
     .max = 4294901759, .help = "a worker's uid and gid are this number plus its guest's domid"},
    {.name = "iothreads", .type = KEY_CHOICE, .default_value = "auto",
     .choices = "auto 0 1 2 3 4 5 6 7 8", .help = "I/O threads of each worker"},
    {.name = "cpus", .type = KEY_STRING, .default_value = "all", .max = 255,
     .help = "CPUs that workers may run on, as in 0-1,3"},
    {.name = "poll-max-us", .type = KEY_UINT, .default_value = "2000", .min = 0, .max = 10000,
     .help = "longest time that a worker polls before it sleeps, in microseconds; 0 = never"},
    {.name = NULL},
};

static const struct config_key block_keys[] = {
    {.name = "path", .type = KEY_PATH, .required = true,
     .help = "the image: a file or a block device"},
    {.name = "readonly", .type = KEY_BOOL, .default_value = "no",
     .help = "the guest may not write"},
    {.name = "cache", .type = KEY_CHOICE, .default_value = "none", .choices = "none writeback",
     .help = "whether the host's page cache is used"},
    {.name = "discard", .type = KEY_BOOL, .default_value = "no",
     .help = "what the guest discards is given back to the host"},
    {.name = "queues", .type = KEY_UINT, .default_value = "0", .min = 0, .max = 16,
     .help = "request queues; 0 = one for each vCPU"},
    {.name = "queue-size", .type = KEY_UINT, .default_value = "256", .granted_value = "1024", .min = 8,
     .max = 1024,
     .choices = "8 16 32 64 128 256 512 1024", .help = "entries of each queue"},
    {.name = "serial", .type = KEY_STRING, .max = 20,
     .help = "serial number that the guest sees"},
    {.name = "logical-block-size", .type = KEY_UINT, .default_value = "0", .min = 0, .max = 4096,
     .choices = "0 512 4096", .help = "sector size in bytes that the guest sees; 0 = the image's"},
    RING_KEYS,
    {.name = NULL},
};

static const struct config_key rng_keys[] = {
    {.name = "max-bytes", .type = KEY_UINT, .default_value = "1048576", .min = 0,
     .max = UINT32_MAX, .help = "the most random bytes that the guest gets in a period; 0 = no limit"},
    {.name = "period", .type = KEY_UINT, .default_value = "1000", .min = 1, .max = 3600000,
     .help = "length of that period, in milliseconds"},
    RING_KEYS,
    {.name = NULL},
};

/* clang-format on */

/*
 * The guest was told what the image can when it was opened first, and drivers do not ask again: what the
 * storage below cannot do any more (a volume was moved, a file system is full) fails request by request.
 */
static void keep_promises(struct block_info *now, const struct block_info *before)
{
    if (now->discard_granularity == 0)
        now->discard_granularity = before->discard_granularity;
    now->can_write_zeroes |= before->can_write_zeroes;
    now->can_secure_erase |= before->can_secure_erase;
    now->write_through &= before->write_through;
}

static int open_found(struct device_config *config, char *error, size_t error_len)
{
    enum block_cache cache = BLOCK_CACHE_NONE;
    bool read_only = device_config_bool(config, "readonly");
    bool discard = device_config_bool(config, "discard") && !read_only;
    struct block_info before = config->block;
    int fd, ret;

    if (!strcmp(device_config_string(config, "cache"), "writeback"))
        cache = BLOCK_CACHE_WRITEBACK;
    fd = block_open_found(config->kept[0], device_config_string(config, "path"), read_only, cache,
                          discard, &config->block, error, error_len);
    if (fd < 0) {
        config->block = before;
        return fd;
    }
    if (before.identity != 0)
        keep_promises(&config->block, &before);
    else if (cache == BLOCK_CACHE_WRITEBACK && (ret = block_forget_errors(fd)) < 0)
        log_warning("%s: the host could not write all of it back before: %s; check what is on it",
                    device_config_string(config, "path"), strerror(-ret));
    config->fds[0] = fd;
    config->n_fds = 1;
    return 0;
}

/*
 * The image at this path, and no other: a device that is taken over says in its record which it had.
 * A descriptor that says which file it is.
 */
static int find_image(const struct device_config *config, const char *path, char *error,
                      size_t error_len)
{
    int node = block_find(path, device_config_bool(config, "readonly"), error, error_len);

    if (node >= 0 && config->block.identity != 0 && block_identity(node) != config->block.identity) {
        close(node);
        snprintf(error, error_len,
                 "%s: this is another image than the one that the guest has been using; put that one "
                 "back under this name and restart viod, or shut the guest down",
                 path);
        return -ESTALE;
    }
    return node;
}

static int block_type_still_there(const struct device_config *config, char *error, size_t error_len)
{
    const char *path = device_config_string(config, "path");
    int node;

    if (path == NULL)
        return 0; /* open says so */
    node = find_image(config, path, error, error_len);
    if (node < 0)
        return node;
    close(node);
    return 0;
}

static int block_type_open(struct device_config *config, char *error, size_t error_len)
{
    const char *path = device_config_string(config, "path");
    int node, ret;

    if (!path) {
        snprintf(error, error_len,
                 "%s has no image; write path = /absolute/path into section [%s] of the guest's "
                 "file",
                 config->name, config->name);
        return -EINVAL;
    }
    node = find_image(config, path, error, error_len);
    if (node < 0)
        return node;
    ret = device_config_keep(config, &node, 1);
    close(node);
    if (ret < 0)
        snprintf(error, error_len, "%s: cannot be kept: %s", path, strerror(-ret));
    else
        ret = open_found(config, error, error_len);
    if (ret < 0) {
        device_config_close_kept(config);
        return ret;
    }
    snprintf(config->backing, sizeof(config->backing), "%s", path);
    return 0;
}

/*
 * The same image, whatever the path leads to by now. Of the dead worker's descriptor no copy is kept: the
 * lock on the image ends with its last use, that by I/O which the kernel has not finished included.
 * Only then requests may be executed again.
 */
static int block_type_reopen(struct device_config *config, char *error, size_t error_len)
{
    if (config->n_kept == 0)
        return block_type_open(config, error, error_len);
    return open_found(config, error, error_len);
}

static const struct device_type block_type = {
    .name = "blk",
    .virtio_id = 2,
    .keys = block_keys,
    .open = block_type_open,
    .reopen = block_type_reopen,
    .still_there = block_type_still_there,
};

/* Random numbers need no descriptor. */
static int rng_type_open(struct device_config *config, char *error, size_t error_len)
{
    (void)error, (void)error_len;
    if (device_config_uint(config, "max-bytes") == 0)
        snprintf(config->backing, sizeof(config->backing), "random numbers, without a limit");
    else
        snprintf(config->backing, sizeof(config->backing), "random numbers, at most %s bytes in %s ms",
                 device_config_string(config, "max-bytes"), device_config_string(config, "period"));
    return 0;
}

static const struct device_type rng_type = {
    .name = "rng",
    .virtio_id = 4,
    .keys = rng_keys,
    .open = rng_type_open,
};

static const struct device_type end_of_types = {.name = NULL};

const struct device_type *const device_types[] = {&net_type, &block_type, &console_type, &rng_type,
                                                  &vsock_type, &end_of_types};

const struct device_type *device_type_by_id(uint16_t virtio_id)
{
    for (size_t i = 0; device_types[i]->name; i++)
        if (device_types[i]->virtio_id == virtio_id)
            return device_types[i];
    return NULL;
}

const struct device_type *device_type_by_name(const char *name)
{
    for (size_t i = 0; device_types[i]->name; i++)
        if (!strcmp(device_types[i]->name, name))
            return device_types[i];
    return NULL;
}

const char *virtio_device_title(uint16_t virtio_id)
{
    /* VIRTIO 1.3, section 5, and the numbers reserved there. */
    static const char *const titles[] = {
        [1] = "network device",
        [2] = "block device",
        [3] = "console",
        [4] = "entropy source",
        [5] = "balloon",
        [6] = "I/O memory",
        [7] = "rpmsg",
        [8] = "SCSI host",
        [9] = "9P file system",
        [10] = "802.11 WLAN device",
        [11] = "rproc serial",
        [12] = "CAIF device",
        [13] = "memory balloon",
        [16] = "GPU",
        [17] = "timer and clock device",
        [18] = "input device",
        [19] = "socket device",
        [20] = "crypto device",
        [21] = "signal distribution module",
        [22] = "pstore device",
        [23] = "IOMMU",
        [24] = "memory device",
        [25] = "sound device",
        [26] = "file system device",
        [27] = "PMEM device",
        [28] = "RPMB device",
        [29] = "802.11 simulation device",
        [30] = "video encoder",
        [31] = "video decoder",
        [32] = "SCMI device",
        [33] = "Nitro security module",
        [34] = "I2C adapter",
        [35] = "watchdog",
        [36] = "CAN device",
        [38] = "parameter server",
        [39] = "audio policy device",
        [40] = "Bluetooth device",
        [41] = "GPIO device",
        [42] = "RDMA device",
        [43] = "camera",
        [44] = "ISM device",
        [45] = "SPI controller",
    };

    return virtio_id < ARRAY_SIZE(titles) ? titles[virtio_id] : NULL;
}
