/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seams between devices and the host. Backends live in backends/, know no virtio, and are made
 * in two steps: the supervisor opens what needs rights (…_open), the worker uses the descriptors
 * that it was handed (…_create).
 */
#ifndef VIOD_BACKEND_H
#define VIOD_BACKEND_H

#include <stddef.h>
#include <sys/uio.h>
#include "event_loop.h"

/* ---- block ---- */

enum block_cache {
    BLOCK_CACHE_NONE,      /* O_DIRECT through bounce buffers: no copy stays in the host */
    BLOCK_CACHE_WRITEBACK, /* the host's page cache; flushes are honoured */
};

/* What the supervisor found out when it opened the image; sent to the worker with the descriptor. */
struct block_info {
    uint64_t size;            /* bytes, at the time of opening */
    uint64_t identity;        /* block_identity of the image; 0: not known */
    uint32_t logical_block;   /* bytes: alignment that I/O needs (>= 512) */
    uint32_t physical_block;  /* bytes: what the device likes */
    uint32_t optimal_io;      /* bytes; 0 = unknown */
    uint32_t discard_granularity; /* bytes; 0 = no discard */
    bool is_block_device;
    bool read_only;
    bool can_write_zeroes;
    bool can_secure_erase;
    bool write_through;       /* what was written is durable: there is nothing to flush */
    enum block_cache cache;
};

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,
    BLOCK_DISCARD,
    BLOCK_WRITE_ZEROES,       /* may deallocate if `unmap` */
    BLOCK_SECURE_ERASE,
};

/*
 * One request. The owner embeds it and keeps it, and what iov points to, until `done`, which runs in
 * the loop's thread, possibly from within block_submit. result: 0, or -errno. A READ or WRITE that
 * the host cut short is carried on or fails (-EIO); 0 always means all of it.
 */
struct block_request {
    void (*done)(struct block_request *request, int result);
    enum block_op op;
    bool unmap;        /* WRITE_ZEROES: the range may be deallocated */
    bool fua;          /* WRITE, WRITE_ZEROES: durable before done (write-through) */
    bool pinnable;     /* iov is memory that the kernel may pin: ours, and not the guest's */
    const struct iovec *iov; /* READ, WRITE: any alignment, any length */
    uint32_t n_iov;
    uint64_t offset;   /* bytes, multiple of 512 */
    uint64_t len;      /* bytes; for READ and WRITE the sum of iov */
    /* The backend's. */
    struct {
        struct block_channel *channel;
        struct block_request *next; /* in the queue where it waits */
        struct loop_op op;
        struct loop_work answer;    /* of the helper thread */
        uint64_t progress;          /* bytes done, or handed out in pieces */
        size_t iov_offset;          /* the cursor: byte in ... */
        uint32_t iov_index;         /* ... this element of iov */
        uint32_t pieces;            /* in flight */
        int result;
        uint8_t retries, step;
    } state;
};

struct block_backend;
/* Per loop that submits: the bounce pool. Made in (or before) the loop's thread. */
struct block_channel;

/*
 * Supervisor: opens the image and finds out what it is. Returns the descriptor or -errno, with a
 * message that says what is wrong and what would be right. `discard`: the administrator allows it.
 */
int block_open(const char *path, bool read_only, enum block_cache cache, bool discard,
               struct block_info *info, char *error, size_t error_len);
/*
 * The same in two steps, so that an image can be opened again although its path leads to another one now:
 * a descriptor that only says which file it is (O_PATH: it holds no lock), and any number of times that
 * file, under a path that is for messages.
 */
int block_find(const char *path, bool read_only, char *error, size_t error_len);
/*
 * Which file or block device this is, as long as it is in use and the host is not booted anew: a number that
 * another one has with a probability of 2^-64. Never 0 for an image; 0 if that cannot be found out.
 */
uint64_t block_identity(int node);
/*
 * Supervisor, at the first opening: takes notice of a write-back that failed before, which is not that of
 * who uses the image now. 0 or -errno.
 */
int block_forget_errors(int fd);
int block_open_found(int node, const char *path, bool read_only, enum block_cache cache, bool discard,
                     struct block_info *info, char *error, size_t error_len);

/*
 * Worker, once, before it locks itself down: starts the thread that discards on block devices, which
 * io_uring cannot. Without it such requests fail. 0 or -errno.
 */
int block_sync_start(void);
/* Worker: takes over fd (and a second one without O_DIRECT is never needed). */
int block_create(int fd, const struct block_info *info, struct block_backend **out);
void block_destroy(struct block_backend *block);
int block_channel_create(struct block_backend *block, struct event_loop *loop,
                         struct block_channel **out);
/* Nothing may be in flight. */
void block_channel_destroy(struct block_channel *channel);
void block_submit(struct block_channel *channel, struct block_request *request);
/*
 * Any thread. With the host's page cache: 0, or the -errno of the first flush (or durable write) that
 * failed. The kernel says once that it could not write something, forgets what it was and succeeds the
 * next time, also for who flushed at the same time: from then on flushes and durable writes fail here.
 * For a successor: set it before the first request.
 */
int block_flush_error(const struct block_backend *block);
void block_set_flush_error(struct block_backend *block, int error);
/* The size now, in bytes (a grown or shrunk image), or -errno. MMIO thread. */
int64_t block_size(struct block_backend *block);

/* ---- vsock: Unix sockets, of type SOCK_STREAM or SOCK_SEQPACKET; nothing here blocks ---- */

/* Supervisor: a listening socket at path, for root only. Its descriptor, or -errno with a message. */
int vsock_listen(const char *path, bool seqpacket, char *error, size_t error_len);
/* Supervisor: connects. The descriptor, or -errno; -EAGAIN: the listener's queue is full now. */
int vsock_connect(const char *path, bool seqpacket);
/* Worker. The descriptor, or -errno; -EAGAIN: nobody is there. */
int vsock_accept(int listener);
/* Bytes sent (of a message: all of them), or -errno. -EPIPE: the other side receives no more. */
ssize_t vsock_send(int fd, const struct iovec *iov, size_t n);
/* Bytes received, 0: the end (or an empty message: vsock_end tells), or -errno. */
ssize_t vsock_receive(int fd, const struct iovec *iov, size_t n);
/* As vsock_receive, and leaves all where it is; of a message, its length even if it is more than len. */
ssize_t vsock_peek(int fd, void *to, size_t len);
/* What we do no more. */
void vsock_shutdown(int fd, bool receive, bool send);
enum vsock_end {
    VSOCK_STILL_SENDS,
    VSOCK_SENDS_NO_MORE,
    VSOCK_GONE,          /* and receives no more */
};
enum vsock_end vsock_end(int fd);

/* A call of another guest, on its way from the supervisor to the worker of the guest that is called. */
struct vsock_call {
    uint32_t from_cid, from_port, to_port;
    bool seqpacket;
};
/* Supervisor: with the called one's end of the connection, a copy of which goes along. 0 or -errno; -EAGAIN:
 * too many wait already. */
int vsock_pass_call(int channel, const struct vsock_call *call, int fd);
/* Worker: the next one; its end, owned by the caller, or -errno. -EAGAIN: there is none now; -EPIPE: there
 * will be none any more. */
int vsock_take_call(int channel, struct vsock_call *call);

/* ---- character streams: the host's end of a console's port ---- */

enum stream_kind {
    STREAM_NONE,    /* only for those who attach */
    STREAM_PTY,     /* present while somebody has the other end open */
    STREAM_LISTEN,  /* a Unix socket that waits for one peer after another */
    STREAM_CONNECT, /* a Unix socket of somebody else; connected again when lost */
    STREAM_FILE,    /* appended to */
    STREAM_LOG,     /* appended to, with a limit: a full one is put aside */
    STREAM_DEVICE,  /* a character device or serial line; opened again when lost */
    STREAM_KINDS,
};
extern const char *const stream_kind_names[STREAM_KINDS];

#define STREAM_FDS_MAX 2u

/* How the supervisor opens one; all strings are borrowed. */
struct stream_setup {
    enum stream_kind kind;
    const char *path;      /* PTY: of the link to it */
    uint32_t baud;         /* DEVICE, if it is a terminal */
    bool rtscts;
    uint32_t old_files;    /* LOG */
    uint64_t max_size;     /* LOG, bytes */
};

/*
 * Supervisor: opens it into fds (PTY: the master, and what tells of opens; all others one); their number, or -errno with a message. CONNECT and DEVICE that are
 * not there yet: 0, and they may be asked for again. Never blocks on a peer.
 */
int stream_open(const struct stream_setup *setup, int fds[STREAM_FDS_MAX], char *error,
                size_t error_len);
/* Supervisor: LOG: puts the full file aside and begins a new one. 1 with fds[0], or -errno. */
int stream_rotate(const struct stream_setup *setup, int fds[STREAM_FDS_MAX], char *error,
                  size_t error_len);
/* Supervisor: removes the link or socket that stream_open made. */
void stream_unlink(const struct stream_setup *setup);
/* Supervisor: a listening SOCK_SEQPACKET or SOCK_STREAM socket, mode 0600, at path; or -errno. */
int stream_listen(const char *path, int type, char *error, size_t error_len);

/*
 * Worker: a descriptor watched in both directions, once for each wish. All in the loop's thread.
 * Memory is the owner's until `closed`.
 */
struct stream_fd {
    struct event_loop *loop;
    int fd;                          /* -1: closed */
    void (*readable)(struct stream_fd *fd);
    void (*writable)(struct stream_fd *fd); /* or in error: writing says so */
    void (*closed)(struct stream_fd *fd);   /* may be NULL */
    struct loop_op in, out;
    bool in_armed, out_armed, closing;
};
void stream_fd_open(struct stream_fd *fd, struct event_loop *loop, int number);
void stream_fd_want_read(struct stream_fd *fd);
void stream_fd_want_write(struct stream_fd *fd);
/* Closes the descriptor; `closed` comes when the loop has let go, possibly from within. */
void stream_fd_close(struct stream_fd *fd);
static inline bool stream_fd_is_open(const struct stream_fd *fd)
{
    return fd->fd >= 0 && !fd->closing;
}

/*
 * Worker: one port's host end. All in the loop's thread. A stream starts without descriptors and asks
 * for them; whatever goes wrong later is logged once, and it asks, waits or tries again by itself.
 */
struct char_stream {
    /* Set by the owner. */
    struct event_loop *loop;
    const char *name;                /* for the log: "console0, port gnss" */
    enum stream_kind kind;
    uint64_t max_size;               /* LOG */
    /* Descriptors are needed: "open" or "rotate"; stream_give answers. */
    void (*ask)(struct char_stream *stream, const char *what);
    void (*changed)(struct char_stream *stream);  /* `present` has changed */
    void (*readable)(struct char_stream *stream); /* data may be there, once after stream_want_read */
    void (*writable)(struct char_stream *stream); /* there may be room, after a write that was cut */
    void (*closed)(struct char_stream *stream);   /* after stream_close: the memory is the owner's */
    /* For the owner to read. */
    bool present;                    /* a reader is there, as far as one can know */
    /* The stream's. */
    struct stream_fd data, watch;    /* watch: a listening socket, or what tells of a pty's opens */
    struct loop_timer retry;
    uint64_t size;                   /* LOG, bytes in the file */
    int64_t retry_ns;
    int next_fd;                     /* given before the old one was closed; -1: none */
    bool asked, want_read, complained, closing, rotating;
    bool drained;                    /* PTY: closed, and all of it was read */
    int64_t said_gone_ns;            /* when the log last said that a reader is gone */
};
void stream_start(struct char_stream *stream);
void stream_give(struct char_stream *stream, int status, const char *why, int *fds, size_t n_fds);
/* Bytes read; 0: none now; also when it is not present. */
size_t stream_read(struct char_stream *stream, void *to, size_t len);
void stream_want_read(struct char_stream *stream);
/* Bytes taken; less than offered: `writable` or `changed` tells when to go on. */
size_t stream_write(struct char_stream *stream, const struct iovec *iov, int n_iov);
/* Lets go of everything. */
void stream_close(struct char_stream *stream);

/*
 * A port's memory, which the supervisor makes (an array of these, one for each port) and keeps for the
 * successors of a worker: see devices/console_memory.c, where the words are explained. Powers of two.
 */
#define PORT_OUT_SIZE (128u * 1024u)
#define PORT_IN_SIZE 16384u
struct port_memory {
    uint64_t output[2], taking; /* where the output's end is */
    uint64_t sink;              /* and how much of it the back end has */
    uint64_t input[2], giving;  /* how much of the input the guest has */
    uint64_t in_head;           /* where the input's end is */
    _Alignas(4096) uint8_t out[PORT_OUT_SIZE];
    uint8_t in[PORT_IN_SIZE];
};

/*
 * What those who attach to a port (viodctl console) and the worker say to each other over a
 * SOCK_SEQPACKET socket: one packet a message, of which the first byte is the kind.
 */
#define ATTACH_DATA_MAX 4096u
#define ATTACH_SCREEN UINT64_MAX
enum attach_kind {
    /*
     * To the worker: the port's number, a byte; back: nothing, it is done. Or with a position in the port's
     * output, eight bytes, little-endian, from which on it is to be shown, ATTACH_SCREEN for the last
     * screenful; back: ATTACH_TAKEN, then ATTACH_AT. Who counts what it gets can attach again to a worker's
     * successor.
     */
    ATTACH_OPEN = 'o',
    ATTACH_AT = 'a',    /* back: the position of the first byte that follows, as above */
    /*
     * Back: how many bytes of this connection's data outlive the worker by now, modulo 2^32,
     * little-endian. Beyond these, what is in the socket when a worker dies is lost with it.
     */
    ATTACH_TAKEN = 't',
    ATTACH_ERROR = 'e', /* back: why not, a text; the connection ends */
    ATTACH_DATA = 'd',  /* both ways */
    ATTACH_SIZE = 's',  /* to the worker: columns and rows, two bytes each, little-endian */
};
/* ---- network ---- */

#define NET_PAIRS_MAX 8u /* queues of a TAP */

/* What a frame may lack when it is handed over, because who gets it can add it. */
enum net_offload {
    NET_OFFLOAD_CSUM = 1, /* a checksum; the others need it */
    NET_OFFLOAD_TSO4 = 2, /* segmentation ... */
    NET_OFFLOAD_TSO6 = 4,
    NET_OFFLOAD_ECN = 8,
    NET_OFFLOAD_USO = 16,
    NET_OFFLOADS = 31, /* all of them */
};

struct net_tap_config {
    const char *name;      /* of the interface */
    const char *bridge;    /* that it becomes a port of; NULL: none */
    uint32_t mtu;          /* 0: the bridge's, or 1500 */
    unsigned queues;       /* 1 to NET_PAIRS_MAX */
};

/*
 * Supervisor: makes the TAP, or takes the one of that name, and brings it up. Each queue is a descriptor
 * that reads and writes one frame a call behind a virtio-net header of 12 bytes, and never blocks. The
 * interface goes when its last descriptor is closed, unless an administrator made it to stay. Returns 0
 * and the MTU, or -errno with a message.
 */
int net_tap_open(const struct net_tap_config *config, int *fds, uint32_t *mtu, char *error,
                 size_t error_len);

/* Supervisor: descriptors like those of an interface that was removed. 0 or -errno. */
int net_tap_gone(unsigned queues, int *fds);

/* Worker: which offloads the host can be told to use towards the guest. Leaves none on. */
unsigned net_tap_offloads(int fd);
/* Worker: these are on from now on. 0 or -errno. */
int net_tap_set_offloads(int fd, unsigned offloads);
/* Worker: the host spreads frames over the queues that are in use. 0 or -errno. */
int net_tap_use_queue(int fd, bool use);

/*
 * Supervisor: connects to passt's socket. fds: one that behaves like a TAP's queue, and two for the relay
 * behind it. 0, or -errno with a message.
 */
int net_passt_open(const char *path, int fds[3], char *error, size_t error_len);
/* The same, of a connection that has ended already. 0 or -errno. */
int net_passt_ended(int fds[3]);
/*
 * Worker: the relay, in the loop's thread; takes over both descriptors. When passt is gone, the end of
 * the one that behaves like a TAP says so.
 */
struct net_passt;
int net_passt_create(struct event_loop *loop, int frames, int stream, struct net_passt **out);
void net_passt_destroy(struct net_passt *relay);

#endif
