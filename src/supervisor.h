/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor: watches xenstore, opens host resources, keeps one worker per domU, and answers
 * viodctl. Single-threaded. It parses nothing that a guest can write.
 */
#ifndef VIOD_SUPERVISOR_H
#define VIOD_SUPERVISOR_H

#include "config.h"

/* Until SIGTERM or SIGINT. Exit status. */
int supervisor_run(const struct daemon_config *config);

#endif
