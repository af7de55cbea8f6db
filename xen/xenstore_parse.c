/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values that libxl writes for a virtio device, checked. The keys are those of the backend's
 * side (libxl's disk and virtio devices, Xen 4.17 to 4.20).
 */
#include "xenstore_internal.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xen.h"

#define SPI_FIRST 32u
#define SPI_LAST 1019u
#define DOMID_LIMIT 0x7ff0u /* domains are numbered below this */

const char *const store_kinds[2] = {
    [NODE_VIRTIO_DISK] = "virtio_disk",
    [NODE_VIRTIO] = "virtio",
};

static int digit(char c, unsigned base)
{
    int value;

    if (c >= '0' && c <= '9')
        value = c - '0';
    else if (c >= 'a' && c <= 'f')
        value = c - 'a' + 10;
    else if (c >= 'A' && c <= 'F')
        value = c - 'A' + 10;
    else
        return -1;
    return value < (int)base ? value : -1;
}

static int parse_digits(const char *text, unsigned base, uint64_t max, uint64_t *value)
{
    uint64_t sum = 0;

    if (!*text)
        return -EINVAL;
    for (; *text; text++) {
        int d = digit(*text, base);

        if (d < 0 || __builtin_mul_overflow(sum, base, &sum) ||
            __builtin_add_overflow(sum, (uint64_t)d, &sum) || sum > max)
            return -EINVAL;
    }
    *value = sum;
    return 0;
}

int store_parse_decimal(const char *text, uint64_t max, uint64_t *value)
{
    if (text[0] == '0' && text[1])
        return -EINVAL;
    return parse_digits(text, 10, max, value);
}

int store_parse_number(const char *text, uint64_t max, uint64_t *value)
{
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return parse_digits(text + 2, 16, max, value);
    return store_parse_decimal(text, max, value);
}

int store_parse_type(const char *text, uint16_t *virtio_id)
{
    static const char prefix[] = "virtio,device";
    uint64_t number;

    if (strncmp(text, prefix, sizeof(prefix) - 1) ||
        parse_digits(text + sizeof(prefix) - 1, 16, UINT16_MAX, &number) || number == 0)
        return -EINVAL;
    *virtio_id = (uint16_t)number;
    return 0;
}

bool store_is_text(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++) {
        if (iscntrl((unsigned char)*text))
            return false;
    }
    return true;
}

void store_make_printable(char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

/* One node while it is read. */
struct reader {
    store_get get;
    void *context;
    char *error;
    size_t error_len;
    char value[STORE_VALUE_MAX];
};

/* Shown to people: short, and without anything that a terminal could take for a command. */
static int refuse(struct reader *r, const char *key, const char *expected)
{
    char shown[64];
    size_t n = 0;

    for (; n < sizeof(shown) - 4 && r->value[n]; n++) {
        unsigned char c = (unsigned char)r->value[n];

        shown[n] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    snprintf(shown + n, sizeof(shown) - n, "%s", r->value[n] ? "..." : "");
    snprintf(r->error, r->error_len, "%s is \"%s\": expected %s", key, shown, expected);
    return -EINVAL;
}

static int missing(struct reader *r, const char *key, const char *expected)
{
    snprintf(r->error, r->error_len, "%s is missing: expected %s", key, expected);
    return -EINVAL;
}

/* 1: r->value holds the key's value; 0: no such key; -errno with a message. */
static int fetch(struct reader *r, const char *key, const char *expected)
{
    ssize_t len;

    r->value[0] = '\0';
    len = r->get(r->context, key, r->value, sizeof(r->value));
    if (len == -ENOENT)
        return 0;
    if (len == -E2BIG)
        return refuse(r, key, expected);
    if (len < 0) {
        snprintf(r->error, r->error_len, "%s cannot be read: %s", key, strerror((int)-len));
        return (int)len;
    }
    if ((size_t)len >= sizeof(r->value) || strlen(r->value) != (size_t)len)
        return refuse(r, key, expected);
    return 1;
}

static int fetch_required(struct reader *r, const char *key, const char *expected)
{
    int ret = fetch(r, key, expected);

    return ret ? ret : missing(r, key, expected);
}

static int read_bool(struct reader *r, const char *key, bool absent, bool *out)
{
    int ret = fetch(r, key, "0 or 1");

    if (ret < 0)
        return ret;
    if (ret == 0)
        *out = absent;
    else if (!strcmp(r->value, "0") || !strcmp(r->value, "1"))
        *out = r->value[0] == '1';
    else
        return refuse(r, key, "0 or 1");
    return 0;
}

/* If the key exists, it must have this value. */
static int read_constant(struct reader *r, const char *key, const char *constant,
                         const char *expected)
{
    int ret = fetch(r, key, expected);

    if (ret <= 0)
        return ret;
    return strcmp(r->value, constant) ? refuse(r, key, expected) : 0;
}

static int read_state(struct reader *r, enum node_state *out)
{
    static const char expected[] = "a XenbusState, 0 to 8";
    uint64_t number = 0;
    int ret = fetch(r, "state", expected);

    if (ret < 0)
        return ret;
    if (ret && store_parse_decimal(r->value, 8, &number))
        return refuse(r, "state", expected);
    switch (number) {
    case NODE_STATE_INITIALISING:
    case NODE_STATE_INIT_WAIT:
    case NODE_STATE_CONNECTED:
    case NODE_STATE_CLOSING:
    case NODE_STATE_CLOSED:
        *out = (enum node_state)number;
        break;
    default:
        *out = NODE_STATE_UNKNOWN;
    }
    return 0;
}

static int read_base(struct reader *r, uint64_t *out)
{
    static const char expected[] = "an address in the virtio-mmio window 0x2000000-0x20fffff, a "
                                   "multiple of 0x200";
    int ret = fetch_required(r, "base", expected);

    if (ret < 0)
        return ret;
    if (store_parse_number(r->value, XEN_VIRTIO_MMIO_BASE + XEN_VIRTIO_MMIO_SIZE - 1, out) ||
        *out < XEN_VIRTIO_MMIO_BASE || *out % XEN_VIRTIO_MMIO_SLOT)
        return refuse(r, "base", expected);
    return 0;
}

static int read_irq(struct reader *r, uint32_t *out)
{
    static const char expected[] = "the number of a shared peripheral interrupt, 32 to 1019";
    uint64_t number;
    int ret = fetch_required(r, "irq", expected);

    if (ret < 0)
        return ret;
    if (store_parse_decimal(r->value, SPI_LAST, &number) || number < SPI_FIRST)
        return refuse(r, "irq", expected);
    *out = (uint32_t)number;
    return 0;
}

static int read_type(struct reader *r, uint16_t *virtio_id)
{
    static const char expected[] = "\"virtio,device<N>\", N the device type in hexadecimal";
    int ret = fetch_required(r, "type", expected);

    if (ret < 0)
        return ret;
    return store_parse_type(r->value, virtio_id) ? refuse(r, "type", expected) : 0;
}

/* A text that must be there and fit, with its NUL. */
static int read_text(struct reader *r, const char *key, const char *expected, char *out,
                     size_t size)
{
    int ret = fetch_required(r, key, expected);

    if (ret < 0)
        return ret;
    if (!store_is_text(r->value) || strlen(r->value) >= size)
        return refuse(r, key, expected);
    memcpy(out, r->value, strlen(r->value) + 1);
    return 0;
}

static int read_disk(struct reader *r, struct device_node *node)
{
    char mode[2];
    int ret;

    node->virtio_id = 2;
    ret = read_constant(r, "type", "standalone", "\"standalone\"");
    if (!ret)
        ret = read_constant(r, "specification", "virtio",
                            "\"virtio\" (specification=virtio in the domain's disk=)");
    if (!ret)
        ret = read_text(r, "params", "the path of the disk's image, at most 1023 bytes",
                        node->params, sizeof(node->params));
    if (!ret)
        ret = read_text(r, "dev", "a name like \"xvda\", at most 31 bytes", node->dev,
                        sizeof(node->dev));
    if (!ret)
        ret = read_text(r, "mode", "r or w", mode, sizeof(mode));
    if (!ret && strcmp(mode, "r") && strcmp(mode, "w"))
        ret = refuse(r, "mode", "r or w");
    if (ret)
        return ret;
    node->read_only = mode[0] == 'r';
    ret = read_bool(r, "discard-enable", false, &node->discard_enable);
    if (!ret)
        ret = read_bool(r, "direct-io-safe", false, &node->direct_io_safe);
    return ret;
}

static int read_common(struct reader *r, uint32_t own_domid, struct device_node *node)
{
    char domid[16];
    int ret;

    snprintf(domid, sizeof(domid), "%" PRIu32, node->id.domid);
    /* First, because whoever refuses the rest still has to follow the node to its end. */
    ret = read_state(r, &node->state);
    if (!ret)
        ret = read_bool(r, "online", false, &node->online);
    if (!ret)
        ret = read_constant(r, "frontend-id", domid, "the domain that the node's path names");
    /* Without mmio, libxl gives neither an address nor an interrupt: this is the better message. */
    if (!ret)
        ret = read_constant(r, "transport", "mmio",
                            "\"mmio\" (transport=mmio in the domain's disk= or virtio=)");
    return ret ? ret : read_bool(r, "grant_usage", own_domid != 0, &node->grant_usage);
}

int store_parse_node(const struct node_id *id, uint32_t own_domid, store_get get, void *context,
                     struct device_node *node, char *error, size_t error_len)
{
    struct reader *r = malloc(sizeof(*r));
    int ret;

    if (!r) {
        snprintf(error, error_len, "out of memory");
        return -ENOMEM;
    }
    *r = (struct reader){.get = get, .context = context, .error = error, .error_len = error_len};
    *node = (struct device_node){.id = *id};

    ret = read_common(r, own_domid, node);
    if (!ret)
        ret = id->kind == NODE_VIRTIO_DISK ? read_disk(r, node) : read_type(r, &node->virtio_id);
    if (!ret)
        ret = read_base(r, &node->base);
    if (!ret)
        ret = read_irq(r, &node->irq);
    free(r);
    return ret;
}

/* The component at *path as a number, up to the next '/' or the end; *path moves behind it. */
static int component_number(const char **path, uint64_t max, uint32_t *out)
{
    char text[12];
    size_t len = strcspn(*path, "/");
    uint64_t value;

    if (len >= sizeof(text))
        return -EINVAL;
    memcpy(text, *path, len);
    text[len] = '\0';
    if (store_parse_decimal(text, max, &value))
        return -EINVAL;
    *out = (uint32_t)value;
    *path += len;
    return 0;
}

static bool has_more(const char **path)
{
    if (**path != '/' || !(*path)[1])
        return false;
    (*path)++;
    return true;
}

int store_parse_path(const char *path, struct node_id *id)
{
    static const char home[] = "backend/";
    size_t kind;

    *id = (struct node_id){0};
    if (strncmp(path, home, sizeof(home) - 1))
        return 0;
    path += sizeof(home) - 1;
    for (kind = 0; kind < ARRAY_SIZE(store_kinds); kind++) {
        size_t len = strlen(store_kinds[kind]);

        if (!strncmp(path, store_kinds[kind], len) && (path[len] == '/' || !path[len])) {
            path += len;
            break;
        }
    }
    if (kind == ARRAY_SIZE(store_kinds))
        return 0;
    id->kind = (enum node_kind)kind;

    if (!has_more(&path))
        return 1;
    if (component_number(&path, DOMID_LIMIT - 1, &id->domid))
        return 0;
    if (!has_more(&path))
        return 2;
    if (component_number(&path, UINT32_MAX, &id->devid))
        return 0;
    return 3;
}

int store_parse_libxl_path(const char *path, struct node_id *id)
{
    static const char home[] = "/libxl", device[] = "device/";
    size_t kind;

    *id = (struct node_id){0};
    if (strncmp(path, home, sizeof(home) - 1))
        return 0;
    path += sizeof(home) - 1;
    if (!has_more(&path))
        return *path ? 0 : 1;
    if (component_number(&path, DOMID_LIMIT - 1, &id->domid) || !has_more(&path) ||
        strncmp(path, device, sizeof(device) - 1))
        return 0;
    path += sizeof(device) - 1;
    for (kind = 0; kind < ARRAY_SIZE(store_kinds); kind++) {
        size_t len = strlen(store_kinds[kind]);

        if (!strncmp(path, store_kinds[kind], len) && path[len] == '/') {
            path += len + 1;
            break;
        }
    }
    if (kind == ARRAY_SIZE(store_kinds) || component_number(&path, UINT32_MAX, &id->devid))
        return 0;
    id->kind = (enum node_kind)kind;
    return strcmp(path, "/backend") ? 0 : 2;
}

int store_parse_backend(const char *path, const struct node_id *id, uint32_t *backend_domid)
{
    static const char home[] = "/local/domain/";
    char expected[STORE_PATH_MAX];

    if (strncmp(path, home, sizeof(home) - 1))
        return -EINVAL;
    path += sizeof(home) - 1;
    if (component_number(&path, DOMID_LIMIT - 1, backend_domid) || !has_more(&path))
        return -EINVAL;
    store_node_path(id, expected, sizeof(expected));
    return strcmp(path, expected) ? -EINVAL : 0;
}

void store_node_path(const struct node_id *id, char *path, size_t size)
{
    snprintf(path, size, "backend/%s/%" PRIu32 "/%" PRIu32, store_kinds[id->kind], id->domid,
             id->devid);
}

int store_parse_vm(const char *vm, char *uuid, size_t len)
{
    static const char prefix[] = "/vm/";
    static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    if (strncmp(vm, prefix, sizeof(prefix) - 1))
        return -EINVAL;
    vm += sizeof(prefix) - 1;
    if (strlen(vm) != sizeof(form) - 1)
        return -EINVAL;
    for (size_t i = 0; i < sizeof(form) - 1; i++) {
        if (form[i] == 'x' ? digit(vm[i], 16) < 0 : vm[i] != '-')
            return -EINVAL;
    }
    if (len < sizeof(form))
        return -E2BIG;
    memcpy(uuid, vm, sizeof(form));
    return 0;
}
