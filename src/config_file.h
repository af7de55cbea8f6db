/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An INI file in memory: sections and keys with their lines. Knows no key. Only for config.c.
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

/* 0 (also if there is no such file), or -errno with a message. *file is valid in both cases. */
int config_file_load(const char *path, struct config_file *file, char *error, size_t error_len);
void config_file_free(struct config_file *file);
const struct file_section *config_file_section(const struct config_file *file, const char *name);

/* Writes the message and returns -EINVAL. */
int config_fail(char *error, size_t error_len, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Single edits between two words, at most 64 (also for words too long to compare). */
unsigned config_distance(const char *a, const char *b);
/* True if somebody who wrote `word` may have meant a word at this distance. */
bool config_is_near(const char *word, unsigned distance);

#endif
