/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of a device (a console's ports): a list of names, and a section for each. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_file.h"

static size_t n_part_values(const struct config_part *part)
{
    size_t n = 0;

    while (part->values[n].key)
        n++;
    return n;
}

const char *config_part_string(const struct config_part *part, const char *key)
{
    return config_values_string(part->values, n_part_values(part), key);
}

bool config_part_bool(const struct config_part *part, const char *key)
{
    return config_values_bool(part->values, n_part_values(part), key);
}

uint64_t config_part_uint(const struct config_part *part, const char *key)
{
    return config_values_uint(part->values, n_part_values(part), key);
}

static struct config_part *find_part(const struct device_config *config, const char *name,
                                     size_t len)
{
    for (size_t i = 0; i < config->n_parts; i++)
        if (strlen(config->parts[i].name) == len && !memcmp(config->parts[i].name, name, len))
            return &config->parts[i];
    return NULL;
}

void config_free_parts(struct device_config *config)
{
    for (size_t i = 0; i < config->n_parts; i++) {
        for (size_t j = 0; config->parts[i].values[j].key; j++)
            free(config->parts[i].values[j].value);
        free(config->parts[i].values);
    }
    free(config->parts);
    config->parts = NULL;
    config->n_parts = 0;
}

/* Where the list is, for messages: "file:line", or the device's name. */
static void where(const struct device_config *config, const struct device_type *type,
                  const struct config_file *file, char *out, size_t len)
{
    const struct config_key *key = config_find_key(type->keys, type->parts_key,
                                                   strlen(type->parts_key));
    int line = config->values[key - type->keys].line;

    if (file && line)
        snprintf(out, len, "%s:%d", file->path, line);
    else
        snprintf(out, len, "%s", config->name);
}

static int add_part(struct device_config *config, const struct device_type *type, const char *name,
                    size_t len)
{
    struct config_part *part = &config->parts[config->n_parts];
    size_t n = config_count_keys(type->part_keys);

    part->values = calloc(n + 1, sizeof(*part->values));
    if (!part->values)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        part->values[i].key = &type->part_keys[i];
    memcpy(part->name, name, len);
    config->n_parts++;
    return 0;
}

static bool name_is_valid(const char *name, size_t len)
{
    if (len > CONFIG_PART_NAME_MAX || !isalnum((unsigned char)name[0]))
        return false;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)name[i]) && name[i] != '-' && name[i] != '_')
            return false;
    return true;
}

static int make_parts(struct device_config *config, const struct device_type *type,
                      const struct config_file *file, char *error, size_t error_len)
{
    const char *list = device_config_string(config, type->parts_key);
    char at[CONFIG_WHY_LEN], first[sizeof(config->name)];
    int ret;

    config->parts = calloc(type->parts_max, sizeof(*config->parts));
    if (!config->parts)
        return -ENOMEM;
    where(config, type, file, at, sizeof(at));
    if (!list) {
        snprintf(first, sizeof(first), "%s0", type->name);
        list = !strcmp(config->name, first) ? type->name : config->name;
    }
    for (list += strspn(list, " \t"); *list; list += strspn(list, " \t")) {
        size_t len = strcspn(list, " \t");

        if (!name_is_valid(list, len))
            return config_fail(error, error_len,
                               "%s: \"%.*s\" in %s is no name; write 1 to %u letters, digits, - or _",
                               at, (int)MIN(len, 40u), list, type->parts_key, CONFIG_PART_NAME_MAX);
        if (find_part(config, list, len))
            return config_fail(error, error_len, "%s: \"%.*s\" is twice in %s; names differ", at,
                               (int)len, list, type->parts_key);
        if (config->n_parts == type->parts_max)
            return config_fail(error, error_len, "%s: more than %zu names in %s; make a second device",
                               at, type->parts_max, type->parts_key);
        ret = add_part(config, type, list, len);
        if (ret)
            return ret;
        list += len;
    }
    if (config->n_parts == 0)
        return config_fail(error, error_len, "%s: %s has no name in it; write at least one", at,
                           type->parts_key);
    return 0;
}

/* "part.key=value" */
static int apply_part_preset(struct device_config *config, const struct device_type *type,
                             const char *preset, char *error, size_t error_len)
{
    const char *dot = strchr(preset, '.'), *equals = strchr(preset, '=');
    struct config_part *part = find_part(config, preset, (size_t)(dot - preset));
    const struct config_key *key =
        config_find_key(type->part_keys, dot + 1, (size_t)(equals - dot - 1));
    struct config_value *value;
    char why[CONFIG_WHY_LEN];

    if (!part || !key)
        return config_fail(error, error_len, "%s: unknown key \"%.*s\"", config->name,
                           (int)MIN(equals - preset, 60), preset);
    if (config_value_check(key, equals + 1, why, sizeof(why)))
        return config_fail(error, error_len, "%s: %s: %s", config->name, part->name, why);
    value = &part->values[key - type->part_keys];
    free(value->value);
    value->value = strdup(equals + 1);
    return value->value ? 0 : -ENOMEM;
}

static int apply_part_section(struct config_part *part, const struct device_type *type,
                              const char *path, const struct file_section *section, char *error,
                              size_t error_len)
{
    for (size_t i = 0; i < section->n_entries; i++) {
        const struct file_entry *entry = &section->entries[i];
        const struct config_key *key =
            config_find_key(type->part_keys, entry->key, strlen(entry->key));
        struct config_value *value;
        char why[CONFIG_WHY_LEN];

        if (!key)
            return config_unknown_key(path, section, entry, type->part_keys, error, error_len);
        if (config_value_check(key, entry->value, why, sizeof(why)))
            return config_fail(error, error_len, "%s:%d: %s", path, entry->line, why);
        value = &part->values[key - type->part_keys];
        free(value->value);
        value->value = strdup(entry->value);
        if (!value->value)
            return -ENOMEM;
        value->line = entry->line;
    }
    return 0;
}

static int unknown_part(const struct device_config *config, const struct device_type *type,
                        const char *path, const struct file_section *section, const char *name,
                        char *error, size_t error_len)
{
    const char *nearest = NULL;
    unsigned best = UINT32_MAX;

    for (size_t i = 0; i < config->n_parts; i++) {
        unsigned distance = config_distance(name, config->parts[i].name);

        if (distance < best) {
            best = distance;
            nearest = config->parts[i].name;
        }
    }
    if (!type->parts_key)
        return config_fail(error, error_len, "%s:%d: [%s]: a device of type %s has no parts; write its "
                           "keys into [%s]", path, section->line, section->name, type->name,
                           config->name);
    if (nearest && config_is_near(name, best))
        return config_fail(error, error_len, "%s:%d: [%s]: \"%s\" is not among the %s of %s; the "
                           "nearest one is \"%s\"", path, section->line, section->name, name,
                           type->parts_key, config->name, nearest);
    return config_fail(error, error_len, "%s:%d: [%s]: \"%s\" is not among the %s of %s; add it to %s "
                       "in [%s]", path, section->line, section->name, name, type->parts_key,
                       config->name, type->parts_key, config->name);
}

int config_fill_parts(struct device_config *config, const struct device_type *type,
                      const struct config_file *file, const char *const *preset, char *error,
                      size_t error_len)
{
    size_t prefix = strlen(config->name);
    int ret = 0;

    if (type->parts_key) {
        ret = make_parts(config, type, file, error, error_len);
        for (; !ret && preset && *preset; preset++)
            if (memchr(*preset, '.', strcspn(*preset, "=")))
                ret = apply_part_preset(config, type, *preset, error, error_len);
    }
    for (size_t i = 0; !ret && file && i < file->n_sections; i++) {
        const struct file_section *section = &file->sections[i];
        const char *name = section->name + prefix + 1;
        struct config_part *part;

        if (strncmp(section->name, config->name, prefix) || section->name[prefix] != '.')
            continue;
        part = find_part(config, name, strlen(name));
        if (!part)
            ret = unknown_part(config, type, file->path, section, name, error, error_len);
        else
            ret = apply_part_section(part, type, file->path, section, error, error_len);
    }
    if (ret)
        config_free_parts(config);
    return ret;
}
