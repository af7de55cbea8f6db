/* SPDX-License-Identifier: Apache-2.0 */
#include "message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER_LEN offsetof(struct message, n_fds)

int message_send(int socket, const struct message *message)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * MESSAGE_FDS_MAX)];
    } control;
    struct iovec iov[2] = {
        {.iov_base = (void *)(uintptr_t)message, .iov_len = HEADER_LEN},
        {.iov_base = (void *)(uintptr_t)message->text, .iov_len = message->text_len},
    };
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n;

    if (message->text_len > MESSAGE_TEXT_MAX || message->n_fds > MESSAGE_FDS_MAX)
        return -EINVAL;
    if (message->n_fds > 0) {
        struct cmsghdr *cmsg;
        size_t len = sizeof(int) * message->n_fds;

        memset(&control, 0, sizeof(control));
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(len);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(len);
        memcpy(CMSG_DATA(cmsg), message->fds, len);
    }
    do {
        n = sendmsg(socket, &msg, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

int message_receive(int socket, struct message *message)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * MESSAGE_FDS_MAX)];
    } control;
    struct iovec iov[2] = {
        {.iov_base = message, .iov_len = HEADER_LEN},
        {.iov_base = message->text, .iov_len = MESSAGE_TEXT_MAX},
    };
    struct msghdr msg = {.msg_iov = iov,
                         .msg_iovlen = 2,
                         .msg_control = &control,
                         /* Not CMSG_SPACE: Linux would have room for one more in its padding. */
                         .msg_controllen = CMSG_LEN(sizeof(int) * MESSAGE_FDS_MAX)};
    bool was_reset = false, again;
    ssize_t n;

    message->n_fds = 0;
    do {
        n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
        /* Linux says first, and once, that the other end went without having read all; what that had
         * sent, perhaps why it went, is still to come. */
        again = n < 0 && (errno == EINTR || (errno == ECONNRESET && !was_reset));
        was_reset |= again && errno == ECONNRESET;
    } while (again);
    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            for (size_t i = 0; i < count; i++) {
                int fd;

                memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
                if (message->n_fds < MESSAGE_FDS_MAX)
                    message->fds[message->n_fds++] = fd;
                else
                    close(fd);
            }
        }
    if (n == 0) {
        message_close_fds(message); /* of a packet without a byte, which is no end, but no message either */
        return 0;
    }
    if ((size_t)n < HEADER_LEN || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
        message->text_len != (size_t)n - HEADER_LEN) {
        message_close_fds(message);
        return -EPROTO;
    }
    message->text[message->text_len] = '\0';
    return 1;
}

void message_close_fds(struct message *message)
{
    for (uint32_t i = 0; i < message->n_fds; i++)
        if (message->fds[i] >= 0)
            close(message->fds[i]);
    message->n_fds = 0;
}

void message_set(struct message *message, enum message_type type, uint32_t slot, const char *text)
{
    size_t len = text != NULL ? strlen(text) : 0;

    message->type = type;
    message->slot = slot;
    message->id = 0;
    message->status = 0;
    message->n_fds = 0;
    message->text_len = (uint32_t)(len < MESSAGE_TEXT_MAX ? len : MESSAGE_TEXT_MAX);
    if (text != NULL)
        memcpy(message->text, text, message->text_len);
    message->text[message->text_len] = '\0';
}
