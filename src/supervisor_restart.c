/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker has died, and its guest lives: a successor takes over from the state file.
 *
 * It starts at once. What kills each worker that meets it must not go on for ever, though: when worker
 * after worker dies soon, they start more slowly; and a device that no worker gets beyond, which is one
 * that was in hand and got no further from death to death, is sacrificed: it needs a reset, the rest of
 * the guest's devices go on.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device_state.h"
#include "log.h"
#include "supervisor_internal.h"

/* Successors that may die of the same device. In the manual: viod(8). */
#define TRIES 3u
/* The same, if the device got other requests done in between. It may be a slow one, too. */
#define TRIES_OF_OLDEST 15u
/* One that lived this long did not die of what it had found. */
#define SOON_NS (INT64_C(10) * 1000000000)
/* Deaths in a row for which no device is to blame, without a request done in between, until the guest
 * is given up. (Fewer in a test, which has no minute to wait.) */
#ifndef DEATHS_MAX
#define DEATHS_MAX 16u
#endif
/* With requests done in between, the next one starts at once, but not more often than this for long:
 * a guest that has found how to kill its worker must not keep the host busy. */
#define PACE_NS (INT64_C(500) * 1000000)
#define PACE_DEBT_NS (16 * PACE_NS)
/* From the third death in a row on, doubled with each. */
#define DELAY_FIRST_NS (INT64_C(100) * 1000000)
#define DELAY_MAX_NS (INT64_C(5) * 1000000000)
/* How often it is looked whether the dead one has let go of its images, and for how long. */
#define REOPEN_NS (INT64_C(5) * 1000000)
#define REOPEN_BOUND_NS (INT64_C(8) * 1000000000)
/* While the host does not finish the I/O of the dead one, which the guest would have waited for, too. */
#define IN_USE_BOUND_NS (INT64_C(300) * 1000000000)
#define IN_USE_NS (INT64_C(250) * 1000000) /* how often it is looked, after the first second */

/* See still_granted. */
#define GRANTED_MIN_NS (INT64_C(20) * 1000000)
#define GRANTED_MAX_NS (INT64_C(2000) * 1000000) /* its steps after IN_USE_BOUND_NS are shorter */

#define BLOCK_DEVICE 2u

static void restart_path(const struct guest *g, char *path, size_t len)
{
    snprintf(path, len, "%s/state", g->identity.run_dir);
}

int restart_create_state(struct guest *g)
{
    char path[160];
    int ret;

    if (g->state_fd >= 0) {
        ret = device_state_repair(g->state_fd, g->domid);
        if (ret == 1)
            log_error("domain %u (%s): the head of its state file was damaged; each device's part has a check "
                      "of its own", g->domid, g->name);
        return MIN(ret, 0);
    }
    if (g->identity.run_dir[0] == '\0')
        return -ENOENT;
    restart_path(g, path, sizeof(path));
    g->state_fd = device_state_create(path, g->domid);
    return g->state_fd < 0 ? g->state_fd : 0;
}

/* ---- who is to blame ---- */

static uint64_t read_word(const struct guest *g, size_t offset)
{
    uint64_t word = 0;

    /* Not mapped: a worker that makes the file shorter must not kill us. */
    return pread(g->state_fd, &word, sizeof(word), (off_t)offset) == sizeof(word) ? word : 0;
}

/* What tells whether any device got on. */
static uint64_t all_counts(const struct guest *g)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        const struct served_device *d = &g->devices[i];
        size_t slot = offsetof(struct state_file, slots) + d->slot * sizeof(struct device_state);

        if (!d->used || !d->has_slot)
            continue;
        for (size_t j = 0; j < DEVICE_STATE_QUEUES; j++)
            sum = state_hash(sum, read_word(g, slot + offsetof(struct device_state, queues) +
                                                   j * sizeof(struct state_queue) +
                                                   offsetof(struct state_queue, published)));
    }
    return sum;
}

/* One that the dead worker never had is not, whatever is still in flight of it. */
static bool is_suspect(const struct served_device *d)
{
    return d->used && d->has_slot && d->state == SERVED_WAITING && d->was_given;
}

static void sacrifice(struct guest *g, struct served_device *d)
{
    log_error("domain %u (%s), %s: worker after worker has died with the same request of it: it needs a "
              "reset by its driver now",
              g->domid, g->name, d->name);
    g->sacrificed |= 1u << d->slot;
    memset(&d->blame, 0, sizeof(d->blame));
    g->deaths = 1;
}

/* The strong suspects, if there are any: what the others wait for was only going on meanwhile. */
static void blame(struct guest *g)
{
    bool strong = false;

    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        if (!is_suspect(d))
            continue;
        blame_look(&d->blame, g->state_fd, d->slot, d->node.virtio_id == BLOCK_DEVICE);
        strong |= blame_strong(&d->blame) >= TRIES;
    }
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        if (is_suspect(d) && (strong ? blame_strong(&d->blame) >= TRIES
                                     : blame_weak(&d->blame) >= TRIES ||
                                           blame_oldest(&d->blame) >= TRIES_OF_OLDEST))
            sacrifice(g, d);
    }
}

/* ---- the successor ---- */

/*
 * What the guest has granted stays mapped while the kernel does I/O on it, and for a while longer: Linux
 * looks 5 ms after the process has ended, 10 ms after that, 15 ms, and so on. A driver that gets a request
 * back whose pages are still mapped gives its device up. So after I/O that took long, it is waited for the
 * next look.
 */
static bool still_granted(const struct guest *g, struct served_device *d, int64_t now)
{
    if (!d->config.grant_usage || !d->was_busy)
        return false;
    if (d->granted_until_ns == 0)
        d->granted_until_ns = now + MIN(now - g->died_ns + GRANTED_MIN_NS, GRANTED_MAX_NS);
    return now < d->granted_until_ns;
}

/* 0, -EBUSY, or a device was given up. */
static int reopen(struct supervisor *s, struct guest *g, struct served_device *d, int64_t now)
{
    const struct device_type *type = device_type_by_id(d->node.virtio_id);
    int64_t waited = now - g->died_ns;
    bool in_use;
    char error[CONFIG_ERROR_LEN] = "";
    int ret;

    if (d->granted_until_ns != 0) {
        ret = 0; /* it was opened before */
    } else if (!d->is_open) { /* by this supervisor; one before it had it open */
        ret = type->open(&d->config, error, sizeof(error));
        if (ret == 0)
            device_opened(d);
    } else if (type->reopen != NULL) {
        ret = type->reopen(&d->config, error, sizeof(error));
    } else {
        ret = device_config_copy_kept(&d->config);
    }
    in_use = ret == -EBUSY;
    if (ret < 0 && !in_use && type->lost != NULL && type->lost(&d->config) == 0) {
        if (!d->is_open)
            device_opened(d);
        ret = 0;
    }
    if (ret < 0 && !d->is_open)
        ret = -EBUSY; /* it was there: it, or what is in its way, may take the host a moment */
    if (ret == -EBUSY && waited < (in_use ? IN_USE_BOUND_NS : REOPEN_BOUND_NS)) {
        if (in_use && waited >= REOPEN_BOUND_NS && !d->said_in_use) {
            d->said_in_use = true;
            log_warning("domain %u (%s), %s: waiting for what it is on: the host has not finished the I/O of the "
                        "worker that has ended, or something else uses it now: %s",
                        g->domid, g->name, d->config.name, error);
        }
        d->was_busy = true;
        return ret;
    }
    if (ret == 0 && still_granted(g, d, now))
        return -EBUSY;
    if (ret < 0) {
        if (error[0] == '\0')
            snprintf(error, sizeof(error), "cannot be opened again: %s", strerror(-ret));
        device_fail(s, g, d, error);
        (void)xenstore_set_state(s->xs, &d->node.id, NODE_STATE_CLOSED);
    }
    d->reopen = d->was_busy = d->said_in_use = false;
    d->granted_until_ns = 0;
    return 0;
}

static int64_t delay_after(unsigned deaths)
{
    int64_t delay = 0;

    for (unsigned i = 3; i <= deaths && delay < DELAY_MAX_NS; i++)
        delay = delay == 0 ? DELAY_FIRST_NS : MIN(2 * delay, DELAY_MAX_NS);
    return delay;
}

void restart_later(struct guest *g, int error)
{
    log_warning("domain %u (%s): cannot start a worker: %s; it is tried again", g->domid, g->name,
                strerror(-error));
    g->restart_at_ns = monotonic_ns() + MAX(delay_after(g->deaths), DELAY_FIRST_NS);
}

/* What the worker died of, no memory perhaps, may stand in the way of its successor for a while, too. */
static int start(struct supervisor *s, struct guest *g)
{
    int ret = guest_start_worker(s, g);

    if (ret == 0)
        return 0;
    if (++g->deaths <= DEATHS_MAX) {
        restart_later(g, ret);
        return ret;
    }
    snprintf(g->failure, sizeof(g->failure), "cannot start a worker: %s", strerror(-ret));
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (g->devices[i].used && g->devices[i].state == SERVED_WAITING)
            device_fail(s, g, &g->devices[i], g->failure);
    return ret;
}

/*
 * The successor starts while the kernel still finishes the dead one's I/O; what is not in use any more is
 * served meanwhile. Accesses to the rest wait in the worker, which is told to expect it.
 */
static void try_start(struct supervisor *s, struct guest *g, int64_t now)
{
    bool busy = false;

    if (!takeover_orphan_ended(g)) { /* what it has is not free before that */
        g->restart_at_ns = now + REOPEN_NS;
        return;
    }
    g->restart_at_ns = 0;
    if (g->state == WORKER_QUITTING || (g->pid < 0 && start(s, g) < 0))
        return;
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        if (!d->used || d->state != SERVED_WAITING || !d->reopen)
            continue;
        if (reopen(s, g, d, now) == -EBUSY)
            busy = true;
        else if (d->state == SERVED_WAITING && g->state == WORKER_RUNNING)
            device_send(s, g, d); /* else it is sent when the worker is ready */
    }
    if (busy)
        g->restart_at_ns = now + (now - g->died_ns < INT64_C(1000000000) ? REOPEN_NS : IN_USE_NS);
}

bool restart_worker(struct supervisor *s, struct guest *g, const char *why)
{
    int64_t now = monotonic_ns(), lived = now - g->started_ns, delay;
    uint64_t counts;
    bool any = false;

    /* One that could not even begin does not get better; one that could not take over may. (died_ns:
     * there was one before it, perhaps of the supervisor before this one.) */
    if (s->stopping || g->state_fd < 0 ||
        (g->failure[0] != '\0' && g->restarts == 0 && g->died_ns == 0))
        return false;
    counts = all_counts(g);
    g->deaths = lived < SOON_NS && counts == g->counts ? g->deaths + 1 : 1;
    g->counts = counts;
    g->pace_debt_ns = MAX(g->pace_debt_ns + PACE_NS - (now - g->last_death_ns), 0);
    g->last_death_ns = now;
    if (g->deaths > DEATHS_MAX) {
        log_error("domain %u (%s): %u workers have died one after the other", g->domid, g->name,
                  g->deaths);
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++) {
        struct served_device *d = &g->devices[i];

        if (!d->used)
            continue;
        d->was_given = d->state == SERVED_ADDING || d->state == SERVED_READY;
        if (d->state == SERVED_REMOVING) {
            device_close(s, d);
        } else if (d->was_given) {
            d->state = SERVED_WAITING;
            d->reopen = true;
        }
        if (d->state != SERVED_WAITING)
            continue;
        any = true;
        g->adopted |= 1u << d->slot;
    }
    log_warning("domain %u (%s): %s; another one takes over", g->domid, g->name,
                g->failure[0] != '\0' ? g->failure : why);
    g->failure[0] = '\0';
    g->restarts++;
    g->state = WORKER_STARTING;
    g->kill_at_ns = 0;
    g->died_ns = now;
    if (any)
        blame(g);
    delay = delay_after(g->deaths);
    if (g->pace_debt_ns > PACE_DEBT_NS)
        delay = MAX(delay, g->pace_debt_ns - PACE_DEBT_NS);
    g->restart_at_ns = now + delay;
    restart_due(s, now);
    return true;
}

void restart_added(struct guest *g)
{
    int64_t now = monotonic_ns();

    for (size_t i = 0; i < ARRAY_SIZE(g->devices); i++)
        if (g->devices[i].used && !g->devices[i].unpublished &&
            (g->devices[i].state == SERVED_WAITING || g->devices[i].state == SERVED_ADDING))
            return;
    if (g->died_ns != 0)
        log_info("domain %u (%s): worker %d has taken over all devices, %lld ms after the other's end, "
                 "%lld ms after its start",
                 g->domid, g->name, (int)g->pid, (long long)((now - g->died_ns) / 1000000),
                 (long long)((now - g->started_ns) / 1000000));
    else if (g->restarts == 0) /* what the above compares with */
        log_info("domain %u (%s): worker %d serves all devices, %lld ms after its start", g->domid,
                 g->name, (int)g->pid, (long long)((now - g->started_ns) / 1000000));
    g->died_ns = 0;
}

void restart_due(struct supervisor *s, int64_t now)
{
    if (s->stopping)
        return;
    for (struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->restart_at_ns != 0 && now >= g->restart_at_ns)
            try_start(s, g, now);
}

int restart_timeout_ms(const struct supervisor *s, int64_t now)
{
    int64_t least = -1;

    for (const struct guest *g = s->guests; g != NULL; g = g->next)
        if (g->restart_at_ns != 0) {
            int64_t left = MAX(g->restart_at_ns - now, 0) / 1000000 + 1;

            least = least < 0 ? left : MIN(least, left);
        }
    return (int)MIN(least, INT64_C(1000));
}
