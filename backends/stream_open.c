/* SPDX-License-Identifier: Apache-2.0 */
/* The supervisor's half of character streams: opens, puts full logs aside, and removes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "backend.h"

static int fail(char *error, size_t error_len, int number, const char *path, const char *what)
{
    snprintf(error, error_len, "%s: %s: %s", path, what, strerror(number));
    return -number;
}

/* ---- pty ---- */

/*
 * Whoever opens the other end sees bytes as they are. It is opened once and closed again: only then a
 * pty shows that nobody has it open (POLLHUP), which is where the worker starts from.
 */
static int prepare_pty(int master, char *name, size_t name_len)
{
    struct termios termios;
    int slave, ret = 0;

    if (grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, name, name_len) != 0)
        return -errno;
    slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return -errno;
    if (tcgetattr(slave, &termios) < 0) {
        ret = -errno;
    } else {
        cfmakeraw(&termios);
        if (tcsetattr(slave, TCSANOW, &termios) < 0 || fchmod(slave, 0600) < 0)
            ret = -errno;
    }
    close(slave);
    return ret;
}

static int open_pty(const char *path, int *fds, char *error, size_t error_len)
{
    char name[64];
    int ret;

    fds[0] = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    fds[1] = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fds[0] < 0 || fds[1] < 0) {
        ret = fail(error, error_len, errno, path, "cannot make a pty");
        goto fail;
    }
    ret = prepare_pty(fds[0], name, sizeof(name));
    if (ret == 0 && inotify_add_watch(fds[1], name, IN_OPEN) < 0)
        ret = -errno;
    if (ret < 0) {
        fail(error, error_len, -ret, path, "cannot set the pty up");
        goto fail;
    }
    if (symlink(name, path) < 0) {
        ret = -errno;
        if (errno == EEXIST)
            snprintf(error, error_len, "%s: is there already; ports of one guest have different names",
                     path);
        else
            (void)fail(error, error_len, errno, path, "cannot make the link to the pty");
        goto fail;
    }
    return 2;
fail:
    if (fds[0] >= 0)
        close(fds[0]);
    if (fds[1] >= 0)
        close(fds[1]);
    return ret;
}

/* ---- sockets ---- */

static bool set_address(struct sockaddr_un *address, const char *path, char *error,
                        size_t error_len)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(address->sun_path)) {
        snprintf(error, error_len, "%s: too long for a socket; at most %zu bytes", path,
                 sizeof(address->sun_path) - 1);
        return false;
    }
    memcpy(address->sun_path, path, strlen(path) + 1);
    return true;
}

/* Does anybody have the socket at this address? Perhaps one of another type, with too much to do. */
static bool is_alive(const struct sockaddr_un *address, int type)
{
    int probe = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool alive = connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
                 errno == EAGAIN || errno == EPROTOTYPE;

    if (probe >= 0)
        close(probe);
    return alive;
}

int stream_listen(const char *path, int type, char *error, size_t error_len)
{
    struct sockaddr_un address;
    struct stat st;
    int fd, ret;

    if (!set_address(&address, path, error, error_len))
        return -ENAMETOOLONG;
    if (lstat(path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode)) {
            snprintf(error, error_len, "%s: is there and is no socket; remove it", path);
            return -EEXIST;
        }
        if (is_alive(&address, type)) {
            snprintf(error, error_len, "%s: somebody listens there already; choose another path",
                     path);
            return -EADDRINUSE;
        }
        (void)unlink(path);
    }
    fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(error, error_len, errno, path, "cannot make a socket");
    /* Before bind: nobody gets in between. */
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        chmod(path, 0600) < 0 || listen(fd, 8) < 0) {
        ret = fail(error, error_len, errno, path, "cannot listen there");
        close(fd);
        return ret;
    }
    return fd;
}

static int connect_to(const char *path, int *fds, char *error, size_t error_len)
{
    struct sockaddr_un address;

    if (!set_address(&address, path, error, error_len))
        return -ENAMETOOLONG;
    fds[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fds[0] < 0)
        return fail(error, error_len, errno, path, "cannot make a socket");
    if (connect(fds[0], (struct sockaddr *)&address, sizeof(address)) < 0) {
        (void)fail(error, error_len, errno, path, "nobody answers");
        close(fds[0]);
        return 0;
    }
    return 1;
}

/* ---- files and devices ---- */

static int open_file(const char *path, int *fds, char *error, size_t error_len)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);

    if (fd < 0)
        return fail(error, error_len, errno, path, "cannot be opened for writing");
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        snprintf(error, error_len, "%s: is not a file; for a device write backend = device", path);
        close(fd);
        return -EINVAL;
    }
    fds[0] = fd;
    return 1;
}

static const struct {
    uint32_t baud;
    speed_t speed;
} speeds[] = {
    {1200, B1200},       {2400, B2400},       {4800, B4800},       {9600, B9600},
    {19200, B19200},     {38400, B38400},     {57600, B57600},     {115200, B115200},
    {230400, B230400},   {460800, B460800},   {921600, B921600},   {1000000, B1000000},
    {1500000, B1500000}, {2000000, B2000000}, {3000000, B3000000}, {4000000, B4000000},
};

/* 8 bits, no parity, nothing translated; the modem's lines do not matter. */
static int set_line(int fd, const struct stream_setup *setup)
{
    struct termios termios;

    if (tcgetattr(fd, &termios) < 0)
        return -errno;
    cfmakeraw(&termios);
    termios.c_cflag |= CLOCAL | CREAD;
    termios.c_cflag &= ~(tcflag_t)(CSTOPB | HUPCL | CRTSCTS);
    if (setup->rtscts)
        termios.c_cflag |= CRTSCTS;
    termios.c_cc[VMIN] = 1;
    termios.c_cc[VTIME] = 0;
    for (size_t i = 0; i < ARRAY_SIZE(speeds); i++)
        if (speeds[i].baud == setup->baud &&
            (cfsetispeed(&termios, speeds[i].speed) < 0 ||
             cfsetospeed(&termios, speeds[i].speed) < 0))
            return -errno;
    return tcsetattr(fd, TCSANOW, &termios) < 0 ? -errno : 0;
}

static int open_device(const struct stream_setup *setup, int *fds, char *error, size_t error_len)
{
    struct stat st;
    int ret, fd = open(setup->path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        int number = errno;

        (void)fail(error, error_len, number, setup->path, "cannot be opened");
        /* It may be plugged in later. */
        return number == ENOENT || number == ENXIO || number == ENODEV || number == EIO ? 0
                                                                                       : -number;
    }
    if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode)) {
        snprintf(error, error_len, "%s: is not a character device; for a file write backend = file",
                 setup->path);
        close(fd);
        return -EINVAL;
    }
    ret = isatty(fd) ? set_line(fd, setup) : 0;
    if (ret < 0) {
        (void)fail(error, error_len, -ret, setup->path, "cannot set the line up");
        close(fd);
        return ret;
    }
    fds[0] = fd;
    return 1;
}

/* ---- all ---- */

int stream_open(const struct stream_setup *setup, int fds[STREAM_FDS_MAX], char *error,
                size_t error_len)
{
    switch (setup->kind) {
    case STREAM_PTY:
        return open_pty(setup->path, fds, error, error_len);
    case STREAM_LISTEN:
        fds[0] = stream_listen(setup->path, SOCK_STREAM, error, error_len);
        return fds[0] < 0 ? fds[0] : 1;
    case STREAM_CONNECT:
        return connect_to(setup->path, fds, error, error_len);
    case STREAM_FILE:
    case STREAM_LOG:
        return open_file(setup->path, fds, error, error_len);
    case STREAM_DEVICE:
        return open_device(setup, fds, error, error_len);
    case STREAM_NONE:
    case STREAM_KINDS:
        break;
    }
    return 0;
}

static int old_name(char *name, size_t len, const char *path, uint32_t number)
{
    int n = number == 0 ? snprintf(name, len, "%s", path) : snprintf(name, len, "%s.%u", path, number);

    return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

int stream_rotate(const struct stream_setup *setup, int fds[STREAM_FDS_MAX], char *error,
                  size_t error_len)
{
    char from[1100], to[1100];
    struct stat st;

    /* Whoever asks may be the guest: old files are not thrown away for nothing. */
    if (lstat(setup->path, &st) == 0 && S_ISREG(st.st_mode) &&
        (uint64_t)st.st_size >= setup->max_size / 2) {
        for (uint32_t n = setup->old_files; n > 0; n--)
            if (old_name(from, sizeof(from), setup->path, n - 1) == 0 &&
                old_name(to, sizeof(to), setup->path, n) == 0 && rename(from, to) < 0 &&
                errno != ENOENT)
                return fail(error, error_len, errno, from, "cannot be renamed");
        if (setup->old_files == 0 && unlink(setup->path) < 0)
            return fail(error, error_len, errno, setup->path, "cannot be removed");
    }
    return open_file(setup->path, fds, error, error_len);
}

void stream_unlink(const struct stream_setup *setup)
{
    struct stat st;

    if (lstat(setup->path, &st) < 0)
        return;
    if ((setup->kind == STREAM_PTY && S_ISLNK(st.st_mode)) ||
        (setup->kind == STREAM_LISTEN && S_ISSOCK(st.st_mode)))
        (void)unlink(setup->path);
}
