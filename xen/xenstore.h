/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What xl wrote into xenstore, as the supervisor sees it: device nodes of backends in this domain.
 * Single-threaded. No Xen header is needed to include this.
 *
 * Only backend-side nodes are read: the guest owns its frontend directory and may write anything
 * there. All values are still checked for form and range.
 */
#ifndef VIOD_XENSTORE_H
#define VIOD_XENSTORE_H

#include "types.h"

enum node_kind { NODE_VIRTIO_DISK, NODE_VIRTIO };

/* XenbusState, as far as the backend side of a virtio device uses it. */
enum node_state {
    NODE_STATE_UNKNOWN = 0,
    NODE_STATE_INITIALISING = 1,
    NODE_STATE_INIT_WAIT = 2,
    NODE_STATE_CONNECTED = 4,
    NODE_STATE_CLOSING = 5,
    NODE_STATE_CLOSED = 6,
};

struct node_id {
    enum node_kind kind;
    uint32_t domid; /* the guest */
    uint32_t devid;
};

/* A device node, complete and checked. */
struct device_node {
    struct node_id id;
    enum node_state state;
    bool online;
    uint16_t virtio_id;  /* 2 for disks; from "virtio,device<hex>" otherwise */
    uint64_t base;       /* guest-physical */
    uint32_t irq;
    bool grant_usage;
    /* Disks: */
    char params[1024];   /* path of the image */
    char dev[32];        /* "xvda" */
    bool read_only;
    bool discard_enable;
    bool direct_io_safe;
};

struct xenstore;

/* Opens xenstore and finds this domain's own domid. -errno with a message. */
int xenstore_open(struct xenstore **out, char *error, size_t error_len);
void xenstore_close(struct xenstore *xs);
uint32_t xenstore_own_domid(const struct xenstore *xs);
int xenstore_fd(const struct xenstore *xs);

/* Watches this domain's backend directories and @releaseDomain. Each fires once at once. */
int xenstore_watch_devices(struct xenstore *xs);

enum store_event {
    STORE_NOTHING,
    STORE_NODE_CHANGED,
    STORE_DOMAIN_RELEASED,
    STORE_REMOTE_NODE, /* only after xenstore_watch_guests (xenstore_publish.h) */
};
/*
 * The next event without blocking. NODE_CHANGED: *id is the node that something changed in (or that
 * is gone). An event for a whole directory is reported as one NODE_CHANGED for each node in it.
 * REMOTE_NODE: libxl has given the device *id to a guest, whatever domain its backend is.
 */
enum store_event xenstore_next_event(struct xenstore *xs, struct node_id *id);

/*
 * Reads one node in one transaction. 0; -ENOENT: it is not (or no longer) there; -EINVAL: it is
 * malformed, with a message that names the key, its value and what was expected; node->state and
 * node->online are filled in all the same unless they are what is malformed.
 */
int xenstore_read_node(struct xenstore *xs, const struct node_id *id, struct device_node *node,
                       char *error, size_t error_len);
/* The nodes of one guest that exist now, in order of kind and devid, at most max; the count,
 * or -errno. */
int xenstore_list_nodes(struct xenstore *xs, uint32_t domid, struct node_id *ids, int max);

/* Only if the node still exists (it is never created again by this). 0 or -errno. */
int xenstore_set_state(struct xenstore *xs, const struct node_id *id, enum node_state state);
/* A text for people in the node's "viod-error"; NULL removes it. Only if the node still exists. */
int xenstore_set_error(struct xenstore *xs, const struct node_id *id, const char *text);

/* Removes the node: what the backend does in a driver domain, after the last state (libxl waits). */
int xenstore_remove_node(struct xenstore *xs, const struct node_id *id);

/*
 * True while the domain exists and is not dying. In a driver domain, which may not ask that: while
 * it has devices here. True also if that cannot be found out.
 */
bool xenstore_domain_alive(struct xenstore *xs, uint32_t domid);
/* The domain's name and UUID now; -ENOENT if it has none, -EACCES in a driver domain. */
int xenstore_domain_name(struct xenstore *xs, uint32_t domid, char *name, size_t len);
int xenstore_domain_uuid(struct xenstore *xs, uint32_t domid, char *uuid, size_t len);

#endif
