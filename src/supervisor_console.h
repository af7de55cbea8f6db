/* SPDX-License-Identifier: Apache-2.0 */
/* For supervisor_control.c only. */
#ifndef VIOD_SUPERVISOR_CONSOLE_H
#define VIOD_SUPERVISOR_CONSOLE_H

#include <stdio.h>

#include "supervisor_internal.h"

/* The ports of a console; nothing for other devices. */
void console_show(FILE *out, const struct served_device *d, const struct device_stats *stats);
void console_json(FILE *out, const struct served_device *d, const struct device_stats *stats);
/* Where to attach to the port of that name (NULL: the first one): "path<TAB>number", or an error. */
void console_find(struct guest *g, const char *word, FILE *out, char *error, size_t error_len);

#endif
