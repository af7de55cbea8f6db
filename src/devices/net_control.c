/* SPDX-License-Identifier: Apache-2.0 */
/* The control queue of a network device (VIRTIO 1.2, 5.1.6.5), and the filter that it sets. */
#include <errno.h>
#include <string.h>

#include "devices/net_internal.h"
#include "log.h"

#define MULTICAST_BIT (UINT64_C(1) << 40)
#define BROADCAST UINT64_C(0xffffffffffff)

/* ---- the filter ---- */

static void set(_Atomic uint32_t *field, uint32_t value)
{
    atomic_store_explicit(field, value, memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *field)
{
    return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)field, memory_order_relaxed);
}

void net_filter_reset(struct net *net, uint64_t features)
{
    struct net_filter *filter = &net->state->filter;
    bool by_vlan = (features & FEATURE(VIRTIO_NET_F_CTRL_VLAN)) != 0;

    /* A driver that cannot say what it wants gets everything; one that can says so (5.1.6.5.1). */
    set(&filter->modes, MODE_PROMISC);
    set(&filter->n_unicast, 0);
    set(&filter->n_multicast, 0);
    atomic_store_explicit(&filter->mac, net->own_mac, memory_order_relaxed);
    for (size_t i = 0; i < ARRAY_SIZE(filter->vlans); i++)
        atomic_store_explicit(&filter->vlans[i], 0, memory_order_relaxed);
    atomic_store_explicit(&filter->by_vlan, by_vlan, memory_order_relaxed);
}

static uint32_t get32(const _Atomic uint32_t *field)
{
    return atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)field, memory_order_relaxed);
}

bool net_filter_valid(const struct net_filter *filter)
{
    const uint32_t modes = MODE_PROMISC | MODE_ALLMULTI | MODE_ALLUNI | MODE_NOMULTI | MODE_NOUNI |
                           MODE_NOBCAST;

    return (get32(&filter->modes) & ~modes) == 0 && get32(&filter->by_vlan) <= 1 &&
           get32(&filter->n_unicast) <= MACS_MAX + 1 &&
           get32(&filter->n_multicast) <= MACS_MAX + 1 && get(&filter->mac) >> 48 == 0;
}

static bool in_table(const _Atomic uint64_t *table, const _Atomic uint32_t *count, uint64_t mac)
{
    uint32_t n = atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)count, memory_order_relaxed);

    if (n > MACS_MAX)
        return true;
    for (uint32_t i = 0; i < n; i++)
        if (get(&table[i]) == mac)
            return true;
    return false;
}

static bool vlan_passes(const struct net_filter *filter, const uint8_t *frame, size_t len)
{
    unsigned vlan;

    if (!atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)&filter->by_vlan,
                              memory_order_relaxed) ||
        len < 18 || frame[12] != 0x81 || frame[13] != 0x00)
        return true;
    vlan = (unsigned)((frame[14] & 0x0f) << 8 | frame[15]);
    /* VLAN 0 is a priority without a VLAN. */
    return vlan == 0 || (get(&filter->vlans[vlan / 64]) >> (vlan % 64) & 1) != 0;
}

bool net_filter_passes(const struct net_filter *filter, const uint8_t *frame, size_t len)
{
    uint32_t modes = atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)&filter->modes,
                                          memory_order_relaxed);
    uint64_t mac;

    if (len < ETHERNET_HEADER_LEN)
        return false;
    if ((modes & MODE_PROMISC) != 0) /* 5.1.6.5.1.1: all of them, also those of any VLAN */
        return true;
    if (!vlan_passes(filter, frame, len))
        return false;
    mac = mac_load(frame);
    if (mac == BROADCAST)
        return (modes & MODE_NOBCAST) == 0;
    if ((mac & MULTICAST_BIT) != 0)
        return (modes & MODE_NOMULTI) == 0 &&
               ((modes & MODE_ALLMULTI) != 0 ||
                in_table(filter->multicast, &filter->n_multicast, mac));
    return (modes & MODE_NOUNI) == 0 &&
           ((modes & MODE_ALLUNI) != 0 || mac == get(&filter->mac) ||
            in_table(filter->unicast, &filter->n_unicast, mac));
}

/* ---- commands: true if the device did what it was told ---- */

static bool read_u8(struct chain *chain, uint8_t *value)
{
    return chain_read(chain, value, sizeof(*value)) == sizeof(*value);
}

static bool read_u16(struct chain *chain, uint16_t *value)
{
    uint16_t wire;

    if (chain_read(chain, &wire, sizeof(wire)) != sizeof(wire))
        return false;
    *value = le16toh(wire);
    return true;
}

static bool set_mode(struct net *net, struct chain *chain, uint8_t command)
{
    static const uint32_t modes[] = {
        [VIRTIO_NET_CTRL_RX_PROMISC] = MODE_PROMISC, [VIRTIO_NET_CTRL_RX_ALLMULTI] = MODE_ALLMULTI,
        [VIRTIO_NET_CTRL_RX_ALLUNI] = MODE_ALLUNI,   [VIRTIO_NET_CTRL_RX_NOMULTI] = MODE_NOMULTI,
        [VIRTIO_NET_CTRL_RX_NOUNI] = MODE_NOUNI,     [VIRTIO_NET_CTRL_RX_NOBCAST] = MODE_NOBCAST,
    };
    unsigned feature = command > VIRTIO_NET_CTRL_RX_ALLMULTI ? VIRTIO_NET_F_CTRL_RX_EXTRA
                                                             : VIRTIO_NET_F_CTRL_RX;
    uint32_t old = atomic_load_explicit(&net->state->filter.modes, memory_order_relaxed);
    uint8_t on;

    if (command >= ARRAY_SIZE(modes) || !virtio_has_feature(net->dev, feature) ||
        !read_u8(chain, &on) || on > 1)
        return false;
    set(&net->state->filter.modes, on ? old | modes[command] : old & ~modes[command]);
    return true;
}

/* A table of addresses is as long as the driver says, and kept up to MACS_MAX (5.1.6.5.2). */
static bool read_table(struct chain *chain, _Atomic uint64_t *table, _Atomic uint32_t *count)
{
    uint32_t n;
    uint8_t mac[6];

    if (chain_read(chain, &n, sizeof(n)) != sizeof(n))
        return false;
    n = le32toh(n);
    if (n > chain->readable_bytes / sizeof(mac))
        return false;
    if (n > MACS_MAX) {
        chain_skip_readable(chain, (size_t)n * sizeof(mac));
        set(count, MACS_MAX + 1);
        return true;
    }
    set(count, 0);
    for (uint32_t i = 0; i < n; i++) {
        (void)chain_read(chain, mac, sizeof(mac));
        atomic_store_explicit(&table[i], mac_load(mac), memory_order_relaxed);
    }
    set(count, n);
    return true;
}

static bool set_macs(struct net *net, struct chain *chain, uint8_t command)
{
    struct net_filter *filter = &net->state->filter;
    uint8_t mac[6];

    if (command == VIRTIO_NET_CTRL_MAC_TABLE_SET && virtio_has_feature(net->dev, VIRTIO_NET_F_CTRL_RX))
        return read_table(chain, filter->unicast, &filter->n_unicast) &&
               read_table(chain, filter->multicast, &filter->n_multicast);
    if (command != VIRTIO_NET_CTRL_MAC_ADDR_SET ||
        !virtio_has_feature(net->dev, VIRTIO_NET_F_CTRL_MAC_ADDR) ||
        chain->readable_bytes != sizeof(mac) || chain_read(chain, mac, sizeof(mac)) != sizeof(mac) ||
        (mac_load(mac) & MULTICAST_BIT) != 0)
        return false;
    atomic_store_explicit(&filter->mac, mac_load(mac), memory_order_relaxed);
    net->changed_mac = mac_load(mac);
    net->settling = chain;
    return true;
}

static bool set_vlan(struct net *net, struct chain *chain, uint8_t command)
{
    _Atomic uint64_t *word;
    uint64_t bit;
    uint16_t vlan;

    if (!virtio_has_feature(net->dev, VIRTIO_NET_F_CTRL_VLAN) || !read_u16(chain, &vlan) ||
        vlan >= 4096 || command > VIRTIO_NET_CTRL_VLAN_DEL)
        return false;
    word = &net->state->filter.vlans[vlan / 64];
    bit = UINT64_C(1) << (vlan % 64);
    atomic_store_explicit(word, command == VIRTIO_NET_CTRL_VLAN_ADD ? get(word) | bit
                                                                    : get(word) & ~bit,
                          memory_order_relaxed);
    return true;
}

static bool announce_ack(struct net *net, struct chain *chain, uint8_t command)
{
    if (command != VIRTIO_NET_CTRL_ANNOUNCE_ACK ||
        !virtio_has_feature(net->dev, VIRTIO_NET_F_GUEST_ANNOUNCE))
        return false;
    net->announced = true;
    net->settling = chain;
    return true;
}

static bool set_pairs(struct net *net, struct chain *chain, uint8_t command)
{
    uint16_t pairs;

    return command == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET &&
           virtio_has_feature(net->dev, VIRTIO_NET_F_MQ) && read_u16(chain, &pairs) &&
           net_set_pairs(net, pairs) == 0;
}

static bool set_offloads(struct net *net, struct chain *chain, uint8_t command)
{
    uint64_t features;

    if (command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET ||
        !virtio_has_feature(net->dev, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) ||
        chain_read(chain, &features, sizeof(features)) != sizeof(features))
        return false;
    return net_set_guest_offloads(net, le64toh(features)) == 0;
}

void net_coalesce(struct net *net, unsigned direction, uint64_t setting)
{
    unsigned pairs = virtio_has_feature(net->dev, VIRTIO_NET_F_MQ) ? net->max_pairs : 1;

    state_store64(&net->state->coalesce[direction], setting);
    for (unsigned i = 0; i < pairs; i++)
        virtio_queue_coalesce(net->dev, 2 * i + direction, (uint32_t)setting,
                              (uint32_t)(setting >> 32));
}

/* 5.1.6.5.9. A frame may take several buffers; that they are counted only makes an interrupt earlier. */
static bool set_coalescing(struct net *net, struct chain *chain, uint8_t command)
{
    uint32_t wire[2]; /* packets, microseconds */

    if (!virtio_has_feature(net->dev, VIRTIO_NET_F_NOTF_COAL) ||
        command > VIRTIO_NET_CTRL_NOTF_COAL_RX_SET ||
        chain_read(chain, wire, sizeof(wire)) != sizeof(wire))
        return false;
    net_coalesce(net, command == VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
                 le32toh(wire[0]) | (uint64_t)le32toh(wire[1]) << 32);
    return true;
}

static bool command(struct net *net, struct chain *chain)
{
    struct virtio_net_ctrl_hdr header;

    if (chain->faulted || chain_read(chain, &header, sizeof(header)) != sizeof(header))
        return false;
    switch (header.class) {
    case VIRTIO_NET_CTRL_RX:
        return set_mode(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_MAC:
        return set_macs(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_VLAN:
        return set_vlan(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_ANNOUNCE:
        return announce_ack(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_MQ:
        return set_pairs(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
        return set_offloads(net, chain, header.cmd);
    case VIRTIO_NET_CTRL_NOTF_COAL:
        return set_coalescing(net, chain, header.cmd);
    default:
        return false;
    }
}

static void answer(struct net *net, struct chain *chain, uint8_t *ack, bool good)
{
    unsigned index = MIN(virtqueue_index(chain->vq), STATS_QUEUES_MAX - 1);
    struct queue_stats *stats = &net->dev->stats->queues[index];

    *(volatile uint8_t *)ack = good ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
    stat_add(&stats->requests, 1);
    if (!good) {
        log_guest("%s: the guest gave a command that is wrong or not possible", net->dev->name);
        stat_add(&stats->errors, 1);
    }
    /* The answer is the last byte: it counts only where it is the first writable one, too. */
    chain_complete(chain, chain->writable_bytes == 0);
}

void net_control_settled(struct loop_work *work)
{
    struct net *net = container_of(work, struct net, settled);
    struct chain *chain = net->settling;

    net->settling = NULL;
    virtio_queue_release(net->dev, chain->vq);
    answer(net, chain, net->settling_ack, true);
}

/* The driver has changed the host's interface too often: its next command waits. */
static bool waits(struct net *net, struct virtqueue *vq)
{
    int64_t wait = net_set_wait(net);

    if (wait == 0)
        return false;
    net->control = vq;
    virtio_queue_hold(net->dev, vq);
    loop_set_timer(virtio_queue_loop(net->dev, vq), &net->control_wait, wait);
    return true;
}

void net_control_waited(struct loop_timer *timer)
{
    struct net *net = container_of(timer, struct net, control_wait);

    virtio_queue_release(net->dev, net->control);
}

void net_control_stopped(struct net *net, struct virtqueue *vq)
{
    loop_cancel_timer(virtio_queue_loop(net->dev, vq), &net->control_wait);
}

int net_control_work(struct net *net, struct virtqueue *vq, int budget)
{
    struct chain *chain;
    int taken = 0;

    while (taken < budget && net->settling == NULL && !waits(net, vq)) {
        int ret = virtqueue_pop(vq, &chain);
        struct iovec ack;
        bool good;

        if (ret < 0)
            return ret;
        if (ret == 0)
            break;
        taken++;
        if (chain_take_tail(chain, 1, &ack, 1) < 0) {
            log_guest("%s: a command of the guest has no room for the answer", net->dev->name);
            chain_complete(chain, 0);
            continue;
        }
        good = command(net, chain);
        if (net->settling != NULL) {
            net->settling_ack = ack.iov_base;
            net->control_loop = virtio_queue_loop(net->dev, vq);
            virtio_queue_hold(net->dev, vq);
            loop_post(net->dev->mmio_loop, &net->changed);
        } else {
            answer(net, chain, ack.iov_base, good);
        }
    }
    return taken;
}
