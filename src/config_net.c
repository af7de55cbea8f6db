/* SPDX-License-Identifier: Apache-2.0 */
/* Network devices: their keys, and the host side, which is a TAP interface. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_types.h"

#define NAME_MAX_LEN 15u /* IFNAMSIZ, less the end */

/* clang-format off */

static const struct config_key net_keys[] = {
    {.name = "backend", .type = KEY_CHOICE, .default_value = "tap", .choices = "tap passt",
     .help = "a TAP interface, or passt, which needs no rights and no bridge"},
    {.name = "socket", .type = KEY_PATH, .help = "where passt listens"},
    {.name = "bridge", .type = KEY_STRING, .max = NAME_MAX_LEN,
     .help = "the bridge that the interface becomes a port of"},
    {.name = "tap", .type = KEY_STRING, .max = NAME_MAX_LEN,
     .help = "name of the interface; viod<domid>.<number> if there is none"},
    {.name = "mac", .type = KEY_STRING, .max = 17,
     .help = "the guest's address, 00:16:3e:xx:xx:xx; derived from its UUID if there is none"},
    {.name = "mtu", .type = KEY_UINT, .default_value = "0", .min = 0, .max = 65535,
     .help = "largest packet; 0 = the bridge's, or 1500"},
    {.name = "queues", .type = KEY_UINT, .default_value = "0", .min = 0, .max = NET_PAIRS_MAX,
     .help = "pairs of queues; 0 = one for each vCPU, at most 8"},
    {.name = "queue-size", .type = KEY_UINT, .default_value = "256", .min = 16, .max = 1024,
     .choices = "16 32 64 128 256 512 1024", .help = "entries of each queue"},
    {.name = "link", .type = KEY_CHOICE, .default_value = "up", .choices = "up down",
     .help = "whether the cable is plugged in at first; see viodctl link"},
    RING_KEYS,
    {.name = NULL},
};

/* clang-format on */

static bool is_interface_name(const char *name)
{
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (; *name != '\0'; name++)
        if (*name == '/' || *name == ':' || *name == '%' || (unsigned char)*name <= ' ' ||
            (unsigned char)*name >= 0x7f)
            return false;
    return true;
}

static bool is_mac(const char *text)
{
    unsigned byte[6];
    int end = -1;

    return strlen(text) == 17 && strspn(text, "0123456789abcdefABCDEF:") == 17 &&
           sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &byte[0], &byte[1], &byte[2], &byte[3],
                  &byte[4], &byte[5], &end) == 6 &&
           end == 17 && (byte[0] & 1) == 0 &&
           (byte[0] | byte[1] | byte[2] | byte[3] | byte[4] | byte[5]) != 0;
}

/* The number at the end of "net0". */
static unsigned device_number(const struct device_config *config)
{
    const char *digits = config->name + strcspn(config->name, "0123456789");

    return (unsigned)strtoul(digits, NULL, 10) % 100;
}

/* FNV-1a: the same guest has the same address each time it is created. */
static void derive_mac(const struct device_config *config, char *out, size_t len)
{
    const char *seed = config->guest->uuid[0] != '\0' ? config->guest->uuid : config->guest->name;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *seed != '\0'; seed++)
        hash = (hash ^ (unsigned char)*seed) * UINT64_C(0x100000001b3);
    hash = (hash ^ device_number(config)) * UINT64_C(0x100000001b3);
    hash ^= hash >> 24 ^ hash >> 48;
    snprintf(out, len, "00:16:3e:%02x:%02x:%02x", (unsigned)(hash >> 16 & 0xff),
             (unsigned)(hash >> 8 & 0xff), (unsigned)(hash & 0xff));
}

/* What was left to us is decided now, once, and goes to the worker like all else. */
static int decide(struct device_config *config, const char *key, const char *value)
{
    for (size_t i = 0; i < config->n_values; i++)
        if (strcmp(config->values[i].key->name, key) == 0) {
            free(config->values[i].value);
            config->values[i].value = strdup(value);
            return config->values[i].value != NULL ? 0 : -ENOMEM;
        }
    return -EINVAL;
}

static void tap_name(const struct device_config *config, char *name, size_t len)
{
    const char *wanted = device_config_string(config, "tap");

    if (wanted != NULL && wanted[0] != '\0')
        snprintf(name, len, "%s", wanted);
    else
        snprintf(name, len, "viod%u.%u", config->guest->domid % 100000, device_number(config));
}

/*
 * Interfaces in use: one that has several queues takes more of them without a word, and two guests would
 * get each other's frames.
 */
struct used_tap {
    struct used_tap *next;
    char name[NAME_MAX_LEN + 1];
    char guest[64], device[32];
};
static struct used_tap *used_taps;

static int use_tap(struct device_config *config, char *error, size_t error_len)
{
    struct used_tap *tap = calloc(1, sizeof(*tap));

    if (tap == NULL) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    tap_name(config, tap->name, sizeof(tap->name));
    for (struct used_tap *other = used_taps; other != NULL; other = other->next)
        if (strcmp(other->name, tap->name) == 0) {
            snprintf(error, error_len, "%s: interface %s is in use by %s of guest %s; each device "
                     "needs one of its own", config->name, tap->name, other->device, other->guest);
            free(tap);
            return -EBUSY;
        }
    snprintf(tap->guest, sizeof(tap->guest), "%s", config->guest->name);
    snprintf(tap->device, sizeof(tap->device), "%s", config->name);
    tap->next = used_taps;
    used_taps = tap;
    config->host = tap;
    return 0;
}

static void net_close(struct device_config *config)
{
    for (struct used_tap **p = &used_taps; *p != NULL; p = &(*p)->next)
        if (*p == config->host) {
            *p = (*p)->next;
            break;
        }
    free(config->host);
    config->host = NULL;
}

static int open_tap(struct device_config *config, unsigned queues, int *fds, uint32_t *mtu,
                    char *error, size_t error_len)
{
    char name[NAME_MAX_LEN + 1];
    const char *bridge = device_config_string(config, "bridge");
    const struct net_tap_config tap = {.name = name,
                                       .bridge = bridge != NULL && bridge[0] ? bridge : NULL,
                                       .mtu = (uint32_t)device_config_uint(config, "mtu"),
                                       .queues = queues};

    tap_name(config, name, sizeof(name));
    return net_tap_open(&tap, fds, mtu, error, error_len);
}

static bool is_passt(const struct device_config *config)
{
    return strcmp(device_config_string(config, "backend"), "passt") == 0;
}

/* Either fits the other keys, or nothing is opened. */
static int check_backend(const struct device_config *config, char *error, size_t error_len)
{
    bool passt = is_passt(config);
    static const char *const only_tap[] = {"bridge", "tap"};

    if (passt != (device_config_string(config, "socket") != NULL)) {
        snprintf(error, error_len, "%s: backend = passt and socket = /path belong together",
                 config->name);
        return -EINVAL;
    }
    for (size_t i = 0; i < ARRAY_SIZE(only_tap); i++)
        if (passt && device_config_string(config, only_tap[i]) != NULL) {
            snprintf(error, error_len, "%s: %s = is for backend = tap only", config->name,
                     only_tap[i]);
            return -EINVAL;
        }
    if (passt && device_config_uint(config, "queues") > 1) {
        snprintf(error, error_len, "%s: passt has one pair of queues; leave queues = out",
                 config->name);
        return -EINVAL;
    }
    return 0;
}

static int net_check(const struct device_config *config, char *error, size_t error_len)
{
    static const char *const interfaces[] = {"tap", "bridge"};
    const char *mac = device_config_string(config, "mac");
    uint64_t mtu = device_config_uint(config, "mtu");

    for (size_t i = 0; i < ARRAY_SIZE(interfaces); i++) {
        const char *name = device_config_string(config, interfaces[i]);

        if (name != NULL && !is_interface_name(name)) {
            snprintf(error, error_len, "%s: %s = %s: that cannot be the name of an interface",
                     config->name, interfaces[i], name);
            return -EINVAL;
        }
    }
    if (mac != NULL && !is_mac(mac)) {
        snprintf(error, error_len,
                 "%s: mac = %s: an address is six bytes like 00:16:3e:12:34:56, and the first one "
                 "is even",
                 config->name, mac);
        return -EINVAL;
    }
    if (mtu != 0 && mtu < 68) {
        snprintf(error, error_len, "%s: mtu = %u: the smallest possible is 68, 0 means automatic",
                 config->name, (unsigned)mtu);
        return -EINVAL;
    }
    return check_backend(config, error, error_len);
}

/* What is left to decide: the same for all backends. */
static int decide_addresses(struct device_config *config, uint32_t mtu, char *error,
                            size_t error_len)
{
    char text[24];
    int ret;

    snprintf(text, sizeof(text), "%u", mtu);
    ret = decide(config, "mtu", text);
    if (ret == 0 && device_config_string(config, "mac") == NULL) {
        derive_mac(config, text, sizeof(text));
        ret = decide(config, "mac", text);
    }
    if (ret < 0)
        snprintf(error, error_len, "%s: out of memory", config->name);
    return ret;
}

static int open_passt(struct device_config *config, char *error, size_t error_len)
{
    const char *path = device_config_string(config, "socket");
    uint32_t mtu = (uint32_t)device_config_uint(config, "mtu");
    int ret = net_passt_open(path, config->fds, error, error_len);

    if (ret < 0)
        return ret;
    config->n_fds = 3;
    snprintf(config->backing, sizeof(config->backing), "passt at %s", path);
    return decide_addresses(config, mtu != 0 ? mtu : 1500, error, error_len);
}

static int net_open(struct device_config *config, char *error, size_t error_len)
{
    const char *bridge = device_config_string(config, "bridge");
    uint64_t queues = device_config_uint(config, "queues");
    char text[NAME_MAX_LEN + 1];
    uint32_t mtu;
    int ret;

    if (is_passt(config))
        return open_passt(config, error, error_len);
    /* How many vCPUs the guest has is the worker's to find out: it closes what it does not need. */
    if (queues == 0)
        queues = NET_PAIRS_MAX;
    ret = use_tap(config, error, error_len);
    if (ret < 0)
        return ret;
    ret = open_tap(config, (unsigned)queues, config->fds, &mtu, error, error_len);
    if (ret < 0) {
        net_close(config);
        return ret;
    }
    config->n_fds = queues;
    tap_name(config, text, sizeof(text));
    snprintf(config->backing, sizeof(config->backing), "%s%s%s", text,
             bridge != NULL && bridge[0] ? " on " : "", bridge != NULL ? bridge : "");
    ret = device_config_keep(config, config->fds, config->n_fds);
    if (ret < 0)
        snprintf(error, error_len, "%s: cannot keep its interface: %s", config->name,
                 strerror(-ret));
    else
        ret = decide_addresses(config, mtu, error, error_len);
    if (ret < 0)
        net_close(config);
    return ret;
}

/* An interface stays, with its place on the bridge; what passt was told in part is worth nothing. */
static int net_reopen(struct device_config *config, char *error, size_t error_len)
{
    int ret;

    if (!is_passt(config))
        return device_config_copy_kept(config);
    ret = net_passt_open(device_config_string(config, "socket"), config->fds, error, error_len);
    config->n_fds = ret < 0 ? 0 : 3;
    return ret < 0 ? ret : 0;
}

static int lose_tap(struct device_config *config)
{
    unsigned queues = (unsigned)device_config_uint(config, "queues");
    char error[CONFIG_ERROR_LEN];
    int ret;

    if (queues == 0)
        queues = NET_PAIRS_MAX;
    if (config->host == NULL && use_tap(config, error, sizeof(error)) < 0)
        return -EBUSY; /* another device's */
    device_config_close_fds(config);
    ret = net_tap_gone(queues, config->fds);
    if (ret < 0) {
        net_close(config);
        return ret;
    }
    config->n_fds = queues;
    (void)device_config_keep(config, config->fds, config->n_fds);
    return 0;
}

/*
 * An interface that cannot be made now (its bridge is gone), a connection that has ended: the guest goes on
 * without a link, and the worker asks for it until it is there.
 */
static int net_lost(struct device_config *config)
{
    int ret;

    if (!is_passt(config))
        return lose_tap(config);
    ret = net_passt_ended(config->fds);
    config->n_fds = ret < 0 ? 0 : 3;
    return ret;
}

/* More queues of the same interface: it stays, and what comes for the guest waits in them. */
static bool net_opens_early(const struct device_config *config)
{
    return !is_passt(config);
}

/* "tap QUEUES": the interface, or the connection to passt, is gone; a new one like it. */
static int net_ask(struct device_config *config, const char *request, int *fds, char *error,
                   size_t error_len)
{
    unsigned queues;
    uint32_t mtu;
    int ret, end = -1;

    if (sscanf(request, "tap %1u%n", &queues, &end) != 1 || request[end] != '\0' || queues == 0 ||
        queues > NET_PAIRS_MAX) {
        snprintf(error, error_len, "a network device may ask for \"tap QUEUES\" only");
        return -EINVAL;
    }
    if (is_passt(config)) {
        ret = net_passt_open(device_config_string(config, "socket"), fds, error, error_len);
        return ret < 0 ? ret : 3;
    }
    ret = open_tap(config, queues, fds, &mtu, error, error_len);
    if (ret == 0)
        (void)device_config_keep(config, fds, queues);
    return ret < 0 ? ret : (int)queues;
}

const struct device_type net_type = {
    .name = "net",
    .virtio_id = 1,
    .keys = net_keys,
    .check = net_check,
    .open = net_open,
    .reopen = net_reopen,
    .lost = net_lost,
    .opens_early = net_opens_early,
    .ask = net_ask,
    .close = net_close,
};
