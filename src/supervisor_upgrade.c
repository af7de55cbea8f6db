/* SPDX-License-Identifier: Apache-2.0 */
/*
 * viodctl upgrade: another program takes this one's place, under the same process number. It is asked
 * before: a program that cannot take over what is here says so (viod --check-state), and this one goes
 * on. What follows is the same as after a restart: see supervisor_takeover.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "supervisor_internal.h"

#define ASK_BOUND_NS (INT64_C(10) * 1000000000)
#define ARGS_MAX 16

/* The file that this process was started from may have been replaced: its name is what counts. */
static int own_path(char *path, size_t len)
{
    static const char deleted[] = " (deleted)";
    ssize_t n = readlink("/proc/self/exe", path, len - 1);
    size_t used = (size_t)n;

    if (n < 0)
        return -errno;
    path[used] = '\0';
    if (used > sizeof(deleted) - 1 && strcmp(path + used - (sizeof(deleted) - 1), deleted) == 0)
        path[used - (sizeof(deleted) - 1)] = '\0';
    return 0;
}

/* This program's arguments, for that one. */
static void make_args(struct supervisor *s, char *last, char *args[ARGS_MAX])
{
    size_t n = 0;

    args[n++] = s->upgrade.path;
    for (size_t i = 1; s->argv[0] != NULL && s->argv[i] != NULL && n < ARGS_MAX - 2; i++)
        args[n++] = s->argv[i];
    args[n++] = last;
    args[n] = NULL;
}

static void ask(struct supervisor *s, int out)
{
    static char option[] = "--check-state";
    char *args[ARGS_MAX];
    sigset_t none;

    make_args(s, option, args);
    (void)unsetenv("JOURNAL_STREAM"); /* what it says is for viodctl's user: without priorities */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(out, STDOUT_FILENO) < 0 || dup2(out, STDERR_FILENO) < 0 ||
        close_range(STDERR_FILENO + 1, ~0u, 0) < 0)
        _exit(127);
    execv(s->upgrade.path, args);
    printf("%s: cannot be executed: %s\n", s->upgrade.path, strerror(errno));
    fflush(stdout);
    _exit(127);
}

int upgrade_begin(struct supervisor *s, struct client *client, const char *path, char *error,
                  size_t error_len)
{
    struct upgrade *u = &s->upgrade;
    int ends[2], ret = 0;

    if (u->pid > 0 || s->stopping || s->leaving) {
        snprintf(error, error_len, "%s",
                 u->pid > 0 ? "an upgrade has begun already" : "viod is stopping");
        return -EBUSY;
    }
    if (path == NULL)
        ret = own_path(u->path, sizeof(u->path));
    else if (path[0] != '/' || strlen(path) >= sizeof(u->path))
        ret = -EINVAL;
    else
        snprintf(u->path, sizeof(u->path), "%s", path);
    if (ret == -EINVAL) {
        snprintf(error, error_len, "\"%.200s\" is not the absolute path of a program", path);
        return ret;
    }
    if (ret == 0 && access(u->path, X_OK) < 0)
        ret = -errno;
    if (ret < 0) {
        snprintf(error, error_len, "%.200s: %s", u->path, strerror(-ret));
        return ret;
    }
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        ret = -errno;
    else
        u->pid = fork();
    if (ret == 0 && u->pid < 0) {
        ret = -errno;
        close(ends[0]);
        close(ends[1]);
    }
    if (ret < 0) {
        u->pid = 0;
        snprintf(error, error_len, "cannot start %.200s: %s", u->path, strerror(-ret));
        return ret;
    }
    if (u->pid == 0)
        ask(s, ends[1]);
    close(ends[1]);
    u->fd = ends[0];
    u->until_ns = monotonic_ns() + ASK_BOUND_NS;
    client->waits_upgrade = true;
    client->until_ns = INT64_MAX; /* see upgrade_expire */
    return 0;
}

static void answer(struct supervisor *s, const char *error, const char *text)
{
    for (size_t i = 0; i < CLIENTS_MAX; i++)
        if (s->clients[i].fd >= 0 && s->clients[i].waits_upgrade)
            control_reply(&s->clients[i], error, text, strlen(text));
}

/* In place of this program; returns only if that failed. */
static void replace(struct supervisor *s)
{
    char *args[ARGS_MAX];

    make_args(s, NULL, args);
    /* Libraries open what they like. Each worker sees that its supervisor is gone. */
    if (close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC) == 0)
        execv(s->upgrade.path, args);
    log_error("%s cannot take over: %s", s->upgrade.path, strerror(errno));
}

void upgrade_answered(struct supervisor *s, int status)
{
    struct upgrade *u = &s->upgrade;
    char said[CONFIG_ERROR_LEN - 32], text[CONFIG_ERROR_LEN];
    ssize_t n = read(u->fd, said, sizeof(said) - 1);

    close(u->fd);
    u->pid = 0;
    said[MAX(n, 0)] = '\0';
    said[strcspn(said, "\n")] = '\0';
    if (s->stopping || s->leaving) { /* told to end meanwhile: another one would not know */
        answer(s, "viod is stopping", "");
        return;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS) {
        log_info("viod " VIOD_VERSION " gives its place to %s (%s)", u->path, said);
        snprintf(text, sizeof(text), "%s takes over\n", said);
        answer(s, NULL, text);
        replace(s);
        return;
    }
    if (WIFSIGNALED(status))
        snprintf(text, sizeof(text), "%.200s was killed by signal %d", u->path, WTERMSIG(status));
    else if (said[0] != '\0')
        snprintf(text, sizeof(text), "%s", said);
    else
        snprintf(text, sizeof(text), "%.200s ended with status %d", u->path, WEXITSTATUS(status));
    log_warning("no upgrade: %s", text);
    answer(s, text, "");
}

void upgrade_expire(struct supervisor *s, int64_t now)
{
    if (s->upgrade.pid > 0 && now >= s->upgrade.until_ns)
        (void)kill(s->upgrade.pid, SIGKILL); /* and its end is the answer */
}
