/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What supervisor and worker say to each other, over a SOCK_SEQPACKET pair: one packet a message,
 * with descriptors where noted. The supervisor believes nothing of a worker more than it must: a
 * worker may have been taken over by its guest.
 */
#ifndef VIOD_MESSAGE_H
#define VIOD_MESSAGE_H

#include "types.h"

#define MESSAGE_TEXT_MAX 8192u
#define MESSAGE_FDS_MAX 17u

enum message_type {
    /* supervisor -> worker */
    MESSAGE_START = 1,     /* text: struct start_settings; fds: struct worker_stats, struct state_file */
    MESSAGE_EXPECT,        /* slot: a device will come there: hold the guest's accesses */
    MESSAGE_YIELD,         /* slot: another domain serves it: let its accesses go there */
    MESSAGE_TAKE,          /* slot: that domain is gone: answer there, as an empty slot */
    MESSAGE_ADD,           /* slot; text: an encoded device_config; fds: its descriptors, and one for
                              grants behind them if status is 1 */
    MESSAGE_REMOVE,        /* slot */
    MESSAGE_CONTROL,       /* slot, id; text: a request to the device, "resize" */
    MESSAGE_QUIT,
    MESSAGE_ANSWER,        /* slot, id; status -errno; text: why, or what more is to be said; fds */
    /* worker -> supervisor */
    MESSAGE_READY = 100,   /* serving; status: the guest's vCPUs */
    MESSAGE_FAILED,        /* cannot serve this domain; status -errno; text: why */
    MESSAGE_ADDED,         /* slot */
    MESSAGE_ADD_FAILED,    /* slot; status -errno; text: why */
    MESSAGE_REMOVED,       /* slot: nothing of the device is mapped or in flight any more */
    MESSAGE_CONTROL_REPLY, /* slot, id, status; text */
    MESSAGE_ASK,           /* slot, id; text: what the device wants of the host */
};

/* The text of MESSAGE_START. Same program on both sides: no versions. */
struct start_settings {
    uint32_t domid;
    uint32_t uid;           /* and gid, of the worker */
    uint32_t iothreads;
    uint32_t poll_max_us;
    uint32_t precedence;    /* our claims go before those of other domains */
    uint32_t claimed;       /* slots, as bits: where this domain answers the guest's accesses */
    uint32_t expected;      /* the same: see MESSAGE_EXPECT */
    uint32_t adopted;       /* those whose devices go on from what is in the state file */
    uint32_t sacrificed;    /* of these: not with what was in flight, but with DEVICE_NEEDS_RESET */
    int32_t log_level;
    char name[64];          /* for the log */
    char root[256];         /* an empty folder to live in */
};

struct message {
    uint32_t type;
    uint32_t slot;
    uint32_t id;
    int32_t status;
    uint32_t text_len;      /* bytes; the text is not terminated on the way, and is after receipt */
    uint32_t n_fds;
    int fds[MESSAGE_FDS_MAX]; /* received ones are the receiver's to close */
    char text[MESSAGE_TEXT_MAX + 1];
};

/* 0 or -errno (-EAGAIN on a full non-blocking socket; -EPIPE: the other side is gone). */
int message_send(int socket, const struct message *message);
/* 1: *message is filled; 0: the other side is gone; -errno; -EPROTO: not a message. */
int message_receive(int socket, struct message *message);
void message_close_fds(struct message *message);
/* Fills type and text. Cuts what is too long. */
void message_set(struct message *message, enum message_type type, uint32_t slot, const char *text);

#endif
