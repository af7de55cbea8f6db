/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What dom0 tells a driver domain about the devices that it serves. A driver domain may read its own
 * backend nodes and nothing else of xenstore: neither the name of a guest nor what dom0's
 * administrator wrote for it. So dom0's viod adds a directory "viod" to each such node. It belongs to
 * the driver domain, and the guest, which may read the rest of the node, cannot read it. It goes away
 * with its node.
 *
 *   viod/name      the guest's name
 *   viod/uuid      its UUID; absent if it has none
 *   viod/device    the device's name in the guest's file: "blk1", "xvda"
 *   viod/error     why dom0 refuses the device; then there are no settings
 *   viod/settings  its sections of the guest's file, in pieces 0, 1, …
 *
 * Single-threaded. No Xen header is needed to include this.
 */
#ifndef VIOD_XENSTORE_PUBLISH_H
#define VIOD_XENSTORE_PUBLISH_H

#include "xenstore.h"

/* Of one device: at most SECTIONS_MAX × ENTRIES_MAX lines of config_file.c, and far less in life. */
#define PUBLICATION_SETTINGS_MAX (32u * 1024u)

struct publication {
    char name[64];
    char uuid[40];    /* empty: unknown */
    char device[32];
    char error[512];  /* empty: none */
    char *settings;   /* text of a configuration file, owned; NULL: none */
};

void publication_free(struct publication *publication);

/* ---- dom0 ---- */

/* From here on STORE_REMOTE_NODE is reported; at first once for each device that exists. */
int xenstore_watch_guests(struct xenstore *xs);
/* All guests that libxl has notes of: a malloced array; *n = 0 if none. 0, or -errno with none. */
int xenstore_list_guests(struct xenstore *xs, uint32_t **domids, size_t *n);
/* All devices that libxl gave to this guest, at most max; the count, or -errno. */
int xenstore_list_remote_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max);
/*
 * The device as libxl noted it for itself: neither the guest nor the driver domain can write there.
 * Its state is the first one, whatever it is now. As xenstore_read_node.
 */
int xenstore_read_remote_node(struct xenstore *xs, const struct node_id *id,
                              uint32_t *backend_domid, struct device_node *node, char *error,
                              size_t error_len);
/*
 * How many devices of this type come before this one in the guest's virtio=[…], whatever domain
 * serves them; -errno if libxl's notes cannot be read (-EACCES in a driver domain).
 */
int xenstore_count_before(struct xenstore *xs, const struct node_id *id, uint16_t virtio_id);
/* Writes it to the device's node, if that exists: all or nothing. 0 or -errno. */
int xenstore_publish(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                     const struct publication *publication);
/*
 * Whether the device's backend, in whichever domain, is ready for the guest; if not, `why` is what viod
 * there says about it, or empty.
 */
bool xenstore_device_ready(struct xenstore *xs, const struct node_id *id, uint32_t backend_domid,
                           char *why, size_t why_len);
/* Lets a domain know when domains end (but not which). 0 or -errno. */
int xenstore_announce_releases(struct xenstore *xs, uint32_t domid);

/* ---- driver domain ---- */

/* Says in this domain's home that viod runs here (backend_state.h); NULL: no more. 0 or -errno. */
int xenstore_announce(struct xenstore *xs, const char *version);
/* 0; -ENOENT: nothing is published (yet); -EINVAL: it is malformed. */
int xenstore_read_publication(struct xenstore *xs, const struct node_id *id,
                              struct publication *publication);

#endif
