/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker process: serves one domU, without privileges. See message.h for what it hears and says.
 */
#ifndef VIOD_WORKER_H
#define VIOD_WORKER_H

/* Serves until the supervisor says quit; on and on if that is gone. `socket` is its end of the pair. Exit status. */
int worker_main(int socket);

#endif
