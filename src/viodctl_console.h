/* SPDX-License-Identifier: Apache-2.0 */
/* viodctl console: a terminal on a port of a guest's console. */
#ifndef VIOD_VIODCTL_CONSOLE_H
#define VIOD_VIODCTL_CONSOLE_H

/* path and port as the daemon said. Runs until one of both sides ends it; an exit status. */
int viodctl_console(const char *path, unsigned port);

#endif
