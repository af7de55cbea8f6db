/* SPDX-License-Identifier: Apache-2.0 */
/* The relay between a network device and passt: frames on a stream, in any pieces, and its end. */
#include <errno.h>
#include <endian.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "backend.h"
#include "log.h"

#define HEADER 12u
#define FRAME_MAX 65553u

struct test {
    struct event_loop *loop;
    struct net_passt *relay;
    int device, passt;
};

static void turn(struct test *t)
{
    for (int i = 0; i < 2000 && event_loop_turn(t->loop, 0) > 0; i++)
        ;
}

/* `room`: bytes that the stream holds, about. */
static void start_with(struct test *t, int room)
{
    const struct loop_config config = {.entries = 32};
    int frames[2], stream[2], size = 1 << 20;

    assert_int_equal(event_loop_create(&config, &t->loop), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, frames), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, stream), 0);
    for (unsigned i = 0; i < 2; i++) {
        setsockopt(frames[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        setsockopt(stream[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    }
    t->device = frames[0];
    t->passt = stream[0];
    assert_int_equal(net_passt_create(t->loop, frames[1], stream[1], &t->relay), 0);
    turn(t);
}

static void start(struct test *t) { start_with(t, 1 << 20); }

static void end(struct test *t)
{
    char byte;

    net_passt_destroy(t->relay);
    turn(t);
    if (t->passt >= 0) {
        assert_true(recv(t->passt, &byte, 1, 0) <= 0);
        close(t->passt);
    }
    /* Both of its descriptors are closed. */
    while (recv(t->device, &byte, 1, 0) > 0)
        ;
    assert_true(recv(t->device, &byte, 1, 0) == 0 || errno == ECONNRESET);
    close(t->device);
    event_loop_destroy(t->loop);
}

static void make(uint8_t *frame, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        frame[i] = (uint8_t)(i * 3 + (i >> 8) + seed);
}

static void device_sends(struct test *t, size_t len, unsigned seed)
{
    static uint8_t packet[HEADER + FRAME_MAX];

    memset(packet, 0, HEADER);
    make(packet + HEADER, len, seed);
    assert_int_equal(write(t->device, packet, HEADER + len), HEADER + len);
    turn(t);
}

static void device_gets(struct test *t, size_t len, unsigned seed)
{
    static uint8_t packet[HEADER + FRAME_MAX + 1], want[FRAME_MAX];
    static const uint8_t header[HEADER];

    assert_int_equal(read(t->device, packet, sizeof(packet)), HEADER + len);
    assert_memory_equal(packet, header, HEADER);
    make(want, len, seed);
    assert_memory_equal(packet + HEADER, want, len);
}

static void passt_sends_length(struct test *t, uint32_t len)
{
    len = htobe32(len);
    assert_int_equal(write(t->passt, &len, 4), 4);
}

static const size_t lengths[] = {14, 60, 1514, 9014, FRAME_MAX};

static void to_passt(void **state)
{
    static uint8_t got[FRAME_MAX], want[FRAME_MAX];
    struct test t;

    (void)state;
    start(&t);
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        uint32_t len;

        device_sends(&t, lengths[i], i);
        assert_int_equal(read(t.passt, &len, 4), 4);
        assert_int_equal(be32toh(len), lengths[i]);
        assert_int_equal(read(t.passt, got, sizeof(got)), lengths[i]);
        make(want, lengths[i], i);
        assert_memory_equal(got, want, lengths[i]);
    }
    end(&t);
}

static void from_passt(void **state)
{
    static uint8_t frame[FRAME_MAX];
    struct test t;

    (void)state;
    start(&t);
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        make(frame, lengths[i], i);
        passt_sends_length(&t, (uint32_t)lengths[i]);
        assert_int_equal(write(t.passt, frame, lengths[i]), lengths[i]);
        turn(&t);
        device_gets(&t, lengths[i], i);
    }
    /* In single bytes, and many at once. */
    make(frame, 100, 7);
    uint32_t len = htobe32(100);
    for (unsigned i = 0; i < 104; i++) {
        assert_int_equal(write(t.passt, i < 4 ? (uint8_t *)&len + i : frame + i - 4, 1), 1);
        turn(&t);
        assert_int_equal(recv(t.device, frame + 200, 1, MSG_PEEK) > 0, i == 103);
    }
    device_gets(&t, 100, 7);
    for (unsigned i = 0; i < 50; i++) {
        make(frame, 500 + i, i);
        passt_sends_length(&t, 500 + i);
        assert_int_equal(write(t.passt, frame, 500 + i), 500 + i);
    }
    turn(&t);
    for (unsigned i = 0; i < 50; i++)
        device_gets(&t, 500 + i, i);
    end(&t);
}

/* passt that reads nothing: frames are dropped as a whole, and what follows is in step again. */
static void passt_reads_nothing(void **state)
{
    static uint8_t got[FRAME_MAX], want[FRAME_MAX];
    struct test t;
    unsigned frames = 0;

    (void)state;
    start(&t);
    for (unsigned i = 0; i < 400; i++)
        device_sends(&t, 9014, i); /* never blocks, never fails */
    for (unsigned round = 0; round < 2000; round++) {
        uint32_t len;
        size_t have = 0;

        if (recv(t.passt, &len, 4, MSG_PEEK) != 4)
            break;
        assert_int_equal(read(t.passt, &len, 4), 4);
        assert_int_equal(be32toh(len), 9014);
        for (int wait = 0; have < 9014 && wait < 1000; wait++) {
            ssize_t n = read(t.passt, got + have, 9014 - have);

            if (n > 0)
                have += (size_t)n;
            else
                event_loop_turn(t.loop, 2000000);
        }
        assert_int_equal(have, 9014);
        make(want, 9014, frames); /* the first ones are there in order */
        if (frames < 20)
            assert_memory_equal(got, want, 9014);
        frames++;
        turn(&t);
    }
    assert_true(frames >= 20 && frames < 400);
    device_sends(&t, 60, 3);
    uint32_t len;
    assert_int_equal(read(t.passt, &len, 4), 4);
    assert_int_equal(be32toh(len), 60);
    assert_int_equal(read(t.passt, got, sizeof(got)), 60);
    end(&t);
}

/* A part of a frame is with passt, and it reads no more: nobody wakes up until it does. */
static void sleeps_while_passt_reads_nothing(void **state)
{
    static uint8_t got[FRAME_MAX], want[FRAME_MAX];
    struct test t;
    uint32_t len;

    (void)state;
    start_with(&t, 16384); /* less than a frame */
    for (unsigned i = 0; i < 3; i++)
        device_sends(&t, FRAME_MAX, i);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(event_loop_turn(t.loop, 20000000), 0);
    /* All of the frames that were begun come, also the last one, of which the rest had to wait. */
    for (unsigned frame = 0;; frame++) {
        size_t have = 0;

        if (recv(t.passt, &len, 4, 0) != 4) {
            assert_true(frame > 0);
            break;
        }
        assert_int_equal(be32toh(len), FRAME_MAX);
        for (unsigned wait = 0; have < FRAME_MAX && wait < 100; wait++) {
            ssize_t n = read(t.passt, got + have, FRAME_MAX - have);

            have += n > 0 ? (size_t)n : 0;
            event_loop_turn(t.loop, n > 0 ? 0 : 1000000);
        }
        assert_int_equal(have, FRAME_MAX);
        make(want, FRAME_MAX, frame);
        assert_memory_equal(got, want, FRAME_MAX);
    }
    end(&t);
}

/* A device that takes nothing makes passt wait; nobody wakes up meanwhile, and nothing is lost. */
static void device_reads_nothing(void **state)
{
    static uint8_t frame[4 + 9014];
    uint32_t len = htobe32(9014);
    unsigned sent = 0, got = 0;
    size_t done = 0;
    struct test t;

    (void)state;
    start(&t);
    memcpy(frame, &len, 4);
    for (unsigned idle = 0; idle < 3;) {
        ssize_t n;

        make(frame + 4, 9014, sent);
        n = write(t.passt, frame + done, sizeof(frame) - done);
        idle = n < 0 ? idle + 1 : 0;
        done += n > 0 ? (size_t)n : 0;
        if (done == sizeof(frame)) {
            done = 0;
            assert_true(++sent < 10000);
        }
        turn(&t);
    }
    assert_true(sent > 100);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(event_loop_turn(t.loop, 20000000), 0);
    while (got < sent) {
        char byte;

        for (unsigned wait = 0; recv(t.device, &byte, 1, MSG_PEEK) < 0; wait++) {
            assert_true(wait < 1000);
            event_loop_turn(t.loop, 1000000);
        }
        device_gets(&t, 9014, got++);
    }
    end(&t);
}

static void passt_ends(void **state)
{
    static const uint32_t bad[] = {0, 13, FRAME_MAX + 1, 0x80000000, 0xffffffff};
    struct test t;
    char byte;

    (void)state;
    start(&t);
    close(t.passt);
    t.passt = -1;
    turn(&t);
    assert_int_equal(read(t.device, &byte, 1), 0); /* as a TAP that is gone */
    end(&t);
    /* One that speaks nonsense is given up. */
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        start(&t);
        passt_sends_length(&t, bad[i]);
        turn(&t);
        assert_int_equal(read(t.device, &byte, 1), 0);
        end(&t);
    }
    /* And a device that goes first. */
    start(&t);
    assert_int_equal(shutdown(t.device, SHUT_RDWR), 0);
    turn(&t);
    assert_int_equal(read(t.passt, &byte, 1), 0);
    end(&t);
}

static void connects(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char error[512], longer[200];
    int fds[3], listener = socket(AF_UNIX, SOCK_STREAM, 0), peer;

    (void)state;
    snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/viod-test-passt.%d", (int)getpid());
    assert_true(net_passt_open(address.sun_path, fds, error, sizeof(error)) == -ENOENT);
    assert_non_null(strstr(error, "is it running (passt --socket /tmp/"));
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(net_passt_open(address.sun_path, fds, error, sizeof(error)), 0);
    peer = accept(listener, NULL, NULL);
    assert_true(peer >= 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(fcntl(fds[i], F_GETFL) & O_NONBLOCK);
        assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        close(fds[i]);
    }
    close(peer);
    close(listener);
    unlink(address.sun_path);
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(net_passt_open(longer, fds, error, sizeof(error)), -ENAMETOOLONG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(to_passt),
        cmocka_unit_test(from_passt),
        cmocka_unit_test(passt_reads_nothing),
        cmocka_unit_test(sleeps_while_passt_reads_nothing),
        cmocka_unit_test(device_reads_nothing),
        cmocka_unit_test(passt_ends),
        cmocka_unit_test(connects),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
