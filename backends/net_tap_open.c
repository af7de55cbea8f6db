/* SPDX-License-Identifier: Apache-2.0 */
/* TAP interfaces in the supervisor: make one, connect it, bring it up. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend.h"

#define VNET_HEADER_LEN 12
/* Where a port's address is this, a bridge never takes it as its own. */
static const unsigned char port_address[6] = {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff};

static int fail(char *error, size_t error_len, const struct net_tap_config *config,
                const char *what)
{
    int ret = errno != 0 ? -errno : -EIO;

    snprintf(error, error_len, "interface %s: %s: %s", config->name, what, strerror(-ret));
    return ret;
}

static struct ifreq request_for(const char *name)
{
    struct ifreq request;

    memset(&request, 0, sizeof(request));
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    return request;
}

/* Link-local addresses and router solicitations of a port would only confuse the bridge's hosts. */
static void disable_ipv6(const char *name)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "1", 1);
    close(fd);
}

static int check_bridge(const struct net_tap_config *config, char *error, size_t error_len)
{
    char path[128];

    if (config->bridge == NULL)
        return 0;
    snprintf(path, sizeof(path), "/sys/class/net/%s", config->bridge);
    if (strchr(config->bridge, '/') != NULL || access(path, F_OK) != 0) {
        snprintf(error, error_len,
                 "there is no bridge \"%s\": make it, for example with \"ip link add %s type "
                 "bridge\" and \"ip link set %s up\", or correct bridge =",
                 config->bridge, config->bridge, config->bridge);
        return -ENODEV;
    }
    snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", config->bridge);
    if (access(path, F_OK) != 0) {
        snprintf(error, error_len, "interface \"%s\" is not a bridge: correct bridge =",
                 config->bridge);
        return -EINVAL;
    }
    return 0;
}

static int open_queue(const struct net_tap_config *config, char *error, size_t error_len)
{
    struct ifreq request = request_for(config->name);
    int header_len = VNET_HEADER_LEN, little_endian = 1, ret;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        ret = -errno;
        snprintf(error, error_len,
                 "cannot open /dev/net/tun: %s: does the kernel have TUN (modprobe tun)?",
                 strerror(-ret));
        return ret;
    }
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        int why = errno;

        errno = why;
        ret = fail(error, error_len, config,
                   why == EINVAL || why == EBUSY
                       ? "exists and cannot be used (a TAP of an administrator's needs "
                         "\"multi_queue vnet_hdr\")"
                       : "cannot be made");
    } else if (ioctl(fd, TUNSETVNETHDRSZ, &header_len) < 0 ||
               ioctl(fd, TUNSETVNETLE, &little_endian) < 0) {
        ret = fail(error, error_len, config, "cannot set the format of its frames");
    } else {
        return fd;
    }
    close(fd);
    return ret;
}

static int set_up(const struct net_tap_config *config, int control, uint32_t *mtu, char *error,
                  size_t error_len)
{
    struct ifreq request;

    *mtu = config->mtu;
    if (*mtu == 0) {
        request = request_for(config->bridge != NULL ? config->bridge : config->name);
        *mtu = ioctl(control, SIOCGIFMTU, &request) == 0 ? (uint32_t)request.ifr_mtu : 1500;
    }
    request = request_for(config->name);
    request.ifr_mtu = (int)*mtu;
    if (ioctl(control, SIOCSIFMTU, &request) < 0)
        return fail(error, error_len, config, "cannot set its MTU");
    if (config->bridge != NULL) {
        disable_ipv6(config->name);
        request = request_for(config->name);
        request.ifr_hwaddr.sa_family = 1; /* ARPHRD_ETHER */
        memcpy(request.ifr_hwaddr.sa_data, port_address, sizeof(port_address));
        (void)ioctl(control, SIOCSIFHWADDR, &request);
        request = request_for(config->bridge);
        request.ifr_ifindex = (int)if_nametoindex(config->name);
        /* EBUSY: it is a port already, as the administrator left it. */
        if (ioctl(control, SIOCBRADDIF, &request) < 0 && errno != EBUSY)
            return fail(error, error_len, config, "cannot be put on the bridge");
    }
    request = request_for(config->name);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        return fail(error, error_len, config, "cannot be brought up");
    request.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        return fail(error, error_len, config, "cannot be brought up");
    return 0;
}

int net_tap_open(const struct net_tap_config *config, int *fds, uint32_t *mtu, char *error,
                 size_t error_len)
{
    unsigned n = 0;
    int control, ret = check_bridge(config, error, error_len);

    if (ret < 0)
        return ret;
    control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return fail(error, error_len, config, "no socket");
    for (; n < config->queues; n++) {
        fds[n] = open_queue(config, error, error_len);
        if (fds[n] < 0) {
            ret = fds[n];
            goto fail;
        }
    }
    ret = set_up(config, control, mtu, error, error_len);
    if (ret < 0)
        goto fail;
    close(control);
    return 0;
fail:
    while (n > 0)
        close(fds[--n]);
    close(control);
    return ret;
}

int net_tap_gone(unsigned queues, int *fds)
{
    for (unsigned i = 0; i < queues; i++) {
        fds[i] = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC); /* of no interface */
        if (fds[i] < 0) {
            int error = -errno;

            while (i > 0)
                close(fds[--i]);
            return error;
        }
    }
    return 0;
}
