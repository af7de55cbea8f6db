/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls from guest to guest: the device in a fake machine, where the test is the supervisor and the
 * other guest's device; and the supervisor's side of it.
 */
#include "vsock_rig.h"

#define OTHER 43u

static const char *const with_guests[] = {"guest-to-guest=yes", NULL};

static void make_pair(unsigned type, int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX,
                                (type == STREAM ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC |
                                    SOCK_NONBLOCK,
                                0, pair),
                     0);
}

/* The guest calls; the question was answered, and the other end of the connection is returned. */
static int call_out(struct test *t, unsigned type, uint32_t guest_port, uint32_t port)
{
    unsigned before = asked.n;
    char text[64];
    int pair[2];

    guest_says(t, type, OP_REQUEST, guest_port, port, 0);
    assert_int_equal(asked.n, before + 1);
    snprintf(text, sizeof(text), "call%s %u %u %u", type == STREAM ? "" : "-seqpacket", OTHER, port,
             guest_port);
    assert_string_equal(asked.questions[before].text, text);
    make_pair(type, pair);
    answer_question(t, before, 0, pair[0]);
    expect_nothing(t); /* not before the other guest has said so */
    return pair[1];
}

/* The other guest calls: its end. */
static int call_in(struct test *t, unsigned type, uint32_t from_port, uint32_t to_port)
{
    struct vsock_call call = {
        .from_cid = OTHER, .from_port = from_port, .to_port = to_port, .seqpacket = type == MESSAGE};
    int pair[2];

    make_pair(type, pair);
    assert_int_equal(vsock_pass_call(t->channel, &call, pair[0]), 0);
    close(pair[0]);
    return pair[1];
}

static void test_off(void **state)
{
    struct test t;

    (void)state;
    start(&t);
    t.peer = OTHER;
    guest_says(&t, STREAM, OP_REQUEST, 1000, 80, 0);
    expect_packet(&t, OP_RST, 80, 1000);
    assert_int_equal(asked.n, 0);
    expect_no_connection(&t);
    end(&t);
}

static void test_call_out(void **state)
{
    struct test t;
    int fd, host;

    (void)state;
    start_with(&t, with_guests);
    t.peer = OTHER;
    fd = call_out(&t, STREAM, 1000, 80);
    host_says(fd, "O");
    expect_nothing(&t);
    host_says(fd, "K 80\nand more");
    expect_packet(&t, OP_RESPONSE, 80, 1000);
    assert_memory_equal(expect_packet(&t, OP_RW, 80, 1000)->data, "and more", 8);
    /* The host's port of the same number is another connection. */
    t.peer = VSOCK_HOST_CID;
    host = guest_call(&t, STREAM, 1000, 80);
    guest_sends(&t, STREAM, 1000, 80, "to the host", 11, 0);
    t.peer = OTHER;
    guest_sends(&t, STREAM, 1000, 80, "to the guest", 12, 0);
    assert_hears(host, "to the host");
    assert_hears(fd, "to the guest");
    assert_int_equal(counter(&t, COUNT_CONNECTIONS), 2);
    for (uint32_t cid = 3; cid < 20000; cid++) /* also where they share a bucket */
        assert_true(cid == OTHER || vsock_find(vs_of(&t), cid, 1000, 80) == NULL);
    guest_says(&t, STREAM, OP_SHUTDOWN, 1000, 80, NO_RCV | NO_SEND);
    expect_packet(&t, OP_RST, 80, 1000);
    assert_hears(fd, "");
    assert_null(host_hears(host));
    close(host);
    t.peer = VSOCK_HOST_CID;
    expect_packet(&t, OP_SHUTDOWN, 80, 1000);
    guest_says(&t, STREAM, OP_RST, 1000, 80, 0);
    close(fd);
    /* Messages. */
    t.peer = OTHER;
    fd = call_out(&t, MESSAGE, 1001, 81);
    host_says(fd, "OK 81\n");
    expect_packet(&t, OP_RESPONSE, 81, 1001);
    guest_sends(&t, MESSAGE, 1001, 81, "one", 3, VIRTIO_VSOCK_SEQ_EOM);
    guest_sends(&t, MESSAGE, 1001, 81, "two", 3, VIRTIO_VSOCK_SEQ_EOM);
    assert_hears(fd, "one");
    assert_hears(fd, "two");
    host_says(fd, "three");
    assert_memory_equal(expect_packet(&t, OP_RW, 81, 1001)->data, "three", 5);
    guest_says(&t, MESSAGE, OP_RST, 1001, 81, 0);
    close(fd);
    expect_no_connection(&t);
    end(&t);
}

static void test_call_out_refused(void **state)
{
    static const char *const words[] = {"NO\n", "OKAY\n", "a line that is longer than any line may be",
                                        NULL};
    struct test t;
    int fd;

    (void)state;
    start_with(&t, with_guests);
    t.peer = OTHER;
    guest_says(&t, STREAM, OP_REQUEST, 1000, 80, 0);
    answer_question(&t, 0, -ECONNREFUSED, -1);
    expect_packet(&t, OP_RST, 80, 1000);
    close(call_out(&t, STREAM, 1000, 80)); /* the other guest's device */
    expect_packet(&t, OP_RST, 80, 1000);
    for (unsigned i = 0; words[i] != NULL; i++) {
        fd = call_out(&t, STREAM, 1000, 80);
        host_says(fd, words[i]);
        expect_packet(&t, OP_RST, 80, 1000);
        close(fd);
    }
    fd = call_out(&t, STREAM, 1000, 80);
    vsock_find(vs_of(&t), OTHER, 1000, 80)->deadline_ns = 1;
    vsock_tick(&vs_of(&t)->tick);
    expect_packet(&t, OP_RST, 80, 1000);
    close(fd);
    assert_int_equal(counter(&t, COUNT_REJECTED), 6);
    assert_int_equal(counter(&t, COUNT_CONNECTED), 0);
    /* What the guest may say meanwhile. */
    for (unsigned op = OP_REQUEST; op <= OP_ASK + 1; op++) {
        struct packet p;

        fd = call_out(&t, STREAM, 1000, 80);
        guest_says(&t, STREAM, op, 1000, 80, NO_SEND);
        if (op == OP_UPDATE || op == OP_ASK) {
            expect_nothing(&t);
            guest_says(&t, STREAM, OP_RST, 1000, 80, 0);
        } else if (op != OP_RST) {
            assert_true(receive_packet(&t, &p));
            assert_int_equal(p.h.op, OP_RST);
        }
        assert_hears(fd, "");
        close(fd);
    }
    expect_no_connection(&t);
    end(&t);
}

static void test_cids(void **state)
{
    static const uint64_t nobody[] = {0, 1, GUEST_CID, UINT32_MAX, UINT64_C(1) << 32 | 2,
                                      UINT64_C(1) << 32 | OTHER, UINT64_MAX};
    struct test t;

    (void)state;
    start_with(&t, with_guests);
    for (unsigned i = 0; i < ARRAY_SIZE(nobody); i++) {
        struct virtio_vsock_hdr h = header(&t, STREAM, OP_REQUEST, 1000, 80, 0, 0);
        struct ring_used used;
        const struct virtio_vsock_hdr *reply;

        h.dst_cid = nobody[i];
        post_tx(&t, &h, NULL, 0);
        machine_settle(t.m);
        assert_true(ring_get(&t.driver.rings[QUEUE_RX], &used));
        reply = fake_ram(t.m->fake, t.rx.addr + ((uintptr_t)used.token - 1) * RX_LEN, sizeof(*reply));
        assert_int_equal(reply->op, OP_RST);
        assert_int_equal(reply->src_cid, nobody[i]);
    }
    assert_int_equal(asked.n, 0);
    expect_no_connection(&t);
    end(&t);
}

static void test_call_in(void **state)
{
    struct test t;
    struct packet *p;
    int fd, second;

    (void)state;
    start_with(&t, with_guests);
    t.peer = OTHER;
    fd = call_in(&t, STREAM, 5000, 22);
    p = expect_packet(&t, OP_REQUEST, 5000, 22); /* its own port, not one of ours */
    assert_int_equal(p->h.type, STREAM);
    assert_null(host_hears(fd));
    guest_says(&t, STREAM, OP_RESPONSE, 22, 5000, 0);
    assert_hears(fd, "OK 5000\n");
    host_says(fd, "hello");
    assert_memory_equal(expect_packet(&t, OP_RW, 5000, 22)->data, "hello", 5);
    guest_sends(&t, STREAM, 22, 5000, "hello yourself", 14, 0);
    assert_hears(fd, "hello yourself");
    /* The same ports again: it cannot be. */
    second = call_in(&t, STREAM, 5000, 22);
    expect_nothing(&t);
    assert_hears(second, "");
    close(second);
    close(fd);
    expect_packet(&t, OP_SHUTDOWN, 5000, 22);
    guest_says(&t, STREAM, OP_RST, 22, 5000, 0);
    expect_no_connection(&t);
    /* The guest refuses. */
    fd = call_in(&t, MESSAGE, 5001, 22);
    expect_packet(&t, OP_REQUEST, 5001, 22);
    guest_says(&t, MESSAGE, OP_RST, 22, 5001, 0);
    assert_hears(fd, "");
    close(fd);
    /* The caller is gone before anybody looked. */
    close(call_in(&t, STREAM, 5002, 22));
    expect_nothing(&t);
    assert_int_equal(counter(&t, COUNT_PEER_CALLS), 4);
    assert_int_equal(counter(&t, COUNT_REJECTED), 3);
    assert_int_equal(counter(&t, COUNT_CONNECTED), 1);
    assert_int_equal(vs_of(&t)->n_peer_calls, 0);
    expect_no_connection(&t);
    end(&t);
}

/* Another guest cannot take all connections: the host can still call. */
static void test_row_26_calls_of_guests(void **state)
{
    static const char *const presets[] = {"guest-to-guest=yes", "connections=4", NULL};
    struct test t;
    int fd[4], host;
    uint32_t port;

    (void)state;
    start_with(&t, presets);
    t.peer = OTHER;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 2; i++) {
            fd[i] = call_in(&t, STREAM, 5000 + i, 22);
            expect_packet(&t, OP_REQUEST, 5000 + i, 22);
        }
        for (unsigned i = 2; i < 4; i++) {
            fd[i] = call_in(&t, STREAM, 5000 + i, 22);
            expect_nothing(&t);
            assert_hears(fd[i], "");
        }
        t.peer = VSOCK_HOST_CID;
        host = host_call(&t, STREAM, 22, &port);
        guest_says(&t, STREAM, OP_RST, 22, port, 0);
        close(host);
        t.peer = OTHER;
        for (unsigned i = 0; i < 2; i++)
            guest_says(&t, STREAM, OP_RST, 22, 5000 + i, 0);
        for (unsigned i = 0; i < 4; i++)
            close(fd[i]);
        expect_no_connection(&t);
    }
    end(&t);
}

/* A reset by the driver ends connections and not the channel. */
static void test_row_14_reset(void **state)
{
    struct test t;
    int out, in, late;

    (void)state;
    start_with(&t, with_guests);
    t.peer = OTHER;
    out = call_out(&t, STREAM, 1000, 80);
    in = call_in(&t, STREAM, 5000, 22);
    expect_packet(&t, OP_REQUEST, 5000, 22);
    machine_write32(t.m, VIRTIO_MMIO_STATUS, 0);
    machine_settle(t.m);
    assert_hears(out, "");
    assert_hears(in, "");
    late = call_in(&t, STREAM, 5001, 22);
    machine_settle(t.m);
    assert_null(host_hears(late)); /* waits for a driver */
    close(out);
    close(in);
    assert_int_equal(vs_of(&t)->n_peer_calls, 0);
    driver_restart(&t.driver);
    t.rx_out = 0;
    rig_post_all(&t);
    expect_packet(&t, OP_REQUEST, 5001, 22);
    guest_says(&t, STREAM, OP_RESPONSE, 22, 5001, 0);
    assert_hears(late, "OK 5001\n");
    close(late);
    expect_packet(&t, OP_SHUTDOWN, 5001, 22);
    end(&t);
}

static void test_channel_ends(void **state)
{
    struct vsock_call call = {.from_cid = OTHER};
    struct test t;
    uint32_t port;

    (void)state;
    start_with(&t, with_guests);
    /* What the supervisor never sends. */
    assert_int_equal(send(t.channel, &call, sizeof(call), MSG_NOSIGNAL), sizeof(call));
    assert_int_equal(send(t.channel, "x", 1, MSG_NOSIGNAL), 1);
    expect_nothing(&t);
    close(t.channel);
    t.channel = -1;
    expect_nothing(&t);
    close(host_call(&t, STREAM, 22, &port));
    expect_packet(&t, OP_SHUTDOWN, port, 22);
    guest_says(&t, STREAM, OP_RST, 22, port, 0);
    t.peer = OTHER;
    guest_says(&t, STREAM, OP_REQUEST, 1000, 80, 0);
    expect_packet(&t, OP_RST, 80, 1000);
    expect_no_connection(&t);
    end(&t);
}

/* ---- the supervisor's side ---- */

#define GUESTS 4u

static struct {
    struct guest_identity guest;
    struct device_config config;
} hosts[GUESTS];

static int open_guest(unsigned i, const char *guests, const char *cid, char *error)
{
    const struct device_type *type = device_type_by_id(19);
    char value[128];
    const char *presets[] = {value, cid, NULL};
    int ret;

    memset(&hosts[i], 0, sizeof(hosts[i]));
    hosts[i].guest.domid = i + 1;
    snprintf(hosts[i].guest.name, sizeof(hosts[i].guest.name), "guest%u", i);
    strcpy(hosts[i].guest.run_dir, "/tmp/test_vsock_run.XXXXXX");
    assert_non_null(mkdtemp(hosts[i].guest.run_dir));
    strcpy(hosts[i].config.name, "vsock0");
    hosts[i].config.virtio_id = 19;
    hosts[i].config.guest = &hosts[i].guest;
    snprintf(value, sizeof(value), "guest-to-guest=%s", guests);
    ret = device_config_fill(&hosts[i].config, type, NULL, presets, error, CONFIG_ERROR_LEN);
    return ret < 0 ? ret : type->open(&hosts[i].config, error, CONFIG_ERROR_LEN);
}

static void close_guest(unsigned i)
{
    char path[160];

    if (hosts[i].config.n_values > 0) /* else it was refused before anything was opened */
        device_type_by_id(19)->close(&hosts[i].config);
    device_config_free(&hosts[i].config);
    /* A device that could not be opened is not closed in the supervisor, but leaves its sockets. */
    snprintf(path, sizeof(path), "%s/vsock", hosts[i].guest.run_dir);
    unlink(path);
    assert_int_equal(rmdir(hosts[i].guest.run_dir), 0);
}

static int ask_host(unsigned i, const char *request, int *fd)
{
    char error[CONFIG_ERROR_LEN] = "";
    int fds[DEVICE_FDS_MAX];
    int ret = device_type_by_id(19)->ask(&hosts[i].config, request, fds, error, sizeof(error));

    if (ret < 0)
        assert_string_not_equal(error, "");
    *fd = ret == 1 ? fds[0] : -1;
    return ret;
}

static void test_supervisor_passes_calls(void **state)
{
    char error[CONFIG_ERROR_LEN];
    struct vsock_call call;
    int fd, other;

    (void)state;
    assert_int_equal(open_guest(0, "yes", NULL, error), 0);
    assert_int_equal(hosts[0].config.n_fds, 3);
    assert_non_null(strstr(hosts[0].config.backing, "other guests"));
    assert_int_equal(open_guest(1, "guest2 guest0", "cid=77", error), 0);
    assert_int_equal(ask_host(0, "call 77 80 5000", &fd), 1);
    other = vsock_take_call(hosts[1].config.fds[2], &call);
    assert_true(other >= 0);
    assert_int_equal(call.from_cid, 1001);
    assert_int_equal(call.from_port, 5000);
    assert_int_equal(call.to_port, 80);
    assert_false(call.seqpacket);
    host_says(other, "hello");
    assert_hears(fd, "hello");
    close(fd);
    assert_hears(other, "");
    close(other);
    /* A successor of the worker gets what comes, too. */
    assert_int_equal(ask_host(0, "call-seqpacket 77 80 4294967295", &fd), 1);
    assert_int_equal(device_config_copy_kept(&hosts[1].config), 0);
    assert_int_equal(hosts[1].config.n_fds, 3);
    other = vsock_take_call(hosts[1].config.fds[2], &call);
    assert_true(other >= 0);
    assert_true(call.seqpacket);
    assert_int_equal(call.from_port, UINT32_MAX);
    close(other);
    close(fd);
    assert_int_equal(vsock_take_call(hosts[1].config.fds[2], &call), -EAGAIN);
    /* Nobody takes them: bounded. */
    for (int i = 0;; i++) {
        int ret = ask_host(0, "call 77 80 5000", &fd);

        if (ret == -EAGAIN)
            break;
        assert_int_equal(ret, 1);
        close(fd);
        assert_true(i < 5000);
    }
    /* It ends. */
    close_guest(1);
    assert_int_equal(ask_host(0, "call 77 80 5000", &fd), -ECONNREFUSED);
    close_guest(0);
}

static void test_supervisor_permits(void **state)
{
    static const char *const requests[] = {"call 1002 80", "call 1002 80 5000 1", "call -1 x y",
                                           "call 1002 80 ../x", "calls 1002 80 5000", "call", ""};
    /* Guests 0 to 3; 3 has not said that it wants anybody. */
    static const char *const lists[GUESTS] = {"yes", "guest0 guest3", "guest1 guest00", "no"};
    static const bool may[GUESTS][GUESTS] = {{false, true, false, false}, {true}};
    char error[CONFIG_ERROR_LEN], request[64];
    int fd;

    (void)state;
    for (unsigned i = 0; i < GUESTS; i++)
        assert_int_equal(open_guest(i, lists[i], NULL, error), 0);
    assert_int_equal(hosts[3].config.n_fds, 2);
    for (unsigned i = 0; i < GUESTS; i++)
        for (unsigned k = 0; k < GUESTS; k++) {
            snprintf(request, sizeof(request), "call %u 80 5000", 1001 + k);
            assert_int_equal(ask_host(i, request, &fd), may[i][k] ? 1 : -ECONNREFUSED);
            if (fd >= 0)
                close(fd);
        }
    for (unsigned i = 0; i < ARRAY_SIZE(requests); i++)
        assert_int_equal(ask_host(0, requests[i], &fd), -EINVAL);
    close_guest(3);
    /* Two of one CID: nobody would know who is meant. */
    assert_int_equal(open_guest(3, "yes", "cid=1001", error), -EADDRINUSE);
    assert_non_null(strstr(error, "guest0"));
    assert_int_equal(hosts[3].config.n_fds, 0);
    close_guest(3);
    assert_int_equal(open_guest(3, "true", NULL, error), -EINVAL);
    assert_non_null(strstr(error, "names of guests"));
    for (unsigned i = 0; i < GUESTS; i++)
        close_guest(i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_call_out),
        cmocka_unit_test(test_call_out_refused),
        cmocka_unit_test(test_cids),
        cmocka_unit_test(test_call_in),
        cmocka_unit_test(test_row_26_calls_of_guests),
        cmocka_unit_test(test_row_14_reset),
        cmocka_unit_test(test_channel_ends),
        cmocka_unit_test(test_supervisor_passes_calls),
        cmocka_unit_test(test_supervisor_permits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
