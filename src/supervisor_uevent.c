/* SPDX-License-Identifier: Apache-2.0 */
/* Block devices that grow (lvextend, losetup -c) say so by a uevent; the guest hears of it at once. */
#include <errno.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_internal.h"

#define KERNEL_GROUP 1u

int uevent_open(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    log_warning("cannot hear of grown block devices (%m): use viodctl resize");
    if (fd >= 0)
        close(fd);
    return -1;
}

/* The value of "key=" among the zero-terminated strings of an event; NULL: not there. */
static const char *value_of(const char *event, size_t len, const char *key)
{
    size_t key_len = strlen(key);

    for (const char *p = event; p < event + len; p += strlen(p) + 1)
        if (strncmp(p, key, key_len) == 0)
            return p + key_len;
    return NULL;
}

static void tell_guests(struct supervisor *s, dev_t device)
{
    for (struct guest *g = s->guests; g != NULL; g = g->next)
        for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
            struct served_device *d = &g->devices[i];

            if (d->used && d->state == SERVED_READY && d->backing_device == device)
                (void)guest_control(g, d, 0, "resize");
        }
}

void uevent_read(struct supervisor *s)
{
    char event[8192];
    ssize_t n;

    while ((n = recv(s->uevent_fd, event, sizeof(event) - 1, 0)) > 0) {
        const char *action, *subsystem, *major_word, *minor_word;

        event[n] = '\0';
        action = value_of(event, (size_t)n, "ACTION=");
        subsystem = value_of(event, (size_t)n, "SUBSYSTEM=");
        major_word = value_of(event, (size_t)n, "MAJOR=");
        minor_word = value_of(event, (size_t)n, "MINOR=");
        if (action == NULL || subsystem == NULL || major_word == NULL || minor_word == NULL ||
            strcmp(action, "change") != 0 || strcmp(subsystem, "block") != 0)
            continue;
        tell_guests(s, makedev((unsigned)strtoul(major_word, NULL, 10),
                               (unsigned)strtoul(minor_word, NULL, 10)));
    }
}
