/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by vsock*.c only. All state here is of the one I/O thread that has the queues, but for struct
 * vsock_ask, which commutes between it and the MMIO thread.
 */
#ifndef VIOD_VSOCK_INTERNAL_H
#define VIOD_VSOCK_INTERNAL_H

#include <linux/virtio_vsock.h>
#include <sys/queue.h>

#include "backend.h"
#include "stats.h"
#include "virtio_device.h"

#ifndef VIRTIO_VSOCK_F_STREAM
#define VIRTIO_VSOCK_F_STREAM 0
#endif
#ifndef VIRTIO_VSOCK_F_NO_IMPLIED_STREAM
#define VIRTIO_VSOCK_F_NO_IMPLIED_STREAM 2
#endif

#define VSOCK_HOST_CID 2u
#define VSOCK_HEADER sizeof(struct virtio_vsock_hdr)

enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };

/* Resets for packets that belong to no connection, waiting for rx buffers. When there is no room for
 * one more, tx stands still (5.10.6.1). */
#define VSOCK_REPLIES_MAX 256u
/* Connections that the supervisor makes for us at the same time. */
#define VSOCK_ASKS_MAX 16u
/* "CONNECT 4294967295\n" and some blanks. */
#define VSOCK_LINE_MAX 32u
/* The largest message of the host: what the kernel lets a socket hold, by default, is less. */
#define VSOCK_MESSAGE_MAX (1u << 20)
/* The largest message of the guest: what a Unix socket takes in one piece, by default, is more. */
#define VSOCK_SEQPACKET_BUFFER (128u << 10)

/* The order of vsock_counters in config_vsock.c. */
enum vsock_counter {
    COUNT_CONNECTIONS, /* now */
    COUNT_CONNECTED,
    COUNT_HOST_CALLS,
    COUNT_GUEST_CALLS,
    COUNT_RESETS,
    COUNT_REJECTED,
    COUNT_PEER_CALLS,
};

enum vsock_state {
    VSOCK_FREE,
    VSOCK_HELLO,   /* a host's client is to say which port it wants */
    VSOCK_CALLING, /* REQUEST is sent, or waits to be: the guest is to answer */
    VSOCK_ASKING,  /* the guest's REQUEST: the host side is being connected */
    VSOCK_AWAITING, /* the guest's REQUEST: another guest is to answer */
    VSOCK_OPEN,
    VSOCK_CLOSING, /* no host side any more; ends with an RST, the guest's or ours */
    VSOCK_LINGER,  /* the guest is through with it, the host side still gets what was buffered */
    VSOCK_DEAD,    /* waits for the loop to let go */
};

/* What is to be said to the guest about a connection: bits of vsock_connection.pending. */
enum {
    PENDING_REQUEST = 1,
    PENDING_RESPONSE = 2,
    PENDING_CREDIT_REQUEST = 4,
    PENDING_DATA = 8, /* the host side can be read, perhaps */
    PENDING_CREDIT_UPDATE = 16,
    PENDING_SHUTDOWN = 32,
    PENDING_RST = 64, /* the last word */
};

/* A descriptor that is watched for one event. */
struct vsock_watch {
    struct loop_op op;
    bool armed, cancelled;
};

TAILQ_HEAD(vsock_list, vsock_connection);

struct vsock_connection {
    struct vsock *vs;
    struct vsock_connection *hash_next;
    TAILQ_ENTRY(vsock_connection) ready_link; /* in vsock.ready, or vsock.free */
    TAILQ_ENTRY(vsock_connection) wait_link;  /* in one of vsock.asking, .retry, .message_waiters */
    TAILQ_ENTRY(vsock_connection) timed_link; /* in vsock.timed */
    struct vsock_list *waits_in;              /* NULL: none */
    int64_t deadline_ns; /* 0: none */
    int fd;              /* -1: none */
    uint32_t peer_cid;   /* VSOCK_HOST_CID, or another guest: "the host side" leads to it then */
    uint32_t guest_port, host_port;
    enum vsock_state state;
    uint8_t pending;
    bool seqpacket, hashed, ready;
    bool called_by_peer; /* by another guest: counted in n_peer_calls */
    uint32_t starved_for; /* the credit that what the host side has for the guest needs; 0: enough */
    bool out_edge;       /* the host side seemed to take more, and did not: see watch() */
    bool host_ended;     /* it sends no more, and all it sent is read */
    bool host_deaf;      /* it receives no more: what the guest sends is thrown away */
    bool host_was_reset; /* Linux has said that it closed without having read all */
    uint8_t shutdown_flags;       /* said, or to be said, to the guest */
    uint8_t guest_shutdown;       /* the guest said */
    struct vsock_ask *ask;
    struct vsock_watch in, out;

    /* Towards the guest (5.10.6.3). */
    uint32_t peer_buf_alloc, peer_fwd_cnt, tx_cnt;
    /* Towards the host: a ring of buf_alloc bytes, from fwd_cnt to fwd_cnt + buffered. */
    uint32_t buf_alloc, fwd_cnt, fwd_cnt_said, buffered;
    uint32_t unfinished;  /* seqpacket: the last bytes buffered, whose message has not ended */
    uint8_t *buffer;
    uint64_t *ends;       /* seqpacket: one bit for each byte of the buffer: a message's last */
    bool buffer_used;
    uint8_t line_len;
    char line[VSOCK_LINE_MAX]; /* what a host's client said, before it is connected */
};

/* One question to the supervisor. */
struct vsock_ask {
    struct vsock *vs;
    struct loop_work send;    /* to the MMIO thread */
    struct loop_work answer;  /* and back */
    /* I/O thread. */
    bool busy;
    struct vsock_connection *connection; /* NULL: not wanted any more */
    /* Written before send or answer is posted. */
    uint32_t cid, port, from_port;
    bool seqpacket;
    int status, fd;
    /* MMIO thread. */
    bool sent;
    uint32_t round;           /* so that an answer to an earlier question is known as such */
};

struct vsock_reply {
    uint64_t dst_cid, src_cid;
    uint32_t src_port, dst_port;
    uint16_t type;
};

struct vsock {
    struct virtio_device *dev;
    struct event_loop *loop;
    uint32_t cid;
    uint32_t max, buffer_size;
    int listeners[2];              /* stream, seqpacket */
    struct vsock_watch listening[2];
    int channel;                   /* calls of other guests; -1: there cannot be any */
    struct vsock_watch channel_watch;
    uint32_t n_peer_calls;         /* connections that other guests have called */
    bool accept_later;             /* no descriptor was left: the next tick tries again */

    struct virtqueue *queues[QUEUES]; /* NULL: not running */
    bool stopping, unasked;        /* being stopped; no ask is on its way any more */
    bool stream_ok, seqpacket_ok;  /* negotiated */
    bool reset_event;              /* TRANSPORT_RESET is to be sent */

    struct vsock_connection *connections; /* max of them, mapped lazily, as are their buffers */
    uint8_t *buffers;
    uint64_t *ends;
    uint32_t n_used, n_ever;       /* connections that are not free; the highest ever used */
    struct vsock_list free;
    struct vsock_connection **hash;
    uint32_t hash_mask, hash_seed;
    uint32_t next_host_port;
    unsigned watches;              /* armed */

    struct vsock_list ready, asking, retry, message_waiters, timed;
    struct loop_timer tick, retry_timer;
    struct vsock_ask asks[VSOCK_ASKS_MAX];
    struct loop_work forget, forgotten; /* the asks: to the MMIO thread, and back */
    bool forgetting;
    struct loop_work interrupted;       /* control: TRANSPORT_RESET */

    struct vsock_reply replies[VSOCK_REPLIES_MAX];
    unsigned reply_head, n_replies;

    /* A message of the host that does not fit into one rx buffer, on its way. */
    uint8_t *message;
    uint32_t message_len, message_sent;
    struct vsock_connection *message_of; /* NULL: none */
};

static inline void vsock_count(struct vsock *vs, enum vsock_counter counter, int64_t n)
{
    stat_add(&vs->dev->stats->own[counter], (uint64_t)n);
}

/* ---- vsock.c ---- */

/* Something waits for rx buffers. */
void vsock_wake_rx(struct vsock *vs);

/* ---- vsock_connection.c: the table ---- */

int vsock_table_create(struct vsock *vs);
void vsock_table_destroy(struct vsock *vs);
struct vsock_connection *vsock_find(struct vsock *vs, uint32_t peer_cid, uint32_t guest_port,
                                    uint32_t host_port);
/* NULL: all are taken. */
struct vsock_connection *vsock_connection_new(struct vsock *vs, bool seqpacket,
                                              enum vsock_state state);
void vsock_hash(struct vsock_connection *c);
void vsock_unhash(struct vsock_connection *c);
/* A port of the host that no connection with this port of the guest has. */
uint32_t vsock_free_host_port(struct vsock *vs, uint32_t guest_port);
/* To be said to the guest, in its turn. */
void vsock_say(struct vsock_connection *c, uint8_t pending);
void vsock_unready(struct vsock_connection *c);
void vsock_wait_in(struct vsock_connection *c, struct vsock_list *list); /* NULL: nowhere */
/* Within so many seconds it is to be in another state; 0: no bound. */
void vsock_set_deadline(struct vsock_connection *c, unsigned seconds);
void vsock_start_tick(struct vsock *vs);
void vsock_tick(struct loop_timer *timer);
void vsock_close_host_side(struct vsock_connection *c);
/* The host side is closed; RST to the guest, and then the connection is forgotten. */
void vsock_finish(struct vsock_connection *c);
/* The same, because something went wrong: counted. */
void vsock_reset(struct vsock_connection *c);
/* At once, and without a word to the guest. */
void vsock_forget(struct vsock_connection *c);
void vsock_forget_all(struct vsock *vs);
/* A watch has ended: a dead connection that waited for it becomes free. */
void vsock_bury(struct vsock_connection *c);
/* Bytes that the guest has room for (5.10.6.3). */
uint32_t vsock_credit(const struct vsock_connection *c);

/* ---- vsock_host.c: sockets ---- */

void vsock_watches_init(struct vsock_connection *c);
/*
 * `edge`: goes on, and fires when something changes. A half that is closed makes any poll of a socket
 * fire at once, whatever it is for: what comes then can be waited for in this way only.
 */
void vsock_watch(struct vsock *vs, struct vsock_watch *watch, int fd, unsigned events, bool edge);
/* A watch's completion is here. True: the event is to be looked at. */
bool vsock_fired(struct vsock *vs, struct vsock_watch *watch, int result, bool more);
void vsock_cancel(struct vsock *vs, struct vsock_watch *watch);
void vsock_watch_input(struct vsock_connection *c);
/* len bytes of data came from the guest, behind the chain's cursor; `end`: of a message. */
void vsock_from_guest(struct vsock_connection *c, struct chain *chain, uint32_t len, bool end);
/* The flags of a SHUTDOWN packet. */
void vsock_guest_shutdown(struct vsock_connection *c, uint32_t flags);
/* Reads what the host side has, as much as fits and the guest has room for. Bytes read; 0: PENDING_DATA
 * is off, and what has to follow is under way. *end: a message's last byte is among them. */
size_t vsock_from_host(struct vsock_connection *c, struct iovec *iov, size_t n, size_t room,
                       bool *end);

/* ---- vsock_calls.c: calls from outside ---- */

void vsock_listeners_init(struct vsock *vs);
/* Watches for calls as long as connections are free. */
void vsock_listen_on(struct vsock *vs);
void vsock_listen_no_more(struct vsock *vs);
/* HELLO: the host's client has said something. */
void vsock_hello(struct vsock_connection *c);
/* AWAITING: the other guest has answered, perhaps. */
void vsock_await(struct vsock_connection *c);
/* The guest accepted a call. */
void vsock_accepted(struct vsock_connection *c);

/* ---- vsock_message.c: seqpacket from the host ---- */

size_t vsock_message_from_host(struct vsock_connection *c, struct iovec *iov, size_t n, size_t room,
                               bool *end);
void vsock_message_drop(struct vsock_connection *c);

/* Shared by the last two. */
size_t vsock_no_credit(struct vsock_connection *c, uint32_t needed);
void vsock_host_ended(struct vsock_connection *c);
/* The host side receives no more. What it has sent may still be on its way to the guest. */
void vsock_host_deaf(struct vsock_connection *c);
size_t vsock_cut(const struct iovec *iov, size_t n, size_t len, struct iovec *out);

/* ---- vsock_ask.c ---- */

void vsock_asks_init(struct vsock *vs);
/* The guest calls: connect the host side. */
void vsock_ask_for(struct vsock_connection *c);
void vsock_unask(struct vsock_connection *c);
void vsock_forget_asks(struct vsock *vs);
void vsock_answered(struct virtio_device *dev, uint32_t id, int status, const char *text, int *fds,
                    size_t n_fds);

#endif
