/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What flows through a port of a console.
 *
 * Output goes into a ring, from which each sink takes it at its own speed. The guest waits for a sink
 * that is there and slow, but a console's guest must not stand still (Linux waits for a console's output
 * with interrupts off), so there only for a while. For a sink that is not there it never waits; the
 * oldest output is lost when the ring is full.
 *
 * Input waits in a small ring until the guest has the port open and buffers for it; when that is full,
 * nothing more is read from the host's side, and so those who send have to wait.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "devices/console_internal.h"
#include "devices/console_state.h"
#include "log.h"

#define OUT_MASK (CONSOLE_OUT_SIZE - 1)
#define IN_MASK (CONSOLE_IN_SIZE - 1)
#define UNREAD_MAX (CONSOLE_OUT_SIZE / 2)
/* A sink is patience's end when it takes nothing for so long. */
#define STALL_NS (INT64_C(500) * 1000000)
/* What a console shows to one who attaches late: 24 lines and more. */
#define SCREEN 4096u
#define LINE_MAX_LEN 512u
/* Bytes per turn, so that others get theirs. */
#define TURN_BYTES (512u * 1024u)

static struct queue_stats *rx_stats(const struct port *port)
{
    return &port->console->dev->stats->queues[console_rx_queue(port->number)];
}

static struct queue_stats *tx_stats(const struct port *port)
{
    return &port->console->dev->stats->queues[console_tx_queue(port->number)];
}

struct sink *port_next_sink(struct port *port, const struct sink *after)
{
    struct console *console = port->console;
    size_t i = 0;

    if (after == NULL)
        return &port->sink;
    if (after != &port->sink)
        i = (size_t)(container_of(after, const struct client, sink) - console->clients) + 1;
    for (; i < CONSOLE_CLIENTS_MAX; i++)
        if (console->clients[i].used && console->clients[i].sink.port == port)
            return &console->clients[i].sink;
    return NULL;
}

bool port_reader_present(const struct port *port)
{
    struct sink *sink = NULL;

    while ((sink = port_next_sink((struct port *)(uintptr_t)port, sink)) != NULL)
        if (sink->present)
            return true;
    return false;
}

void port_show_state(struct port *port)
{
    bool open = port->console->multiport ? port->guest_open : port->number == 0 && port->rx != NULL;
    uint64_t state = (open ? CONSOLE_GUEST_OPEN : 0) |
                     (port->sink.present ? CONSOLE_HOST_PRESENT : 0);
    struct sink *sink = &port->sink;

    while ((sink = port_next_sink(port, sink)) != NULL)
        state += UINT64_C(1) << CONSOLE_ATTACHED_SHIFT;
    stat_set(&tx_stats(port)->state, state);
}

/* ---- output ---- */

/* The most that a sink has not taken for which the guest waits. */
static uint32_t unread(struct port *port)
{
    struct sink *sink = NULL;
    uint64_t most = 0;

    while ((sink = port_next_sink(port, sink)) != NULL)
        if (sink->present && !sink->stalled)
            most = MAX(most, port->head - sink->at);
    return (uint32_t)most; /* at most CONSOLE_OUT_SIZE: see advance */
}

/* Is there anybody for whom the guest waits? */
static bool waits(struct port *port)
{
    struct sink *sink = NULL;

    while ((sink = port_next_sink(port, sink)) != NULL)
        if (sink->present && !sink->stalled)
            return true;
    return false;
}

/* `len` bytes were put into the ring: what they have overwritten is lost for those who lag behind. */
static void advance(struct port *port, size_t len)
{
    struct sink *sink = NULL;

    port->head += len;
    while ((sink = port_next_sink(port, sink)) != NULL) {
        if (port->head - sink->at <= CONSOLE_OUT_SIZE)
            continue;
        if (sink == &port->sink && port->stream.kind != STREAM_NONE)
            stat_add(&tx_stats(port)->dropped, port->head - CONSOLE_OUT_SIZE - sink->at);
        sink->at = port->head - CONSOLE_OUT_SIZE;
    }
    port_keep_output(port);
}

static void write_to_sink(struct sink *sink)
{
    struct port *port = sink->port;

    while (sink->present && !sink->waiting && sink->at != port->head) {
        uint32_t from = (uint32_t)sink->at & OUT_MASK;
        size_t len = (size_t)(port->head - sink->at);
        size_t first = MIN(len, (size_t)(CONSOLE_OUT_SIZE - from)), done;
        const struct iovec iov[2] = {{port->out + from, first}, {port->out, len - first}};

        sink->waiting = true; /* unless all is taken; `write` may find out that it is gone */
        done = sink->write(sink, iov, len > first ? 2 : 1, len);
        sink->at += done;
        if (sink == &port->sink)
            port_keep_sink(port);
        if (done == len)
            sink->waiting = false;
        if (done > 0) {
            sink->stalled = false;
            loop_cancel_timer(port->console->loop, &sink->stall);
        }
    }
    if (sink->present && sink->waiting && !sink->patient && !sink->stalled &&
        sink->stall.due_ns == 0)
        loop_set_timer(port->console->loop, &sink->stall, STALL_NS);
    else if (!sink->waiting || !sink->present)
        loop_cancel_timer(port->console->loop, &sink->stall);
}

/* From the chain into the ring: as much as nobody has to lose. True: all of it is there. */
static bool take_chain(struct port *port, uint64_t *bytes)
{
    struct chain *chain = port->taking;
    uint32_t room = CONSOLE_OUT_SIZE - unread(port);

    if (!waits(port) && chain->readable_bytes > CONSOLE_OUT_SIZE) {
        /* Nobody reads it: only the end can ever be seen. */
        size_t lost = chain_skip_readable(chain, chain->readable_bytes - CONSOLE_OUT_SIZE);

        port->taken_bytes += (uint32_t)lost;
        stat_add(&tx_stats(port)->write_bytes, lost);
        stat_add(&tx_stats(port)->dropped, lost);
    }
    while (room > 0 && chain->readable_bytes > 0) {
        uint32_t at = (uint32_t)port->head & OUT_MASK;
        size_t n = chain_read(chain, port->out + at, MIN(room, CONSOLE_OUT_SIZE - at));

        if (n == 0)
            break;
        port->taken_bytes += (uint32_t)n;
        advance(port, n);
        room -= (uint32_t)n;
        *bytes += n;
        stat_add(&tx_stats(port)->write_bytes, n);
    }
    if (chain->readable_bytes > 0 && room == 0)
        return false;
    stat_add(&tx_stats(port)->requests, 1);
    chain_complete(chain, 0);
    port->taking = NULL;
    return true;
}

static void write_to_all(struct port *port)
{
    struct sink *sink = NULL;

    while ((sink = port_next_sink(port, sink)) != NULL)
        write_to_sink(sink);
}

/* May the driver's next buffer be taken? */
static void update_tx(struct port *port)
{
    if (port->tx == NULL)
        return;
    if (port->taking == NULL && unread(port) <= UNREAD_MAX)
        virtio_queue_release(port->console->dev, port->tx);
    else
        virtio_queue_hold(port->console->dev, port->tx);
}

/* Writes what is there, and goes on with the chain that did not fit, as long as that helps. */
static void pump(struct port *port)
{
    uint64_t bytes = 0;

    write_to_all(port);
    while (port->taking != NULL && unread(port) < CONSOLE_OUT_SIZE) {
        take_chain(port, &bytes);
        write_to_all(port);
        if (bytes > TURN_BYTES) {
            loop_post(port->console->loop, &port->more);
            break;
        }
    }
    update_tx(port);
}

static void run_more(struct loop_work *work)
{
    pump(container_of(work, struct port, more));
}

/* Granted memory: that a request is done is kept when the queue is flushed, and not before. */
static int bounded(const struct port *port, int budget)
{
    return port->console->dev->grants != NULL ? 1 : budget;
}

int port_take(struct port *port, int budget)
{
    struct virtqueue *vq = port->tx;
    uint64_t bytes = 0;
    int taken = 0, ret = 0;

    budget = bounded(port, budget);
    while (taken < budget && bytes < TURN_BYTES && port->taking == NULL &&
           unread(port) <= UNREAD_MAX) {
        ret = virtqueue_pop(vq, &port->taking);
        if (ret <= 0) {
            port->taking = NULL;
            break;
        }
        taken++;
        if (port->taking->faulted) {
            stat_add(&tx_stats(port)->errors, 1);
            chain_complete(port->taking, 0);
            port->taking = NULL;
            continue;
        }
        port_taking_begins(port);
        take_chain(port, &bytes);
    }
    pump(port);
    return ret < 0 ? ret : taken;
}

void port_give_back(struct port *port)
{
    if (port->taking == NULL)
        return;
    stat_add(&tx_stats(port)->dropped, port->taking->readable_bytes);
    chain_complete(port->taking, 0);
    port->taking = NULL;
}

void port_append(struct port *port, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        port->out[port->head & OUT_MASK] = data[i];
        advance(port, 1);
    }
    pump(port);
}

uint64_t port_screen(const struct port *port)
{
    uint64_t available = MIN(port->head, (uint64_t)CONSOLE_OUT_SIZE);
    uint64_t from = port->head - MIN(available, (uint64_t)SCREEN);

    if (available <= SCREEN)
        return from;
    for (uint64_t at = from; at < from + LINE_MAX_LEN; at++)
        if (port->out[at & OUT_MASK] == '\n')
            return at + 1;
    return from;
}

void port_sink_ready(struct sink *sink)
{
    sink->waiting = false;
    pump(sink->port);
}

static void stalled(struct loop_timer *timer)
{
    struct sink *sink = container_of(timer, struct sink, stall);

    sink->stalled = true;
    pump(sink->port);
}

void port_sink_init(struct sink *sink, struct port *port)
{
    sink->port = port;
    sink->stall.expired = stalled;
}

/* ---- input ---- */

uint32_t port_room(const struct port *port)
{
    return CONSOLE_IN_SIZE - (port->in_head - port->in_tail);
}

/* Is there something that the guest wants? */
static bool deliverable(const struct port *port)
{
    if (port->in_head == port->in_tail)
        return false;
    return port->console->multiport ? port->guest_open : port->number == 0;
}

static void update_rx(struct port *port)
{
    if (port->rx == NULL)
        return;
    if (deliverable(port))
        virtio_queue_release(port->console->dev, port->rx);
    else
        virtio_queue_hold(port->console->dev, port->rx);
}

void port_input(struct port *port, const uint8_t *data, size_t len)
{
    len = MIN(len, (size_t)port_room(port));
    for (size_t i = 0; i < len; i++)
        port->in[port->in_head++ & IN_MASK] = data[i];
    port_keep_heard(port);
    update_rx(port);
}

/* From the back end as much as there is room for; when there is none, it is not asked again. */
static void read_stream(struct port *port)
{
    uint32_t room;

    while ((room = port_room(port)) > 0) {
        uint32_t at = port->in_head & IN_MASK;
        size_t n = stream_read(&port->stream, port->in + at, MIN(room, CONSOLE_IN_SIZE - at));

        if (n == 0)
            break;
        port->in_head += (uint32_t)n;
        port_keep_heard(port);
    }
    if (port_room(port) > 0)
        stream_want_read(&port->stream);
    update_rx(port);
}

int port_put(struct port *port, int budget)
{
    struct virtqueue *vq = port->rx;
    struct chain *chain;
    int taken = 0, ret;

    budget = bounded(port, budget);
    while (taken < budget && deliverable(port)) {
        uint32_t written = 0;

        ret = virtqueue_pop(vq, &chain);
        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        while (!chain->faulted && port->in_head != port->in_tail) {
            uint32_t at = port->in_tail & IN_MASK;
            size_t n = chain_write(chain, port->in + at,
                                   MIN(port->in_head - port->in_tail, CONSOLE_IN_SIZE - at));

            if (n == 0)
                break;
            port->in_tail += (uint32_t)n;
            written += (uint32_t)n;
        }
        stat_add(&rx_stats(port)->requests, 1);
        stat_add(&rx_stats(port)->read_bytes, written);
        stat_add(&rx_stats(port)->errors, written == 0);
        port->giving_number = chain_number(chain);
        port->given_bytes = written;
        port_keep_input(port);
        chain_complete(chain, written);
    }
    update_rx(port);
    if (taken > 0 && port_room(port) > 0) {
        stream_want_read(&port->stream);
        attach_want_read(port);
    }
    return taken;
}

void port_update(struct port *port)
{
    port_show_state(port);
    update_rx(port);
    update_tx(port);
}

/* ---- the back end ---- */

static struct port *port_of(struct char_stream *stream)
{
    return container_of(stream, struct port, stream);
}

static void stream_asks(struct char_stream *stream, const char *what)
{
    struct port *port = port_of(stream);

    port->ask_what = what;
    loop_post(port->console->dev->mmio_loop, &port->ask);
}

static void stream_changed(struct char_stream *stream)
{
    struct port *port = port_of(stream);
    struct sink *sink = &port->sink;

    sink->present = stream->present;
    sink->stalled = false;
    if (sink->present) {
        /* Who returns to a console wants to see where it stands. */
        if (port->is_console && !port->resumed && stream->kind != STREAM_FILE &&
            stream->kind != STREAM_LOG)
            sink->at = MIN(sink->at, port_screen(port));
        port->resumed = false;
        if (port_room(port) > 0)
            stream_want_read(stream);
    }
    if (port->announce && port->ready)
        console_post(port, PENDING_OPEN);
    port_keep_sink(port);
    port_show_state(port);
    port_sink_ready(sink);
}

static void stream_readable(struct char_stream *stream) { read_stream(port_of(stream)); }

static void stream_writable(struct char_stream *stream) { port_sink_ready(&port_of(stream)->sink); }

static void stream_closed(struct char_stream *stream) { console_closed_one(port_of(stream)->console); }

static size_t write_to_stream(struct sink *sink, const struct iovec *iov, int n_iov, size_t len)
{
    (void)len;
    return stream_write(&sink->port->stream, iov, n_iov);
}

void port_start(struct port *port)
{
    struct char_stream *stream = &port->stream;

    snprintf(port->title, sizeof(port->title), "%s, port %s", port->console->dev->name, port->name);
    port->more.run = run_more;
    port_sink_init(&port->sink, port);
    port->sink.write = write_to_stream;
    port->sink.patient = !port->is_console;
    stream->loop = port->console->loop;
    stream->name = port->title;
    stream->ask = stream_asks;
    stream->changed = stream_changed;
    stream->readable = stream_readable;
    stream->writable = stream_writable;
    stream->closed = stream_closed;
    port->console->n_open++;
    stream_start(stream);
}
