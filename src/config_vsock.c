/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host side of a vsock device: what the supervisor makes of its configuration. Two listening
 * sockets for those who call the guest; and one connection for each call of the guest, made when its
 * worker asks for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config_types.h"
#include "log.h"

/* So CIDs from 3 to this one are free for the administrator's own numbering. */
#define CID_OFFSET 1000u

/* clang-format off */

static const struct config_key vsock_keys[] = {
    {.name = "cid", .type = KEY_UINT, .default_value = "0", .min = 0, .max = 4294967294,
     .help = "the guest's address: 3 or more; 0 = 1000 plus the domid"},
    {.name = "folder", .type = KEY_PATH,
     .help = "where the sockets are; by default the guest's folder below run-dir"},
    {.name = "connections", .type = KEY_UINT, .default_value = "1024", .min = 1, .max = 16384,
     .help = "connections at one time, at most"},
    {.name = "buffer-size", .type = KEY_UINT, .default_value = "128", .min = 4, .max = 1024,
     .choices = "4 8 16 32 64 128 256 512 1024",
     .help = "KiB that wait, for each connection, for a host side that does not read"},
    {.name = "guest-to-guest", .type = KEY_STRING, .default_value = "no",
     .help = "other guests that it may call, and that may call it: no, yes (all), or their names"},
    {.name = "queue-size", .type = KEY_UINT, .default_value = "256", .min = 8, .max = 1024,
     .choices = "8 16 32 64 128 256 512 1024", .help = "entries of each queue"},
    RING_KEYS,
    {.name = NULL},
};

/* clang-format on */

static const char *folder_of(const struct device_config *config)
{
    const char *folder = device_config_string(config, "folder");

    if (folder != NULL)
        return folder;
    return config->guest != NULL && config->guest->run_dir[0] != '\0' ? config->guest->run_dir
                                                                       : NULL;
}

/* The guest's CID, written into the configuration that the worker gets. */
static int settle_cid(struct device_config *config)
{
    uint64_t cid = device_config_uint(config, "cid");
    char text[24];

    if (cid != 0)
        return 0;
    snprintf(text, sizeof(text), "%u", CID_OFFSET + (config->guest ? config->guest->domid : 0));
    for (size_t i = 0; i < config->n_values; i++)
        if (strcmp(config->values[i].key->name, "cid") == 0) {
            free(config->values[i].value);
            config->values[i].value = strdup(text);
            return config->values[i].value != NULL ? 0 : -ENOMEM;
        }
    return 0;
}

static int vsock_type_check(const struct device_config *config, char *error, size_t error_len)
{
    static const char *const mistakes[] = {"on", "off", "true", "false", "0", "1"};
    const char *value = device_config_string(config, "guest-to-guest");
    uint64_t cid = device_config_uint(config, "cid");

    /* Its sockets have fixed names, and Linux drives one such device. */
    if (strcmp(config->name, "vsock0") != 0) {
        snprintf(error, error_len,
                 "%s: a guest has one vsock device; remove the others from virtio=[] in its xl "
                 "configuration",
                 config->name);
        return -EEXIST;
    }
    if (cid == 1 || cid == 2) {
        snprintf(error, error_len,
                 "%s: cid = %u is taken by the standard; a guest's is 3 or more, or 0 for 1000 plus "
                 "the domid",
                 config->name, (unsigned)cid);
        return -EINVAL;
    }
    for (size_t i = 0; i < ARRAY_SIZE(mistakes); i++)
        if (strcmp(value, mistakes[i]) == 0) {
            snprintf(error, error_len,
                     "%s: guest-to-guest = %s: say yes, no, or the names of guests", config->name,
                     value);
            return -EINVAL;
        }
    return 0;
}

static int vsock_type_open(struct device_config *config, char *error, size_t error_len)
{
    const char *folder = folder_of(config);
    char path[CONFIG_VALUE_MAX + 32], why[CONFIG_ERROR_LEN - 64];
    bool guests = strcmp(device_config_string(config, "guest-to-guest"), "no") != 0;
    int ret;

    if (folder == NULL) {
        snprintf(error, error_len,
                 "%s: the guest has no folder for sockets; say where they go with folder = /path in "
                 "section [%s]",
                 config->name, config->name);
        return -ENOENT;
    }
    ret = settle_cid(config);
    if (ret < 0) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return ret;
    }
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/vsock%s", folder, i == 0 ? "" : ".seqpacket");
        ret = vsock_listen(path, i == 1, why, sizeof(why));
        if (ret < 0)
            goto fail;
        config->fds[i] = ret;
        config->n_fds = i + 1;
    }
    if (guests) {
        ret = vsock_guests_join(config, (uint32_t)device_config_uint(config, "cid"), why, sizeof(why));
        if (ret < 0)
            goto fail;
        config->fds[config->n_fds++] = ret;
    }
    snprintf(config->backing, sizeof(config->backing), "%s/vsock, CID %s%s", folder,
             device_config_string(config, "cid"), guests ? ", other guests" : "");
    ret = device_config_keep(config, config->fds, config->n_fds);
    if (ret == 0)
        return 0;
    snprintf(why, sizeof(why), "cannot keep its sockets: %s", strerror(-ret));
fail:
    snprintf(error, error_len, "%s: %s", config->name, why);
    vsock_guests_leave(config);
    device_config_close_fds(config);
    return ret;
}

/* "call CID PORT FROM" or "call-seqpacket CID PORT FROM"; 1, or -errno, -ENOMSG if it is none of these. */
static int ask_call(const struct device_config *config, const char *request, int *fds, char *error,
                    size_t error_len)
{
    char word[24], rest;
    uint32_t cid, port, from;
    int ret;

    if (sscanf(request, "%23s %" SCNu32 " %" SCNu32 " %" SCNu32 "%c", word, &cid, &port, &from,
               &rest) != 4 ||
        (strcmp(word, "call") != 0 && strcmp(word, "call-seqpacket") != 0))
        return -ENOMSG;
    ret = vsock_guests_call(config, cid, port, from, word[4] != '\0', error, error_len);
    if (ret < 0)
        return ret;
    fds[0] = ret;
    return 1;
}

/* The above; "connect PORT" or "connect-seqpacket PORT". */
static int vsock_type_ask(struct device_config *config, const char *request, int *fds, char *error,
                          size_t error_len)
{
    const char *folder = folder_of(config);
    char path[CONFIG_VALUE_MAX + 32], word[24], rest;
    uint32_t port;
    int ret = ask_call(config, request, fds, error, error_len);

    if (ret != -ENOMSG)
        return ret;
    if (sscanf(request, "%23s %" SCNu32 "%c", word, &port, &rest) != 2 ||
        (strcmp(word, "connect") != 0 && strcmp(word, "connect-seqpacket") != 0)) {
        snprintf(error, error_len, "a vsock device does not ask for \"%.40s\"", request);
        return -EINVAL;
    }
    if (folder == NULL)
        return -ENOENT;
    snprintf(path, sizeof(path), "%s/vsock_%" PRIu32, folder, port);
    ret = vsock_connect(path, word[7] != '\0');
    if (ret < 0) {
        snprintf(error, error_len, "%s: %s", path, strerror(-ret));
        return ret;
    }
    fds[0] = ret;
    return 1;
}

static void vsock_type_close(struct device_config *config)
{
    const char *folder = folder_of(config);
    char path[CONFIG_VALUE_MAX + 32];

    vsock_guests_leave(config);
    if (folder == NULL)
        return;
    snprintf(path, sizeof(path), "%s/vsock", folder);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/vsock.seqpacket", folder);
    (void)unlink(path);
}

static const char *const vsock_counters[] = {
    "connections", "connected", "host_calls", "guest_calls", "connection_resets", "rejected",
    "peer_calls", NULL,
};

const struct device_type vsock_type = {
    .name = "vsock",
    .virtio_id = 19,
    .keys = vsock_keys,
    .counters = vsock_counters,
    .check = vsock_type_check,
    .open = vsock_type_open,
    .ask = vsock_type_ask,
    .close = vsock_type_close,
};
