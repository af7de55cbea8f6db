/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command-line client. The daemon answers a line of words separated by tabs with a line "ok" or
 * "error <message>", then a text to be printed as it is.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "config.h"
#include "viodctl_check.h"
#include "viodctl_console.h"

#ifndef VIOD_CONFIG_DIR
#define VIOD_CONFIG_DIR "/etc/viod"
#endif
#define SOCKET_NAME "viod.sock"
#define DEFAULT_SOCKET "/run/viod/" SOCKET_NAME
#define ANSWER_TIMEOUT_S 30
#define WAIT_TIMEOUT_S 3630 /* the daemon bounds how long it waits */
#define REQUEST_MAX 1024u

enum exit_status { EXIT_OK, EXIT_FAILED, EXIT_USAGE };

struct options {
    bool json;
    const char *socket;
    const char *conf_dir;
};

struct command {
    const char *name;
    int min_args, max_args;
    bool json; /* writes it if asked to */
    const char *usage;
    const char *help;
};

static const struct command commands[] = {
    {"list", 0, 0, true, "list", "the guests and devices that viod serves"},
    {"show", 1, 2, true, "show DOM [DEVICE]", "all about a guest, or about one device"},
    {"stats", 0, 1, true, "stats [DOM]", "counters"},
    {"resize", 2, 2, false, "resize DOM DEVICE", "tell the guest the image's new size"},
    {"console", 1, 2, false, "console DOM [PORT]",
     "attach to a console of a guest; Ctrl-] ends it"},
    {"wait", 1, 2, false, "wait DOM [SECONDS]",
     "until all devices of a guest are ready, wherever served"},
    {"link", 3, 3, false, "link DOM DEVICE up|down", "plug a network device's cable in or out"},
    {"upgrade", 0, 1, false, "upgrade [PATH]",
     "another viod takes over; guests keep their devices"},
    {"stop", 0, 0, false, "stop", "take the devices away from all guests, and end viod"},
    {"check", 1, INT32_MAX, false, "check [--viod-conf-dir DIR] FILE.cfg...",
     "say what the devices of an xl.cfg will be, or what is wrong"},
    {"version", 0, 0, true, "version", "versions of this program and of the daemon"},
};

static void print_usage(FILE *out)
{
    fputs("usage: viodctl [--json] [--socket PATH] COMMAND\n\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        fprintf(out, "  %-42s %s\n", commands[i].usage, commands[i].help);
    fputs("\nDOM is a guest's name or domid, DEVICE a name as in the list, such as xvda or blk0.\n",
          out);
}

static int usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage_error(const char *format, ...)
{
    va_list args;

    fputs("viodctl: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("; viodctl --help lists what is possible\n", stderr);
    return EXIT_USAGE;
}

/* ---- the daemon ---- */

static void explain_connect_error(const char *path, int error)
{
    switch (error) {
    case ENOENT:
    case ECONNREFUSED:
        fprintf(stderr, "viodctl: viod does not answer at %s: it is not running; start it with "
                "\"systemctl start viod\"\n", path);
        break;
    case EACCES:
    case EPERM:
        fprintf(stderr, "viodctl: no permission to talk to viod at %s; run viodctl as root\n",
                path);
        break;
    default:
        fprintf(stderr, "viodctl: viod does not answer at %s: %s\n", path, strerror(error));
    }
}

/* Where the daemon's file puts it; a file that cannot be read is not this program's business. */
static void find_socket(char *path, size_t path_len)
{
    struct daemon_config daemon;
    char error[CONFIG_ERROR_LEN];

    snprintf(path, path_len, "%s", DEFAULT_SOCKET);
    if (daemon_config_load(VIOD_CONFIG_DIR "/viod.conf", &daemon, error, sizeof(error)))
        return;
    snprintf(path, path_len, "%s/%s", daemon.run_dir, SOCKET_NAME);
    daemon_config_free(&daemon);
}

/* A connected socket, or -1 with a message. */
static int connect_daemon(const char *path, int timeout_s)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = timeout_s};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        fprintf(stderr, "viodctl: the socket's path is too long; at most %zu bytes\n",
                sizeof(address.sun_path) - 1);
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) ||
        connect(fd, (const struct sockaddr *)&address, sizeof(address))) {
        explain_connect_error(path, errno);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static int send_request(int fd, bool json, char *const *words, int n_words)
{
    char line[REQUEST_MAX];
    size_t used = 0, sent = 0;

    if (json)
        used = (size_t)snprintf(line, sizeof(line), "--json\t");
    for (int i = 0; i < n_words; i++) {
        int n = snprintf(line + used, sizeof(line) - used, "%s%c", words[i],
                         i + 1 < n_words ? '\t' : '\n');

        if (n < 0 || (size_t)n >= sizeof(line) - used) {
            fputs("viodctl: the request is too long\n", stderr);
            return -1;
        }
        used += (size_t)n;
    }
    while (sent < used) {
        ssize_t n = send(fd, line + sent, used - sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            fprintf(stderr, "viodctl: viod closed the connection: %s\n", strerror(errno));
            return -1;
        }
        sent += (size_t)n;
    }
    return 0;
}

/* The first line tells success; the rest goes to `out`. */
static int print_answer(FILE *in, FILE *out)
{
    char *line = NULL, block[4096];
    size_t line_len = 0, n;
    int status = EXIT_FAILED;

    errno = 0;
    if (getline(&line, &line_len, in) < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            fprintf(stderr, "viodctl: viod did not answer for %d seconds\n", ANSWER_TIMEOUT_S);
        else
            fputs("viodctl: viod closed the connection without an answer; see its log\n", stderr);
        goto out;
    }
    line[strcspn(line, "\n")] = '\0';
    if (!strcmp(line, "ok"))
        status = EXIT_OK;
    else if (!strncmp(line, "error ", 6))
        fprintf(stderr, "viodctl: %s\n", line + 6);
    else
        fprintf(stderr, "viodctl: viod answered \"%.80s\", which this version does not understand\n",
                line);
    while ((n = fread(block, 1, sizeof(block), in)) > 0)
        fwrite(block, 1, n, out);
    if (ferror(in)) {
        fprintf(stderr, "viodctl: the answer is incomplete: %s\n", strerror(errno));
        status = EXIT_FAILED;
    }
out:
    free(line);
    return status;
}

static int ask_daemon(const struct options *options, char *const *words, int n_words, FILE *out)
{
    char path[CONFIG_VALUE_MAX + sizeof(SOCKET_NAME) + 1];
    int fd;
    int status = EXIT_FAILED;
    FILE *in;

    if (!options->socket)
        find_socket(path, sizeof(path));
    fd = connect_daemon(options->socket ? options->socket : path,
                        strcmp(words[0], "wait") ? ANSWER_TIMEOUT_S : WAIT_TIMEOUT_S);
    if (fd < 0)
        return EXIT_FAILED;
    if (send_request(fd, options->json, words, n_words)) {
        close(fd);
        return EXIT_FAILED;
    }
    in = fdopen(fd, "r");
    if (!in) {
        fprintf(stderr, "viodctl: %s\n", strerror(errno));
        close(fd);
        return EXIT_FAILED;
    }
    status = print_answer(in, out);
    fclose(in);
    return status;
}

/* ---- commands ---- */

static int show_version(const struct options *options, char *const *words, int n_words)
{
    char *answer = NULL;
    size_t len = 0;
    FILE *out;
    int status;

    if (!options->json) {
        puts("viodctl " VIOD_VERSION);
        fflush(stdout);
        return ask_daemon(options, words, n_words, stdout);
    }
    out = open_memstream(&answer, &len);
    if (!out)
        return EXIT_FAILED;
    status = ask_daemon(options, words, n_words, out);
    fclose(out);
    while (len && answer[len - 1] == '\n')
        answer[--len] = '\0';
    printf("{\"viodctl\": \"" VIOD_VERSION "\", \"daemon\": %s}\n",
           status == EXIT_OK && len ? answer : "null");
    free(answer);
    return status;
}

static int open_console(const struct options *options, char *const *words, int n_words)
{
    char *answer = NULL, *tab;
    size_t len = 0;
    FILE *out = open_memstream(&answer, &len);
    int status;

    if (!out)
        return EXIT_FAILED;
    status = ask_daemon(options, words, n_words, out);
    fclose(out);
    tab = status == EXIT_OK && answer ? strchr(answer, '\t') : NULL;
    if (tab) {
        *tab = '\0';
        status = viodctl_console(answer, (unsigned)strtoul(tab + 1, NULL, 10));
    }
    free(answer);
    return status;
}

static int run(const struct options *options, char *const *words, int n_words)
{
    const struct command *command = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (!strcmp(commands[i].name, words[0]))
            command = &commands[i];
    if (!command)
        return usage_error("there is no command \"%s\"", words[0]);
    if (n_words - 1 < command->min_args || n_words - 1 > command->max_args)
        return usage_error("wrong number of words; the command is: %s", command->usage);
    if (options->json && !command->json)
        return usage_error("%s writes no JSON", command->name);
    if (!strcmp(command->name, "check"))
        return viodctl_check(options->conf_dir, words + 1, n_words - 1);
    if (options->conf_dir)
        return usage_error("--viod-conf-dir is not for \"%s\"", command->name);
    /* Tabs and newlines separate words and requests. */
    for (int i = 0; i < n_words; i++)
        if (!words[i][0] || strpbrk(words[i], "\t\n"))
            return usage_error("\"%s\" is not a name", words[i]);
    if (!strcmp(command->name, "version"))
        return show_version(options, words, n_words);
    if (!strcmp(command->name, "console"))
        return open_console(options, words, n_words);
    return ask_daemon(options, words, n_words, stdout);
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"json", no_argument, NULL, 'j'},
        {"socket", required_argument, NULL, 's'},
        {"viod-conf-dir", required_argument, NULL, 'd'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {0};
    int c, status;

    while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        switch (c) {
        case 'j': options.json = true; break;
        case 's': options.socket = optarg; break;
        case 'd': options.conf_dir = optarg; break;
        case 'h': print_usage(stdout); return EXIT_OK;
        default: print_usage(stderr); return EXIT_USAGE;
        }
    }
    if (optind == argc) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    status = run(&options, argv + optind, argc - optind);
    /* A full disk or a closed pipe is a failure, too. */
    if (fflush(stdout) && status == EXIT_OK) {
        fprintf(stderr, "viodctl: cannot write: %s\n", strerror(errno));
        status = EXIT_FAILED;
    }
    return status;
}
