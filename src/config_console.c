/* SPDX-License-Identifier: Apache-2.0 */
/* The console's keys and the host side of its ports. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config_types.h"
#include "log.h"

#define PORTS_MAX 31u

/* clang-format off */

static const struct config_key console_keys[] = {
    {.name = "ports", .type = KEY_STRING,
     .help = "names of the ports, port 0 first; each may have a section [<device>.<port>]"},
    {.name = "resize-order", .type = KEY_CHOICE, .default_value = "cols-rows",
     .choices = "cols-rows rows-cols",
     .help = "how a new size is told to a driver of several ports: rows-cols for Linux before 6.15"},
    RING_KEYS,
    {.name = NULL},
};

static const struct config_key port_keys[] = {
    {.name = "backend", .type = KEY_CHOICE, .default_value = "pty",
     .choices = "pty listen connect file log device none",
     .help = "what the port is on the host"},
    {.name = "path", .type = KEY_PATH,
     .help = "of the socket, file or device; of a listening socket, by default <run-dir>/<domid>/<port>"},
    {.name = "console", .type = KEY_CHOICE, .default_value = "auto", .choices = "auto yes no",
     .help = "whether the guest takes the port for a console (hvc); auto: if it is port 0 or named so"},
    {.name = "announce", .type = KEY_BOOL, .default_value = "no",
     .help = "tell the guest whether somebody is at the host's end; until then its writers wait"},
    {.name = "baud", .type = KEY_UINT, .default_value = "115200", .min = 1200, .max = 4000000,
     .choices = "1200 2400 4800 9600 19200 38400 57600 115200 230400 460800 921600 1000000 1500000 "
                "2000000 3000000 4000000",
     .help = "speed of a serial line (device)"},
    {.name = "flow", .type = KEY_CHOICE, .default_value = "none", .choices = "none rtscts",
     .help = "flow control of a serial line (device)"},
    {.name = "max-size", .type = KEY_UINT, .default_value = "1048576", .min = 4096,
     .max = UINT32_MAX, .help = "bytes at which a log is put aside and a new one begun (log)"},
    {.name = "old-files", .type = KEY_UINT, .default_value = "3", .min = 0, .max = 99,
     .help = "how many logs that were put aside are kept, as <path>.1 and so on (log)"},
    {.name = NULL},
};

/* clang-format on */

/* What the supervisor has open of a device. */
struct host_port {
    struct stream_setup setup;
    char path[CONFIG_VALUE_MAX + 1];
    int fds[STREAM_FDS_MAX]; /* opened, and not yet handed over, or kept: see stays */
    int n_fds;
    bool made;               /* a link or socket is to be removed */
    bool given;              /* to the worker */
};
struct console_host {
    size_t n_ports;
    struct host_port ports[PORTS_MAX];
    char attach_path[192];
};

static enum stream_kind kind_of(const struct config_part *part)
{
    const char *word = config_part_string(part, "backend");

    for (enum stream_kind kind = STREAM_NONE; kind < STREAM_KINDS; kind++)
        if (!strcmp(stream_kind_names[kind], word))
            return kind;
    return STREAM_NONE;
}

/* Has it a name in the guest's folder below run-dir? */
static bool is_named_there(const struct config_part *part)
{
    enum stream_kind kind = kind_of(part);

    return kind == STREAM_PTY || (kind == STREAM_LISTEN && !config_part_string(part, "path"));
}

static int console_type_check(const struct device_config *config, char *error, size_t error_len)
{
    for (size_t i = 0; i < config->n_parts; i++) {
        const struct config_part *part = &config->parts[i];

        /* Other names in that folder have a dot. */
        if (is_named_there(part) && (!strcmp(part->name, "state") || !strcmp(part->name, "vsock"))) {
            snprintf(error, error_len,
                     "%s: port %s: viod has a file of its own of that name in the guest's folder; "
                     "give the port another one",
                     config->name, part->name);
            return -EEXIST;
        }
    }
    return 0;
}

static int set_up_port(const struct device_config *config, const struct config_part *part,
                       struct host_port *port, char *error, size_t error_len)
{
    const char *path = config_part_string(part, "path"), *run_dir = config->guest->run_dir;
    enum stream_kind kind = kind_of(part);

    port->setup = (struct stream_setup){
        .kind = kind,
        .path = port->path,
        .baud = (uint32_t)config_part_uint(part, "baud"),
        .rtscts = !strcmp(config_part_string(part, "flow"), "rtscts"),
        .old_files = (uint32_t)config_part_uint(part, "old-files"),
        .max_size = config_part_uint(part, "max-size"),
    };
    if (kind == STREAM_NONE)
        return 0;
    if (is_named_there(part)) {
        if (run_dir[0] == '\0') {
            snprintf(error, error_len, "%s: there is no folder for the guest's consoles", config->name);
            return -ENOENT;
        }
        snprintf(port->path, sizeof(port->path), "%s/%s", run_dir, part->name);
        return 0;
    }
    if (!path) {
        snprintf(error, error_len,
                 "%s: port %s has no path; write path = /absolute/path into section [%s.%s] of the "
                 "guest's file",
                 config->name, part->name, config->name, part->name);
        return -EINVAL;
    }
    snprintf(port->path, sizeof(port->path), "%s", path);
    return 0;
}

static int open_port(struct host_port *port, char *error, size_t error_len)
{
    int n = stream_open(&port->setup, port->fds, error, error_len);

    if (n >= 0) {
        port->n_fds = n;
        port->made = port->setup.kind == STREAM_PTY || port->setup.kind == STREAM_LISTEN;
    }
    return n;
}

/* Who has a pty open, or waits for a socket to answer, does not notice that a worker has died. */
static bool stays(const struct host_port *port)
{
    return port->setup.kind == STREAM_PTY || port->setup.kind == STREAM_LISTEN;
}

static void close_fds(struct host_port *port)
{
    for (int i = 0; i < port->n_fds; i++)
        close(port->fds[i]);
    port->n_fds = 0;
}

static void console_type_close(struct device_config *config)
{
    struct console_host *host = config->host;

    if (!host)
        return;
    for (size_t i = 0; i < host->n_ports; i++) {
        close_fds(&host->ports[i]);
        if (host->ports[i].made)
            stream_unlink(&host->ports[i].setup);
    }
    if (host->attach_path[0] != '\0')
        (void)unlink(host->attach_path);
    free(host);
    config->host = NULL;
}

static void describe(struct device_config *config)
{
    struct console_host *host = config->host;
    size_t used = 0;

    config->backing[0] = '\0';
    for (size_t i = 0; i < host->n_ports && used < sizeof(config->backing); i++)
        used += (size_t)snprintf(config->backing + used, sizeof(config->backing) - used,
                                 "%s%s: %s%s%s", i ? ", " : "", config->parts[i].name,
                                 stream_kind_names[host->ports[i].setup.kind],
                                 host->ports[i].path[0] ? " " : "", host->ports[i].path);
}

/* fds[1], and a copy of it for successors. Sealed: a worker cannot shorten it under its successor. */
static int make_memory(struct device_config *config, char *error, size_t error_len)
{
    int fd = memfd_create("viod-console", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)(config->n_parts * sizeof(struct port_memory))) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int ret = -errno;

        snprintf(error, error_len, "%s: no memory for its ports: %s", config->name, strerror(-ret));
        if (fd >= 0)
            close(fd);
        return ret;
    }
    config->fds[config->n_fds++] = fd;
    return 0;
}

static int console_type_open(struct device_config *config, char *error, size_t error_len)
{
    struct console_host *host = calloc(1, sizeof(*host));
    int ret = 0;

    if (!host) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    config->host = host;
    for (size_t i = 0; i < config->n_parts && ret >= 0; i++) {
        struct host_port *port = &host->ports[i];

        host->n_ports = i + 1;
        ret = set_up_port(config, &config->parts[i], port, error, error_len);
        if (ret == 0 && port->setup.kind != STREAM_NONE) {
            ret = open_port(port, error, error_len);
            if (ret == 0)
                log_warning("%s, port %s: %s; it is tried again", config->name,
                            config->parts[i].name, error);
        }
    }
    if (ret >= 0 && config->guest->run_dir[0] != '\0') {
        snprintf(host->attach_path, sizeof(host->attach_path), "%s/%s.attach",
                 config->guest->run_dir, config->name);
        ret = stream_listen(host->attach_path, SOCK_SEQPACKET, error, error_len);
        if (ret < 0) {
            host->attach_path[0] = '\0';
        } else {
            config->fds[0] = ret;
            config->n_fds = 1;
            ret = make_memory(config, error, error_len);
        }
    }
    if (ret >= 0)
        ret = device_config_keep(config, config->fds, config->n_fds);
    if (ret < 0) {
        console_type_close(config);
        return ret;
    }
    describe(config);
    return 0;
}

/* "open 3", "rotate 3": the worker wants what belongs to port 3. */
static int console_type_ask(struct device_config *config, const char *request, int *fds,
                            char *error, size_t error_len)
{
    struct console_host *host = config->host;
    struct host_port *port;
    unsigned number;
    char word[16], more;
    int n;

    if (!host || sscanf(request, "%15s %u%c", word, &number, &more) != 2 || number >= host->n_ports) {
        snprintf(error, error_len, "not a request for a console");
        return -EINVAL;
    }
    port = &host->ports[number];
    if (!strcmp(word, "rotate")) {
        if (port->setup.kind != STREAM_LOG)
            return -EINVAL;
        return stream_rotate(&port->setup, fds, error, error_len);
    }
    if (strcmp(word, "open") || port->setup.kind == STREAM_NONE)
        return -EINVAL;
    /* Only these get lost; a worker that its guest has taken over shall not collect all ptys. */
    if (port->given && port->setup.kind != STREAM_CONNECT && port->setup.kind != STREAM_DEVICE)
        return -EINVAL;
    if (port->n_fds == 0 && open_port(port, error, error_len) < 0)
        return -EIO;
    if (port->n_fds == 0)
        return -EAGAIN;
    n = port->n_fds;
    for (int i = 0; i < n; i++) {
        fds[i] = stays(port) ? fcntl(port->fds[i], F_DUPFD_CLOEXEC, 0) : port->fds[i];
        if (fds[i] < 0) {
            n = -errno;
            while (i > 0)
                close(fds[--i]);
            return n;
        }
    }
    if (!stays(port))
        port->n_fds = 0;
    port->given = true;
    return n;
}

/* The next worker asks for its ports anew. */
static int console_type_reopen(struct device_config *config, char *error, size_t error_len)
{
    struct console_host *host = config->host;
    int ret = device_config_copy_kept(config);

    for (size_t i = 0; host != NULL && i < host->n_ports; i++)
        host->ports[i].given = false;
    if (ret < 0)
        snprintf(error, error_len, "%s: cannot hand its socket over: %s", config->name,
                 strerror(-ret));
    return ret;
}

const struct device_type console_type = {
    .name = "console",
    .virtio_id = 3,
    .keys = console_keys,
    .parts_key = "ports",
    .part_keys = port_keys,
    .parts_max = PORTS_MAX,
    .check = console_type_check,
    .open = console_type_open,
    .reopen = console_type_reopen,
    .ask = console_type_ask,
    .close = console_type_close,
};
