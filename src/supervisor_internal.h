/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by supervisor*.c only. */
#ifndef VIOD_SUPERVISOR_INTERNAL_H
#define VIOD_SUPERVISOR_INTERNAL_H

#include <stdio.h>
#include <sys/types.h>

#include "config.h"
#include "message.h"
#include "supervisor_blame.h"
#include "stats.h"
#include "supervisor.h"
#include "xen/xen.h"
#include "xen/xenstore.h"

enum served_state {
    SERVED_WAITING,  /* opened; the worker is not ready yet */
    SERVED_ADDING,   /* the worker was told */
    SERVED_READY,
    SERVED_FAILED,   /* see error */
    SERVED_REMOVING, /* the worker was told */
    SERVED_GONE,     /* closed; the node may still be there */
};

/* One device node of a guest. */
struct served_device {
    bool used;
    struct device_node node;
    char name[32];
    enum served_state state;
    uint32_t slot;
    bool has_slot;
    struct device_config config; /* opened; its descriptors stay until they are handed over */
    bool has_config;
    bool is_open;                /* type->close is to be called */
    bool unpublished;            /* WAITING, in a driver domain: for what dom0 says of it */
    bool malformed;              /* FAILED: its node cannot be read; nothing of it but its id is known */
    char backing[1024];          /* what it is on the host, for people */
    dev_t backing_device;        /* of a block device; 0 otherwise */
    bool reopen;                 /* its worker has died: the next one needs descriptors */
    bool was_given;              /* the worker that has died last had it */
    bool was_busy;               /* and left I/O to the kernel, so that its ... */
    bool said_in_use;            /* that it is waited for */
    int64_t granted_until_ns;    /* ... grants may be mapped until then; 0: not known yet */
    struct blame blame;          /* whether workers die of it */
    char error[CONFIG_ERROR_LEN];
};

enum worker_state { WORKER_STARTING, WORKER_RUNNING, WORKER_QUITTING };

/* One guest. */
struct guest {
    struct guest *next;
    uint32_t domid;
    char name[64];               /* when it was first seen */
    struct guest_identity identity;
    enum worker_state state;
    pid_t pid;
    int socket;
    int orphan_fd;               /* pidfd of a worker that an earlier supervisor left; -1: none */
    int64_t kill_at_ns;          /* QUITTING: no longer than this; 0 = not set */
    uint32_t n_vcpus;
    const struct worker_stats *stats;
    int stats_fd, state_fd;      /* -1: none yet; the same for all its workers */
    uint32_t adopted, sacrificed; /* slots, for the next worker's start_settings */
    unsigned restarts;           /* workers that have died */
    unsigned deaths;             /* of these: soon after one another, and nothing done in between */
    uint64_t counts;             /* at the last of them: see supervisor_restart.c */
    int64_t last_death_ns, pace_debt_ns; /* how far they have died faster than they should */
    int64_t started_ns, died_ns;
    int64_t restart_at_ns;       /* a successor is to be started then, or devices opened; 0: none */
    struct served_device devices[2 * STATS_DEVICES_MAX]; /* twice: old ones stay to be looked at */
    bool given_up;               /* its last worker has no devices, and no successor */
    bool rescan;                 /* nodes were seen that wait for this worker's end */
    char failure[CONFIG_ERROR_LEN]; /* why it cannot be served at all */
};

#define CLIENTS_MAX 16

/* A viodctl. */
struct client {
    int fd;                      /* -1: free */
    char line[512];
    size_t used;
    uint32_t waits_for;          /* id of a MESSAGE_CONTROL; 0: none */
    uint32_t waits_domid;        /* whose worker alone may answer */
    bool waits_ready;            /* until all devices of ready_domid are */
    bool waits_upgrade;          /* see supervisor_upgrade.c */
    uint32_t ready_domid;
    int64_t until_ns;
    char *answer;                /* that it has not taken yet; NULL: none */
    size_t answer_len, answer_sent;
};

/* Another program is to take this one's place. */
struct upgrade {
    pid_t pid;                   /* of the one that is asked whether it can; 0: none */
    int fd;                      /* what it says */
    int64_t until_ns;
    char path[1024];
};

struct supervisor {
    const struct daemon_config *config;
    struct xenstore *xs;
    struct guest *guests;
    int signal_fd, listen_fd, uevent_fd;
    struct client clients[CLIENTS_MAX];
    uint32_t next_control_id;
    char control_path[108];
    bool stopping;               /* all guests lose their devices */
    bool leaving;                /* the workers go on, for the next supervisor */
    int64_t leave_at_ns;         /* then, no matter what */
    char *const *argv;           /* of this program */
    struct upgrade upgrade;
    bool has_driver_domains;     /* a device with another backend was seen */
    struct node_removal *removals; /* in a driver domain: nodes that are about to be removed */
};

/* Where workers live: an empty folder below run_dir. */
#define EMPTY_ROOT "/empty"

/* supervisor.c */
/* Looks at all nodes of a guest, as if each had just changed. */
void guest_scan(struct supervisor *s, uint32_t domid);
/* All guests lose their devices; then the supervisor ends. */
void supervisor_stop(struct supervisor *s);

/* supervisor_device.c */
/* Its host side is open. */
void device_opened(struct served_device *d);
/* Reads the configuration and opens what the device needs; hands it over if the worker is ready. */
void device_configure(struct supervisor *s, struct guest *g, struct served_device *d);
/* Recorded for the next supervisor, then told to the worker. */
void device_send(struct supervisor *s, struct guest *g, struct served_device *d);
/* The device is not served: log, xenstore and viodctl say why. */
void device_fail(struct supervisor *s, struct guest *g, struct served_device *d, const char *why);
/* State 6: nothing of it is left. */
void device_close(struct supervisor *s, struct served_device *d);
void device_release(struct served_device *d);
/* The worker wants something of the host for the device. */
void device_asked(struct guest *g, struct served_device *d, uint32_t id, const char *request);

/* supervisor_guest.c */
struct guest *guest_find(struct supervisor *s, uint32_t domid);
struct served_device *guest_find_node(struct guest *guest, const struct node_id *id);
/* The device that has the slot now; NULL: none. */
struct served_device *guest_find_slot(struct guest *guest, uint32_t slot);
struct guest *guest_new(struct supervisor *s, uint32_t domid);
/*
 * With what an earlier supervisor left in its folder, under the name and UUID that it had; NULL: those
 * of now.
 */
struct guest *guest_new_as(struct supervisor *s, uint32_t domid, const char *name,
                           const char *uuid);
void guest_free(struct supervisor *s, struct guest *g);
/* With all that is in it, and the link to it. name: NULL = not known. */
void guest_remove_folder(struct supervisor *s, uint32_t domid, const char *name,
                         const char *folder);
/* 0 or -errno; -EAGAIN: see restart_later. */
int guest_start_worker(struct supervisor *s, struct guest *g);
void guest_quit_worker(struct guest *g);
void guest_send(struct guest *g, enum message_type type, uint32_t slot, int32_t status);
void guest_readable(struct supervisor *s, struct guest *g);
/* After SIGCHLD. */
void guests_reap(struct supervisor *s);
struct guest *supervisor_find_guest(struct supervisor *s, const char *name_or_domid);
struct served_device *guest_find_device(struct guest *guest, const char *name);
/* Sends a request to a device; 0 or -errno. */
int guest_control(struct guest *guest, const struct served_device *device, uint32_t id,
                  const char *request);

/* It has another name, or its name is known now. */
void guest_identify(struct supervisor *s, struct guest *g, const char *name, const char *uuid);

/* supervisor_publish.c */
bool is_driver_domain(const struct supervisor *s);
/* The path of the guest's file; -EINVAL with a message if the name cannot have one. */
int guest_file_path(const struct supervisor *s, const char *name, char *path, size_t path_len,
                    char *error, size_t error_len);
/* The n-th device of its type in the guest's virtio=[…], whoever serves it: "blk0"; a disk: "xvda". */
void device_name(struct supervisor *s, const struct device_node *node, char *name, size_t len);
/* In dom0, from here on driver domains are told about their devices. */
int publish_open(struct supervisor *s);
void publish_device(struct supervisor *s, const struct node_id *id);
/* Domains have ended: takes over the slots that one of them served. */
void publish_released(struct supervisor *s);
/* The slots of the guest, as bits, where this domain answers. -EAGAIN: xenstore does not tell now. */
int guest_claimed_slots(struct supervisor *s, const struct guest *g, uint32_t *slots);
/*
 * In a driver domain: names the device and its guest; its settings, which the caller frees. -ENOENT:
 * they are not there yet; -errno with a message.
 */
int publication_take(struct supervisor *s, struct guest *g, struct served_device *d,
                     struct guest_file **file, char *error, size_t error_len);
/* In a driver domain: removes the node soon, when libxl has seen its last state. */
void removal_schedule(struct supervisor *s, const struct node_id *id);
/* Removes those whose time has come; true if there were any. */
bool removals_run(struct supervisor *s, int64_t now);
void removals_free(struct supervisor *s);

/* supervisor_wait.c */
/* The client waits for all devices of a guest; -errno with a message. seconds: NULL = the default. */
int wait_begin(struct supervisor *s, struct client *client, const char *domain,
               const char *seconds, char *error, size_t error_len);
/* True when they are ready (no error), or will not be. */
bool wait_is_over(struct supervisor *s, const struct client *client, int64_t now, char *error,
                  size_t error_len);

/* supervisor_restart.c */
/* Before each of the guest's workers starts. */
int restart_create_state(struct guest *g);
/* The worker has died, and its guest lives. True: a successor is started, or will be. */
bool restart_worker(struct supervisor *s, struct guest *g, const char *why);
/* A worker could not be started, for a reason that may pass: it is tried again soon. */
void restart_later(struct guest *g, int error);
void restart_due(struct supervisor *s, int64_t now);
/* A device of the guest is served: after a restart, perhaps the last one. */
void restart_added(struct guest *g);
/* How long nothing is due; -1: nothing at all. */
int restart_timeout_ms(const struct supervisor *s, int64_t now);

/* supervisor_takeover.c: from one supervisor to the next. */
/* Before the first event of xenstore. 0; -EPROTONOSUPPORT with a message: nothing was touched. */
int takeover_begin(struct supervisor *s);
/* Could this program take over what is in this folder? Says why not. */
bool takeover_possible(const char *run_dir);
/* Writes down what the next supervisor needs to know. */
void takeover_record(const struct guest *g);
/* The guest is given up: nobody takes it over. */
void takeover_forget(const struct guest *g);
/* A worker that an earlier supervisor left has ended, or there is none. */
bool takeover_orphan_ended(struct guest *g);
/* Ends it; fd: its pidfd, or -1. */
void takeover_end_orphan(int fd);

/* supervisor_upgrade.c */
/* path: NULL = the program that this one was started from. -errno with a message. */
int upgrade_begin(struct supervisor *s, struct client *client, const char *path, char *error,
                  size_t error_len);
/* It has ended: does not return if it can take over, and does. */
void upgrade_answered(struct supervisor *s, int status);
void upgrade_expire(struct supervisor *s, int64_t now);

/* supervisor_control.c */
/* Answers a client that waits, and hangs up when it has taken all of it. */
void control_reply(struct client *client, const char *error, const char *text, size_t len);
int control_open(struct supervisor *s);
void control_close(struct supervisor *s);
void control_accept(struct supervisor *s);
void control_read(struct supervisor *s, struct client *client);
/* What is left of an answer. */
void control_write(struct client *client);
/* The worker of that domain has answered. */
void control_replied(struct supervisor *s, uint32_t domid, uint32_t id, int32_t status,
                     const char *text);
void control_expire(struct supervisor *s, int64_t now);

/* supervisor_uevent.c: grown block devices. */
int uevent_open(void);
void uevent_read(struct supervisor *s);

/* supervisor_show.c */
/* What a client asked for: its answer goes to `out`, or why there is none to `error`. */
struct answer {
    FILE *out;
    bool json;
    char error[CONFIG_ERROR_LEN];
};
/* "ready" */
const char *show_state(enum served_state state);
void show_list(struct supervisor *s, struct answer *a);
/* words: "show" and, perhaps, a domain and a device; the same of "stats". */
void show_guest(struct supervisor *s, struct answer *a, char *const *words, int n);
void show_stats(struct supervisor *s, struct answer *a, char *const *words, int n);

#endif
