/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seams between devices and the host. Backends live in backends/, know no virtio, and are made
 * in two steps: the supervisor opens what needs rights (…_open), the worker uses the descriptors
 * that it was handed (…_create).
 */
#ifndef VIOD_BACKEND_H
#define VIOD_BACKEND_H

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
    const struct iovec *iov; /* READ, WRITE: guest memory, any alignment, any length */
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

#endif
