/* SPDX-License-Identifier: Apache-2.0 */
/* What viodctl prints: list, show and stats, as text and as JSON. */
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <string.h>

#include "supervisor_console.h"
#include "supervisor_internal.h"

static const char *const state_words[] = {
    [SERVED_WAITING] = "waiting",   [SERVED_ADDING] = "starting", [SERVED_READY] = "ready",
    [SERVED_FAILED] = "failed",     [SERVED_REMOVING] = "closing", [SERVED_GONE] = "closed",
};

const char *show_state(enum served_state state)
{
    return state_words[state];
}

/* The bytes of the UTF-8 character at p, NUL-terminated; 0: there is none. RFC 3629, 4. */
static size_t utf8_len(const unsigned char *p)
{
    size_t len = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;

    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

/* RFC 8259, 7. What is no UTF-8, such as a path cut short, has U+FFFD in its place. */
static void json_string(FILE *out, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t len;

    fputc('"', out);
    for (; *p != '\0'; p += MAX(len, (size_t)1)) {
        len = utf8_len(p);
        if (len == 0)
            fputs("\\ufffd", out);
        else if (*p == '"' || *p == '\\')
            fprintf(out, "\\%c", *p);
        else if (*p < ' ' || *p == 0x7f)
            fprintf(out, "\\u%04x", *p);
        else
            fwrite(p, 1, len, out);
    }
    fputc('"', out);
}

static void current_name(struct supervisor *s, const struct guest *g, char *name, size_t len)
{
    if (xenstore_domain_name(s->xs, g->domid, name, len) < 0)
        snprintf(name, len, "%s", g->name);
}

static const char *type_name(const struct served_device *d)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);

    return type != NULL ? type->name : "?";
}

/* The name of the type's i-th counter; NULL: it has no more. */
static const char *own_counter(const struct served_device *d, unsigned i)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);

    return type != NULL && type->counters != NULL && i < STATS_OWN_MAX ? type->counters[i] : NULL;
}

static const struct device_stats *stats_of(const struct guest *g, const struct served_device *d)
{
    if (g->stats == NULL || !d->has_slot || d->state != SERVED_READY)
        return NULL;
    return &g->stats->devices[d->slot];
}

static const char *driver_word(const struct device_stats *stats)
{
    uint32_t status;

    if (stats == NULL)
        return "-";
    status = atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)&stats->status,
                                  memory_order_relaxed);
    if ((status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0)
        return "needs-reset";
    if ((status & VIRTIO_CONFIG_S_FAILED) != 0)
        return "gave-up";
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
        return "running";
    return status == 0 ? "none" : "starting";
}

static uint32_t n_queues_of(const struct device_stats *stats)
{
    uint32_t n = atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)&stats->n_queues,
                                      memory_order_relaxed);

    return MIN(n, STATS_QUEUES_MAX);
}

struct totals {
    uint64_t requests, kicks, batches, interrupts, read_bytes, write_bytes, errors;
};

static struct totals totals_of(const struct device_stats *stats)
{
    struct totals t = {0};

    for (uint32_t i = 0; i < n_queues_of(stats); i++) {
        const struct queue_stats *q = &stats->queues[i];

        t.requests += stat_get(&q->requests);
        t.kicks += stat_get(&q->kicks);
        t.batches += stat_get(&q->batches);
        t.interrupts += stat_get(&q->interrupts);
        t.read_bytes += stat_get(&q->read_bytes);
        t.write_bytes += stat_get(&q->write_bytes);
        t.errors += stat_get(&q->errors);
    }
    return t;
}

#define NET_ID 1u

/* A network device's queues take turns: receive, transmit. The last one is for commands. */
struct frames {
    uint64_t packets, bytes, drops, errors;
};

static struct frames frames_of(const struct device_stats *stats, bool sent)
{
    struct frames f = {0};

    for (uint32_t i = sent; i + 1 < n_queues_of(stats); i += 2) {
        const struct queue_stats *q = &stats->queues[i];

        f.packets += stat_get(&q->packets);
        f.bytes += stat_get(sent ? &q->write_bytes : &q->read_bytes);
        f.drops += stat_get(&q->drops);
        f.errors += stat_get(&q->errors);
    }
    return f;
}

static void frames_json(FILE *out, const struct device_stats *stats)
{
    for (int sent = 0; sent < 2; sent++) {
        struct frames f = frames_of(stats, sent != 0);

        fprintf(out,
                ",\"%s\":{\"packets\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"drops\":%" PRIu64
                ",\"errors\":%" PRIu64 "}",
                sent ? "tx" : "rx", f.packets, f.bytes, f.drops, f.errors);
    }
    fputs(",\"queue_packets\":[", out);
    for (uint32_t i = 0; i + 1 < n_queues_of(stats); i++)
        fprintf(out, "%s%" PRIu64, i > 0 ? "," : "", stat_get(&stats->queues[i].packets));
    fputc(']', out);
}

static void show_frames(FILE *out, const struct device_stats *stats)
{
    for (int sent = 0; sent < 2; sent++) {
        struct frames f = frames_of(stats, sent != 0);

        fprintf(out,
                "  %s    %" PRIu64 " packets, %" PRIu64 " KiB, %" PRIu64 " dropped, %" PRIu64
                " errors\n",
                sent ? "sent    " : "received", f.packets, f.bytes >> 10, f.drops, f.errors);
    }
}

static void device_json(FILE *out, const struct guest *g, const struct served_device *d)
{
    const struct device_stats *stats = stats_of(g, d);

    fputs("{\"name\":", out);
    json_string(out, d->name);
    fprintf(out, ",\"type\":\"%s\",\"virtio_id\":%u,\"slot\":%d,\"base\":%" PRIu64 ",\"irq\":%u,",
            type_name(d), d->node.virtio_id, d->has_slot ? (int)d->slot : -1, d->node.base,
            d->node.irq);
    fprintf(out, "\"state\":\"%s\",\"driver\":\"%s\",\"backing\":", state_words[d->state],
            driver_word(stats));
    json_string(out, d->backing);
    fputs(",\"error\":", out);
    json_string(out, d->error);
    if (stats != NULL) {
        struct totals t = totals_of(stats);

        fprintf(out,
                ",\"features\":\"0x%" PRIx64 "\",\"queues\":%u,\"requests\":%" PRIu64
                ",\"kicks\":%" PRIu64 ",\"batches\":%" PRIu64 ",\"interrupts\":%" PRIu64
                ",\"read_bytes\":%" PRIu64 ",\"write_bytes\":%" PRIu64 ",\"errors\":%" PRIu64
                ",\"resets\":%" PRIu64 ",\"needs_reset\":%" PRIu64 ",\"config_changes\":%" PRIu64,
                stat_get(&stats->features), n_queues_of(stats), t.requests, t.kicks, t.batches,
                t.interrupts, t.read_bytes, t.write_bytes, t.errors, stat_get(&stats->resets),
                stat_get(&stats->needs_reset), stat_get(&stats->config_changes));
        for (unsigned i = 0; own_counter(d, i) != NULL; i++)
            fprintf(out, ",\"%s\":%" PRIu64, own_counter(d, i), stat_get(&stats->own[i]));
        console_json(out, d, stats);
        if (d->node.virtio_id == NET_ID)
            frames_json(out, stats);
    }
    fputc('}', out);
}

struct worker_totals {
    uint64_t turns, sleeps, syscalls, poll_hits, poll_misses;
    uint32_t threads;
};

static struct worker_totals threads_of(const struct worker_stats *stats)
{
    struct worker_totals t = {0};

    t.threads = atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)&stats->n_threads,
                                     memory_order_relaxed);
    t.threads = MIN(t.threads, STATS_THREADS_MAX);
    for (uint32_t i = 0; i < t.threads; i++) {
        const struct thread_stats *thread = &stats->threads[i];

        t.turns += stat_get(&thread->turns);
        t.sleeps += stat_get(&thread->sleeps);
        t.syscalls += stat_get(&thread->syscalls);
        t.poll_hits += stat_get(&thread->poll_hits);
        t.poll_misses += stat_get(&thread->poll_misses);
    }
    t.syscalls += stat_get(&stats->hypervisor_calls);
    return t;
}

static void guest_json(struct supervisor *s, FILE *out, const struct guest *g,
                       const struct served_device *only)
{
    char name[64];
    bool first = true;

    current_name(s, g, name, sizeof(name));
    fprintf(out, "{\"domid\":%u,\"name\":", g->domid);
    json_string(out, name);
    fprintf(out, ",\"pid\":%d,\"vcpus\":%u,\"restarts\":%u,\"failure\":", (int)g->pid, g->n_vcpus,
            g->restarts);
    json_string(out, g->failure);
    if (g->stats != NULL) {
        struct worker_totals t = threads_of(g->stats);

        fprintf(out,
                ",\"mmio_reads\":%" PRIu64 ",\"mmio_writes\":%" PRIu64 ",\"notifies\":%" PRIu64
                ",\"invalidates\":%" PRIu64 ",\"map_calls\":%" PRIu64 ",\"mapped_kib\":[%" PRIu64
                ",%" PRIu64 "],\"memory_drops\":%" PRIu64 ",\"grant_maps\":%" PRIu64
                ",\"grant_unmaps\":%" PRIu64 ",\"grant_copies\":%" PRIu64
                ",\"granted_kib\":%" PRIu64 ",\"threads\":%u,\"turns\":%" PRIu64
                ",\"sleeps\":%" PRIu64 ",\"syscalls\":%" PRIu64 ",\"poll_hits\":%" PRIu64
                ",\"poll_misses\":%" PRIu64,
                stat_get(&g->stats->mmio_reads), stat_get(&g->stats->mmio_writes),
                stat_get(&g->stats->notifies), stat_get(&g->stats->invalidates),
                stat_get(&g->stats->map_calls), stat_get(&g->stats->mapped_kib[0]),
                stat_get(&g->stats->mapped_kib[1]), stat_get(&g->stats->memory_drops),
                stat_get(&g->stats->grant_maps), stat_get(&g->stats->grant_unmaps),
                stat_get(&g->stats->grant_copies), stat_get(&g->stats->granted_kib), t.threads,
                t.turns, t.sleeps, t.syscalls, t.poll_hits, t.poll_misses);
    }
    fputs(",\"devices\":[", out);
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        const struct served_device *d = &g->devices[i];

        if (!d->used || (only != NULL && d != only))
            continue;
        if (!first)
            fputc(',', out);
        first = false;
        device_json(out, g, d);
    }
    fputs("]}", out);
}

static void all_json(struct supervisor *s, FILE *out)
{
    fputc('[', out);
    for (const struct guest *g = s->guests; g != NULL; g = g->next) {
        guest_json(s, out, g, NULL);
        if (g->next != NULL)
            fputc(',', out);
    }
    fputs("]\n", out);
}

void show_list(struct supervisor *s, struct answer *a)
{
    if (a->json) {
        all_json(s, a->out);
        return;
    }
    fprintf(a->out, "%-6s %-20s %-10s %-6s %-9s %-12s %s\n", "DOMID", "NAME", "DEVICE", "TYPE",
            "STATE", "DRIVER", "BACKED BY");
    for (const struct guest *g = s->guests; g != NULL; g = g->next) {
        char name[64];

        current_name(s, g, name, sizeof(name));
        for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
            const struct served_device *d = &g->devices[i];

            if (d->used && d->state != SERVED_GONE)
                fprintf(a->out, "%-6u %-20s %-10s %-6s %-9s %-12s %s\n", g->domid, name, d->name,
                        type_name(d), state_words[d->state], driver_word(stats_of(g, d)),
                        d->state == SERVED_FAILED ? d->error : d->backing);
        }
    }
}

static void show_features(FILE *out, uint64_t features)
{
    static const struct {
        uint8_t bit;
        const char *name;
    } common[] = {{28, "INDIRECT_DESC"}, {29, "EVENT_IDX"}, {32, "VERSION_1"},
                  {33, "ACCESS_PLATFORM"}, {34, "RING_PACKED"}, {35, "IN_ORDER"},
                  {38, "NOTIFICATION_DATA"}, {40, "RING_RESET"}};

    for (size_t i = 0; i < ARRAY_SIZE(common); i++)
        if ((features >> common[i].bit & 1) != 0)
            fprintf(out, " %s", common[i].name);
}

static void show_device(FILE *out, const struct guest *g, const struct served_device *d)
{
    const struct device_stats *stats = stats_of(g, d);

    fprintf(out, "%s: %s, %s\n", d->name, type_name(d), state_words[d->state]);
    if (d->error[0] != '\0')
        fprintf(out, "  problem     %s\n", d->error);
    if (d->backing[0] != '\0')
        fprintf(out, "  backed by   %s\n", d->backing);
    if (d->has_slot)
        fprintf(out, "  registers   %#llx (slot %u), interrupt SPI %u\n",
                (unsigned long long)d->node.base, d->slot, d->node.irq);
    if (stats == NULL)
        return;
    fprintf(out, "  driver      %s\n", driver_word(stats));
    fprintf(out, "  features    0x%016" PRIx64, stat_get(&stats->features));
    show_features(out, stat_get(&stats->features));
    fprintf(out, "\n  resets      %" PRIu64 ", needs-reset %" PRIu64 ", configuration changes %"
            PRIu64 "\n",
            stat_get(&stats->resets), stat_get(&stats->needs_reset),
            stat_get(&stats->config_changes));
    for (unsigned i = 0; own_counter(d, i) != NULL; i++)
        fprintf(out, "%s%" PRIu64 " %s", i == 0 ? "  counters    " : ", ", stat_get(&stats->own[i]),
                own_counter(d, i));
    if (own_counter(d, 0) != NULL)
        fputc('\n', out);
    console_show(out, d, stats);
    if (d->node.virtio_id == NET_ID)
        show_frames(out, stats);
    for (uint32_t i = 0; i < n_queues_of(stats); i++) {
        const struct queue_stats *q = &stats->queues[i];

        fprintf(out,
                "  queue %-2u    %" PRIu64 " requests, %" PRIu64 " kicks, %" PRIu64 " batches, %"
                PRIu64 " interrupts, %" PRIu64 " KiB read, %" PRIu64 " KiB written, %" PRIu64
                " errors\n",
                i, stat_get(&q->requests), stat_get(&q->kicks), stat_get(&q->batches),
                stat_get(&q->interrupts), stat_get(&q->read_bytes) >> 10,
                stat_get(&q->write_bytes) >> 10, stat_get(&q->errors));
    }
}

static void show_worker(FILE *out, const struct guest *g)
{
    struct worker_totals t;

    if (g->stats == NULL)
        return;
    t = threads_of(g->stats);
    fprintf(out,
            "  traps       %" PRIu64 " reads, %" PRIu64 " writes (%" PRIu64
            " kicks), %" PRIu64 " invalidations\n",
            stat_get(&g->stats->mmio_reads), stat_get(&g->stats->mmio_writes),
            stat_get(&g->stats->notifies), stat_get(&g->stats->invalidates));
    fprintf(out,
            "  memory      %" PRIu64 " + %" PRIu64 " MiB mapped (RAM below 4 GiB + above), %" PRIu64
            " map calls, %" PRIu64 " drops\n",
            stat_get(&g->stats->mapped_kib[0]) >> 10, stat_get(&g->stats->mapped_kib[1]) >> 10,
            stat_get(&g->stats->map_calls), stat_get(&g->stats->memory_drops));
    if (stat_get(&g->stats->grant_maps) + stat_get(&g->stats->grant_copies) > 0)
        fprintf(out,
                "  grants      %" PRIu64 " KiB mapped, %" PRIu64 " map calls, %" PRIu64
                " unmap calls, %" PRIu64 " copy calls\n",
                stat_get(&g->stats->granted_kib), stat_get(&g->stats->grant_maps),
                stat_get(&g->stats->grant_unmaps), stat_get(&g->stats->grant_copies));
    fprintf(out,
            "  threads     %u: %" PRIu64 " system calls, %" PRIu64 " sleeps, polling hit %" PRIu64
            " and missed %" PRIu64 " times\n",
            t.threads, t.syscalls, t.sleeps, t.poll_hits, t.poll_misses);
}

void show_guest(struct supervisor *s, struct answer *a, char *const *words, int n)
{
    struct guest *g = supervisor_find_guest(s, words[1]);
    struct served_device *d = NULL;
    char name[64];

    if (g == NULL) {
        snprintf(a->error, sizeof(a->error), "no guest \"%s\" is served here: see viodctl list",
                 words[1]);
        return;
    }
    if (n > 2) {
        d = guest_find_device(g, words[2]);
        if (d == NULL) {
            snprintf(a->error, sizeof(a->error), "guest \"%s\" has no device \"%s\"", words[1],
                     words[2]);
            return;
        }
    }
    if (a->json) {
        guest_json(s, a->out, g, d);
        fputc('\n', a->out);
        return;
    }
    current_name(s, g, name, sizeof(name));
    fprintf(a->out, "%s: domain %u, %u vCPUs, ", name, g->domid, g->n_vcpus);
    if (g->pid > 0)
        fprintf(a->out, "worker %d\n", (int)g->pid);
    else
        fprintf(a->out, "no worker\n");
    if (g->failure[0] != '\0')
        fprintf(a->out, "  problem     %s\n", g->failure);
    show_worker(a->out, g);
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (g->devices[i].used && (d == NULL || d == &g->devices[i]))
            show_device(a->out, g, &g->devices[i]);
}

void show_stats(struct supervisor *s, struct answer *a, char *const *words, int n)
{
    char *show_words[] = {NULL, NULL};

    if (n > 1) {
        show_words[1] = words[1];
        show_guest(s, a, show_words, 2);
        return;
    }
    if (a->json) {
        all_json(s, a->out);
        return;
    }
    for (struct guest *g = s->guests; g != NULL; g = g->next) {
        char domid[16];

        snprintf(domid, sizeof(domid), "%u", g->domid);
        show_words[1] = domid;
        show_guest(s, a, show_words, 2);
    }
}
