/* SPDX-License-Identifier: Apache-2.0 */
/* A TAP's queues in the worker: what needs more than readv and writev. */
#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include "backend.h"

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20 /* Linux 6.2 */
#define TUN_F_USO6 0x40
#endif

static unsigned long tun_flags(unsigned offloads)
{
    unsigned long flags = 0;

    if ((offloads & NET_OFFLOAD_CSUM) == 0)
        return 0;
    flags |= TUN_F_CSUM;
    if ((offloads & NET_OFFLOAD_TSO4) != 0)
        flags |= TUN_F_TSO4;
    if ((offloads & NET_OFFLOAD_TSO6) != 0)
        flags |= TUN_F_TSO6;
    if ((offloads & NET_OFFLOAD_ECN) != 0)
        flags |= TUN_F_TSO_ECN;
    if ((offloads & NET_OFFLOAD_USO) != 0)
        flags |= TUN_F_USO4 | TUN_F_USO6;
    return flags;
}

int net_tap_set_offloads(int fd, unsigned offloads)
{
    return ioctl(fd, TUNSETOFFLOAD, tun_flags(offloads)) < 0 ? -errno : 0;
}

unsigned net_tap_offloads(int fd)
{
    static const unsigned sets[] = {
        NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO,
        NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN,
        NET_OFFLOAD_CSUM,
    };

    for (size_t i = 0; i < ARRAY_SIZE(sets); i++)
        if (net_tap_set_offloads(fd, sets[i]) == 0) {
            (void)net_tap_set_offloads(fd, 0);
            return sets[i];
        }
    return 0;
}

int net_tap_use_queue(int fd, bool use)
{
    struct ifreq request = {.ifr_flags = use ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

    /* EINVAL: it is so already. */
    return ioctl(fd, TUNSETQUEUE, &request) < 0 && errno != EINVAL ? -errno : 0;
}
