/* SPDX-License-Identifier: Apache-2.0 */
#include "supervisor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_internal.h"
#include "xen/xenstore_publish.h"

/* How long a supervisor that shall end waits for workers that are just starting. */
#define LEAVE_BOUND_NS (INT64_C(10) * 1000000000)

/* ---- xenstore ---- */

static void remove_device(struct guest *g, struct supervisor *s, struct served_device *d)
{
    switch (d->state) {
    case SERVED_ADDING:
    case SERVED_READY:
        d->state = SERVED_REMOVING;
        guest_send(g, MESSAGE_REMOVE, d->slot, 0);
        break;
    case SERVED_WAITING:
        if (d->has_slot) { /* the worker holds accesses for it, or will, and has what its predecessor kept */
            g->adopted &= ~(1u << d->slot);
            guest_send(g, MESSAGE_EXPECT, d->slot, 0);
        }
        device_close(s, d);
        break;
    case SERVED_FAILED:
        device_close(s, d);
        break;
    case SERVED_REMOVING:
    case SERVED_GONE:
        break;
    }
}

static const char *kind_of(const struct node_id *id)
{
    return id->kind == NODE_VIRTIO ? "virtio" : "virtio_disk";
}

static struct served_device *new_device(struct guest *g, const struct device_node *node)
{
    struct served_device *d = guest_find_node(g, &node->id); /* gone, or none */

    for (int pass = 0; d == NULL && pass < 2; pass++)
        for (size_t i = 0; d == NULL && i < ARRAY_SIZE(g->devices); i++)
            if (!g->devices[i].used || (pass == 1 && g->devices[i].state == SERVED_GONE))
                d = &g->devices[i];
    if (d == NULL)
        return NULL;
    memset(d, 0, sizeof(*d));
    d->used = true;
    d->node = *node;
    return d;
}

/* A new device of the guest, which is made if it is not known; NULL: it cannot be. */
static struct served_device *add_device(struct supervisor *s, struct guest **g,
                                        const struct device_node *node)
{
    static const char why[] = "there is no room for it: more than twice the slots that exist, or out of "
                              "memory";
    struct served_device *d;

    if (*g == NULL)
        *g = guest_new(s, node->id.domid);
    d = *g != NULL ? new_device(*g, node) : NULL;
    if (d == NULL) {
        log_error("domain %u: device node %u of kind %s is not served: %s", node->id.domid, node->id.devid,
                  kind_of(&node->id), why);
        (void)xenstore_set_error(s->xs, &node->id, why);
    }
    return d;
}

/* Even if the device failed: an access where no IOREQ server listens makes the guest panic. */
static void start_worker(struct supervisor *s, struct guest *g, struct served_device *d)
{
    int ret;

    if (g->pid >= 0 || g->restart_at_ns != 0)
        return;
    if (g->failure[0] == '\0') {
        ret = guest_start_worker(s, g);
        if (ret == 0)
            return;
        if (ret == -EAGAIN) {
            restart_later(g, ret);
            return;
        }
        snprintf(g->failure, sizeof(g->failure), "cannot start a worker: %s", strerror(-ret));
    }
    if (d->state != SERVED_FAILED)
        device_fail(s, g, d, g->failure);
}

/* A node that is wrong is not served, but seen: by those who ask for it, and when it is to go. */
static void node_is_wrong(struct supervisor *s, struct guest *g, struct served_device *d,
                          const struct device_node *node, const char *why)
{
    char text[CONFIG_ERROR_LEN];

    if (d != NULL && d->state != SERVED_GONE) {
        if (node->state == NODE_STATE_CLOSING)
            remove_device(g, s, d);
        return;
    }
    if (node->state == NODE_STATE_CLOSING) {
        (void)xenstore_set_state(s->xs, &node->id, NODE_STATE_CLOSED);
        return;
    }
    if (node->state != NODE_STATE_INITIALISING) {
        log_error("domain %u: device node %u of kind %s: %s", node->id.domid, node->id.devid,
                  kind_of(&node->id), why);
        (void)xenstore_set_error(s->xs, &node->id, why);
        return;
    }
    if (g != NULL && g->state == WORKER_QUITTING) {
        g->rescan = true;
        return;
    }
    d = add_device(s, &g, node);
    if (d == NULL)
        return;
    d->malformed = true;
    snprintf(d->name, sizeof(d->name), "%s-%u", kind_of(&node->id), node->id.devid);
    snprintf(text, sizeof(text), "its node in xenstore is wrong: %.400s", why);
    device_fail(s, g, d, text);
    start_worker(s, g, d);
}

static void node_changed(struct supervisor *s, const struct node_id *id)
{
    struct guest *g = guest_find(s, id->domid);
    struct served_device *d = g != NULL ? guest_find_node(g, id) : NULL;
    struct device_node node;
    char error[CONFIG_ERROR_LEN];
    int ret = xenstore_read_node(s->xs, id, &node, error, sizeof(error));

    if (ret == -ENOENT) { /* gone */
        if (d != NULL)
            remove_device(g, s, d);
        return;
    }
    if (ret < 0 && ret != -EINVAL) { /* not known: what is served is served on */
        log_error("domain %u: device node %u of kind %s cannot be read, and stays as it is: %s", id->domid,
                  id->devid, kind_of(id), error);
        return;
    }
    /* In a driver domain nobody else removes it, and libxl waits for that. */
    if (is_driver_domain(s) && node.state == NODE_STATE_CLOSED && !node.online)
        removal_schedule(s, id);
    if (ret == -EINVAL) {
        node_is_wrong(s, g, d, &node, error);
        return;
    }
    if (d != NULL && d->malformed) { /* no longer */
        d->used = false;
        d = NULL;
    }
    if (d != NULL && d->state != SERVED_GONE) {
        if (node.state == NODE_STATE_CLOSING || !node.online)
            remove_device(g, s, d);
        else if (d->unpublished)
            device_configure(s, g, d);
        return;
    }
    if (node.state == NODE_STATE_CLOSING) {
        (void)xenstore_set_state(s->xs, id, NODE_STATE_CLOSED);
        return;
    }
    if (node.state == NODE_STATE_INIT_WAIT && node.online && g == NULL) {
        /* The process that served it is gone, and with it what it knew of the guest's rings. */
        log_warning("domain %u: device node %u was served by an earlier viod: reboot the guest",
                    id->domid, id->devid);
        (void)xenstore_set_error(s->xs, id, "served by an earlier viod: reboot the guest");
        (void)xenstore_set_state(s->xs, id, NODE_STATE_CLOSED);
        return;
    }
    if (node.online && d == NULL && g != NULL && g->state != WORKER_QUITTING &&
        (node.state == NODE_STATE_INIT_WAIT || node.state == NODE_STATE_CONNECTED))
        log_warning("domain %u (%s): device node %u of kind %s was served by an earlier viod, and is not "
                    "as it was: reboot the guest", id->domid, g->name, id->devid, kind_of(id));
    if (node.state != NODE_STATE_INITIALISING || !node.online)
        return;
    if (g != NULL && g->given_up && g->state != WORKER_QUITTING) {
        log_error("domain %u (%s): device node %u of kind %s is not served: %s", id->domid, g->name,
                  id->devid, kind_of(id), g->failure);
        (void)xenstore_set_error(s->xs, id, g->failure);
        return;
    }
    if (g != NULL && g->state == WORKER_QUITTING) {
        g->rescan = true; /* a reused domid: the old worker has to go first */
        return;
    }
    d = add_device(s, &g, &node);
    if (d == NULL)
        return; /* not written by xl */
    if (g->state != WORKER_QUITTING) /* one that is starting reads it afterwards */
        guest_send(g, MESSAGE_EXPECT,
                    (uint32_t)((node.base - XEN_VIRTIO_MMIO_BASE) / XEN_VIRTIO_MMIO_SLOT), 1);
    device_configure(s, g, d);
    start_worker(s, g, d);
}

void guest_scan(struct supervisor *s, uint32_t domid)
{
    struct node_id ids[64];
    int n = xenstore_list_nodes(s->xs, domid, ids, (int)ARRAY_SIZE(ids));

    if (n < 0)
        log_error("domain %u: its device nodes cannot be listed: %s", domid, strerror(-n));
    for (int i = 0; i < n; i++)
        node_changed(s, &ids[i]);
}

static void domain_released(struct supervisor *s)
{
    for (struct guest *g = s->guests, *next; g != NULL; g = next) {
        next = g->next;
        if (xenstore_domain_alive(s->xs, g->domid))
            continue;
        if (g->pid < 0)
            guest_free(s, g);
        else
            guest_quit_worker(g);
    }
}

static void xenstore_readable(struct supervisor *s)
{
    struct node_id id;
    enum store_event event;

    while ((event = xenstore_next_event(s->xs, &id)) != STORE_NOTHING) {
        if (event == STORE_NODE_CHANGED)
            node_changed(s, &id);
        else if (event == STORE_REMOTE_NODE)
            publish_device(s, &id);
        else {
            domain_released(s);
            publish_released(s);
        }
    }
}

/* ---- the loop ---- */

static void kill_overdue(struct supervisor *s, int64_t now)
{
    for (struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->state == WORKER_QUITTING && g->kill_at_ns != 0 && now >= g->kill_at_ns &&
            g->pid > 0) {
            log_warning("domain %u (%s): the worker did not end within 5 s: killed", g->domid,
                        g->name);
            g->kill_at_ns = 0;
            kill(g->pid, SIGKILL);
        }
}

static bool deadlines_pending(const struct supervisor *s)
{
    for (const struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->kill_at_ns != 0)
            return true;
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        if (s->clients[i].fd >= 0)
            return true;
    return s->leaving || s->removals != NULL;
}

static void signals(struct supervisor *s)
{
    struct signalfd_siginfo info;

    while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info))
        if (info.ssi_signo != SIGCHLD && !s->stopping && !s->leaving) {
            log_info("ending; the workers serve their guests on");
            s->leaving = true;
            s->leave_at_ns = monotonic_ns() + LEAVE_BOUND_NS;
        }
    guests_reap(s);
}

void supervisor_stop(struct supervisor *s)
{
    if (s->stopping)
        return;
    log_info("stopping");
    s->stopping = true;
    for (struct guest *g = s->guests; g != NULL; g = g->next) {
        if (g->pid > 0)
            guest_quit_worker(g);
        if (g->pid > 0 || g->restart_at_ns == 0)
            continue;
        g->restart_at_ns = 0; /* between two workers: there is no other one */
        for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
            if (g->devices[i].used && g->devices[i].state != SERVED_GONE)
                device_close(s, &g->devices[i]);
    }
}

/* Its worker runs and has its devices: what is begun is brought to its end before we leave. */
static bool is_settled(const struct guest *g)
{
    if (g->restart_at_ns != 0 || (g->pid > 0 && g->state == WORKER_STARTING))
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (g->devices[i].used && g->pid > 0 &&
            (g->devices[i].state == SERVED_ADDING || g->devices[i].state == SERVED_REMOVING))
            return false;
    return true;
}

static bool may_leave(const struct supervisor *s)
{
    if (!s->leaving)
        return false;
    for (const struct guest *g = s->guests; g != NULL; g = g->next)
        if (!is_settled(g))
            return monotonic_ns() >= s->leave_at_ns;
    return true;
}

static bool workers_left(const struct supervisor *s)
{
    for (const struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->pid > 0)
            return true;
    return false;
}

static int poll_once(struct supervisor *s)
{
    size_t n = 0, max = 4 + CLIENTS_MAX, first_guest;
    struct pollfd *fds;
    int64_t now;
    int timeout;

    for (struct guest *g = s->guests; g != NULL; g = g->next)
        max++;
    fds = calloc(max, sizeof(*fds));
    if (fds == NULL)
        return -ENOMEM;
    fds[n++] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = xenstore_fd(s->xs), .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = s->listen_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = s->uevent_fd, .events = POLLIN};
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        fds[n++] = (struct pollfd){.fd = s->clients[i].fd,
                                   .events = s->clients[i].answer != NULL ? POLLOUT : POLLIN};
    first_guest = n;
    for (struct guest *g = s->guests; g != NULL; g = g->next)
        fds[n++] = (struct pollfd){.fd = g->socket, .events = POLLIN};
    /* Without a deadline there is nothing to wake up for. */
    timeout = restart_timeout_ms(s, monotonic_ns());
    if (deadlines_pending(s) && (timeout < 0 || timeout > 200))
        timeout = 200;
    if (poll(fds, n, timeout) < 0 && errno != EINTR) {
        free(fds);
        return -errno;
    }
    /* Guests first: their order is that of the list only until something is removed from it. */
    n = first_guest;
    for (struct guest *g = s->guests; g != NULL; g = g->next, n++)
        if (fds[n].revents != 0 && g->socket >= 0)
            guest_readable(s, g);
    if (fds[0].revents != 0)
        signals(s);
    if (fds[1].revents != 0 && !s->stopping)
        xenstore_readable(s);
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        if (fds[4 + i].revents != 0 && s->clients[i].fd == fds[4 + i].fd) {
            if (s->clients[i].answer != NULL)
                control_write(&s->clients[i]);
            else
                control_read(s, &s->clients[i]);
        }
    if (fds[2].revents != 0)
        control_accept(s);
    if (fds[3].revents != 0)
        uevent_read(s);
    free(fds);
    now = monotonic_ns();
    kill_overdue(s, now);
    restart_due(s, now);
    control_expire(s, now);
    upgrade_expire(s, now);
    if (removals_run(s, now))
        domain_released(s); /* without devices here, a guest is nobody's any more */
    return 0;
}

/* sd_notify(3), without the library: one datagram. */
static void notify_systemd(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (path == NULL || (path[0] != '/' && path[0] != '@') ||
        strlen(path) >= sizeof(address.sun_path))
        return;
    memcpy(address.sun_path, path, strlen(path));
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path)));
    close(fd);
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What lies in it is believed, removed and replaced: whoever can write there could have it done to others. */
static int make_folders(const struct daemon_config *config)
{
    const char *run_dir = config->run_dir;
    char path[512];
    struct stat st;

    if ((mkdir(run_dir, 0755) < 0 && errno != EEXIST) || lstat(run_dir, &st) < 0)
        goto fail;
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        log_error("run-dir %s is not a folder of root's that only root can write in (%s): remove it, or "
                  "choose another one in viod.conf", run_dir,
                  !S_ISDIR(st.st_mode)        ? "it is no folder"
                  : st.st_uid != geteuid() ? "it belongs to another user"
                                           : "its permissions are wider");
        return -EPERM;
    }
    snprintf(path, sizeof(path), "%s" EMPTY_ROOT, run_dir);
    if (mkdir(path, 0555) == 0 || errno == EEXIST)
        return 0;
fail:
    log_error("cannot make %s: %s", run_dir, strerror(errno));
    return -errno;
}

bool supervisor_can_take_over(const struct daemon_config *config)
{
    return takeover_possible(config->run_dir);
}

int supervisor_run(const struct daemon_config *config, char *const *argv)
{
    static struct supervisor supervisor;
    struct supervisor *s = &supervisor;
    char error[CONFIG_ERROR_LEN];
    int ret;

    s->config = config;
    s->argv = argv;
    signal(SIGPIPE, SIG_IGN); /* standard error may be a socket whose reader goes away */
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        s->clients[i].fd = -1;
    if (make_folders(config) < 0)
        return EXIT_FAILURE;
    s->signal_fd = open_signals();
    /* Before xenstore: a second daemon must not touch any node. */
    ret = control_open(s);
    if (ret < 0)
        return EXIT_FAILURE;
    ret = xenstore_open(&s->xs, error, sizeof(error));
    if (ret < 0) {
        log_error("%s", error);
        goto out;
    }
    ret = takeover_begin(s);
    if (ret < 0)
        goto out;
    ret = xenstore_watch_devices(s->xs);
    if (ret < 0) {
        log_error("cannot watch this domain's devices in xenstore: %s", strerror(-ret));
        goto out;
    }
    ret = publish_open(s);
    if (ret < 0)
        log_warning("cannot watch the guests' devices: driver domains will not be told about "
                    "theirs: %s", strerror(-ret));
    ret = 0;
    s->uevent_fd = uevent_open();
    log_info("viod " VIOD_VERSION " serves the devices whose backend is domain %u",
             xenstore_own_domid(s->xs));
    if (is_driver_domain(s))
        (void)xenstore_announce(s->xs, VIOD_VERSION);
    notify_systemd("READY=1");
    while (ret == 0 && !may_leave(s) && !(s->stopping && !workers_left(s)))
        ret = poll_once(s);
    if (ret < 0)
        log_error("%s", strerror(-ret));
out:
    notify_systemd("STOPPING=1");
    /* Else their folders are the next one's. */
    while (s->stopping && s->guests != NULL)
        guest_free(s, s->guests);
    control_close(s);
    if (s->xs != NULL) {
        removals_free(s);
        if (is_driver_domain(s))
            (void)xenstore_announce(s->xs, NULL);
    }
    xenstore_close(s->xs);
    return ret == 0 ? EXIT_SUCCESS : ret == -EPROTONOSUPPORT ? SUPERVISOR_EXIT_STATE : EXIT_FAILURE;
}
