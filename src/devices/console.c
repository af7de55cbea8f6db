/* SPDX-License-Identifier: Apache-2.0 */
/* The console device (VIRTIO 1.2, 5.3): queues, control messages, registers. */
#include <errno.h>
#include <linux/virtio_console.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "devices/console_internal.h"
#include "devices/table.h"
#include "log.h"

#define QUEUE_SIZE 128u
#define CONTROL_RX 2u
#define CONTROL_TX 3u
#define NAME_MAX_LEN 24u
/* What a console is taken for until somebody attaches. */
#define COLS 80u
#define ROWS 24u

#define FEATURE(bit) (UINT64_C(1) << (bit))

static_assert(sizeof(struct virtio_console_config) == 12, "5.3.4");
static_assert(offsetof(struct virtio_console_config, emerg_wr) == 8, "5.3.4");
static_assert(sizeof(struct virtio_console_control) == 8, "5.3.6.2");

static const struct feature console_features[] = {
    {VIRTIO_CONSOLE_F_SIZE, "SIZE"},
    {VIRTIO_CONSOLE_F_MULTIPORT, "MULTIPORT"},
    {VIRTIO_CONSOLE_F_EMERG_WRITE, "EMERG_WRITE"},
    {0, NULL},
};

static struct queue_stats *stats_of(const struct console *console, unsigned queue)
{
    return &console->dev->stats->queues[queue];
}

/* NULL: a control queue. */
static struct port *port_of_queue(struct console *console, unsigned queue)
{
    if (queue == CONTROL_RX || queue == CONTROL_TX)
        return NULL;
    return &console->ports[queue < CONTROL_RX ? 0 : queue / 2 - 1];
}

/* ---- control messages: I/O thread ---- */

static bool anything_pending(const struct console *console)
{
    for (size_t i = 0; i < console->n_ports; i++)
        if (console->ports[i].pending != 0)
            return true;
    return false;
}

void console_post(struct port *port, unsigned pending)
{
    struct console *console = port->console;

    if (!console->multiport)
        return;
    port->pending |= (uint8_t)pending;
    if (console->control_rx != NULL)
        virtio_queue_release(console->dev, console->control_rx);
}

/* The port's next message; its length. */
static size_t make_message(struct port *port, uint8_t *out)
{
    struct virtio_console_control control = {.id = htole32(port->number)};
    size_t len = sizeof(control);
    /* In this order: a name is given to a port that is there, and it is opened last. */
    unsigned which = port->pending & (~port->pending + 1u);
    uint16_t size[2], value = 1, event = VIRTIO_CONSOLE_PORT_ADD;

    port->pending &= (uint8_t)~which;
    switch (which) {
    case PENDING_CONSOLE:
        event = VIRTIO_CONSOLE_CONSOLE_PORT;
        break;
    case PENDING_NAME:
        event = VIRTIO_CONSOLE_PORT_NAME;
        memcpy(out + len, port->name, strlen(port->name));
        len += strlen(port->name);
        break;
    case PENDING_SIZE:
        event = VIRTIO_CONSOLE_RESIZE;
        size[port->console->rows_first ? 1 : 0] = htole16(port->cols);
        size[port->console->rows_first ? 0 : 1] = htole16(port->rows);
        memcpy(out + len, size, sizeof(size));
        len += sizeof(size);
        break;
    case PENDING_OPEN:
        event = VIRTIO_CONSOLE_PORT_OPEN;
        value = !port->announce || port_reader_present(port);
        break;
    default:
        break;
    }
    control.event = htole16(event);
    control.value = htole16(value);
    memcpy(out, &control, sizeof(control));
    return len;
}

static int send_control(struct console *console, struct virtqueue *vq, int budget)
{
    uint8_t text[sizeof(struct virtio_console_control) + NAME_MAX_LEN];
    struct chain *chain;
    int taken = 0, ret;

    for (size_t i = 0; i < console->n_ports; i++)
        while (console->ports[i].pending != 0) {
            size_t len, written;

            if (taken == budget)
                return taken;
            ret = virtqueue_pop(vq, &chain);
            if (ret <= 0)
                return ret < 0 ? ret : taken;
            taken++;
            len = make_message(&console->ports[i], text);
            written = chain->faulted ? 0 : chain_write(chain, text, len);
            stat_add(&stats_of(console, CONTROL_RX)->requests, 1);
            if (written < len) {
                stat_add(&stats_of(console, CONTROL_RX)->errors, 1);
                log_guest("%s: a control message has no room in the guest's buffer",
                          console->dev->name);
            }
            chain_complete(chain, (uint32_t)written);
        }
    virtio_queue_hold(console->dev, vq);
    return taken;
}

static void keep_bit(uint64_t *word, unsigned bit, bool set)
{
    uint64_t mask = UINT64_C(1) << bit, old = state_load64(word);

    state_store64(word, set ? old | mask : old & ~mask);
}

static void port_is_ready(struct port *port)
{
    port->ready = true;
    keep_bit(&port->console->state->ready, port->number, true);
    console_post(port, PENDING_NAME | PENDING_OPEN | (port->is_console ? PENDING_CONSOLE : 0) |
                           (port->is_console && port->cols != 0 ? PENDING_SIZE : 0));
}

static void serve_control(struct console *console, const struct virtio_console_control *control)
{
    uint32_t id = le32toh(control->id);
    uint16_t event = le16toh(control->event), value = le16toh(control->value);
    struct port *port = id < console->n_ports ? &console->ports[id] : NULL;

    if (event == VIRTIO_CONSOLE_DEVICE_READY) {
        if (value == 0)
            log_guest("%s: the driver could not set the device up", console->dev->name);
        else
            for (size_t i = 0; i < console->n_ports; i++)
                console_post(&console->ports[i], PENDING_ADD);
        state_store64(&console->state->told, value != 0);
        return;
    }
    if (port == NULL || (event != VIRTIO_CONSOLE_PORT_READY && event != VIRTIO_CONSOLE_PORT_OPEN)) {
        stat_add(&stats_of(console, CONTROL_TX)->errors, 1);
        log_guest("%s: control message %u for port %u makes no sense", console->dev->name, event, id);
        return;
    }
    if (event == VIRTIO_CONSOLE_PORT_OPEN) {
        port->guest_open = value != 0;
        keep_bit(&console->state->guest_open, port->number, value != 0);
        port_update(port);
    } else if (value != 0) {
        port_is_ready(port);
    } else {
        log_guest("%s: the driver could not set port %s up", console->dev->name, port->name);
    }
}

static int take_control(struct console *console, struct virtqueue *vq, int budget)
{
    struct virtio_console_control control;
    struct chain *chain;
    int taken = 0;

    while (taken < budget) {
        int ret = virtqueue_pop(vq, &chain);

        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        stat_add(&stats_of(console, CONTROL_TX)->requests, 1);
        if (!chain->faulted && chain_read(chain, &control, sizeof(control)) == sizeof(control))
            serve_control(console, &control);
        else
            stat_add(&stats_of(console, CONTROL_TX)->errors, 1);
        chain_complete(chain, 0);
    }
    return taken;
}

/* ---- queues: I/O thread ---- */

static void console_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    struct console *console = dev->priv;
    unsigned index = virtqueue_index(vq);
    struct port *port = port_of_queue(console, index);

    console->multiport = virtio_has_feature(dev, VIRTIO_CONSOLE_F_MULTIPORT);
    if (index == CONTROL_RX) {
        console->control_rx = vq;
        if (!anything_pending(console))
            virtio_queue_hold(dev, vq);
    } else if (index == CONTROL_TX) {
        console->control_tx = vq;
    } else {
        *(index % 2 == 0 ? &port->rx : &port->tx) = vq;
        if (index % 2 == 0)
            port_giving_begins(port);
        port_update(port);
    }
}

static void console_queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    struct console *console = dev->priv;
    unsigned index = virtqueue_index(vq);
    struct port *port = port_of_queue(console, index);

    if (port != NULL) {
        *(index % 2 == 0 ? &port->rx : &port->tx) = NULL;
        if (index % 2 == 0)
            port_forget_giving(port);
        else
            port_forget_taking(port);
        port_show_state(port);
        return;
    }
    if (index == CONTROL_RX)
        console->control_rx = NULL;
    else
        console->control_tx = NULL;
    /* The next driver is told anew, and says anew. */
    state_store64(&console->state->told, 0);
    state_store64(&console->state->ready, 0);
    state_store64(&console->state->guest_open, 0);
    for (size_t i = 0; i < console->n_ports; i++) {
        console->ports[i].pending = 0;
        console->ports[i].ready = console->ports[i].guest_open = false;
        port_update(&console->ports[i]);
    }
}

static int console_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct console *console = dev->priv;
    unsigned index = virtqueue_index(vq);

    if (index == CONTROL_RX)
        return send_control(console, vq, budget);
    if (index == CONTROL_TX)
        return take_control(console, vq, budget);
    return index % 2 == 0 ? port_put(port_of_queue(console, index), budget)
                          : port_take(port_of_queue(console, index), budget);
}

static void console_queue_drain(struct virtio_device *dev, struct virtqueue *vq)
{
    struct port *port = port_of_queue(dev->priv, virtqueue_index(vq));

    if (port != NULL && vq == port->tx)
        port_give_back(port);
}

/* ---- between the threads ---- */

void console_size_changed(struct port *port)
{
    struct console *console = port->console;

    if (port->is_console && port->ready)
        console_post(port, PENDING_SIZE);
    if (port->number == 0) {
        atomic_store(&console->size, (uint32_t)port->cols << 16 | port->rows);
        loop_post(console->dev->mmio_loop, &console->resize);
    }
}

static void set_config_size(struct console *console, uint16_t cols, uint16_t rows)
{
    uint16_t wire[2] = {htole16(cols), htole16(rows)};

    memcpy(console->dev->config, wire, sizeof(wire));
}

/* MMIO thread. */
static void run_resize(struct loop_work *work)
{
    struct console *console = container_of(work, struct console, resize);
    uint32_t size = atomic_load(&console->size);

    set_config_size(console, (uint16_t)(size >> 16), (uint16_t)size);
    virtio_device_config_changed(console->dev);
}

/* MMIO thread: 5.3.5.1: at any time, whatever was negotiated. */
static void console_config_write(struct virtio_device *dev, uint32_t offset, const void *data,
                                 size_t len)
{
    const uint32_t at = offsetof(struct virtio_console_config, emerg_wr);
    struct console *console = dev->priv;
    uint32_t head, tail;

    if (at < offset || at - offset >= len || console->detaching)
        return;
    head = atomic_load_explicit(&console->emergency_head, memory_order_relaxed);
    tail = atomic_load_explicit(&console->emergency_tail, memory_order_acquire);
    if (head - tail == CONSOLE_EMERGENCY_SIZE)
        return; /* faster than it can be written */
    console->emergency_ring[head % CONSOLE_EMERGENCY_SIZE] = ((const uint8_t *)data)[at - offset];
    atomic_store_explicit(&console->emergency_head, head + 1, memory_order_release);
    loop_post(console->loop, &console->emergency);
}

/* I/O thread. */
static void run_emergency(struct loop_work *work)
{
    struct console *console = container_of(work, struct console, emergency);
    uint32_t head = atomic_load_explicit(&console->emergency_head, memory_order_acquire);
    uint32_t tail = atomic_load_explicit(&console->emergency_tail, memory_order_relaxed);

    for (; tail != head; tail++)
        port_append(&console->ports[0], &console->emergency_ring[tail % CONSOLE_EMERGENCY_SIZE], 1);
    atomic_store_explicit(&console->emergency_tail, tail, memory_order_release);
}

/* MMIO thread: a stream wants descriptors. */
static void run_ask(struct loop_work *work)
{
    struct port *port = container_of(work, struct port, ask);
    struct console *console = port->console;
    char request[32];
    int ret;

    if (console->detaching)
        return;
    snprintf(request, sizeof(request), "%s %u", port->ask_what, port->number);
    port->asked = true;
    ret = virtio_device_ask(console->dev, port->number, request);
    if (ret == 0)
        return;
    port->asked = false;
    port->give_status = ret;
    snprintf(port->give_why, sizeof(port->give_why), "the supervisor does not answer");
    port->n_give_fds = 0;
    loop_post(console->loop, &port->give);
}

/* MMIO thread. */
static void console_answered(struct virtio_device *dev, uint32_t id, int status, const char *text,
                             int *fds, size_t n_fds)
{
    struct console *console = dev->priv;
    struct port *port;

    if (id >= console->n_ports || console->detaching || !console->ports[id].asked)
        return;
    port = &console->ports[id];
    port->asked = false;
    port->give_status = status;
    snprintf(port->give_why, sizeof(port->give_why), "%s", text);
    port->n_give_fds = MIN(n_fds, (size_t)STREAM_FDS_MAX);
    for (size_t i = 0; i < port->n_give_fds; i++) {
        port->give_fds[i] = fds[i];
        fds[i] = -1;
    }
    loop_post(console->loop, &port->give);
}

/* I/O thread. */
static void run_give(struct loop_work *work)
{
    struct port *port = container_of(work, struct port, give);

    stream_give(&port->stream, port->give_status, port->give_why, port->give_fds, port->n_give_fds);
    for (size_t i = 0; i < port->n_give_fds; i++)
        if (port->give_fds[i] >= 0)
            close(port->give_fds[i]);
    port->n_give_fds = 0;
}

/* ---- begin and end ---- */

/* I/O thread. */
static void run_start(struct loop_work *work)
{
    struct console *console = container_of(work, struct console, start);

    for (size_t i = 0; i < console->n_ports; i++)
        port_start(&console->ports[i]);
    attach_start(console);
}

static void end_if_closed(struct console *console)
{
    if (console->stopping && console->n_open == 0)
        loop_post(console->dev->mmio_loop, &console->stopped);
}

void console_closed_one(struct console *console)
{
    console->n_open--;
    end_if_closed(console);
}

/* I/O thread. */
static void run_stop(struct loop_work *work)
{
    struct console *console = container_of(work, struct console, stop);

    console->n_open++; /* until all were told */
    console->stopping = true;
    /* A client that closes later makes its port write to the others: there are none any more. */
    for (size_t i = 0; i < console->n_ports; i++)
        console->ports[i].sink.present = false;
    attach_stop(console);
    for (size_t i = 0; i < console->n_ports; i++) {
        loop_cancel_timer(console->loop, &console->ports[i].sink.stall);
        stream_close(&console->ports[i].stream);
    }
    console_closed_one(console);
}

/* MMIO thread; what the I/O thread posted before has run. */
static void run_stopped(struct loop_work *work)
{
    container_of(work, struct console, stopped)->detached = true;
}

static void console_attach(struct virtio_device *dev)
{
    struct console *console = dev->priv;

    console->loop = dev->queues[0].loop;
    loop_post(console->loop, &console->start);
}

static bool console_detach(struct virtio_device *dev)
{
    struct console *console = dev->priv;

    if (!console->detaching)
        loop_post(console->loop, &console->stop);
    console->detaching = true;
    return console->detached;
}

static void console_reset(struct virtio_device *dev) { (void)dev; }

/*
 * Messages may have been on their way: all that hold now are sent again. What the host's side is like is
 * told when it is known.
 */
static bool console_adopt(struct virtio_device *dev, uint64_t features)
{
    struct console *console = dev->priv;
    uint64_t ready = state_load64(&console->state->ready);
    uint64_t guest_open = state_load64(&console->state->guest_open);

    if (((ready | guest_open) >> console->n_ports) != 0)
        return false;
    console->multiport = (features & FEATURE(VIRTIO_CONSOLE_F_MULTIPORT)) != 0;
    for (size_t i = 0; i < console->n_ports && console->multiport; i++) {
        struct port *port = &console->ports[i];

        port->guest_open = (guest_open >> i & 1) != 0;
        if ((ready >> i & 1) != 0)
            port_is_ready(port);
        else if (state_load64(&console->state->told) != 0)
            console_post(port, PENDING_ADD);
    }
    return true;
}

/* ---- life: MMIO thread ---- */

static enum stream_kind kind_of(const char *word)
{
    for (enum stream_kind kind = STREAM_NONE; kind < STREAM_KINDS; kind++)
        if (strcmp(stream_kind_names[kind], word) == 0)
            return kind;
    return STREAM_NONE;
}

static void create_port(struct console *console, unsigned number, const struct config_part *part)
{
    struct port *port = &console->ports[number];
    const char *is_console = config_part_string(part, "console");

    port->console = console;
    port->number = number;
    snprintf(port->name, sizeof(port->name), "%s", part->name);
    port->is_console = strcmp(is_console, "yes") == 0;
    if (strcmp(is_console, "auto") == 0)
        port->is_console = number == 0 || strcmp(part->name, "console") == 0;
    port->announce = config_part_bool(part, "announce");
    port->stream.kind = kind_of(config_part_string(part, "backend"));
    port->stream.max_size = config_part_uint(part, "max-size");
    port->ask.run = run_ask;
    port->give.run = run_give;
    port->memory = &console->memory[number];
    port->out = port->memory->out; /* touched when used */
    port->in = port->memory->in;
    if (console->dev->adopted)
        port_adopt(port);
}

static void console_destroy(struct virtio_device *dev)
{
    struct console *console = dev->priv;

    for (size_t i = 0; i < CONSOLE_PORTS_MAX; i++) {
        struct port *port = &console->ports[i];

        for (size_t j = 0; j < port->n_give_fds; j++)
            close(port->give_fds[j]);
    }
    console_memory_unmap(console);
    if (console->listen_fd >= 0)
        close(console->listen_fd);
    free(console);
    dev->priv = NULL;
}

static int console_create(struct virtio_device *dev, const struct device_config *config, char *error,
                          size_t error_len)
{
    struct virtio_console_config wire = {.max_nr_ports = htole32((uint32_t)config->n_parts)};
    struct console *console = calloc(1, sizeof(*console));
    int ret = console == NULL || config->n_parts == 0 || config->n_parts > CONSOLE_PORTS_MAX
                  ? -ENOMEM
                  : 0;

    if (console != NULL) {
        dev->priv = console;
        console->dev = dev;
        console->state = dev->own;
        console->listen_fd = -1;
    }
    if (ret == 0)
        ret = console_memory_map(console, config->n_parts, config->n_fds > 1 ? config->fds[1] : -1);
    for (size_t i = 0; ret == 0 && i < config->n_parts; i++)
        create_port(console, (unsigned)i, &config->parts[i]);
    if (ret < 0) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        if (console != NULL)
            console_destroy(dev);
        return ret;
    }
    console->n_ports = config->n_parts;
    console->rows_first = strcmp(device_config_string(config, "resize-order"), "rows-cols") == 0;
    console->start.run = run_start;
    console->stop.run = run_stop;
    console->stopped.run = run_stopped;
    console->resize.run = run_resize;
    console->emergency.run = run_emergency;
    if (config->n_fds > 0) {
        console->listen_fd = config->fds[0];
        ((struct device_config *)(uintptr_t)config)->fds[0] = -1;
    }
    /* A lone console needs no control messages, and its size is told through the registers. */
    console->multiport_offered =
        console->n_ports > 1 || !console->ports[0].is_console || console->ports[0].announce;
    dev->offered = FEATURE(VIRTIO_CONSOLE_F_SIZE) | FEATURE(VIRTIO_CONSOLE_F_EMERG_WRITE);
    if (console->multiport_offered)
        dev->offered |= FEATURE(VIRTIO_CONSOLE_F_MULTIPORT);
    dev->n_queues = (uint16_t)(console->multiport_offered ? 2 * (console->n_ports + 1) : 2);
    dev->queue_size = QUEUE_SIZE;
    virtio_device_set_config(dev, &wire, sizeof(wire));
    set_config_size(console, COLS, ROWS);
    return 0;
}

const struct virtio_device_ops virtio_console_ops = {
    .name = "console",
    .id = 3,
    .one_loop = true,
    .request_size = sizeof(struct chain),
    .features = console_features,
    .state_len = sizeof(struct console_state),
    .adopt = console_adopt,
    .create = console_create,
    .queue_started = console_queue_started,
    .queue_work = console_queue_work,
    .queue_drain = console_queue_drain,
    .queue_stopped = console_queue_stopped,
    .config_write = console_config_write,
    .reset = console_reset,
    .answered = console_answered,
    .attach = console_attach,
    .detach = console_detach,
    .destroy = console_destroy,
};
