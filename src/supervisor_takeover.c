/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one supervisor to the next. A supervisor that ends, for whatever cause, leaves its workers,
 * which go on serving their guests, and a record of each (supervisor_record.h). The next one ends each
 * of these workers and at once starts a successor that adopts what it served, as when a worker dies
 * (supervisor_restart.c): so that program and state are those of one version from then on, and a
 * restart, an upgrade and a crash are the same thing. A guest that nobody takes over loses nothing by
 * that: its worker is left alone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device_state.h"
#include "log.h"
#include "supervisor_internal.h"
#include "supervisor_record.h"
#include "xen/xenstore_publish.h"

#define STATE_NAME "state"

static_assert(RECORD_DEVICES_MAX == XEN_VIRTIO_SLOTS, "one for each");
static_assert(sizeof(((struct served_device *)0)->name) ==
                  sizeof(((struct device_config *)0)->name), "copied");

/* ---- what is left for the next one ---- */

static void add_device(const struct served_device *d, struct guest_record *record)
{
    static char text[RECORD_TEXT_MAX];
    struct record_device *to = &record->devices[record->n_devices];

    if (record->n_devices == RECORD_DEVICES_MAX || !d->used || !d->has_config ||
        d->state > SERVED_READY || d->unpublished ||
        device_config_encode_all(&d->config, text, sizeof(text)) < 0)
        return;
    to->kind = d->node.id.kind;
    to->devid = d->node.id.devid;
    to->text = strdup(text);
    if (to->text != NULL)
        record->n_devices++;
}

void takeover_record(const struct guest *g)
{
    struct guest_record record = {.domid = g->domid,
                                  .pid = MAX(g->pid, 0),
                                  .state_version = DEVICE_STATE_VERSION,
                                  .restarts = g->restarts};
    int ret;

    if (g->identity.run_dir[0] == '\0')
        return;
    if (record.pid > 0)
        record.started = record_process_started(record.pid);
    record_boot_id(record.boot_id, sizeof(record.boot_id));
    snprintf(record.uuid, sizeof(record.uuid), "%s", g->identity.uuid);
    snprintf(record.name, sizeof(record.name), "%s", g->name);
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        add_device(&g->devices[i], &record);
    ret = record_write(g->identity.run_dir, &record);
    if (ret < 0)
        log_error("domain %u (%s): cannot write into %s what the next viod needs to take it over: "
                  "%s", g->domid, g->name, g->identity.run_dir, strerror(-ret));
    record_free(&record);
}

void takeover_forget(const struct guest *g)
{
    record_remove(g->identity.run_dir);
}

/* ---- what was left ---- */

/* Calls `visit` for each guest's folder in run_dir, until it returns false; then false. */
static bool for_each_folder(const char *run_dir,
                            bool (*visit)(void *arg, uint32_t domid, const char *folder), void *arg)
{
    struct dirent **entries;
    bool going_on = true;
    int n = scandir(run_dir, &entries, NULL, alphasort); /* at once: `visit` may remove folders */

    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        char folder[160], *end;
        unsigned long domid = strtoul(name, &end, 10);
        struct stat st;

        if (going_on && *end == '\0' && end != name && domid <= UINT32_MAX &&
            snprintf(folder, sizeof(folder), "%s/%s", run_dir, name) < (int)sizeof(folder) &&
            lstat(folder, &st) == 0 && S_ISDIR(st.st_mode))
            going_on = visit(arg, (uint32_t)domid, folder);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return going_on;
}

static bool is_of_this_boot(const struct guest_record *record)
{
    char boot_id[sizeof(record->boot_id)];

    record_boot_id(boot_id, sizeof(boot_id));
    return strcmp(boot_id, record->boot_id) == 0;
}

/*
 * 0: *record is the caller's to free. -ENOENT: nothing was left, or by an earlier boot.
 * -EPROTONOSUPPORT: by a version whose state this one cannot read; -errno: not usable. Says why.
 */
static int read_left(const char *folder, uint32_t domid, struct guest_record *record, char *why,
                     size_t why_len)
{
    char path[192], problem[CONFIG_ERROR_LEN];
    int ret = record_read(folder, record), fd;

    if (ret == -ENOENT) {
        snprintf(why, why_len, "nothing is recorded of it");
        return ret;
    }
    if (ret == 0 && record->domid != domid) {
        record_free(record);
        ret = -EBADMSG;
    }
    if (ret < 0) {
        snprintf(why, why_len, "its record in %s %s", folder,
                 ret == -EPROTONOSUPPORT ? "is of another version"
                 : ret == -EBADMSG       ? "is damaged"
                                         : strerror(-ret));
        return ret;
    }
    if (!is_of_this_boot(record)) {
        snprintf(why, why_len, "it is of an earlier boot");
        record_free(record);
        return -ENOENT;
    }
    snprintf(path, sizeof(path), "%s/" STATE_NAME, folder);
    fd = device_state_open(path);
    if (record->state_version != DEVICE_STATE_VERSION) {
        snprintf(why, why_len, "%s is of another version", path);
        ret = -EPROTONOSUPPORT;
    } else if (fd < 0) {
        snprintf(why, why_len, "%s %s", path, fd == -EBADMSG ? "is damaged" : strerror(-fd));
        ret = fd == -ENOENT ? -EBADMSG : fd;
    }
    if (fd >= 0)
        close(fd);
    for (uint32_t i = 0; i < record->n_devices && ret == 0; i++) {
        struct device_config config;
        const char *text = record->devices[i].text;

        if (device_config_decode(text, strlen(text), &config, problem, sizeof(problem)) < 0) {
            snprintf(why, why_len, "a device of it is not one that this version can serve: %.300s",
                     problem);
            ret = -EPROTONOSUPPORT;
        } else {
            device_config_free(&config);
        }
    }
    if (ret < 0)
        record_free(record);
    return ret;
}

static int find_orphan(const struct guest_record *record)
{
    int fd;

    if (record->pid <= 0 || record->started == 0)
        return -1;
    fd = pidfd_open(record->pid, 0);
    /* Compared while we hold it: from here on it is not another process of that number. */
    if (fd >= 0 && record_process_started(record->pid) != record->started) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* It may have ended, and nobody has waited for it yet. */
static bool orphan_runs(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    return fd >= 0 && poll(&poll_fd, 1, 0) == 0;
}

/*
 * A path may lead to something else by now, and what the guest writes must not go there. Its worker still has
 * what it had.
 */
static bool is_still_there(const struct guest_record *record, char *why, size_t why_len)
{
    for (uint32_t i = 0; i < record->n_devices; i++) {
        const char *text = record->devices[i].text;
        char problem[CONFIG_ERROR_LEN];
        struct device_config config;
        const struct device_type *type;
        int ret = 0;

        if (device_config_decode(text, strlen(text), &config, problem, sizeof(problem)) < 0)
            continue; /* read_left has found that it can be */
        type = device_type_by_id(config.virtio_id);
        if (type->still_there != NULL)
            ret = type->still_there(&config, problem, sizeof(problem));
        if (ret < 0)
            snprintf(why, why_len, "%s: %.*s", config.name, CONFIG_ERROR_LEN - 1, problem);
        device_config_free(&config);
        if (ret < 0)
            return false;
    }
    return true;
}

struct check {
    struct supervisor *s; /* NULL: without xenstore */
};

static bool check_folder(void *arg, uint32_t domid, const char *folder)
{
    const struct check *check = arg;
    struct guest_record record;
    char why[CONFIG_ERROR_LEN + 64];
    int ret = read_left(folder, domid, &record, why, sizeof(why));

    if (ret == 0) {
        int orphan = check->s == NULL ? find_orphan(&record) : -1;
        bool there = !orphan_runs(orphan) || is_still_there(&record, why, sizeof(why));

        if (orphan >= 0)
            close(orphan);
        record_free(&record);
        if (!there)
            log_error("domain %u cannot be taken over: %s", domid, why);
        return there;
    }
    if (ret != -EPROTONOSUPPORT ||
        (check->s != NULL && !xenstore_domain_alive(check->s->xs, domid)))
        return true;
    log_error("viod " VIOD_VERSION " cannot take domain %u over, which a viod of another version "
              "serves: %s; start that version again, or shut the guest down first", domid, why);
    return false;
}

bool takeover_possible(const char *run_dir)
{
    struct check check = {.s = NULL};

    return for_each_folder(run_dir, check_folder, &check);
}

/* ---- taking over ---- */

/* 1, 0, or -errno: it may be. A domid may be another guest's by now. */
static int is_same_guest(struct supervisor *s, const struct guest_record *record)
{
    char uuid[sizeof(record->uuid)] = "";
    int ret, unknown = 0;

    if (!xenstore_domain_alive(s->xs, record->domid))
        return 0;
    if (!is_driver_domain(s)) {
        ret = xenstore_domain_uuid(s->xs, record->domid, uuid, sizeof(uuid));
        if (ret == -ENOENT || ret == -EINVAL || ret == -E2BIG) /* it has none, as make_identity sees it */
            uuid[0] = '\0';
        else if (ret < 0)
            return ret;
        if (record->uuid[0] == '\0' && uuid[0] != '\0') /* it could not be read when it was to be recorded */
            return -ENODATA;
        return strcmp(uuid, record->uuid) == 0;
    }
    for (uint32_t i = 0; i < record->n_devices; i++) {
        const struct node_id id = {.kind = (enum node_kind)record->devices[i].kind,
                                   .domid = record->domid,
                                   .devid = record->devices[i].devid};
        struct publication p;

        ret = xenstore_read_publication(s->xs, &id, &p);
        if (ret < 0) {
            if (ret != -ENOENT)
                unknown = ret;
            continue;
        }
        snprintf(uuid, sizeof(uuid), "%s", p.uuid);
        publication_free(&p);
        return strcmp(uuid, record->uuid) == 0;
    }
    return unknown;
}

/* A recorded device's node as it is now. */
struct left_node {
    int ret; /* of reading it: 0, -ENOENT or -EINVAL */
    struct device_node node;
};

/* -errno: one of them cannot be read, and may well be what is served; says why. */
static int read_nodes(struct supervisor *s, const struct guest_record *record,
                      struct left_node *nodes, char *why, size_t why_len)
{
    for (uint32_t i = 0; i < record->n_devices; i++) {
        const struct record_device *left = &record->devices[i];
        const struct node_id id = {.kind = (enum node_kind)left->kind,
                                   .domid = record->domid,
                                   .devid = left->devid};
        char error[CONFIG_ERROR_LEN] = "";
        int ret = -ENOENT;

        if (left->kind == NODE_VIRTIO || left->kind == NODE_VIRTIO_DISK)
            ret = xenstore_read_node(s->xs, &id, &nodes[i].node, error, sizeof(error));
        nodes[i].ret = ret;
        if (ret < 0 && ret != -ENOENT && ret != -EINVAL) {
            snprintf(why, why_len, "the node of a device of it cannot be read: %.300s", error);
            return ret;
        }
    }
    return 0;
}

/* The node as xl wrote it and as it was: the device is served on. */
static bool is_same_device(const struct device_node *node, const struct device_config *config)
{
    return node->online && node->virtio_id == config->virtio_id && node->base == config->base &&
           node->irq == config->irq && node->grant_usage == config->grant_usage &&
           (node->state == NODE_STATE_INITIALISING || node->state == NODE_STATE_INIT_WAIT ||
            node->state == NODE_STATE_CONNECTED);
}

static void open_early(const struct guest *g, struct served_device *d)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);
    char error[CONFIG_ERROR_LEN];

    if (type->opens_early == NULL || !type->opens_early(&d->config))
        return;
    if (type->open(&d->config, error, sizeof(error)) < 0) {
        log_warning("domain %u (%s), %s: %s; it is tried again", g->domid, g->name, d->name, error);
        return;
    }
    device_opened(d);
    d->reopen = false;
}

static bool take_device(struct guest *g, struct served_device *d,
                        const struct record_device *left, const struct left_node *now)
{
    char error[CONFIG_ERROR_LEN];
    uint64_t slot;

    memset(d, 0, sizeof(*d));
    d->node = now->node;
    if (now->ret < 0 ||
        device_config_decode(left->text, strlen(left->text), &d->config, error, sizeof(error)) < 0)
        return false; /* the node is gone, or the first event that tells of it says more */
    slot = (d->config.base - XEN_VIRTIO_MMIO_BASE) / XEN_VIRTIO_MMIO_SLOT;
    if (!is_same_device(&d->node, &d->config) || d->config.base < XEN_VIRTIO_MMIO_BASE ||
        slot >= XEN_VIRTIO_SLOTS || guest_find_slot(g, (uint32_t)slot) != NULL) {
        device_config_free(&d->config);
        return false;
    }
    d->used = true;
    memcpy(d->name, d->config.name, sizeof(d->name));
    d->slot = (uint32_t)slot;
    d->has_slot = true;
    d->config.guest = &g->identity;
    d->config.n_vcpus = 0; /* the worker finds out */
    d->has_config = true;
    d->state = SERVED_WAITING;
    d->reopen = true;
    g->adopted |= 1u << d->slot;
    open_early(g, d);
    return true;
}

void takeover_end_orphan(int fd)
{
    if (fd >= 0)
        (void)pidfd_send_signal(fd, SIGKILL, NULL, 0);
}

/* Of ptys that have ended with it; sockets are looked at when others take their place. */
static void remove_links(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL) {
        struct stat st;

        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISLNK(st.st_mode))
            (void)unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
}

static void take_guest(struct supervisor *s, const char *folder, const struct guest_record *record,
                       const struct left_node *nodes, int orphan)
{
    char path[192];
    struct guest *g = guest_new_as(s, record->domid, record->name, record->uuid);
    size_t n = 0;

    if (g == NULL) {
        log_error("domain %u (%s) is not taken over: out of memory", record->domid, record->name);
        if (orphan >= 0)
            close(orphan);
        return;
    }
    for (uint32_t i = 0; i < record->n_devices; i++)
        if (take_device(g, &g->devices[n], &record->devices[i], &nodes[i]))
            n++;
        else
            memset(&g->devices[n], 0, sizeof(g->devices[n]));
    snprintf(path, sizeof(path), "%s/" STATE_NAME, folder);
    g->state_fd = device_state_open(path);
    g->orphan_fd = orphan;
    g->restarts = record->restarts;
    g->died_ns = g->restart_at_ns = monotonic_ns();
    takeover_end_orphan(orphan);
    if (orphan < 0)
        remove_links(folder);
    if (n == 0 && is_driver_domain(s)) {
        guest_free(s, g); /* its devices were taken away meanwhile; dom0 answers where they were */
        return;
    }
    if (orphan >= 0)
        log_info("domain %u (%s): taken over from worker %d, with %zu devices", g->domid, g->name,
                 (int)record->pid, n);
    else
        log_warning("domain %u (%s): its worker has died while no viod ran; %zu devices go on now",
                    g->domid, g->name, n);
}

/* Its worker, if it lives (orphan, a pidfd that is the guest's from now on), ends when the domain has ended. */
static void leave_alone(struct supervisor *s, uint32_t domid, int orphan, const char *why)
{
    char failure[CONFIG_ERROR_LEN];
    struct guest *g;

    snprintf(failure, sizeof(failure), "cannot be taken over from the viod before: %.300s", why);
    g = guest_new_as(s, domid, NULL, NULL);
    if (g == NULL) {
        if (orphan >= 0)
            close(orphan);
        return;
    }
    g->orphan_fd = orphan;
    /* Until the domain is gone, viodctl shows it, and nobody touches its nodes. */
    g->state = WORKER_QUITTING;
    memcpy(g->failure, failure, sizeof(g->failure));
    log_error("domain %u (%s): %s; its worker, if it lives, is left alone: shut the guest down and "
              "create it again", domid, g->name, g->failure);
}

static bool take_folder(void *arg, uint32_t domid, const char *folder)
{
    struct supervisor *s = arg;
    struct guest_record record;
    static struct left_node nodes[RECORD_DEVICES_MAX];
    char why[CONFIG_ERROR_LEN + 64];
    int ret = read_left(folder, domid, &record, why, sizeof(why)), orphan;

    if (ret < 0) {
        if (ret != -ENOENT && xenstore_domain_alive(s->xs, domid))
            leave_alone(s, domid, -1, why);
        else
            guest_remove_folder(s, domid, NULL, folder);
        return true;
    }
    orphan = find_orphan(&record);
    ret = is_same_guest(s, &record);
    if (ret < 0)
        snprintf(why, sizeof(why), "whether it is still the same guest is not known: %s",
                 strerror(-ret));
    else if (ret == 1 && read_nodes(s, &record, nodes, why, sizeof(why)) < 0)
        ret = -EIO;
    else if (ret == 1 && orphan_runs(orphan) && !is_still_there(&record, why, sizeof(why)))
        ret = -ESTALE;
    if (ret < 0) { /* what is lost now does not come back; a viod that starts later may know more */
        leave_alone(s, domid, orphan, why);
    } else if (ret == 1) {
        take_guest(s, folder, &record, nodes, orphan);
    } else {
        if (orphan >= 0)
            log_info("domain %u (%s) has ended while no viod ran: so does its worker %d", domid,
                     record.name, (int)record.pid);
        takeover_end_orphan(orphan);
        if (orphan >= 0)
            close(orphan);
        guest_remove_folder(s, domid, record.name, folder);
    }
    record_free(&record);
    return true;
}

int takeover_begin(struct supervisor *s)
{
    struct check check = {.s = s};

    if (!for_each_folder(s->config->run_dir, check_folder, &check))
        return -EPROTONOSUPPORT;
    (void)for_each_folder(s->config->run_dir, take_folder, s);
    return 0;
}

bool takeover_orphan_ended(struct guest *g)
{
    struct pollfd poll_fd = {.fd = g->orphan_fd, .events = POLLIN};

    if (g->orphan_fd < 0)
        return true;
    if (poll(&poll_fd, 1, 0) != 1)
        return false;
    close(g->orphan_fd);
    g->orphan_fd = -1;
    g->died_ns = monotonic_ns(); /* only now, if the kernel would not let go of it before */
    remove_links(g->identity.run_dir);
    return true;
}
