/* SPDX-License-Identifier: Apache-2.0 */
/* One device node: from what xl wrote and the administrator configured to what the worker gets. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_internal.h"

void device_release(struct served_device *d)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);

    if (!d->has_config)
        return;
    if (d->is_open && type != NULL && type->close != NULL)
        type->close(&d->config);
    d->is_open = false;
    device_config_free(&d->config); /* and its descriptors */
    d->has_config = false;
}

void device_fail(struct supervisor *s, struct guest *g, struct served_device *d,
                        const char *why)
{
    device_release(d);
    snprintf(d->error, sizeof(d->error), "%s", why);
    log_error("domain %u (%s), %s: %s", g->domid, g->name, d->name, why);
    d->state = SERVED_FAILED;
    (void)xenstore_set_error(s->xs, &d->node.id, why);
    if (d->has_slot && g->state != WORKER_QUITTING && guest_find_slot(g, d->slot) == NULL)
        guest_send(g, MESSAGE_EXPECT, d->slot, 0);
}

void device_close(struct supervisor *s, struct served_device *d)
{
    device_release(d);
    d->state = SERVED_GONE;
    (void)xenstore_set_state(s->xs, &d->node.id, NODE_STATE_CLOSED);
}

void device_send(struct supervisor *s, struct guest *g, struct served_device *d)
{
    static struct message message;
    static char text[MESSAGE_TEXT_MAX];
    int ret = device_config_encode(&d->config, text, sizeof(text));
    char error[CONFIG_ERROR_LEN];
    int gntdev = -1;

    static_assert(DEVICE_FDS_MAX < MESSAGE_FDS_MAX, "and one for grants");
    if (ret < 0) {
        device_fail(s, g, d, "the configuration is too long to be handed to the worker");
        return;
    }
    if (d->config.grant_usage) {
        gntdev = xen_gntdev_open(error, sizeof(error));
        if (gntdev < 0) {
            device_fail(s, g, d, error);
            return;
        }
    }
    message_set(&message, MESSAGE_ADD, d->slot, text);
    message.n_fds = (uint32_t)d->config.n_fds;
    memcpy(message.fds, d->config.fds, sizeof(int) * d->config.n_fds);
    if (gntdev >= 0) {
        message.status = 1;
        message.fds[message.n_fds++] = gntdev;
    }
    d->state = SERVED_ADDING;
    takeover_record(g);
    ret = message_send(g->socket, &message);
    if (gntdev >= 0)
        close(gntdev);
    device_config_close_fds(&d->config);
    if (ret == -EPIPE || ret == -ECONNRESET || g->socket < 0) {
        /* It has died since it said that it is ready: its successor gets the device. */
        d->state = SERVED_WAITING;
        d->reopen = true;
    } else if (ret < 0) {
        device_fail(s, g, d, "the worker does not listen");
    }
}

/* The guest's file, whole; in a driver domain it came with the publication. */
static int load_file(struct supervisor *s, const struct guest *g, struct guest_file **file,
                     char *error, size_t error_len)
{
    char path[512];
    int ret;

    if (*file != NULL)
        return 0;
    ret = guest_file_path(s, g->name, path, sizeof(path), error, error_len);
    return ret < 0 ? ret : guest_file_load(path, file, error, error_len);
}

void device_opened(struct served_device *d)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);
    struct stat st;

    d->is_open = true;
    if (d->config.backing[0] != '\0' || type == NULL)
        snprintf(d->backing, sizeof(d->backing), "%s", d->config.backing);
    else
        snprintf(d->backing, sizeof(d->backing), "%s", type->name);
    if (d->config.n_fds > 0 && fstat(d->config.fds[0], &st) == 0 && S_ISBLK(st.st_mode))
        d->backing_device = st.st_rdev;
}

/* Takes the file over, if there is one already. */
static int configure(struct supervisor *s, struct guest *g, struct served_device *d,
                     const struct device_type *type, struct guest_file *file, char *error,
                     size_t error_len)
{
    static char preset_text[2048];
    const char *presets[DISK_PRESETS] = {NULL};
    int ret = load_file(s, g, &file, error, error_len);

    if (ret < 0)
        return ret;
    memset(&d->config, 0, sizeof(d->config));
    snprintf(d->config.name, sizeof(d->config.name), "%s", d->name);
    d->config.virtio_id = d->node.virtio_id;
    d->config.base = d->node.base;
    d->config.irq = d->node.irq;
    d->config.grant_usage = d->node.grant_usage;
    d->config.guest = &g->identity;
    d->has_config = true;
    if (d->node.id.kind == NODE_VIRTIO_DISK)
        ret = disk_presets(d->node.params, d->node.read_only, d->node.discard_enable, preset_text,
                           sizeof(preset_text), presets);
    if (ret == 0)
        ret = device_config_fill(&d->config, type, file,
                                 d->node.id.kind == NODE_VIRTIO_DISK ? presets : NULL, error,
                                 error_len);
    guest_file_free(file);
    if (ret < 0)
        return ret;
    ret = type->open(&d->config, error, error_len);
    if (ret < 0)
        return ret;
    device_opened(d);
    return 0;
}

/* Its slot is held meanwhile: the guest's first access waits, as long as the worker can hold it. */
static void wait_for_dom0(struct supervisor *s, struct guest *g, struct served_device *d)
{
    static const char why[] = "waiting for the viod in domain 0 to say what it shall be";

    d->state = SERVED_WAITING;
    if (d->unpublished)
        return;
    d->unpublished = true;
    log_info("domain %u, %s: %s", g->domid, d->name, why);
    (void)xenstore_set_error(s->xs, &d->node.id, why);
}

void device_configure(struct supervisor *s, struct guest *g, struct served_device *d)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);
    char error[CONFIG_ERROR_LEN];
    uint64_t slot = (d->node.base - XEN_VIRTIO_MMIO_BASE) / XEN_VIRTIO_MMIO_SLOT;
    struct served_device *other;
    struct guest_file *file = NULL;
    int published = 0;

    if (is_driver_domain(s))
        published = publication_take(s, g, d, &file, error, sizeof(error));
    else
        device_name(s, &d->node, d->name, sizeof(d->name));
    if (slot >= XEN_VIRTIO_SLOTS) {
        snprintf(error, sizeof(error),
                 "register window at %#llx: a domain has %u slots from %#x on",
                 (unsigned long long)d->node.base, XEN_VIRTIO_SLOTS, XEN_VIRTIO_MMIO_BASE);
        goto fail;
    }
    other = guest_find_slot(g, (uint32_t)slot);
    if (other != NULL && other != d) {
        snprintf(error, sizeof(error), "wants the same slot (base %#llx) as %s",
                 (unsigned long long)d->node.base, other->name);
        goto fail;
    }
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (&g->devices[i] != d && g->devices[i].used && g->devices[i].state < SERVED_FAILED &&
            g->devices[i].node.irq == d->node.irq) {
            snprintf(error, sizeof(error), "wants the same interrupt (SPI %u) as %s", d->node.irq,
                     g->devices[i].name);
            goto fail;
        }
    d->slot = (uint32_t)slot;
    d->has_slot = true;
    if (published < 0 && published != -ENOENT)
        goto fail; /* not before: the slot of a device that failed is answered, too */
    if (type == NULL) {
        snprintf(error, sizeof(error),
                 "virtio device number %u (\"virtio,device%x\") is not served by this version",
                 d->node.virtio_id, d->node.virtio_id);
        goto fail;
    }
    if (published == -ENOENT) {
        wait_for_dom0(s, g, d);
        return;
    }
    d->unpublished = false;
    if (configure(s, g, d, type, file, error, sizeof(error)) < 0) {
        file = NULL;
        goto fail;
    }
    d->state = SERVED_WAITING;
    if (g->state == WORKER_RUNNING)
        device_send(s, g, d);
    return;
fail:
    guest_file_free(file);
    d->unpublished = false;
    device_fail(s, g, d, error);
}

void device_asked(struct guest *g, struct served_device *d, uint32_t id, const char *request)
{
    static struct message message;
    const struct device_type *type = device_type_by_id(d->node.virtio_id);
    char error[CONFIG_ERROR_LEN] = "";
    int fds[DEVICE_FDS_MAX], ret = -EOPNOTSUPP;

    if (type != NULL && type->ask != NULL && d->is_open)
        ret = type->ask(&d->config, request, fds, error, sizeof(error));
    if (ret < 0 && error[0] == '\0')
        snprintf(error, sizeof(error), "%s", strerror(-ret));
    message_set(&message, MESSAGE_ANSWER, d->slot, error);
    message.id = id;
    message.status = MIN(ret, 0);
    if (ret > 0) {
        message.n_fds = (uint32_t)ret;
        memcpy(message.fds, fds, sizeof(int) * (size_t)ret);
    }
    (void)message_send(g->socket, &message); /* a dead worker shows as end of file */
    message_close_fds(&message);
}
