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

/* ---- network ---- */

#define NET_PAIRS_MAX 8u /* queues of a TAP */

/* What a frame may lack when it is handed over, because who gets it can add it. */
enum net_offload {
    NET_OFFLOAD_CSUM = 1, /* a checksum; the others need it */
    NET_OFFLOAD_TSO4 = 2, /* segmentation ... */
    NET_OFFLOAD_TSO6 = 4,
    NET_OFFLOAD_ECN = 8,
    NET_OFFLOAD_USO = 16,
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
/*
 * Worker: the relay, in the loop's thread; takes over both descriptors. When passt is gone, the end of
 * the one that behaves like a TAP says so.
 */
struct net_passt;
int net_passt_create(struct event_loop *loop, int frames, int stream, struct net_passt **out);
void net_passt_destroy(struct net_passt *relay);

#endif
