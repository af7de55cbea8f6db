/* SPDX-License-Identifier: Apache-2.0 */
/* The one clock that viod goes by. A test that wants the same run again links a clock of its own. */
#ifndef VIOD_CLOCK_H
#define VIOD_CLOCK_H

#include <stdint.h>

/* CLOCK_MONOTONIC, in nanoseconds. Any thread. */
int64_t monotonic_ns(void);

#endif
