/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Supervisors as they are, one after the other, with a xenstore of the test's (fake_store.h) and workers
 * that only listen: this program itself, which a supervisor starts as it starts workers. What a worker
 * hears is in a log, with its process number.
 */
#include "unit.h"
#include "fake_store.h"

#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "device_state.h"
#include "log.h"
#include "message.h"
#include "supervisor_internal.h"
#include "supervisor_record.h"

#ifndef BOUND_S
#define BOUND_S 60 /* for something to happen; no test waits as long unless it fails */
#endif
#define NET 1u
#define RNG 4u
#define CONSOLE 3u
#define BLOCK 2u

static char folder[] = "/tmp/viod-test-sup.XXXXXX";
static pid_t supervisor;
static bool has_tap;

/* ---- the other programs that this one is ---- */

static void write_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void write_log(const char *format, ...)
{
    char line[9000], path[128];
    va_list args;
    int n = snprintf(line, sizeof(line), "%d ", (int)getpid()), fd;

    va_start(args, format);
    n += vsnprintf(line + n, sizeof(line) - (size_t)n, format, args);
    va_end(args);
    snprintf(path, sizeof(path), "%s/log", getenv("VIOD_TEST_FOLDER"));
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || write(fd, line, (size_t)n) != n)
        abort();
    close(fd);
}

static void say_text(uint32_t type, uint32_t slot, int32_t status, const char *text)
{
    static struct message message;

    message_set(&message, (enum message_type)type, slot, text);
    message.status = status;
    (void)message_send(3, &message);
}

static void say(uint32_t type, uint32_t slot, int32_t status) { say_text(type, slot, status, NULL); }

/* What no worker does. */
static void give(void)
{
    static struct message message;

    message_set(&message, MESSAGE_ADDED, 0, NULL);
    message.fds[0] = STDERR_FILENO;
    message.n_fds = 1;
    write_log("gave\n");
    (void)message_send(3, &message);
}

/* It is dead when the supervisor hears that it is ready. */
static void die_ready(void)
{
    pid_t listener = getppid(), self = getpid();

    kill(listener, SIGSTOP);
    say(MESSAGE_READY, 0, 2);
    if (fork() == 0) {
        close(3);
        while (getppid() == self)
            usleep(1000);
        kill(listener, SIGCONT);
    }
    _exit(EXIT_FAILURE);
}

static int worker(void)
{
    static struct message message;
    struct start_settings settings;
    struct state_file *state;
    char stall[128], die[128];

    snprintf(die, sizeof(die), "%s/die", getenv("VIOD_TEST_FOLDER"));
    snprintf(stall, sizeof(stall), "%s/stall", getenv("VIOD_TEST_FOLDER"));
    if (message_receive(3, &message) != 1 || message.type != MESSAGE_START || message.n_fds != 2)
        return EXIT_FAILURE;
    memcpy(&settings, message.text, sizeof(settings));
    if (device_state_map(message.fds[1], settings.domid, &state) < 0)
        return EXIT_FAILURE;
    write_log("start %u adopted %#x expected %#x claimed %#x\n", settings.domid, settings.adopted,
              settings.expected, settings.claimed);
    while (access(stall, F_OK) == 0)
        usleep(2000);
    if (unlink(die) == 0)
        die_ready();
    say(MESSAGE_READY, 0, 2);
    while (message_receive(3, &message) == 1) {
        if (message.type == MESSAGE_ADD) {
            for (char *c = message.text; *c != '\0'; c++)
                if (*c == '\n')
                    *c = ' ';
            write_log("add %u fds %u %s\n", message.slot, message.n_fds, message.text);
            if (strstr(message.text, "max-bytes=666") != NULL)
                say_text(MESSAGE_ADD_FAILED, message.slot, -EINVAL, "red \033[31m\nok\x7f");
            else if (strstr(message.text, "max-bytes=667") != NULL)
                close(3); /* and it lives on */
            else if (strstr(message.text, "max-bytes=669") != NULL)
                return EXIT_FAILURE;
            else if (strstr(message.text, "max-bytes=668") != NULL)
                give();
            else
                say(MESSAGE_ADDED, message.slot, 0);
        } else if (message.type == MESSAGE_REMOVE) {
            say(MESSAGE_REMOVED, message.slot, 0);
        } else if (message.type == MESSAGE_TAKE || message.type == MESSAGE_YIELD) {
            write_log("%s %u\n", message.type == MESSAGE_TAKE ? "take" : "yield", message.slot);
        } else if (message.type == MESSAGE_QUIT) {
            return EXIT_SUCCESS;
        }
        /* Of a block device: the lock goes on with the descriptor, as with a real worker. */
        if (message.type != MESSAGE_ADD)
            message_close_fds(&message);
    }
    write_log("alone\n");
    for (;;)
        pause();
}

static struct daemon_config daemon_config(void)
{
    static char config_dir[64], run_dir[64];

    snprintf(config_dir, sizeof(config_dir), "%s/etc", getenv("VIOD_TEST_FOLDER"));
    snprintf(run_dir, sizeof(run_dir), "%s/run", getenv("VIOD_TEST_FOLDER"));
    return (struct daemon_config){.config_dir = config_dir,
                                  .run_dir = run_dir,
                                  .log_level = LOG_LEVEL_ERROR,
                                  .worker_uid_base = 100000};
}

/* ---- the test's side ---- */

#define wait_until(condition)                                                                      \
    do {                                                                                           \
        time_t end_ = time(NULL) + BOUND_S;                                                        \
                                                                                                   \
        while (!(condition)) {                                                                     \
            if (time(NULL) >= end_)                                                                \
                fail_msg("waited in vain for: %s", #condition);                                    \
            usleep(2000);                                                                          \
        }                                                                                          \
    } while (0)

static char *path_of(const char *name)
{
    static char paths[4][160];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static void write_file(const char *name, const char *text)
{
    FILE *f = fopen(path_of(name), "we");

    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* What viodctl gets. NULL: no answer. Static. */
static const char *ask(const char *line)
{
    static char answer[16384];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t used = 0;
    ssize_t n;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/run/viod.sock", folder);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        return NULL;
    }
    (void)!write(fd, line, strlen(line));
    while ((n = read(fd, answer + used, sizeof(answer) - 1 - used)) > 0)
        used += (size_t)n;
    close(fd);
    answer[used] = '\0';
    return used > 0 ? answer : NULL;
}

static void start(void)
{
    supervisor = fork();
    assert_true(supervisor >= 0);
    if (supervisor == 0) {
        execl("/proc/self/exe", "test_supervisor", "--supervise", (char *)NULL);
        _exit(127);
    }
    wait_until(ask("version\n") != NULL || waitpid(supervisor, NULL, WNOHANG) != 0);
}

static int end(int signal)
{
    int status;

    kill(supervisor, signal);
    assert_int_equal(waitpid(supervisor, &status, 0), supervisor);
    return status;
}

static bool runs(pid_t pid)
{
    char path[64], text[512] = "";
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    if (f == NULL)
        return false;
    (void)!fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    return strstr(text, ") Z ") == NULL;
}

/* The last line of the log with this text; its process number, or 0. */
static pid_t logged(const char *text, char *line_out, size_t line_len)
{
    char line[9100];
    FILE *f = fopen(path_of("log"), "re");
    pid_t pid = 0;

    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        if (strstr(line, text) != NULL) {
            pid = (pid_t)atoi(line);
            if (line_out != NULL)
                snprintf(line_out, line_len, "%s", line);
        }
    if (f != NULL)
        fclose(f);
    return pid;
}

static pid_t worker_of(uint32_t domid)
{
    char text[32];

    snprintf(text, sizeof(text), " start %u adopted", domid);
    return logged(text, NULL, 0);
}

static void add_domain(uint32_t domid, const char *name, const char *uuid)
{
    store->domains[domid].alive = true;
    snprintf(store->domains[domid].name, sizeof(store->domains[0].name), "%s", name);
    snprintf(store->domains[domid].uuid, sizeof(store->domains[0].uuid), "%s", uuid);
}

static struct store_node *add_node(uint32_t domid, uint32_t devid, uint16_t virtio_id)
{
    struct store_node *n = &store->nodes[store->n_nodes];

    n->node = (struct device_node){.id = {NODE_VIRTIO, domid, devid},
                                   .state = NODE_STATE_INITIALISING,
                                   .online = true,
                                   .virtio_id = virtio_id,
                                   .base = XEN_VIRTIO_MMIO_BASE + devid * XEN_VIRTIO_MMIO_SLOT,
                                   .irq = 33 + devid};
    n->exists = true;
    store->n_nodes++;
    store_changed(n);
    return n;
}

/* libxl's, of a device whose backend is another domain. */
static struct store_note *add_note(uint32_t domid, uint32_t devid, uint32_t backend)
{
    struct store_note *n = &store->notes[store->n_notes];

    n->node = (struct device_node){.id = {NODE_VIRTIO, domid, devid},
                                   .state = NODE_STATE_INITIALISING,
                                   .online = true,
                                   .virtio_id = RNG,
                                   .base = XEN_VIRTIO_MMIO_BASE + devid * XEN_VIRTIO_MMIO_SLOT,
                                   .irq = 33 + devid};
    n->backend = backend;
    n->exists = true;
    store->n_notes++;
    n->changes++;
    (void)!write(store_wake, "", 1);
    return n;
}

static void release(uint32_t domid)
{
    store->domains[domid].alive = false;
    for (unsigned i = 0; i < store->n_nodes; i++)
        if (store->nodes[i].node.id.domid == domid) {
            store->nodes[i].exists = false;
            store_changed(&store->nodes[i]);
        }
    store->releases++;
    (void)!write(store_wake, "", 1);
}

/* A guest with an entropy source, a disk and a console, served. */
static struct store_node *nodes[3];
static void serve_guest(void)
{
    static const uint16_t types[] = {RNG, BLOCK, CONSOLE};
    char text[512];

    snprintf(text, sizeof(text), "[rng0]\nmax-bytes = 1000\n[blk0]\npath = %s\n"
                                 "[console0]\nports = console log\n"
                                 "[console0.log]\nbackend = log\npath = %s\n",
             path_of("image"), path_of("console.log"));
    write_file("etc/g1.conf", text);
    add_domain(5, "g1", "uuid-1");
    for (uint32_t i = 0; i < 3; i++)
        nodes[i] = add_node(5, i, types[i]);
    start();
    for (unsigned i = 0; i < 3; i++)
        wait_until(nodes[i]->node.state == NODE_STATE_INIT_WAIT);
}

static int set_up(void **state)
{
    int fd;

    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/viod-test-sup.XXXXXX");
    if (mkdtemp(folder) == NULL || setenv("VIOD_TEST_FOLDER", folder, 1) < 0 ||
        mkdir(path_of("etc"), 0700) < 0)
        return -1;
    store_attach(folder);
    fd = open(path_of("image"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
        return -1;
    close(fd);
    return 0;
}

static int tear_down(void **state)
{
    char command[96], line[9100];
    FILE *f;

    (void)state;
    if (supervisor > 0) {
        kill(supervisor, SIGKILL);
        waitpid(supervisor, NULL, 0);
    }
    supervisor = 0;
    f = fopen(path_of("log"), "re");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        if (strstr(line, " start ") != NULL && runs(atoi(line)))
            kill(atoi(line), SIGKILL);
    if (f != NULL)
        fclose(f);
    munmap(store, sizeof(*store));
    close(store_wake);
    memset(store_seen, 0, sizeof(store_seen));
    memset(store_seen_notes, 0, sizeof(store_seen_notes));
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static void expect_taken_over(pid_t before, const char *first)
{
    char line[9100];

    wait_until(worker_of(5) != before);
    assert_true(logged(" start 5 ", line, sizeof(line)) > 0);
    assert_non_null(strstr(line, "adopted 0x7 expected 0x7 claimed 0x7ff"));
    wait_until(!runs(before));
    for (unsigned i = 0; i < 3; i++)
        wait_until(strstr(ask("--json\tshow\tg1\n"), "\"state\":\"waiting\"") == NULL &&
                   strstr(ask("--json\tshow\tg1\n"), "\"state\":\"starting\"") == NULL);
    assert_null(strstr(ask("--json\tshow\tg1\n"), "failed"));
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(nodes[i]->node.state, NODE_STATE_INIT_WAIT);
    /* Word for word what its predecessor was told. */
    assert_int_equal(logged(" add 0 ", line, sizeof(line)), worker_of(5));
    if (first != NULL)
        assert_string_equal(strchr(line, ' '), strchr(first, ' '));
}

/* ---- tests ---- */

static void test_workers_outlive_their_supervisor(void **state)
{
    static const int signals[] = {SIGKILL, SIGTERM, SIGINT, SIGKILL};
    char first[9100], link[64] = "";

    (void)state;
    serve_guest();
    assert_true(logged(" add 0 ", first, sizeof(first)) > 0);
    /* What the file says from now on is for the next guest. */
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 7\n");
    for (size_t i = 0; i < 4; i++) {
        pid_t before = worker_of(5);

        end(signals[i]);
        wait_until(logged(" alone", NULL, 0) == before);
        assert_true(runs(before));
        assert_true(access(path_of("run/5/guest.record"), F_OK) == 0);
        start();
        expect_taken_over(before, first);
    }
    assert_true(readlink(path_of("run/5/console"), link, sizeof(link) - 1) > 0);
    assert_int_equal(access(link, R_OK | W_OK), 0);
    assert_true(access(path_of("run/g1/console0.attach"), F_OK) == 0);
}

/* Before its worker was ready: a guest that has not run yet is taken over, too. */
static void test_a_worker_that_starts_is_recorded(void **state)
{
    struct store_node *n;
    pid_t before;

    (void)state;
    write_file("stall", "");
    add_domain(5, "g1", "uuid-1");
    n = add_node(5, 0, RNG);
    start();
    wait_until(worker_of(5) != 0);
    before = worker_of(5);
    end(SIGKILL);
    assert_true(runs(before));
    unlink(path_of("stall"));
    start();
    wait_until(n->node.state == NODE_STATE_INIT_WAIT);
    assert_false(runs(before));
    assert_int_not_equal(worker_of(5), before);
}

/* Told to end in the middle of it, a supervisor does not leave a guest without a worker. */
static void test_a_takeover_is_brought_to_its_end(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    end(SIGKILL);
    for (int i = 0; i < 3; i++) {
        before = worker_of(5);
        start();
        end(SIGTERM);
        assert_int_not_equal(worker_of(5), before);
        assert_true(runs(worker_of(5)));
        assert_false(runs(before));
    }
    before = worker_of(5);
    start();
    expect_taken_over(before, NULL);
}

static void test_a_worker_that_died_meanwhile_has_a_successor(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    before = worker_of(5);
    end(SIGKILL);
    kill(before, SIGKILL);
    wait_until(!runs(before));
    start();
    expect_taken_over(before, NULL);
}

/* An interface that nobody has open is no more, and with it its place on a bridge and its addresses. */
static void test_an_interface_stays(void **state)
{
    char first[9100], line[9100];
    struct store_node *n;
    unsigned index;

    (void)state;
    if (!has_tap)
        skip();
    write_file("etc/g1.conf", "[net0]\nqueues = 2\n");
    add_domain(5, "g1", "uuid-1");
    n = add_node(5, 0, NET);
    start();
    wait_until(n->node.state == NODE_STATE_INIT_WAIT);
    index = if_nametoindex("viod5.0");
    assert_int_not_equal(index, 0);
    for (int i = 0; i < 2; i++) {
        pid_t before = worker_of(5);

        logged(" add 0 ", first, sizeof(first));
        end(SIGKILL);
        start();
        wait_until(logged(" add 0 ", line, sizeof(line)) != before);
        assert_false(runs(before));
        assert_string_equal(strchr(line, ' '), strchr(first, ' ')); /* its address, too */
        assert_int_equal(if_nametoindex("viod5.0"), index);
    }
    assert_string_equal(ask("stop\n"), "ok\n");
    waitpid(supervisor, NULL, 0);
    supervisor = 0;
    assert_int_equal(if_nametoindex("viod5.0"), 0);
}

static void test_stop_takes_the_devices_away(void **state)
{
    int status;

    (void)state;
    serve_guest();
    assert_string_equal(ask("stop\n"), "ok\n");
    assert_int_equal(waitpid(supervisor, &status, 0), supervisor);
    supervisor = 0;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_false(runs(worker_of(5)));
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(nodes[i]->node.state, NODE_STATE_CLOSED);
    assert_int_not_equal(access(path_of("run/5"), F_OK), 0);
}

static void test_guests_come_and_go_meanwhile(void **state)
{
    struct store_node *other, *new;
    pid_t gone, stays;

    (void)state;
    serve_guest();
    add_domain(6, "g2", "uuid-2");
    other = add_node(6, 0, RNG);
    wait_until(other->node.state == NODE_STATE_INIT_WAIT);
    stays = worker_of(5);
    gone = worker_of(6);
    end(SIGKILL);
    release(6);
    add_domain(7, "g3", "uuid-3");
    new = add_node(7, 0, RNG);
    nodes[2]->node.state = NODE_STATE_CLOSING; /* one device of a guest that lives */
    nodes[2]->node.online = false;
    mkdir(path_of("run/99"), 0700);
    start();
    wait_until(!runs(gone));
    wait_until(new->node.state == NODE_STATE_INIT_WAIT);
    wait_until(nodes[2]->node.state == NODE_STATE_CLOSED);
    wait_until(worker_of(5) != stays);
    wait_until(logged(" start 5 adopted 0x3 expected 0x3 claimed 0x7ff", NULL, 0) == worker_of(5));
    assert_int_not_equal(access(path_of("run/6"), F_OK), 0);
    assert_int_not_equal(access(path_of("run/99"), F_OK), 0);
    release(5);
    wait_until(!runs(worker_of(5)));
    wait_until(access(path_of("run/5"), F_OK) != 0);
}

/* The same number, but another guest: nothing of the old one is for it. */
static void test_a_domid_is_used_again(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    before = worker_of(5);
    end(SIGKILL);
    add_domain(5, "another", "uuid-9");
    for (unsigned i = 0; i < 3; i++)
        nodes[i]->exists = false;
    nodes[0] = add_node(5, 0, RNG);
    start();
    wait_until(nodes[0]->node.state == NODE_STATE_INIT_WAIT);
    wait_until(!runs(before));
    assert_true(logged(" start 5 adopted 0 ", NULL, 0) == worker_of(5));
    assert_int_not_equal(worker_of(5), before);
    assert_int_not_equal(access(path_of("run/g1"), F_OK), 0);
}

static void patch(const char *name, off_t at, uint8_t byte)
{
    int fd = open(path_of(name), O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Of the record itself, or what that says of the state. */
static void set_version(bool of_state, uint32_t version)
{
    struct guest_record record;

    if (!of_state) {
        patch("run/5/guest.record", 8, (uint8_t)version);
        return;
    }
    assert_int_equal(record_read(path_of("run/5"), &record), 0);
    record.state_version = version;
    assert_int_equal(record_write(path_of("run/5"), &record), 0);
    record_free(&record);
}

static void test_another_version_is_refused(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    before = worker_of(5);
    for (int i = 0; i < 2; i++) {
        int status;

        end(SIGTERM);
        set_version(i == 1, 99);
        supervisor = fork();
        if (supervisor == 0) {
            execl("/proc/self/exe", "test_supervisor", "--supervise", (char *)NULL);
            _exit(127);
        }
        assert_int_equal(waitpid(supervisor, &status, 0), supervisor);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_EXIT_STATE);
        assert_true(runs(before));
        assert_int_equal(nodes[0]->node.state, NODE_STATE_INIT_WAIT);
        set_version(i == 1, i == 1 ? DEVICE_STATE_VERSION : RECORD_VERSION);
        start();
        expect_taken_over(before, NULL);
        before = worker_of(5);
    }
}

static void test_what_is_damaged_is_left_alone(void **state)
{
    struct store_node *other;
    pid_t before, taken;

    (void)state;
    serve_guest();
    add_domain(6, "g2", "uuid-2");
    other = add_node(6, 0, RNG);
    wait_until(other->node.state == NODE_STATE_INIT_WAIT);
    before = worker_of(5);
    taken = worker_of(6);
    end(SIGKILL);
    patch("run/5/guest.record", 100, 0xff);
    start();
    wait_until(worker_of(6) != taken);
    wait_until(!runs(taken));
    assert_true(runs(before));
    assert_int_equal(nodes[0]->node.state, NODE_STATE_INIT_WAIT);
    assert_non_null(strstr(ask("show\tg1\n"), "is damaged"));
    release(5);
    wait_until(access(path_of("run/5"), F_OK) != 0);
    kill(before, SIGKILL);
}

/* Of a guest that lives, for all that is known: nothing of it ends. */
static void test_a_guest_that_is_not_known_is_left_alone(void **state)
{
    struct guest_record record;
    pid_t before;

    (void)state;
    serve_guest();
    before = worker_of(5);
    for (int i = 0; i < 3; i++) {
        end(SIGKILL);
        if (i == 0)
            store->uuid_error = -EIO;
        else if (i == 1)
            nodes[1]->read_error = -EAGAIN;
        else {
            assert_int_equal(record_read(path_of("run/5"), &record), 0);
            record.uuid[0] = '\0'; /* as if it could not be read then */
            assert_int_equal(record_write(path_of("run/5"), &record), 0);
        }
        start();
        assert_non_null(strstr(ask("show\tg1\n"), i == 1 ? "cannot be read" : "is not known"));
        assert_int_equal(worker_of(5), before);
        assert_true(runs(before));
        for (unsigned k = 0; k < 3; k++)
            assert_int_equal(nodes[k]->node.state, NODE_STATE_INIT_WAIT);
        /* The next one knows more. */
        end(SIGTERM);
        store->uuid_error = nodes[1]->read_error = 0;
        if (i == 2) {
            snprintf(record.uuid, sizeof(record.uuid), "uuid-1");
            assert_int_equal(record_write(path_of("run/5"), &record), 0);
            record_free(&record);
        }
        start();
        expect_taken_over(before, NULL);
        before = worker_of(5);
    }
}

/* Where the path of an image leads to another one now, what the guest writes does not go. */
static void test_another_image_is_left_alone(void **state)
{
    char image[128], aside[128];
    pid_t before;
    int fd;

    (void)state;
    serve_guest();
    snprintf(image, sizeof(image), "%s", path_of("image"));
    snprintf(aside, sizeof(aside), "%s", path_of("aside"));
    before = worker_of(5);
    for (unsigned gone = 0; gone < 2; gone++) {
        assert_int_equal(rename(image, aside), 0);
        if (!gone) {
            fd = open(image, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
            assert_true(fd >= 0 && ftruncate(fd, 1 << 20) == 0);
            close(fd);
        }
        assert_non_null(strstr(ask("upgrade\n"), gone ? "there is no such image" : "this is another image"));
        end(SIGKILL);
        start();
        assert_non_null(strstr(ask("show\tg1\n"), gone ? "there is no such image" : "this is another image"));
        assert_true(runs(before));
        assert_int_equal(worker_of(5), before);
        assert_int_equal(nodes[1]->node.state, NODE_STATE_INIT_WAIT);
        end(SIGKILL);
        assert_int_equal(rename(aside, image), 0);
        start();
        expect_taken_over(before, NULL);
        before = worker_of(5);
    }
    /* Left alone until the guest has ended: else it would hold the image and the guest's memory for ever. */
    assert_int_equal(rename(image, aside), 0);
    end(SIGKILL);
    start();
    assert_true(runs(before));
    release(5);
    wait_until(!runs(before));
    assert_int_equal(rename(aside, image), 0);
    end(SIGKILL);
    serve_guest();
    before = worker_of(5);
    /* A worker that lives no more cannot be left alone: its disk is given up, and the rest goes on. */
    assert_int_equal(rename(image, aside), 0);
    end(SIGKILL);
    kill(before, SIGKILL);
    wait_until(!runs(before));
    start();
    wait_until(worker_of(5) != before);
    wait_until(nodes[1]->node.state == NODE_STATE_CLOSED);
    wait_until(strstr(ask("show\tg1\n"), "there is no such image") != NULL);
    assert_int_equal(nodes[0]->node.state, NODE_STATE_INIT_WAIT);
}

/* A successor gets a connection that has ended, and asks for another: the guest goes on without it. */
static void test_a_connection_that_is_gone(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct store_node *n;
    char text[256];
    pid_t before;

    (void)state;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path_of("passt"));
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 9), 0);
    snprintf(text, sizeof(text), "[net0]\nbackend = passt\nsocket = %s\n", address.sun_path);
    write_file("etc/g1.conf", text);
    add_domain(5, "g1", "uuid-1");
    n = add_node(5, 0, NET);
    start();
    wait_until(n->node.state == NODE_STATE_INIT_WAIT);
    close(listener);
    unlink(address.sun_path);
    for (unsigned i = 0; i < 2; i++) {
        before = worker_of(5);
        if (i > 0) {
            end(SIGKILL);
            start();
        } else {
            kill(before, SIGKILL);
        }
        wait_until(worker_of(5) != before);
        wait_until(logged(" add 0 ", NULL, 0) == worker_of(5));
        wait_until(strstr(ask("--json\tshow\tg1\n"), "\"state\":\"ready\"") != NULL);
        assert_int_equal(n->node.state, NODE_STATE_INIT_WAIT);
    }
}

/* A worker can write all of its state file, and must not keep the next supervisor from all guests. */
static void test_the_head_of_a_state_is_not_believed(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    for (off_t at = 0; at < (off_t)sizeof(struct state_header); at += 7) {
        before = worker_of(5);
        patch("run/5/state", at, 0x99);
        if (at % 2 == 0)
            kill(before, SIGKILL);
        else
            end(SIGKILL);
        if (at % 2 != 0)
            start();
        expect_taken_over(before, NULL);
    }
}

/* Killed when it has said that it is ready, and before it is given its devices: its successor gets them. */
static void test_a_worker_that_dies_ready(void **state)
{
    pid_t before;

    (void)state;
    serve_guest();
    before = worker_of(5);
    write_file("die", "");
    kill(before, SIGKILL);
    wait_until(access(path_of("die"), F_OK) != 0);
    expect_taken_over(before, NULL);
}

static void test_upgrade(void **state)
{
    char request[128], own[128] = "";
    pid_t before;

    (void)state;
    serve_guest();
    assert_true(readlink("/proc/self/exe", own, sizeof(own) - 1) > 0);
    for (int i = 0; i < 3; i++) {
        before = worker_of(5);
        if (i == 0)
            snprintf(request, sizeof(request), "upgrade\n");
        else
            snprintf(request, sizeof(request), "upgrade\t%s\n", own);
        assert_string_equal(ask(request), "ok\nviod of a test takes over\n");
        expect_taken_over(before, NULL);
        assert_int_equal(waitpid(supervisor, NULL, WNOHANG), 0); /* the same process */
    }
    before = worker_of(5);
    assert_non_null(strstr(ask("upgrade\t/no/such/viod\n"), "error /no/such/viod: No such file"));
    assert_non_null(strstr(ask("upgrade\tviod\n"), "error \"viod\" is not the absolute path"));
    assert_non_null(strstr(ask("upgrade\t/bin/false\n"), "error /bin/false ended with status 1"));
    set_version(true, 99);
    assert_non_null(strstr(ask("upgrade\n"), "state is of another version"));
    set_version(true, DEVICE_STATE_VERSION);
    assert_int_equal(waitpid(supervisor, NULL, WNOHANG), 0);
    assert_int_equal(worker_of(5), before);
    assert_true(runs(before));
}

/* It is told to stop while another program is asked whether it can take over: that is not forgotten. */
static void test_no_upgrade_while_stopping(void **state)
{
    char text[600], request[200];
    pid_t client, worker;
    int status;

    (void)state;
    serve_guest();
    snprintf(text, sizeof(text),
             "#!/bin/sh\n[ \"$2\" = --check-state ] || exit 7\ntouch %s\n"
             "while [ ! -e %s ]; do sleep 0.01; done\necho slow\n",
             path_of("asked"), path_of("answer"));
    write_file("program", text);
    assert_int_equal(chmod(path_of("program"), 0700), 0);
    worker = worker_of(5);
    kill(worker, SIGSTOP); /* so that it takes a while */
    client = fork();
    if (client == 0) {
        snprintf(request, sizeof(request), "upgrade\t%s\n", path_of("program"));
        _exit(strcmp(ask(request), "error viod is stopping\n") != 0);
    }
    wait_until(access(path_of("asked"), F_OK) == 0);
    assert_string_equal(ask("stop\n"), "ok\n");
    write_file("answer", "");
    assert_int_equal(waitpid(client, &status, 0), client);
    assert_int_equal(status, 0);
    kill(worker, SIGCONT);
    assert_int_equal(waitpid(supervisor, &status, 0), supervisor);
    supervisor = 0;
    assert_int_equal(status, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(nodes[i]->node.state, NODE_STATE_CLOSED);
}

/* Whatever is wrong with a node, or with xenstore. */
static void test_a_node_that_cannot_be_read_is_served_on(void **state)
{
    static const int errors[] = {-EAGAIN, -EIO, -ENOMEM};

    (void)state;
    serve_guest();
    for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
        nodes[1]->read_error = errors[i];
        store_changed(nodes[1]);
        for (int k = 0; k < 2; k++) /* it has been looked at when the second question is answered */
            assert_non_null(strstr(ask("show\tg1\tblk0\n"), "blk0: blk, ready"));
        assert_int_equal(nodes[1]->node.state, NODE_STATE_INIT_WAIT);
    }
    nodes[1]->read_error = 0;
    snprintf(nodes[1]->wrong, sizeof(nodes[1]->wrong), "irq is \"many\": expected a number");
    store_changed(nodes[1]);
    for (int k = 0; k < 2; k++)
        assert_non_null(strstr(ask("show\tg1\tblk0\n"), "blk0: blk, ready"));
    nodes[1]->node.state = NODE_STATE_CLOSING;
    store_changed(nodes[1]);
    wait_until(nodes[1]->node.state == NODE_STATE_CLOSED);
    assert_non_null(strstr(ask("show\tg1\tblk0\n"), "blk0: blk, closed"));
}

/* Whoever looks sees it, the guest's accesses are answered, and it ends when it is to end. */
static void test_a_node_that_is_wrong(void **state)
{
    static const char why[] = "type is \"virtio,devic4\": expected a type";
    struct store_node *n, *other;

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 1000\n");
    add_domain(5, "g1", "uuid-1");
    n = add_node(5, 3, RNG);
    other = add_node(5, 4, RNG);
    strcpy(n->wrong, why);
    strcpy(other->wrong, why);
    other->node.state = NODE_STATE_CLOSING;
    start();
    wait_until(logged(" start 5 adopted 0 expected 0 claimed 0x7ff", NULL, 0) != 0);
    wait_until(strstr(n->error, why) != NULL);
    assert_non_null(strstr(ask("list\n"), "virtio-3   ?      failed"));
    assert_non_null(strstr(ask("list\n"), why));
    wait_until(other->node.state == NODE_STATE_CLOSED);
    /* It may become right. */
    n->wrong[0] = '\0';
    store_changed(n);
    wait_until(n->node.state == NODE_STATE_INIT_WAIT);
    assert_non_null(strstr(ask("list\n"), "rng0       rng    ready"));
    assert_null(strstr(ask("list\n"), "virtio-3"));
    /* Another one that does not. */
    add_domain(6, "g2", "uuid-2");
    n = add_node(6, 0, RNG);
    strcpy(n->wrong, why);
    store_changed(n);
    wait_until(worker_of(6) != 0);
    n->node.state = NODE_STATE_CLOSING;
    store_changed(n);
    wait_until(n->node.state == NODE_STATE_CLOSED);
}

/* xl block-detach and block-attach: what is gone hides nothing of what is there. */
static void test_a_device_comes_and_goes(void **state)
{
    struct store_node *n;

    (void)state;
    serve_guest();
    n = nodes[0];
    for (unsigned i = 0; i < 4; i++) {
        n->node.state = NODE_STATE_CLOSING;
        store_changed(n);
        wait_until(n->node.state == NODE_STATE_CLOSED);
        n->exists = false;
        store_changed(n);
        assert_non_null(strstr(ask("show\tg1\trng0\n"), "rng0: rng, closed"));
        n->node.base = XEN_VIRTIO_MMIO_BASE + (5 + i) * XEN_VIRTIO_MMIO_SLOT;
        n->node.state = NODE_STATE_INITIALISING;
        n->exists = true;
        store_changed(n);
        wait_until(n->node.state == NODE_STATE_INIT_WAIT);
        store_changed(n);
        assert_non_null(strstr(ask("list\n"), "rng0       rng    ready"));
        assert_non_null(strstr(ask("show\tg1\trng0\n"), "rng0: rng, ready"));
        assert_null(strstr(ask("show\tg1\n"), "rng0: rng, closed"));
    }
    assert_string_equal(n->error, "");
}

/* As no xl writes them. */
static void test_too_many_nodes(void **state)
{
    struct store_node *n = NULL;

    (void)state;
    write_file("etc/g1.conf", "");
    add_domain(5, "g1", "uuid-1");
    start();
    for (uint32_t i = 0; i < 23; i++) {
        n = add_node(5, i, RNG);
        snprintf(n->wrong, sizeof(n->wrong), "base is wrong");
        store_changed(n);
    }
    wait_until(strstr(n->error, "there is no room for it") != NULL);
    wait_until(worker_of(5) != 0); /* the end of the test knows it by its log */
}

static void test_no_worker_can_be_started(void **state)
{
    struct store_node *n[2];

    (void)state;
    write_file("etc/g1.conf", "");
    assert_int_equal(mkdir(path_of("run"), 0755), 0);
    write_file("run/5", "not a folder");
    add_domain(5, "g1", "uuid-1");
    for (uint32_t i = 0; i < 2; i++)
        n[i] = add_node(5, i, RNG);
    start();
    for (unsigned i = 0; i < 2; i++)
        wait_until(strstr(n[i]->error, "cannot start a worker: ") != NULL);
}

/* A guest whose name cannot be that of a file learns it, and not that a file is missing. */
static void test_names_without_a_file(void **state)
{
    static const struct {
        const char *name, *error;
    } guests[] = {
        {"viod", "the domain's name is viod, and the file of that name is the daemon's own: "},
        {"a/b", "the domain's name contains a slash: "},
        {NULL, "the domain has no name, or one of more than 63 bytes: "},
    };
    struct store_node *n[ARRAY_SIZE(guests)];

    (void)state;
    for (uint32_t i = 0; i < ARRAY_SIZE(guests); i++) {
        if (guests[i].name != NULL)
            add_domain(5 + i, guests[i].name, "uuid");
        n[i] = add_node(5 + i, 0, RNG);
    }
    start();
    for (uint32_t i = 0; i < ARRAY_SIZE(guests); i++)
        wait_until(strncmp(n[i]->error, guests[i].error, strlen(guests[i].error)) == 0);
    for (uint32_t i = 0; i < ARRAY_SIZE(guests); i++)
        wait_until(worker_of(5 + i) != 0); /* the end of the test knows it by its log */
}

/* A worker that was taken over by its guest speaks to logs, terminals and xenstore. */
static void test_what_workers_say_is_printable(void **state)
{
    struct store_node *n;

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 666\n");
    add_domain(5, "g1", "uuid-1");
    n = add_node(5, 0, RNG);
    start();
    wait_until(n->error[0] != '\0');
    assert_string_equal(n->error, "red ?[31m?ok?");
    assert_non_null(strstr(ask("show\tg1\n"), "  problem     red ?[31m?ok?\n"));
}

/* One that cannot be told anything any more is not left to itself. */
static void test_a_worker_that_hangs_up_is_ended(void **state)
{
    pid_t first;

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 667\n");
    add_domain(5, "g1", "uuid-1");
    add_node(5, 0, RNG);
    start();
    wait_until(logged(" alone", NULL, 0) != 0);
    first = logged(" alone", NULL, 0);
    wait_until(!runs(first));
    wait_until(worker_of(5) != first);
    assert_string_equal(ask("stop\n"), "ok\n");
    waitpid(supervisor, NULL, 0);
    supervisor = 0;
}

/* Worker after worker dies of what it serves: one that serves nothing answers the guest's accesses. */
static void test_a_guest_that_is_given_up_is_answered(void **state)
{
    static const char empty[] = " start %d adopted 0 expected 0 claimed 0x7ff";
    struct store_node *n[2], *late;
    char line[64];
    pid_t last[2];

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 669\n");
    write_file("etc/g2.conf", "[rng0]\nmax-bytes = 669\n");
    add_domain(5, "g1", "uuid-1");
    add_domain(6, "g2", "uuid-2");
    for (uint32_t i = 0; i < 2; i++)
        n[i] = add_node(5 + i, 0, RNG);
    start();
    for (int i = 0; i < 2; i++) {
        snprintf(line, sizeof(line), empty, 5 + i);
        wait_until(logged(line, NULL, 0) != 0);
        last[i] = logged(line, NULL, 0);
        assert_true(runs(last[i]));
        assert_int_equal(n[i]->node.state, NODE_STATE_CLOSED);
        assert_string_equal(n[i]->error, "the worker ended with status 1");
    }
    assert_non_null(strstr(ask("show\tg1\n"), "  problem     the worker ended with status 1\n"));
    /* It gets nothing to die of. */
    late = add_node(5, 1, RNG);
    wait_until(late->error[0] != '\0');
    assert_int_equal(late->node.state, NODE_STATE_INITIALISING);
    late->exists = false;
    /* If it dies all the same, it is the last one. */
    kill(last[0], SIGKILL);
    wait_until(strstr(ask("--json\tshow\tg1\n"), "\"pid\":-1") != NULL);
    usleep(300000);
    assert_int_equal(worker_of(5), last[0]);
    release(5);
    wait_until(access(path_of("run/5"), F_OK) != 0);
    /* Nor does it end with its supervisor. */
    end(SIGKILL);
    start();
    wait_until(worker_of(6) != last[1]);
    assert_int_equal(logged(line, NULL, 0), worker_of(6));
    wait_until(!runs(last[1]));
    release(6);
    wait_until(!runs(worker_of(6)));
}

/* Nor one that sends descriptors: to close them might keep the supervisor from its work. */
static void test_a_worker_that_gives_is_ended(void **state)
{
    pid_t first;

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 668\n");
    add_domain(5, "g1", "uuid-1");
    add_node(5, 0, RNG);
    start();
    wait_until(logged(" gave", NULL, 0) != 0);
    first = logged(" gave", NULL, 0);
    wait_until(!runs(first));
    assert_string_equal(ask("stop\n"), "ok\n");
    waitpid(supervisor, NULL, 0);
    supervisor = 0;
}

/* Counters of many guests are more than a socket holds. */
static void test_a_long_answer_is_whole(void **state)
{
    static char sent[1 << 20], got[sizeof(sent) + 16];
    struct client client = {.fd = -1};
    size_t used = 0;
    int ends[2];

    (void)state;
    memset(sent, 'x', sizeof(sent));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    client.fd = ends[0];
    control_reply(&client, NULL, sent, sizeof(sent));
    for (ssize_t n = 1; n != 0;) {
        n = read(ends[1], got + used, sizeof(got) - used);
        if (n > 0)
            used += (size_t)n;
        else if (client.answer != NULL)
            control_write(&client);
    }
    assert_int_equal(client.fd, -1);
    assert_int_equal(used, 3 + sizeof(sent));
    assert_memory_equal(got, "ok\n", 3);
    assert_memory_equal(got + 3, sent, sizeof(sent));
    close(ends[1]);
    /* One that is gone is hung up on. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    client.fd = ends[0];
    close(ends[1]);
    control_reply(&client, NULL, sent, sizeof(sent));
    assert_int_equal(client.fd, -1);
    assert_null(client.answer);
}

/* The driver domain ended while no viod ran: its slots are answered for all the same. */
static void test_a_driver_domain_that_ended_before(void **state)
{
    struct store_note *n;

    (void)state;
    write_file("etc/g1.conf", "");
    add_domain(5, "g1", "uuid-1");
    add_domain(6, "g2", "uuid-2");
    add_note(5, 2, 8);
    n = add_note(6, 2, 9);
    add_note(7, 2, 8); /* of a guest that is gone, too */
    add_domain(9, "driver", "uuid-9");
    write_file("etc/g2.conf", "");
    start();
    wait_until(logged(" start 5 adopted 0 expected 0 claimed 0x7ff", NULL, 0) != 0);
    wait_until(n->published == 1);
    assert_int_equal(worker_of(6), 0); /* its driver domain lives */
    assert_int_equal(worker_of(7), 0);
    /* A new instance: the guest's new device is the new one's. */
    add_domain(10, "driver", "uuid-10");
    store->notes[0].exists = false;
    n = add_note(5, 2, 10);
    wait_until(n->published == 1);
    wait_until(logged(" yield 2", NULL, 0) == worker_of(5));
    assert_int_equal(logged(" take ", NULL, 0), 0);
}

/* It ends before viod has heard of its devices. */
static void test_a_driver_domain_that_ends_first(void **state)
{
    struct store_note *n;

    (void)state;
    serve_guest();
    add_domain(8, "driver", "uuid-8");
    n = add_note(5, 4, 8);
    wait_until(n->published == 1);
    wait_until(logged(" yield 4", NULL, 0) == worker_of(5));
    kill(supervisor, SIGSTOP);
    add_note(5, 5, 8);
    release(8);
    kill(supervisor, SIGCONT);
    wait_until(logged(" take 4", NULL, 0) == worker_of(5));
    wait_until(logged(" take 5", NULL, 0) == worker_of(5));
    for (int k = 0; k < 2; k++) /* all events have been looked at when the second question is answered */
        assert_non_null(ask("list\n"));
    assert_int_equal(logged(" yield 5", NULL, 0), 0);
    assert_int_equal(runs(worker_of(5)), true);
}

/* It has a name long before it lives: that is no end. */
static void test_a_driver_domain_that_is_being_made(void **state)
{
    (void)state;
    serve_guest();
    add_domain(6, "g2", "uuid-2");
    add_domain(8, "driver", "uuid-8");
    store->domains[8].alive = false;
    store->domains[8].is_made = true;
    add_note(5, 4, 8);
    wait_until(logged(" yield 4", NULL, 0) == worker_of(5));
    store->releases++; /* somebody's */
    add_note(6, 3, 8);
    add_node(6, 0, RNG);
    wait_until(logged(" start 6 adopted 0 expected", NULL, 0) != 0);
    assert_int_equal(logged(" claimed 0x7f7", NULL, 0), worker_of(6));
    for (int k = 0; k < 2; k++)
        assert_non_null(ask("list\n"));
    assert_int_equal(logged(" take ", NULL, 0), 0);
}

/* Who serves what is not known for a moment: dom0 waits before it answers in another's place. */
static void test_notes_that_cannot_be_read(void **state)
{
    struct store_node *n;

    (void)state;
    write_file("etc/g1.conf", "[rng0]\nmax-bytes = 1000\n");
    add_domain(5, "g1", "uuid-1");
    add_domain(8, "driver", "uuid-8");
    n = add_node(5, 0, RNG);
    add_note(5, 3, 8);
    store->notes_error = -ENOMEM;
    start();
    wait_until(strstr(ask("list\n"), "waiting") != NULL);
    usleep(300000); /* it is tried twice or more */
    assert_int_equal(worker_of(5), 0);
    store->notes_error = 0;
    wait_until(n->node.state == NODE_STATE_INIT_WAIT);
    assert_int_equal(logged(" start 5 adopted 0 expected 0x1 claimed 0x7f7", NULL, 0), worker_of(5));
}

/* Others could have it remove and believe what they like. */
static void test_a_folder_of_others_is_refused(void **state)
{
    static const mode_t modes[] = {0777, 0775, 01777, 0757};
    int status;

    (void)state;
    assert_int_equal(mkdir(path_of("elsewhere"), 0755), 0);
    assert_int_equal(symlink(path_of("elsewhere"), path_of("run")), 0);
    start();
    assert_null(ask("version\n"));
    assert_int_equal(unlink(path_of("run")), 0);
    assert_int_equal(mkdir(path_of("run"), 0755), 0);
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        assert_int_equal(chmod(path_of("run"), modes[i]), 0);
        start();
        assert_null(ask("version\n"));
    }
    if (geteuid() == 0) {
        assert_int_equal(chmod(path_of("run"), 0755), 0);
        assert_int_equal(chown(path_of("run"), 1000, 0), 0);
        start();
        assert_null(ask("version\n"));
        assert_int_equal(chown(path_of("run"), 0, 0), 0);
    }
    assert_int_equal(chmod(path_of("run"), 0755), 0);
    start();
    assert_non_null(ask("version\n"));
    status = end(SIGTERM);
    supervisor = 0;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_workers_outlive_their_supervisor, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_worker_that_starts_is_recorded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_takeover_is_brought_to_its_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_worker_that_died_meanwhile_has_a_successor, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_an_interface_stays, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stop_takes_the_devices_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_guests_come_and_go_meanwhile, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_domid_is_used_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_another_version_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_damaged_is_left_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_guest_that_is_not_known_is_left_alone, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_another_image_is_left_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_connection_that_is_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_head_of_a_state_is_not_believed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_worker_that_dies_ready, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_upgrade, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_upgrade_while_stopping, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_node_that_cannot_be_read_is_served_on, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_a_node_that_is_wrong, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_device_comes_and_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_too_many_nodes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_worker_can_be_started, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names_without_a_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_workers_say_is_printable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_guest_that_is_given_up_is_answered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_worker_that_gives_is_ended, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_worker_that_hangs_up_is_ended, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_driver_domain_that_ended_before, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_driver_domain_that_ends_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_driver_domain_that_is_being_made, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_notes_that_cannot_be_read, set_up, tear_down),
        cmocka_unit_test(test_a_long_answer_is_whole),
        cmocka_unit_test_setup_teardown(test_a_folder_of_others_is_refused, set_up, tear_down),
    };
    const char *last = argv[argc - 1];
    struct daemon_config config;

    if (strcmp(last, "--worker") == 0)
        return worker();
    if (argc > 1) {
        config = daemon_config();
        log_set_level(LOG_LEVEL_ERROR);
        if (strcmp(last, "--check-state") == 0) {
            bool can = supervisor_can_take_over(&config);

            if (can)
                puts("viod of a test");
            return can ? EXIT_SUCCESS : EXIT_FAILURE;
        }
        store_attach(getenv("VIOD_TEST_FOLDER"));
        return supervisor_run(&config, argv);
    }
    /* Interfaces of the test's own, where it may make some. */
    has_tap = unshare(CLONE_NEWNET) == 0 && access("/dev/net/tun", R_OK | W_OK) == 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
