/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's part after the death of a worker: which image its successor gets, and who is to blame. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "supervisor_internal.h"
#include "unit.h"

#define BLK 2u

/* ---- images ---- */

static char folder[] = "/tmp/viod-test-restart.XXXXXX";

static void path_of(const char *name, char *path, size_t len)
{
    snprintf(path, len, "%s/%s", folder, name);
}

static void make_image(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    close(fd);
}

static ino_t inode(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return st.st_ino;
}

static void open_blk(struct device_config *config, const char *path)
{
    const struct device_type *type = device_type_by_id(BLK);
    char text[256], error[CONFIG_ERROR_LEN] = "";
    struct guest_file *file;

    snprintf(text, sizeof(text), "[blk0]\npath = %s\ncache = writeback\n", path);
    *config = (struct device_config){.name = "blk0"};
    assert_int_equal(guest_file_parse("test", text, strlen(text), &file, error, sizeof(error)), 0);
    assert_int_equal(device_config_fill(config, type, file, NULL, error, sizeof(error)), 0);
    guest_file_free(file);
    assert_int_equal(type->open(config, error, sizeof(error)), 0);
}

/* Somebody else's requests must not be executed on an image that only has the same name. */
static void test_same_image(void **state)
{
    const struct device_type *type = device_type_by_id(BLK);
    char path[64], aside[64], error[CONFIG_ERROR_LEN] = "";
    struct device_config config;
    int workers;
    ino_t image;

    (void)state;
    path_of("image", path, sizeof(path));
    path_of("aside", aside, sizeof(aside));
    make_image(path);
    open_blk(&config, path);
    image = inode(config.fds[0]);
    workers = config.fds[0]; /* handed over */
    config.n_fds = 0;

    assert_int_equal(rename(path, aside), 0);
    make_image(path);
    /* Not while the dead worker's descriptor, or I/O on it, is still there. */
    assert_int_equal(type->reopen(&config, error, sizeof(error)), -EBUSY);
    close(workers);
    assert_int_equal(type->reopen(&config, error, sizeof(error)), 0);
    assert_int_equal(inode(config.fds[0]), image);
    device_config_close_fds(&config);
    /* Not even if it has no name any more. */
    assert_int_equal(unlink(aside), 0);
    assert_int_equal(type->reopen(&config, error, sizeof(error)), 0);
    assert_int_equal(inode(config.fds[0]), image);
    device_config_free(&config);
    assert_int_equal(unlink(path), 0);
}

/* ---- blame ---- */

struct scene {
    int fd;
    struct state_file *file;
    struct blame blame;
    bool is_block;
};

static struct state_queue *queue(struct scene *scene, unsigned i)
{
    return &scene->file->slots[3].queues[i];
}

static void set(struct scene *scene, bool is_block)
{
    char path[64];

    path_of("state", path, sizeof(path));
    *scene = (struct scene){.is_block = is_block};
    scene->fd = device_state_create(path, 7);
    assert_true(scene->fd >= 0);
    assert_int_equal(device_state_map(scene->fd, 7, &scene->file), 0);
    for (unsigned i = 0; i < 2; i++) {
        queue(scene, i)->avail = state_position(0, 0, SALT_AVAIL);
        queue(scene, i)->published = state_position(0, 0, SALT_PUBLISHED);
    }
}

static void clear(struct scene *scene)
{
    device_state_unmap(scene->file);
    close(scene->fd);
}

static void death(struct scene *scene)
{
    blame_look(&scene->blame, scene->fd, 3, scene->is_block);
}

static void take(struct scene *scene, unsigned q, uint16_t id)
{
    uint32_t number = state_count(queue(scene, q)->avail) + 1;

    queue(scene, q)->requests[id] =
        (struct state_request){.taken = state_taken(number, 1, id, 0)};
    queue(scene, q)->avail = state_position(number, (uint16_t)number, SALT_AVAIL);
}

static void give(struct scene *scene, unsigned q, uint16_t id)
{
    uint32_t number = state_count(queue(scene, q)->published) + 1;

    queue(scene, q)->requests[id].taken = 0;
    queue(scene, q)->published = state_position(number, (uint16_t)number, SALT_PUBLISHED);
}

static void test_nothing_in_hand(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, false);
    take(&scene, 0, 1); /* a buffer, for what may come */
    for (unsigned i = 0; i < 5; i++)
        death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 0);
    assert_int_equal(blame_weak(&scene.blame), 0);
    assert_int_equal(blame_oldest(&scene.blame), 0);
    clear(&scene);
}

static void test_same_request(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, true);
    take(&scene, 0, 5);
    queue(&scene, 0)->serving = 1;
    for (unsigned i = 0; i < 4; i++)
        death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 3);
    /* It got on: that was somebody who kills workers now and then. */
    take(&scene, 0, 6);
    death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 0);
    clear(&scene);
}

/* The other queue's progress does not hide it. */
static void test_same_request_of_one_queue(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, true);
    take(&scene, 0, 5);
    for (uint16_t i = 0; i < 4; i++) {
        queue(&scene, 0)->serving = 1;
        take(&scene, 1, i);
        give(&scene, 1, i);
        death(&scene);
    }
    assert_int_equal(blame_strong(&scene.blame), 3);
    assert_int_equal(blame_weak(&scene.blame), 0);
    clear(&scene);
}

/* It dies of what the host has done for one request, whatever others are taken meanwhile. */
static void test_same_completion(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, true);
    take(&scene, 0, 100);
    for (uint16_t i = 0; i < 4; i++) {
        take(&scene, 0, i);
        queue(&scene, 0)->serving = state_in_hand(queue(&scene, 0)->requests[100].taken);
        death(&scene);
    }
    assert_int_equal(blame_strong(&scene.blame), 3);
    queue(&scene, 0)->serving = state_in_hand(queue(&scene, 0)->requests[2].taken);
    death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 0);
    clear(&scene);
}

/* It dies when the host has done it: others of the queue are taken, and done, before. */
static void test_oldest_request(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, true);
    take(&scene, 0, 100);
    for (uint16_t i = 0; i < 4; i++) {
        take(&scene, 0, i);
        give(&scene, 0, i);
        death(&scene);
    }
    assert_int_equal(blame_strong(&scene.blame), 0);
    assert_int_equal(blame_weak(&scene.blame), 0);
    assert_int_equal(blame_oldest(&scene.blame), 3);
    for (unsigned i = 0; i < 2; i++)
        death(&scene);
    assert_int_equal(blame_weak(&scene.blame), 2); /* nothing was done since the fourth */
    give(&scene, 0, 100);
    death(&scene);
    assert_int_equal(blame_oldest(&scene.blame), 0);
    assert_int_equal(blame_weak(&scene.blame), 0);
    clear(&scene);
}

static void test_same_access(void **state)
{
    struct scene scene;
    uint64_t *serving;

    (void)state;
    set(&scene, false);
    serving = &scene.file->slots[3].serving;
    for (unsigned i = 0; i < 4; i++) {
        state_access_drop(serving); /* the successor */
        state_access_begin(serving);
        death(&scene);
    }
    assert_int_equal(blame_strong(&scene.blame), 3);
    state_access_end(serving);
    death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 0);
    state_access_begin(serving); /* another one */
    death(&scene);
    assert_int_equal(blame_strong(&scene.blame), 0);
    clear(&scene);
}

/* A worker made it shorter. */
static void test_no_file(void **state)
{
    struct scene scene;

    (void)state;
    set(&scene, true);
    assert_int_equal(ftruncate(scene.fd, 100), 0);
    for (unsigned i = 0; i < 5; i++)
        death(&scene);
    assert_int_equal(blame_strong(&scene.blame) + blame_weak(&scene.blame), 0);
    clear(&scene);
}

/* ---- a successor, while the dead one's I/O is still going on ---- */

static unsigned workers, sent, failing, failed;

void device_opened(struct served_device *d)
{
    d->is_open = true;
}

bool takeover_orphan_ended(struct guest *g)
{
    return g->orphan_fd < 0;
}

int guest_start_worker(struct supervisor *s, struct guest *g)
{
    (void)s;
    if (failing > 0) {
        failing--;
        return -ENOMEM;
    }
    workers++;
    g->adopted = 0;
    g->pid = 100;
    g->state = WORKER_STARTING;
    return 0;
}

void device_send(struct supervisor *s, struct guest *g, struct served_device *d)
{
    (void)s, (void)g;
    assert_false(d->reopen);
    assert_int_equal(d->config.n_fds, 1);
    device_config_close_fds(&d->config);
    d->state = SERVED_ADDING;
    sent++;
}

void device_fail(struct supervisor *s, struct guest *g, struct served_device *d, const char *why)
{
    (void)s, (void)g;
    if (strstr(why, "cannot start a worker") == NULL)
        fail_msg("%s: %s", d->name, why);
    d->state = SERVED_FAILED;
    failed++;
}

void device_close(struct supervisor *s, struct served_device *d)
{
    (void)s;
    d->state = SERVED_GONE;
}

int xenstore_set_state(struct xenstore *xs, const struct node_id *id, enum node_state state)
{
    (void)xs, (void)id, (void)state;
    return 0;
}

static void test_starts_meanwhile(void **state)
{
    static struct guest g;
    struct supervisor s = {.guests = &g};
    struct state_file *file;
    char path[2][64];
    int busy;

    (void)state;
    workers = sent = 0;
    memset(&g, 0, sizeof(g));
    g.socket = g.stats_fd = g.state_fd = g.orphan_fd = -1;
    g.pid = -1;
    g.state = WORKER_RUNNING;
    strcpy(g.identity.run_dir, folder);
    assert_int_equal(restart_create_state(&g), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct served_device *d = &g.devices[i];

        path_of(i == 0 ? "image0" : "image1", path[i], sizeof(path[i]));
        make_image(path[i]);
        d->used = d->has_slot = d->is_open = true;
        d->slot = i;
        d->node.virtio_id = BLK;
        d->state = SERVED_READY;
        open_blk(&d->config, path[i]);
    }
    device_config_close_fds(&g.devices[0].config); /* the worker's, which has died */
    busy = g.devices[1].config.fds[0];             /* in use by the kernel's I/O, still */
    g.devices[1].config.n_fds = 0;

    assert_true(restart_worker(&s, &g, "it was killed"));
    assert_int_equal(workers, 1);
    assert_false(g.devices[0].reopen);
    assert_true(g.devices[1].reopen);
    g.state = WORKER_RUNNING; /* it says that it is ready, and gets what is open */
    device_send(&s, &g, &g.devices[0]);
    restart_due(&s, g.restart_at_ns);
    assert_int_equal(sent, 1);
    assert_int_not_equal(g.restart_at_ns, 0);

    /* Workers that die before they have it do not die of it. */
    assert_int_equal(device_state_map(g.state_fd, 0, &file), 0);
    file->slots[1].queues[0].requests[3].taken = state_taken(1, 1, 3, 0);
    file->slots[1].queues[0].avail = state_position(1, 1, SALT_AVAIL);
    file->slots[1].queues[0].published = state_position(0, 0, SALT_PUBLISHED);
    device_state_unmap(file);
    for (unsigned i = 0; i < 6; i++) {
        g.pid = -1;
        assert_true(restart_worker(&s, &g, "it was killed"));
        if (g.pid < 0) /* not at once any more */
            restart_due(&s, g.restart_at_ns);
        if (g.devices[0].state == SERVED_WAITING)
            device_send(&s, &g, &g.devices[0]);
    }
    assert_int_equal(g.sacrificed, 0);
    assert_int_equal(sent, 7);
    g.state = WORKER_RUNNING;
    close(busy);
    restart_due(&s, g.restart_at_ns);
    assert_int_equal(sent, 8);
    assert_int_equal(workers, 7);
    assert_int_equal(g.restart_at_ns, 0);
    for (unsigned i = 0; i < 2; i++) {
        device_config_free(&g.devices[i].config);
        assert_int_equal(unlink(path[i]), 0);
    }
    close(g.state_fd);
}

/* Its pages may be mapped for longer than the kernel's I/O takes: see still_granted. */
static void test_grants_that_are_mapped(void **state)
{
    static struct guest g;
    struct supervisor s = {.guests = &g};
    struct served_device *d = &g.devices[0];
    int64_t freed;
    char path[64];
    int busy;

    (void)state;
    for (int granted = 0; granted < 2; granted++) {
        workers = sent = 0;
        memset(&g, 0, sizeof(g));
        g.socket = g.stats_fd = g.state_fd = g.orphan_fd = -1;
        g.pid = -1;
        strcpy(g.identity.run_dir, folder);
        assert_int_equal(restart_create_state(&g), 0);
        path_of("image", path, sizeof(path));
        make_image(path);
        d->used = d->has_slot = d->is_open = true;
        d->node.virtio_id = BLK;
        d->state = SERVED_READY;
        open_blk(&d->config, path);
        d->config.grant_usage = granted != 0;
        busy = d->config.fds[0];
        d->config.n_fds = 0;
        assert_true(restart_worker(&s, &g, "it was killed"));
        g.state = WORKER_RUNNING;
        while (monotonic_ns() < g.died_ns + 30000000)
            restart_due(&s, monotonic_ns());
        assert_int_equal(sent, 0);
        close(busy);
        freed = monotonic_ns();
        while (g.restart_at_ns != 0) {
            assert_int_equal(sent, 0);
            restart_due(&s, monotonic_ns());
        }
        assert_int_equal(sent, 1);
        if (granted != 0) /* at least; a test must not depend on how fast it is */
            assert_true(monotonic_ns() - freed >= 50000000);
        device_config_free(&d->config);
        assert_int_equal(unlink(path), 0);
        close(g.state_fd);
    }
}

/* What has killed a worker, no memory perhaps, may keep the next one from starting. */
static void test_starts_later(void **state)
{
    static struct guest g;
    struct supervisor s = {.guests = &g};
    struct served_device *d = &g.devices[0];
    char path[64];

    (void)state;
    workers = sent = failed = 0;
    memset(&g, 0, sizeof(g));
    g.socket = g.stats_fd = g.state_fd = g.orphan_fd = -1;
    g.pid = -1;
    strcpy(g.identity.run_dir, folder);
    assert_int_equal(restart_create_state(&g), 0);
    path_of("image", path, sizeof(path));
    make_image(path);
    d->used = d->has_slot = d->is_open = true;
    d->node.virtio_id = BLK;
    d->state = SERVED_READY;
    open_blk(&d->config, path);
    device_config_close_fds(&d->config);

    failing = 10;
    assert_true(restart_worker(&s, &g, "it was killed"));
    for (unsigned i = 0; i < 10; i++) {
        int64_t due = g.restart_at_ns;

        assert_int_equal(workers, 0);
        assert_true(due > monotonic_ns()); /* not in a loop */
        restart_due(&s, due);
    }
    assert_int_equal(workers, 1);
    assert_int_equal(failed, 0);
    assert_int_equal(d->state, SERVED_WAITING);
    /* Not for ever. */
    g.pid = -1;
    failing = 100;
    if (restart_worker(&s, &g, "it was killed"))
        for (unsigned i = 0; i < 100 && g.restart_at_ns != 0; i++)
            restart_due(&s, g.restart_at_ns);
    assert_int_equal(workers, 1);
    assert_int_equal(failed, 1);
    failing = 0;
    device_config_free(&d->config);
    assert_int_equal(unlink(path), 0);
    close(g.state_fd);
}

/* What a worker wrote over the head of its state costs its guest nothing; nor does it stop a supervisor. */
static void test_damaged_head(void **state)
{
    struct state_file *file;
    struct scene scene;
    char path[64];

    (void)state;
    set(&scene, true);
    for (size_t bit = 0; bit < 8 * sizeof(struct state_header); bit++) {
        ((uint8_t *)&scene.file->header)[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_equal(device_state_map(scene.fd, 7, &file), -EBADMSG);
        assert_int_equal(device_state_repair(scene.fd, 7), 1);
        assert_int_equal(device_state_repair(scene.fd, 7), 0);
        assert_int_equal(device_state_map(scene.fd, 7, &file), 0);
        device_state_unmap(file);
    }
    assert_int_equal(device_state_map(scene.fd, 8, &file), -EBADMSG);
    assert_int_equal(ftruncate(scene.fd, sizeof(struct state_file) - 1), 0);
    assert_int_equal(device_state_map(scene.fd, 7, &file), -EBADMSG);
    path_of("state", path, sizeof(path));
    assert_int_equal(device_state_open(path), -EBADMSG);
    clear(&scene);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    char path[64];

    (void)state;
    path_of("state", path, sizeof(path));
    (void)unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_image),
        cmocka_unit_test(test_nothing_in_hand),
        cmocka_unit_test(test_same_request),
        cmocka_unit_test(test_same_request_of_one_queue),
        cmocka_unit_test(test_same_completion),
        cmocka_unit_test(test_oldest_request),
        cmocka_unit_test(test_same_access),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_starts_meanwhile),
        cmocka_unit_test(test_grants_that_are_mapped),
        cmocka_unit_test(test_starts_later),
        cmocka_unit_test(test_damaged_head),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
