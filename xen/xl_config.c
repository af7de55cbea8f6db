/* SPDX-License-Identifier: Apache-2.0 */
#include "xl_config.h"

#include <errno.h>
#include <libxlutil.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (1u << 20)

/* xl's parser writes its complaints to a stream; they are collected here. */
struct report {
    FILE *stream;
    char *text;
    size_t len;
};

/* The complaint since `from`, in one line and without the parser's prefix; NULL: out of memory. */
static char *report_since(struct report *report, size_t from)
{
    static const char prefix[] = "config parsing error in disk specification: ";
    const char *start, *found;
    char *text;

    fflush(report->stream);
    start = report->text + MIN(from, report->len);
    found = strstr(start, prefix);
    text = strdup(found ? found + sizeof(prefix) - 1 : start);
    if (text)
        text[strcspn(text, "\n")] = '\0';
    return text;
}

static bool is_domain_0(const char *domain)
{
    return !strcmp(domain, "0") || !strcmp(domain, "Domain-0");
}

static char *other_domain(const char *domain)
{
    return domain && !is_domain_0(domain) ? strdup(domain) : NULL;
}

/* ---- disk=[] ---- */

/*
 * libxlutil before 4.19 does not know grant_usage, so it is read here, and taken out for a parser that
 * refuses it. target= takes everything behind it.
 */
static char *take_grant_usage(const char *spec, enum xl_grants *grants)
{
    char *rest = malloc(strlen(spec) + 1), *out = rest;

    if (!rest)
        return NULL;
    while (*spec) {
        const char *token = spec + strspn(spec, " \t");
        size_t len = strcspn(spec, ",");

        if (!strncmp(token, "target=", 7)) {
            out = stpcpy(out, spec);
            break;
        }
        if (spec[len] == ',')
            len++;
        if (!strncmp(token, "grant_usage=", 12) && (token[12] == '0' || token[12] == '1') &&
            (token[13] == '\0' || token[13] == ',')) {
            *grants = token[12] == '1' ? XL_GRANTS_YES : XL_GRANTS_NO;
        } else {
            memcpy(out, spec, len);
            out += len;
        }
        spec += len;
    }
    *out = '\0';
    return rest;
}

static enum xl_backend_type backend_type(libxl_disk_backend backend)
{
    switch (backend) {
    case LIBXL_DISK_BACKEND_PHY: return XL_BACKEND_PHY;
    case LIBXL_DISK_BACKEND_TAP: return XL_BACKEND_TAP;
    case LIBXL_DISK_BACKEND_QDISK: return XL_BACKEND_QDISK;
    case LIBXL_DISK_BACKEND_STANDALONE: return XL_BACKEND_STANDALONE;
    default: return XL_BACKEND_UNSAID;
    }
}

static bool parse_disk(XLU_Config *xlu, const char *spec, libxl_device_disk *disk)
{
    libxl_device_disk_dispose(disk);
    libxl_device_disk_init(disk);
    return xlu_disk_parse(xlu, 1, &spec, disk) == 0;
}

static int read_disk(XLU_Config *xlu, struct report *report, const char *spec, struct xl_disk *out)
{
    libxl_device_disk disk;
    char *plain = take_grant_usage(spec, &out->grants);
    bool parsed;
    size_t from;
    int ret = 0;

    libxl_device_disk_init(&disk);
    out->spec = strdup(spec);
    if (!plain || !out->spec) {
        ret = -ENOMEM;
        goto out;
    }
    fflush(report->stream);
    from = report->len;
    parsed = parse_disk(xlu, spec, &disk);
    if (!parsed && out->grants != XL_GRANTS_UNSAID) {
        /* What is wrong besides is said without it: a complaint about it would hide the other one. */
        fflush(report->stream);
        from = report->len;
        out->grants_refused = parsed = parse_disk(xlu, plain, &disk);
    }
    if (!parsed) {
        out->error = report_since(report, from);
        if (!out->error)
            ret = -ENOMEM;
        goto out;
    }
    out->target = disk.pdev_path ? strdup(disk.pdev_path) : NULL;
    out->vdev = strdup(disk.vdev);
    out->backend = other_domain(disk.backend_domname);
    out->script = disk.script ? strdup(disk.script) : NULL;
    out->virtio = disk.specification == LIBXL_DISK_SPECIFICATION_VIRTIO;
    out->backend_type = backend_type(disk.backend);
    out->raw = disk.format == LIBXL_DISK_FORMAT_RAW;
    out->cdrom = disk.is_cdrom != 0;
    out->read_only = !disk.readwrite;
    out->discard = libxl_defbool_is_default(disk.discard_enable)
                       ? disk.readwrite != 0
                       : libxl_defbool_val(disk.discard_enable);
    out->direct_io_safe = disk.direct_io_safe;
out:
    libxl_device_disk_dispose(&disk);
    free(plain);
    return ret;
}

/* ---- virtio=[] ---- */

/* The value, if `token` is "name=value". */
static char *option(char *token, const char *name)
{
    size_t len = strlen(name);

    return !strncmp(token, name, len) && token[len] == '=' ? token + len + 1 : NULL;
}

static int replace(char **to, const char *value)
{
    free(*to);
    *to = strdup(value);
    return *to ? 0 : -ENOMEM;
}

/*
 * xl's own parser for these is not in libxlutil. Its rule: options separated by commas, blanks
 * before an option skipped; a type that begins with "virtio" owns the next comma.
 */
static int read_virtio(const char *spec, struct xl_virtio *out)
{
    char *copy = strdup(spec), *next = copy, *token;
    int ret = 0;

    out->spec = strdup(spec);
    if (!copy || !out->spec)
        ret = -ENOMEM;
    while (!ret && (token = strsep(&next, ",")) != NULL) {
        char *value;

        token += strspn(token, " ");
        if (!*token)
            continue;
        if ((value = option(token, "type")) != NULL) {
            if (!strncmp(value, "virtio", 6) && next) {
                value[strlen(value)] = ','; /* the one that strsep() took */
                strsep(&next, ",");
            }
            ret = replace(&out->type, value);
        } else if ((value = option(token, "transport")) != NULL) {
            ret = replace(&out->transport, value);
        } else if ((value = option(token, "backend")) != NULL) {
            free(out->backend);
            out->backend = other_domain(value);
        } else if ((value = option(token, "grant_usage")) != NULL) {
            out->grants = strtoul(value, NULL, 0) ? XL_GRANTS_YES : XL_GRANTS_NO;
        } else if (!out->error) {
            if (asprintf(&out->error, "unknown option \"%s\"; xl knows type, transport, backend "
                         "and grant_usage", token) < 0) {
                out->error = NULL;
                ret = -ENOMEM;
            }
        }
    }
    free(copy);
    return ret;
}

/* ---- the file ---- */

/* A list's entries that are strings; 0 entries if there is none. */
static int list_length(XLU_Config *xlu, const char *name, XLU_ConfigList **list)
{
    int n = 0;

    return xlu_cfg_get_list(xlu, name, list, &n, 0) == 0 ? n : 0;
}

static int read_lists(XLU_Config *xlu, struct report *report, struct xl_config *config)
{
    XLU_ConfigList *list = NULL;
    const char *item;
    int n, ret = 0;

    n = list_length(xlu, "disk", &list);
    config->disks = calloc((size_t)n + 1, sizeof(*config->disks));
    if (!config->disks)
        return -ENOMEM;
    for (int i = 0; !ret && i < n; i++)
        if ((item = xlu_cfg_get_listitem(list, i)) != NULL)
            ret = read_disk(xlu, report, item, &config->disks[config->n_disks++]);

    n = list_length(xlu, "virtio", &list);
    config->virtios = calloc((size_t)n + 1, sizeof(*config->virtios));
    if (!config->virtios)
        return -ENOMEM;
    for (int i = 0; !ret && i < n; i++)
        if ((item = xlu_cfg_get_listitem(list, i)) != NULL)
            ret = read_virtio(item, &config->virtios[config->n_virtios++]);

    n = list_length(xlu, "irqs", &list);
    config->irqs = calloc((size_t)n + 1, sizeof(*config->irqs));
    if (!config->irqs)
        return -ENOMEM;
    for (int i = 0; !ret && i < n; i++) {
        char *end;
        unsigned long irq;

        item = xlu_cfg_get_listitem(list, i);
        irq = item ? strtoul(item, &end, 10) : 0;
        if (!item || end == item || *end || irq >= UINT32_MAX)
            fprintf(report->stream, "irqs: \"%s\" is not a number\n", item ? item : "");
        else
            config->irqs[config->n_irqs++] = (uint32_t)irq;
    }
    return ret;
}

static int read_scalars(XLU_Config *xlu, struct xl_config *config)
{
    const char *name;
    long n;

    if (!xlu_cfg_get_string(xlu, "name", &name, 0)) {
        config->name = strdup(name);
        if (!config->name)
            return -ENOMEM;
    }
    config->n_vcpus = 1;
    if (!xlu_cfg_get_long(xlu, "vcpus", &n, 0) && n > 0 && n <= UINT16_MAX)
        config->n_vcpus = (uint32_t)n;
    if (!xlu_cfg_get_long(xlu, "maxvcpus", &n, 0) && n > 0 && n <= UINT16_MAX)
        config->n_vcpus = (uint32_t)n;
    return 0;
}

/* Complaints about one disk are kept with it; the others are for the whole file. */
static char *file_warnings(const struct report *report)
{
    char *text = calloc(1, report->len + 1), *out = text;

    for (const char *line = report->text; text && line && *line;) {
        size_t len = strcspn(line, "\n");
        const char *disk = strstr(line, "in disk specification: ");

        len += line[len] == '\n';
        if (!disk || disk >= line + len) {
            memcpy(out, line, len);
            out += len;
        }
        line += len;
    }
    return text;
}

/* libxlutil's own reading of a file ends the program if a read fails. */
static int read_text(const char *path, char **out, size_t *out_len)
{
    FILE *file = fopen(path, "re");
    char *text = malloc(FILE_BYTES_MAX + 1);
    int ret = 0;

    *out_len = 0;
    if (!file)
        ret = -errno;
    else if (!text)
        ret = -ENOMEM;
    else
        *out_len = fread(text, 1, FILE_BYTES_MAX + 1, file);
    if (!ret && ferror(file))
        ret = -errno;
    if (!ret && *out_len > FILE_BYTES_MAX)
        ret = -EFBIG;
    if (file)
        fclose(file);
    *out = text;
    return ret;
}

int xl_config_load(const char *path, struct xl_config *config, char *error, size_t error_len)
{
    struct report report = {0};
    XLU_Config *xlu = NULL;
    char *text;
    size_t text_len;
    int ret;

    *config = (struct xl_config){0};
    ret = read_text(path, &text, &text_len);
    if (ret) {
        snprintf(error, error_len, "%s cannot be read: %s", path, strerror(-ret));
        goto out;
    }
    report.stream = open_memstream(&report.text, &report.len);
    if (report.stream)
        xlu = xlu_cfg_init(report.stream, path);
    if (!xlu) {
        ret = -ENOMEM;
        goto out;
    }
    if (xlu_cfg_readdata(xlu, text, (int)text_len)) {
        fflush(report.stream);
        report.text[strcspn(report.text, "\n")] = '\0';
        snprintf(error, error_len, "%s",
                 report.len ? report.text : "it cannot be read as an xl configuration");
        ret = -EINVAL;
        goto out;
    }
    ret = read_scalars(xlu, config);
    if (!ret)
        ret = read_lists(xlu, &report, config);
    if (!ret) {
        fflush(report.stream);
        config->warnings = file_warnings(&report);
        if (!config->warnings)
            ret = -ENOMEM;
    }
out:
    if (ret == -ENOMEM)
        snprintf(error, error_len, "out of memory");
    if (xlu)
        xlu_cfg_destroy(xlu);
    if (report.stream)
        fclose(report.stream);
    free(report.text);
    free(text);
    return ret;
}

void xl_config_free(struct xl_config *config)
{
    for (size_t i = 0; i < config->n_disks; i++) {
        struct xl_disk *disk = &config->disks[i];

        free(disk->spec);
        free(disk->error);
        free(disk->target);
        free(disk->vdev);
        free(disk->backend);
        free(disk->script);
    }
    for (size_t i = 0; i < config->n_virtios; i++) {
        struct xl_virtio *virtio = &config->virtios[i];

        free(virtio->spec);
        free(virtio->error);
        free(virtio->type);
        free(virtio->transport);
        free(virtio->backend);
    }
    free(config->name);
    free(config->disks);
    free(config->virtios);
    free(config->irqs);
    free(config->warnings);
    *config = (struct xl_config){0};
}

/* Letters a..z for a disk up to `last`, then nothing or a partition number. */
static bool drive_letters(const char *p, int last, unsigned long max_partition, int *disk,
                          int *partition)
{
    long index = -1;
    unsigned long number;
    char *end;

    for (; *p >= 'a' && *p <= 'z'; p++) {
        index = (index + 1) * 26 + (*p - 'a');
        if (index > last)
            return false;
    }
    *disk = (int)index;
    *partition = 0;
    if (index < 0 || !*p)
        return index >= 0;
    if (*p < '1' || *p > '9')
        return false;
    errno = 0;
    number = strtoul(p, &end, 10);
    if (errno || *end || number > max_partition)
        return false;
    *partition = (int)number;
    return true;
}

/* Of Xen's own disks: the first 16 have 16 numbers each, as a Linux major has room for. */
static int xvd_number(int disk, int partition)
{
    return disk < 16 && partition < 16 ? 202 << 8 | disk << 4 | partition
                                       : 1 << 28 | disk << 8 | partition;
}

bool xl_vdev_number(const char *vdev, int *devid)
{
    int disk, partition, used = -1;
    unsigned long number;
    char *end;

    if (sscanf(vdev, "d%ip%i%n", &disk, &partition, &used) >= 2 && used == (int)strlen(vdev)) {
        if (disk < 0 || disk >= 1 << 20 || partition < 0 || partition >= 256)
            return false;
        *devid = xvd_number(disk, partition);
    } else if (!strncmp(vdev, "xvd", 3)) {
        if (!drive_letters(vdev + 3, (1 << 20) - 1, 255, &disk, &partition))
            return false;
        *devid = xvd_number(disk, partition);
    } else if (!strncmp(vdev, "hd", 2)) {
        if (!drive_letters(vdev + 2, 3, 63, &disk, &partition))
            return false;
        *devid = (disk < 2 ? 3 : 22) << 8 | (disk & 1) << 6 | partition;
    } else if (!strncmp(vdev, "sd", 2)) {
        if (!drive_letters(vdev + 2, 15, 15, &disk, &partition))
            return false;
        *devid = 8 << 8 | disk << 4 | partition;
    } else {
        errno = 0;
        number = strtoul(vdev, &end, 0);
        if (errno || *vdev < '0' || *vdev > '9' || *end || number > INT_MAX)
            return false;
        *devid = (int)number;
    }
    return true;
}
