/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device in a fake machine, with real Unix sockets as its host side; the test plays the
 * guest's driver and the supervisor. (tests/unit/test_vsock_hostile.c: a driver that does not behave.)
 */
#include "vsock_rig.h"

#include <sys/resource.h>

static void test_configuration_space(void **state)
{
    struct test t;

    (void)state;
    start(&t);
    assert_int_equal(machine_read32(t.m, VIRTIO_MMIO_DEVICE_ID), 19);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG, 4), GUEST_CID);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + 4, 4), 0);
    assert_int_equal(driver_offered(t.m) & 7, 7);
    end(&t);
}

static void test_guest_calls(void **state)
{
    struct test t;
    struct packet *p;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1234);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    guest_sends(&t, STREAM, 1000, 1234, "hello", 5, 0);
    assert_hears(fd, "hello");
    host_says(fd, "good day");
    p = expect_packet(&t, OP_RW, 1234, 1000);
    assert_int_equal(p->h.len, 8);
    assert_memory_equal(p->data, "good day", 8);
    assert_int_equal(p->h.fwd_cnt, 5);
    assert_int_equal(p->h.buf_alloc, BUFFER);
    /* The guest closes. */
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1234, NO_RCV | NO_SEND);
    expect_packet(&t, OP_RST, 1234, 1000);
    assert_hears(fd, "");
    expect_nothing(&t);
    expect_no_connection(&t);
    assert_int_equal(counter(&t, COUNT_RESETS), 0);
    assert_int_equal(counter(&t, COUNT_CONNECTED), 1);
    close(fd);
    end(&t);
}

static void test_guest_call_refused(void **state)
{
    struct test t;

    (void)state;
    start(&t);
    guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
    answer_question(&t, 0, -ENOENT, -1);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    assert_int_equal(counter(&t, COUNT_REJECTED), 1);
    /* Asking itself fails. */
    asked.error = -EPIPE;
    guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    /* An answer without what it should bring. */
    asked.error = 0;
    guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
    answer_question(&t, 1, 0, -1);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    end(&t);
}

/* A listener whose queue is full is asked again. */
static void test_guest_call_again(void **state)
{
    struct test t;
    int pair[2];

    (void)state;
    start(&t);
    guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
    answer_question(&t, 0, -EAGAIN, -1);
    expect_nothing(&t);
    assert_int_equal(asked.n, 1);
    usleep(30000);
    machine_settle(t.m);
    assert_int_equal(asked.n, 2);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    /* The answer to the first question comes once more: it is known as old. */
    answer_question(&t, 0, 0, dup(pair[0]));
    expect_nothing(&t);
    answer_question(&t, 1, 0, pair[0]);
    expect_packet(&t, OP_RESPONSE, 1, 1000);
    /* It takes too long, in the end. */
    guest_says(&t, STREAM, OP_REQUEST, 1001, 1, 0);
    vsock_find(vs_of(&t), VSOCK_HOST_CID, 1001, 1)->deadline_ns = 1;
    vsock_tick(&vs_of(&t)->tick);
    expect_packet(&t, OP_RST, 1, 1001);
    answer_question(&t, 2, -EAGAIN, -1);
    close(pair[1]);
    expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    end(&t);
}

static void test_more_calls_than_questions(void **state)
{
    struct test t;
    int pair[2];

    (void)state;
    start(&t);
    for (unsigned i = 0; i < 3 * VSOCK_ASKS_MAX; i++)
        guest_says(&t, STREAM, OP_REQUEST, 1000 + i, 1, 0);
    assert_int_equal(asked.n, VSOCK_ASKS_MAX);
    for (unsigned i = 0; i < 3 * VSOCK_ASKS_MAX; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        answer_question(&t, i, 0, pair[0]);
        expect_packet(&t, OP_RESPONSE, 1, 1000 + i);
        close(pair[1]);
        expect_packet(&t, OP_SHUTDOWN, 1, 1000 + i);
    }
    assert_int_equal(asked.n, 3 * VSOCK_ASKS_MAX);
    end(&t);
}

/* The guest gives up while the supervisor connects: what it brings is closed. */
static void test_answer_for_nobody(void **state)
{
    struct test t;
    int pair[2];

    (void)state;
    start(&t);
    guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
    guest_says(&t, STREAM, OP_RST, 1000, 1, 0);
    expect_no_connection(&t);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    answer_question(&t, 0, 0, pair[0]);
    assert_hears(pair[1], "");
    close(pair[1]);
    expect_nothing(&t);
    end(&t);
}

static void test_host_calls(void **state)
{
    struct test t;
    struct packet *p;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    fd = host_call(&t, STREAM, 7, &port);
    host_says(fd, "abc");
    p = expect_packet(&t, OP_RW, port, 7);
    assert_memory_equal(p->data, "abc", 3);
    guest_sends(&t, STREAM, 7, port, "def", 3, 0);
    assert_hears(fd, "def");
    /* The host closes. */
    close(fd);
    p = expect_packet(&t, OP_SHUTDOWN, port, 7);
    assert_int_equal(p->h.flags, NO_RCV | NO_SEND);
    guest_says(&t, STREAM, OP_RST, 7, port, 0);
    expect_no_connection(&t);
    end(&t);
}

/* What is said right behind the line belongs to the guest; a line may come in pieces. */
static void test_host_line(void **state)
{
    struct test t;
    struct packet *p;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    fd = host_connect(&t, STREAM);
    host_says(fd, "CONN");
    expect_nothing(&t);
    host_says(fd, "ECT 99");
    expect_nothing(&t);
    host_says(fd, "9\nand more");
    assert_true(vs_of(&t)->n_used == 1);
    {
        struct packet q;

        assert_true(receive_packet(&t, &q));
        assert_int_equal(q.h.op, OP_REQUEST);
        assert_int_equal(q.h.dst_port, 999);
        port = q.h.src_port;
    }
    expect_nothing(&t);
    guest_says(&t, STREAM, OP_RESPONSE, 999, port, 0);
    p = expect_packet(&t, OP_RW, port, 999);
    assert_int_equal(p->h.len, 8);
    assert_memory_equal(p->data, "and more", 8);
    close(fd);
    end(&t);
}

static void test_host_lines_that_cannot_be(void **state)
{
    static const char *const lines[] = {
        "connect 5\n", "CONNECT\n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967295\n",
        "CONNECT 99999999999999999999\n", "CONNECT 5 6\n", "\n", "GET / HTTP/1.1\r\n",
        "CONNECT 5                                  ",
    };
    struct test t;

    (void)state;
    start(&t);
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        for (unsigned type = STREAM; type <= MESSAGE; type++) {
            int fd = host_connect(&t, type);
            const char *heard;

            host_says(fd, lines[i]);
            expect_nothing(&t);
            heard = host_hears(fd); /* the end, or a reset as not all was read */
            assert_non_null(heard);
            assert_true(heard[0] == '\0' || strcmp(heard, "error") == 0);
            close(fd);
            expect_no_connection(&t);
        }
    assert_int_equal(counter(&t, COUNT_REJECTED), 2 * ARRAY_SIZE(lines));
    end(&t);
}

static void test_guest_refuses(void **state)
{
    struct test t;
    struct packet p;
    int fd;

    (void)state;
    start(&t);
    fd = host_connect(&t, STREAM);
    host_says(fd, "CONNECT 5\n");
    assert_true(receive_packet(&t, &p));
    guest_says(&t, STREAM, OP_RST, 5, p.h.src_port, 0);
    assert_hears(fd, "");
    close(fd);
    expect_no_connection(&t);
    assert_int_equal(counter(&t, COUNT_REJECTED), 1);
    /* It does not answer at all. */
    fd = host_connect(&t, STREAM);
    host_says(fd, "CONNECT 5\n");
    assert_true(receive_packet(&t, &p));
    vsock_find(vs_of(&t), VSOCK_HOST_CID, 5, p.h.src_port)->deadline_ns = 1;
    vsock_tick(&vs_of(&t)->tick);
    expect_packet(&t, OP_RST, p.h.src_port, 5);
    assert_hears(fd, "");
    close(fd);
    expect_no_connection(&t);
    end(&t);
}

/* ---- the ends of connections ---- */

static void test_half_close_by_guest(void **state)
{
    struct test t;
    struct packet *p;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_sends(&t, STREAM, 1000, 1, "question", 8, 0);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_SEND);
    assert_hears(fd, "question");
    assert_hears(fd, "");
    expect_nothing(&t);
    host_says(fd, "answer");
    p = expect_packet(&t, OP_RW, 1, 1000);
    assert_memory_equal(p->data, "answer", 6);
    close(fd);
    p = expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    assert_int_equal(p->h.flags, NO_SEND | NO_RCV);
    guest_says(&t, STREAM, OP_RST, 1000, 1, 0);
    expect_no_connection(&t);
    end(&t);
}

static void test_half_close_by_host(void **state)
{
    struct test t;
    struct packet *p;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    host_says(fd, "question");
    shutdown(fd, SHUT_WR);
    expect_packet(&t, OP_RW, 1, 1000);
    p = expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    assert_int_equal(p->h.flags, NO_SEND);
    expect_nothing(&t);
    guest_sends(&t, STREAM, 1000, 1, "answer", 6, 0);
    assert_hears(fd, "answer");
    close(fd);
    p = expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    assert_int_equal(p->h.flags, NO_SEND | NO_RCV);
    /* The guest closes in turn, instead of a reset. */
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_RCV | NO_SEND);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    end(&t);
}

/* The same with messages, and both orders of the ends. */
static void test_half_close_messages(void **state)
{
    struct test t;
    struct packet *p;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    for (unsigned i = 0; i < 4; i++) {
        fd = host_call(&t, MESSAGE, 6, &port);
        host_says(fd, "question");
        assert_int_equal(expect_packet(&t, OP_RW, port, 6)->h.len, 8);
        shutdown(fd, SHUT_WR);
        p = next_but_updates(&t);
        assert_int_equal(p->h.op, OP_SHUTDOWN);
        assert_int_equal(p->h.flags, NO_SEND);
        if (i & 1) {
            guest_sends(&t, MESSAGE, 6, port, "answer", 6, VIRTIO_VSOCK_SEQ_EOM);
            assert_hears(fd, "answer");
        }
        if (i & 2) {
            guest_says(&t, MESSAGE, OP_SHUTDOWN, 6, port, NO_RCV | NO_SEND);
            expect_packet(&t, OP_RST, port, 6);
            assert_hears(fd, "");
            close(fd);
        } else {
            close(fd);
            p = expect_packet(&t, OP_SHUTDOWN, port, 6);
            assert_int_equal(p->h.flags, NO_SEND | NO_RCV);
            guest_says(&t, MESSAGE, OP_RST, 6, port, 0);
        }
        expect_no_connection(&t);
    }
    end(&t);
}

/* Two ends in one turn of the loop: our own shutdown() makes the watch fire that is cancelled then. */
static void test_ends_together(void **state)
{
    static const uint32_t flags[] = {NO_RCV, NO_RCV | NO_SEND};
    struct test t;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    fd = host_call(&t, STREAM, 6, &port);
    shutdown(fd, SHUT_WR);
    expect_packet(&t, OP_SHUTDOWN, port, 6);
    for (unsigned i = 0; i < 2; i++) {
        struct virtio_vsock_hdr h = header(&t, STREAM, OP_SHUTDOWN, 6, port, 0, flags[i]);
        struct segment out = segment(t.tx.addr + 64 * i, sizeof(h));

        memcpy(fake_ram(t.m->fake, out.addr.addr, sizeof(h)), &h, sizeof(h));
        assert_true(ring_add(&t.driver.rings[QUEUE_TX], &out, 1, NULL, 0, &t, false) >= 0);
    }
    driver_kick(&t.driver, QUEUE_TX);
    expect_packet(&t, OP_RST, port, 6);
    assert_hears(fd, "");
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

static void test_guest_receives_no_more(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_RCV);
    assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
    assert_int_equal(errno, EPIPE);
    expect_nothing(&t);
    guest_sends(&t, STREAM, 1000, 1, "still", 5, 0);
    assert_hears(fd, "still");
    /* A hint stays: flags without it take nothing back. */
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_SEND);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

static void test_host_receives_no_more(void **state)
{
    struct test t;
    struct packet *p;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    shutdown(fd, SHUT_RD);
    guest_sends(&t, STREAM, 1000, 1, "lost", 4, 0);
    p = expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    assert_int_equal(p->h.flags, NO_RCV);
    host_says(fd, "but");
    p = expect_packet(&t, OP_RW, 1, 1000);
    assert_int_equal(p->h.fwd_cnt, 4);
    close(fd);
    p = expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    assert_int_equal(p->h.flags, NO_SEND | NO_RCV);
    /* No answer: 5.10.6.5, a reset after a while. */
    vsock_find(vs_of(&t), VSOCK_HOST_CID, 1000, 1)->deadline_ns = 1;
    vsock_tick(&vs_of(&t)->tick);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    end(&t);
}

/* The host's process dies with unread data: a reset, as TCP does it. */
static void test_host_dies(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_sends(&t, STREAM, 1000, 1, "unread", 6, 0);
    close(fd);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    assert_int_equal(counter(&t, COUNT_RESETS), 1);
    end(&t);
}

static void test_guest_resets(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_says(&t, STREAM, OP_RST, 1000, 1, 0);
    assert_hears(fd, "");
    expect_nothing(&t);
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

static void test_reader_that_sleeps(void **state)
{
    struct test t;
    struct vsock_connection *c;
    uint32_t sent, got = 0;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    c = vsock_find(vs_of(&t), VSOCK_HOST_CID, 1000, 1);
    sent = send_to_the_end(&t, STREAM, 1000, 0, 0, 4096, 0);
    assert_true(sent > BUFFER); /* the socket took some */
    assert_true(c->buffered > BUFFER / 4 * 3 - 4096); /* the rest was not told yet */
    assert_int_equal(c->buffered, sent - c->fwd_cnt);
    /* The guest asks, and learns the same. */
    guest_says(&t, STREAM, OP_ASK, 1000, 1, 0);
    assert_int_equal(expect_packet(&t, OP_UPDATE, 1, 1000)->h.fwd_cnt, c->fwd_cnt);
    /* Now it wakes up. All arrives, in order, and credit comes back without being asked for. */
    for (int i = 0; i < 100 && got < sent; i++) {
        got = read_all(fd, got);
        machine_settle(t.m);
    }
    assert_int_equal(got, sent);
    assert_int_equal(c->buffered, 0);
    assert_int_equal(c->fwd_cnt, sent);
    assert_int_equal(expect_packet(&t, OP_UPDATE, 1, 1000)->h.fwd_cnt, sent);
    close(fd);
    end(&t);
}

/* What was sent before the guest closed reaches a slow reader, while the guest reuses its port. */
static void test_lingers(void **state)
{
    struct test t;
    uint32_t sent, got = 0;
    int fd, again;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    sent = send_to_the_end(&t, STREAM, 1000, 0, 0, 4096, 0);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_RCV | NO_SEND);
    expect_packet(&t, OP_RST, 1, 1000);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    again = guest_call(&t, STREAM, 1000, 1);
    guest_sends(&t, STREAM, 1000, 1, "new", 3, 0);
    assert_hears(again, "new");
    for (int i = 0; i < 100 && got < sent; i++) {
        got = read_all(fd, got);
        machine_settle(t.m);
    }
    assert_int_equal(got, sent);
    assert_hears(fd, "");
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    close(fd);
    /* A reader that dies ends the wait, too. */
    got = 0;
    fd = guest_call(&t, STREAM, 1001, 1);
    sent = send_to_the_end(&t, STREAM, 1001, 0, 0, 4096, 0);
    t.consume = false;
    guest_says(&t, STREAM, OP_SHUTDOWN, 1001, 1, NO_RCV | NO_SEND);
    close(fd);
    expect_packet(&t, OP_RST, 1, 1001);
    machine_settle(t.m);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    close(again);
    end(&t);
}

static void test_half_close_waits_for_a_slow_reader(void **state)
{
    struct test t;
    uint32_t sent, got = 0;
    char byte;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    sent = send_to_the_end(&t, STREAM, 1000, 0, 0, 4096, 0);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_SEND);
    for (int i = 0; i < 100 && got < sent; i++) {
        got = read_all(fd, got);
        machine_settle(t.m);
    }
    assert_int_equal(got, sent);
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
    close(fd);
    end(&t);
}

/* The guest's application does not read: never a byte more than its credit. */
static void test_guest_reader_that_sleeps(void **state)
{
    struct test t;
    struct packet *p;
    uint32_t got = 0;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    t.buf_alloc = 10000;
    fd = guest_call(&t, STREAM, 1000, 1);
    assert_int_equal(send(fd, big, 50000, MSG_DONTWAIT), 50000);
    while (got < 10000) {
        p = expect_packet(&t, OP_RW, 1, 1000);
        assert_memory_equal(p->data, big + got, p->h.len);
        got += p->h.len;
    }
    assert_int_equal(got, 10000);
    expect_packet(&t, OP_ASK, 1, 1000);
    expect_nothing(&t); /* once is enough */
    t.fwd_cnt = 1;
    guest_says(&t, STREAM, OP_UPDATE, 1000, 1, 0);
    p = expect_packet(&t, OP_RW, 1, 1000);
    assert_int_equal(p->h.len, 1);
    got++;
    expect_packet(&t, OP_ASK, 1, 1000);
    t.fwd_cnt = 10001;
    t.buf_alloc = 100000;
    guest_says(&t, STREAM, OP_UPDATE, 1000, 1, 0);
    while (got < 50000) {
        p = expect_packet(&t, OP_RW, 1, 1000);
        assert_memory_equal(p->data, big + got, p->h.len);
        got += p->h.len;
    }
    expect_nothing(&t);
    close(fd);
    end(&t);
}

/* Counters are free-running 32 bits. */
static void test_counters_wrap(void **state)
{
    struct test t;
    struct vsock_connection *c;
    uint32_t sent, got = 0;
    struct packet *p;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    c = vsock_find(vs_of(&t), VSOCK_HOST_CID, 1000, 1);
    c->fwd_cnt = c->fwd_cnt_said = UINT32_MAX - 3000;
    c->tx_cnt = c->peer_fwd_cnt = t.fwd_cnt = UINT32_MAX - 2;
    for (sent = 0; sent < 8192 * 12; sent += 8192)
        guest_sends(&t, STREAM, 1000, 1, big + sent, 8192, 0);
    for (int i = 0; i < 100 && got < sent; i++) {
        got = read_all(fd, got);
        machine_settle(t.m);
    }
    assert_int_equal(got, sent);
    assert_int_equal(c->fwd_cnt, UINT32_MAX - 3000 + sent);
    host_says(fd, "wraps");
    do {
        static struct packet q;

        assert_true(receive_packet(&t, &q));
        p = &q;
    } while (p->h.op == OP_UPDATE);
    assert_int_equal(p->h.len, 5);
    assert_int_equal(c->tx_cnt, 2);
    close(fd);
    end(&t);
}

static void test_messages(void **state)
{
    struct test t;
    struct packet *p;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, MESSAGE, 1000, 1);
    guest_sends(&t, MESSAGE, 1000, 1, "one", 3, VIRTIO_VSOCK_SEQ_EOM);
    guest_sends(&t, MESSAGE, 1000, 1, "tw", 2, 0);
    guest_sends(&t, MESSAGE, 1000, 1, "o", 1, VIRTIO_VSOCK_SEQ_EOM | VIRTIO_VSOCK_SEQ_EOR);
    guest_sends(&t, MESSAGE, 1000, 1, "unfinished", 10, 0);
    assert_hears(fd, "one");
    assert_hears(fd, "two");
    assert_null(host_hears(fd));
    host_says(fd, "a");
    host_says(fd, "bc");
    p = expect_packet(&t, OP_RW, 1, 1000);
    assert_int_equal(p->h.len, 1);
    assert_int_equal(p->h.flags, VIRTIO_VSOCK_SEQ_EOM);
    assert_int_equal(p->h.type, MESSAGE);
    p = expect_packet(&t, OP_RW, 1, 1000);
    assert_int_equal(p->h.len, 2);
    expect_nothing(&t);
    /* An empty one is none; the end is not taken for one. */
    assert_int_equal(send(fd, "", 0, 0), 0);
    host_says(fd, "d");
    p = next_but_updates(&t);
    assert_int_equal(p->h.op, OP_RW);
    assert_int_equal(p->h.len, 1);
    close(fd);
    p = next_but_updates(&t);
    assert_int_equal(p->h.op, OP_SHUTDOWN);
    guest_says(&t, MESSAGE, OP_RST, 1000, 1, 0);
    fd = host_call(&t, MESSAGE, 70, &port);
    host_says(fd, "hi");
    assert_int_equal(expect_packet(&t, OP_RW, port, 70)->h.flags, VIRTIO_VSOCK_SEQ_EOM);
    guest_sends(&t, MESSAGE, 70, port, "ho", 2, VIRTIO_VSOCK_SEQ_EOM);
    assert_hears(fd, "ho");
    close(fd);
    end(&t);
}

/* Larger than an rx buffer: in pieces; two of them, one after the other; small ones in between. */
static void test_large_messages(void **state)
{
    const uint32_t len = 100000;
    struct test t;
    struct packet p;
    uint32_t got[2] = {0, 0}, ends[2] = {0, 0}, small = 0;
    int fd[3];

    (void)state;
    fill_big();
    start(&t);
    for (unsigned i = 0; i < 3; i++)
        fd[i] = guest_call(&t, MESSAGE, 1000 + i, 1);
    assert_int_equal(send(fd[0], big, len, 0), len);
    assert_int_equal(send(fd[1], big, len, 0), len);
    host_says(fd[2], "small");
    while (ends[0] + ends[1] < 2) {
        unsigned i;

        assert_true(receive_packet(&t, &p));
        if (p.h.op == OP_UPDATE)
            continue;
        assert_int_equal(p.h.op, OP_RW);
        i = p.h.dst_port - 1000;
        if (i == 2) {
            small++;
            continue;
        }
        assert_memory_equal(p.data, big + got[i], p.h.len);
        got[i] += p.h.len;
        ends[i] += p.h.flags == VIRTIO_VSOCK_SEQ_EOM;
        assert_int_equal(got[i] == len, p.h.flags == VIRTIO_VSOCK_SEQ_EOM);
    }
    assert_int_equal(small, 1);
    assert_int_equal(got[0], len);
    assert_int_equal(got[1], len);
    for (unsigned i = 0; i < 3; i++)
        close(fd[i]);
    end(&t);
}

/* The owner of the message that is on its way ends: the other one's turn. */
static void test_large_message_dropped(void **state)
{
    const uint32_t len = 100000;
    struct test t;
    struct packet p;
    uint32_t got[2] = {0, 0};
    int fd[2];

    (void)state;
    rig_begin(&t, NULL, 0);
    t.consume = false;
    for (unsigned i = 0; i < 2; i++) {
        post_rx(&t, i, RX_LEN);
        fd[i] = guest_call(&t, MESSAGE, 1000 + i, 1);
    }
    assert_int_equal(send(fd[0], big, len, 0), len);
    machine_settle(t.m);
    assert_int_equal(send(fd[1], big, len, 0), len);
    for (unsigned i = 2; i < 10; i++)
        post_rx(&t, i, RX_LEN);
    driver_kick(&t.driver, QUEUE_RX);
    while (receive_packet(&t, &p))
        if (p.h.op == OP_RW)
            got[p.h.dst_port - 1000] += p.h.len;
    assert_true(got[0] > 0 && got[0] < len);
    assert_int_equal(got[1], 0);
    guest_says(&t, MESSAGE, OP_RST, 1000, 1, 0);
    for (unsigned i = 10; i < 60; i++)
        post_rx(&t, i, RX_LEN);
    driver_kick(&t.driver, QUEUE_RX);
    while (receive_packet(&t, &p)) {
        assert_int_equal(p.h.dst_port, 1001);
        got[1] += p.h.op == OP_RW ? p.h.len : 0;
    }
    assert_int_equal(got[1], len);
    close(fd[0]);
    close(fd[1]);
    end(&t);
}

/* It waits for credit for all of it; one that the guest can never take resets. */
static void test_message_and_credit(void **state)
{
    struct test t;
    struct packet p;
    uint32_t got = 0;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    t.buf_alloc = 20000;
    fd = guest_call(&t, MESSAGE, 1000, 1);
    assert_int_equal(send(fd, big, 15000, 0), 15000);
    assert_int_equal(send(fd, big, 15000, 0), 15000);
    while (got < 15000) {
        assert_true(receive_packet(&t, &p));
        if (p.h.op == OP_RW)
            got += p.h.len;
    }
    for (unsigned asks = 0; receive_packet(&t, &p);) {
        assert_true(p.h.op == OP_ASK || p.h.op == OP_UPDATE);
        asks += p.h.op == OP_ASK;
        assert_true(asks <= 1);
    }
    /* Some more, but not enough: the guest is not asked in circles. */
    t.fwd_cnt = 5000;
    guest_says(&t, MESSAGE, OP_UPDATE, 1000, 1, 0);
    expect_nothing(&t);
    t.fwd_cnt = 15000;
    guest_says(&t, MESSAGE, OP_UPDATE, 1000, 1, 0);
    while (got < 30000) {
        assert_true(receive_packet(&t, &p));
        if (p.h.op == OP_RW)
            got += p.h.len;
    }
    assert_int_equal(p.h.flags, VIRTIO_VSOCK_SEQ_EOM);
    assert_int_equal(send(fd, big, 20001, 0), 20001);
    do
        assert_true(receive_packet(&t, &p));
    while (p.h.op != OP_RST);
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

/* Boundaries survive a reader that sleeps, over the end of the ring of bytes, too. */
static void test_buffered_messages(void **state)
{
    struct test t;
    uint32_t sent = 0, first = 0, fwd = 0, n_sent = 0, n_got = 0;
    static uint32_t lengths[100000];
    static uint8_t some[65536];
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, MESSAGE, 1000, 1);
    for (int round = 0; round < 6; round++) {
        for (;;) {
            uint32_t len = 1 + pattern(n_sent) * 16u;

            if (BUFFER - (sent - fwd) < len)
                break;
            if (len > 2) {
                guest_sends(&t, MESSAGE, 1000, 1, big, 2, 0);
                guest_sends(&t, MESSAGE, 1000, 1, big + 2, len - 2, VIRTIO_VSOCK_SEQ_EOM);
            } else {
                guest_sends(&t, MESSAGE, 1000, 1, big, len, VIRTIO_VSOCK_SEQ_EOM);
            }
            lengths[n_sent++] = len;
            sent += len;
            for (struct packet p; receive_packet(&t, &p);)
                fwd = p.h.fwd_cnt;
        }
        first = n_got;
        for (int i = 0; i < 400; i++) {
            ssize_t n = recv(fd, some, sizeof(some), MSG_DONTWAIT);

            if (n < 0)
                break;
            assert_int_equal(n, lengths[n_got]);
            assert_memory_equal(some, big, (size_t)n);
            n_got++;
        }
        assert_true(n_got > first);
        for (struct packet p; receive_packet(&t, &p);)
            fwd = p.h.fwd_cnt;
    }
    assert_true(sent > 2 * BUFFER);
    for (int i = 0; i < 100000 && n_got < n_sent; i++) {
        ssize_t n = recv(fd, some, sizeof(some), MSG_DONTWAIT);

        if (n >= 0)
            assert_int_equal(n, lengths[n_got++]);
        else
            machine_settle(t.m);
    }
    assert_int_equal(n_got, n_sent);
    for (uint32_t i = 0; i < BUFFER / 64; i++)
        assert_int_equal(vsock_find(vs_of(&t), VSOCK_HOST_CID, 1000, 1)->ends[i], 0);
    close(fd);
    end(&t);
}

/* What the guest needs to finish a message may be what was not worth a packet before. */
static void test_credit_for_the_end_of_a_message(void **state)
{
    const uint32_t before = BUFFER / 4 - 1;
    static uint8_t some[BUFFER];
    struct test t;
    struct packet p;
    uint32_t sent = 0, fwd = 0;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, MESSAGE, 1000, 1);
    guest_sends(&t, MESSAGE, 1000, 1, big, before, VIRTIO_VSOCK_SEQ_EOM);
    assert_int_equal(recv(fd, some, sizeof(some), MSG_DONTWAIT), before);
    expect_nothing(&t);
    /* All that its credit allows of one as large as the buffer, as Linux does: it asks for nothing. */
    for (uint32_t len; sent < BUFFER - before; sent += len) {
        len = MIN(BUFFER - before - sent, 16384u);
        guest_sends(&t, MESSAGE, 1000, 1, big + sent, len, 0);
    }
    while (receive_packet(&t, &p)) {
        assert_int_equal(p.h.op, OP_UPDATE);
        fwd = p.h.fwd_cnt;
    }
    assert_int_equal(fwd, before);
    guest_sends(&t, MESSAGE, 1000, 1, big + sent, before, VIRTIO_VSOCK_SEQ_EOM);
    assert_int_equal(recv(fd, some, sizeof(some), MSG_DONTWAIT), BUFFER);
    assert_memory_equal(some, big, BUFFER);
    close(fd);
    end(&t);
}

/* A host side that sends no more makes its socket ready for ever: what is sent to it is not waited for. */
static void test_message_after_a_full_socket(void **state)
{
    static uint8_t some[65536];
    struct test t;
    struct packet p;
    uint32_t sent = 0, fwd = 0, got = 0;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    fd = guest_call(&t, MESSAGE, 1000, 1);
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    while (BUFFER - (sent - fwd) >= 8000) {
        guest_sends(&t, MESSAGE, 1000, 1, big, 8000, VIRTIO_VSOCK_SEQ_EOM);
        sent += 8000;
        while (receive_packet(&t, &p))
            fwd = p.h.fwd_cnt;
    }
    for (int i = 0; i < 100000 && got < sent; i++) {
        ssize_t n = recv(fd, some, sizeof(some), MSG_DONTWAIT);

        if (n >= 0)
            got += (uint32_t)n;
        else
            machine_settle(t.m);
    }
    assert_int_equal(got, sent);
    guest_sends(&t, MESSAGE, 1000, 1, "tw", 2, 0);
    guest_sends(&t, MESSAGE, 1000, 1, "o", 1, VIRTIO_VSOCK_SEQ_EOM);
    assert_hears(fd, "two");
    close(fd);
    end(&t);
}

/* A service that answers, and ends without having read all: the guest gets the answer. */
static void test_answer_of_a_deaf_host(void **state)
{
    struct test t;
    struct packet *p;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, MESSAGE, 1000, 1);
    guest_sends(&t, MESSAGE, 1000, 1, "question", 8, VIRTIO_VSOCK_SEQ_EOM);
    host_says(fd, "answer");
    assert_int_equal(send(fd, "", 0, 0), 0); /* not the end */
    host_says(fd, "more");
    close(fd);
    for (int i = 0; i < 2; i++) {
        do
            p = next_but_updates(&t);
        while (p->h.op == OP_SHUTDOWN);
        assert_int_equal(p->h.op, OP_RW);
        assert_memory_equal(p->data, i == 0 ? "answer" : "more", p->h.len);
    }
    p = next_but_updates(&t);
    assert_int_equal(p->h.op, OP_SHUTDOWN);
    assert_int_equal(p->h.flags, NO_RCV | NO_SEND);
    guest_says(&t, MESSAGE, OP_RST, 1000, 1, 0);
    expect_no_connection(&t);
    end(&t);
}

/* A message waits for credit, and the guest makes its buffer smaller than that. */
static void test_buffer_shrinks(void **state)
{
    struct test t;
    struct packet p;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    t.buf_alloc = 20000;
    fd = guest_call(&t, MESSAGE, 1000, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(send(fd, big, 15000, 0), 15000);
    while (receive_packet(&t, &p))
        assert_int_not_equal(p.h.op, OP_RST);
    t.buf_alloc = 10000;
    guest_says(&t, MESSAGE, OP_UPDATE, 1000, 1, 0);
    do
        assert_true(receive_packet(&t, &p));
    while (p.h.op != OP_RST);
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

/* ---- events, interface ---- */

static void test_transport_reset(void **state)
{
    struct test t;
    struct segment in;
    struct ring_used used;
    char reply[128];
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    assert_int_equal(t.m->dev->ops->control(t.m->dev, "no such", reply, sizeof(reply)), -EINVAL);
    assert_int_equal(t.m->dev->ops->control(t.m->dev, "transport-reset", reply, sizeof(reply)), 0);
    machine_settle(t.m);
    assert_hears(fd, "");
    expect_no_connection(&t);
    in = segment(t.tx.addr, 4);
    memset(fake_ram(t.m->fake, t.tx.addr, 4), 0xff, 4);
    assert_true(ring_add(&t.driver.rings[QUEUE_EVENT], NULL, 0, &in, 1, &t, false) >= 0);
    driver_kick(&t.driver, QUEUE_EVENT);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[QUEUE_EVENT], &used));
    assert_int_equal(used.len, 4);
    assert_int_equal(*(uint32_t *)fake_ram(t.m->fake, t.tx.addr, 4), 0);
    assert_true(ring_add(&t.driver.rings[QUEUE_EVENT], NULL, 0, &in, 1, &t, false) >= 0);
    driver_kick(&t.driver, QUEUE_EVENT);
    machine_settle(t.m);
    assert_false(ring_get(&t.driver.rings[QUEUE_EVENT], &used)); /* one event only */
    expect_nothing(&t);
    close(fd);
    end(&t);
}

/* Many connections: none is lost, none is mixed up, and all of it goes away. */
static void test_thousands(void **state)
{
    static const char *const presets[] = {"connections=4096", NULL};
    static int fd[2500];
    struct rlimit limit;
    struct test t;
    unsigned N = ARRAY_SIZE(fd); /* of two descriptors each */

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < 2 * N + 100)
        N = (unsigned)(limit.rlim_max - 100) / 2;
    start_with(&t, presets);
    for (unsigned i = 0; i < N; i++) {
        fd[i] = guest_call(&t, STREAM, 10000 + i, i % 7);
        asked.n = 0;
    }
    for (unsigned i = 0; i < N; i++) {
        char text[16];

        snprintf(text, sizeof(text), "no %u", i);
        guest_sends(&t, STREAM, 10000 + i, i % 7, text, (uint32_t)strlen(text), 0);
        host_says(fd[i], text);
    }
    for (unsigned i = 0; i < N; i++) {
        struct packet p;
        char text[16];
        unsigned who;

        assert_true(receive_packet(&t, &p));
        assert_int_equal(p.h.op, OP_RW);
        who = p.h.dst_port - 10000;
        snprintf(text, sizeof(text), "no %u", who);
        assert_int_equal(p.h.len, strlen(text));
        assert_memory_equal(p.data, text, strlen(text));
        assert_hears(fd[who], text);
    }
    expect_nothing(&t);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), N);
    for (unsigned i = 0; i < N; i++) {
        close(fd[i]);
        expect_packet(&t, OP_SHUTDOWN, i % 7, 10000 + i);
        guest_says(&t, STREAM, OP_RST, 10000 + i, i % 7, 0);
    }
    expect_no_connection(&t);
    end(&t);
}

/* With an I/O thread of its own: ends at any moment, asks on their way between the threads. */
static void test_threads(void **state)
{
    (void)state;
    for (int round = 0; round < 100; round++) {
        struct machine_config machine = {.ops = &virtio_vsock_ops, .io_thread = true};
        const char *presets[] = {"cid=42", "queue-size=64", NULL};
        struct device_config config = {.virtio_id = 19, .base = MACHINE_BASE, .irq = MACHINE_IRQ};
        struct virtio_vsock_hdr h = {.src_cid = 42, .dst_cid = 2, .type = STREAM, .op = OP_REQUEST};
        struct driver driver;
        char error[CONFIG_ERROR_LEN], path[64];
        struct machine *m;
        const struct vsock *vs;
        int clients[4], peers[200];
        unsigned n_peers = 0;
        gpa_t tx;

        memset(&asked, 0, sizeof(asked));
        strcpy(config.name, "vsock0");
        assert_int_equal(device_config_fill(&config, device_type_by_id(19), NULL, presets, error,
                                            sizeof(error)), 0);
        machine.device = &config;
        snprintf(path, sizeof(path), "/tmp/test_vsock.%d", (int)getpid());
        config.fds[0] = vsock_listen(path, false, error, sizeof(error));
        config.n_fds = 1;
        m = machine_create(&machine);
        vs = m->dev->priv;
        m->dev->ask = vsock_rig_ask;
        for (unsigned i = 0; i < ARRAY_SIZE(clients); i++) {
            clients[i] = vsock_connect(path, false);
            host_says(clients[i], i % 2 ? "CONNECT 1\n" : "CONN");
        }
        unlink(path);
        driver_start(&driver, m, driver_offered(m) & ~F_PACKED & ~F_EVENT_IDX, QUEUES, 64);
        tx = guest_alloc(&m->heap[0], 65536, 4096);
        for (uint32_t i = 0; i < 40; i++) {
            struct segment out = segment(tx.addr + i * 64, sizeof(h));

            h.src_port = i;
            memcpy(fake_ram(m->fake, out.addr.addr, sizeof(h)), &h, sizeof(h));
            assert_true(ring_add(&driver.rings[QUEUE_TX], &out, 1, NULL, 0, m, false) >= 0);
        }
        driver_kick(&driver, QUEUE_TX);
        for (int i = 0; i < round * 3; i++) {
            machine_turn(m);
            for (unsigned q = 0; q < asked.n && i % 4 == 3; q++) {
                int pair[2] = {-1, -1};

                if (q % 4 > 1) {
                    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
                    peers[n_peers++] = pair[1];
                }
                m->dev->ops->answered(m->dev, asked.questions[q].id,
                                      q % 4 == 0 ? -ENOENT : q % 4 == 1 ? -EAGAIN : 0, "", pair,
                                      pair[0] >= 0 ? 1 : 0);
            }
            /* Ends of all kinds, at any moment. */
            for (unsigned k = 0; k < n_peers; k++)
                if ((k + (unsigned)i) % 3 == 0)
                    shutdown(peers[k], k % 2 ? SHUT_WR : SHUT_RDWR);
            if (n_peers > 0 && i % 2)
                close(peers[--n_peers]);
            if (i % 4 == 3)
                asked.n = 0;
        }
        while (stat_get(&m->stats->own[COUNT_HOST_CALLS]) < ARRAY_SIZE(clients))
            machine_turn(m);
        if (round % 3 == 0)
            driver_restart(&driver);
        machine_write32(m, VIRTIO_MMIO_STATUS, 0);
        while (machine_read32(m, VIRTIO_MMIO_STATUS) != 0)
            machine_turn(m);
        /* From here on the device may be freed. */
        assert_int_equal(vs->watches, 0);
        assert_int_equal(vs->n_used, 0);
        assert_true(vs->unasked);
        for (unsigned i = 0; i < ARRAY_SIZE(clients); i++)
            close(clients[i]);
        while (n_peers > 0)
            close(peers[--n_peers]);
        machine_destroy(m);
        driver_end(&driver);
        device_config_free(&config);
    }
}

static void test_cids_that_cannot_be(void **state)
{
    static const char *const bad[] = {"cid=0", "cid=1", "cid=2"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct device_config config = {.virtio_id = 19, .base = MACHINE_BASE, .irq = MACHINE_IRQ};
        struct machine_config machine = {.ops = &virtio_vsock_ops, .device = &config};
        const char *presets[] = {bad[i], NULL};
        char error[CONFIG_ERROR_LEN];
        struct machine *m;

        strcpy(config.name, "vsock0");
        assert_int_equal(device_config_restore(&config, device_type_by_id(19), presets, error,
                                               sizeof(error)), 0);
        assert_true(machine_try_create(&machine, &m, error, sizeof(error)) < 0);
        device_config_free(&config);
    }
}

/* ---- the supervisor's side ---- */

static void test_supervisor_side(void **state)
{
    struct guest_identity guest = {.domid = 7};
    struct device_config config = {.virtio_id = 19, .guest = &guest};
    const struct device_type *type = device_type_by_id(19);
    char error[CONFIG_ERROR_LEN], path[160];
    int fds[DEVICE_FDS_MAX], listener;
    const char *presets[] = {NULL};

    (void)state;
    strcpy(guest.run_dir, "/tmp/test_vsock_run.XXXXXX");
    assert_non_null(mkdtemp(guest.run_dir));
    strcpy(config.name, "vsock0");
    assert_int_equal(device_config_fill(&config, type, NULL, presets, error, sizeof(error)), 0);
    assert_int_equal(type->open(&config, error, sizeof(error)), 0);
    assert_int_equal(config.n_fds, 2);
    assert_int_equal(device_config_uint(&config, "cid"), 1007);
    snprintf(path, sizeof(path), "%s/vsock, CID 1007", guest.run_dir);
    assert_string_equal(config.backing, path);
    snprintf(path, sizeof(path), "%s/vsock", guest.run_dir);
    listener = vsock_connect(path, false);
    assert_true(listener >= 0);
    close(listener);

    assert_int_equal(type->ask(&config, "connect 80", fds, error, sizeof(error)), -ENOENT);
    snprintf(path, sizeof(path), "%s/vsock_80", guest.run_dir);
    listener = vsock_listen(path, false, error, sizeof(error));
    assert_true(listener >= 0);
    assert_int_equal(type->ask(&config, "connect 80", fds, error, sizeof(error)), 1);
    close(fds[0]);
    assert_int_equal(type->ask(&config, "connect-seqpacket 80", fds, error, sizeof(error)),
                     -EPROTOTYPE);
    assert_int_equal(type->ask(&config, "connect ../../x", fds, error, sizeof(error)), -EINVAL);
    assert_int_equal(type->ask(&config, "connect 80/../x", fds, error, sizeof(error)), -EINVAL);
    assert_int_equal(type->ask(&config, "remove 80", fds, error, sizeof(error)), -EINVAL);
    for (int i = 0; i < 1000; i++) { /* until its queue is full */
        int ret = type->ask(&config, "connect 80", fds, error, sizeof(error));

        if (ret < 0) {
            assert_int_equal(ret, -EAGAIN);
            break;
        }
        close(fds[0]);
        assert_true(i < 999);
    }
    close(listener);
    assert_int_equal(type->ask(&config, "connect 80", fds, error, sizeof(error)), -ECONNREFUSED);
    unlink(path);
    type->close(&config);
    device_config_free(&config);
    assert_int_equal(rmdir(guest.run_dir), 0);

    /* What cannot be. */
    memset(&config, 0, sizeof(config));
    strcpy(config.name, "vsock1");
    config.guest = &guest;
    assert_int_equal(device_config_fill(&config, type, NULL, presets, error, sizeof(error)), -EEXIST);
    assert_non_null(strstr(error, "one vsock device"));
    strcpy(config.name, "vsock0");
    assert_int_equal(device_config_fill(&config, type, NULL, presets, error, sizeof(error)), 0);
    assert_int_equal(type->open(&config, error, sizeof(error)), -ENOENT); /* the folder is gone */
    assert_int_equal(config.n_fds, 0);
    device_config_free(&config);
    presets[0] = "cid=2";
    {
        const char *reserved[] = {"cid=2", NULL};

        assert_int_equal(device_config_fill(&config, type, NULL, reserved, error, sizeof(error)),
                         -EINVAL);
        device_config_free(&config);
    }
}



/* The same with other rings: packed ones, and with every option. */
static void test_rings(void **state)
{
    static const char *const presets[][4] = {
        {"packed=yes", NULL}, {"packed=yes", "in-order=yes", NULL}, {"in-order=yes", NULL},
        {"event-idx=no", "indirect=no", NULL}};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(presets); i++) {
        struct test t;
        uint32_t port;
        int fd;

        start_with(&t, presets[i]);
        assert_int_equal((t.driver.features & F_PACKED) != 0, i < 2);
        fd = host_call(&t, STREAM, 7, &port);
        for (unsigned n = 0; n < 200; n++) {
            host_says(fd, "abc");
            assert_int_equal(expect_packet(&t, OP_RW, port, 7)->h.len, 3);
            guest_sends(&t, STREAM, 7, port, "de", 2, 0);
            assert_hears(fd, "de");
        }
        close(fd);
        end(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configuration_space),
        cmocka_unit_test(test_guest_calls),
        cmocka_unit_test(test_guest_call_refused),
        cmocka_unit_test(test_guest_call_again),
        cmocka_unit_test(test_more_calls_than_questions),
        cmocka_unit_test(test_answer_for_nobody),
        cmocka_unit_test(test_host_calls),
        cmocka_unit_test(test_host_line),
        cmocka_unit_test(test_host_lines_that_cannot_be),
        cmocka_unit_test(test_guest_refuses),
        cmocka_unit_test(test_half_close_by_guest),
        cmocka_unit_test(test_half_close_by_host),
        cmocka_unit_test(test_half_close_messages),
        cmocka_unit_test(test_ends_together),
        cmocka_unit_test(test_guest_receives_no_more),
        cmocka_unit_test(test_host_receives_no_more),
        cmocka_unit_test(test_host_dies),
        cmocka_unit_test(test_guest_resets),
        cmocka_unit_test(test_reader_that_sleeps),
        cmocka_unit_test(test_lingers),
        cmocka_unit_test(test_half_close_waits_for_a_slow_reader),
        cmocka_unit_test(test_guest_reader_that_sleeps),
        cmocka_unit_test(test_counters_wrap),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_large_messages),
        cmocka_unit_test(test_large_message_dropped),
        cmocka_unit_test(test_message_and_credit),
        cmocka_unit_test(test_credit_for_the_end_of_a_message),
        cmocka_unit_test(test_message_after_a_full_socket),
        cmocka_unit_test(test_answer_of_a_deaf_host),
        cmocka_unit_test(test_buffer_shrinks),
        cmocka_unit_test(test_buffered_messages),
        cmocka_unit_test(test_transport_reset),
        cmocka_unit_test(test_rings),
        cmocka_unit_test(test_thousands),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_cids_that_cannot_be),
        cmocka_unit_test(test_supervisor_side),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
