/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console's parts: console.c (queues, control messages, registers), console_port.c (what flows
 * through a port), console_attach.c (viodctl console).
 *
 * All queues and streams belong to one I/O thread, so ports need no locks. What concerns the MMIO
 * thread says so.
 */
#ifndef VIOD_CONSOLE_INTERNAL_H
#define VIOD_CONSOLE_INTERNAL_H

#include "backend.h"
#include "stats.h"
#include "virtio_device.h"

#define CONSOLE_PORTS_MAX 31u
#define CONSOLE_CLIENTS_MAX 8u
/* Powers of two. What a reader has not taken yet may fill half of the output's ring before the guest
 * has to wait: what it sends at once (Linux: at most 64 KiB) then fits into the other half. */
#define CONSOLE_OUT_SIZE PORT_OUT_SIZE
#define CONSOLE_IN_SIZE PORT_IN_SIZE
#define CONSOLE_EMERGENCY_SIZE 1024u

struct console;
struct port;

/* Somebody who takes a port's output: the back end, or a viodctl. */
struct sink {
    struct port *port;
    uint64_t at;              /* has taken all before; a position in the port's output */
    bool present;
    bool waiting;             /* for room on its side */
    bool patient;             /* the guest waits for it as long as it takes */
    bool stalled;             /* took nothing for too long: the guest does not wait for it */
    struct loop_timer stall;
    size_t (*write)(struct sink *sink, const struct iovec *iov, int n_iov, size_t len);
};

/* Control messages to be sent; a bit says all, so a port never needs more than these. */
enum pending {
    PENDING_ADD = 1,
    PENDING_CONSOLE = 2,
    PENDING_NAME = 4,
    PENDING_SIZE = 8,
    PENDING_OPEN = 16,
};

struct port {
    struct console *console;
    unsigned number;
    char name[24];
    char title[64];           /* for the log */
    bool is_console, announce;
    /* The driver's side. */
    struct virtqueue *rx, *tx; /* NULL: not running */
    struct chain *taking;      /* of tx: popped, and not all of it fits into the ring yet */
    bool ready, guest_open;
    uint8_t pending;
    struct port_memory *memory; /* what outlives us; see console_memory.c */
    /* Of the request of tx that was taken last: its number, and bytes of it that are in the output. */
    uint32_t taking_number, taken_bytes;
    /* Of the buffer of rx that was filled last. */
    uint32_t giving_number, given_bytes;
    bool resumed;              /* the back end was there when our predecessor died */
    /* Output: the last CONSOLE_OUT_SIZE bytes before `head`. */
    uint8_t *out;
    uint64_t head;
    struct loop_work more;     /* goes on with `taking` in another turn */
    struct sink sink;          /* the back end */
    /* Input. */
    uint8_t *in;
    uint32_t in_head, in_tail; /* free-running */
    uint16_t cols, rows;       /* 0: unknown */
    /* The back end. */
    struct char_stream stream;
    /* Its descriptors come from the supervisor: to the MMIO thread, and back. */
    struct loop_work ask, give;
    const char *ask_what;
    bool asked;                /* MMIO thread */
    int give_status;
    char give_why[128];
    int give_fds[STREAM_FDS_MAX];
    size_t n_give_fds;
};

/* A viodctl console. */
struct client {
    struct console *console;
    struct stream_fd fd;
    struct sink sink;          /* sink.port NULL: has not said which yet */
    bool used;
    bool counts;               /* it wants ATTACH_TAKEN ... */
    bool to_be_told;           /* ... and there is one to be sent */
    uint32_t taken;
};

/* In dev->own, for a successor: ports as bits. */
struct console_state {
    uint64_t ready;      /* the driver has set the port up */
    uint64_t guest_open;
    uint64_t told;       /* 1: the driver was told of the ports */
};

struct console {
    struct virtio_device *dev;
    struct console_state *state;
    struct port_memory *memory;
    size_t memory_len;
    struct event_loop *loop;
    bool multiport_offered, rows_first;
    /* I/O thread. */
    bool multiport;            /* negotiated */
    struct virtqueue *control_rx, *control_tx;
    size_t n_ports;
    struct port ports[CONSOLE_PORTS_MAX];
    struct stream_fd listener;
    struct client clients[CONSOLE_CLIENTS_MAX];
    unsigned n_open;           /* streams, clients and the listener: to be closed at the end */
    bool stopping;
    /* Between the threads. */
    int listen_fd;
    struct loop_work start, stop, stopped, resize, emergency;
    _Atomic uint32_t size;     /* of port 0: columns << 16 | rows */
    uint8_t emergency_ring[CONSOLE_EMERGENCY_SIZE];
    _Atomic uint32_t emergency_head, emergency_tail;
    /* MMIO thread. */
    bool detaching, detached;
};

/* console.c; I/O thread. */
void console_post(struct port *port, unsigned pending);
void console_size_changed(struct port *port); /* port 0: also the configuration space */
/* One of what console.n_open counts is closed. */
void console_closed_one(struct console *console);

/* console_port.c; I/O thread. */
void port_start(struct port *port);
/* The driver's data: takes chains from tx, puts input into rx. */
int port_take(struct port *port, int budget);
int port_put(struct port *port, int budget);
/* Gives back the chain that is being taken; what was not taken yet is lost. */
void port_give_back(struct port *port);
/* A queue was started, or guest_open has changed. */
void port_update(struct port *port);
/* Output that does not come from tx. */
void port_append(struct port *port, const uint8_t *data, size_t len);
void port_show_state(struct port *port);
/* A sink may go on (or is new, or gone). */
void port_sink_ready(struct sink *sink);
void port_sink_init(struct sink *sink, struct port *port);
/* Where the last screenful begins. */
uint64_t port_screen(const struct port *port);
/* Room for input, and input. */
uint32_t port_room(const struct port *port);
void port_input(struct port *port, const uint8_t *data, size_t len);
bool port_reader_present(const struct port *port);

/* console_memory.c. fd: the supervisor's; -1: none, nothing outlives us. 0 or -errno. */
int console_memory_map(struct console *console, size_t n_ports, int fd);
void console_memory_unmap(struct console *console);
/* What a predecessor has left: before the I/O thread begins. */
void port_adopt(struct port *port);
/* I/O thread: what has changed outlives us from here on. */
void port_keep_output(struct port *port);
void port_keep_sink(struct port *port);
void port_keep_input(struct port *port);
void port_keep_heard(struct port *port);
/* `taking` was popped: what a predecessor has done of it is not done again. */
void port_taking_begins(struct port *port);
/* rx was started: what a predecessor gave to the driver without telling it is given again. */
void port_giving_begins(struct port *port);
/* The queue has stopped: its requests are counted anew. */
void port_forget_taking(struct port *port);
void port_forget_giving(struct port *port);

/* console_attach.c; I/O thread. */
void attach_start(struct console *console);
void attach_stop(struct console *console);
/* There is room for input again. */
void attach_want_read(struct port *port);

/* All sinks of a port: the back end's, then those of clients; NULL: no more. */
struct sink *port_next_sink(struct port *port, const struct sink *after);

#endif
