/* SPDX-License-Identifier: Apache-2.0 */
/* What xenstore says about a device, well formed and not (hostile row 28). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../xen/xenstore_internal.h"
#include "../../xen/xenstore_publish.h"

#define KEYS_MAX 24

struct pair {
    const char *key;
    const char *value;
    size_t len; /* 0: strlen(value) */
};

/* A node in memory. */
struct store {
    struct pair pairs[KEYS_MAX];
    int fail; /* -errno of every read */
};

static const struct store disk = {{
    {"frontend", "/local/domain/3/device/virtio_disk/51712", 0},
    {"params", "/dev/vg/root", 0},
    {"frontend-id", "3", 0},
    {"online", "1", 0},
    {"removable", "0", 0},
    {"bootable", "1", 0},
    {"state", "1", 0},
    {"dev", "xvda", 0},
    {"type", "standalone", 0},
    {"mode", "w", 0},
    {"device-type", "disk", 0},
    {"discard-enable", "1", 0},
    {"specification", "virtio", 0},
    {"transport", "mmio", 0},
    {"base", "33554432", 0},
    {"irq", "33", 0},
    {"grant_usage", "0", 0},
}, 0};

static const struct store generic = {{
    {"frontend-id", "3", 0},
    {"online", "1", 0},
    {"state", "1", 0},
    {"irq", "34", 0},
    {"base", "0x2000200", 0},
    {"type", "virtio,device1a", 0},
    {"transport", "mmio", 0},
    {"grant_usage", "0", 0},
}, 0};

static const struct node_id disk_id = {NODE_VIRTIO_DISK, 3, 51712};
static const struct node_id generic_id = {NODE_VIRTIO, 3, 0};

static char error[256];

static ssize_t get(void *context, const char *key, char *value, size_t size)
{
    const struct store *s = context;

    if (s->fail)
        return s->fail;
    for (const struct pair *p = s->pairs; p < s->pairs + KEYS_MAX && p->key; p++) {
        size_t len = p->len ? p->len : p->value ? strlen(p->value) : 0;

        if (strcmp(p->key, key) || !p->value)
            continue;
        if (len >= size)
            return -E2BIG;
        memcpy(value, p->value, len);
        value[len] = '\0';
        return (ssize_t)len;
    }
    return -ENOENT;
}

/* Value NULL: the key is absent. */
static struct store with(const struct store *s, const char *key, const char *value)
{
    struct store copy = *s;
    struct pair *p = copy.pairs;

    while (p->key && strcmp(p->key, key))
        p++;
    *p = (struct pair){key, value, 0};
    return copy;
}

static int parse(const struct store *s, const struct node_id *id, struct device_node *node)
{
    struct store copy = *s;

    memset(error, 'x', sizeof(error));
    error[sizeof(error) - 1] = '\0';
    return store_parse_node(id, 0, get, &copy, node, error, sizeof(error));
}

static void refused(const struct store *s, const struct node_id *id, const char *key,
                    const char *value)
{
    struct store changed = with(s, key, value);
    struct device_node node;

    if (parse(&changed, id, &node) != -EINVAL)
        fail_msg("%s = \"%.40s\" was accepted", key, value ? value : "(absent)");
    if (strncmp(error, key, strlen(key)) || !strstr(error, "expected"))
        fail_msg("the message for %s is: %s", key, error);
    for (const char *c = error; *c; c++)
        assert_true(*c >= 0x20 && *c < 0x7f);
}

static struct device_node accepted(const struct store *s, const struct node_id *id,
                                   const char *key, const char *value)
{
    struct store changed = with(s, key, value);
    struct device_node node;
    int ret = parse(&changed, id, &node);

    if (ret)
        fail_msg("%s = \"%.40s\": %d %s", key, value ? value : "(absent)", ret, error);
    return node;
}

static void test_disk(void **state)
{
    struct device_node node;

    (void)state;
    assert_int_equal(parse(&disk, &disk_id, &node), 0);
    assert_int_equal(node.id.kind, NODE_VIRTIO_DISK);
    assert_int_equal(node.id.domid, 3);
    assert_int_equal(node.id.devid, 51712);
    assert_int_equal(node.state, NODE_STATE_INITIALISING);
    assert_true(node.online);
    assert_int_equal(node.virtio_id, 2);
    assert_int_equal(node.base, 0x02000000);
    assert_int_equal(node.irq, 33);
    assert_false(node.grant_usage);
    assert_string_equal(node.params, "/dev/vg/root");
    assert_string_equal(node.dev, "xvda");
    assert_false(node.read_only);
    assert_true(node.discard_enable);
    assert_false(node.direct_io_safe);
}

static void test_generic(void **state)
{
    struct device_node node;

    (void)state;
    assert_int_equal(parse(&generic, &generic_id, &node), 0);
    assert_int_equal(node.virtio_id, 0x1a);
    assert_int_equal(node.base, 0x02000200);
    assert_int_equal(node.irq, 34);
    assert_string_equal(node.params, "");
    assert_string_equal(node.dev, "");
}

static void test_absent(void **state)
{
    static const char *const needed_disk[] = {"params", "dev", "mode", "base", "irq"};
    static const char *const needed_generic[] = {"type", "base", "irq"};
    struct store changed;
    struct device_node node;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(needed_disk); i++)
        refused(&disk, &disk_id, needed_disk[i], NULL);
    for (size_t i = 0; i < ARRAY_SIZE(needed_generic); i++)
        refused(&generic, &generic_id, needed_generic[i], NULL);

    assert_int_equal(accepted(&disk, &disk_id, "state", NULL).state, NODE_STATE_UNKNOWN);
    assert_false(accepted(&disk, &disk_id, "online", NULL).online);
    assert_false(accepted(&disk, &disk_id, "discard-enable", NULL).discard_enable);
    accepted(&disk, &disk_id, "type", NULL);
    accepted(&disk, &disk_id, "transport", NULL);
    accepted(&disk, &disk_id, "specification", NULL);
    accepted(&disk, &disk_id, "frontend-id", NULL);

    /* libxl before 4.19 does not write it for disks: grants exactly outside dom0. */
    changed = with(&disk, "grant_usage", NULL);
    assert_int_equal(store_parse_node(&disk_id, 0, get, &changed, &node, error, sizeof(error)), 0);
    assert_false(node.grant_usage);
    assert_int_equal(store_parse_node(&disk_id, 5, get, &changed, &node, error, sizeof(error)), 0);
    assert_true(node.grant_usage);
}

static void test_numbers(void **state)
{
    static const char *const no_address[] = {
        "",           " ",          "0",          "0x",         "x2000000",   "33554432 ",
        " 33554432",  "+33554432",  "-1",         "33554433",   "0x2000001",  "0x2000100",
        "0x1fffe00",  "0x2100000",  "0x2100200",  "033554432",  "33554432\n", "2000200",
        "0x40000000", "0x12000000000000000",      "99999999999999999999999999999999",
        "0x2000000g", "3355443e",   "0x-2000000", "\xff\xff",
    };
    static const char *const no_irq[] = {
        "",    "0",   "31",  "1020",       "0x21",                 "33.0",
        "33a", "-33", "033", "4294967329", "18446744073709551649",
    };
    static const char *const no_state[] = {"", "9", "-1", "01", "1 ", "InitWait"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(no_address); i++) {
        refused(&disk, &disk_id, "base", no_address[i]);
        refused(&generic, &generic_id, "base", no_address[i]);
    }
    /* libxl: decimal for disks, hexadecimal for others. Both say what they mean. */
    assert_int_equal(accepted(&disk, &disk_id, "base", "0x20FFE00").base, 0x020ffe00);
    assert_int_equal(accepted(&generic, &generic_id, "base", "33554944").base, 0x02000200);

    for (size_t i = 0; i < ARRAY_SIZE(no_irq); i++)
        refused(&disk, &disk_id, "irq", no_irq[i]);
    assert_int_equal(accepted(&disk, &disk_id, "irq", "32").irq, 32);
    assert_int_equal(accepted(&disk, &disk_id, "irq", "1019").irq, 1019);

    for (size_t i = 0; i < ARRAY_SIZE(no_state); i++)
        refused(&disk, &disk_id, "state", no_state[i]);
    assert_int_equal(accepted(&disk, &disk_id, "state", "5").state, NODE_STATE_CLOSING);
    assert_int_equal(accepted(&disk, &disk_id, "state", "3").state, NODE_STATE_UNKNOWN);
    assert_int_equal(accepted(&disk, &disk_id, "state", "8").state, NODE_STATE_UNKNOWN);
}

static void test_words(void **state)
{
    static const char *const no_bool[] = {"", "2", "true", "11", "0 ", "00"};
    static const char *const no_type[] = {
        "", "virtio,device", "virtio,device0", "virtio,device0x1a", "virtio,device10000",
        "virtio,deviceg", "virtio,device 2", "virtio,device-1", "virtio,device2 ", "virtio",
        "virtio,Device2",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(no_bool); i++) {
        refused(&disk, &disk_id, "grant_usage", no_bool[i]);
        refused(&disk, &disk_id, "online", no_bool[i]);
        refused(&disk, &disk_id, "discard-enable", no_bool[i]);
        refused(&disk, &disk_id, "direct-io-safe", no_bool[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(no_type); i++)
        refused(&generic, &generic_id, "type", no_type[i]);
    assert_int_equal(accepted(&generic, &generic_id, "type", "virtio,device22").virtio_id, 0x22);
    assert_int_equal(accepted(&generic, &generic_id, "type", "virtio,deviceFFF0").virtio_id,
                     0xfff0);

    refused(&disk, &disk_id, "mode", "");
    refused(&disk, &disk_id, "mode", "rw");
    refused(&disk, &disk_id, "mode", "W");
    assert_true(accepted(&disk, &disk_id, "mode", "r").read_only);
    assert_true(accepted(&disk, &disk_id, "direct-io-safe", "1").direct_io_safe);

    refused(&disk, &disk_id, "type", "phy");
    refused(&disk, &disk_id, "specification", "xen");
    refused(&disk, &disk_id, "transport", "pci");
    refused(&generic, &generic_id, "transport", "unknown");
    refused(&disk, &disk_id, "frontend-id", "4");
    refused(&disk, &disk_id, "frontend-id", "03");
    refused(&disk, &disk_id, "params", "");
    refused(&disk, &disk_id, "params", "/dev/a\nb");
    refused(&disk, &disk_id, "dev", "");
    refused(&disk, &disk_id, "dev", "\033[2J");
}

/* Every key of 4 KiB, of the largest length that fits, and one byte more. */
static void test_long(void **state)
{
    static char text[8192];

    (void)state;
    for (size_t i = 0; i < KEYS_MAX && disk.pairs[i].key; i++) {
        const char *key = disk.pairs[i].key;

        if (!strcmp(key, "frontend") || !strcmp(key, "removable") || !strcmp(key, "bootable") ||
            !strcmp(key, "device-type"))
            continue; /* not read at all */
        for (size_t len = 1024; len <= 8191; len = len == 1024 ? 4096 : 2 * len - 1) {
            memset(text, '1', sizeof(text));
            text[len] = '\0';
            refused(&disk, &disk_id, key, text);
        }
    }
    memset(text, '/', sizeof(text));
    text[1023] = '\0';
    assert_string_equal(accepted(&disk, &disk_id, "params", text).params, text);
    memset(text, 'a', sizeof(text));
    text[31] = '\0';
    assert_string_equal(accepted(&disk, &disk_id, "dev", text).dev, text);
    text[31] = 'a';
    text[32] = '\0';
    refused(&disk, &disk_id, "dev", text);
}

static void test_nul_inside(void **state)
{
    struct store changed = with(&disk, "params", "/dev/a\0/b");
    struct device_node node;

    (void)state;
    for (size_t i = 0; i < KEYS_MAX && changed.pairs[i].key; i++) {
        if (!strcmp(changed.pairs[i].key, "params"))
            changed.pairs[i].len = 9;
    }
    assert_int_equal(parse(&changed, &disk_id, &node), -EINVAL);
    assert_non_null(strstr(error, "params"));
}

/* A node that is refused still has to be followed to its end. */
static void test_refused_state(void **state)
{
    struct store changed = with(&disk, "base", "nonsense");
    struct device_node node;

    (void)state;
    changed = with(&changed, "frontend-id", "9");
    changed = with(&changed, "state", "5");
    assert_int_equal(parse(&changed, &disk_id, &node), -EINVAL);
    assert_int_equal(node.state, NODE_STATE_CLOSING);
    assert_true(node.online);
}

static void test_read_fails(void **state)
{
    struct store changed = disk;
    struct device_node node;

    (void)state;
    changed.fail = -EIO;
    assert_int_equal(parse(&changed, &disk_id, &node), -EIO);
    assert_non_null(strstr(error, "cannot be read"));
}

static void test_short_error_buffer(void **state)
{
    struct store changed = with(&disk, "base", "nonsense");
    struct device_node node;
    char small[8];

    (void)state;
    assert_int_equal(store_parse_node(&disk_id, 0, get, &changed, &node, small, sizeof(small)),
                     -EINVAL);
    assert_int_equal(strlen(small), sizeof(small) - 1);
}

static void test_paths(void **state)
{
    static const char *const nothing[] = {
        "", "/", "backend", "backend/", "backend/vbd", "backend/vbd/3/51712",
        "backend/virtio_diskx/3", "backend/virtiox", "backend/virtio/x", "backend/virtio/32752/0", "backend/virtio/-1/0",
        "backend/virtio/03/0", "backend/virtio/3/4294967296", "backend/virtio/3/a/state",
        "backend/virtio/99999999999999999999/0", "backend/virtio//0", "device/virtio/0",
        "backend/virtio/ 3/0", "/local/domain/3/backend/virtio/3/0",
    };
    struct node_id id;
    char path[STORE_PATH_MAX];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(nothing); i++) {
        if (store_parse_path(nothing[i], &id))
            fail_msg("\"%s\" was accepted", nothing[i]);
    }
    assert_int_equal(store_parse_path("backend/virtio", &id), 1);
    assert_int_equal(id.kind, NODE_VIRTIO);
    assert_int_equal(store_parse_path("backend/virtio_disk/", &id), 1);
    assert_int_equal(id.kind, NODE_VIRTIO_DISK);
    assert_int_equal(store_parse_path("backend/virtio/17", &id), 2);
    assert_int_equal(id.domid, 17);
    assert_int_equal(store_parse_path("backend/virtio_disk/17/51712", &id), 3);
    assert_int_equal(id.devid, 51712);
    assert_int_equal(store_parse_path("backend/virtio/0/4294967295/state", &id), 3);
    assert_int_equal(id.domid, 0);
    assert_int_equal(id.devid, UINT32_MAX);

    store_node_path(&disk_id, path, sizeof(path));
    assert_string_equal(path, "backend/virtio_disk/3/51712");
    assert_int_equal(store_parse_path(path, &id), 3);
    assert_memory_equal(&id, &disk_id, sizeof(id));
}

static void test_vm(void **state)
{
    static const char uuid[] = "0b7f7f5a-1c2d-4e3f-8a9b-001122334455";
    static const char *const wrong[] = {
        "", "/vm/", "/vm/0b7f7f5a-1c2d-4e3f-8a9b-00112233445", "/vm/../../../etc/passwd",
        "/vm/0b7f7f5a-1c2d-4e3f-8a9b-0011223344556", "/vm/0b7f7f5a_1c2d-4e3f-8a9b-001122334455",
        "/vm/0b7f7f5g-1c2d-4e3f-8a9b-001122334455", "0b7f7f5a-1c2d-4e3f-8a9b-001122334455",
    };
    char out[37];

    (void)state;
    assert_int_equal(store_parse_vm("/vm/0b7f7f5a-1c2d-4e3f-8a9b-001122334455", out, sizeof(out)),
                     0);
    assert_string_equal(out, uuid);
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_int_equal(store_parse_vm(wrong[i], out, sizeof(out)), -EINVAL);
    assert_int_equal(store_parse_vm("/vm/0b7f7f5a-1c2d-4e3f-8a9b-001122334455", out, 36), -E2BIG);
}

/* What libxl notes of a guest's devices, for driver domains. */
static void test_libxl_paths(void **state)
{
    static const char *const nothing[] = {
        "/libxl/",
        "/libxlx",
        "/libxl/3",
        "/libxl/3/device",
        "/libxl/3/device/virtio",
        "/libxl/3/device/virtio/0",
        "/libxl/3/device/virtio/0/frontend",
        "/libxl/3/device/virtio/0/backend/x",
        "/libxl/3/device/virtio/00/backend",
        "/libxl/3/device/virtio/x/backend",
        "/libxl/3/device/virtiox/0/backend",
        "/libxl/3/device/vbd/0/backend",
        "/libxl/32752/device/virtio/0/backend",
        "/libxl/3x/device/virtio/0/backend",
        "/local/domain/3",
        "",
    };
    struct node_id id;

    (void)state;
    assert_int_equal(store_parse_libxl_path("/libxl", &id), 1);
    assert_int_equal(store_parse_libxl_path("/libxl/3/device/virtio/2/backend", &id), 2);
    assert_int_equal(id.kind, NODE_VIRTIO);
    assert_int_equal(id.domid, 3);
    assert_int_equal(id.devid, 2);
    assert_int_equal(store_parse_libxl_path("/libxl/7/device/virtio_disk/51712/backend", &id), 2);
    assert_int_equal(id.kind, NODE_VIRTIO_DISK);
    assert_int_equal(id.domid, 7);
    assert_int_equal(id.devid, 51712);
    for (size_t i = 0; i < ARRAY_SIZE(nothing); i++)
        if (store_parse_libxl_path(nothing[i], &id) != 0)
            fail_msg("\"%s\" was taken for something", nothing[i]);
}

static void test_backend_path(void **state)
{
    static const char *const wrong[] = {
        "",
        "/local/domain/",
        "/local/domain/1",
        "/local/domain/1/backend/virtio/3/1",
        "/local/domain/1/backend/virtio/4/0",
        "/local/domain/1/backend/virtio_disk/3/0",
        "/local/domain/1/backend/virtio/3/0/",
        "/local/domain/x/backend/virtio/3/0",
        "/local/domain/32752/backend/virtio/3/0",
        "backend/virtio/3/0",
    };
    uint32_t domid;

    (void)state;
    assert_int_equal(store_parse_backend("/local/domain/1/backend/virtio/3/0", &generic_id, &domid),
                     0);
    assert_int_equal(domid, 1);
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        if (store_parse_backend(wrong[i], &generic_id, &domid) != -EINVAL)
            fail_msg("\"%s\" was accepted", wrong[i]);
}

/* ---- libxenstore, in memory: one value, or none, and a node ---- */

static struct {
    const char *path;
    char value[256]; /* empty: absent */
    const char *node; /* exists, if not NULL */
    struct xs_permissions owner; /* of the value: as it is inherited, or alone */
    unsigned n_permissions, n_writes, n_commits;
    bool refuses; /* to set permissions */
} shared;

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len)
{
    (void)h, (void)t;
    if (shared.node && !strcmp(path, shared.node))
        return strdup("");
    if (!shared.value[0] || strcmp(path, shared.path)) {
        errno = ENOENT;
        return NULL;
    }
    if (len)
        *len = (unsigned int)strlen(shared.value);
    return strdup(shared.value);
}

bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *data,
              unsigned int len)
{
    (void)h;
    assert_int_not_equal(t, XBT_NULL);
    assert_string_equal(path, shared.path);
    if (!shared.value[0])
        shared.n_permissions = 2; /* the backend's, and read by the guest: as the node */
    snprintf(shared.value, sizeof(shared.value), "%.*s", (int)len, (const char *)data);
    shared.n_writes++;
    return true;
}

bool xs_set_permissions(struct xs_handle *h, xs_transaction_t t, const char *path,
                        struct xs_permissions *permissions, unsigned int n)
{
    (void)h;
    assert_int_not_equal(t, XBT_NULL);
    assert_string_equal(path, shared.path);
    assert_true(shared.value[0]);
    errno = EPERM;
    shared.n_permissions = n;
    shared.owner = permissions[0];
    return !shared.refuses;
}

bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path)
{
    (void)h, (void)t;
    assert_string_equal(path, shared.path);
    shared.value[0] = '\0';
    return true;
}

xs_transaction_t xs_transaction_start(struct xs_handle *h)
{
    (void)h;
    return 1;
}

bool xs_transaction_end(struct xs_handle *h, xs_transaction_t t, bool abort)
{
    (void)h, (void)t;
    shared.n_commits += !abort;
    return true;
}

/* The reason that a device is not served may name other guests and dom0's files: not for the guest. */
static void test_error_hidden(void **state)
{
    struct xenstore xs = {.own_domid = 5};

    (void)state;
    memset(&shared, 0, sizeof(shared));
    shared.node = "backend/virtio/3/0";
    shared.path = "backend/virtio/3/0/viod-error";
    assert_int_equal(xenstore_set_error(&xs, &generic_id, "/dev/vg/a is used by guest b"), 0);
    assert_string_equal(shared.value, "/dev/vg/a is used by guest b");
    assert_int_equal(shared.n_permissions, 1);
    assert_int_equal(shared.owner.id, 5);
    assert_int_equal(shared.owner.perms, XS_PERM_NONE);
    assert_int_equal(shared.n_commits, 1);
    assert_int_equal(xenstore_set_error(&xs, &generic_id, "/dev/vg/a is used by guest b"), 0);
    assert_int_equal(shared.n_writes, 1);
    assert_int_equal(xenstore_set_error(&xs, &generic_id, NULL), 0);
    assert_string_equal(shared.value, "");
    assert_int_equal(shared.n_commits, 2);

    /* All or nothing. */
    shared.refuses = true;
    assert_int_equal(xenstore_set_error(&xs, &generic_id, "x"), -EPERM);
    assert_int_equal(shared.n_commits, 2);

    /* The guest's driver may look at the state. */
    shared.path = "backend/virtio/3/0/state";
    shared.value[0] = '\0';
    assert_int_equal(xenstore_set_state(&xs, &generic_id, NODE_STATE_CONNECTED), 0);
    assert_string_equal(shared.value, "4");
    assert_int_equal(shared.n_permissions, 2);
    memset(&shared, 0, sizeof(shared));
}

/* What a driver domain says of its device ends on dom0's terminal. */
static void test_reason(void **state)
{
    struct xenstore xs = {0};
    char why[64];

    (void)state;
    shared.path = "/local/domain/5/backend/virtio/3/0/viod-error";
    strcpy(shared.value, "no \x1b[2J, \xc2\x9b" "2J, \x9b, \x7f, \n; path = /dev/vg/~a");
    assert_false(xenstore_device_ready(&xs, &generic_id, 5, why, sizeof(why)));
    assert_string_equal(why, "no ?[2J, ??2J, ?, ?, ?; path = /dev/vg/~a");
    memset(shared.value, 'x', sizeof(shared.value) - 1);
    assert_false(xenstore_device_ready(&xs, &generic_id, 5, why, sizeof(why)));
    assert_string_equal(why, "");
    shared.value[0] = '\0';
    assert_false(xenstore_device_ready(&xs, &generic_id, 5, why, sizeof(why)));
    assert_string_equal(why, "");
}

static int directory_error; /* 0: each directory has one number in it */

char **__wrap_xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path,
                           unsigned int *num);
char **__wrap_xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path,
                           unsigned int *num)
{
    char **names = calloc(1, sizeof(*names) + 2);

    (void)h, (void)t, (void)path;
    *num = 0;
    assert_non_null(names);
    if (directory_error) {
        free(names);
        errno = directory_error;
        return NULL;
    }
    *num = 1;
    names[0] = (char *)&names[1];
    memcpy(names[0], "7", 2);
    return names;
}

/* That something cannot be looked at does not mean that there is nothing. */
static void test_directory_fails(void **state)
{
    struct xenstore xs = {.own_domid = 3};
    struct node_id ids[4];
    uint32_t *numbers;
    size_t n;

    (void)state;
    directory_error = 0;
    assert_int_equal(store_list_numbers(&xs, "x", UINT16_MAX, &numbers, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(numbers[0], 7);
    free(numbers);
    assert_int_equal(xenstore_list_nodes(&xs, 5, ids, 4), 2);
    assert_true(xenstore_domain_alive(&xs, 5));

    directory_error = ENOENT;
    assert_int_equal(store_list_numbers(&xs, "x", UINT16_MAX, &numbers, &n), 0);
    assert_int_equal(n, 0);
    assert_null(numbers);
    assert_int_equal(xenstore_list_nodes(&xs, 5, ids, 4), 0);
    assert_int_equal(xenstore_list_remote_nodes(&xs, 5, ids, 4), 0);
    assert_false(xenstore_domain_alive(&xs, 5));

    directory_error = ENOMEM;
    assert_int_equal(store_list_numbers(&xs, "x", UINT16_MAX, &numbers, &n), -ENOMEM);
    assert_int_equal(n, 0);
    assert_null(numbers);
    assert_int_equal(xenstore_list_nodes(&xs, 5, ids, 4), -ENOMEM);
    assert_int_equal(xenstore_list_remote_nodes(&xs, 5, ids, 4), -ENOMEM);
    assert_true(xenstore_domain_alive(&xs, 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reason),
        cmocka_unit_test(test_error_hidden),
        cmocka_unit_test(test_disk),
        cmocka_unit_test(test_libxl_paths),
        cmocka_unit_test(test_backend_path),
        cmocka_unit_test(test_generic),
        cmocka_unit_test(test_absent),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_nul_inside),
        cmocka_unit_test(test_refused_state),
        cmocka_unit_test(test_read_fails),
        cmocka_unit_test(test_short_error_buffer),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_vm),
        cmocka_unit_test(test_directory_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
