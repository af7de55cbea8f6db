/* SPDX-License-Identifier: Apache-2.0 */
/* viodctl wait: until all devices of a guest are ready, in whichever domain their backends are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "supervisor_internal.h"
#include "xen/xenstore_publish.h"

#define WAIT_DEFAULT_S 60u
#define WAIT_MAX_S 3600u

/* A guest's domid by its name or number, whoever serves it; DOMID_NONE: there is none. */
#define DOMID_NONE UINT32_MAX
static uint32_t find_domain(struct supervisor *s, const char *word)
{
    uint32_t found = DOMID_NONE, *domids;
    size_t n;
    char *end;
    unsigned long number = strtoul(word, &end, 10);

    (void)xenstore_list_guests(s->xs, &domids, &n);
    for (size_t i = 0; i < n; i++) {
        char name[64];

        if (!xenstore_domain_alive(s->xs, domids[i]) ||
            xenstore_domain_name(s->xs, domids[i], name, sizeof(name)) < 0)
            continue;
        if (strcmp(name, word) == 0) {
            found = domids[i];
            break;
        }
        if (*end == '\0' && number == domids[i])
            found = domids[i];
    }
    free(domids);
    return found;
}

/* True if all are; otherwise `why` is about the first one that is not. */
static bool all_ready(struct supervisor *s, uint32_t domid, char *why, size_t why_len)
{
    struct node_id ids[64];
    int n = xenstore_list_remote_nodes(s->xs, domid, ids, (int)ARRAY_SIZE(ids));

    if (n < 0) {
        snprintf(why, why_len, "its devices cannot be listed: %s", strerror(-n));
        return false;
    }
    for (int i = 0; i < n; i++) {
        struct device_node node;
        uint32_t backend;
        char text[CONFIG_ERROR_LEN], name[32];

        if (xenstore_read_remote_node(s->xs, &ids[i], &backend, &node, text, sizeof(text)) < 0) {
            snprintf(why, why_len, "%s", text);
            return false;
        }
        if (xenstore_device_ready(s->xs, &ids[i], backend, text, sizeof(text)))
            continue;
        device_name(s, &node, name, sizeof(name));
        snprintf(why, why_len, "%s, served by domain %u, is not ready: %.400s", name, backend,
                 text[0] != '\0' ? text : "viod there does not say why: does it run?");
        return false;
    }
    return true;
}

int wait_begin(struct supervisor *s, struct client *client, const char *domain,
               const char *seconds, char *error, size_t error_len)
{
    unsigned long bound = WAIT_DEFAULT_S;
    char *end = NULL;

    if (is_driver_domain(s)) {
        snprintf(error, error_len, "only domain 0 can see all devices of a guest: wait there");
        return -EPERM;
    }
    if (seconds != NULL)
        bound = strtoul(seconds, &end, 10);
    if (end != NULL && (*end != '\0' || bound == 0 || bound > WAIT_MAX_S)) {
        snprintf(error, error_len, "\"%.32s\" is no number of seconds from 1 to %u", seconds,
                 WAIT_MAX_S);
        return -EINVAL;
    }
    client->ready_domid = find_domain(s, domain);
    if (client->ready_domid == DOMID_NONE) {
        snprintf(error, error_len, "there is no domain \"%.64s\"", domain);
        return -ENOENT;
    }
    client->waits_ready = true;
    client->until_ns = monotonic_ns() + (int64_t)bound * 1000000000;
    return 0;
}

bool wait_is_over(struct supervisor *s, const struct client *client, int64_t now, char *error,
                  size_t error_len)
{
    error[0] = '\0';
    if (!xenstore_domain_alive(s->xs, client->ready_domid)) {
        snprintf(error, error_len, "the domain has ended");
        return true;
    }
    if (all_ready(s, client->ready_domid, error, error_len)) {
        error[0] = '\0';
        return true;
    }
    return now >= client->until_ns;
}
