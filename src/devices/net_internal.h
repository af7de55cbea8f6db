/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by net.c (life and registers), net_queues.c (frames), net_control.c (commands) and
 * net_settings.c (what they set in the host).
 */
#ifndef VIOD_DEVICES_NET_INTERNAL_H
#define VIOD_DEVICES_NET_INTERNAL_H

#include <linux/virtio_net.h>
#include <pthread.h>

#include "backend.h"
#include "stats.h"
#include "virtio_device.h"

#ifndef VIRTIO_NET_F_GUEST_USO4
#define VIRTIO_NET_F_GUEST_USO4 54 /* Linux 6.2 */
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif
#ifndef VIRTIO_NET_F_NOTF_COAL
#define VIRTIO_NET_F_NOTF_COAL 53 /* Linux 6.1 */
#define VIRTIO_NET_CTRL_NOTF_COAL 6
#define VIRTIO_NET_CTRL_NOTF_COAL_TX_SET 0
#define VIRTIO_NET_CTRL_NOTF_COAL_RX_SET 1
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

#define FEATURE(bit) (UINT64_C(1) << (bit))
#define NET_HEADER_LEN 12u   /* 5.1.6: with VERSION_1 always num_buffers, too */
#define ETHERNET_HEADER_LEN 14u
/* The largest frame: 64 KiB of IP, an Ethernet header and a VLAN tag (5.1.6.3.1). */
#define FRAME_MAX (65535u + ETHERNET_HEADER_LEN + 4u)
/* Of a receive queue: what does not fit into the guest's buffers, and one byte to see what is longer. */
#define NET_SPILL_LEN (FRAME_MAX + NET_HEADER_LEN + 1u)
#define NET_IOV_MAX 1024u    /* elements of a read or write: the kernel's limit */
#define MACS_MAX 64u         /* of each table; more of them means all */

static_assert(sizeof(struct virtio_net_hdr_v1) == NET_HEADER_LEN, "5.1.6");
static_assert(offsetof(struct virtio_net_hdr_v1, num_buffers) == 10, "5.1.6");

enum receive_mode {
    MODE_PROMISC = 1,
    MODE_ALLMULTI = 2,
    MODE_ALLUNI = 4,
    MODE_NOMULTI = 8,
    MODE_NOUNI = 16,
    MODE_NOBCAST = 32,
};

/*
 * What the guest wants to receive. The thread of the control queue writes it, those of the receive queues
 * look at it for each frame: each field by itself is consistent, and a frame in the moment of a change
 * may go either way.
 */
struct net_filter {
    _Atomic uint64_t mac;
    _Atomic uint32_t modes;
    _Atomic uint32_t n_unicast, n_multicast; /* MACS_MAX + 1: all */
    _Atomic uint64_t unicast[MACS_MAX], multicast[MACS_MAX];
    _Atomic uint32_t by_vlan;
    _Atomic uint64_t vlans[4096 / 64];
};

/* In dev->own, for a successor: what the driver and the administrator have set. */
struct net_state {
    struct net_filter filter;
    uint64_t pairs, offloads; /* as in struct net */
    uint64_t coalesce[2];     /* of receive, of transmit queues: as the driver said it, 5.1.6.5.9 */
    uint64_t link;            /* enum net_link */
    uint64_t host_offloads;   /* of the interface, when it was opened first; 0: an older version's */
};
enum net_link { LINK_AS_CONFIGURED, LINK_SET_DOWN, LINK_SET_UP };

struct net;

/* A poll of the TAP: outlives its queue until the kernel has let go of it. */
struct net_watch {
    struct loop_op op;
    struct net_rx *rx;    /* NULL: the queue has stopped */
    bool polling;
};

/* A receive queue; its I/O thread's while it runs. */
struct net_rx {
    struct net *net;
    struct virtqueue *vq;
    struct event_loop *loop;
    struct queue_stats *stats;
    struct net_watch *watch;
    struct loop_poller poller;
    struct loop_work renewed; /* from the MMIO thread: the descriptor is another TAP's now */
    int fd;
    bool readable;        /* a frame may wait in the TAP; false: watch says when */
    bool mergeable, csum;
    /* Buffers taken from the guest and not filled, oldest first: a ring. */
    struct chain **held;
    unsigned first, n_held, size;
    uint64_t room;        /* bytes in them */
    uint32_t small, large; /* room for usual frames; for the largest */
    unsigned large_left;  /* frames for which room for the largest is offered */
    /* A frame that did not fit into what was held: what is too much is in `spill`. */
    uint32_t pending, pending_room;
    struct loop_timer give_up;
    uint8_t *spill;
    struct iovec *iov;
};

struct net_tx {
    struct net *net;
    struct virtqueue *vq;
    struct event_loop *loop;
    struct queue_stats *stats;
    int fd;
};

struct net_request {
    struct chain chain; /* first */
    /* Transmission. */
    struct loop_op op;
    struct net_tx *tx;
    uint32_t len;       /* of the frame */
    struct virtio_net_hdr_v1 header;
};

struct net {
    struct virtio_device *dev;
    unsigned max_pairs;
    uint16_t mtu;
    uint64_t own_mac;           /* as configured */
    int fds[NET_PAIRS_MAX];     /* the TAP's queues; the numbers stay when the TAP does not */
    bool is_passt;              /* and no TAP: a relay is behind fds[0] */
    struct net_passt *relay;    /* MMIO thread */
    unsigned host_offloads;     /* what the TAP can be told to use */
    struct net_state *state;
    struct net_rx rx[NET_PAIRS_MAX];
    struct net_tx tx[NET_PAIRS_MAX];

    /* For the settings of the TAP, which control queue and MMIO thread change. */
    pthread_mutex_t lock;
    unsigned pairs;             /* in use */
    unsigned offloads;          /* towards the guest */
    /* What the TAP was told; UINT_MAX: unknown. */
    unsigned set_offloads, set_use[NET_PAIRS_MAX];
    int64_t paid_until_ns;      /* for changes */
    struct loop_timer set_later; /* MMIO thread: for what could not be paid */

    /* Any thread. */
    _Atomic unsigned allowed;   /* the offloads that a frame for the guest may need */
    atomic_bool passing;        /* the link is up: frames pass */
    atomic_bool lost;           /* the TAP is gone */
    struct loop_work lose;      /* to the MMIO thread: found out that it is */
    /*
     * A command that changes configuration space, which is the MMIO thread's: it is answered when that is
     * done (5.1.6.5.2, 5.1.6.5.4), and no other one is taken before.
     */
    struct loop_work changed;   /* to the MMIO thread */
    struct loop_work settled;   /* back to that of the control queue */
    struct event_loop *control_loop;
    struct chain *settling;     /* the command; NULL: none */
    struct virtqueue *control;
    struct loop_timer control_wait; /* set: commands wait, after too many changes */
    uint8_t *settling_ack;
    uint64_t changed_mac;
    bool announced;

    /* MMIO thread. */
    bool link_up, is_lost, announce;
    bool complained;            /* that there is no new TAP */
    bool flaps;                 /* the last ones were gone as soon as they came */
    uint32_t ask_id;
    struct loop_timer retry;    /* also: the new TAP is not known to stay yet */
};

/* net.c */
/* Any thread: the TAP answers no more. */
void net_lose(struct net *net);

/* net_settings.c: 0 or -errno */
/* Thread of the control queue. */
int net_set_pairs(struct net *net, unsigned pairs);
int net_set_guest_offloads(struct net *net, uint64_t features);
/* How long the driver's next change has to wait, in ns. */
int64_t net_set_wait(struct net *net);
/* What the driver can be handed, as the backend says it. */
unsigned net_guest_offloads(uint64_t features);
/* MMIO thread. */
void net_set_tap(struct net *net, unsigned pairs, unsigned offloads);
void net_set_tap_now(struct loop_timer *timer);
/* No driver: one pair, and no frame that needs offloads passes; what the TAP does is the next driver's. */
void net_rest_tap(struct net *net);
/* There is another TAP: set it like the last one. */
void net_set_new_tap(struct net *net);
void net_forget_tap(struct net *net);

/* net_queues.c: I/O thread */
void net_rx_init(struct net_rx *rx, struct net *net, int fd);
void net_rx_started(struct net_rx *rx, struct virtqueue *vq);
int net_rx_work(struct net_rx *rx, int budget);
void net_rx_drain(struct net_rx *rx);
void net_rx_stopped(struct net_rx *rx);
void net_tx_started(struct net_tx *tx, struct virtqueue *vq);
int net_tx_work(struct net_tx *tx, int budget);

/* net_control.c */
/* Work for the thread of the control queue: what a command wanted of the MMIO thread is done. */
void net_control_settled(struct loop_work *work);
int net_control_work(struct net *net, struct virtqueue *vq, int budget);
void net_control_waited(struct loop_timer *timer);
void net_control_stopped(struct net *net, struct virtqueue *vq);
/*
 * Interrupts of a direction's queues (0: receive, 1: transmit) wait: 5.1.6.5.9. Packets in the lower half
 * of the setting, microseconds in the upper. Thread of the control queue; before it runs, the MMIO thread.
 */
void net_coalesce(struct net *net, unsigned direction, uint64_t setting);
/* Back to what a device without a driver receives. */
void net_filter_reset(struct net *net, uint64_t features);
/* Any thread: may the guest get this frame? The first 18 bytes of it. */
bool net_filter_valid(const struct net_filter *filter);
bool net_filter_passes(const struct net_filter *filter, const uint8_t *frame, size_t len);

static inline uint64_t mac_load(const uint8_t *at)
{
    uint64_t mac = 0;

    for (unsigned i = 0; i < 6; i++)
        mac = mac << 8 | at[i];
    return mac;
}

static inline void mac_store(uint8_t *at, uint64_t mac)
{
    for (unsigned i = 0; i < 6; i++)
        at[i] = (uint8_t)(mac >> (40 - 8 * i));
}

#endif
