/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages for the administrator, on stderr (the journal, under systemd).
 *
 * Every function keeps errno and may be called from any thread. What a guest can cause goes through
 * the _limited forms: one line per call site and second, and the next line says how many were
 * swallowed.
 */
#ifndef VIOD_LOG_H
#define VIOD_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* State of one rate-limited call site. */
struct log_limit {
    _Atomic int64_t next_ns; /* monotonic time from which the next line may be written */
    _Atomic uint32_t swallowed;
};

/* Who speaks: "supervisor", "domain 3 (guest)". Copied. Called before threads exist. */
void log_set_name(const char *name);
void log_set_level(enum log_level level);
/* 0, or -EINVAL for an unknown word. Accepts error, warning, info, debug. */
int log_level_parse(const char *word, enum log_level *level);
bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Writes only if the limit allows. */
void log_write_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                          \
            log_write(LOG_LEVEL_DEBUG, __VA_ARGS__);                                               \
    } while (0)

/* For lines that a guest can cause: at most one per call site and second. */
#define log_guest(...)                                                                             \
    do {                                                                                           \
        static struct log_limit log_limit_;                                                        \
        log_write_limited(&log_limit_, LOG_LEVEL_WARNING, __VA_ARGS__);                            \
    } while (0)
/* The same for errors of the host that a guest's requests can repeat at will. */
#define log_host(...)                                                                              \
    do {                                                                                           \
        static struct log_limit log_limit_;                                                        \
        log_write_limited(&log_limit_, LOG_LEVEL_ERROR, __VA_ARGS__);                              \
    } while (0)

#endif
