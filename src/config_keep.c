/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of a device's descriptors in the supervisor, for successors of its worker. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "config.h"

static int copy_fd(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    return copy < 0 ? -errno : copy;
}

void device_config_close_kept(struct device_config *config)
{
    for (size_t i = 0; i < config->n_kept; i++)
        close(config->kept[i]);
    config->n_kept = 0;
}

int device_config_keep(struct device_config *config, const int *fds, size_t n)
{
    device_config_close_kept(config);
    for (size_t i = 0; i < MIN(n, (size_t)DEVICE_FDS_MAX); i++) {
        int copy = copy_fd(fds[i]);

        if (copy < 0)
            return copy;
        config->kept[config->n_kept++] = copy;
    }
    return 0;
}

int device_config_copy_kept(struct device_config *config)
{
    device_config_close_fds(config);
    for (size_t i = 0; i < config->n_kept; i++) {
        int copy = copy_fd(config->kept[i]);

        if (copy < 0)
            return copy;
        config->fds[config->n_fds++] = copy;
    }
    return 0;
}
