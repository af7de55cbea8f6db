/* SPDX-License-Identifier: Apache-2.0 */
#include "config_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES_MAX (64u * 1024u)
#define LINE_BYTES_MAX (CONFIG_VALUE_MAX + 64u)
#define SECTIONS_MAX 64u
#define ENTRIES_MAX 64u
#define SECTION_NAME_MAX 31u
#define DISTANCE_MAX 64u

/*
 * Debian's inih reads lines of 200 bytes unless told otherwise, and takes an indented line for more
 * of the value above it. Builds of inih without these variables have smaller limits, which
 * next_line() reports.
 */
extern int ini_max_line __attribute__((weak));
extern bool ini_allow_multiline __attribute__((weak));

int config_fail(char *error, size_t error_len, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, error_len, format, args);
    va_end(args);
    /* Keys and values are quoted as they are in the file, and xenstore takes lines of text only. */
    for (char *c = error; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    return -EINVAL;
}

unsigned config_distance(const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    unsigned row[DISTANCE_MAX];

    if (a_len >= DISTANCE_MAX || b_len >= DISTANCE_MAX)
        return DISTANCE_MAX;
    for (unsigned j = 0; j <= b_len; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a_len; i++) {
        unsigned diagonal = row[0];

        row[0] = i;
        for (unsigned j = 1; j <= b_len; j++) {
            unsigned replaced = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            row[j] = MIN(replaced, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_len];
}

bool config_is_near(const char *word, unsigned distance)
{
    return distance <= 1 + strlen(word) / 4;
}

struct parser {
    struct config_file *file;
    const char *text;
    size_t len, pos;
    int line;
    int result;
    char *error;
    size_t error_len;
};

static int parse_fail(struct parser *parser, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static int parse_fail(struct parser *parser, const char *format, ...)
{
    char what[CONFIG_ERROR_LEN];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    parser->result = config_fail(parser->error, parser->error_len, "%s:%d: %s", parser->file->path,
                                 parser->line, what);
    return parser->result;
}

static struct file_section *find_section(const struct config_file *file, const char *name)
{
    for (size_t i = 0; i < file->n_sections; i++)
        if (!strcmp(file->sections[i].name, name))
            return &file->sections[i];
    return NULL;
}

const struct file_section *config_file_section(const struct config_file *file, const char *name)
{
    return find_section(file, name);
}

/*
 * inih reports no section without keys and accepts anything behind the bracket, so the headings are
 * read here.
 */
static int begin_section(struct parser *parser, const char *line, size_t len)
{
    struct config_file *file = parser->file;
    const char *end = memchr(line, ']', len);
    const struct file_section *earlier;
    struct file_section *grown;
    char name[SECTION_NAME_MAX + 1];
    size_t name_len, rest;

    if (!end)
        return parse_fail(parser, "the section heading has no ]; write [name]");
    name_len = (size_t)(end - line) - 1;
    if (name_len == 0 || name_len > SECTION_NAME_MAX)
        return parse_fail(parser, "a section's name has 1 to %u characters; write [blk0] or [xvda]",
                          SECTION_NAME_MAX);
    memcpy(name, line + 1, name_len);
    name[name_len] = '\0';
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("-_.", *c))
            return parse_fail(parser, "\"%s\" is no section name; write letters, digits, - _ .",
                              name);
    for (rest = name_len + 2; rest < len && isblank((unsigned char)line[rest]); rest++)
        ;
    if (rest < len && line[rest] != ';' && line[rest] != '#')
        return parse_fail(parser, "text behind [%s]; write it in a line of its own", name);
    earlier = find_section(file, name);
    if (earlier)
        return parse_fail(parser, "[%s] was begun in line %d already; put all its keys there", name,
                          earlier->line);
    if (file->n_sections == SECTIONS_MAX)
        return parse_fail(parser, "too many sections; at most %u", SECTIONS_MAX);

    grown = reallocarray(file->sections, file->n_sections + 1, sizeof(*grown));
    if (!grown)
        return parser->result = -ENOMEM;
    file->sections = grown;
    grown[file->n_sections] = (struct file_section){.name = strdup(name), .line = parser->line};
    if (!grown[file->n_sections].name)
        return parser->result = -ENOMEM;
    file->n_sections++;
    return 0;
}

/* Hands inih one line, checked; after an error it sees the end of the file. */
static char *next_line(char *out, int out_len, void *stream)
{
    struct parser *parser = stream;
    const char *line = parser->text + parser->pos, *end;
    size_t len;

    if (parser->result || parser->pos == parser->len)
        return NULL;
    parser->line++;
    end = memchr(line, '\n', parser->len - parser->pos);
    len = end ? (size_t)(end - line) : parser->len - parser->pos;
    parser->pos += len + (end != NULL);

    if (parser->line == 1 && len >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) {
        line += 3;
        len -= 3;
    }
    while (len && isblank((unsigned char)line[0])) {
        line++;
        len--;
    }
    while (len && isspace((unsigned char)line[len - 1]))
        len--;
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)line[i] < ' ' && line[i] != '\t') {
            parse_fail(parser, "control character 0x%02x; write plain text",
                       (unsigned)(unsigned char)line[i]);
            return NULL;
        }
    }
    if (len > LINE_BYTES_MAX || len + 3 > (size_t)out_len) {
        parse_fail(parser, "the line has %zu bytes; at most %zu are read", len,
                   MIN((size_t)LINE_BYTES_MAX, (size_t)out_len - 3));
        return NULL;
    }
    if (len && line[0] == '[' && begin_section(parser, line, len))
        return NULL;
    memcpy(out, line, len);
    out[len] = '\n';
    out[len + 1] = '\0';
    return out;
}

/* The section is the one begun last: inih's own copy of its name may be cut short. */
static int add_entry(void *user, const char *section_name, const char *key, const char *value)
{
    struct parser *parser = user;
    struct config_file *file = parser->file;
    struct file_section *section;
    struct file_entry *grown, *entry;

    (void)section_name;
    if (parser->result)
        return 1;
    if (file->n_sections == 0) {
        parse_fail(parser, "\"%s\" stands before any section; write [name] above it", key);
        return 1;
    }
    section = &file->sections[file->n_sections - 1];
    if (!key[0]) {
        parse_fail(parser, "no key before the =; write key = value");
        return 1;
    }
    for (size_t i = 0; i < section->n_entries; i++) {
        if (!strcmp(section->entries[i].key, key)) {
            parse_fail(parser, "\"%s\" was set in line %d already; remove one of the two lines",
                       key, section->entries[i].line);
            return 1;
        }
    }
    if (section->n_entries == ENTRIES_MAX) {
        parse_fail(parser, "too many keys in [%s]; at most %u", section->name, ENTRIES_MAX);
        return 1;
    }

    grown = reallocarray(section->entries, section->n_entries + 1, sizeof(*grown));
    if (!grown) {
        parser->result = -ENOMEM;
        return 1;
    }
    section->entries = grown;
    entry = &grown[section->n_entries];
    *entry = (struct file_entry){.key = strdup(key), .value = strdup(value), .line = parser->line};
    section->n_entries++;
    if (!entry->key || !entry->value)
        parser->result = -ENOMEM;
    return 1;
}

/* The whole file, at most FILE_BYTES_MAX; its length or -errno. */
static ssize_t read_file(const char *path, char *text, char *error, size_t error_len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    size_t len = 0;
    ssize_t result;

    if (fd < 0) {
        result = -errno;
        if (errno != ENOENT)
            config_fail(error, error_len, "%s: cannot be opened: %s; make it readable for root",
                        path, strerror(errno));
        return result;
    }
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        result = config_fail(error, error_len, "%s: is not a regular file; write a text file",
                             path);
        goto out;
    }
    /* One byte more than allowed is room enough to see that there are too many. */
    while (len <= FILE_BYTES_MAX) {
        ssize_t n = read(fd, text + len, FILE_BYTES_MAX + 1 - len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            result = -errno;
            config_fail(error, error_len, "%s: cannot be read: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0)
            break;
        len += (size_t)n;
    }
    if (len > FILE_BYTES_MAX) {
        result = config_fail(error, error_len, "%s: is too large; at most %u bytes", path,
                             FILE_BYTES_MAX);
        goto out;
    }
    result = (ssize_t)len;
out:
    close(fd);
    return result;
}

int config_file_parse(const char *path, const char *text, size_t len, struct config_file *file,
                      char *error, size_t error_len)
{
    struct parser parser = {
        .file = file, .text = text, .len = len, .error = error, .error_len = error_len};
    int bad_line;

    *file = (struct config_file){.path = strdup(path), .exists = true};
    if (!file->path) {
        parser.result = -ENOMEM;
        goto out;
    }
    if (&ini_max_line)
        ini_max_line = (int)LINE_BYTES_MAX + 3;
    if (&ini_allow_multiline)
        ini_allow_multiline = false;
    bad_line = ini_parse_stream(next_line, &parser, add_entry, &parser);
    if (!parser.result && bad_line < 0)
        parser.result = -ENOMEM;
    if (!parser.result && bad_line > 0) {
        parser.line = bad_line;
        parse_fail(&parser, "neither a section nor a key; write [name] or key = value");
    }
out:
    if (parser.result == -ENOMEM)
        snprintf(error, error_len, "%s: out of memory", path);
    return parser.result;
}

int config_file_load(const char *path, struct config_file *file, char *error, size_t error_len)
{
    char *text = malloc(FILE_BYTES_MAX + 1);
    ssize_t len;
    int ret;

    *file = (struct config_file){.path = strdup(path)};
    if (!file->path || !text) {
        snprintf(error, error_len, "%s: out of memory", path);
        ret = -ENOMEM;
        goto out;
    }
    len = read_file(path, text, error, error_len);
    if (len < 0) {
        ret = len == -ENOENT ? 0 : (int)len;
        goto out;
    }
    config_file_free(file);
    ret = config_file_parse(path, text, (size_t)len, file, error, error_len);
out:
    free(text);
    return ret;
}

void config_file_free(struct config_file *file)
{
    for (size_t i = 0; i < file->n_sections; i++) {
        for (size_t j = 0; j < file->sections[i].n_entries; j++) {
            free(file->sections[i].entries[j].key);
            free(file->sections[i].entries[j].value);
        }
        free(file->sections[i].entries);
        free(file->sections[i].name);
    }
    free(file->sections);
    free(file->path);
    *file = (struct config_file){0};
}
