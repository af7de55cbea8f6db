/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between the supervisor and its workers, and their last words. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "message.h"

static struct message message;

static void say(int socket, enum message_type type, const char *text)
{
    message_set(&message, type, 3, text);
    assert_int_equal(message_send(socket, &message), 0);
}

static void expect(int socket, enum message_type type, const char *text)
{
    assert_int_equal(message_receive(socket, &message), 1);
    assert_int_equal(message.type, type);
    assert_int_equal(message.slot, 3);
    assert_string_equal(message.text, text);
}

static void test_messages_keep_their_order_and_bounds(void **state)
{
    int ends[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
    assert_int_equal(message_receive(ends[0], &message), -EAGAIN);
    say(ends[1], MESSAGE_CONTROL, "resize");
    say(ends[1], MESSAGE_REMOVE, NULL);
    expect(ends[0], MESSAGE_CONTROL, "resize");
    expect(ends[0], MESSAGE_REMOVE, "");
    assert_int_equal(message_receive(ends[0], &message), -EAGAIN);
    close(ends[1]);
    assert_int_equal(message_receive(ends[0], &message), 0);
    close(ends[0]);
}

/* A worker that cannot start says why, and ends without having read what was sent to it meanwhile. */
static void test_last_words_are_heard(void **state)
{
    int ends[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
    say(ends[0], MESSAGE_EXPECT, NULL);
    say(ends[1], MESSAGE_FAILED, "why");
    close(ends[1]);
    expect(ends[0], MESSAGE_FAILED, "why");
    assert_int_equal(message_receive(ends[0], &message), 0);
    assert_int_equal(message_receive(ends[0], &message), 0);
    close(ends[0]);
}

/* Bytes, possibly none, and a descriptor n times: not as message_send would do it. */
static void say_raw(int socket, const void *bytes, size_t len, int fd, size_t n)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 64)];
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n);
    for (size_t i = 0; i < n; i++)
        memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(int));
    assert_int_equal(sendmsg(socket, &msg, 0), len);
}

/* A worker that was taken over by its guest cannot fill the supervisor's table of descriptors. */
static void test_descriptors_of_what_is_no_message_are_closed(void **state)
{
    static const size_t lens[] = {0, 1, 19};
    static const char bytes[19];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
        int ends[2], passed[2];
        char byte;

        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
        assert_int_equal(pipe(passed), 0);
        say_raw(ends[1], bytes, lens[i], passed[1], 1);
        close(passed[1]);
        assert_int_equal(message_receive(ends[0], &message), lens[i] == 0 ? 0 : -EPROTO);
        assert_int_equal(fcntl(passed[0], F_SETFL, O_NONBLOCK), 0);
        assert_int_equal(read(passed[0], &byte, 1), 0); /* no writer is left */
        close(passed[0]);
        close(ends[0]);
        close(ends[1]);
    }
}

/* Nor with a message that has more of them than any has: up to as many as Linux passes on. */
static void test_too_many_descriptors_are_closed(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 64; n++) {
        int ends[2], passed[2];
        char byte;

        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
        assert_int_equal(pipe(passed), 0);
        message_set(&message, MESSAGE_READY, 0, NULL);
        say_raw(ends[1], &message, offsetof(struct message, n_fds), passed[1], n);
        close(passed[1]);
        if (n <= MESSAGE_FDS_MAX) {
            assert_int_equal(message_receive(ends[0], &message), 1);
            assert_int_equal(message.n_fds, n);
            message_close_fds(&message);
        } else {
            assert_int_equal(message_receive(ends[0], &message), -EPROTO);
        }
        assert_int_equal(fcntl(passed[0], F_SETFL, O_NONBLOCK), 0);
        assert_int_equal(read(passed[0], &byte, 1), 0); /* no writer is left */
        close(passed[0]);
        close(ends[0]);
        close(ends[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_keep_their_order_and_bounds),
        cmocka_unit_test(test_last_words_are_heard),
        cmocka_unit_test(test_descriptors_of_what_is_no_message_are_closed),
        cmocka_unit_test(test_too_many_descriptors_are_closed),
    };

    return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
