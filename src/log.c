/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024
#define LIMIT_INTERVAL_NS INT64_C(1000000000)

static char process_name[96] = "viod";
static enum log_level threshold = LOG_LEVEL_INFO;
static bool to_journal;

/* The prefix that journald turns into a priority. */
static const char *const level_prefix[] = {
    [LOG_LEVEL_ERROR] = "<3>", [LOG_LEVEL_WARNING] = "<4>", [LOG_LEVEL_INFO] = "<6>",
    [LOG_LEVEL_DEBUG] = "<7>",
};
static const char *const level_word[] = {
    [LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

void log_set_name(const char *name)
{
    snprintf(process_name, sizeof(process_name), "%s", name);
    to_journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_set_level(enum log_level level)
{
    threshold = level;
}

int log_level_parse(const char *word, enum log_level *level)
{
    for (size_t i = 0; i < sizeof(level_word) / sizeof(level_word[0]); i++)
        if (strcmp(word, level_word[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

bool log_enabled(enum log_level level)
{
    return level <= threshold;
}

/* One write per line, so that lines of several processes do not mix. */
__attribute__((format(printf, 3, 0))) static void
write_line(enum log_level level, uint32_t swallowed, const char *format, va_list args)
{
    char line[LINE_MAX_BYTES];
    int saved = errno;
    size_t used = 0;
    int n;

    if (to_journal)
        used += (size_t)snprintf(line, sizeof(line), "%s", level_prefix[level]);
    n = snprintf(line + used, sizeof(line) - used, "viod: %s: %s: ", process_name,
                 level_word[level]);
    used += (size_t)n;
    errno = saved; /* for %m */
    n = vsnprintf(line + used, sizeof(line) - used, format, args);
    if (n > 0)
        used += (size_t)n;
    if (used >= sizeof(line) - 1)
        used = sizeof(line) - 2;
    if (swallowed > 0 && used < sizeof(line) - 48)
        used += (size_t)snprintf(line + used, sizeof(line) - used, " (and %u more like this)",
                                 swallowed);
    /* A name or a path may hold anything: nothing but one line of printable text leaves here. */
    for (size_t i = 0; i < used; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[used++] = '\n';
    (void)!write(STDERR_FILENO, line, used);
    errno = saved;
}

void log_write(enum log_level level, const char *format, ...)
{
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, format);
    write_line(level, 0, format, args);
    va_end(args);
}

void log_write_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
    struct timespec ts;
    int64_t now, next;
    va_list args;

    if (!log_enabled(level))
        return;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    now = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    next = atomic_load_explicit(&limit->next_ns, memory_order_relaxed);
    if (now < next ||
        !atomic_compare_exchange_strong(&limit->next_ns, &next, now + LIMIT_INTERVAL_NS)) {
        atomic_fetch_add_explicit(&limit->swallowed, 1, memory_order_relaxed);
        return;
    }
    va_start(args, format);
    write_line(level, atomic_exchange(&limit->swallowed, 0), format, args);
    va_end(args);
}
