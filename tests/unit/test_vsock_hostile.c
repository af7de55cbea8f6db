/* SPDX-License-Identifier: Apache-2.0 */
/* The socket device under a hostile driver: its rows of tests/hostile/README.md. */
#include "vsock_rig.h"

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

/* Row 17: the CID, and nothing that can be written or that lies behind it. */
static void test_row_17_configuration_space(void **state)
{
    struct test t;

    (void)state;
    start(&t);
    for (unsigned width = 1; width <= 8; width *= 2)
        for (uint32_t i = 0; i + width <= 0x100; i++)
            machine_write(t.m, VIRTIO_MMIO_CONFIG + i, width, UINT64_MAX);
    assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG, 4), GUEST_CID);
    for (uint32_t i = 4; i < 0x100; i++)
        assert_int_equal(machine_read(t.m, VIRTIO_MMIO_CONFIG + i, 1), 0);
    end(&t);
}

/* Row 23: what lies in a buffer behind a packet stays (receive_packet looks), whatever the packet is. */
static void test_row_23_nothing_of_others(void **state)
{
    static char message[10000];
    struct packet *p;
    struct test t;
    int stream, fd;

    (void)state;
    start(&t);
    stream = guest_call(&t, STREAM, 1000, 1);
    fd = guest_call(&t, MESSAGE, 1000, 2);
    host_says(stream, "ab");
    assert_int_equal(expect_packet(&t, OP_RW, 1, 1000)->used, sizeof(p->h) + 2);
    host_says(fd, "abc");
    assert_int_equal(expect_packet(&t, OP_RW, 2, 1000)->used, sizeof(p->h) + 3);
    /* A message in pieces: behind the last one lie no bytes of those before. */
    memset(message, 'x', sizeof(message));
    assert_int_equal(send(fd, message, sizeof(message), MSG_NOSIGNAL), sizeof(message));
    for (size_t got = 0; got < sizeof(message);) {
        p = expect_packet(&t, OP_RW, 2, 1000);
        assert_true(p->h.len > 0);
        assert_memory_equal(p->data, message, p->h.len);
        got += p->h.len;
    }
    guest_says(&t, STREAM, OP_ASK, 1000, 1, 0);
    assert_int_equal(expect_packet(&t, OP_UPDATE, 1, 1000)->used, sizeof(p->h));
    close(stream);
    assert_int_equal(expect_packet(&t, OP_SHUTDOWN, 1, 1000)->used, sizeof(p->h));
    close(fd);
    assert_int_equal(expect_packet(&t, OP_SHUTDOWN, 2, 1000)->used, sizeof(p->h));
    guest_says(&t, STREAM, OP_RW, 1234, 99, 0);
    assert_int_equal(expect_packet(&t, OP_RST, 99, 1234)->used, sizeof(p->h));
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_08_rx_buffers_too_small),
        cmocka_unit_test(test_row_09_header_in_pieces),
        cmocka_unit_test(test_row_12_buffers_outside_ram),
        cmocka_unit_test(test_row_14_reset_in_flight),
        cmocka_unit_test(test_row_14_queue_reset),
        cmocka_unit_test(test_row_17_configuration_space),
        cmocka_unit_test(test_row_18_operations_out_of_order),
        cmocka_unit_test(test_row_18_features),
        cmocka_unit_test(test_row_19_ballooning),
        cmocka_unit_test(test_row_22_packets_that_cannot_be),
        cmocka_unit_test(test_row_23_nothing_of_others),
        cmocka_unit_test(test_row_25_log_flood),
        cmocka_unit_test(test_row_26_credit_lies),
        cmocka_unit_test(test_row_26_never_consumes_rx),
        cmocka_unit_test(test_row_26_table_full),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
