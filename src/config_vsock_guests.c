/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls from guest to guest. Each such guest's worker has a channel from here; a call is one end of a pair
 * of sockets for the caller's worker, and the other end through the channel of the called one's. After
 * that the supervisor has no part in the connection.
 *
 * Who calls is known here, whatever a worker says: its configuration asks. Both guests must have said
 * that they want the other one, and one that may not call learns no more than that it may not.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config_types.h"

struct member {
    LIST_ENTRY(member) link;
    const struct device_config *config;
    uint32_t cid;
    int channel; /* its worker has the other end */
};

static LIST_HEAD(member_list, member) members = LIST_HEAD_INITIALIZER(members);

static const char *name_of(const struct member *m)
{
    return m->config->guest != NULL ? m->config->guest->name : "";
}

static bool wants(const struct member *m, const struct member *other)
{
    const char *list = device_config_string(m->config, "guest-to-guest");
    const char *name = name_of(other);
    size_t len;

    if (strcmp(list, "yes") == 0)
        return true;
    for (; *list != '\0'; list += len) {
        list += strspn(list, " ");
        len = strcspn(list, " ");
        if (len > 0 && len == strlen(name) && memcmp(list, name, len) == 0)
            return true;
    }
    return false;
}

static struct member *find(uint32_t cid)
{
    struct member *m;

    LIST_FOREACH(m, &members, link)
        if (m->cid == cid)
            break;
    return m;
}

int vsock_guests_join(struct device_config *config, uint32_t cid, char *error, size_t error_len)
{
    struct member *m = find(cid);
    int pair[2], ret;

    if (m != NULL) {
        snprintf(error, error_len,
                 "cid = %" PRIu32 " is the guest %s's already; guests that call each other need "
                 "different ones",
                 cid, name_of(m));
        return -EADDRINUSE;
    }
    m = calloc(1, sizeof(*m));
    if (m == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
        ret = m == NULL ? -ENOMEM : -errno;
        free(m);
        snprintf(error, error_len, "no channel for calls of other guests: %s", strerror(-ret));
        return ret;
    }
    m->config = config;
    m->cid = cid;
    m->channel = pair[0];
    LIST_INSERT_HEAD(&members, m, link);
    config->host = m;
    return pair[1];
}

void vsock_guests_leave(struct device_config *config)
{
    struct member *m = config->host;

    if (m == NULL)
        return;
    config->host = NULL;
    LIST_REMOVE(m, link);
    close(m->channel);
    free(m);
}

int vsock_guests_call(const struct device_config *config, uint32_t cid, uint32_t to_port,
                      uint32_t from_port, bool seqpacket, char *error, size_t error_len)
{
    const struct member *caller = config->host, *called = find(cid);
    struct vsock_call call = {.from_port = from_port, .to_port = to_port, .seqpacket = seqpacket};
    int pair[2], ret;

    if (caller == NULL || called == NULL || caller == called || !wants(caller, called) ||
        !wants(called, caller)) {
        snprintf(error, error_len,
                 "there is no guest with CID %" PRIu32 ", or one of the two does not have the other "
                 "in its guest-to-guest",
                 cid);
        return -ECONNREFUSED;
    }
    if (socketpair(AF_UNIX,
                   (seqpacket ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   pair) < 0) {
        ret = -errno;
        snprintf(error, error_len, "no sockets for a call: %s", strerror(-ret));
        return ret;
    }
    call.from_cid = caller->cid;
    ret = vsock_pass_call(called->channel, &call, pair[1]);
    close(pair[1]);
    if (ret < 0) {
        snprintf(error, error_len, "%s takes no call now: %s", name_of(called), strerror(-ret));
        close(pair[0]);
        return ret;
    }
    return pair[0];
}
