/* SPDX-License-Identifier: Apache-2.0 */
#include "kill.h"

#include <stddef.h>

static struct {
    unsigned stores;
    void (*die)(void *arg); /* NULL: not armed */
    void *arg;
    bool died;
} armed;

void kill_arm(unsigned stores, void (*die)(void *arg), void *arg)
{
    armed.stores = stores;
    armed.die = die;
    armed.arg = arg;
    armed.died = false;
}

bool kill_disarm(void)
{
    armed.die = NULL;
    return armed.died;
}

void viod_store_hook(void)
{
    void (*die)(void *arg) = armed.die;

    if (die == NULL || armed.stores-- > 0)
        return;
    armed.die = NULL;
    armed.died = true;
    die(armed.arg);
}
