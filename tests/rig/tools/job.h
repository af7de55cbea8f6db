/* How dom0 (rig-exec) and a domU (rig-agent) speak: nodes of the domU's own xenstore directory.
 *
 *   data/rig/ready            written by the agent when it takes jobs: the guest's boot id
 *   data/rig/jobs/ID/script/N the job, a bash script, in pieces
 *   data/rig/jobs/ID/start    written last: how many pieces
 *   data/rig/jobs/ID/out/N    what the job prints, in pieces; removed by dom0 once read
 *   data/rig/jobs/ID/ack      how many of them dom0 has read
 *   data/rig/jobs/ID/status   "STATUS PIECES", written last
 *
 * xenstore loses nothing and exists in every domU, whatever state viod is in: a job's output
 * does not depend on what is being tested. */
#ifndef JOB_H
#define JOB_H

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <xenstore.h>

/* xenstored lets a domU have nodes of 2048 bytes, and 1000 of them. */
#define PIECE 1900
#define PIECES_AHEAD 64

static inline __attribute__((noreturn, format(printf, 2, 3))) void fail(int status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

static inline bool node_write(struct xs_handle *xs, const char *path, const char *format, ...)
{
    char value[64];
    va_list args;

    va_start(args, format);
    int len = vsnprintf(value, sizeof value, format, args);
    va_end(args);
    return xs_write(xs, XBT_NULL, path, value, (unsigned)len);
}

/* A number in a node, or `otherwise` if there is no such node. */
static inline long node_number(struct xs_handle *xs, const char *path, long otherwise)
{
    unsigned len;
    char *value = xs_read(xs, XBT_NULL, path, &len);

    if (!value)
        return otherwise;
    long number = strtol(value, NULL, 10);
    free(value);
    return number;
}

static inline bool node_exists(struct xs_handle *xs, const char *path)
{
    unsigned len;
    char *value = xs_read(xs, XBT_NULL, path, &len);

    free(value);
    return value != NULL;
}

/* Forgets the watch events that have come in; what they tell is read from the nodes themselves. */
static inline void drain_watches(struct xs_handle *xs)
{
    char **event;

    while ((event = xs_check_watch(xs)))
        free(event);
}

#endif
