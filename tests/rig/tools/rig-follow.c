/* Prints every line that is added to some files, and to the files of some folders, as "[name] line".
 * A kernel panic among them is told on descriptor 3, unless the script in dom0 expects one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 256
#define PANIC_FD 3
#define PANIC_ALLOWED "/rig/allow-guest-panic"

static struct followed {
    char path[PATH_MAX], name[NAME_MAX + 1], line[4096];
    size_t fill;
    int fd;
} *files[FILES];

static struct followed *follow(const char *path)
{
    size_t i;

    for (i = 0; i < FILES && files[i]; i++)
        if (strcmp(files[i]->path, path) == 0)
            return files[i];
    if (i == FILES)
        return NULL;
    struct followed *file = calloc(1, sizeof *file);
    if (!file || (file->fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) {
        free(file);
        return NULL;
    }
    snprintf(file->path, sizeof file->path, "%s", path);
    const char *name = strrchr(path, '/') + 1;
    snprintf(file->name, sizeof file->name, "%s", strncmp(name, "guest-", 6) == 0 ? name + 6 : name);
    char *dot = strrchr(file->name, '.');
    if (dot)
        *dot = '\0';
    return files[i] = file;
}

static void print_new(struct followed *file)
{
    char data[4096];
    ssize_t n;

    while ((n = read(file->fd, data, sizeof data)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (data[i] == '\r' || data[i] == '\0')
                continue;
            if (data[i] != '\n' && file->fill < sizeof file->line - 1) {
                file->line[file->fill++] = data[i];
                continue;
            }
            file->line[file->fill] = '\0';
            file->fill = 0;
            printf("[%s] %s\n", file->name, file->line);
            if (strstr(file->line, "Kernel panic - not syncing") && access(PANIC_ALLOWED, F_OK) != 0)
                dprintf(PANIC_FD, "panic [%s] %s\n", file->name, file->line);
        }
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static char events[64 * 1024] __attribute__((aligned(8)));
    const char *watched[argc + 1];
    int inotify = inotify_init1(IN_CLOEXEC);

    for (int i = 1; i < argc; i++) {
        int watch = inotify_add_watch(inotify, argv[i], IN_CREATE | IN_MODIFY);

        if (watch < 0 || watch > argc) {
            fprintf(stderr, "rig-follow: %s: %s\n", argv[i], strerror(errno));
            return 1;
        }
        watched[watch] = argv[i];
    }
    for (;;) {
        ssize_t len = read(inotify, events, sizeof events);

        for (char *at = events; at < events + len;) {
            struct inotify_event *event = (struct inotify_event *)at;
            char path[PATH_MAX];

            at += sizeof *event + event->len;
            if (event->mask & (IN_IGNORED | IN_Q_OVERFLOW))
                continue;
            snprintf(path, sizeof path, "%s%s%s", watched[event->wd], event->len ? "/" : "",
                     event->len ? event->name : "");
            struct followed *file = follow(path);
            if (file)
                print_new(file);
        }
    }
}
