/* SPDX-License-Identifier: Apache-2.0 */
/* Those who attach to a console's ports: viodctl console. See ATTACH_… in backend.h. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "devices/console_internal.h"
#include "log.h"

/* One packet of a client: a kind, and data. The host's root sends it, and may have it wrong. */
static void drop(struct client *client)
{
    stream_fd_close(&client->fd);
    client->sink.present = false;
}

static void refuse(struct client *client, const char *why)
{
    char kind = ATTACH_ERROR;
    struct iovec iov[2] = {{&kind, 1}, {(char *)(uintptr_t)why, strlen(why)}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    (void)sendmsg(client->fd.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    drop(client);
}

static void presence_changed(struct port *port)
{
    port_show_state(port);
    if (port->announce && port->ready)
        console_post(port, PENDING_OPEN);
}

static void client_closed(struct stream_fd *fd)
{
    struct client *client = container_of(fd, struct client, fd);
    struct console *console = client->console;
    struct port *port = client->sink.port;

    loop_cancel_timer(console->loop, &client->sink.stall);
    client->used = false;
    if (port != NULL && !console->stopping) {
        presence_changed(port);
        port_sink_ready(&port->sink); /* the guest may have waited for this one */
    }
    stream_fd_want_read(&console->listener);
    console_closed_one(console);
}

/* At most one packet's worth; the ring takes what is left. */
static size_t write_to_client(struct sink *sink, const struct iovec *ring, int n_ring, size_t len)
{
    struct client *client = container_of(sink, struct client, sink);
    size_t sent = 0;

    (void)n_ring;
    while (sent < len && stream_fd_is_open(&client->fd)) {
        char kind = ATTACH_DATA;
        bool second = sent >= ring[0].iov_len;
        size_t from = second ? sent - ring[0].iov_len : sent;
        size_t n = MIN(ring[second].iov_len - from, (size_t)ATTACH_DATA_MAX);
        struct iovec iov[2] = {{&kind, 1}, {(char *)ring[second].iov_base + from, n}};
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

        if (sendmsg(client->fd.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS)
                stream_fd_want_write(&client->fd);
            else
                drop(client);
            break;
        }
        sent += n;
    }
    return sent;
}

/* A client that does not read hears of it when it does. */
static void tell_taken(struct client *client)
{
    char kind = ATTACH_TAKEN;
    uint32_t taken = htole32(client->taken);
    struct iovec iov[2] = {{&kind, 1}, {&taken, sizeof(taken)}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    client->to_be_told = client->counts && stream_fd_is_open(&client->fd) &&
                         sendmsg(client->fd.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0;
    if (client->to_be_told)
        stream_fd_want_write(&client->fd);
}

/* Where the client's output begins, which it wants to know. */
static bool place(struct client *client, const struct port *port, uint64_t at)
{
    char kind = ATTACH_AT;
    struct iovec iov[2] = {{&kind, 1}, {&at, sizeof(at)}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    at = le64toh(at);
    /* From the future: of another ring. From the past: what there is of it. */
    if (at > port->head)
        at = port_screen(port);
    client->sink.at = MAX(at, port->head - MIN(port->head, (uint64_t)CONSOLE_OUT_SIZE));
    at = htole64(client->sink.at);
    client->counts = true;
    tell_taken(client);
    return sendmsg(client->fd.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

static void open_port(struct client *client, const uint8_t *data, size_t len)
{
    struct console *console = client->console;
    struct port *port;
    uint64_t at;

    if ((len != 1 && len != 1 + sizeof(at)) || data[0] >= console->n_ports || client->sink.port != NULL) {
        refuse(client, "there is no such port");
        return;
    }
    port = &console->ports[data[0]];
    port_sink_init(&client->sink, port);
    client->sink.at = port_screen(port);
    if (len > 1) {
        memcpy(&at, data + 1, sizeof(at));
        if (!place(client, port, at)) {
            drop(client);
            return;
        }
    }
    client->sink.present = true;
    presence_changed(port);
    port_sink_ready(&client->sink);
}

static void set_size(struct port *port, const uint8_t *data, size_t len)
{
    uint16_t size[2];

    if (len != sizeof(size))
        return;
    memcpy(size, data, sizeof(size));
    size[0] = le16toh(size[0]);
    size[1] = le16toh(size[1]);
    if (size[0] == 0 || size[1] == 0 || (port->cols == size[0] && port->rows == size[1]))
        return;
    port->cols = size[0];
    port->rows = size[1];
    console_size_changed(port);
}

static void serve(struct client *client, const uint8_t *packet, size_t len)
{
    struct port *port = client->sink.port;

    if (packet[0] == ATTACH_OPEN) {
        open_port(client, packet + 1, len - 1);
    } else if (port == NULL) {
        refuse(client, "which port?");
    } else if (packet[0] == ATTACH_DATA) {
        port_input(port, packet + 1, len - 1);
        client->taken += (uint32_t)(len - 1);
        tell_taken(client);
    } else if (packet[0] == ATTACH_SIZE) {
        set_size(port, packet + 1, len - 1);
    }
}

static bool has_room(const struct client *client)
{
    return client->sink.port == NULL || port_room(client->sink.port) >= ATTACH_DATA_MAX;
}

static void client_readable(struct stream_fd *fd)
{
    struct client *client = container_of(fd, struct client, fd);
    uint8_t packet[1 + ATTACH_DATA_MAX];

    for (int i = 0; i < 16 && has_room(client) && stream_fd_is_open(fd); i++) {
        struct iovec iov = {packet, sizeof(packet)};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = recvmsg(fd->fd, &message, MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n <= 0) {
            drop(client);
            return;
        }
        serve(client, packet, (size_t)n);
    }
    if (has_room(client))
        stream_fd_want_read(fd);
}

static void client_writable(struct stream_fd *fd)
{
    struct client *client = container_of(fd, struct client, fd);

    if (client->to_be_told)
        tell_taken(client);
    if (client->sink.port != NULL)
        port_sink_ready(&client->sink);
}

void attach_want_read(struct port *port)
{
    for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++) {
        struct client *client = &port->console->clients[i];

        if (client->used && client->sink.port == port && has_room(client))
            stream_fd_want_read(&client->fd);
    }
}

/* While all places are taken, the next ones wait. */
static void listener_readable(struct stream_fd *fd)
{
    struct console *console = container_of(fd, struct console, listener);

    for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++) {
        struct client *client = &console->clients[i];
        int number;

        if (client->used)
            continue;
        number = accept4(fd->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (number < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                log_host("%s: cannot take a connection: %s", console->dev->name, strerror(errno));
            stream_fd_want_read(fd);
            return;
        }
        memset(client, 0, sizeof(*client));
        client->used = true;
        client->console = console;
        client->sink.write = write_to_client;
        client->fd.readable = client_readable;
        client->fd.writable = client_writable;
        client->fd.closed = client_closed;
        console->n_open++;
        stream_fd_open(&client->fd, console->loop, number);
        stream_fd_want_read(&client->fd);
    }
}

static void listener_writable(struct stream_fd *fd) { (void)fd; }

static void listener_closed(struct stream_fd *fd)
{
    console_closed_one(container_of(fd, struct console, listener));
}

void attach_start(struct console *console)
{
    struct stream_fd *fd = &console->listener;

    fd->fd = -1;
    if (console->listen_fd < 0)
        return;
    fd->readable = listener_readable;
    fd->writable = listener_writable;
    fd->closed = listener_closed;
    console->n_open++;
    stream_fd_open(fd, console->loop, console->listen_fd);
    console->listen_fd = -1;
    stream_fd_want_read(fd);
}

void attach_stop(struct console *console)
{
    for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        if (console->clients[i].used)
            drop(&console->clients[i]);
    stream_fd_close(&console->listener);
}
