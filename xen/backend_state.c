/* SPDX-License-Identifier: Apache-2.0 */
#include "backend_state.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xenstore.h>

static bool has_name(struct xs_handle *xs, const char *domid, const char *name)
{
    char path[128];
    char *found;
    bool same;

    if (!strcmp(domid, name))
        return true;
    snprintf(path, sizeof(path), "/local/domain/%.64s/name", domid);
    found = xs_read(xs, XBT_NULL, path, NULL);
    same = found && !strcmp(found, name);
    free(found);
    return same;
}

int xen_backend_state(const char *domain)
{
    struct xs_handle *xs = xs_open(0);
    unsigned int n = 0;
    char **domids = NULL;
    int ret = -ENOENT;

    if (!xs)
        return -EOPNOTSUPP;
    domids = xs_directory(xs, XBT_NULL, "/local/domain", &n);
    if (!domids)
        ret = -EOPNOTSUPP;
    for (unsigned int i = 0; domids && i < n; i++) {
        char path[128], *version;

        if (!has_name(xs, domids[i], domain))
            continue;
        snprintf(path, sizeof(path), "/local/domain/%.64s/" BACKEND_STATE_PATH, domids[i]);
        version = xs_read(xs, XBT_NULL, path, NULL);
        ret = version ? 0 : -ESRCH;
        free(version);
        break;
    }
    free(domids);
    xs_close(xs);
    return ret;
}

int xen_grants_usable(void)
{
    if (access("/dev/xen/privcmd", F_OK) != 0)
        return -ENODEV;
    return access("/dev/xen/gntdev", F_OK) == 0 ? 0 : -ENOENT;
}
