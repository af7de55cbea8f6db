/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a supervisor leaves to the next one about a guest that it serves: a file in the guest's
 * folder, which only root can read or write. With it and the state file (device_state.h) a new
 * supervisor goes on where the other one ended, whatever ended it. Written before the worker hears of
 * what is in it, so that no worker ever serves what is not recorded.
 */
#ifndef VIOD_SUPERVISOR_RECORD_H
#define VIOD_SUPERVISOR_RECORD_H

#include <sys/types.h>

#include "types.h"

/* Changes with every change of the format, and of the meaning, of what follows. */
#define RECORD_VERSION 1u
#define RECORD_DEVICES_MAX 11u
#define RECORD_TEXT_MAX (64u * 1024u)

struct record_device {
    uint32_t kind;  /* enum node_kind */
    uint32_t devid;
    char *text;     /* device_config_encode_all; owned */
};

struct guest_record {
    uint32_t domid;
    int32_t pid;           /* of its worker; 0: none */
    uint64_t started;      /* when that process started, see record_process_started */
    uint32_t restarts;
    uint32_t state_version; /* DEVICE_STATE_VERSION of its state file, which its worker can write */
    char boot_id[40];      /* of the kernel that ran it */
    char uuid[40];         /* the guest's; empty: unknown */
    char name[64];
    uint32_t n_devices;
    struct record_device devices[RECORD_DEVICES_MAX];
};

/* Replaces the file in this folder: old or new, never half of each. 0 or -errno. */
int record_write(const char *folder, const struct guest_record *record);
/*
 * 0; -ENOENT: there is none; -EPROTONOSUPPORT: of another version; -EBADMSG: damaged; -errno. On
 * success *record is the caller's to free.
 */
int record_read(const char *folder, struct guest_record *record);
void record_free(struct guest_record *record);
void record_remove(const char *folder);

/* Without a file: a malloced block, its length in *len; NULL: no memory, or too much text. */
void *record_encode(const struct guest_record *record, size_t *len);
int record_decode(const void *data, size_t len, struct guest_record *record);

/* When a process started, in ticks since boot: with its pid, it is this one and no later one. 0: it
 * is not there. */
uint64_t record_process_started(pid_t pid);
/* Which boot of this machine it is; empty if the kernel does not say. */
void record_boot_id(char *id, size_t len);

#endif
