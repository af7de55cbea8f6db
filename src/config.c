/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "config_file.h"
#include "log.h"

#define WHY_LEN CONFIG_WHY_LEN

/* ---- values ---- */

static bool word_in_list(const char *word, const char *list)
{
    size_t len = strlen(word);

    while (*list) {
        size_t item = strcspn(list, " ");

        if (item == len && !memcmp(list, word, len))
            return true;
        list += item;
        list += strspn(list, " ");
    }
    return false;
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const words[][2] = {
        {"no", "yes"}, {"false", "true"}, {"off", "on"}, {"0", "1"}};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        for (size_t j = 0; j < 2; j++) {
            if (!strcmp(text, words[i][j])) {
                *out = j == 1;
                return true;
            }
        }
    }
    return false;
}

/* Digits only: strtoull would take signs, blanks and wrapped numbers. */
static bool parse_uint(const char *text, uint64_t *out)
{
    uint64_t value = 0;

    if (!text[0])
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    }
    *out = value;
    return true;
}

static void choices_text(const char *choices, char *out, size_t out_len)
{
    size_t used = 0;

    out[0] = '\0';
    while (*choices) {
        size_t item = strcspn(choices, " ");
        bool last = choices[item] == '\0';
        int n = snprintf(out + used, out_len - used, "%s%.*s",
                         used == 0 ? "" : (last ? " or " : ", "), (int)item, choices);

        used = MIN(used + (size_t)MAX(n, 0), out_len - 1);
        choices += item;
        choices += strspn(choices, " ");
    }
}

/* What a value of this key must look like. */
static void expected_text(const struct config_key *key, char *out, size_t out_len)
{
    switch (key->type) {
    case KEY_BOOL:
        snprintf(out, out_len, "write yes or no");
        return;
    case KEY_PATH:
        snprintf(out, out_len, "write an absolute path, it begins with /");
        return;
    case KEY_STRING:
        snprintf(out, out_len, "write at most %" PRIu64 " printable characters",
                 key->max ? key->max : (uint64_t)CONFIG_VALUE_MAX);
        return;
    case KEY_UINT:
        if (!key->choices) {
            snprintf(out, out_len, "write a number from %" PRIu64 " to %" PRIu64, key->min,
                     key->max);
            return;
        }
        break;
    case KEY_CHOICE:
        break;
    }
    memcpy(out, "write ", sizeof("write "));
    choices_text(key->choices, out + 6, out_len - 6);
}

static const char *value_fault(const struct config_key *key, const char *value)
{
    size_t len = strlen(value);
    uint64_t number;
    bool flag;

    if (len == 0)
        return "is empty";
    if (len > CONFIG_VALUE_MAX)
        return "is too long";
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return "has a control character";

    switch (key->type) {
    case KEY_STRING:
        return key->max && len > key->max ? "is too long" : NULL;
    case KEY_PATH:
        return value[0] == '/' ? NULL : "is not an absolute path";
    case KEY_BOOL:
        return parse_bool(value, &flag) ? NULL : "is neither yes nor no";
    case KEY_UINT:
        if (!parse_uint(value, &number))
            return "is not a number";
        if (number < key->min || number > key->max)
            return "is out of range";
        if (key->choices) {
            char plain[24]; /* "0512" is 512 */

            snprintf(plain, sizeof(plain), "%" PRIu64, number);
            if (!word_in_list(plain, key->choices))
                return "is not possible";
        }
        return NULL;
    case KEY_CHOICE:
        return strchr(value, ' ') || !word_in_list(value, key->choices) ? "is not possible" : NULL;
    }
    return "is not possible";
}

/* 0, or -EINVAL with "what is wrong; what would be right" in `why`. */
int config_value_check(const struct config_key *key, const char *value, char *why, size_t why_len)
{
    const char *fault = value_fault(key, value);
    char expected[WHY_LEN];

    if (!fault)
        return 0;
    expected_text(key, expected, sizeof(expected));
    /* A comment of the wrong kind is the usual reason for a good value that is not understood. */
    if (key->type != KEY_STRING && key->type != KEY_PATH && strstr(value, " #"))
        snprintf(why, why_len, "%s = %.80s: %s; %s (a comment behind a value begins with ;)",
                 key->name, value, fault, expected);
    else
        snprintf(why, why_len, "%s = %.80s: %s; %s", key->name, value, fault, expected);
    return -EINVAL;
}

static bool same_value(const struct config_key *key, const char *a, const char *b)
{
    uint64_t x, y;
    bool p, q;

    if (key->type == KEY_BOOL && parse_bool(a, &p) && parse_bool(b, &q))
        return p == q;
    if (key->type == KEY_UINT && parse_uint(a, &x) && parse_uint(b, &y))
        return x == y;
    return !strcmp(a, b);
}

const struct config_key *config_find_key(const struct config_key *keys, const char *name, size_t len)
{
    for (; keys->name; keys++)
        if (strlen(keys->name) == len && !memcmp(keys->name, name, len))
            return keys;
    return NULL;
}

/* "nearest known key: cache", or all of them. */
static void known_keys_text(const struct config_key *keys, const char *word, char *out,
                            size_t out_len)
{
    const struct config_key *nearest = NULL;
    unsigned best = UINT32_MAX;
    size_t used;

    for (const struct config_key *key = keys; key->name; key++) {
        unsigned distance = config_distance(word, key->name);

        if (distance < best) {
            best = distance;
            nearest = key;
        }
    }
    if (nearest && config_is_near(word, best)) {
        snprintf(out, out_len, "the nearest known key is \"%s\"", nearest->name);
        return;
    }
    used = (size_t)snprintf(out, out_len, "known keys:");
    for (; keys->name && used < out_len - 1; keys++) {
        int n = snprintf(out + used, out_len - used, " %s", keys->name);

        used = MIN(used + (size_t)MAX(n, 0), out_len - 1);
    }
}

int config_unknown_key(const char *path, const struct file_section *section,
                       const struct file_entry *entry, const struct config_key *keys, char *error,
                       size_t error_len)
{
    char known[WHY_LEN];

    known_keys_text(keys, entry->key, known, sizeof(known));
    return config_fail(error, error_len, "%s:%d: unknown key \"%.40s\" in [%s]; %s", path,
                       entry->line, entry->key, section->name, known);
}

/* ---- a device's values ---- */

size_t config_count_keys(const struct config_key *keys)
{
    size_t n = 0;

    while (keys[n].name)
        n++;
    return n;
}

static int alloc_values(struct device_config *config, const struct device_type *type)
{
    size_t n = config_count_keys(type->keys);

    config->values = calloc(n, sizeof(*config->values));
    if (!config->values)
        return -ENOMEM;
    config->n_values = n;
    config->virtio_id = type->virtio_id;
    for (size_t i = 0; i < n; i++)
        config->values[i].key = &type->keys[i];
    config->n_fds = 0;
    for (size_t i = 0; i < DEVICE_FDS_MAX; i++)
        config->fds[i] = -1;
    return 0;
}

static void free_values(struct device_config *config)
{
    for (size_t i = 0; i < config->n_values; i++)
        free(config->values[i].value);
    free(config->values);
    config->values = NULL;
    config->n_values = 0;
    config_free_parts(config);
}

static int apply_preset(struct device_config *config, const struct device_type *type,
                        const char *preset, char *error, size_t error_len)
{
    const char *equals = strchr(preset, '=');
    const struct config_key *key;
    struct config_value *value;
    char why[WHY_LEN];

    assert(equals);
    key = config_find_key(type->keys, preset, (size_t)(equals - preset));
    assert(key);
    if (config_value_check(key, equals + 1, why, sizeof(why)))
        return config_fail(error, error_len, "%s: the domain's xl configuration says %s",
                           config->name, why);
    value = &config->values[key - type->keys];
    free(value->value);
    value->value = strdup(equals + 1);
    return value->value ? 0 : -ENOMEM;
}

static int apply_section(struct device_config *config, const struct device_type *type,
                         const char *path, const struct file_section *section, char *error,
                         size_t error_len)
{
    for (size_t i = 0; i < section->n_entries; i++) {
        const struct file_entry *entry = &section->entries[i];
        const struct config_key *key = config_find_key(type->keys, entry->key, strlen(entry->key));
        struct config_value *value;
        char why[WHY_LEN];

        if (!key)
            return config_unknown_key(path, section, entry, type->keys, error, error_len);
        if (config_value_check(key, entry->value, why, sizeof(why)))
            return config_fail(error, error_len, "%s:%d: %s", path, entry->line, why);
        value = &config->values[key - type->keys];
        if (value->value) {
            if (!same_value(key, value->value, entry->value))
                return config_fail(error, error_len,
                                   "%s:%d: %s = %.80s contradicts the domain's xl configuration, "
                                   "which says (or means by default) %s = %.80s; remove this "
                                   "line, or change the disk= line there",
                                   path, entry->line, key->name, entry->value, key->name,
                                   value->value);
            continue;
        }
        value->value = strdup(entry->value);
        if (!value->value)
            return -ENOMEM;
        value->line = entry->line;
    }
    return 0;
}

static int missing_key(const struct device_config *config, const struct config_key *key,
                       const struct config_file *file, const struct file_section *section,
                       char *error, size_t error_len)
{
    const char *example = key->type == KEY_PATH ? "/absolute/path" : "...";
    char present[WHY_LEN] = "no section";
    size_t used = 0;

    if (section)
        return config_fail(error, error_len, "%s:%d: [%s] has no \"%s\" (%s); write %s = %s",
                           file->path, section->line, section->name, key->name, key->help,
                           key->name, example);
    if (!file || !file->exists)
        return config_fail(error, error_len, "%s: does not exist; write section [%s] with %s = %s "
                           "(%s) into it", file ? file->path : "the guest's file", config->name,
                           key->name, example, key->help);
    for (size_t i = 0; i < file->n_sections && used < sizeof(present) - 1; i++) {
        int n = snprintf(present + used, sizeof(present) - used, "%s[%s]", i ? " " : "only ",
                         file->sections[i].name);

        used = MIN(used + (size_t)MAX(n, 0), sizeof(present) - 1);
    }
    return config_fail(error, error_len, "%s: has %s; write section [%s] with %s = %s (%s)",
                       file->path, present, config->name, key->name, example, key->help);
}

/* What is better for granted memory, where nobody said otherwise. */
static int fill_for_grants(struct device_config *config)
{
    for (size_t i = 0; i < config->n_values; i++) {
        struct config_value *value = &config->values[i];

        if (!config->grant_usage || value->value || !value->key->granted_value)
            continue;
        value->value = strdup(value->key->granted_value);
        value->is_granted_value = true;
        if (!value->value)
            return -ENOMEM;
    }
    return 0;
}

static int fill(struct device_config *config, const struct device_type *type,
                const struct guest_file *file, const char *const *preset, bool is_new, char *error,
                size_t error_len)
{
    const struct file_section *section =
        file ? config_file_section(&file->file, config->name) : NULL;
    int ret = alloc_values(config, type);

    for (const char *const *p = preset; !ret && p && *p; p++)
        if (!type->parts_key || !memchr(*p, '.', strcspn(*p, "=")))
            ret = apply_preset(config, type, *p, error, error_len);
    if (!ret && section)
        ret = apply_section(config, type, file->file.path, section, error, error_len);
    if (!ret && is_new)
        ret = fill_for_grants(config);
    for (size_t i = 0; !ret && i < config->n_values; i++)
        if (config->values[i].key->required && !config->values[i].value)
            ret = missing_key(config, config->values[i].key, file ? &file->file : NULL, section,
                              error, error_len);
    if (!ret)
        ret = config_fill_parts(config, type, file ? &file->file : NULL, preset, error, error_len);
    if (!ret && is_new && type->check)
        ret = type->check(config, error, error_len);
    if (ret == -ENOMEM)
        snprintf(error, error_len, "%s: out of memory", config->name);
    if (ret)
        free_values(config);
    return ret;
}

int device_config_fill(struct device_config *config, const struct device_type *type,
                       const struct guest_file *file, const char *const *preset, char *error,
                       size_t error_len)
{
    return fill(config, type, file, preset, true, error, error_len);
}

int device_config_restore(struct device_config *config, const struct device_type *type,
                          const char *const *preset, char *error, size_t error_len)
{
    return fill(config, type, NULL, preset, false, error, error_len);
}

int disk_presets(const char *params, bool read_only, bool discard_enable, char *text,
                 size_t text_len, const char *presets[DISK_PRESETS])
{
    int n = snprintf(text, text_len, "path=%s", params);

    if (n < 0 || (size_t)n >= text_len)
        return -ENAMETOOLONG;
    presets[0] = text;
    presets[1] = read_only ? "readonly=yes" : "readonly=no";
    presets[2] = discard_enable ? "discard=yes" : "discard=no";
    presets[3] = NULL;
    return 0;
}

void device_config_close_fds(struct device_config *config)
{
    for (size_t i = 0; i < config->n_fds; i++) {
        if (config->fds[i] >= 0)
            close(config->fds[i]);
        config->fds[i] = -1;
    }
    config->n_fds = 0;
}

void device_config_free(struct device_config *config)
{
    free_values(config);
    device_config_close_fds(config);
    device_config_close_kept(config);
}

const char *config_values_string(const struct config_value *values, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(values[i].key->name, key))
            return values[i].value ? values[i].value : values[i].key->default_value;
    assert(false && "a key that the device type does not declare");
    return NULL;
}

bool config_values_bool(const struct config_value *values, size_t n, const char *key)
{
    const char *text = config_values_string(values, n, key);
    bool value = false;

    if (text)
        parse_bool(text, &value);
    return value;
}

uint64_t config_values_uint(const struct config_value *values, size_t n, const char *key)
{
    const char *text = config_values_string(values, n, key);
    uint64_t value = 0;

    if (text)
        parse_uint(text, &value);
    return value;
}

const char *device_config_string(const struct device_config *config, const char *key)
{
    return config_values_string(config->values, config->n_values, key);
}

bool device_config_bool(const struct device_config *config, const char *key)
{
    return config_values_bool(config->values, config->n_values, key);
}

uint64_t device_config_uint(const struct device_config *config, const char *key)
{
    return config_values_uint(config->values, config->n_values, key);
}

/* ---- a guest's file ---- */

const char *guest_name_fault(const char *name)
{
    if (name[0] == '\0' || !strcmp(name, "?") || strlen(name) > 63)
        return "the domain has no name, or one of more than 63 bytes";
    for (const char *c = name; *c; c++)
        if (iscntrl((unsigned char)*c))
            return "the domain's name has a control character";
    if (strchr(name, '/'))
        return "the domain's name contains a slash";
    if (!strcmp(name, "viod"))
        return "the domain's name is viod, and the file of that name is the daemon's own";
    return NULL;
}

int guest_file_load(const char *path, struct guest_file **out, char *error, size_t error_len)
{
    struct guest_file *file = calloc(1, sizeof(*file));
    int ret;

    *out = NULL;
    if (!file) {
        snprintf(error, error_len, "%s: out of memory", path);
        return -ENOMEM;
    }
    ret = config_file_load(path, &file->file, error, error_len);
    if (ret) {
        guest_file_free(file);
        return ret;
    }
    *out = file;
    return 0;
}

void guest_file_free(struct guest_file *file)
{
    if (!file)
        return;
    config_file_free(&file->file);
    free(file);
}

void guest_file_warn_unused(const struct guest_file *file, const char *const *used, size_t n_used,
                            void (*warn)(void *arg, const char *line), void *arg)
{
    for (size_t i = 0; file && i < file->file.n_sections; i++) {
        const struct file_section *section = &file->file.sections[i];
        char line[CONFIG_ERROR_LEN];
        const char *nearest = NULL;
        unsigned best = UINT32_MAX;
        bool found = false;

        for (size_t j = 0; j < n_used; j++) {
            size_t len = strlen(used[j]);
            unsigned distance = config_distance(section->name, used[j]);

            /* A part's: device_config_fill has judged it. */
            if (!strncmp(section->name, used[j], len) && section->name[len] == '.')
                distance = 0;

            found = found || distance == 0;
            if (distance < best) {
                best = distance;
                nearest = used[j];
            }
        }
        if (found)
            continue;
        if (nearest)
            snprintf(line, sizeof(line),
                     "%s:%d: [%s] matches no device of the guest; the nearest one is [%s]",
                     file->file.path, section->line, section->name, nearest);
        else
            snprintf(line, sizeof(line),
                     "%s:%d: [%s] matches no device, the guest has none that is served here; "
                     "remove the section or add a device to the xl configuration",
                     file->file.path, section->line, section->name);
        warn(arg, line);
    }
}

/* ---- the daemon's file ---- */

static const char *daemon_value(const struct file_section *section, const char *name)
{
    const struct config_key *key = config_find_key(daemon_keys, name, strlen(name));

    assert(key);
    for (size_t i = 0; section && i < section->n_entries; i++)
        if (!strcmp(section->entries[i].key, name))
            return section->entries[i].value;
    return key->default_value;
}

static uint32_t daemon_uint(const struct file_section *section, const char *name)
{
    uint64_t value = 0;

    parse_uint(daemon_value(section, name), &value);
    return (uint32_t)value;
}

static int daemon_file_check(const struct config_file *file, char *error, size_t error_len)
{
    char why[WHY_LEN];
    cpu_set_t cpus;

    for (size_t i = 0; i < file->n_sections; i++) {
        const struct file_section *section = &file->sections[i];

        if (strcmp(section->name, "viod"))
            return config_fail(error, error_len,
                               "%s:%d: unknown section [%s]; this file has only [viod], devices "
                               "are configured in <domain name>.conf",
                               file->path, section->line, section->name);
        for (size_t j = 0; j < section->n_entries; j++) {
            const struct file_entry *entry = &section->entries[j];
            const struct config_key *key =
                config_find_key(daemon_keys, entry->key, strlen(entry->key));

            if (!key)
                return config_unknown_key(file->path, section, entry, daemon_keys, error, error_len);
            if (config_value_check(key, entry->value, why, sizeof(why)))
                return config_fail(error, error_len, "%s:%d: %s", file->path, entry->line, why);
            if (!strcmp(key->name, "cpus") && config_parse_cpus(entry->value, &cpus) < 0)
                return config_fail(error, error_len,
                                   "%s:%d: cpus = %s: expected all, or numbers and ranges of CPUs up to %d, "
                                   "as in 0-1,3",
                                   file->path, entry->line, entry->value, CPU_SETSIZE - 1);
        }
    }
    return 0;
}

int config_parse_cpus(const char *list, cpu_set_t *cpus)
{
    CPU_ZERO(cpus);
    if (!strcmp(list, "all"))
        return 0;
    do {
        unsigned long first, last;
        char *end;

        if (!isdigit((unsigned char)*list))
            return -EINVAL;
        first = last = strtoul(list, &end, 10);
        if (*end == '-' && isdigit((unsigned char)end[1]))
            last = strtoul(end + 1, &end, 10);
        if (first > last || last >= CPU_SETSIZE || (*end != ',' && *end != '\0') ||
            (*end == ',' && end[1] == '\0'))
            return -EINVAL;
        for (; first <= last; first++)
            CPU_SET(first, cpus);
        list = end + (*end == ',');
    } while (*list != '\0');
    return 0;
}

int daemon_config_load(const char *path, struct daemon_config *config, char *error,
                       size_t error_len)
{
    const struct file_section *section;
    struct config_file file;
    enum log_level level = LOG_LEVEL_INFO;
    int ret;

    *config = (struct daemon_config){0};
    ret = config_file_load(path, &file, error, error_len);
    if (!ret)
        ret = daemon_file_check(&file, error, error_len);
    if (ret)
        goto out;

    section = config_file_section(&file, "viod");
    config->config_dir = strdup(daemon_value(section, "config-dir"));
    config->run_dir = strdup(daemon_value(section, "run-dir"));
    if (!config->config_dir || !config->run_dir) {
        daemon_config_free(config);
        snprintf(error, error_len, "%s: out of memory", path);
        ret = -ENOMEM;
        goto out;
    }
    log_level_parse(daemon_value(section, "log-level"), &level);
    config->log_level = (int)level;
    config->worker_uid_base = daemon_uint(section, "worker-uid-base");
    config->iothreads_auto = !strcmp(daemon_value(section, "iothreads"), "auto");
    config->iothreads = daemon_uint(section, "iothreads");
    (void)config_parse_cpus(daemon_value(section, "cpus"), &config->cpus);
    config->poll_max_us = daemon_uint(section, "poll-max-us");
out:
    config_file_free(&file);
    return ret;
}

void daemon_config_free(struct daemon_config *config)
{
    free(config->config_dir);
    free(config->run_dir);
    *config = (struct daemon_config){0};
}
