/* SPDX-License-Identifier: Apache-2.0 */
/* Consoles, as viodctl shows and finds them. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "devices/console_state.h"
#include "supervisor_console.h"

#define VIRTIO_ID_CONSOLE 3u

static bool is_console(const struct served_device *d)
{
    return d->node.virtio_id == VIRTIO_ID_CONSOLE && d->has_config;
}

void console_show(FILE *out, const struct served_device *d, const struct device_stats *stats)
{
    for (size_t i = 0; is_console(d) && i < d->config.n_parts; i++) {
        const struct queue_stats *rx = &stats->queues[console_rx_queue((unsigned)i)];
        const struct queue_stats *tx = &stats->queues[console_tx_queue((unsigned)i)];
        uint64_t state = stat_get(&tx->state);

        fprintf(out,
                "  port %-6zu %s: %s, %s in the guest, %s on the host, %" PRIu64 " attached, %" PRIu64
                " bytes in, %" PRIu64 " out, %" PRIu64 " lost\n",
                i, d->config.parts[i].name, config_part_string(&d->config.parts[i], "backend"),
                (state & CONSOLE_GUEST_OPEN) != 0 ? "open" : "closed",
                (state & CONSOLE_HOST_PRESENT) != 0 ? "open" : "closed",
                state >> CONSOLE_ATTACHED_SHIFT, stat_get(&rx->read_bytes),
                stat_get(&tx->write_bytes), stat_get(&tx->dropped));
    }
}

void console_json(FILE *out, const struct served_device *d, const struct device_stats *stats)
{
    if (!is_console(d))
        return;
    fputs(",\"ports\":[", out);
    for (size_t i = 0; i < d->config.n_parts; i++) {
        const struct queue_stats *rx = &stats->queues[console_rx_queue((unsigned)i)];
        const struct queue_stats *tx = &stats->queues[console_tx_queue((unsigned)i)];
        uint64_t state = stat_get(&tx->state);

        /* Names of ports and back ends need no quoting: see config_parts.c. */
        fprintf(out,
                "%s{\"name\":\"%s\",\"backend\":\"%s\",\"guest_open\":%s,\"host_open\":%s,"
                "\"attached\":%" PRIu64 ",\"in_bytes\":%" PRIu64 ",\"out_bytes\":%" PRIu64
                ",\"lost_bytes\":%" PRIu64 "}",
                i > 0 ? "," : "", d->config.parts[i].name,
                config_part_string(&d->config.parts[i], "backend"),
                (state & CONSOLE_GUEST_OPEN) != 0 ? "true" : "false",
                (state & CONSOLE_HOST_PRESENT) != 0 ? "true" : "false",
                state >> CONSOLE_ATTACHED_SHIFT, stat_get(&rx->read_bytes),
                stat_get(&tx->write_bytes), stat_get(&tx->dropped));
    }
    fputc(']', out);
}

/* "console", "gnss", "console0", "console1.gnss" */
static bool is_called(const struct served_device *d, size_t port, const char *word)
{
    char full[64];

    if (word == NULL || strcmp(d->config.parts[port].name, word) == 0)
        return true;
    snprintf(full, sizeof(full), "%s.%s", d->name, d->config.parts[port].name);
    return strcmp(full, word) == 0 || (port == 0 && strcmp(d->name, word) == 0);
}

void console_find(struct guest *g, const char *word, FILE *out, char *error, size_t error_len)
{
    size_t used;

    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        for (size_t j = 0; d->used && d->state == SERVED_READY && is_console(d) &&
                           j < d->config.n_parts; j++)
            if (is_called(d, j, word)) {
                fprintf(out, "%s/%s.attach\t%zu\n", g->identity.run_dir, d->name, j);
                return;
            }
    }
    used = (size_t)snprintf(error, error_len, word == NULL ? "this guest has no console"
                                                           : "this guest has no port \"%.40s\"; its "
                                                             "ports are:",
                            word);
    for (size_t i = 0; word != NULL && i < ARRAY_SIZE(g->devices); i++)
        for (size_t j = 0; g->devices[i].used && is_console(&g->devices[i]) &&
                           j < g->devices[i].config.n_parts && used < error_len; j++)
            used += (size_t)snprintf(error + used, error_len - used, " %s",
                                     g->devices[i].config.parts[j].name);
}
