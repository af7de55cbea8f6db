/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the connection to xenstore share; and reading what xenstore says, without
 * xenstore: forms and ranges of its paths and values (xenstore_parse.c).
 */
#ifndef VIOD_XENSTORE_INTERNAL_H
#define VIOD_XENSTORE_INTERNAL_H

#include <xenstore.h>

#include "xenstore.h"

/* More nodes than any host has domains; what is above waits for its next event. */
#define STORE_TRACKED_MAX 65536
/* Whoever commits first wins: a transaction that lost is done again. */
#define TRANSACTION_TRIES 64

struct tracked {
    struct node_id id;
    bool pending; /* an event for it waits to be reported */
};

struct xenstore {
    struct xs_handle *xs;
    uint32_t own_domid;
    char home[32]; /* "/local/domain/<own>/" */
    struct tracked *nodes;
    size_t n_nodes, nodes_size;
    size_t n_pending;
    size_t next; /* where the search for the next pending one starts */
    bool released;
    struct node_id *remote; /* nodes of guests, of any backend, that wait to be reported */
    size_t n_remote, remote_size;
};

/* xenstore.c. Reads a small value, NUL-terminated. The length, or -errno. */
ssize_t store_read(struct xenstore *xs, xs_transaction_t t, const char *path, char *value,
                   size_t size);
/* False also if it cannot be looked at; errno says why. */
bool store_exists(struct xenstore *xs, xs_transaction_t t, const char *path);
/*
 * All numbers in one directory, in xenstore's order: a malloced array; *n = 0 if none, also if there is
 * no such directory. 0, or -errno with none.
 */
int store_list_numbers(struct xenstore *xs, const char *path, uint64_t max, uint32_t **numbers,
                       size_t *n);

/* xenstore_publish.c. True if the event is about what libxl notes of a guest's devices. */
bool store_remote_event(struct xenstore *xs, const char *path);

/* The longest value that xenstore can hold, and a NUL. */
#define STORE_VALUE_MAX 4097

/*
 * Fetches the value of a node's key into value[size], which always ends with a NUL. Its length
 * without the NUL, -ENOENT if there is no such key, -E2BIG if it does not fit, or another -errno.
 */
typedef ssize_t (*store_get)(void *context, const char *key, char *value, size_t size);

/* A decimal number, digits only and no superfluous zero, at most max. 0 or -EINVAL. */
int store_parse_decimal(const char *text, uint64_t max, uint64_t *value);
/* The same, or "0x" and hexadecimal digits. */
int store_parse_number(const char *text, uint64_t max, uint64_t *value);

/* Checks all values of a node, whose id is known. As xenstore_read_node. */
int store_parse_node(const struct node_id *id, uint32_t own_domid, store_get get, void *context,
                     struct device_node *node, char *error, size_t error_len);

/*
 * What a path below a domain's "backend" directory speaks of. `path` is relative to the domain's
 * home. Levels: 1 = all nodes of id->kind, 2 = those of id->domid, 3 = the node *id. 0: nothing of
 * ours.
 */
int store_parse_path(const char *path, struct node_id *id);
/*
 * What a path below "/libxl" speaks of: 2 = the device *id, whose backend was just named; 1 = all
 * guests; 0: nothing of ours.
 */
int store_parse_libxl_path(const char *path, struct node_id *id);
/* "/local/domain/<backend>/backend/<kind>/<guest>/<devid>" of this node: 0 and the backend's domid,
 * or -EINVAL. */
int store_parse_backend(const char *path, const struct node_id *id, uint32_t *backend_domid);
/* "virtio,device<hexadecimal>". 0 or -EINVAL. */
int store_parse_type(const char *text, uint16_t *virtio_id);
/* The node's path, relative. */
void store_node_path(const struct node_id *id, char *path, size_t size);
#define STORE_PATH_MAX 64

/* "/vm/<uuid>" → the UUID. 0, -EINVAL or -E2BIG. */
int store_parse_vm(const char *vm, char *uuid, size_t len);
/* Not empty, no control characters. */
bool store_is_text(const char *text);
/* What another domain wrote, for a terminal: all but printable ASCII becomes '?'. */
void store_make_printable(char *text);

extern const char *const store_kinds[2]; /* by enum node_kind */

#endif
