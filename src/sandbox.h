/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker gives up before it looks at its guest: root, the file system, capabilities, and all
 * system calls but those on a list.
 */
#ifndef VIOD_SANDBOX_H
#define VIOD_SANDBOX_H

#include "types.h"

/*
 * Before the process has a second thread: what is no property of the process but of each thread, and
 * is inherited. 0 or -errno.
 */
int sandbox_prepare(void);

/*
 * For all threads of the process, for good. `root` is an empty folder to live in; `uid` is also the
 * group. 0, or -errno with a message. Afterwards a system call that is not on the list kills the
 * process.
 */
int sandbox_enter(const char *root, uint32_t uid, char *error, size_t error_len);

#endif
