/* SPDX-License-Identifier: Apache-2.0 */
/* One device's part of a guest's file, as a text: for the driver domain that serves it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_file.h"

int guest_file_parse(const char *path, const char *text, size_t len, struct guest_file **out,
                     char *error, size_t error_len)
{
    struct guest_file *file = calloc(1, sizeof(*file));
    int ret;

    *out = NULL;
    if (!file) {
        snprintf(error, error_len, "%s: out of memory", path);
        return -ENOMEM;
    }
    ret = config_file_parse(path, text, len, &file->file, error, error_len);
    if (ret) {
        guest_file_free(file);
        return ret;
    }
    *out = file;
    return 0;
}

static bool is_of(const char *section, const char *device)
{
    size_t len = strlen(device);

    return !strncmp(section, device, len) && (!section[len] || section[len] == '.');
}

static bool append(char *out, size_t out_len, size_t *used, const char *a, const char *between,
                   const char *b, const char *end)
{
    int n = snprintf(out + *used, out_len - *used, "%s%s%s%s", a, between, b, end);

    if (n < 0 || (size_t)n >= out_len - *used)
        return false;
    *used += (size_t)n;
    return true;
}

int guest_file_extract(const struct guest_file *file, const char *device, char *out,
                       size_t out_len)
{
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; i < file->file.n_sections; i++) {
        const struct file_section *section = &file->file.sections[i];

        if (!is_of(section->name, device))
            continue;
        if (!append(out, out_len, &used, "[", section->name, "]", "\n"))
            return -E2BIG;
        /* No blank behind the '=': a ';' after one would begin a comment. */
        for (size_t j = 0; j < section->n_entries; j++)
            if (!append(out, out_len, &used, section->entries[j].key, "=",
                        section->entries[j].value, "\n"))
                return -E2BIG;
    }
    return 0;
}
