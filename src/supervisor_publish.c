/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Driver domains. In dom0: whenever libxl gives a guest a device whose backend is another domain,
 * that domain is told what it may not read itself (xenstore_publish.h), so that the administrator
 * writes a guest's file once, here. In the driver domain: taking that up, and removing the nodes of
 * devices that are gone, which in dom0 is libxl's work.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "supervisor_internal.h"
#include "xen/xenstore_publish.h"

/*
 * libxl first waits for the backend's last state, then for the node to go, and takes a node that goes
 * before it has read the state for an error: it gets time to look.
 */
#define REMOVAL_DELAY_NS (INT64_C(1000) * 1000000)

struct node_removal {
    struct node_removal *next;
    struct node_id id;
    int64_t at_ns;
};

bool is_driver_domain(const struct supervisor *s)
{
    return xenstore_own_domid(s->xs) != 0;
}

int guest_file_path(const struct supervisor *s, const char *name, char *path, size_t path_len,
                    char *error, size_t error_len)
{
    const char *why = guest_name_fault(name);

    if (why == NULL &&
        (size_t)snprintf(path, path_len, "%s/%s.conf", s->config->config_dir, name) >= path_len)
        why = "the path of its file is too long: choose another config-dir in viod.conf";
    if (why == NULL)
        return 0;
    snprintf(error, error_len, "%s: no configuration for it", why);
    return -EINVAL;
}

/* Of those that this domain serves: for a toolstack that leaves no notes as libxl does. */
static unsigned count_own_before(struct supervisor *s, const struct device_node *node)
{
    struct node_id ids[64];
    char ignored[CONFIG_ERROR_LEN];
    unsigned before = 0;
    int n = xenstore_list_nodes(s->xs, node->id.domid, ids, (int)ARRAY_SIZE(ids));

    for (int i = 0; i < n; i++) {
        struct device_node other;

        if (ids[i].kind == NODE_VIRTIO && ids[i].devid < node->id.devid &&
            xenstore_read_node(s->xs, &ids[i], &other, ignored, sizeof(ignored)) == 0 &&
            other.virtio_id == node->virtio_id)
            before++;
    }
    return before;
}

void device_name(struct supervisor *s, const struct device_node *node, char *name, size_t len)
{
    const struct device_type *type = device_type_by_id(node->virtio_id);
    unsigned before;
    int ret;

    if (node->id.kind == NODE_VIRTIO_DISK) {
        snprintf(name, len, "%s", node->dev);
        return;
    }
    ret = xenstore_count_before(s->xs, &node->id, node->virtio_id);
    before = ret >= 0 ? (unsigned)ret : count_own_before(s, node);
    if (type != NULL)
        snprintf(name, len, "%s%u", type->name, before);
    else
        snprintf(name, len, "device%x-%u", node->virtio_id, before);
}

/* ---- dom0 ---- */

int publish_open(struct supervisor *s)
{
    return is_driver_domain(s) ? 0 : xenstore_watch_guests(s->xs);
}

/* Fills p->settings, checked: who reads them has no file whose lines a message could name. */
static int make_settings(struct supervisor *s, const struct device_node *node,
                         struct publication *p)
{
    static char preset_text[2048];
    const char *presets[DISK_PRESETS] = {NULL};
    const struct device_type *type = device_type_by_id(node->virtio_id);
    struct device_config config = {.virtio_id = node->virtio_id};
    struct guest_file *file = NULL;
    char path[512];
    int ret;

    if (type == NULL) {
        snprintf(p->error, sizeof(p->error),
                 "virtio device number %u (\"virtio,device%x\") is not served by this version",
                 node->virtio_id, node->virtio_id);
        return -EINVAL;
    }
    ret = guest_file_path(s, p->name, path, sizeof(path), p->error, sizeof(p->error));
    if (ret == 0)
        ret = guest_file_load(path, &file, p->error, sizeof(p->error));
    if (ret < 0)
        return ret;
    snprintf(config.name, sizeof(config.name), "%s", p->device);
    if (node->id.kind == NODE_VIRTIO_DISK)
        ret = disk_presets(node->params, node->read_only, node->discard_enable, preset_text,
                           sizeof(preset_text), presets);
    if (ret == 0)
        ret = device_config_fill(&config, type, file,
                                 node->id.kind == NODE_VIRTIO_DISK ? presets : NULL, p->error,
                                 sizeof(p->error));
    device_config_free(&config);
    p->settings = ret == 0 ? malloc(PUBLICATION_SETTINGS_MAX + 1) : NULL;
    if (ret == 0)
        ret = p->settings == NULL ? -ENOMEM
                                  : guest_file_extract(file, p->device, p->settings,
                                                       PUBLICATION_SETTINGS_MAX + 1);
    if (ret < 0) {
        free(p->settings);
        p->settings = NULL;
        if (p->error[0] == '\0')
            snprintf(p->error, sizeof(p->error), "%.400s: the sections of %s are too long", path,
                     p->device);
    }
    guest_file_free(file);
    return ret;
}

#define ALL_SLOTS ((1u << XEN_VIRTIO_SLOTS) - 1)

static uint32_t slot_of(const struct device_node *node)
{
    return (uint32_t)((node->base - XEN_VIRTIO_MMIO_BASE) / XEN_VIRTIO_MMIO_SLOT);
}

/*
 * libxl names a domain when it begins to make it, and guests may be given devices of it before it lives;
 * it takes the name away before it ends the domain.
 */
static bool backend_is_dead(struct supervisor *s, uint32_t backend)
{
    char name[64];

    return !xenstore_domain_alive(s->xs, backend) &&
           xenstore_domain_name(s->xs, backend, name, sizeof(name)) == -ENOENT;
}

/*
 * 1 if a domain that lives serves this device, and it is not this one; 0 if not. *slot is its slot.
 * -errno: not known.
 */
static int served_elsewhere(struct supervisor *s, const struct node_id *id, uint32_t *slot,
                             bool *is_dead)
{
    struct device_node node;
    uint32_t backend;
    char ignored[CONFIG_ERROR_LEN];
    int ret = xenstore_read_remote_node(s->xs, id, &backend, &node, ignored, sizeof(ignored));

    *is_dead = false;
    if (ret < 0 && ret != -ENOENT && ret != -EINVAL)
        return ret;
    if (ret < 0 || backend == xenstore_own_domid(s->xs))
        return 0;
    *slot = slot_of(&node);
    *is_dead = backend_is_dead(s, backend);
    return *slot < XEN_VIRTIO_SLOTS && !*is_dead;
}

/*
 * dom0 answers wherever nobody else does, so that no access goes unanswered; a driver domain where its
 * devices are or shall be. dom0's answers come first: it must not claim what it does not know of.
 */
int guest_claimed_slots(struct supervisor *s, const struct guest *g, uint32_t *slots)
{
    struct node_id ids[64];
    int n;

    if (is_driver_domain(s)) {
        *slots = 0;
        for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
            if (g->devices[i].used && g->devices[i].has_slot && g->devices[i].state != SERVED_GONE)
                *slots |= 1u << g->devices[i].slot;
        return 0;
    }
    *slots = ALL_SLOTS;
    n = xenstore_list_remote_nodes(s->xs, g->domid, ids, (int)ARRAY_SIZE(ids));
    if (n < 0)
        return -EAGAIN;
    for (int i = 0; i < n; i++) {
        uint32_t slot;
        bool is_dead;
        int ret = served_elsewhere(s, &ids[i], &slot, &is_dead);

        if (ret < 0)
            return -EAGAIN;
        if (ret == 1)
            *slots &= ~(1u << slot);
    }
    return 0;
}

/* The backend of a device of this guest is dead. */
static void take_slot(struct supervisor *s, uint32_t domid, uint32_t slot)
{
    struct guest *g = guest_find(s, domid);
    int ret;

    if (slot >= XEN_VIRTIO_SLOTS)
        return;
    if (g != NULL) {
        if (g->state != WORKER_QUITTING)
            guest_send(g, MESSAGE_TAKE, slot, 0);
        return;
    }
    g = guest_new(s, domid);
    if (g == NULL)
        return;
    log_warning("domain %u (%s): the domain that served its devices is gone: reboot the guest",
                g->domid, g->name);
    ret = guest_start_worker(s, g);
    if (ret == -EAGAIN) {
        restart_later(g, ret);
    } else if (ret < 0) {
        log_error("domain %u (%s): cannot start a worker: %s", g->domid, g->name, strerror(-ret));
        guest_free(s, g);
    }
}

/*
 * Xen goes on to ask the IOREQ server of a domain that is dead, and a vCPU that waits for its answer
 * waits for ever. From here on there is one: that the slot is empty. The device is lost for the guest,
 * and what it had in flight there; its other devices go on.
 */
void publish_released(struct supervisor *s)
{
    uint32_t *domids;
    size_t n_domids;
    int ret;

    if (!s->has_driver_domains || is_driver_domain(s))
        return;
    ret = xenstore_list_guests(s->xs, &domids, &n_domids);
    for (size_t i = 0; i < n_domids; i++) {
        struct node_id ids[64];
        int n;

        if (!xenstore_domain_alive(s->xs, domids[i]))
            continue;
        n = xenstore_list_remote_nodes(s->xs, domids[i], ids, (int)ARRAY_SIZE(ids));
        ret = MIN(ret, n);
        for (int j = 0; j < n; j++) {
            uint32_t slot;
            bool is_dead;
            int known = served_elsewhere(s, &ids[j], &slot, &is_dead);

            ret = MIN(ret, known);
            if (is_dead)
                take_slot(s, domids[i], slot);
        }
    }
    if (ret < 0)
        log_error("a domain has ended, and whether it served devices is not all known: %s",
                  strerror(-ret));
    free(domids);
}

void publish_device(struct supervisor *s, const struct node_id *id)
{
    struct guest *g = guest_find(s, id->domid);
    struct publication p = {0};
    struct device_node node = {0};
    uint32_t backend;
    char error[CONFIG_ERROR_LEN];
    int ret = xenstore_read_remote_node(s->xs, id, &backend, &node, error, sizeof(error));

    if (ret == -ENOENT || (ret == 0 && backend == xenstore_own_domid(s->xs)))
        return;
    if (ret < 0) {
        /* If it is this domain's, reading its node says the same and more. */
        log_debug("domain %u: device %u: %s", id->domid, id->devid, error);
        return;
    }
    s->has_driver_domains = true;
    /* Before we have heard of its device, perhaps while no viod ran: no other event tells of it. */
    if (backend_is_dead(s, backend)) {
        if (xenstore_domain_alive(s->xs, id->domid))
            take_slot(s, id->domid, slot_of(&node));
        return;
    }
    if (g != NULL)
        guest_send(g, MESSAGE_YIELD, slot_of(&node), 0);
    ret = xenstore_domain_name(s->xs, id->domid, p.name, sizeof(p.name));
    if (ret == -ENOENT)
        return; /* it is going away */
    if (ret < 0)
        snprintf(p.name, sizeof(p.name), "?"); /* as in this domain: see guest_file_path */
    if (xenstore_domain_uuid(s->xs, id->domid, p.uuid, sizeof(p.uuid)) < 0)
        p.uuid[0] = '\0';
    device_name(s, &node, p.device, sizeof(p.device));
    ret = xenstore_announce_releases(s->xs, backend);
    if (ret < 0)
        log_warning("cannot let domain %u know when domains end: %s", backend, strerror(-ret));
    if (make_settings(s, &node, &p) < 0)
        log_warning("domain %u (%s), %s, for domain %u: %s", id->domid, p.name, p.device, backend,
                    p.error);
    ret = xenstore_publish(s->xs, id, backend, &p);
    if (ret == 0)
        log_info("domain %u (%s), %s: domain %u has its settings", id->domid, p.name, p.device,
                 backend);
    else if (ret != -ENOENT)
        log_warning("domain %u (%s), %s: domain %u cannot be told its settings: %s", id->domid,
                    p.name, p.device, backend, strerror(-ret));
    publication_free(&p);
}

/* ---- driver domain ---- */

int publication_take(struct supervisor *s, struct guest *g, struct served_device *d,
                     struct guest_file **file, char *error, size_t error_len)
{
    struct publication p;
    char path[512];
    int ret = xenstore_read_publication(s->xs, &d->node.id, &p);

    *file = NULL;
    if (ret < 0) {
        if (d->node.id.kind == NODE_VIRTIO_DISK)
            snprintf(d->name, sizeof(d->name), "%s", d->node.dev);
        else
            snprintf(d->name, sizeof(d->name), "virtio-%u", d->node.id.devid);
        snprintf(error, error_len, "what domain 0 says of the device cannot be read: %s",
                 strerror(-ret));
        return ret;
    }
    snprintf(d->name, sizeof(d->name), "%s", p.device);
    guest_identify(s, g, p.name, p.uuid);
    snprintf(path, sizeof(path), "%s.conf, as domain 0 published it", p.name);
    if (p.error[0] != '\0') {
        snprintf(error, error_len, "in domain 0: %.*s", (int)error_len - 16, p.error);
        ret = -EINVAL;
    } else {
        ret = guest_file_parse(path, p.settings, strlen(p.settings), file, error, error_len);
    }
    publication_free(&p);
    return ret;
}

void removal_schedule(struct supervisor *s, const struct node_id *id)
{
    struct node_removal *removal;

    for (removal = s->removals; removal != NULL; removal = removal->next)
        if (removal->id.kind == id->kind && removal->id.domid == id->domid &&
            removal->id.devid == id->devid)
            return;
    removal = calloc(1, sizeof(*removal));
    if (removal == NULL)
        return; /* libxl goes on after 10 s */
    removal->id = *id;
    removal->at_ns = monotonic_ns() + REMOVAL_DELAY_NS;
    removal->next = s->removals;
    s->removals = removal;
}

bool removals_run(struct supervisor *s, int64_t now)
{
    bool removed = false;

    for (struct node_removal **p = &s->removals; *p != NULL;) {
        struct node_removal *removal = *p;

        if (now < removal->at_ns) {
            p = &removal->next;
            continue;
        }
        (void)xenstore_remove_node(s->xs, &removal->id);
        *p = removal->next;
        free(removal);
        removed = true;
    }
    return removed;
}

void removals_free(struct supervisor *s)
{
    (void)removals_run(s, INT64_MAX);
}
