/* SPDX-License-Identifier: Apache-2.0 */
#include "supervisor_record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device_state.h"

#define RECORD_NAME "guest.record" /* with a dot: names of console ports have none */
#define RECORD_MAGIC UINT64_C(0x6472636572564956)
#define RECORD_LEN_MAX (sizeof(struct file_header) + RECORD_DEVICES_MAX *                          \
                        (sizeof(struct file_device) + RECORD_TEXT_MAX))

/* The first 16 bytes are the same in all versions. */
struct file_header {
    uint64_t magic;
    uint32_t version;
    uint32_t domid;
    uint64_t check; /* of all, with 0 here */
    uint64_t started;
    int32_t pid;
    uint32_t restarts;
    char boot_id[40], uuid[40], name[64];
    uint32_t n_devices, state_version;
};
static_assert(offsetof(struct file_header, check) == 16, "all versions");
static_assert(sizeof(struct file_header) == 192, "version 1");

/* Followed by the text, without a NUL. */
struct file_device {
    uint32_t kind, devid, text_len;
};

static uint64_t check_of(const uint8_t *data, size_t len)
{
    uint64_t hash = len, word;

    for (size_t i = 0; i < len; i += sizeof(word)) {
        word = 0;
        if (i != offsetof(struct file_header, check))
            memcpy(&word, data + i, MIN(sizeof(word), len - i));
        hash = state_hash(hash, word);
    }
    return hash;
}

void *record_encode(const struct guest_record *record, size_t *len)
{
    struct file_header header = {.magic = RECORD_MAGIC,
                                 .version = RECORD_VERSION,
                                 .domid = record->domid,
                                 .started = record->started,
                                 .pid = record->pid,
                                 .restarts = record->restarts,
                                 .n_devices = record->n_devices,
                                 .state_version = record->state_version};
    uint8_t *data, *at;

    *len = sizeof(header);
    for (uint32_t i = 0; i < record->n_devices; i++) {
        size_t text_len = strlen(record->devices[i].text);

        if (text_len > RECORD_TEXT_MAX)
            return NULL;
        *len += sizeof(struct file_device) + text_len;
    }
    data = malloc(*len);
    if (data == NULL)
        return NULL;
    memcpy(header.boot_id, record->boot_id, sizeof(header.boot_id));
    memcpy(header.uuid, record->uuid, sizeof(header.uuid));
    memcpy(header.name, record->name, sizeof(header.name));
    memcpy(data, &header, sizeof(header));
    at = data + sizeof(header);
    for (uint32_t i = 0; i < record->n_devices; i++) {
        const struct record_device *d = &record->devices[i];
        const struct file_device device = {d->kind, d->devid, (uint32_t)strlen(d->text)};

        memcpy(at, &device, sizeof(device));
        memcpy(at + sizeof(device), d->text, device.text_len);
        at += sizeof(device) + device.text_len;
    }
    header.check = check_of(data, *len);
    memcpy(data, &header, sizeof(header));
    return data;
}

static bool is_terminated(const char *text, size_t len)
{
    return memchr(text, '\0', len) != NULL;
}

int record_decode(const void *data, size_t len, struct guest_record *record)
{
    struct file_header header;
    const uint8_t *at = data;

    memset(record, 0, sizeof(*record));
    if (len < 16)
        return -EBADMSG;
    memcpy(&header, data, MIN(len, sizeof(header)));
    if (header.magic != RECORD_MAGIC)
        return -EBADMSG;
    if (header.version != RECORD_VERSION)
        return -EPROTONOSUPPORT;
    if (len < sizeof(header) || header.check != check_of(data, len) ||
        header.n_devices > RECORD_DEVICES_MAX || header.pid < 0 ||
        !is_terminated(header.boot_id, sizeof(header.boot_id)) ||
        !is_terminated(header.uuid, sizeof(header.uuid)) ||
        !is_terminated(header.name, sizeof(header.name)))
        return -EBADMSG;
    record->domid = header.domid;
    record->pid = header.pid;
    record->started = header.started;
    record->restarts = header.restarts;
    record->state_version = header.state_version;
    memcpy(record->boot_id, header.boot_id, sizeof(header.boot_id));
    memcpy(record->uuid, header.uuid, sizeof(header.uuid));
    memcpy(record->name, header.name, sizeof(header.name));
    at += sizeof(header);
    len -= sizeof(header);
    for (uint32_t i = 0; i < header.n_devices; i++) {
        struct record_device *d = &record->devices[i];
        struct file_device device;

        if (len < sizeof(device))
            goto damaged;
        memcpy(&device, at, sizeof(device));
        at += sizeof(device);
        len -= sizeof(device);
        if (device.text_len > len || device.text_len > RECORD_TEXT_MAX ||
            memchr(at, '\0', device.text_len) != NULL)
            goto damaged;
        d->kind = device.kind;
        d->devid = device.devid;
        d->text = strndup((const char *)at, device.text_len);
        if (d->text == NULL) {
            record_free(record);
            return -ENOMEM;
        }
        record->n_devices = i + 1;
        at += device.text_len;
        len -= device.text_len;
    }
    if (len == 0)
        return 0;
damaged:
    record_free(record);
    return -EBADMSG;
}

void record_free(struct guest_record *record)
{
    for (uint32_t i = 0; i < record->n_devices; i++)
        free(record->devices[i].text);
    memset(record, 0, sizeof(*record));
}

/* ---- the file ---- */

int record_write(const char *folder, const struct guest_record *record)
{
    char path[256], new_path[260];
    size_t len;
    void *data;
    int fd, ret = 0;

    if (snprintf(path, sizeof(path), "%s/" RECORD_NAME, folder) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    snprintf(new_path, sizeof(new_path), "%s.new", path);
    data = record_encode(record, &len);
    if (data == NULL)
        return -ENOMEM;
    (void)unlink(new_path);
    fd = open(new_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        ret = -errno;
    } else {
        ssize_t n = write(fd, data, len);

        if (n != (ssize_t)len)
            ret = n < 0 ? -errno : -ENOSPC;
        close(fd);
        if (ret == 0 && rename(new_path, path) < 0)
            ret = -errno;
        if (ret < 0)
            (void)unlink(new_path);
    }
    free(data);
    return ret;
}

int record_read(const char *folder, struct guest_record *record)
{
    char path[256];
    struct stat st;
    void *data = NULL;
    int fd, ret;

    memset(record, 0, sizeof(*record));
    if (snprintf(path, sizeof(path), "%s/" RECORD_NAME, folder) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0) {
        ret = -errno;
    } else if (!S_ISREG(st.st_mode) || st.st_size > (off_t)RECORD_LEN_MAX) {
        ret = -EBADMSG;
    } else {
        data = malloc((size_t)st.st_size + 1);
        if (data == NULL)
            ret = -ENOMEM;
        else if (read(fd, data, (size_t)st.st_size) != st.st_size)
            ret = -EBADMSG;
        else
            ret = record_decode(data, (size_t)st.st_size, record);
    }
    free(data);
    close(fd);
    return ret;
}

void record_remove(const char *folder)
{
    char path[256];

    if (snprintf(path, sizeof(path), "%s/" RECORD_NAME, folder) < (int)sizeof(path))
        (void)unlink(path);
}

/* ---- processes ---- */

static ssize_t read_text(const char *path, char *text, size_t len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return -errno;
    n = read(fd, text, len - 1);
    close(fd);
    text[MAX(n, 0)] = '\0';
    return n;
}

uint64_t record_process_started(pid_t pid)
{
    char path[64], text[1024];
    const char *at;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (read_text(path, text, sizeof(text)) <= 0)
        return 0;
    at = strrchr(text, ')'); /* proc(5): the second field, and may itself contain anything */
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at != NULL ? strtoull(at + 1, NULL, 10) : 0;
}

void record_boot_id(char *id, size_t len)
{
    if (read_text("/proc/sys/kernel/random/boot_id", id, len) <= 0)
        id[0] = '\0';
    id[strcspn(id, "\n")] = '\0';
}
