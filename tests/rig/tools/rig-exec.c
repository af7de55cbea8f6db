/* Runs the bash script on standard input in a domU, prints what it prints, ends with its status. See job.h.
 * Own statuses: 124 time is up, 125 no such domain, or it went away. */
#define _GNU_SOURCE
#include "job.h"

#include <getopt.h>

static struct xs_handle *xs;
static unsigned domid;
static char name_node[64];
static struct timespec deadline;

/* The domain with that name, or -1. */
static long find_domain(const char *name)
{
    unsigned count, len;
    char **ids = xs_directory(xs, XBT_NULL, "/local/domain", &count);
    long found = -1;

    for (unsigned i = 0; ids && i < count && found < 0; i++) {
        char path[64];

        snprintf(path, sizeof path, "/local/domain/%s/name", ids[i]);
        char *value = xs_read(xs, XBT_NULL, path, &len);
        if (value && strcmp(value, name) == 0)
            found = strtol(ids[i], NULL, 10);
        free(value);
    }
    free(ids);
    return found;
}

/* Waits till something in xenstore has changed. */
static void wait_for_change(void)
{
    struct pollfd event = { .fd = xs_fileno(xs), .events = POLLIN };
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    long left = (deadline.tv_sec - now.tv_sec) * 1000 + (deadline.tv_nsec - now.tv_nsec) / 1000000;
    if (left <= 0)
        fail(124, "domain %u: time is up", domid);
    if (!node_exists(xs, name_node))
        fail(125, "domain %u has gone away", domid);
    poll(&event, 1, (int)left);
    drain_watches(xs);
}

static void send_script(const char *job)
{
    char path[160], piece[PIECE];
    long pieces = 0;
    size_t len;

    while ((len = fread(piece, 1, sizeof piece, stdin)) > 0) {
        snprintf(path, sizeof path, "%s/script/%ld", job, pieces++);
        if (!xs_write(xs, XBT_NULL, path, piece, (unsigned)len))
            fail(125, "cannot send the script: %s", strerror(errno));
    }
    snprintf(path, sizeof path, "%s/start", job);
    node_write(xs, path, "%ld", pieces);
}

/* Prints all pieces from `next` on that are there; returns the number of the next one. */
static long print_output(const char *job, long next)
{
    char path[160];
    long first = next;

    for (;; next++) {
        unsigned len;

        snprintf(path, sizeof path, "%s/out/%ld", job, next);
        char *piece = xs_read(xs, XBT_NULL, path, &len);
        if (!piece)
            break;
        fwrite(piece, 1, len, stdout);
        free(piece);
        xs_rm(xs, XBT_NULL, path);
    }
    fflush(stdout);
    if (next > first) {
        snprintf(path, sizeof path, "%s/ack", job);
        node_write(xs, path, "%ld", next);
    }
    return next;
}

int main(int argc, char **argv)
{
    char base[64], ready[96], job[128], path[160];
    long timeout = 60, next = 0;
    bool wait_only = false;
    int option;

    while ((option = getopt(argc, argv, "t:w")) != -1) {
        if (option == 't')
            timeout = strtol(optarg, NULL, 10);
        else if (option == 'w')
            wait_only = true;
        else
            return 2;
    }
    if (optind != argc - 1)
        fail(2, "usage: rig-exec [-t SECONDS] [-w] DOMAIN <SCRIPT    (-w: only wait for the agent)");
    if (!(xs = xs_open(0)))
        fail(125, "no xenstore: %s", strerror(errno));
    long found = find_domain(argv[optind]);
    if (found < 0)
        fail(125, "no domain %s", argv[optind]);
    domid = (unsigned)found;

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += timeout;

    snprintf(base, sizeof base, "/local/domain/%u/data/rig", domid);
    snprintf(ready, sizeof ready, "%s/ready", base);
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(job, sizeof job, "%s/jobs/%lld-%09ld-%d", base, (long long)now.tv_sec, now.tv_nsec, getpid());

    snprintf(name_node, sizeof name_node, "/local/domain/%u/name", domid);
    xs_watch(xs, name_node, "gone");
    xs_watch(xs, ready, "ready");
    while (!node_exists(xs, ready))
        wait_for_change();
    xs_unwatch(xs, ready, "ready");
    if (wait_only)
        return 0;

    snprintf(path, sizeof path, "%s/out", job);
    xs_watch(xs, path, "out");
    snprintf(path, sizeof path, "%s/status", job);
    xs_watch(xs, path, "status");
    send_script(job);

    for (;;) {
        unsigned len;
        /* Looked at before the output: with the status there, all output is. */
        char *value = xs_read(xs, XBT_NULL, path, &len);

        next = print_output(job, next);
        if (value) {
            int status;
            long pieces;

            if (sscanf(value, "%d %ld", &status, &pieces) != 2 || pieces != next)
                fail(125, "domain %u: output was lost (%s, got %ld)", domid, value, next);
            xs_rm(xs, XBT_NULL, job);
            return status;
        }
        wait_for_change();
    }
}
