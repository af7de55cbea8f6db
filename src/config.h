/* SPDX-License-Identifier: Apache-2.0 */
/*
 * viod's configuration: /etc/viod/viod.conf for the daemon, /etc/viod/<domain name>.conf for what xl
 * has no words for. INI files; every key of a device is declared in its type's table of keys, which
 * validates, gives defaults, and is what `viodctl check` explains.
 */
#ifndef VIOD_CONFIG_H
#define VIOD_CONFIG_H

#include <sched.h>

#include "backend.h"
#include "types.h"

#define CONFIG_ERROR_LEN 512u
#define CONFIG_VALUE_MAX 1023u /* bytes of one value */
#define DEVICE_FDS_MAX 16u

/* What a value may be. */
enum key_type { KEY_STRING, KEY_PATH, KEY_BOOL, KEY_UINT, KEY_CHOICE };

struct config_key {
    const char *name;
    enum key_type type;
    const char *default_value; /* NULL: none; then the key is required if `required` */
    const char *granted_value; /* the default of devices with grants; NULL: the same */
    bool required;
    uint64_t min, max;         /* KEY_UINT; KEY_STRING: at most max bytes (0: CONFIG_VALUE_MAX) */
    const char *choices;       /* KEY_CHOICE: "none writeback"; KEY_UINT: the only numbers allowed */
    const char *help;          /* one line, for viodctl check and the man page */
};

struct config_value {
    const struct config_key *key;
    char *value;               /* owned; NULL = default */
    bool is_granted_value;     /* the default of a device with grants, which stands in value then */
    int line;                  /* in its file; 0 = default or from xenstore */
};

/* Of a device that has parts (a console's ports): one of them, with its own section. */
#define CONFIG_PART_NAME_MAX 20u
struct config_part {
    char name[CONFIG_PART_NAME_MAX + 1];
    struct config_value *values; /* one for each part key of the type; ends with key NULL */
};

/* The daemon's own settings: /etc/viod/viod.conf, section [viod]. */
struct daemon_config {
    char *config_dir;          /* where <domain name>.conf are */
    char *run_dir;             /* /run/viod */
    int log_level;             /* enum log_level */
    uint32_t worker_uid_base;  /* a worker's uid and gid: base + domid */
    uint32_t iothreads;        /* I/O threads per worker; 0: the MMIO thread does all */
    bool iothreads_auto;       /* "auto": by the number of CPUs */
    cpu_set_t cpus;            /* where workers run; empty: anywhere */
    uint32_t poll_max_us;      /* adaptive polling, longest; 0 = off */
};

/* Whose device it is, for host resources that are named after their guest. */
struct guest_identity {
    uint32_t domid;
    char name[64];
    char uuid[40];             /* "8-4-4-4-12" hexadecimal digits; empty: unknown */
    /* A folder for this guest's sockets and links, /run/viod/<domid>; emptied when the guest is gone.
     * /run/viod/<name> is a link to it. */
    char run_dir[128];
};

/* One device as the administrator wants it, complete and checked. */
struct device_config {
    const struct guest_identity *guest; /* set in the supervisor only; NULL elsewhere */
    char name[32];             /* "blk0", "xvda" */
    uint16_t virtio_id;        /* 2 */
    uint64_t base;             /* guest-physical address of the register window */
    uint32_t irq;              /* SPI number as in the guest's device tree (33..43) */
    bool grant_usage;
    uint32_t n_vcpus;          /* of the guest */
    struct config_value *values; /* one for each key of the type, in the table's order */
    size_t n_values;
    struct config_part *parts; /* in the order in which the device's section lists them */
    size_t n_parts;
    /* Opened by the supervisor; the device takes over what it uses (and sets it to -1). */
    int fds[DEVICE_FDS_MAX];
    size_t n_fds;
    struct block_info block;   /* for block devices */
    char backing[1024];        /* supervisor: what it is on the host, for people; set by open */
    void *host;                /* supervisor: the type's own, from open to close */
    /* Supervisor: copies of descriptors that a successor of the worker gets; see device_config_keep. */
    int kept[DEVICE_FDS_MAX];
    size_t n_kept;
};

/*
 * A device type as the supervisor and viodctl know it: its keys, and how to open its host side.
 * No virtio in it. The list is in config_types.c, ends with name NULL.
 */
struct device_type {
    const char *name;          /* "blk" */
    uint16_t virtio_id;
    const struct config_key *keys; /* ends with name NULL */
    /* Names of the type's own counters (stats.h, own) for viodctl, ended by NULL; may be NULL. */
    const char *const *counters;
    /*
     * Parts of the device (a console's ports): this key of the device lists their names, and each has
     * keys of its own in a section [<device>.<part>]. By default there is one, named after the type
     * ("console0": "console") or, from the second device on, after the device. NULL: no parts.
     */
    const char *parts_key;
    const struct config_key *part_keys;
    size_t parts_max;
    /*
     * What can be said of the values, and of several together, without a look at the host: the last step
     * of device_config_fill. 0 or -errno with a message. NULL: nothing.
     */
    int (*check)(const struct device_config *config, char *error, size_t error_len);
    /* Supervisor: opens host resources into config->fds. 0 or -errno with a message. */
    int (*open)(struct device_config *config, char *error, size_t error_len);
    /*
     * Supervisor: the worker that had them has died: opens config->fds for its successor. 0; -EBUSY: the
     * dead one still has something in use, to be tried again soon; -errno with a message. NULL: copies
     * of what was kept will do.
     */
    int (*reopen)(struct device_config *config, char *error, size_t error_len);
    /*
     * Supervisor: reopen, or open for the successor of another supervisor's worker, has failed: opens
     * config->fds as of something that is lost, for which a worker asks again and again. 0 or -errno.
     * NULL: there is no such thing, and the device is given up at last.
     */
    int (*lost)(struct device_config *config);
    /*
     * A new supervisor is to take the device over from the worker of its predecessor: 0 if `open` would
     * lead to what the device has, else -errno with a message: then that worker is left alone. NULL: 0.
     */
    int (*still_there)(const struct device_config *config, char *error, size_t error_len);
    /*
     * A new supervisor takes the device over, and the worker of its predecessor still has the host
     * side: true if it is to be opened before that worker ends (an interface that nobody has open is
     * no more). NULL: afterwards.
     */
    bool (*opens_early)(const struct device_config *config);
    /*
     * Supervisor: a worker asks for something more of a device that is open ("tap 0" once it was
     * lost, "connect 1024"). The words may be the guest's: a worker may have been taken over by it.
     * Must not block. Puts at most DEVICE_FDS_MAX descriptors into fds; their number (>= 0), or
     * -errno with a message. -EAGAIN: may be tried again. NULL: never answers.
     */
    int (*ask)(struct device_config *config, const char *request, int *fds, char *error,
               size_t error_len);
    /*
     * Supervisor: the administrator asks for something that the host side alone answers
     * (`viodctl link …`, `viodctl console …`); as ask, but answers in `reply`; -EOPNOTSUPP: not a
     * request for the host side, the worker gets it. May be NULL.
     */
    int (*control)(struct device_config *config, const char *request, char *reply,
                   size_t reply_len);
    /* Supervisor: the device is gone; removes from the host what open or ask made. May be NULL. */
    void (*close)(struct device_config *config);
};
extern const struct device_type *const device_types[];
const struct device_type *device_type_by_id(uint16_t virtio_id);
const struct device_type *device_type_by_name(const char *name);
/* "network device", also of types that viod does not serve; NULL: no such device in the standard. */
const char *virtio_device_title(uint16_t virtio_id);
extern const struct config_key daemon_keys[]; /* of viod.conf's [viod]; ends with name NULL */

/* Values by name; a key that the type does not declare is a programmer's error. */
const char *device_config_string(const struct device_config *config, const char *key);
bool device_config_bool(const struct device_config *config, const char *key);
uint64_t device_config_uint(const struct device_config *config, const char *key);
const char *config_part_string(const struct config_part *part, const char *key);
bool config_part_bool(const struct config_part *part, const char *key);
uint64_t config_part_uint(const struct config_part *part, const char *key);

/*
 * A guest's file: sections named after devices, each a list of keys with lines. Not checked against
 * a type before device_config_fill.
 */
struct guest_file;
/* Why a guest of this name cannot have a file, for people; NULL: it can. "?": its name is unknown. */
const char *guest_name_fault(const char *name);
/* 0 (also if there is no such file: an empty one), or -errno with a message "file:line: …". */
int guest_file_load(const char *path, struct guest_file **out, char *error, size_t error_len);
/* The same from a text, with `path` in messages. */
int guest_file_parse(const char *path, const char *text, size_t len, struct guest_file **out,
                     char *error, size_t error_len);
/*
 * The sections of one device and its parts as a text for guest_file_parse, NUL-terminated; empty if
 * there are none. 0, or -E2BIG.
 */
int guest_file_extract(const struct guest_file *file, const char *device, char *out,
                       size_t out_len);
void guest_file_free(struct guest_file *file);
/*
 * Fills config->values from the section named config->name, defaults for the rest. `preset` (may be
 * NULL) are values that xl's own configuration already decided, "key=value" strings ended by NULL: a
 * section that contradicts one is an error. Unknown keys and bad values are errors with file and
 * line, and the nearest known key.
 */
int device_config_fill(struct device_config *config, const struct device_type *type,
                       const struct guest_file *file, const char *const *preset, char *error,
                       size_t error_len);
/*
 * The same from what device_config_encode wrote, which says all that was decided: a key that it does not
 * have has the default of all devices, also if one with grants would have another today.
 */
int device_config_restore(struct device_config *config, const struct device_type *type,
                          const char *const *preset, char *error, size_t error_len);
/* Sections that no device of the guest used: writes "file:line: …" warnings, one per call of warn. */
void guest_file_warn_unused(const struct guest_file *file, const char *const *used, size_t n_used,
                            void (*warn)(void *arg, const char *line), void *arg);
/* Closes the descriptors that nobody took over, too. */
void device_config_free(struct device_config *config);
void device_config_close_fds(struct device_config *config);
/*
 * For types whose host side must not end with a worker (an interface, a listening socket): keeps copies of
 * these descriptors, in place of earlier ones, for device_config_copy_kept, which puts copies of them
 * into config->fds. 0 or -errno.
 */
int device_config_keep(struct device_config *config, const int *fds, size_t n);
int device_config_copy_kept(struct device_config *config);
void device_config_close_kept(struct device_config *config);

/*
 * What a disk= line of xl decides, as the presets for device_config_fill: path, readonly, discard.
 * `presets` points into `text`. direct-io-safe is not among them: it lifts a work-around that viod
 * does not need (I/O goes through buffers of its own), so `cache` alone decides about O_DIRECT.
 */
#define DISK_PRESETS 4u
int disk_presets(const char *params, bool read_only, bool discard_enable, char *text,
                 size_t text_len, const char *presets[DISK_PRESETS]);

/* The daemon's file. Missing file: defaults. */
/* "0-1,3"; "all" gives an empty set; -EINVAL. */
int config_parse_cpus(const char *list, cpu_set_t *cpus);
int daemon_config_load(const char *path, struct daemon_config *config, char *error,
                       size_t error_len);
void daemon_config_free(struct daemon_config *config);

/* For the way from the supervisor to the worker: a text of key=value lines, and back. Paths of parts
 * stay behind: a worker could not open them. */
int device_config_encode(const struct device_config *config, char *out, size_t out_len);
/* With these paths, too: for the next supervisor. At most 64 KiB. */
int device_config_encode_all(const struct device_config *config, char *out, size_t out_len);
/* fds are not part of the text. Validated as strictly as a file. */
int device_config_decode(const char *text, size_t len, struct device_config *config, char *error,
                         size_t error_len);

#endif
