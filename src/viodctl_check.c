/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../xen/backend_state.h"
#include "../xen/xen.h"
#include "viodctl_check_internal.h"

#ifndef VIOD_CONFIG_DIR
#define VIOD_CONFIG_DIR "/etc/viod"
#endif
#ifndef VIOD_RUN_DIR
#define VIOD_RUN_DIR "/run/viod"
#endif

#define LINE_WIDTH 100u

void check_problem(struct check *check, const char *indent, const char *format, ...)
{
    va_list args;

    check->n_problems++;
    fprintf(check->out, "%sproblem: ", indent);
    va_start(args, format);
    vfprintf(check->out, format, args);
    va_end(args);
    fputc('\n', check->out);
}

static const char *an(const char *noun)
{
    return strchr("AEIOaeio", noun[0]) || !strncmp(noun, "802", 3) || !strncmp(noun, "RP", 2) ||
                   !strncmp(noun, "RD", 2) || !strncmp(noun, "SC", 2) || !strncmp(noun, "SP", 2)
               ? "an"
               : "a";
}

static void print_size(FILE *out, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;

    while (unit + 1 < ARRAY_SIZE(units) && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    /* An odd number of a small unit says little: 20 GiB + 512 bytes is "21474836992 bytes". */
    fprintf(out, "%" PRIu64 " %s", bytes, units[unit]);
}

/* ---- the image ---- */

int check_look_at_image(const char *path, struct image_info *image)
{
    struct stat st;
    off_t end;
    int fd;

    *image = (struct image_info){0};
    if (stat(path, &st))
        return -errno;
    image->mode = st.st_mode;
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return 0;
    if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS))
        image->write_error = errno;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        image->read_error = errno;
        return 0;
    }
    end = lseek(fd, 0, SEEK_END);
    image->size = end > 0 ? (uint64_t)end : 0;
    close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    image->direct = fd >= 0;
    if (fd >= 0)
        close(fd);
    return 0;
}

static const char *mode_title(mode_t mode)
{
    if (S_ISREG(mode))
        return "file";
    if (S_ISBLK(mode))
        return "block device";
    if (S_ISDIR(mode))
        return "directory";
    if (S_ISCHR(mode))
        return "character device";
    return "special file";
}

static void check_image(struct check *check, const struct device_config *config, bool is_disk)
{
    const char *path = device_config_string(config, "path");
    bool read_only = device_config_bool(config, "readonly");
    struct image_info image;
    int ret = check->options->look(path, &image);
    static const char hint[] = " (viod opens it as root: run this check as root, too)";

    if (ret) {
        fprintf(check->out, "    image: %s\n", path);
        if (ret == -ENOENT || ret == -ENOTDIR)
            DEVICE_PROBLEM(check, "there is no %s; create it, or correct the path", path);
        else
            DEVICE_PROBLEM(check, "%s cannot be looked at: %s%s", path, strerror(-ret),
                           ret == -EACCES ? hint : "");
        return;
    }
    fprintf(check->out, "    image: %s, %s, ", path, mode_title(image.mode));
    if (S_ISREG(image.mode) || S_ISBLK(image.mode)) {
        print_size(check->out, image.size);
        fputs(", ", check->out);
    }
    fprintf(check->out, "%s\n", read_only ? "read-only" : "read-write");

    if (!S_ISREG(image.mode) && !S_ISBLK(image.mode)) {
        DEVICE_PROBLEM(check, "%s is a %s; it must be a file or a block device", path,
                       mode_title(image.mode));
        return;
    }
    if (is_disk && !S_ISBLK(image.mode))
        DEVICE_PROBLEM(check,
                       "%s is a file, and xl takes only block devices for a standalone disk; "
                       "attach it to a loop device (losetup --find --show), or serve the file "
                       "with virtio=[\"type=virtio,device2,transport=mmio\"] and path = in %s",
                       path, check->file_path);
    if (image.read_error)
        DEVICE_PROBLEM(check, "%s cannot be read: %s%s", path, strerror(image.read_error),
                       image.read_error == EACCES ? hint : "");
    else if (image.write_error && !read_only)
        DEVICE_PROBLEM(check, "%s cannot be written: %s%s; or make the device read-only", path,
                       strerror(image.write_error), image.write_error == EACCES ? hint : "");
    if (!image.read_error && image.size < 512)
        DEVICE_PROBLEM(check, "%s has not even one sector of 512 bytes; give it a size "
                       "(truncate --size)", path);
    if (!image.read_error && !image.direct && !strcmp(device_config_string(config, "cache"), "none"))
        DEVICE_PROBLEM(check, "the file system of %s cannot do direct I/O; write cache = "
                       "writeback into [%s]", path, config->name);
}

/* ---- settings ---- */

static void value_text(const struct check *check, const struct config_value *value, char *out,
                       size_t out_len)
{
    const char *text = value->value ? value->value : value->key->default_value;
    const char *name = value->key->name;

    if (!strcmp(name, "queues") && !strcmp(text, "0"))
        snprintf(out, out_len, "queues=%" PRIu64 " (%s)",
                 MIN((uint64_t)check->xl.n_vcpus, value->key->max),
                 check->xl.n_vcpus > value->key->max ? "the most" : "one per vCPU");
    else if (!strcmp(name, "logical-block-size") && !strcmp(text, "0"))
        snprintf(out, out_len, "logical-block-size=the image's");
    else
        snprintf(out, out_len, "%s=%s", name, text);
}

/*
 * Those that were set, or those that were not; of these, what is for grants only if there are any. The
 * path has a line of its own.
 */
static void print_values(const struct check *check, const struct config_value *values, size_t n,
                         bool set, bool grants, const char *title)
{
    size_t column = 0;

    for (size_t i = 0; i < n; i++) {
        const struct config_value *value = &values[i];
        char text[CONFIG_VALUE_MAX + 64];
        size_t len;

        if ((value->value != NULL && !value->is_granted_value) != set || value->key->type == KEY_PATH ||
            (!set && (!value->key->default_value ||
                      (!grants && !strncmp(value->key->name, "grant-", 6)))))
            continue;
        value_text(check, value, text, sizeof(text));
        len = strlen(text) + 1;
        if (column == 0 || column + len > LINE_WIDTH) {
            fputs(column == 0 ? title : "\n            ", check->out);
            column = column == 0 ? strlen(title) : 12;
        }
        fprintf(check->out, " %s", text);
        column += len;
    }
    if (column)
        fputc('\n', check->out);
}

static void print_settings(const struct check *check, const struct device_config *config, bool set)
{
    print_values(check, config->values, config->n_values, set, config->grant_usage,
                 set ? "    set:" : "    default:");
}

/* A console's ports: each with what was set. */
static void check_ports(struct check *check, const struct device_config *config,
                        const char *other_domain)
{
    for (size_t i = 0; i < config->n_parts; i++) {
        const struct config_part *part = &config->parts[i];
        const char *backend = config_part_string(part, "backend");
        const char *path = config_part_string(part, "path");
        bool needs_path = strcmp(backend, "pty") && strcmp(backend, "none") &&
                          strcmp(backend, "listen");
        struct image_info look;
        size_t n = 0;

        fprintf(check->out, "    port %zu: %s, %s", i, part->name, backend);
        if (path && strcmp(backend, "pty") && strcmp(backend, "none"))
            fprintf(check->out, " %s", path);
        else if (needs_path || !strcmp(backend, "none"))
            ;
        else
            fprintf(check->out, " %s/%s/%s", check->options->run_dir,
                    check->xl.name ? check->xl.name : "DOMAIN", part->name);
        fputc('\n', check->out);
        while (part->values[n].key)
            n++;
        print_values(check, part->values, n, true, false, "      set:");
        if (needs_path && !path)
            DEVICE_PROBLEM(check, "port %s has no path; write path = /absolute/path into section "
                           "[%s.%s]", part->name, config->name, part->name);
        else if (other_domain)
            continue;
        else if (!strcmp(backend, "device") && check->options->look(path, &look) != 0)
            DEVICE_PROBLEM(check, "there is no %s now; the port works as soon as it is there", path);
        else if (!strcmp(backend, "device") && !S_ISCHR(look.mode))
            DEVICE_PROBLEM(check, "%s is a %s; it must be a character device", path,
                           mode_title(look.mode));
    }
}

/* backend: the domain whose files the paths name; NULL: this one. */
static void check_settings(struct check *check, const struct device_type *type, const char *name,
                           const char *const *presets, bool is_disk, const char *backend,
                           enum xl_grants grants)
{
    /* What libxl does where the xl.cfg says nothing of it. */
    struct device_config config = {
        .grant_usage = grants == XL_GRANTS_YES || (grants == XL_GRANTS_UNSAID && backend)};
    char error[CONFIG_ERROR_LEN];

    snprintf(config.name, sizeof(config.name), "%s", name);
    if (check->n_names < CHECK_DEVICES_MAX)
        memcpy(check->names[check->n_names++], config.name, sizeof(config.name));
    if (!check->file) {
        fputs("    not checked, because the guest's file cannot be read\n", check->out);
        return;
    }
    if (device_config_fill(&config, type, check->file, presets, error, sizeof(error))) {
        DEVICE_PROBLEM(check, "%s", error);
        return;
    }
    if (backend) {
        if (type->virtio_id == 2)
            fprintf(check->out, "    image: %s in domain %s (not looked at), %s\n",
                    device_config_string(&config, "path"), backend,
                    device_config_bool(&config, "readonly") ? "read-only" : "read-write");
    } else if (type->virtio_id == 2) {
        check_image(check, &config, is_disk);
    }
    check_ports(check, &config, backend);
    print_settings(check, &config, true);
    print_settings(check, &config, false);
    device_config_free(&config);
}

/* ---- slots, backends ---- */

/* "slot 0, 0x02000000, SPI 33: ", as libxl will give it out. */
static void print_slot(struct check *check)
{
    uint32_t slot = check->next_slot++;

    if (slot < XEN_VIRTIO_SLOTS)
        fprintf(check->out, "  slot %" PRIu32 ", 0x%08" PRIx32 ", SPI %" PRIu32 ": ", slot,
                XEN_VIRTIO_MMIO_BASE + slot * XEN_VIRTIO_MMIO_SLOT, XEN_VIRTIO_SPI_FIRST + slot);
    else
        fputs("  no slot left: ", check->out);
}

static void check_slot(struct check *check)
{
    if (check->next_slot > XEN_VIRTIO_SLOTS)
        DEVICE_PROBLEM(check, "a guest has %u slots for virtio devices; xl refuses this one",
                       XEN_VIRTIO_SLOTS);
}

static void print_server(struct check *check, const char *backend, bool served)
{
    if (!served)
        fputc('\n', check->out);
    else if (backend)
        fprintf(check->out, ", served by viod in domain %s\n", backend);
    else
        fputs(", served by viod\n", check->out);
}

/* ---- disk=[] ---- */

static void check_vdev(struct check *check, size_t index)
{
    const char *vdev = check->xl.disks[index].vdev;
    int devid, other_devid;

    if (!xl_vdev_number(vdev, &devid) || strlen(vdev) >= sizeof(check->names[0])) {
        DEVICE_PROBLEM(check, "\"%s\" is no name for a virtual disk; write xvda, xvdb, ...", vdev);
        return;
    }
    for (size_t i = 0; i < index; i++) {
        const char *other = check->xl.disks[i].vdev;

        if (!other || !xl_vdev_number(other, &other_devid) || other_devid != devid)
            continue;
        if (!strcmp(other, vdev))
            DEVICE_PROBLEM(check, "%s is used by an earlier disk, too; each disk needs a name of "
                           "its own", vdev);
        else
            DEVICE_PROBLEM(check, "%s is the same as %s of an earlier disk, number %d for xl; each "
                           "disk needs a name of its own", vdev, other, devid);
    }
}

static const char *pv_title(const struct xl_disk *disk)
{
    if (disk->cdrom)
        return "CD-ROM";
    switch (disk->backend_type) {
    case XL_BACKEND_QDISK: return "PV disk served by QEMU";
    case XL_BACKEND_TAP: return "PV disk served by blktap";
    default: return "PV disk";
    }
}

/* No problem: the guest may be meant for another machine. */
static void note_grants_refused(struct check *check, const struct xl_disk *disk)
{
    if (disk->grants_refused)
        fputs("    note: this machine's xl does not know grant_usage for disks, and refuses this one; "
              "it needs Xen 4.19\n", check->out);
}

static void check_disk(struct check *check, size_t index)
{
    const struct xl_disk *disk = &check->xl.disks[index];
    const char *presets[DISK_PRESETS];
    char text[CONFIG_VALUE_MAX + 8];

    if (disk->error) {
        fprintf(check->out, "  no slot: disk=[\"%s\"]\n", disk->spec);
        DEVICE_PROBLEM(check, "xl refuses it: %s", disk->error);
        return;
    }
    if (!disk->virtio) {
        fprintf(check->out, "  no slot: %s, %s, not viod's\n", disk->vdev, pv_title(disk));
        note_grants_refused(check, disk);
        if (disk->backend_type == XL_BACKEND_STANDALONE)
            DEVICE_PROBLEM(check, "backendtype=standalone without specification=virtio; write both "
                           "for a disk that viod serves, none of them for a PV disk");
        check_vdev(check, index);
        return;
    }

    print_slot(check);
    fprintf(check->out, "%s, block device", disk->vdev);
    print_server(check, disk->backend, true);
    fprintf(check->out, "    from disk=[\"%s\"]\n", disk->spec);
    note_grants_refused(check, disk);
    check_slot(check);
    check_vdev(check, index);
    if (disk->backend_type != XL_BACKEND_UNSAID && disk->backend_type != XL_BACKEND_STANDALONE)
        DEVICE_PROBLEM(check, "specification=virtio needs backendtype=standalone");
    if (!disk->raw)
        DEVICE_PROBLEM(check, "viod serves images in raw format only; convert the image (qemu-img "
                       "convert -O raw) and write format=raw");
    if (disk->script)
        DEVICE_PROBLEM(check, "script=%s: xl runs no script for a virtio disk; remove it",
                       disk->script);
    check_backend(check, disk->backend, disk->grants);
    if (!disk->target)
        return;
    if (disk_presets(disk->target, disk->read_only, disk->discard, text, sizeof(text), presets))
        DEVICE_PROBLEM(check, "the path is too long; at most %u bytes", CONFIG_VALUE_MAX);
    else
        check_settings(check, device_type_by_id(2), disk->vdev, presets, true,
                       disk->backend, disk->grants);
}

/* ---- virtio=[] ---- */

/* The number in "virtio,device<hexadecimal>", or -1. */
static long device_number(const char *type, int base)
{
    static const char prefix[] = "virtio,device";
    const char *digits = type + sizeof(prefix) - 1;
    size_t len;

    if (strncmp(type, prefix, sizeof(prefix) - 1))
        return -1;
    len = strspn(digits, base == 16 ? "0123456789abcdefABCDEF" : "0123456789");
    if (len == 0 || len > 4 || digits[len])
        return -1;
    return strtol(digits, NULL, base);
}

static void check_type(struct check *check, const char *type_text)
{
    long number = device_number(type_text, 16);
    long decimal = device_number(type_text, 10);
    const char *title = virtio_device_title((uint16_t)number);
    const char *meant =
        decimal >= 10 && decimal != number ? virtio_device_title((uint16_t)decimal) : NULL;

    if (title)
        DEVICE_PROBLEM(check, "%s is %s %s (number %ld): this version of viod does not serve it",
                       type_text, an(title), title, number);
    else
        DEVICE_PROBLEM(check, "%s is number %ld, which is no virtio device; write the number of a "
                       "block device, virtio,device2", type_text, number);
    if (meant)
        fprintf(check->out, "    note: the number in virtio,device<N> is hexadecimal; %s %s "
                "(number %ld) is virtio,device%lx\n", an(meant), meant, decimal,
                (unsigned long)decimal);
}

static void check_virtio(struct check *check, const struct xl_virtio *virtio)
{
    const struct device_type *type = NULL;
    long number = virtio->type ? device_number(virtio->type, 16) : -1;
    const char *title = number >= 0 ? virtio_device_title((uint16_t)number) : NULL;
    bool mmio = virtio->transport && !strcmp(virtio->transport, "mmio");
    char name[32] = "";

    if (number >= 0)
        type = device_type_by_id((uint16_t)number);
    if (type)
        snprintf(name, sizeof(name), "%s%u", type->name,
                 check->n_of_type[type->virtio_id % ARRAY_SIZE(check->n_of_type)]++);
    if (mmio && !virtio->error)
        print_slot(check);
    else
        fputs("  no slot: ", check->out);
    fprintf(check->out, "%s%s%s", name, name[0] ? ", " : "",
            title ? title : (virtio->type ? virtio->type : "a device without type="));
    print_server(check, virtio->backend, type != NULL);
    fprintf(check->out, "    from virtio=[\"%s\"]\n", virtio->spec);

    if (virtio->error) {
        DEVICE_PROBLEM(check, "xl refuses it: %s", virtio->error);
        return;
    }
    if (mmio)
        check_slot(check);
    if (!virtio->transport)
        DEVICE_PROBLEM(check, "transport= is missing, so xl gives the device no slot; write "
                       "transport=mmio");
    else if (!mmio)
        DEVICE_PROBLEM(check, "transport=%s is not possible; write transport=mmio",
                       virtio->transport);
    if (!virtio->type) {
        DEVICE_PROBLEM(check, "type= is missing; a block device is type=virtio,device2");
        return;
    }
    if (number < 0) {
        DEVICE_PROBLEM(check, "type=%s is no device type; write virtio,device<N> with the device's "
                       "number in hexadecimal, without 0x (a block device is virtio,device2)",
                       virtio->type);
        return;
    }
    if (!type) {
        check_type(check, virtio->type);
        return;
    }
    check_backend(check, virtio->backend, virtio->grants);
    check_settings(check, type, name, NULL, false, virtio->backend, virtio->grants);
}

/* ---- the guest ---- */

static void warn_unused(void *arg, const char *line)
{
    GUEST_PROBLEM((struct check *)arg, "%s", line);
}

static void open_guest_file(struct check *check)
{
    const char *name = check->xl.name, *fault;
    char error[CONFIG_ERROR_LEN];

    if (!name) {
        GUEST_PROBLEM(check, "the guest has no name; write name = \"...\"");
        return;
    }
    fault = guest_name_fault(name);
    if (fault) {
        GUEST_PROBLEM(check, "%s; give the guest another name", fault);
        return;
    }
    snprintf(check->file_path, sizeof(check->file_path), "%s/%s.conf", check->options->config_dir,
             name);
    fprintf(check->out, "  configured in %s%s\n", check->file_path,
            access(check->file_path, F_OK) ? ", which does not exist" : "");
    if (guest_file_load(check->file_path, &check->file, error, sizeof(error)))
        GUEST_PROBLEM(check, "%s", error);
}

static void print_warnings(struct check *check)
{
    char *save = NULL;

    for (char *line = strtok_r(check->xl.warnings, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save))
        GUEST_PROBLEM(check, "%s", line);
}

unsigned check_guest(const char *cfg_path, const struct check_options *options)
{
    struct check *check = calloc(1, sizeof(*check));
    const char *used[CHECK_DEVICES_MAX];
    char error[CONFIG_ERROR_LEN];
    unsigned n_problems;

    if (!check)
        abort();
    check->options = options;
    check->out = options->out;
    if (xl_config_load(cfg_path, &check->xl, error, sizeof(error))) {
        fprintf(check->out, "%s:\n", cfg_path);
        GUEST_PROBLEM(check, "%s", error);
        goto out;
    }
    fprintf(check->out, "%s: guest \"%s\", %" PRIu32 " vCPU%s\n", cfg_path,
            check->xl.name ? check->xl.name : "", check->xl.n_vcpus,
            check->xl.n_vcpus == 1 ? "" : "s");
    open_guest_file(check);
    print_warnings(check);
    /* Slots in libxl's order: disks first. */
    for (size_t i = 0; i < check->xl.n_disks; i++)
        check_disk(check, i);
    for (size_t i = 0; i < check->xl.n_virtios; i++)
        check_virtio(check, &check->xl.virtios[i]);
    if (check->next_slot == 0)
        fputs("  no virtio device\n", check->out);
    check_irqs(check);
    for (size_t i = 0; i < check->n_names; i++)
        used[i] = check->names[i];
    guest_file_warn_unused(check->file, used, check->n_names, warn_unused, check);
out:
    if (check->n_problems == 0)
        fputs("  no problems\n", check->out);
    else
        fprintf(check->out, "  %u problem%s\n", check->n_problems,
                check->n_problems == 1 ? "" : "s");
    n_problems = check->n_problems;
    guest_file_free(check->file);
    xl_config_free(&check->xl);
    free(check);
    return n_problems;
}

int viodctl_check(const char *conf_dir, char *const *paths, int n_paths)
{
    struct check_options options = {.out = stdout, .look = check_look_at_image,
                                    .backend = xen_backend_state,
                                    .grants = xen_grants_usable};
    struct daemon_config daemon;
    char path[1024], error[CONFIG_ERROR_LEN];
    unsigned n_problems = 0;

    snprintf(path, sizeof(path), "%s/viod.conf", conf_dir ? conf_dir : VIOD_CONFIG_DIR);
    if (daemon_config_load(path, &daemon, error, sizeof(error))) {
        printf("%s:\n  problem: %s\n", path, error);
        n_problems++;
        daemon = (struct daemon_config){0};
    }
    /* With a folder given, everything is looked for there: it may be a copy of the real one. */
    options.config_dir = conf_dir ? conf_dir : daemon.config_dir ? daemon.config_dir
                                                                 : VIOD_CONFIG_DIR;
    options.run_dir = daemon.run_dir ? daemon.run_dir : VIOD_RUN_DIR;
    for (int i = 0; i < n_paths; i++)
        n_problems += check_guest(paths[i], &options);
    daemon_config_free(&daemon);
    return n_problems ? 1 : 0;
}
