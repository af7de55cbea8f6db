/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's command line. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "device_state.h"
#include "log.h"
#include "supervisor.h"
#include "worker.h"

#define VIOD_CONFIG_FILE VIOD_CONFIG_DIR "/viod.conf"
/* Where exec_worker puts the worker's end of the pair. */
#define WORKER_SOCKET 3

static void usage(FILE *out)
{
    fputs("usage: viod [--config FILE] [--check-state]\n"
          "\n"
          "Serves virtio devices to the guests of this Xen host, as xl configures them.\n"
          "\n"
          "  --config FILE  the daemon's configuration (default: " VIOD_CONFIG_FILE ")\n"
          "  --check-state  say whether this version could take over from the one that runs\n"
          "  --version      print the version\n"
          "  --help         print this\n"
          "\n"
          "See viod(8), viod.conf(5) and viodctl(8).\n",
          out);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'}, {"worker", no_argument, NULL, 'w'},
        {"check-state", no_argument, NULL, 's'},
        {"version", no_argument, NULL, 'v'},      {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *path = VIOD_CONFIG_FILE;
    struct daemon_config config;
    char error[CONFIG_ERROR_LEN];
    bool check_state = false;
    int option, status;

    log_set_name("supervisor");
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            path = optarg;
            break;
        case 'w': /* not for people: the supervisor starts its workers so */
            log_set_name("worker");
            return worker_main(WORKER_SOCKET);
        case 's':
            check_state = true;
            break;
        case 'v':
            puts("viod " VIOD_VERSION);
            return EXIT_SUCCESS;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "viod: unexpected argument \"%s\"\n", argv[optind]);
        usage(stderr);
        return 2;
    }
    if (daemon_config_load(path, &config, error, sizeof(error)) < 0) {
        log_error("%s", error);
        return 2;
    }
    log_set_level((enum log_level)config.log_level);
    if (geteuid() != 0) {
        log_error("must be started as root: it opens the Xen devices and the guests' images, and "
                  "gives its workers users of their own");
        return EXIT_FAILURE;
    }
#ifdef VIOD_FAULTS
    log_warning("this is a build for tests (VIOD_FAULTS): some requests of guests kill their worker");
#endif
    if (!STATE_KEPT)
        log_warning("this is a build for the benchmark (VIOD_STATELESS): no worker can take over from another");
    if (check_state) {
        status = supervisor_can_take_over(&config) ? EXIT_SUCCESS : EXIT_FAILURE;
        if (status == EXIT_SUCCESS)
            puts("viod " VIOD_VERSION);
    } else {
        status = supervisor_run(&config, argv);
    }
    daemon_config_free(&config);
    return status;
}
