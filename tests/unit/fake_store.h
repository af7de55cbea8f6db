/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A xenstore of nodes in a file, behind xen/xenstore.h, so that several supervisors, one after the other,
 * and a test see the same. As dom0 sees it; what is published for driver domains is only counted.
 */
#ifndef VIOD_FAKE_STORE_H
#define VIOD_FAKE_STORE_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "xen/xen.h"
#include "xen/xenstore.h"
#include "xen/xenstore_publish.h"

#define STORE_NODES 32
#define STORE_DOMAINS 64

struct store_node {
    bool exists;
    struct device_node node;
    int read_error;      /* of each look at it, instead of what is there; 0: none */
    char wrong[64];      /* the message of each look at it: a value of it cannot be; empty: all can */
    char error[512];
    _Atomic unsigned changes;
};

/* What libxl notes of a device, whatever domain serves it. */
struct store_note {
    bool exists;
    struct device_node node;
    uint32_t backend;
    _Atomic unsigned changes, published;
};

struct fake_store {
    struct store_node nodes[STORE_NODES];
    unsigned n_nodes;
    struct store_note notes[STORE_NODES];
    unsigned n_notes;
    int notes_error;         /* of each list of them, and each look at one; 0: none */
    struct {
        bool alive;
        bool is_made;    /* it has its name, but does not live yet */
        char name[32], uuid[40];
    } domains[STORE_DOMAINS];
    int uuid_error;          /* of each look at one; 0: none */
    _Atomic unsigned releases;
};

static struct fake_store *store;
static int store_wake = -1;
static unsigned store_seen[STORE_NODES], store_seen_notes[STORE_NODES], store_seen_releases;

/* In each process: the test, and each supervisor. */
static void store_attach(const char *folder)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "%s/store", folder);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(*store)) < 0)
        abort();
    store = mmap(NULL, sizeof(*store), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    snprintf(path, sizeof(path), "%s/wake", folder);
    (void)mkfifo(path, 0600);
    store_wake = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (store == MAP_FAILED || store_wake < 0)
        abort();
}

static void store_changed(struct store_node *n)
{
    n->changes++;
    (void)!write(store_wake, "", 1);
}

/* ---- xen/xenstore.h ---- */

static struct store_node *store_find(const struct node_id *id)
{
    for (unsigned i = 0; i < store->n_nodes; i++) {
        struct store_node *n = &store->nodes[i];

        if (n->exists && n->node.id.kind == id->kind && n->node.id.domid == id->domid &&
            n->node.id.devid == id->devid)
            return n;
    }
    return NULL;
}

int xenstore_open(struct xenstore **out, char *error, size_t error_len)
{
    (void)error, (void)error_len;
    *out = NULL;
    return 0;
}
void xenstore_close(struct xenstore *xs) { (void)xs; }
uint32_t xenstore_own_domid(const struct xenstore *xs) { (void)xs; return 0; }
int xenstore_fd(const struct xenstore *xs) { (void)xs; return store_wake; }
int xenstore_watch_devices(struct xenstore *xs)
{
    (void)xs;
    store_seen_releases = store->releases - 1; /* as each watch, it fires once at once */
    (void)!write(store_wake, "", 1);
    return 0;
}

enum store_event xenstore_next_event(struct xenstore *xs, struct node_id *id)
{
    char woken[64];

    (void)xs;
    while (read(store_wake, woken, sizeof(woken)) > 0)
        continue;
    if (store_seen_releases != store->releases) {
        store_seen_releases = store->releases;
        return STORE_DOMAIN_RELEASED;
    }
    for (unsigned i = 0; i < store->n_notes; i++)
        if (store_seen_notes[i] != store->notes[i].changes) {
            store_seen_notes[i] = store->notes[i].changes;
            *id = store->notes[i].node.id;
            return STORE_REMOTE_NODE;
        }
    for (unsigned i = 0; i < store->n_nodes; i++)
        if (store_seen[i] != store->nodes[i].changes) {
            store_seen[i] = store->nodes[i].changes;
            *id = store->nodes[i].node.id;
            return STORE_NODE_CHANGED;
        }
    return STORE_NOTHING;
}

int xenstore_read_node(struct xenstore *xs, const struct node_id *id, struct device_node *node,
                       char *error, size_t error_len)
{
    const struct store_node *n = store_find(id);

    (void)xs;
    if (n == NULL)
        return -ENOENT;
    if (n->read_error != 0) {
        snprintf(error, error_len, "%s", strerror(-n->read_error));
        return n->read_error;
    }
    *node = n->node;
    if (n->wrong[0] == '\0')
        return 0;
    *node = (struct device_node){
        .id = n->node.id, .state = n->node.state, .online = n->node.online};
    snprintf(error, error_len, "%s", n->wrong);
    return -EINVAL;
}

int xenstore_list_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max)
{
    int found = 0;

    (void)xs;
    for (unsigned i = 0; i < store->n_nodes && found < max; i++)
        if (store->nodes[i].exists && store->nodes[i].node.id.domid == domid)
            ids[found++] = store->nodes[i].node.id;
    return found;
}

int xenstore_set_state(struct xenstore *xs, const struct node_id *id, enum node_state state)
{
    struct store_node *n = store_find(id);

    (void)xs;
    if (n == NULL)
        return -ENOENT;
    n->node.state = state;
    store_changed(n);
    return 0;
}

int xenstore_set_error(struct xenstore *xs, const struct node_id *id, const char *text)
{
    struct store_node *n = store_find(id);

    (void)xs;
    if (n != NULL)
        snprintf(n->error, sizeof(n->error), "%s", text != NULL ? text : "");
    return 0;
}

int xenstore_remove_node(struct xenstore *xs, const struct node_id *id)
{
    (void)xs, (void)id;
    return 0;
}

bool xenstore_domain_alive(struct xenstore *xs, uint32_t domid)
{
    (void)xs;
    return domid < STORE_DOMAINS && store->domains[domid].alive;
}

int xenstore_domain_name(struct xenstore *xs, uint32_t domid, char *name, size_t len)
{
    if (!xenstore_domain_alive(xs, domid) &&
        (domid >= STORE_DOMAINS || !store->domains[domid].is_made))
        return -ENOENT;
    snprintf(name, len, "%s", store->domains[domid].name);
    return 0;
}

int xenstore_domain_uuid(struct xenstore *xs, uint32_t domid, char *uuid, size_t len)
{
    if (!xenstore_domain_alive(xs, domid))
        return -ENOENT;
    if (store->uuid_error != 0)
        return store->uuid_error;
    snprintf(uuid, len, "%s", store->domains[domid].uuid);
    return 0;
}

/* ---- xen/xenstore_publish.h, and what a supervisor needs of xen/xen.h: there are no others ---- */

void publication_free(struct publication *p) { free(p->settings); }
int xenstore_watch_guests(struct xenstore *xs) { (void)xs; return 0; }

static struct store_note *store_find_note(const struct node_id *id)
{
    for (unsigned i = 0; i < store->n_notes; i++) {
        struct store_note *n = &store->notes[i];

        if (n->exists && n->node.id.kind == id->kind && n->node.id.domid == id->domid &&
            n->node.id.devid == id->devid)
            return n;
    }
    return NULL;
}

int xenstore_list_guests(struct xenstore *xs, uint32_t **domids, size_t *n)
{
    (void)xs;
    *n = 0;
    *domids = store->notes_error == 0 ? calloc(STORE_NODES, sizeof(**domids)) : NULL;
    if (*domids == NULL)
        return store->notes_error;
    for (unsigned i = 0; i < store->n_notes; i++)
        if (store->notes[i].exists)
            (*domids)[(*n)++] = store->notes[i].node.id.domid;
    return 0;
}
int xenstore_list_remote_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max)
{
    int found = 0;

    (void)xs;
    if (store->notes_error != 0)
        return store->notes_error;
    for (unsigned i = 0; i < store->n_notes && found < max; i++)
        if (store->notes[i].exists && store->notes[i].node.id.domid == domid)
            ids[found++] = store->notes[i].node.id;
    return found;
}
int xenstore_read_remote_node(struct xenstore *xs, const struct node_id *id,
                              uint32_t *backend_domid, struct device_node *node, char *error,
                              size_t error_len)
{
    const struct store_note *n = store_find_note(id);

    (void)xs, (void)error, (void)error_len;
    if (n == NULL || store->notes_error != 0)
        return n == NULL ? -ENOENT : store->notes_error;
    *node = n->node;
    *backend_domid = n->backend;
    return 0;
}

int xenstore_count_before(struct xenstore *xs, const struct node_id *id, uint16_t virtio_id)
{
    (void)xs, (void)id, (void)virtio_id;
    return 0;
}
int xenstore_publish(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                     const struct publication *p)
{
    struct store_note *n = store_find_note(id);

    (void)xs, (void)p;
    if (n == NULL || !store->domains[backend_domid].alive)
        return -ENOENT;
    n->published++;
    return 0;
}
bool xenstore_device_ready(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                           char *why, size_t why_len)
{
    (void)xs, (void)id, (void)backend_domid, (void)why, (void)why_len;
    return true;
}
int xenstore_announce_releases(struct xenstore *xs, uint32_t domid)
{
    (void)xs, (void)domid;
    return 0;
}
int xenstore_announce(struct xenstore *xs, const char *version)
{
    (void)xs, (void)version;
    return 0;
}
int xenstore_read_publication(struct xenstore *xs, const struct node_id *id,
                              struct publication *p)
{
    (void)xs, (void)id, (void)p;
    return -ENOENT;
}
int xen_gntdev_open(char *error, size_t error_len)
{
    snprintf(error, error_len, "there are no grants");
    return -ENODEV;
}

#endif
