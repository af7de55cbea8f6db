/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An INI file in memory: sections and keys with their lines. Knows no key. Only for config*.c.
 */
#ifndef VIOD_CONFIG_FILE_H
#define VIOD_CONFIG_FILE_H

#include "config.h"

struct file_entry {
    char *key;
    char *value;
    int line;
};

struct file_section {
    char *name;
    int line;
    struct file_entry *entries;
    size_t n_entries;
};

struct config_file {
    char *path;
    bool exists;
    struct file_section *sections;
    size_t n_sections;
};

struct guest_file {
    struct config_file file;
};

/* 0 (also if there is no such file), or -errno with a message. *file is valid in both cases. */
int config_file_load(const char *path, struct config_file *file, char *error, size_t error_len);
/* The same from a text; `path` is what messages call it. */
int config_file_parse(const char *path, const char *text, size_t len, struct config_file *file,
                      char *error, size_t error_len);
void config_file_free(struct config_file *file);
const struct file_section *config_file_section(const struct config_file *file, const char *name);

/* Writes the message, with '?' for control characters, and returns -EINVAL. */
int config_fail(char *error, size_t error_len, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Single edits between two words, at most 64 (also for words too long to compare). */
unsigned config_distance(const char *a, const char *b);
/* True if somebody who wrote `word` may have meant a word at this distance. */
bool config_is_near(const char *word, unsigned distance);


/* ---- config.c and config_parts.c share ---- */

#define CONFIG_WHY_LEN 256u
size_t config_count_keys(const struct config_key *keys);
const struct config_key *config_find_key(const struct config_key *keys, const char *name, size_t len);
/* 0, or -EINVAL with "what is wrong; what would be right" in `why`. */
int config_value_check(const struct config_key *key, const char *value, char *why, size_t why_len);
int config_unknown_key(const char *path, const struct file_section *section,
                       const struct file_entry *entry, const struct config_key *keys, char *error,
                       size_t error_len);
const char *config_values_string(const struct config_value *values, size_t n, const char *key);
bool config_values_bool(const struct config_value *values, size_t n, const char *key);
uint64_t config_values_uint(const struct config_value *values, size_t n, const char *key);
/* Also presets "part.key=value". `file` may be NULL. -ENOMEM without a message. */
int config_fill_parts(struct device_config *config, const struct device_type *type,
                      const struct config_file *file, const char *const *preset, char *error,
                      size_t error_len);
void config_free_parts(struct device_config *config);

#endif
