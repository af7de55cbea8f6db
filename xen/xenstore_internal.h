/* SPDX-License-Identifier: Apache-2.0 */
/* Reading what xenstore says, without xenstore: forms and ranges of its paths and values. */
#ifndef VIOD_XENSTORE_INTERNAL_H
#define VIOD_XENSTORE_INTERNAL_H

#include "xenstore.h"

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
/* The node's path, relative. */
void store_node_path(const struct node_id *id, char *path, size_t size);
#define STORE_PATH_MAX 64

/* "/vm/<uuid>" → the UUID. 0, -EINVAL or -E2BIG. */
int store_parse_vm(const char *vm, char *uuid, size_t len);
/* Not empty, no control characters. */
bool store_is_text(const char *text);

extern const char *const store_kinds[2]; /* by enum node_kind */

#endif
