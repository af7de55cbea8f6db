/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device in a fake machine, with real Unix sockets as its host side; the test plays the
 * guest's driver and the supervisor.
 */
#include "vsock_rig.h"

#include <sys/resource.h>

#define OP_REQUEST VIRTIO_VSOCK_OP_REQUEST
#define OP_RESPONSE VIRTIO_VSOCK_OP_RESPONSE
#define OP_RST VIRTIO_VSOCK_OP_RST
#define OP_SHUTDOWN VIRTIO_VSOCK_OP_SHUTDOWN
#define OP_RW VIRTIO_VSOCK_OP_RW
#define OP_UPDATE VIRTIO_VSOCK_OP_CREDIT_UPDATE
#define OP_ASK VIRTIO_VSOCK_OP_CREDIT_REQUEST
#define NO_RCV VIRTIO_VSOCK_SHUTDOWN_RCV
#define NO_SEND VIRTIO_VSOCK_SHUTDOWN_SEND
#define BUFFER (128u * 1024)

static uint8_t pattern(uint32_t i) { return (uint8_t)(i * 2654435761u >> 13 ^ i); }

static uint8_t big[1u << 20];

static void fill_big(void)
{
    for (uint32_t i = 0; i < sizeof(big); i++)
        big[i] = pattern(i);
}

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
    vsock_find(vs_of(&t), 1001, 1)->deadline_ns = 1;
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
    vsock_find(vs_of(&t), 5, p.h.src_port)->deadline_ns = 1;
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
    vsock_find(vs_of(&t), 1000, 1)->deadline_ns = 1;
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

/* ---- credit ---- */

/* Sends as a guest with credit does, until it has none; the bytes sent. */
static uint32_t send_to_the_end(struct test *t, unsigned type, uint32_t port, uint32_t fwd,
                                uint32_t sent, uint32_t piece, uint32_t flags)
{
    while (BUFFER - (sent - fwd) >= piece) {
        guest_sends(t, type, port, 1, big + sent, piece, flags);
        sent += piece;
        assert_true(sent <= sizeof(big) - piece);
        for (struct packet p; t->consume && receive_packet(t, &p);) {
            assert_int_equal(p.h.op, OP_UPDATE);
            assert_true(p.h.fwd_cnt - fwd <= sent - fwd);
            fwd = p.h.fwd_cnt;
        }
    }
    return sent;
}

static uint32_t read_all(int fd, uint32_t got)
{
    static uint8_t some[65536];
    ssize_t n;

    while ((n = recv(fd, some, sizeof(some), MSG_DONTWAIT)) > 0) {
        assert_memory_equal(some, big + got, (size_t)n);
        got += (uint32_t)n;
    }
    return got;
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
    c = vsock_find(vs_of(&t), 1000, 1);
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
    c = vsock_find(vs_of(&t), 1000, 1);
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

/* ---- seqpacket ---- */

static struct packet *next_but_updates(struct test *t)
{
    static struct packet p;

    do
        assert_true(receive_packet(t, &p));
    while (p.h.op == OP_UPDATE);
    return &p;
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
        assert_int_equal(vsock_find(vs_of(&t), 1000, 1)->ends[i], 0);
    close(fd);
    end(&t);
}

/* ---- hostile guests ---- */

/* The header in pieces of every size, and data in elements of one byte. */
static void test_row_09_header_in_pieces(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    for (unsigned cut = 1; cut < sizeof(struct virtio_vsock_hdr); cut++) {
        struct virtio_vsock_hdr h = header(&t, STREAM, OP_RW, 1000, 1, 3, 0);
        struct segment out[5] = {segment(t.tx.addr, cut),
                                 segment(t.tx.addr + cut, (uint32_t)sizeof(h) - cut),
                                 segment(t.tx.addr + 44, 1), segment(t.tx.addr + 45, 1),
                                 segment(t.tx.addr + 46, 1)};
        uint8_t *at = fake_ram(t.m->fake, t.tx.addr, 64);
        struct ring_used used;

        memcpy(at, &h, sizeof(h));
        memcpy(at + sizeof(h), "xyz", 3);
        assert_true(ring_add(&t.driver.rings[QUEUE_TX], out, 5, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, QUEUE_TX);
        machine_settle(t.m);
        assert_true(ring_get(&t.driver.rings[QUEUE_TX], &used));
        assert_hears(fd, "xyz");
    }
    /* And rx buffers in such pieces. */
    t.consume = false;
    for (unsigned i = 0; i < 10; i++) {
        struct segment in[60];
        struct ring_used used;
        unsigned n = 0;

        do {
            host_says(fd, "q");
            machine_settle(t.m);
        } while (ring_get(&t.driver.rings[QUEUE_RX], &used)); /* the plain ones first */
        for (; n < 60; n++)
            in[n] = segment(t.rx.addr + 64 * n, n == 50 ? 0 : 1);
        assert_true(ring_add(&t.driver.rings[QUEUE_RX], NULL, 0, in, n, &t, false) >= 0);
        driver_kick(&t.driver, QUEUE_RX);
        machine_settle(t.m);
        assert_true(ring_get(&t.driver.rings[QUEUE_RX], &used));
        assert_true(used.len > 44 && used.len <= 59);
        assert_int_equal(*(uint8_t *)fake_ram(t.m->fake, in[44].addr.addr, 1), 'q');
    }
    close(fd);
    end(&t);
}

/* Packets that lie about their length, types, operations, addresses. */
static void test_row_22_packets_that_cannot_be(void **state)
{
    struct test t;
    struct virtio_vsock_hdr h;
    struct segment out;
    struct ring_used used;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    for (uint32_t len = 0; len < sizeof(h); len += 7) { /* cut short */
        out = segment(t.tx.addr, len);
        assert_true(ring_add(&t.driver.rings[QUEUE_TX], &out, 1, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, QUEUE_TX);
        expect_nothing(&t);
        assert_true(ring_get(&t.driver.rings[QUEUE_TX], &used));
    }
    h = header(&t, STREAM, OP_RW, 1000, 1, 1000, 0);
    post_tx(&t, &h, "short", 5);
    h.len = UINT32_MAX;
    post_tx(&t, &h, "short", 5);
    expect_nothing(&t);
    assert_null(host_hears(fd));
    /* A longer buffer than len: only len counts. */
    h.len = 3;
    post_tx(&t, &h, "abcdef", 6);
    assert_hears(fd, "abc");
    /* Somebody else's CID as the source: not for us. */
    h = header(&t, STREAM, OP_RST, 1000, 1, 0, 0);
    h.src_cid = GUEST_CID + 1;
    post_tx(&t, &h, NULL, 0);
    h.src_cid = GUEST_CID | UINT64_C(1) << 32;
    post_tx(&t, &h, NULL, 0);
    expect_nothing(&t);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    /* Another guest: nobody there. */
    h = header(&t, STREAM, OP_REQUEST, 1000, 1, 0, 0);
    h.dst_cid = 77;
    post_tx(&t, &h, NULL, 0);
    {
        struct packet p;
        struct ring *rx = &t.driver.rings[QUEUE_RX];

        machine_settle(t.m);
        assert_true(ring_get(rx, &used));
        memcpy(&p.h, fake_ram(t.m->fake, t.rx.addr + ((uintptr_t)used.token - 1) * RX_LEN, 44), 44);
        assert_int_equal(p.h.op, OP_RST);
        assert_int_equal(p.h.src_cid, 77);
    }
    /* Types that nobody knows: 5.10.6.4. */
    h = header(&t, 3, OP_REQUEST, 1001, 1, 0, 0);
    post_tx(&t, &h, NULL, 0);
    assert_int_equal(expect_packet(&t, OP_RST, 1, 1001)->h.type, 3);
    h = header(&t, 0, OP_RST, 1001, 1, 0, 0);
    post_tx(&t, &h, NULL, 0);
    expect_nothing(&t);
    /* No connection. */
    for (unsigned op = 0; op < 12; op++) {
        if (op == OP_REQUEST)
            continue;
        guest_says(&t, STREAM, op, 5, 6, 0);
        if (op == OP_RST)
            expect_nothing(&t);
        else
            expect_packet(&t, OP_RST, 6, 5);
    }
    /* The right ports, the wrong type. */
    guest_says(&t, MESSAGE, OP_UPDATE, 1000, 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    guest_sends(&t, STREAM, 1000, 1, "fine", 4, 0);
    assert_hears(fd, "fine");
    close(fd);
    end(&t);
}

/* Each operation in each state: an answer, or a reset; never more. */
static void test_row_18_operations_out_of_order(void **state)
{
    static const unsigned resets[] = {0, OP_REQUEST, OP_RESPONSE, 8, 0xffff};
    struct test t;
    struct packet p;
    int fd;

    (void)state;
    start(&t);
    for (size_t i = 0; i < ARRAY_SIZE(resets); i++) {
        fd = guest_call(&t, STREAM, 1000, 1);
        guest_says(&t, STREAM, resets[i], 1000, 1, 0);
        expect_packet(&t, OP_RST, 1, 1000);
        assert_hears(fd, "");
        close(fd);
        expect_no_connection(&t);
    }
    /* Data after "no more data". */
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 1, NO_SEND);
    guest_sends(&t, STREAM, 1000, 1, "x", 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    close(fd);
    /* While the host side is being connected. */
    for (unsigned op = 0; op < 9; op++) {
        unsigned before = asked.n;

        guest_says(&t, STREAM, OP_REQUEST, 1000, 1, 0);
        guest_says(&t, STREAM, op, 1000, 1, 3);
        if (op == OP_RST)
            expect_nothing(&t);
        else if (op != OP_UPDATE && op != OP_ASK)
            expect_packet(&t, OP_RST, 1, 1000);
        answer_question(&t, before, -ENOENT, -1);
        if (op == OP_UPDATE || op == OP_ASK)
            expect_packet(&t, OP_RST, 1, 1000);
        expect_no_connection(&t);
    }
    /* While the guest is called, and its answer before it was. */
    for (unsigned op = 0; op < 9; op++) {
        if (op == OP_RESPONSE || op == OP_UPDATE || op == OP_ASK)
            continue;
        fd = host_connect(&t, STREAM);
        host_says(fd, "CONNECT 9\n");
        assert_true(receive_packet(&t, &p));
        guest_says(&t, STREAM, op, 9, p.h.src_port, 3);
        if (op != OP_RST)
            expect_packet(&t, OP_RST, p.h.src_port, 9);
        assert_hears(fd, "");
        close(fd);
        expect_no_connection(&t);
    }
    /* While its end is under way. */
    for (unsigned op = 0; op < 9; op++) {
        fd = guest_call(&t, STREAM, 1000, 1);
        close(fd);
        expect_packet(&t, OP_SHUTDOWN, 1, 1000);
        guest_says(&t, STREAM, op, 1000, 1, 3);
        if (op == OP_RW || op == OP_UPDATE || op == OP_ASK) {
            expect_nothing(&t);
            guest_says(&t, STREAM, OP_RST, 1000, 1, 0);
        } else if (op != OP_RST) {
            expect_packet(&t, OP_RST, 1, 1000);
        }
        expect_no_connection(&t);
    }
    end(&t);
}

static void test_row_18_features(void **state)
{
    struct test t;
    int fd;

    (void)state;
    /* Messages were not negotiated. */
    rig_begin(&t, NULL, FEATURE(VIRTIO_VSOCK_F_SEQPACKET));
    rig_post_all(&t);
    guest_says(&t, MESSAGE, OP_REQUEST, 1, 2, 0);
    expect_packet(&t, OP_RST, 2, 1);
    fd = host_connect(&t, MESSAGE);
    machine_settle(t.m);
    assert_hears(fd, "");
    close(fd);
    close(guest_call(&t, STREAM, 1, 2));
    end(&t);
    /* Streams were not. */
    rig_begin(&t, NULL, FEATURE(VIRTIO_VSOCK_F_STREAM));
    rig_post_all(&t);
    guest_says(&t, STREAM, OP_REQUEST, 1, 2, 0);
    expect_packet(&t, OP_RST, 2, 1);
    close(guest_call(&t, MESSAGE, 1, 2));
    end(&t);
    /* Nothing was: streams are implied (5.10.3.2), as Linux 6.12 has it with and without messages. */
    rig_begin(&t, NULL, 7);
    rig_post_all(&t);
    close(guest_call(&t, STREAM, 1, 2));
    end(&t);
    rig_begin(&t, NULL, 5);
    rig_post_all(&t);
    fd = guest_call(&t, STREAM, 1, 2);
    close(guest_call(&t, MESSAGE, 2, 2));
    close(fd);
    end(&t);
}

static void test_row_26_credit_lies(void **state)
{
    struct test t;
    struct packet p;
    uint32_t sent;
    int fd;

    (void)state;
    fill_big();
    start(&t);
    /* More than it may send: the connection is reset, nothing is kept. */
    fd = guest_call(&t, STREAM, 1000, 1);
    sent = send_to_the_end(&t, STREAM, 1000, 0, 0, 4096, 0);
    guest_sends(&t, STREAM, 1000, 1, big, 4096, 0);
    guest_sends(&t, STREAM, 1000, 1, big, 65536, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    expect_no_connection(&t);
    (void)sent;
    close(fd);
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_sends(&t, STREAM, 1000, 1, big, BUFFER + 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    close(fd);
    /* An unfinished message that grows and grows. */
    fd = guest_call(&t, MESSAGE, 1000, 1);
    for (unsigned i = 0; i < BUFFER / 16384; i++)
        guest_sends(&t, MESSAGE, 1000, 1, big, 16384, 0);
    expect_nothing(&t);
    guest_sends(&t, MESSAGE, 1000, 1, big, 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    close(fd);
    /* Empty messages, which cost no credit. */
    fd = guest_call(&t, MESSAGE, 1000, 1);
    for (unsigned i = 0; i < 10000; i++)
        guest_sends(&t, MESSAGE, 1000, 1, NULL, 0, VIRTIO_VSOCK_SEQ_EOM);
    assert_null(host_hears(fd));
    guest_sends(&t, MESSAGE, 1000, 1, "ok", 2, VIRTIO_VSOCK_SEQ_EOM);
    assert_hears(fd, "ok");
    close(fd);
    expect_packet(&t, OP_SHUTDOWN, 1, 1000);
    /* Acknowledges what was never sent, shrinks its buffer, has none, has all the world. */
    fd = guest_call(&t, STREAM, 1001, 1);
    host_says(fd, "12345");
    expect_packet(&t, OP_RW, 1, 1001);
    t.fwd_cnt = 6;
    guest_says(&t, STREAM, OP_UPDATE, 1001, 1, 0);
    host_says(fd, "67890");
    expect_packet(&t, OP_ASK, 1, 1001);
    t.fwd_cnt = 0;
    t.buf_alloc = 4;
    guest_says(&t, STREAM, OP_UPDATE, 1001, 1, 0);
    expect_nothing(&t);
    t.buf_alloc = UINT32_MAX;
    guest_says(&t, STREAM, OP_UPDATE, 1001, 1, 0);
    assert_int_equal(expect_packet(&t, OP_RW, 1, 1001)->h.len, 5);
    close(fd);
    while (receive_packet(&t, &p))
        ;
    end(&t);
}

/* The guest takes no packets: resets wait, up to a number, and then its own packets do. */
static void test_row_26_never_consumes_rx(void **state)
{
    struct test t;
    unsigned sent = 0, resets = 0;
    struct packet p;
    struct virtio_vsock_hdr h;
    struct ring *tx;
    struct ring_used used;
    int fd;

    (void)state;
    rig_begin(&t, NULL, 0);
    tx = &t.driver.rings[QUEUE_TX];
    h = header(&t, STREAM, OP_UPDATE, 5, 6, 0, 0);
    memcpy(fake_ram(t.m->fake, t.tx.addr, sizeof(h)), &h, sizeof(h));
    for (unsigned i = 0; i < 1000; i++) {
        struct segment out = segment(t.tx.addr, sizeof(h));

        if (ring_add(tx, &out, 1, NULL, 0, &t, false) < 0)
            break;
        driver_kick(&t.driver, QUEUE_TX);
        machine_settle(t.m);
        while (ring_get(tx, &used))
            sent++;
    }
    assert_int_equal(sent, VSOCK_REPLIES_MAX);
    assert_int_equal(ring_in_flight(tx), RING);
    assert_int_equal(vs_of(&t)->n_replies, VSOCK_REPLIES_MAX);
    /* Host side and loop are not affected. */
    fd = host_connect(&t, STREAM);
    host_says(fd, "CONNECT 9\n");
    machine_settle(t.m);
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 1);
    rig_post_all(&t);
    while (receive_packet(&t, &p)) {
        resets += p.h.op == OP_RST;
        while (ring_get(tx, &used))
            sent++;
    }
    assert_int_equal(sent, VSOCK_REPLIES_MAX + RING);
    assert_int_equal(resets, sent);
    assert_int_equal(p.h.op, OP_REQUEST);
    close(fd);
    end(&t);
}

/* No more connections than configured; and then there are again. */
static void test_row_26_table_full(void **state)
{
    static const char *const presets[] = {"connections=3", NULL};
    struct test t;
    int fd[4];

    (void)state;
    start_with(&t, presets);
    for (unsigned i = 0; i < 3; i++)
        fd[i] = guest_call(&t, STREAM, 1000 + i, 1);
    guest_says(&t, STREAM, OP_REQUEST, 1003, 1, 0);
    expect_packet(&t, OP_RST, 1, 1003);
    assert_int_equal(counter(&t, COUNT_REJECTED), 1);
    /* A host's client waits in line. */
    fd[3] = host_connect(&t, STREAM);
    host_says(fd[3], "CONNECT 9\n");
    expect_nothing(&t);
    guest_says(&t, STREAM, OP_RST, 1001, 1, 0);
    {
        struct packet p;

        assert_true(receive_packet(&t, &p));
        assert_int_equal(p.h.op, OP_REQUEST);
        guest_says(&t, STREAM, OP_RST, 9, p.h.src_port, 0);
    }
    close(guest_call(&t, STREAM, 1003, 1));
    for (unsigned i = 0; i < 4; i++)
        close(fd[i]);
    end(&t);
}

static void test_row_08_rx_buffers_too_small(void **state)
{
    struct test t;
    struct ring_used used;
    struct packet p;
    int fd;

    (void)state;
    rig_begin(&t, NULL, 0);
    t.consume = false;
    for (unsigned i = 0; i < 45; i += 4)
        post_rx(&t, i, i == 0 ? 1 : i);
    post_rx(&t, 60, RX_LEN);
    fd = host_connect(&t, STREAM);
    host_says(fd, "CONNECT 9\n");
    machine_settle(t.m);
    driver_kick(&t.driver, QUEUE_RX);
    for (unsigned i = 0; i < 45; i += 4) {
        assert_true(ring_get(&t.driver.rings[QUEUE_RX], &used));
        assert_int_equal(used.len, 0);
    }
    assert_true(receive_packet(&t, &p));
    assert_int_equal(p.h.op, OP_REQUEST);
    close(fd);
    end(&t);
}

static void test_row_12_buffers_outside_ram(void **state)
{
    const uint64_t hole = FAKE_BANK0_BASE + 10 * GUEST_CHUNK_SIZE;
    struct test t;
    struct segment out[2], in[2];
    struct ring_used used;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    fake_balloon_out(t.m->fake, hole, 1);
    /* The header is there, the data is not, the end is. */
    for (int i = 0; i < 2; i++) {
        struct virtio_vsock_hdr h = header(&t, STREAM, OP_RW, 1000, 1, 4, 0);
        struct segment three[3] = {segment(t.tx.addr, 44), segment(hole, 4), segment(t.tx.addr, 4)};

        if (i == 1)
            three[0] = segment(hole, 44), three[1] = segment(t.tx.addr, 44);
        memcpy(fake_ram(t.m->fake, t.tx.addr, 44), &h, 44);
        assert_true(ring_add(&t.driver.rings[QUEUE_TX], three, 3, NULL, 0, &t, false) >= 0);
        driver_kick(&t.driver, QUEUE_TX);
        expect_nothing(&t);
        assert_true(ring_get(&t.driver.rings[QUEUE_TX], &used));
        assert_null(host_hears(fd));
    }
    /* An rx buffer with a hole is given back empty; the packet takes the next. */
    t.consume = false;
    for (struct packet p;;) {
        host_says(fd, "x");
        if (!receive_packet(&t, &p))
            break;
    }
    in[0] = segment(hole, 44), in[1] = segment(t.rx.addr, 400);
    assert_true(ring_add(&t.driver.rings[QUEUE_RX], NULL, 0, in, 2, &t, false) >= 0);
    driver_kick(&t.driver, QUEUE_RX);
    machine_settle(t.m);
    assert_true(ring_get(&t.driver.rings[QUEUE_RX], &used));
    assert_int_equal(used.len, 0);
    (void)out;
    close(fd);
    end(&t);
}

static void count_open_fds(unsigned *n)
{
    *n = 0;
    for (int fd = 0; fd < 1024; fd++) {
        int copy = dup(fd);

        if (copy >= 0) {
            (*n)++;
            close(copy);
        }
    }
}

/* A reset at any moment: nothing is left, nothing comes from before, and all works again. */
static void test_row_14_reset_in_flight(void **state)
{
    struct test t;
    unsigned before, after;
    int fd[8];

    (void)state;
    fill_big();
    start(&t);
    count_open_fds(&before);
    for (int round = 0; round < 20; round++) {
        unsigned first = asked.n;
        int pair[2];

        fd[0] = guest_call(&t, STREAM, 1000, 1);
        fd[1] = guest_call(&t, MESSAGE, 1001, 1);
        send_to_the_end(&t, STREAM, 1000, 0, 0, 4096, 0);
        guest_sends(&t, MESSAGE, 1001, 1, big, 4096, 0);
        fd[4] = guest_call(&t, STREAM, 1002, 1);
        send_to_the_end(&t, STREAM, 1002, 0, 0, 4096, 0);
        fd[2] = host_connect(&t, STREAM);
        fd[3] = host_connect(&t, STREAM);
        host_says(fd[3], "CONNECT 5\n");
        guest_says(&t, STREAM, OP_SHUTDOWN, 1002, 1, 3); /* lingers */
        guest_says(&t, STREAM, OP_REQUEST, 1003, 1, 0);  /* is asked about */
        assert_int_equal(send(fd[0], big, 100000, MSG_DONTWAIT), 100000);
        for (int i = 0; i < round; i++)
            machine_turn(t.m);
        driver_restart(&t.driver);
        expect_no_connection(&t);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        assert_int_equal(asked.n, first + 4);
        t.rx_out = 0;
        rig_post_all(&t);
        guest_says(&t, STREAM, OP_REQUEST, 1004, 2, 0);
        assert_int_equal(asked.n, first + 5);
        answer_question(&t, first + 3, 0, pair[0]); /* too late, and not for this call */
        assert_hears(pair[1], "");
        close(pair[1]);
        for (unsigned i = 0; i < 5; i++)
            close(fd[i]);
        expect_nothing(&t);
        answer_question(&t, first + 4, -ENOENT, -1);
        expect_packet(&t, OP_RST, 2, 1004);
        expect_nothing(&t);
        asked.n = 0;
    }
    count_open_fds(&after);
    assert_int_equal(before, after);
    close(guest_call(&t, STREAM, 1000, 1));
    end(&t);
}

/* One queue is reset by itself: connections live on. */
static void test_row_14_queue_reset(void **state)
{
    struct test t;
    uint32_t port;
    int fd;

    (void)state;
    start(&t);
    if ((driver_offered(t.m) & F_RING_RESET) == 0) {
        end(&t);
        return;
    }
    fd = host_call(&t, STREAM, 7, &port);
    for (int i = 0; i < 3; i++) {
        driver_reset_queue(t.m, QUEUE_RX);
        host_says(fd, "meanwhile");
        machine_settle(t.m);
        ring_restart(&t.driver.rings[QUEUE_RX], RING);
        driver_enable_queue(t.m, QUEUE_RX, &t.driver.rings[QUEUE_RX]);
        rig_post_all(&t);
        assert_int_equal(expect_packet(&t, OP_RW, port, 7)->h.len, 9);
        driver_reset_queue(t.m, QUEUE_TX);
        ring_restart(&t.driver.rings[QUEUE_TX], RING);
        driver_enable_queue(t.m, QUEUE_TX, &t.driver.rings[QUEUE_TX]);
        guest_sends(&t, STREAM, 7, port, "again", 5, 0);
        assert_hears(fd, "again");
    }
    /* Both: over. */
    driver_reset_queue(t.m, QUEUE_TX);
    driver_reset_queue(t.m, QUEUE_RX);
    assert_hears(fd, "");
    expect_no_connection(&t);
    close(fd);
    end(&t);
}

static void test_row_19_ballooning(void **state)
{
    struct test t;
    int fd;

    (void)state;
    start(&t);
    fd = guest_call(&t, STREAM, 1000, 1);
    for (unsigned i = 0; i < 300; i++) {
        host_says(fd, "abc");
        machine_balloon_out(t.m, FAKE_BANK0_BASE + 12 * GUEST_CHUNK_SIZE, 1);
        fake_balloon_in(t.m->fake, FAKE_BANK0_BASE + 12 * GUEST_CHUNK_SIZE, 1);
        assert_int_equal(expect_packet(&t, OP_RW, 1, 1000)->h.len, 3);
        guest_sends(&t, STREAM, 1000, 1, "d", 1, 0);
        assert_hears(fd, "d");
    }
    close(fd);
    end(&t);
}

static void test_row_25_log_flood(void **state)
{
    struct test t;
    struct virtio_vsock_hdr h;
    int saved = dup(STDERR_FILENO), pipe_fds[2], fd;
    char text[65536];
    ssize_t n;
    unsigned lines = 0;

    (void)state;
    start(&t);
    assert_int_equal(pipe(pipe_fds), 0);
    dup2(pipe_fds[1], STDERR_FILENO);
    for (unsigned i = 0; i < 3000; i++) {
        h = header(&t, STREAM, OP_RW, 1000, 1, 100, 0);
        post_tx(&t, &h, NULL, 0);
        h.src_cid = 9;
        post_tx(&t, &h, NULL, 0);
    }
    fd = guest_call(&t, STREAM, 1000, 1);
    guest_says(&t, STREAM, OP_RESPONSE, 1000, 1, 0);
    expect_packet(&t, OP_RST, 1, 1000);
    close(fd);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(pipe_fds[1]);
    n = read(pipe_fds[0], text, sizeof(text));
    for (ssize_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    close(pipe_fds[0]);
    assert_in_range(lines, 0, 40);
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
    for (int round = 0; round < 30; round++) {
        struct machine_config machine = {.ops = &virtio_vsock_ops, .io_thread = true};
        const char *presets[] = {"cid=42", "queue-size=64", NULL};
        struct device_config config = {.virtio_id = 19, .base = MACHINE_BASE, .irq = MACHINE_IRQ};
        struct virtio_vsock_hdr h = {.src_cid = 42, .dst_cid = 2, .type = STREAM, .op = OP_REQUEST};
        struct driver driver;
        char error[CONFIG_ERROR_LEN], path[64];
        struct machine *m;
        const struct vsock *vs;
        int clients[4];
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
            for (unsigned q = 0; q < asked.n && i % 4 == 3; q++)
                m->dev->ops->answered(m->dev, asked.questions[q].id, q % 2 ? -ENOENT : -EAGAIN, "",
                                      NULL, 0);
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
        assert_int_equal(device_config_fill(&config, device_type_by_id(19), NULL, presets, error,
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
    assert_int_equal(device_config_fill(&config, type, NULL, presets, error, sizeof(error)), 0);
    assert_int_equal(type->open(&config, error, sizeof(error)), -EEXIST);
    assert_non_null(strstr(error, "one vsock device"));
    strcpy(config.name, "vsock0");
    assert_int_equal(type->open(&config, error, sizeof(error)), -ENOENT); /* the folder is gone */
    assert_int_equal(config.n_fds, 0);
    device_config_free(&config);
    presets[0] = "cid=2";
    {
        const char *reserved[] = {"cid=2", NULL};

        assert_int_equal(device_config_fill(&config, type, NULL, reserved, error, sizeof(error)), 0);
        assert_int_equal(type->open(&config, error, sizeof(error)), -EINVAL);
        device_config_free(&config);
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
        cmocka_unit_test(test_buffered_messages),
        cmocka_unit_test(test_row_08_rx_buffers_too_small),
        cmocka_unit_test(test_row_09_header_in_pieces),
        cmocka_unit_test(test_row_12_buffers_outside_ram),
        cmocka_unit_test(test_row_14_reset_in_flight),
        cmocka_unit_test(test_row_14_queue_reset),
        cmocka_unit_test(test_row_18_operations_out_of_order),
        cmocka_unit_test(test_row_18_features),
        cmocka_unit_test(test_row_19_ballooning),
        cmocka_unit_test(test_row_22_packets_that_cannot_be),
        cmocka_unit_test(test_row_25_log_flood),
        cmocka_unit_test(test_row_26_credit_lies),
        cmocka_unit_test(test_row_26_never_consumes_rx),
        cmocka_unit_test(test_row_26_table_full),
        cmocka_unit_test(test_transport_reset),
        cmocka_unit_test(test_thousands),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_cids_that_cannot_be),
        cmocka_unit_test(test_supervisor_side),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
