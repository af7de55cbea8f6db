/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor: watches xenstore, opens host resources, keeps one worker per domU, and answers
 * viodctl. Single-threaded. It parses nothing that a guest can write.
 */
#ifndef VIOD_SUPERVISOR_H
#define VIOD_SUPERVISOR_H

#include "config.h"

/* Exit status: it cannot take over what another version left; starting it again is no use. */
#define SUPERVISOR_EXIT_STATE 3

/*
 * Until SIGTERM or SIGINT, which leave the workers as they are for the next supervisor, or until
 * viodctl stop. argv: of this program, for one that takes its place. Exit status.
 */
int supervisor_run(const struct daemon_config *config, char *const *argv);
/* Could this program take over what another one has left in config's run_dir? Says why not. */
bool supervisor_can_take_over(const struct daemon_config *config);

#endif
