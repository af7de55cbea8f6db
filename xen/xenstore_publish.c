/* SPDX-License-Identifier: Apache-2.0 */
#include "xenstore_publish.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend_state.h"
#include "log.h"
#include "xenstore_internal.h"

/* xenstored limits what a message can carry (4096 bytes, with its path) and a node (2048). */
#define PIECE_LEN 1024u
#define PIECES_MAX (PUBLICATION_SETTINGS_MAX / PIECE_LEN)
#define PATH_LEN 128

void publication_free(struct publication *publication)
{
    free(publication->settings);
    *publication = (struct publication){0};
}

/* ---- events ---- */

int xenstore_watch_guests(struct xenstore *xs)
{
    return xs_watch(xs->xs, "/libxl", "/libxl") ? 0 : -errno;
}

static void add_remote(struct xenstore *xs, const struct node_id *id)
{
    for (size_t i = 0; i < xs->n_remote; i++)
        if (xs->remote[i].kind == id->kind && xs->remote[i].domid == id->domid &&
            xs->remote[i].devid == id->devid)
            return;
    if (xs->n_remote == xs->remote_size) {
        size_t size = xs->remote_size ? 2 * xs->remote_size : 64;
        struct node_id *grown =
            size <= STORE_TRACKED_MAX ? realloc(xs->remote, size * sizeof(*grown)) : NULL;

        if (!grown) {
            log_host("no room for a further device of domain %" PRIu32, id->domid);
            return;
        }
        xs->remote = grown;
        xs->remote_size = size;
    }
    xs->remote[xs->n_remote++] = *id;
}

int xenstore_list_remote_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max)
{
    int count = 0, ret = 0;

    for (size_t kind = 0; kind < ARRAY_SIZE(store_kinds) && !ret; kind++) {
        char path[PATH_LEN];
        uint32_t *devids;
        size_t n;

        snprintf(path, sizeof(path), "/libxl/%" PRIu32 "/device/%s", domid, store_kinds[kind]);
        ret = store_list_numbers(xs, path, UINT32_MAX, &devids, &n);
        for (size_t i = 0; i < n && count < max; i++)
            ids[count++] =
                (struct node_id){.kind = (enum node_kind)kind, .domid = domid, .devid = devids[i]};
        free(devids);
    }
    return ret < 0 ? ret : count;
}

int xenstore_list_guests(struct xenstore *xs, uint32_t **domids, size_t *n)
{
    return store_list_numbers(xs, "/libxl", UINT16_MAX, domids, n);
}

static void add_all(struct xenstore *xs)
{
    size_t n_domids;
    uint32_t *domids;
    int ret = xenstore_list_guests(xs, &domids, &n_domids);

    for (size_t i = 0; i < n_domids; i++) {
        struct node_id ids[64];
        int n = xenstore_list_remote_nodes(xs, domids[i], ids, (int)ARRAY_SIZE(ids));

        if (n < 0)
            ret = n;
        for (int j = 0; j < n; j++)
            add_remote(xs, &ids[j]);
    }
    if (ret < 0)
        log_host("the devices of guests cannot be listed: %s", strerror(-ret));
    free(domids);
}

bool store_remote_event(struct xenstore *xs, const char *path)
{
    struct node_id id;

    if (strncmp(path, "/libxl", sizeof("/libxl") - 1))
        return false;
    switch (store_parse_libxl_path(path, &id)) {
    case 1:
        add_all(xs);
        break;
    case 2:
        add_remote(xs, &id);
        break;
    default:
        break;
    }
    return true;
}

/* ---- libxl's notes ---- */

struct note_reader {
    struct xenstore *xs;
    char path[PATH_LEN];
};

static ssize_t get_note(void *context, const char *key, char *value, size_t size)
{
    struct note_reader *r = context;
    char path[2 * PATH_LEN];

    snprintf(path, sizeof(path), "%s/%s", r->path, key);
    return store_read(r->xs, XBT_NULL, path, value, size);
}

static void note_path(const struct node_id *id, char *path, size_t size)
{
    snprintf(path, size, "/libxl/%" PRIu32 "/device/%s/%" PRIu32, id->domid,
             store_kinds[id->kind], id->devid);
}

/* No transaction: libxl writes a device's notes in one, and never changes them. */
int xenstore_read_remote_node(struct xenstore *xs, const struct node_id *id,
                              uint32_t *backend_domid, struct device_node *node, char *error,
                              size_t error_len)
{
    struct note_reader r = {.xs = xs};
    char backend[PATH_LEN];
    ssize_t len;

    note_path(id, r.path, sizeof(r.path));
    len = get_note(&r, "backend", backend, sizeof(backend));
    if (len < 0) {
        snprintf(error, error_len, "%s/backend: %s", r.path, strerror((int)-len));
        return (int)len;
    }
    if (strlen(backend) != (size_t)len || store_parse_backend(backend, id, backend_domid)) {
        snprintf(error, error_len, "%s/backend is not the path of this device's backend", r.path);
        return -EINVAL;
    }
    return store_parse_node(id, *backend_domid, get_note, &r, node, error, error_len);
}

int xenstore_count_before(struct xenstore *xs, const struct node_id *id, uint16_t virtio_id)
{
    struct note_reader r = {.xs = xs};
    char path[PATH_LEN], type[64];
    uint32_t *devids;
    size_t n;
    int count = 0, ret;

    snprintf(path, sizeof(path), "/libxl/%" PRIu32 "/device/%s", id->domid,
             store_kinds[NODE_VIRTIO]);
    if (!store_exists(xs, XBT_NULL, path))
        return errno ? -errno : -EIO;
    ret = store_list_numbers(xs, path, UINT32_MAX, &devids, &n);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < n; i++) {
        struct node_id other = {.kind = NODE_VIRTIO, .domid = id->domid, .devid = devids[i]};
        uint16_t number;

        if (other.devid >= id->devid)
            continue;
        note_path(&other, r.path, sizeof(r.path));
        if (get_note(&r, "type", type, sizeof(type)) > 0 && !store_parse_type(type, &number) &&
            number == virtio_id)
            count++;
    }
    free(devids);
    return count;
}

/* ---- writing ---- */

static bool write_text(struct xenstore *xs, xs_transaction_t t, const char *directory,
                       const char *key, const char *text, size_t len)
{
    char path[2 * PATH_LEN];

    snprintf(path, sizeof(path), "%s/%s", directory, key);
    return xs_write(xs->xs, t, path, text, (unsigned int)len);
}

static bool write_settings(struct xenstore *xs, xs_transaction_t t, const char *directory,
                           const char *settings)
{
    size_t len = settings ? strlen(settings) : 0;

    for (size_t i = 0; i * PIECE_LEN < len; i++) {
        char key[32];

        snprintf(key, sizeof(key), "settings/%zu", i);
        if (!write_text(xs, t, directory, key, settings + i * PIECE_LEN,
                        MIN(len - i * PIECE_LEN, PIECE_LEN)))
            return false;
    }
    return true;
}

static bool write_all(struct xenstore *xs, xs_transaction_t t, const char *directory,
                      uint32_t backend_domid, const struct publication *p)
{
    /* What is made below it inherits this: nobody else's, above all not the guest's. */
    struct xs_permissions permissions[] = {{.id = backend_domid, .perms = XS_PERM_NONE}};

    if (!xs_rm(xs->xs, t, directory) && errno != ENOENT)
        return false;
    return xs_mkdir(xs->xs, t, directory) &&
           xs_set_permissions(xs->xs, t, directory, permissions, ARRAY_SIZE(permissions)) &&
           write_text(xs, t, directory, "name", p->name, strlen(p->name)) &&
           (!p->uuid[0] || write_text(xs, t, directory, "uuid", p->uuid, strlen(p->uuid))) &&
           write_text(xs, t, directory, "device", p->device, strlen(p->device)) &&
           (!p->error[0] || write_text(xs, t, directory, "error", p->error, strlen(p->error))) &&
           write_settings(xs, t, directory, p->settings);
}

int xenstore_publish(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                     const struct publication *p)
{
    char relative[STORE_PATH_MAX], node[PATH_LEN], directory[PATH_LEN + 8];

    if (p->settings && strlen(p->settings) > PUBLICATION_SETTINGS_MAX)
        return -E2BIG;
    store_node_path(id, relative, sizeof(relative));
    snprintf(node, sizeof(node), "/local/domain/%" PRIu32 "/%s", backend_domid, relative);
    snprintf(directory, sizeof(directory), "%s/viod", node);
    for (int i = 0; i < TRANSACTION_TRIES; i++) {
        xs_transaction_t t = xs_transaction_start(xs->xs);
        int ret = 0;

        if (t == XBT_NULL)
            return errno ? -errno : -EIO;
        if (!store_exists(xs, t, node) || !write_all(xs, t, directory, backend_domid, p)) {
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

bool xenstore_device_ready(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                           char *why, size_t why_len)
{
    char relative[STORE_PATH_MAX], path[PATH_LEN], state[8];
    uint64_t number = 0;

    why[0] = '\0';
    store_node_path(id, relative, sizeof(relative));
    snprintf(path, sizeof(path), "/local/domain/%" PRIu32 "/%s/state", backend_domid, relative);
    if (store_read(xs, XBT_NULL, path, state, sizeof(state)) > 0 &&
        !store_parse_decimal(state, 8, &number) &&
        (number == NODE_STATE_INIT_WAIT || number == NODE_STATE_CONNECTED))
        return true;
    snprintf(path, sizeof(path), "/local/domain/%" PRIu32 "/%s/viod-error", backend_domid, relative);
    /* Written by another domain, and goes to a terminal. */
    if (store_read(xs, XBT_NULL, path, why, why_len) < 0)
        why[0] = '\0';
    store_make_printable(why);
    return false;
}

int xenstore_announce_releases(struct xenstore *xs, uint32_t domid)
{
    unsigned int n = 0;
    struct xs_permissions *now = xs_get_permissions(xs->xs, XBT_NULL, "@releaseDomain", &n);
    struct xs_permissions *more;
    int ret = 0;

    if (!now)
        return errno ? -errno : -EIO;
    for (unsigned int i = 1; i < n; i++)
        if (now[i].id == domid && (now[i].perms & XS_PERM_READ))
            goto out;
    more = reallocarray(now, n + 1, sizeof(*now));
    if (!more) {
        ret = -ENOMEM;
        goto out;
    }
    now = more;
    now[n] = (struct xs_permissions){.id = domid, .perms = XS_PERM_READ};
    if (!xs_set_permissions(xs->xs, XBT_NULL, "@releaseDomain", now, n + 1))
        ret = errno ? -errno : -EIO;
out:
    free(now);
    return ret;
}

/* ---- reading ---- */

/* A line that must be there (or, if optional, may be); 0 or -errno. */
static int read_line(struct xenstore *xs, xs_transaction_t t, const char *directory,
                     const char *key, bool optional, char *out, size_t size)
{
    char path[2 * PATH_LEN];
    ssize_t len;

    snprintf(path, sizeof(path), "%s/%s", directory, key);
    len = store_read(xs, t, path, out, size);
    if (len == -ENOENT && optional) {
        out[0] = '\0';
        return 0;
    }
    if (len < 0)
        return len == -E2BIG ? -EINVAL : (int)len;
    return strlen(out) == (size_t)len && store_is_text(out) ? 0 : -EINVAL;
}

static int read_settings(struct xenstore *xs, xs_transaction_t t, const char *directory,
                         struct publication *p)
{
    size_t used = 0;

    p->settings = calloc(1, PUBLICATION_SETTINGS_MAX + 1);
    if (!p->settings)
        return -ENOMEM;
    for (size_t i = 0; i < PIECES_MAX; i++) {
        char path[2 * PATH_LEN];
        ssize_t len;

        snprintf(path, sizeof(path), "%s/settings/%zu", directory, i);
        len = store_read(xs, t, path, p->settings + used, PUBLICATION_SETTINGS_MAX + 1 - used);
        if (len == -ENOENT)
            break;
        if (len < 0)
            return len == -E2BIG ? -EINVAL : (int)len;
        if (strlen(p->settings + used) != (size_t)len)
            return -EINVAL;
        used += (size_t)len;
    }
    return 0;
}

int xenstore_read_publication(struct xenstore *xs, const struct node_id *id,
                              struct publication *p)
{
    char relative[STORE_PATH_MAX], directory[PATH_LEN];

    *p = (struct publication){0};
    store_node_path(id, relative, sizeof(relative));
    snprintf(directory, sizeof(directory), "%s/viod", relative);
    for (int i = 0; i < TRANSACTION_TRIES; i++) {
        xs_transaction_t t = xs_transaction_start(xs->xs);
        int ret;

        if (t == XBT_NULL)
            return errno ? -errno : -EIO;
        ret = store_exists(xs, t, directory) ? 0 : -ENOENT;
        if (!ret)
            ret = read_line(xs, t, directory, "name", false, p->name, sizeof(p->name));
        if (!ret)
            ret = read_line(xs, t, directory, "uuid", true, p->uuid, sizeof(p->uuid));
        if (!ret)
            ret = read_line(xs, t, directory, "device", false, p->device, sizeof(p->device));
        if (!ret)
            ret = read_line(xs, t, directory, "error", true, p->error, sizeof(p->error));
        if (!ret)
            ret = read_settings(xs, t, directory, p);
        /* Committed though nothing was written: only this tells whether all was of one moment. */
        if (xs_transaction_end(xs->xs, t, false)) {
            if (ret)
                publication_free(p);
            return ret;
        }
        publication_free(p);
        if (errno != EAGAIN)
            return errno ? -errno : -EIO;
    }
    return -EAGAIN;
}

int xenstore_announce(struct xenstore *xs, const char *version)
{
    bool ok = version ? xs_write(xs->xs, XBT_NULL, BACKEND_STATE_PATH, version,
                                 (unsigned int)strlen(version))
                      : xs_rm(xs->xs, XBT_NULL, BACKEND_STATE_PATH);

    return ok ? 0 : -errno;
}
