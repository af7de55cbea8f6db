/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: what viodctl asks. The texts are in supervisor_show.c. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_console.h"
#include "supervisor_internal.h"

#define WORDS_MAX 6
/* How long a client may take to send its line or to take its answer, or a worker to answer a request. */
#define CLIENT_BOUND_NS (INT64_C(10) * 1000000000)

/*
 * "resize DOMAIN DEVICE", "link DOMAIN DEVICE down": the first word and those after the device are
 * the request. The host side of the device answers, or the worker does.
 */
static void request_device(struct supervisor *s, struct answer *a, struct client *client,
                           char *const *words, int n)
{
    char request[256], answer[CONFIG_ERROR_LEN] = "";
    const struct device_type *type;
    size_t len;
    int ret;

    struct guest *g = supervisor_find_guest(s, words[1]);
    struct served_device *d = g != NULL ? guest_find_device(g, words[2]) : NULL;

    if (d == NULL) {
        snprintf(a->error, sizeof(a->error), "no device \"%s\" of a guest \"%s\" is served here",
                 words[2], words[1]);
        return;
    }
    len = (size_t)snprintf(request, sizeof(request), "%s", words[0]);
    for (int i = 3; i < n && len < sizeof(request); i++)
        len += (size_t)snprintf(request + len, sizeof(request) - len, " %s", words[i]);
    if (len >= sizeof(request)) {
        snprintf(a->error, sizeof(a->error), "the request is too long");
        return;
    }
    type = device_type_by_id(d->node.virtio_id);
    if (d->state == SERVED_READY && type != NULL && type->control != NULL) {
        ret = type->control(&d->config, request, answer, sizeof(answer));
        if (ret != -EOPNOTSUPP) {
            if (ret < 0)
                snprintf(a->error, sizeof(a->error), "%s", answer);
            else
                fprintf(a->out, "%s\n", answer);
            return;
        }
    }
    client->waits_for = ++s->next_control_id;
    if (client->waits_for == 0)
        client->waits_for = ++s->next_control_id;
    client->waits_domid = g->domid;
    ret = guest_control(g, d, client->waits_for, request);
    if (ret < 0) {
        client->waits_for = 0;
        if (d->state == SERVED_READY)
            snprintf(a->error, sizeof(a->error), "the guest's worker %s",
                     ret == -ENODEV ? "is not running; try again soon" : "does not listen");
        else
            snprintf(a->error, sizeof(a->error), "device %s is %s", d->name, show_state(d->state));
    }
}

static void console(struct supervisor *s, struct answer *a, char *const *words, int n)
{
    struct guest *g = supervisor_find_guest(s, words[1]);

    if (g == NULL)
        snprintf(a->error, sizeof(a->error), "no guest \"%s\" is served here: see viodctl list",
                 words[1]);
    else
        console_find(g, n > 2 ? words[2] : NULL, a->out, a->error, sizeof(a->error));
}

/* ---- clients ---- */

static void hang_up(struct client *client)
{
    close(client->fd);
    client->fd = -1;
    free(client->answer);
    client->answer = NULL;
    client->waits_for = 0;
    client->waits_ready = false;
    client->waits_upgrade = false;
}

void control_write(struct client *client)
{
    while (client->answer_sent < client->answer_len) {
        ssize_t n = send(client->fd, client->answer + client->answer_sent,
                         client->answer_len - client->answer_sent, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return; /* counters of many guests are more than a socket holds */
        if (n <= 0)
            break;
        client->answer_sent += (size_t)n;
    }
    hang_up(client);
}

void control_reply(struct client *client, const char *error, const char *text, size_t len)
{
    char head[CONFIG_ERROR_LEN + 16];
    int n = error != NULL ? snprintf(head, sizeof(head), "error %s\n", error)
                          : snprintf(head, sizeof(head), "ok\n");

    client->answer = malloc((size_t)n + len);
    if (client->answer == NULL) {
        hang_up(client);
        return;
    }
    memcpy(client->answer, head, (size_t)n);
    if (len > 0)
        memcpy(client->answer + n, text, len);
    client->answer_len = (size_t)n + len;
    client->answer_sent = 0;
    client->waits_for = 0;
    client->waits_ready = client->waits_upgrade = false;
    client->until_ns = monotonic_ns() + CLIENT_BOUND_NS;
    control_write(client);
}

static void execute(struct supervisor *s, struct client *client)
{
    struct answer a = {.json = false};
    char *words[WORDS_MAX], *save = NULL, *text = NULL;
    size_t len = 0;
    int n = 0;

    for (char *w = strtok_r(client->line, "\t", &save); w != NULL; w = strtok_r(NULL, "\t", &save))
        if (n == 0 && strcmp(w, "--json") == 0)
            a.json = true;
        else if (n < WORDS_MAX)
            words[n++] = w;
    a.out = open_memstream(&text, &len);
    if (a.out == NULL) {
        hang_up(client);
        return;
    }
    if (n == 1 && strcmp(words[0], "list") == 0)
        show_list(s, &a);
    else if (n == 1 && strcmp(words[0], "version") == 0)
        fprintf(a.out, a.json ? "{\"viod\":\"%s\"}\n" : "viod %s\n", VIOD_VERSION);
    else if ((n == 2 || n == 3) && strcmp(words[0], "show") == 0)
        show_guest(s, &a, words, n);
    else if ((n == 1 || n == 2) && strcmp(words[0], "stats") == 0)
        show_stats(s, &a, words, n);
    else if ((n == 2 || n == 3) && strcmp(words[0], "console") == 0)
        console(s, &a, words, n);
    else if ((n == 3 && strcmp(words[0], "resize") == 0) ||
             (n >= 3 && strcmp(words[0], "link") == 0))
        request_device(s, &a, client, words, n);
    else if ((n == 2 || n == 3) && strcmp(words[0], "wait") == 0)
        (void)wait_begin(s, client, words[1], n == 3 ? words[2] : NULL, a.error, sizeof(a.error));
    else if ((n == 1 || n == 2) && strcmp(words[0], "upgrade") == 0)
        (void)upgrade_begin(s, client, n == 2 ? words[1] : NULL, a.error, sizeof(a.error));
    else if (n == 1 && strcmp(words[0], "stop") == 0)
        supervisor_stop(s);
    else
        snprintf(a.error, sizeof(a.error), "the daemon does not understand this request");
    fclose(a.out);
    if (client->waits_for == 0 && !client->waits_ready && !client->waits_upgrade)
        control_reply(client, a.error[0] != '\0' ? a.error : NULL, text, len);
    free(text);
}

void control_read(struct supervisor *s, struct client *client)
{
    ssize_t n = read(client->fd, client->line + client->used,
                     sizeof(client->line) - 1 - client->used);
    char *end;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || client->waits_for != 0 || client->waits_ready || client->waits_upgrade) {
        hang_up(client);
        return;
    }
    client->used += (size_t)n;
    client->line[client->used] = '\0';
    end = strchr(client->line, '\n');
    if (end != NULL) {
        *end = '\0';
        execute(s, client);
    } else if (client->used == sizeof(client->line) - 1) {
        control_reply(client, "the request is too long", NULL, 0);
    }
}

void control_replied(struct supervisor *s, uint32_t domid, uint32_t id, int32_t status,
                     const char *text)
{
    for (size_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &s->clients[i];

        if (client->fd >= 0 && id != 0 && client->waits_for == id &&
            client->waits_domid == domid) {
            char line[CONFIG_ERROR_LEN];
            int n = snprintf(line, sizeof(line), "%.400s\n", text);

            if (status < 0) {
                line[n - 1] = '\0';
                control_reply(client, line, NULL, 0);
            } else {
                control_reply(client, NULL, line, (size_t)n);
            }
        }
    }
}

void control_expire(struct supervisor *s, int64_t now)
{
    char error[CONFIG_ERROR_LEN];

    for (size_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &s->clients[i];

        if (client->fd >= 0 && client->answer != NULL) {
            if (now >= client->until_ns)
                hang_up(client);
        } else if (client->fd >= 0 && client->waits_ready) {
            if (wait_is_over(s, client, now, error, sizeof(error)))
                control_reply(client, error[0] != '\0' ? error : NULL, "", 0);
        } else if (client->fd >= 0 && now >= client->until_ns) {
            control_reply(client, "the guest's worker did not answer in time", NULL, 0);
        }
    }
}

void control_accept(struct supervisor *s)
{
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        if (s->clients[i].fd < 0) {
            s->clients[i] = (struct client){.fd = fd, .until_ns = monotonic_ns() + CLIENT_BOUND_NS};
            return;
        }
    close(fd);
}

int control_open(struct supervisor *s)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/viod.sock",
                     s->config->run_dir);
    int probe;

    s->listen_fd = -1;
    if (n < 0 || (size_t)n >= sizeof(address.sun_path)) {
        log_error("run-dir %s is too long for a socket in it", s->config->run_dir);
        return -ENAMETOOLONG;
    }
    probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (probe >= 0 && connect(probe, (struct sockaddr *)&address, sizeof(address)) == 0) {
        log_error("another viod is running: it answers at %s", address.sun_path);
        close(probe);
        return -EBUSY;
    }
    if (probe >= 0)
        close(probe);
    (void)unlink(address.sun_path);
    s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listen_fd < 0 ||
        bind(s->listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        chmod(address.sun_path, 0600) < 0 || listen(s->listen_fd, CLIENTS_MAX) < 0) {
        int ret = -errno;

        log_error("cannot listen at %s: %m", address.sun_path);
        return ret;
    }
    memcpy(s->control_path, address.sun_path, sizeof(s->control_path));
    return 0;
}

void control_close(struct supervisor *s)
{
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    if (s->control_path[0] != '\0')
        (void)unlink(s->control_path);
}
