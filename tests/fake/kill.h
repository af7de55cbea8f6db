/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Death of a worker at a chosen store, for programs that are linked with viod_core_mortal.
 *
 * Nothing is unwound and nothing leaks: at the chosen moment the test takes a picture of all that
 * outlives a process, the worker goes on as a ghost until it has nothing to do, and then the picture is
 * put back and its successor begins.
 */
#ifndef VIOD_FAKE_KILL_H
#define VIOD_FAKE_KILL_H

#include <stdbool.h>

/* `die` is called once, before the store that follows `stores` more of them. */
void kill_arm(unsigned stores, void (*die)(void *arg), void *arg);
/* True: `die` was called since kill_arm. Disarms. */
bool kill_disarm(void);
/* Called by the program under test. */
void viod_store_hook(void);

#endif
