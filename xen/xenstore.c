/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor's connection to xenstore.
 *
 * libxl removes a node alone, or a guest's whole directory at once; then only the directory is
 * named by the event. So each node that was ever reported is remembered until somebody reads it and
 * finds it gone, and an event for a directory is an event for all that exist in it or are
 * remembered.
 */
#include "xenstore_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

/* Events merged by one call, so that a caller gets on even in a storm. */
#define EVENTS_PER_CALL 256
#define ERROR_TEXT_MAX 1024

static bool same_node(const struct node_id *a, const struct node_id *b)
{
    return a->kind == b->kind && a->domid == b->domid && a->devid == b->devid;
}

/* True if id is meant by an event for `what` at this level (see store_parse_path). */
static bool is_below(const struct node_id *id, const struct node_id *what, int level)
{
    return id->kind == what->kind && (level < 2 || id->domid == what->domid) &&
           (level < 3 || id->devid == what->devid);
}

static void set_pending(struct xenstore *xs, size_t i)
{
    if (!xs->nodes[i].pending)
        xs->n_pending++;
    xs->nodes[i].pending = true;
}

static void report(struct xenstore *xs, const struct node_id *id)
{
    for (size_t i = 0; i < xs->n_nodes; i++) {
        if (same_node(&xs->nodes[i].id, id)) {
            set_pending(xs, i);
            return;
        }
    }
    if (xs->n_nodes == xs->nodes_size) {
        size_t size = xs->nodes_size ? 2 * xs->nodes_size : 64;
        struct tracked *nodes =
            size <= STORE_TRACKED_MAX ? realloc(xs->nodes, size * sizeof(*nodes)) : NULL;

        if (!nodes) {
            log_host("no room for a further device node (domain %" PRIu32 ")", id->domid);
            return;
        }
        xs->nodes = nodes;
        xs->nodes_size = size;
    }
    xs->nodes[xs->n_nodes] = (struct tracked){.id = *id};
    set_pending(xs, xs->n_nodes++);
}

/* A node that was found gone: forgotten, unless it came back in the meantime. */
static void forget(struct xenstore *xs, const struct node_id *id)
{
    for (size_t i = 0; i < xs->n_nodes; i++) {
        if (same_node(&xs->nodes[i].id, id)) {
            if (!xs->nodes[i].pending)
                xs->nodes[i] = xs->nodes[--xs->n_nodes];
            return;
        }
    }
}

ssize_t store_read(struct xenstore *xs, xs_transaction_t t, const char *path, char *value,
                   size_t size)
{
    unsigned int len = 0;
    char *found = xs_read(xs->xs, t, path, &len);
    ssize_t ret = (ssize_t)len;

    if (!found)
        return errno ? -errno : -EIO;
    if (len >= size) {
        ret = -E2BIG;
        len = (unsigned int)(size - 1);
    }
    memcpy(value, found, len);
    value[len] = '\0';
    free(found);
    return ret;
}

bool store_exists(struct xenstore *xs, xs_transaction_t t, const char *path)
{
    char *value = xs_read(xs->xs, t, path, NULL);

    free(value);
    return value != NULL;
}

int xenstore_open(struct xenstore **out, char *error, size_t error_len)
{
    struct xenstore *xs = calloc(1, sizeof(*xs));
    char value[16];
    uint64_t domid = 0;
    ssize_t len;
    int err;

    if (!xs) {
        snprintf(error, error_len, "out of memory");
        return -ENOMEM;
    }
    xs->xs = xs_open(0);
    if (!xs->xs) {
        err = errno ? -errno : -EIO;
        snprintf(error, error_len, "cannot reach xenstore: %s: is xenstored running, and does this "
                 "system run on Xen?", strerror(-err));
        goto fail;
    }
    len = store_read(xs, XBT_NULL, "domid", value, sizeof(value));
    err = len < 0 ? (int)len : store_parse_decimal(value, UINT16_MAX, &domid);
    if (err) {
        snprintf(error, error_len, "xenstore does not say which domain this is (%s): in dom0, has "
                 "xen-init-dom0 run?", strerror(-err));
        goto fail;
    }
    xs->own_domid = (uint32_t)domid;
    snprintf(xs->home, sizeof(xs->home), "/local/domain/%" PRIu32 "/", xs->own_domid);
    *out = xs;
    return 0;
fail:
    xenstore_close(xs);
    return err;
}

void xenstore_close(struct xenstore *xs)
{
    if (!xs)
        return;
    xs_close(xs->xs);
    free(xs->nodes);
    free(xs->remote);
    free(xs);
}

uint32_t xenstore_own_domid(const struct xenstore *xs)
{
    return xs->own_domid;
}

int xenstore_fd(const struct xenstore *xs)
{
    return xs_fileno(xs->xs);
}

int xenstore_watch_devices(struct xenstore *xs)
{
    for (size_t kind = 0; kind < ARRAY_SIZE(store_kinds); kind++) {
        char path[STORE_PATH_MAX];

        snprintf(path, sizeof(path), "backend/%s", store_kinds[kind]);
        if (!xs_watch(xs->xs, path, path))
            return errno ? -errno : -EIO;
    }
    if (!xs_watch(xs->xs, "@releaseDomain", "@releaseDomain")) {
        if (errno != EACCES && errno != EPERM)
            return errno ? -errno : -EIO;
        log_warning("the end of domains is not announced to this domain: in dom0, run "
                    "'xenstore-chmod @releaseDomain n0 r%" PRIu32 "'", xs->own_domid);
    }
    return 0;
}

int store_list_numbers(struct xenstore *xs, const char *path, uint64_t max, uint32_t **numbers,
                       size_t *n)
{
    unsigned int entries = 0;
    char **names = xs_directory(xs->xs, XBT_NULL, path, &entries);

    *n = 0;
    *numbers = NULL;
    if (!names)
        return errno == ENOENT ? 0 : errno ? -errno : -EIO;
    if (entries > 0)
        *numbers = calloc(entries, sizeof(**numbers));
    if (entries > 0 && !*numbers) {
        free(names);
        return -ENOMEM;
    }
    for (unsigned int i = 0; i < entries; i++) {
        uint64_t value;

        if (!store_parse_decimal(names[i], max, &value))
            (*numbers)[(*n)++] = (uint32_t)value;
    }
    free(names);
    return 0;
}

/* For events: what they speak of is not looked at before the next one. */
static void list_reported(struct xenstore *xs, const char *path, uint64_t max, uint32_t **numbers,
                          size_t *n)
{
    int ret = store_list_numbers(xs, path, max, numbers, n);

    if (ret < 0)
        log_host("%s in xenstore cannot be listed: %s", path, strerror(-ret));
}

static void report_guest(struct xenstore *xs, enum node_kind kind, uint32_t domid)
{
    char path[STORE_PATH_MAX];
    uint32_t *devids;
    size_t n;

    snprintf(path, sizeof(path), "backend/%s/%" PRIu32, store_kinds[kind], domid);
    list_reported(xs, path, UINT32_MAX, &devids, &n);
    for (size_t i = 0; i < n; i++)
        report(xs, &(struct node_id){.kind = kind, .domid = domid, .devid = devids[i]});
    free(devids);
}

static void report_directory(struct xenstore *xs, const struct node_id *what, int level)
{
    char path[STORE_PATH_MAX];
    uint32_t *domids;
    size_t n;

    for (size_t i = 0; i < xs->n_nodes; i++) {
        if (is_below(&xs->nodes[i].id, what, level))
            set_pending(xs, i);
    }
    if (level == 2) {
        report_guest(xs, what->kind, what->domid);
        return;
    }
    snprintf(path, sizeof(path), "backend/%s", store_kinds[what->kind]);
    list_reported(xs, path, UINT16_MAX, &domids, &n);
    for (size_t i = 0; i < n; i++)
        report_guest(xs, what->kind, domids[i]);
    free(domids);
}

static void take_event(struct xenstore *xs, const char *path)
{
    size_t home = strlen(xs->home);
    struct node_id id;
    int level;

    if (!strcmp(path, "@releaseDomain")) {
        xs->released = true;
        return;
    }
    if (store_remote_event(xs, path))
        return;
    if (!strncmp(path, xs->home, home))
        path += home;
    level = store_parse_path(path, &id);
    if (level == 3)
        report(xs, &id);
    else if (level)
        report_directory(xs, &id, level);
}

/*
 * All events that are there are taken before the first is reported: that is what merges duplicates.
 * The descriptor may be quiet while some are pending here, so callers go on until STORE_NOTHING.
 */
enum store_event xenstore_next_event(struct xenstore *xs, struct node_id *id)
{
    for (int i = 0; i < EVENTS_PER_CALL; i++) {
        char **event = xs_check_watch(xs->xs);

        if (!event) {
            if (errno != EAGAIN)
                log_host("xenstore's events: %s", strerror(errno));
            break;
        }
        take_event(xs, event[XS_WATCH_PATH]);
        free(event);
    }
    if (xs->released) {
        xs->released = false;
        return STORE_DOMAIN_RELEASED;
    }
    if (xs->n_remote > 0) {
        *id = xs->remote[--xs->n_remote];
        return STORE_REMOTE_NODE;
    }
    for (size_t i = 0; i < xs->n_nodes && xs->n_pending; i++) {
        struct tracked *node = &xs->nodes[(xs->next + i) % xs->n_nodes];

        if (!node->pending)
            continue;
        node->pending = false;
        xs->n_pending--;
        xs->next = (xs->next + i + 1) % xs->n_nodes;
        *id = node->id;
        return STORE_NODE_CHANGED;
    }
    return STORE_NOTHING;
}

/* One node in one transaction. */
struct node_reader {
    struct xenstore *xs;
    xs_transaction_t t;
    char path[STORE_PATH_MAX];
};

static ssize_t get_key(void *context, const char *key, char *value, size_t size)
{
    struct node_reader *r = context;
    char path[2 * STORE_PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", r->path, key);
    return store_read(r->xs, r->t, path, value, size);
}

int xenstore_read_node(struct xenstore *xs, const struct node_id *id, struct device_node *node,
                       char *error, size_t error_len)
{
    struct node_reader r = {.xs = xs};

    store_node_path(id, r.path, sizeof(r.path));
    for (int i = 0; i < TRANSACTION_TRIES; i++) {
        int ret;

        r.t = xs_transaction_start(xs->xs);
        if (r.t == XBT_NULL) {
            ret = errno ? -errno : -EIO;
            snprintf(error, error_len, "xenstore transaction: %s", strerror(-ret));
            return ret;
        }
        if (store_exists(xs, r.t, r.path)) {
            ret = store_parse_node(id, xs->own_domid, get_key, &r, node, error, error_len);
        } else {
            ret = errno == ENOENT ? -ENOENT : -EIO;
            snprintf(error, error_len, "%s: %s", r.path, strerror(-ret));
        }
        /* Committed though nothing was written: only this tells whether all was of one moment. */
        if (xs_transaction_end(xs->xs, r.t, false)) {
            if (ret == -ENOENT)
                forget(xs, id);
            return ret;
        }
        if (errno != EAGAIN) {
            ret = errno ? -errno : -EIO;
            snprintf(error, error_len, "xenstore transaction: %s", strerror(-ret));
            return ret;
        }
    }
    snprintf(error, error_len, "%s changes too fast to be read", r.path);
    return -EAGAIN;
}

static int compare_ids(const void *a, const void *b)
{
    const struct node_id *x = a, *y = b;

    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return x->devid < y->devid ? -1 : x->devid > y->devid;
}

int xenstore_list_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max)
{
    int count = 0, ret = 0;

    for (size_t kind = 0; kind < ARRAY_SIZE(store_kinds) && !ret; kind++) {
        char path[STORE_PATH_MAX];
        uint32_t *devids;
        size_t n;

        snprintf(path, sizeof(path), "backend/%s/%" PRIu32, store_kinds[kind], domid);
        ret = store_list_numbers(xs, path, UINT32_MAX, &devids, &n);
        for (size_t i = 0; i < n && count < max; i++)
            ids[count++] =
                (struct node_id){.kind = (enum node_kind)kind, .domid = domid, .devid = devids[i]};
        free(devids);
    }
    if (ret < 0)
        return ret;
    if (count > 0)
        qsort(ids, (size_t)count, sizeof(*ids), compare_ids);
    return count;
}

/*
 * Writes (or, with NULL, removes) one key of a node that exists. In a transaction, because libxl
 * may remove the node at any moment and a write would bring half of it back, for ever. What is
 * already there is not written again: it would only wake everybody who watches, us included.
 * What the guest may read of its node, it may read of a new key, too, unless that is `hidden`.
 */
static int write_key(struct xenstore *xs, const struct node_id *id, const char *key,
                     const char *text, bool hidden)
{
    struct xs_permissions nobody = {.id = xs->own_domid, .perms = XS_PERM_NONE};
    char node[STORE_PATH_MAX], path[2 * STORE_PATH_MAX], now[ERROR_TEXT_MAX + 1];

    store_node_path(id, node, sizeof(node));
    snprintf(path, sizeof(path), "%s/%s", node, key);
    for (int i = 0; i < TRANSACTION_TRIES; i++) {
        xs_transaction_t t = xs_transaction_start(xs->xs);
        int ret = 0;
        ssize_t len;
        bool ok = true;

        if (t == XBT_NULL)
            return errno ? -errno : -EIO;
        if (!store_exists(xs, t, node)) {
            ret = errno ? -errno : -EIO;
            xs_transaction_end(xs->xs, t, true);
            return ret;
        }
        len = store_read(xs, t, path, now, sizeof(now));
        if (text ? len >= 0 && !strcmp(now, text) : len == -ENOENT) {
            xs_transaction_end(xs->xs, t, true);
            return 0;
        }
        ok = text ? xs_write(xs->xs, t, path, text, (unsigned int)strlen(text))
                  : xs_rm(xs->xs, t, path);
        if (ok && text && hidden)
            ok = xs_set_permissions(xs->xs, t, path, &nobody, 1);
        if (!ok) {
            ret = errno ? -errno : -EIO;
            xs_transaction_end(xs->xs, t, true);
            return ret;
        }
        if (xs_transaction_end(xs->xs, t, false))
            return 0;
        if (errno != EAGAIN)
            return errno ? -errno : -EIO;
    }
    return -EAGAIN;
}

int xenstore_set_state(struct xenstore *xs, const struct node_id *id, enum node_state state)
{
    char text[4];
    int ret;

    snprintf(text, sizeof(text), "%u", (unsigned)state % 10);
    ret = write_key(xs, id, "state", text, false);
    if (ret < 0 && ret != -ENOENT) /* libxl waits for it in vain */
        log_host("domain %" PRIu32 ": state %s of device node %" PRIu32 " cannot be written: %s",
                 id->domid, text, id->devid, strerror(-ret));
    return ret;
}

int xenstore_set_error(struct xenstore *xs, const struct node_id *id, const char *text)
{
    char shortened[ERROR_TEXT_MAX];

    if (text)
        snprintf(shortened, sizeof(shortened), "%s", text);
    /* It may name other guests, and files of this domain. Dom0 can read it, whoever wrote it. */
    return write_key(xs, id, "viod-error", text ? shortened : NULL, true);
}

int xenstore_remove_node(struct xenstore *xs, const struct node_id *id)
{
    char path[STORE_PATH_MAX];

    store_node_path(id, path, sizeof(path));
    return xs_rm(xs->xs, XBT_NULL, path) || errno == ENOENT ? 0 : -errno;
}

bool xenstore_domain_alive(struct xenstore *xs, uint32_t domid)
{
    char path[STORE_PATH_MAX];
    struct node_id id;

    /* A driver domain may neither ask for other domains nor look into their homes. Its own nodes of
     * a guest are there as long as libxl has not taken the devices away.
     * No answer is not the answer no, which costs the guest its devices. */
    if (xs->own_domid != 0)
        return xenstore_list_nodes(xs, domid, &id, 1) != 0;
    errno = 0;
    if (!xs_is_domain_introduced(xs->xs, domid))
        return errno != 0;
    snprintf(path, sizeof(path), "/local/domain/%" PRIu32, domid);
    return store_exists(xs, XBT_NULL, path) || errno != ENOENT;
}

int xenstore_domain_name(struct xenstore *xs, uint32_t domid, char *name, size_t len)
{
    char path[STORE_PATH_MAX];
    ssize_t ret;

    snprintf(path, sizeof(path), "/local/domain/%" PRIu32 "/name", domid);
    ret = store_read(xs, XBT_NULL, path, name, len);
    if (ret < 0)
        return (int)ret;
    return strlen(name) == (size_t)ret && store_is_text(name) ? 0 : -EINVAL;
}

int xenstore_domain_uuid(struct xenstore *xs, uint32_t domid, char *uuid, size_t len)
{
    char path[STORE_PATH_MAX], vm[64];
    ssize_t ret;

    snprintf(path, sizeof(path), "/local/domain/%" PRIu32 "/vm", domid);
    ret = store_read(xs, XBT_NULL, path, vm, sizeof(vm));
    return ret < 0 ? (int)ret : store_parse_vm(vm, uuid, len);
}
