/* SPDX-License-Identifier: Apache-2.0 */
/* One guest and its worker process: start, messages, end. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_internal.h"

#define WORKER_SOCKET 3
/* How long a worker may take to let go of its guest before it is killed. */
#define QUIT_BOUND_NS (INT64_C(5) * 1000000000)

#define MESSAGES_PER_TURN 64

/* ---- looking up ---- */

struct guest *guest_find(struct supervisor *s, uint32_t domid)
{
    for (struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->domid == domid)
            return g;
    return NULL;
}

struct guest *supervisor_find_guest(struct supervisor *s, const char *word)
{
    char *end;
    unsigned long domid = strtoul(word, &end, 10);

    for (struct guest *g = s->guests; g != NULL; g = g->next) {
        char name[64];

        /* A domain can be renamed at any time: ask for its name now. */
        if (xenstore_domain_name(s->xs, g->domid, name, sizeof(name)) < 0)
            snprintf(name, sizeof(name), "%s", g->name);
        if (strcmp(name, word) == 0)
            return g;
    }
    return *word != '\0' && *end == '\0' ? guest_find(s, (uint32_t)domid) : NULL;
}

/* One that is gone stays to be looked at, until there is another one of its name or node. */
struct served_device *guest_find_device(struct guest *guest, const char *name)
{
    struct served_device *gone = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(guest->devices); i++) {
        struct served_device *d = &guest->devices[i];

        if (!d->used || strcmp(d->name, name) != 0)
            continue;
        if (d->state != SERVED_GONE)
            return d;
        gone = d;
    }
    return gone;
}

struct served_device *guest_find_node(struct guest *guest, const struct node_id *id)
{
    struct served_device *gone = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(guest->devices); i++) {
        struct served_device *d = &guest->devices[i];

        if (!d->used || d->node.id.kind != id->kind || d->node.id.devid != id->devid)
            continue;
        if (d->state != SERVED_GONE)
            return d;
        gone = d;
    }
    return gone;
}

struct served_device *guest_find_slot(struct guest *guest, uint32_t slot)
{
    for (size_t i = 0; i < ARRAY_SIZE(guest->devices); i++) {
        struct served_device *d = &guest->devices[i];

        if (d->used && d->has_slot && d->slot == slot && d->state != SERVED_GONE &&
            d->state != SERVED_FAILED)
            return d;
    }
    return NULL;
}

/* ---- workers ---- */

void guest_send(struct guest *g, enum message_type type, uint32_t slot, int32_t status)
{
    static struct message message;

    message_set(&message, type, slot, NULL);
    message.status = status;
    if (g->socket >= 0)
        (void)message_send(g->socket, &message); /* a dead worker shows as end of file */
}

/*
 * Counters, in a file so that they outlive supervisors. Mapped: a worker that made it shorter would
 * kill the supervisor at the next look, but it has no descriptor of it once it serves the guest
 * (worker_start.c), and cannot get one in its sandbox.
 */
static int open_stats(struct guest *g)
{
    char path[160];
    struct stat st;
    int fd, ret;
    void *p;

    snprintf(path, sizeof(path), "%s/worker.stats", g->identity.run_dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    /* Of another version: from the beginning. */
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size != 0 &&
        st.st_size != (off_t)sizeof(struct worker_stats)) {
        close(fd);
        (void)unlink(path);
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, sizeof(struct worker_stats)) < 0)
        goto fail;
    p = mmap(NULL, sizeof(struct worker_stats), PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        goto fail;
    g->stats = p;
    g->stats_fd = fd;
    return 0;
fail:
    ret = -errno;
    close(fd);
    return ret;
}

static void exec_worker(int socket)
{
    static char name[] = "viod", option[] = "--worker";
    static char *const argv[] = {name, option, NULL};
    sigset_t none;

    /* It goes on when its supervisor ends, also with the terminal that that was started in. */
    (void)setsid();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(socket, WORKER_SOCKET) < 0)
        _exit(127);
    if (socket == WORKER_SOCKET)
        fcntl(socket, F_SETFD, 0);
    /* Libraries open what they like; a worker gets its socket and nothing else. */
    if (close_range(WORKER_SOCKET + 1, ~0u, 0) < 0)
        _exit(127);
    execv("/proc/self/exe", argv);
    _exit(127);
}

static uint32_t io_threads(const struct daemon_config *config)
{
    long cpus = CPU_COUNT(&config->cpus) > 0 ? CPU_COUNT(&config->cpus)
                                             : sysconf(_SC_NPROCESSORS_ONLN);

    if (!config->iothreads_auto)
        return config->iothreads;
    /* On one CPU a second thread only adds a switch between it and the first. */
    return cpus <= 1 ? 0 : 1;
}

int guest_start_worker(struct supervisor *s, struct guest *g)
{
    static struct message message;
    struct start_settings settings = {.domid = g->domid,
                                      .uid = s->config->worker_uid_base + g->domid,
                                      .iothreads = io_threads(s->config),
                                      .poll_max_us = s->config->poll_max_us,
                                      .precedence = !is_driver_domain(s),
                                      .expected = 0,
                                      .adopted = g->adopted,
                                      .sacrificed = g->sacrificed,
                                      .log_level = s->config->log_level};
    int pair[2], ret = guest_claimed_slots(s, g, &settings.claimed);

    if (ret < 0)
        return ret;
    snprintf(settings.name, sizeof(settings.name), "%s", g->name);
    snprintf(settings.root, sizeof(settings.root), "%s" EMPTY_ROOT, s->config->run_dir);
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (g->devices[i].used && g->devices[i].state == SERVED_WAITING)
            settings.expected |= 1u << g->devices[i].slot;
    ret = restart_create_state(g);
    if (ret < 0)
        return ret;
    ret = g->stats_fd < 0 ? open_stats(g) : 0;
    if (ret < 0)
        return ret;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    g->pid = fork();
    if (g->pid < 0) {
        ret = -errno;
        close(pair[0]);
        close(pair[1]);
        return ret;
    }
    if (g->pid == 0)
        exec_worker(pair[1]);
    close(pair[1]);
    /* Before it starts threads: they inherit it. */
    if (CPU_COUNT(&s->config->cpus) > 0 &&
        sched_setaffinity(g->pid, sizeof(s->config->cpus), &s->config->cpus) < 0)
        log_warning("domain %u (%s): its worker runs on any CPU, since none of those that viod.conf "
                    "gives with cpus = is there: %s", g->domid, g->name, strerror(errno));
    g->socket = pair[0];
    fcntl(g->socket, F_SETFL, O_NONBLOCK);
    g->state = WORKER_STARTING;
    message_set(&message, MESSAGE_START, 0, NULL);
    memcpy(message.text, &settings, sizeof(settings));
    message.text_len = sizeof(settings);
    message.fds[0] = g->stats_fd;
    message.fds[1] = g->state_fd;
    message.n_fds = 2;
    g->adopted = g->sacrificed = 0;
    g->started_ns = monotonic_ns();
    /* Before it has anything to do: one that has heard of no guest ends with its supervisor. */
    takeover_record(g);
    if (message_send(g->socket, &message) < 0) /* it has died already, or does now, and that is seen */
        (void)kill(g->pid, SIGKILL);
    return 0;
}

void guest_quit_worker(struct guest *g)
{
    if (g->state == WORKER_QUITTING)
        return;
    g->state = WORKER_QUITTING;
    g->kill_at_ns = monotonic_ns() + QUIT_BOUND_NS;
    guest_send(g, MESSAGE_QUIT, 0, 0);
}

/* ---- the guest's folder ---- */

/* /run/viod/<name>; false: the name is none that a file could have, or one of the daemon's own. */
static bool link_path(const struct supervisor *s, const char *name, char *path, size_t len)
{
    if (name[0] == '\0' || name[0] == '.' || name[0] == '?' || strchr(name, '/') != NULL ||
        strspn(name, "0123456789") == strlen(name) || strcmp(name, &EMPTY_ROOT[1]) == 0)
        return false;
    return snprintf(path, len, "%s/%s", s->config->run_dir, name) < (int)len;
}

static void empty_folder(const char *path)
{
    struct dirent *entry;
    DIR *dir = opendir(path);

    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}

static void make_link(struct supervisor *s, struct guest *g)
{
    char link[256], target[16];

    if (g->identity.run_dir[0] == '\0' || !link_path(s, g->name, link, sizeof(link)))
        return;
    snprintf(target, sizeof(target), "%u", g->domid);
    /* A link that is there is of an earlier domain of this name; anything else is not ours. */
    if (readlink(link, (char[2]){0}, 1) >= 0)
        (void)unlink(link);
    if (symlink(target, link) < 0)
        log_warning("cannot make %s: %s", link, strerror(errno));
}

static void remove_link(struct supervisor *s, uint32_t domid, const char *name)
{
    char link[256], target[16], was[16] = "";

    snprintf(target, sizeof(target), "%u", domid);
    if (link_path(s, name, link, sizeof(link)) && readlink(link, was, sizeof(was) - 1) > 0 &&
        strcmp(was, target) == 0)
        (void)unlink(link);
}

/* uuid: NULL = ask for it. */
static void make_identity(struct supervisor *s, struct guest *g, const char *uuid)
{
    struct guest_identity *identity = &g->identity;

    identity->domid = g->domid;
    snprintf(identity->name, sizeof(identity->name), "%s", g->name);
    if (uuid != NULL)
        snprintf(identity->uuid, sizeof(identity->uuid), "%s", uuid);
    else if (xenstore_domain_uuid(s->xs, g->domid, identity->uuid, sizeof(identity->uuid)) < 0)
        identity->uuid[0] = '\0';
    if (snprintf(identity->run_dir, sizeof(identity->run_dir), "%s/%u", s->config->run_dir,
                 g->domid) >= (int)sizeof(identity->run_dir)) {
        identity->run_dir[0] = '\0';
        return;
    }
    if (mkdir(identity->run_dir, 0755) < 0 && errno != EEXIST)
        log_warning("cannot make %s: %s", identity->run_dir, strerror(errno));
}

void guest_identify(struct supervisor *s, struct guest *g, const char *name, const char *uuid)
{
    if (strcmp(g->name, name) == 0 && strcmp(g->identity.uuid, uuid) == 0)
        return;
    remove_link(s, g->domid, g->name);
    snprintf(g->name, sizeof(g->name), "%s", name);
    snprintf(g->identity.name, sizeof(g->identity.name), "%s", name);
    snprintf(g->identity.uuid, sizeof(g->identity.uuid), "%s", uuid);
    make_link(s, g);
}

void guest_remove_folder(struct supervisor *s, uint32_t domid, const char *name, const char *folder)
{
    if (name != NULL)
        remove_link(s, domid, name);
    empty_folder(folder);
    (void)rmdir(folder);
}

static void remove_run_dir(struct supervisor *s, struct guest *g)
{
    if (g->identity.run_dir[0] != '\0')
        guest_remove_folder(s, g->domid, g->name, g->identity.run_dir);
}

void guest_free(struct supervisor *s, struct guest *g)
{
    for (struct guest **p = &s->guests; *p != NULL; p = &(*p)->next)
        if (*p == g) {
            *p = g->next;
            break;
        }
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        device_release(&g->devices[i]);
    remove_run_dir(s, g);
    if (g->socket >= 0)
        close(g->socket);
    if (g->orphan_fd >= 0) { /* left alone till now: without the folder, no other viod knows of it */
        takeover_end_orphan(g->orphan_fd);
        close(g->orphan_fd);
    }
    if (g->stats != NULL)
        munmap((void *)(uintptr_t)g->stats, sizeof(*g->stats));
    if (g->stats_fd >= 0)
        close(g->stats_fd);
    if (g->state_fd >= 0)
        close(g->state_fd);
    free(g);
}

struct guest *guest_new_as(struct supervisor *s, uint32_t domid, const char *name,
                           const char *uuid)
{
    struct guest *g = calloc(1, sizeof(*g));

    if (g == NULL)
        return NULL;
    g->domid = domid;
    g->socket = g->stats_fd = g->state_fd = g->orphan_fd = -1;
    g->pid = -1;
    if (name != NULL)
        snprintf(g->name, sizeof(g->name), "%s", name);
    else if (xenstore_domain_name(s->xs, domid, g->name, sizeof(g->name)) < 0)
        snprintf(g->name, sizeof(g->name), "?");
    make_identity(s, g, uuid);
    make_link(s, g);
    g->next = s->guests;
    s->guests = g;
    return g;
}

struct guest *guest_new(struct supervisor *s, uint32_t domid)
{
    struct guest *g = guest_new_as(s, domid, NULL, NULL);

    if (g != NULL && g->identity.run_dir[0] != '\0')
        empty_folder(g->identity.run_dir); /* of what nobody could take over */
    return g;
}

/*
 * Its workers die one after the other, and its devices have failed. The IOREQ server is there as long as
 * the guest, and a vCPU that touches a device waits for ever if nobody answers. So there is one more
 * worker, which answers that all slots are empty.
 */
static void give_up(struct supervisor *s, struct guest *g, const char *why)
{
    bool is_first = !g->given_up && g->restarts > 0 && !s->stopping;
    int ret;

    takeover_forget(g);
    g->given_up = true;
    if (g->failure[0] == '\0')
        snprintf(g->failure, sizeof(g->failure), "%s", why);
    if (is_first) {
        g->adopted = g->sacrificed = 0;
        g->restart_at_ns = 0;
        ret = guest_start_worker(s, g);
        if (ret == 0) {
            log_warning("domain %u (%s): it goes on without its devices, and finds their slots empty: "
                        "reboot the guest", g->domid, g->name);
            return;
        }
        log_error("domain %u (%s): cannot start a worker: %s", g->domid, g->name, strerror(-ret));
    }
    log_error("domain %u (%s): nobody answers for its devices any more: a virtual CPU that touches one "
              "waits for ever; destroy the guest", g->domid, g->name);
    g->state = WORKER_QUITTING; /* stays to be looked at until the domain is gone */
    g->kill_at_ns = 0;
}

/* The process is gone. Its guest may be gone too, or it has lost its devices. */
static void worker_ended(struct supervisor *s, struct guest *g, int status)
{
    bool expected = g->state == WORKER_QUITTING;
    uint32_t domid = g->domid;
    char why[CONFIG_ERROR_LEN];

    if (WIFSIGNALED(status))
        snprintf(why, sizeof(why), "the worker was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(why, sizeof(why), "the worker ended with status %d", WEXITSTATUS(status));
    g->pid = -1;
    if (g->socket >= 0)
        close(g->socket);
    g->socket = -1;
    if (!expected && !g->given_up && xenstore_domain_alive(s->xs, domid) && restart_worker(s, g, why))
        return;
    if (!expected)
        log_error("domain %u (%s): %s", domid, g->name, g->failure[0] != '\0' ? g->failure : why);
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        if (!d->used || d->state == SERVED_GONE)
            continue;
        if (!expected && d->state != SERVED_REMOVING && d->state != SERVED_FAILED) {
            device_fail(s, g, d, g->failure[0] != '\0' ? g->failure : why);
            /* The guest's side of the state: whoever looks sees that nobody serves it. */
            (void)xenstore_set_state(s->xs, &d->node.id, NODE_STATE_CLOSED);
        } else {
            device_close(s, d);
        }
    }
    if (expected || !xenstore_domain_alive(s->xs, domid)) {
        bool rescan = g->rescan;

        guest_free(s, g);
        if (rescan && !s->stopping)
            guest_scan(s, domid);
    } else {
        give_up(s, g, why);
    }
}

static void worker_said(struct supervisor *s, struct guest *g, const struct message *m)
{
    struct served_device *d = NULL;

    if (m->slot < XEN_VIRTIO_SLOTS)
        d = guest_find_slot(g, m->slot);
    switch (m->type) {
    case MESSAGE_READY:
        if (g->state != WORKER_STARTING)
            return;
        g->state = WORKER_RUNNING;
        g->n_vcpus = m->status > 0 ? (uint32_t)m->status : 1;
        log_info("domain %u (%s): worker %d serves it", g->domid, g->name, (int)g->pid);
        for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
            if (g->devices[i].used && g->devices[i].state == SERVED_WAITING &&
                !g->devices[i].unpublished && !g->devices[i].reopen)
                device_send(s, g, &g->devices[i]);
        return;
    case MESSAGE_FAILED:
        snprintf(g->failure, sizeof(g->failure), "%.*s", (int)sizeof(g->failure) - 1, m->text);
        return;
    case MESSAGE_ADDED:
        if (d == NULL || d->state != SERVED_ADDING)
            return;
        d->state = SERVED_READY;
        log_info("domain %u (%s), %s: %s in slot %u (base %#llx, SPI %u)", g->domid, g->name,
                 d->name, d->backing, d->slot, (unsigned long long)d->node.base, d->node.irq);
        (void)xenstore_set_error(s->xs, &d->node.id, NULL);
        (void)xenstore_set_state(s->xs, &d->node.id, NODE_STATE_INIT_WAIT);
        restart_added(g);
        return;
    case MESSAGE_ADD_FAILED:
        if (d != NULL && d->state == SERVED_ADDING) {
            char why[CONFIG_ERROR_LEN];

            snprintf(why, sizeof(why), "%.*s", (int)sizeof(why) - 1, m->text);
            device_fail(s, g, d, why);
        }
        return;
    case MESSAGE_REMOVED:
        if (d != NULL && d->state == SERVED_REMOVING) {
            log_info("domain %u (%s), %s: closed", g->domid, g->name, d->name);
            device_close(s, d);
            takeover_record(g);
        }
        return;
    case MESSAGE_CONTROL_REPLY:
        control_replied(s, g->domid, m->id, m->status, m->text);
        return;
    case MESSAGE_ASK:
        if (d != NULL && (d->state == SERVED_READY || d->state == SERVED_ADDING))
            device_asked(g, d, m->id, m->text);
        return;
    default:
        return;
    }
}

/* It goes to logs and terminals, and may be the work of a guest that has taken the worker over. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

static void read_messages(struct supervisor *s, struct guest *g, bool ended)
{
    static struct message message;
    int ret = -EAGAIN;

    /* Bounded: a worker that talks without end does not keep the others waiting. */
    for (int i = 0; i < MESSAGES_PER_TURN; i++) {
        ret = message_receive(g->socket, &message);
        if (ret == 1 && message.n_fds > 0)
            ret = -EPROTO; /* it has nothing to give us, and what to close may take its time */
        if (ret != 1)
            break;
        make_printable(message.text);
        worker_said(s, g, &message);
    }
    message_close_fds(&message);
    if (ret == 1 || ret == -EAGAIN)
        return;
    /*
     * End of file: it has ended, and waitpid tells how. A worker that lives has not closed its socket, nor
     * says anything but messages: it is not ours any more. (What already ends is not changed by that.)
     */
    if (g->pid > 0 && !ended)
        kill(g->pid, SIGKILL);
    close(g->socket);
    g->socket = -1;
}

void guest_readable(struct supervisor *s, struct guest *g)
{
    read_messages(s, g, false);
}

void guests_reap(struct supervisor *s)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == s->upgrade.pid)
            upgrade_answered(s, status);
        for (struct guest *g = s->guests; g != NULL; g = g->next)
            if (g->pid == pid) {
                if (g->socket >= 0)
                    read_messages(s, g, true); /* its last words; its number may be another's by now */
                worker_ended(s, g, status);
                break;
            }
    }
}

int guest_control(struct guest *guest, const struct served_device *device, uint32_t id,
                  const char *request)
{
    static struct message message;

    if (guest->state != WORKER_RUNNING || device->state != SERVED_READY)
        return -ENODEV;
    message_set(&message, MESSAGE_CONTROL, device->slot, request);
    message.id = id;
    return message_send(guest->socket, &message);
}
