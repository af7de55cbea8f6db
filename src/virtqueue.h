/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtqueues, split and packed (VIRTIO 1.2, 2.7 and 2.8): the only reader of descriptors.
 *
 * A descriptor chain is taken with virtqueue_pop, read and written through the chain_ functions, and
 * given back with chain_complete, exactly once and in any order. The driver sees what was completed
 * at virtqueue_flush: one index store and one interrupt decision per batch.
 *
 * Memory that is granted is fetched in batches when chains are popped, and written back and unmapped
 * in virtqueue_flush, before the driver sees the used entries (virtqueue_grants.c).
 *
 * A queue belongs to one thread (its loop's) from virtqueue_start to virtqueue_stop; all functions
 * here are for that thread unless they say otherwise.
 *
 * What the guest wrote is copied once, checked, then used. A violation of the ring protocol is
 * reported as -EPROTO; the queue is dead from then on (pop returns -EPROTO, complete and flush touch
 * no guest memory), and the device sets DEVICE_NEEDS_RESET.
 */
#ifndef VIOD_VIRTQUEUE_H
#define VIOD_VIRTQUEUE_H

#include <sys/uio.h>
#include "grant_memory.h"
#include "guest_memory.h"

#define VIRTQUEUE_SIZE_MAX 1024u

struct virtqueue;
struct state_queue;

/* What the driver wrote into the queue registers, latched when QueueReady became 1. */
struct virtqueue_setup {
    uint16_t size;          /* descriptors; for split rings a power of 2 */
    gpa_t desc;             /* descriptor area */
    gpa_t driver;           /* driver area: available ring, or driver event suppression */
    gpa_t device;           /* device area: used ring, or device event suppression */
    uint64_t features;      /* negotiated */
};

/*
 * A descriptor chain: first what the device may read, then what it may write. The device's own
 * per-request data follows in the same slot (see request_size), so no request is ever allocated.
 */
struct chain {
    struct virtqueue *vq;
    struct iovec *iov;       /* readable elements, then writable ones */
    uint32_t generation;     /* of the queue, when popped */
    uint32_t readable_bytes; /* not yet consumed by chain_read or chain_skip */
    uint32_t writable_bytes; /* not yet filled */
    uint16_t n_readable, n_writable;
    uint16_t read_index, write_index; /* cursors: element of iov ... */
    uint32_t read_offset, write_offset; /* ... and byte within it */
    /* An element was not in the guest's RAM and is left out: fail the request, do not do part of it.
     * (A guest that is a back end itself can hand us pages that it got by grant.) */
    bool faulted;
    /* The elements are memory of our own, which the kernel may pin (O_DIRECT). */
    bool pinnable;
    /* The rest is the virtqueue's. */
    bool done;
    bool part;               /* see chain_complete_part */
    bool replayed;           /* popped a second time, after virtqueue_adopt */
    uint16_t id;             /* descriptor index (split) or buffer ID (packed) */
    uint16_t descriptors;    /* ring slots the chain took (packed) */
    uint16_t slot, iov_block;
    uint32_t written;
    uint32_t tail_bytes;     /* what chain_take_tail took */
};

struct virtqueue_stats {
    _Atomic uint64_t popped;
    _Atomic uint64_t completed;
    _Atomic uint64_t flushes;    /* batches published */
    _Atomic uint64_t interrupts; /* batches for which the driver wanted one */
    _Atomic uint64_t kicks;      /* notifications from the driver */
};

struct virtqueue_config {
    struct guest_memory *memory;
    uint16_t index;
    uint16_t size_max;     /* <= VIRTQUEUE_SIZE_MAX */
    size_t request_size;   /* bytes of a device request; it embeds struct chain first; >= sizeof */
    void *owner;           /* the virtio_device; see virtqueue_owner */
    /* NULL: addresses are guest-physical. Otherwise they are grants, and `memory` is not used. */
    struct grant_memory *grants;
    /* Bytes of a chain, readable or writable, that are copied and not mapped; 0: as many as can be. */
    uint32_t copy_max;
    /* Taken for a tail of one byte if what was written before it did not reach the guest. */
    uint8_t error_status;
    struct state_queue *state; /* where it is kept for a successor; NULL: nowhere */
};

/* Allocates the request slots (touched only when used). -ENOMEM, -EINVAL. Any thread. */
int virtqueue_create(const struct virtqueue_config *config, struct virtqueue **out);
void virtqueue_destroy(struct virtqueue *vq);

/*
 * Starts with a new generation, at ring index 0. -EINVAL: size, alignment or addresses the
 * specification forbids (virtqueue_check says so beforehand; any thread). Memory is looked at from the first pop on, so a ring in a hole shows there.
 */
int virtqueue_check(const struct virtqueue *vq, const struct virtqueue_setup *setup);
int virtqueue_start(struct virtqueue *vq, const struct virtqueue_setup *setup);
/* Any thread, before virtqueue_adopt or _start: what is kept is that of a queue without requests. */
void virtqueue_reset_state(struct virtqueue *vq);
/*
 * Instead of virtqueue_start: goes on where a process that has died left config.state. What was
 * completed is published (again); what was in flight is popped first, in the order in which it was
 * taken before. -EINVAL as above; -EBADMSG: the state is damaged, and the queue is not started.
 */
int virtqueue_adopt(struct virtqueue *vq, const struct virtqueue_setup *setup);
/*
 * Forgets the ring: chains still out belong to the old generation, and completing them touches no
 * ring. Whether their buffers are still in use is the caller's business: see virtqueue_in_flight.
 */
void virtqueue_stop(struct virtqueue *vq);
/* Maps the ring before the first pop does: 0, -EAGAIN, -EPROTO, as there. What virtqueue_adopt found
 * completed is in the ring then, to be flushed. */
int virtqueue_map(struct virtqueue *vq);
bool virtqueue_started(const struct virtqueue *vq);
/* Kept for the supervisor: the device's code takes requests of the queue, or has nothing of it in hand. */
void virtqueue_set_serving(struct virtqueue *vq, bool serving);
/* Likewise, until virtqueue_set_serving: it has a request in hand that the host has done. */
void chain_in_hand(const struct chain *chain);
/* Its number since the queue started, the same if it is popped again after virtqueue_adopt. */
uint32_t chain_number(const struct chain *chain);
/* After virtqueue_adopt: the number of the request that is popped again first; 0: none is. */
uint32_t virtqueue_first_again(const struct virtqueue *vq);
/* True after -EPROTO, until stop. */
bool virtqueue_broken(const struct virtqueue *vq);

/*
 * The next chain. 1: *out is the device's until chain_complete; 0: none (or no slot is free: look
 * again after a completion); -EPROTO: the driver broke the ring, see virtqueue_error; -EAGAIN:
 * guest_memory needs drop_stale first; -ENOMEM: the host has no memory to reach the guest's now. In these
 * two cases nothing was taken.
 */
static inline bool virtqueue_is_later(int ret) { return ret == -EAGAIN || ret == -ENOMEM; }
int virtqueue_pop(struct virtqueue *vq, struct chain **out);
/* What was wrong, for the log; a constant string. "" if nothing. */
const char *virtqueue_error(const struct virtqueue *vq);
/* Chains popped and not completed, of all generations. */
unsigned virtqueue_in_flight(const struct virtqueue *vq);

/*
 * Consume the readable part, fill the writable part, in order; return the bytes copied, less than
 * asked at the end of the chain. chain_write(NULL) fills with zeros.
 */
size_t chain_read(struct chain *chain, void *to, size_t len);
size_t chain_write(struct chain *chain, const void *from, size_t len);
/* Move the cursors without copying; return the bytes skipped. Skipped writable bytes do not count as
 * written: say so in chain_complete. (Granted memory is written by way of memory of ours: what was
 * skipped and is reported as written would bring the guest old bytes of another request of its own.) */
size_t chain_skip_readable(struct chain *chain, size_t len);
size_t chain_skip_writable(struct chain *chain, size_t len);
/*
 * Zero copy: what lies behind the cursor, at most len bytes in at most max elements; returns the
 * number of elements and in *bytes what they hold. The cursor does not move.
 */
int chain_readable(const struct chain *chain, struct iovec *iov, int max, size_t len,
                   size_t *bytes);
int chain_writable(const struct chain *chain, struct iovec *iov, int max, size_t len,
                   size_t *bytes);
/*
 * The same without copying the list: all that lies behind the cursor, as it stands in the chain. An
 * element that the cursor splits is cut in place (the cursor then stands at offset 0 of it), and what
 * chain_take_tail took is not part of it. Returns the number of elements (elements of length 0 may be
 * among them); together they hold exactly readable_bytes or writable_bytes. *iov is valid until
 * chain_complete.
 */
unsigned chain_rest_readable(struct chain *chain, const struct iovec **iov);
unsigned chain_rest_writable(struct chain *chain, const struct iovec **iov);
/*
 * As chain_rest_readable, with an element in front: bytes of the device's own that take the place of a
 * header that was consumed.
 */
unsigned chain_readable_behind(struct chain *chain, void *header, size_t len,
                               const struct iovec **iov);
/* Cuts the last `len` writable bytes off (a status footer) and returns where they are: elements
 * into iov, at most max. -EINVAL if there are fewer bytes or more elements. */
int chain_take_tail(struct chain *chain, size_t len, struct iovec *iov, int max);

/*
 * Gives the chain back; `written` = bytes the driver may read from the writable part. Does nothing
 * to the ring if the queue was stopped meanwhile. The chain is not the device's any more.
 */
void chain_complete(struct chain *chain, uint32_t written);
/*
 * As chain_complete, for a chain that means something only together with the next one completed. A
 * process that dies in between has completed neither. Only where virtqueue_flush is not called in
 * between.
 */
void chain_complete_part(struct chain *chain, uint32_t written);
/*
 * Instead of chain_complete, for the chain that was popped last of those that are out: as if it had not
 * been, so that the next pop takes it again. Only where all chains are completed in the order in which
 * they were popped.
 */
void chain_put_back(struct chain *chain);
/*
 * Publishes what was completed since the last call. True: the driver wants an interrupt (raise it).
 */
bool virtqueue_flush(struct virtqueue *vq);
/* Chains completed and not yet published. */
unsigned virtqueue_unpublished(const struct virtqueue *vq);
/* Has the driver looked at what is published? Its wish for interrupts tells. */
enum driver_lag {
    DRIVER_LOOKS_BY_ITSELF, /* it wants no interrupts */
    DRIVER_CAUGHT_UP,       /* it wants one for what is not published yet */
    DRIVER_BEHIND,          /* it wanted one for something that is published */
    DRIVER_LAG_UNKNOWN,     /* it wants all: without EVENT_IDX, or because it says so; or no mapping */
};
/* DRIVER_LOOKS_BY_ITSELF on a stopped or broken queue. */
enum driver_lag virtqueue_driver_lag(struct virtqueue *vq);

/*
 * Notifications from the driver. enable: true if buffers arrived meanwhile (then they are off again:
 * go on popping). Both do nothing on a stopped or broken queue (enable: false).
 */
bool virtqueue_enable_notify(struct virtqueue *vq);
void virtqueue_disable_notify(struct virtqueue *vq);
/* A look without side effects: is a buffer waiting that pop would take? One load. */
bool virtqueue_has_work(struct virtqueue *vq);
/*
 * Where taking chains costs a call that they may share (grants): how many wait to be taken, if that can
 * be told without looking at them. Otherwise 0. One load.
 */
unsigned virtqueue_sharing(struct virtqueue *vq);
/* The last pop found no free slot: only a completion brings pop on. */
bool virtqueue_starved(const struct virtqueue *vq);

/* Guest memory is about to be dropped / was dropped: forget, look up again lazily. */
void virtqueue_forget_mapping(struct virtqueue *vq);

uint16_t virtqueue_index(const struct virtqueue *vq);
uint16_t virtqueue_size(const struct virtqueue *vq);
void *virtqueue_owner(const struct virtqueue *vq);
struct virtqueue_stats *virtqueue_stats(struct virtqueue *vq);

/* Feature bits (32.. and rings) that every queue here can do. */
uint64_t virtqueue_features(void);

#endif
