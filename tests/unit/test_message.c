/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between the supervisor and its workers, and their last words. */
#include "unit.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_keep_their_order_and_bounds),
        cmocka_unit_test(test_last_words_are_heard),
    };

    return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
