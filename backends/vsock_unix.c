/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of vsock connections: Unix sockets. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend.h"

#define BACKLOG 128

static int type_of(bool seqpacket) { return seqpacket ? SOCK_SEQPACKET : SOCK_STREAM; }

int vsock_listen(const char *path, bool seqpacket, char *error, size_t error_len)
{
    int fd = stream_listen(path, type_of(seqpacket), error, error_len);

    if (fd >= 0)
        (void)listen(fd, BACKLOG); /* more than those of a console's port */
    return fd;
}

int vsock_connect(const char *path, bool seqpacket)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, ret;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, type_of(seqpacket) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

int vsock_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

ssize_t vsock_send(int fd, const struct iovec *iov, size_t n)
{
    const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n};
    ssize_t ret;

    do {
        ret = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

static ssize_t receive(int fd, const struct iovec *iov, size_t n, int flags)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n};
    ssize_t ret;

    /* Without room for control data, descriptors that somebody sends are closed by the kernel. */
    do {
        ret = recvmsg(fd, &message, flags | MSG_DONTWAIT);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

ssize_t vsock_receive(int fd, const struct iovec *iov, size_t n)
{
    return receive(fd, iov, n, 0);
}

ssize_t vsock_peek(int fd, void *to, size_t len)
{
    const struct iovec iov = {.iov_base = to, .iov_len = len};

    return receive(fd, &iov, 1, MSG_PEEK | MSG_TRUNC);
}

void vsock_shutdown(int fd, bool receive_no_more, bool send_no_more)
{
    if (receive_no_more || send_no_more)
        (void)shutdown(fd, !send_no_more ? SHUT_RD : receive_no_more ? SHUT_RDWR : SHUT_WR);
}

enum vsock_end vsock_end(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};

    if (poll(&p, 1, 0) < 0)
        return VSOCK_STILL_SENDS;
    if ((p.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0)
        return VSOCK_GONE;
    return (p.revents & POLLRDHUP) != 0 ? VSOCK_SENDS_NO_MORE : VSOCK_STILL_SENDS;
}

int vsock_pass_call(int channel, const struct vsock_call *call, int fd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)call, .iov_len = sizeof(*call)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    ssize_t ret;

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    do {
        ret = sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
    if (ret >= 0)
        return 0;
    /* ETOOMANYREFS: descriptors on their way that nobody takes. */
    return errno == ETOOMANYREFS ? -EAGAIN : -errno;
}

int vsock_take_call(int channel, struct vsock_call *call)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {.iov_base = call, .iov_len = sizeof(*call)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header;
    ssize_t ret;
    int fd;

    do {
        ret = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (ret < 0 && errno == EINTR);
    if (ret <= 0)
        return ret == 0 ? -EPIPE : -errno;
    header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_type != SCM_RIGHTS)
        return -EMFILE; /* the kernel drops what does not fit into our table of descriptors */
    memcpy(&fd, CMSG_DATA(header), sizeof(int));
    if ((size_t)ret != sizeof(*call)) {
        close(fd);
        return -EBADMSG;
    }
    return fd;
}
