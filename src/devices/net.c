/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network device (VIRTIO 1.2, 5.1): its life, its registers, and its TAP. Frames are in
 * net_queues.c, the driver's commands in net_control.c, what they set in the host in net_settings.c.
 *
 * Descriptors keep their numbers for the life of the device: a new TAP takes the place of a lost one
 * under them (dup3), so no thread has to be told before it goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "devices/net_internal.h"
#include "devices/table.h"
#include "log.h"

#define RETRY_NS INT64_C(1000000000)
#define SPEED_MBIT 10000u /* what a TAP says of itself */

/* Up to the fields of RSS. */
#define CONFIG_LEN 18u
static_assert(offsetof(struct virtio_net_config, mac) == 0, "5.1.4");
static_assert(offsetof(struct virtio_net_config, status) == 6, "5.1.4");
static_assert(offsetof(struct virtio_net_config, max_virtqueue_pairs) == 8, "5.1.4");
static_assert(offsetof(struct virtio_net_config, mtu) == 10, "5.1.4");
static_assert(offsetof(struct virtio_net_config, speed) == 12, "5.1.4");
static_assert(offsetof(struct virtio_net_config, duplex) == 16, "5.1.4");

static const struct feature net_features[] = {
    {VIRTIO_NET_F_CSUM, "CSUM"},
    {VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"},
    {VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, "CTRL_GUEST_OFFLOADS"},
    {VIRTIO_NET_F_MTU, "MTU"},
    {VIRTIO_NET_F_MAC, "MAC"},
    {VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"},
    {VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"},
    {VIRTIO_NET_F_GUEST_ECN, "GUEST_ECN"},
    {VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"},
    {VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"},
    {VIRTIO_NET_F_HOST_ECN, "HOST_ECN"},
    {VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"},
    {VIRTIO_NET_F_STATUS, "STATUS"},
    {VIRTIO_NET_F_CTRL_VQ, "CTRL_VQ"},
    {VIRTIO_NET_F_CTRL_RX, "CTRL_RX"},
    {VIRTIO_NET_F_CTRL_VLAN, "CTRL_VLAN"},
    {VIRTIO_NET_F_CTRL_RX_EXTRA, "CTRL_RX_EXTRA"},
    {VIRTIO_NET_F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE"},
    {VIRTIO_NET_F_MQ, "MQ"},
    {VIRTIO_NET_F_CTRL_MAC_ADDR, "CTRL_MAC_ADDR"},
    {VIRTIO_NET_F_NOTF_COAL, "NOTF_COAL"},
    {VIRTIO_NET_F_GUEST_USO4, "GUEST_USO4"},
    {VIRTIO_NET_F_GUEST_USO6, "GUEST_USO6"},
    {VIRTIO_NET_F_HOST_USO, "HOST_USO"},
    {VIRTIO_NET_F_SPEED_DUPLEX, "SPEED_DUPLEX"},
    {0, NULL},
};

/* ---- which queue is what: 5.1.2 ---- */

enum role { RECEIVE, TRANSMIT, CONTROL, UNUSED };

static enum role role_of(const struct virtio_device *dev, unsigned index)
{
    const struct net *net = dev->priv;
    unsigned pairs = virtio_has_feature(dev, VIRTIO_NET_F_MQ) ? net->max_pairs : 1;

    if (index < 2 * pairs)
        return index % 2 == 0 ? RECEIVE : TRANSMIT;
    if (index == 2 * pairs && virtio_has_feature(dev, VIRTIO_NET_F_CTRL_VQ))
        return CONTROL;
    return UNUSED;
}

static void net_queue_started(struct virtio_device *dev, struct virtqueue *vq)
{
    struct net *net = dev->priv;
    unsigned index = virtqueue_index(vq);

    if (role_of(dev, index) == RECEIVE)
        net_rx_started(&net->rx[index / 2], vq);
    else if (role_of(dev, index) == TRANSMIT)
        net_tx_started(&net->tx[index / 2], vq);
}

/* Buffers in a queue that means nothing come back unused. */
static int give_back(struct virtqueue *vq, int budget)
{
    struct chain *chain;
    int taken = 0, ret = 0;

    while (taken < budget && (ret = virtqueue_pop(vq, &chain)) == 1) {
        taken++;
        chain_complete(chain, 0);
    }
    return ret < 0 ? ret : taken;
}

static int net_queue_work(struct virtio_device *dev, struct virtqueue *vq, int budget)
{
    struct net *net = dev->priv;
    unsigned index = virtqueue_index(vq);

    switch (role_of(dev, index)) {
    case RECEIVE:
        return net_rx_work(&net->rx[index / 2], budget);
    case TRANSMIT:
        return net_tx_work(&net->tx[index / 2], budget);
    case CONTROL:
        return net_control_work(net, vq, budget);
    case UNUSED:
        break;
    }
    return give_back(vq, budget);
}

static void net_queue_drain(struct virtio_device *dev, struct virtqueue *vq)
{
    struct net *net = dev->priv;
    unsigned index = virtqueue_index(vq);

    if (role_of(dev, index) == RECEIVE)
        net_rx_drain(&net->rx[index / 2]);
}

static void net_queue_stopped(struct virtio_device *dev, struct virtqueue *vq)
{
    struct net *net = dev->priv;
    unsigned index = virtqueue_index(vq);

    if (role_of(dev, index) == RECEIVE)
        net_rx_stopped(&net->rx[index / 2]);
    else if (role_of(dev, index) == CONTROL)
        net_control_stopped(net, vq);
}

/* ---- the link: MMIO thread ---- */

static void set_mac(struct net *net, uint64_t mac)
{
    mac_store(&net->dev->config[offsetof(struct virtio_net_config, mac)], mac);
}

/* Tells the driver if anything changed. */
static void update_link(struct net *net, bool tell)
{
    uint8_t *at = &net->dev->config[offsetof(struct virtio_net_config, status)];
    bool up = net->link_up && !net->is_lost;
    uint8_t status = (uint8_t)((up ? VIRTIO_NET_S_LINK_UP : 0) |
                               (net->announce ? VIRTIO_NET_S_ANNOUNCE : 0));
    bool differs = *at != status;

    *at = status;
    atomic_store(&net->passing, up);
    if (differs && tell)
        virtio_device_config_changed(net->dev);
}

static void ask_for_tap(struct net *net)
{
    char request[16];

    snprintf(request, sizeof(request), "tap %u", net->max_pairs);
    if (virtio_device_ask(net->dev, ++net->ask_id, request) < 0)
        loop_set_timer(net->dev->mmio_loop, &net->retry, RETRY_NS);
}

/* It is time to ask again; or the new interface has stayed. */
static void retry(struct loop_timer *timer)
{
    struct net *net = container_of(timer, struct net, retry);

    if (net->is_lost) {
        ask_for_tap(net);
    } else if (net->flaps) {
        net->flaps = false;
        log_info("%s: its new interface stays", net->dev->name);
    }
}

void net_lose(struct net *net)
{
    if (!atomic_exchange(&net->lost, true))
        loop_post(net->dev->mmio_loop, &net->lose);
}

/* Who takes a connection and ends it at once, again and again, gets one a second, and is spoken of once. */
static void run_lose(struct loop_work *work)
{
    struct net *net = container_of(work, struct net, lose);
    bool soon = net->retry.due_ns != 0;

    if (net->is_lost)
        return;
    net->is_lost = true;
    if (!net->flaps)
        log_warning("%s: its interface is gone%s: no link until there is a new one", net->dev->name,
                    soon ? " as soon as it came" : "");
    net->flaps = soon;
    update_link(net, true);
    loop_cancel_timer(net->dev->mmio_loop, &net->retry);
    if (soon)
        loop_set_timer(net->dev->mmio_loop, &net->retry, RETRY_NS);
    else
        ask_for_tap(net);
}

/* passt's descriptors are one for the device and two for the relay, which takes them over. */
static int start_relay(struct net *net, int *fds, size_t n_fds)
{
    int ret;

    if (n_fds < 3)
        return -EBADF;
    ret = net_passt_create(net->dev->mmio_loop, fds[1], fds[2], &net->relay);
    if (ret == 0)
        fds[1] = fds[2] = -1;
    return ret;
}

static void net_answered(struct virtio_device *dev, uint32_t id, int status, const char *text,
                         int *fds, size_t n_fds)
{
    struct net *net = dev->priv;

    if (!net->is_lost || id != net->ask_id)
        return;
    for (unsigned i = 0; i < net->max_pairs && status == 0; i++)
        if (i >= n_fds || dup3(fds[i], net->fds[i], O_CLOEXEC) < 0)
            status = -EBADF;
    if (status == 0 && net->is_passt) {
        net_passt_destroy(net->relay);
        net->relay = NULL;
        status = start_relay(net, fds, n_fds);
    }
    if (status < 0) {
        if (!net->complained)
            log_warning("%s: no new interface: %s; it is tried again each second", dev->name, text);
        net->complained = true;
        loop_set_timer(dev->mmio_loop, &net->retry, RETRY_NS);
        return;
    }
    net_set_new_tap(net);
    net->is_lost = false;
    net->complained = false;
    atomic_store(&net->lost, false);
    if (!net->flaps)
        log_info("%s: has a new interface", dev->name);
    loop_set_timer(dev->mmio_loop, &net->retry, RETRY_NS); /* lost before: see run_lose */
    for (unsigned i = 0; i < net->max_pairs; i++)
        if (dev->queues[2 * i].phase == QUEUE_RUNNING && role_of(dev, 2 * i) == RECEIVE)
            loop_post(dev->queues[2 * i].loop, &net->rx[i].renewed);
    /* Switches have forgotten where the guest is (5.1.6.5.4). */
    net->announce = virtio_has_feature(dev, VIRTIO_NET_F_GUEST_ANNOUNCE);
    update_link(net, true);
}

static void run_changed(struct loop_work *work)
{
    struct net *net = container_of(work, struct net, changed);

    set_mac(net, net->changed_mac);
    if (net->announced)
        net->announce = false;
    net->announced = false;
    update_link(net, false); /* it knows what it said */
    virtio_device_config_touched(net->dev);
    loop_post(net->control_loop, &net->settled);
}

static int net_device_control(struct virtio_device *dev, const char *request, char *reply,
                              size_t reply_len)
{
    struct net *net = dev->priv;
    bool up = strcmp(request, "link up") == 0;

    if (!up && strcmp(request, "link down") != 0) {
        snprintf(reply, reply_len,
                 "%s: a network device does not know \"%s\"; it knows \"link up\" and \"link down\"",
                 dev->name, request);
        return -EINVAL;
    }
    snprintf(reply, reply_len, "%s: link %s%s%s", dev->name, up ? "up" : "down",
             up == net->link_up ? ", as it was" : "",
             up && net->is_lost ? ", but its interface is gone" : "");
    if (up != net->link_up)
        log_info("%s: link %s", dev->name, up ? "up" : "down");
    net->link_up = up;
    state_store64(&net->state->link, up ? LINK_SET_UP : LINK_SET_DOWN);
    update_link(net, true);
    return 0;
}

/* ---- life: MMIO thread ---- */

static void net_negotiated(struct virtio_device *dev, uint64_t features)
{
    struct net *net = dev->priv;

    net_filter_reset(net, features);
    for (unsigned i = 0; i < 2 * net->max_pairs; i++)
        virtio_queue_coalesce(dev, i, 0, 0); /* 5.1.6.5.9 */
    for (unsigned i = 0; i < ARRAY_SIZE(net->state->coalesce); i++)
        state_store64(&net->state->coalesce[i], 0);
    net_set_tap(net, 1, net_guest_offloads(features)); /* one pair until the driver says more: 5.1.6.5.6 */
}

static bool net_adopt(struct virtio_device *dev, uint64_t features)
{
    struct net *net = dev->priv;
    uint64_t pairs = state_load64(&net->state->pairs);
    uint64_t offloads = state_load64(&net->state->offloads);
    uint64_t link = state_load64(&net->state->link);

    if (pairs == 0 || pairs > net->max_pairs || link > LINK_SET_UP ||
        (offloads & ~(uint64_t)net_guest_offloads(features)) != 0 ||
        !net_filter_valid(&net->state->filter))
        return false;
    net_set_tap(net, (unsigned)pairs, (unsigned)offloads);
    net->changed_mac = atomic_load(&net->state->filter.mac);
    set_mac(net, net->changed_mac);
    for (unsigned i = 0; i < ARRAY_SIZE(net->state->coalesce); i++)
        net_coalesce(net, i, state_load64(&net->state->coalesce[i]));
    if (link != LINK_AS_CONFIGURED)
        net->link_up = link == LINK_SET_UP;
    update_link(net, false);
    /* What the driver was told last is not known: it looks again. */
    state_store64(&dev->state->config_changed, 1);
    return true;
}

static void net_reset(struct virtio_device *dev)
{
    struct net *net = dev->priv;

    net_filter_reset(net, 0);
    net_rest_tap(net);
    net->changed_mac = net->own_mac;
    net->announced = false;
    set_mac(net, net->own_mac);
    net->announce = false;
    update_link(net, false);
}

/*
 * Not RSS, nor hash reports: a TAP does not say a frame's hash, so it would have to be computed here, for
 * a choice of queues that the kernel has made already (by the flows that the guest sent on them).
 */
static uint64_t offered_features(const struct net *net)
{
    uint64_t features =
        FEATURE(VIRTIO_NET_F_MTU) | FEATURE(VIRTIO_NET_F_MAC) | FEATURE(VIRTIO_NET_F_MRG_RXBUF) |
        FEATURE(VIRTIO_NET_F_STATUS) | FEATURE(VIRTIO_NET_F_CTRL_VQ) |
        FEATURE(VIRTIO_NET_F_CTRL_RX) | FEATURE(VIRTIO_NET_F_CTRL_VLAN) |
        FEATURE(VIRTIO_NET_F_CTRL_RX_EXTRA) | FEATURE(VIRTIO_NET_F_GUEST_ANNOUNCE) |
        FEATURE(VIRTIO_NET_F_CTRL_MAC_ADDR) | FEATURE(VIRTIO_NET_F_NOTF_COAL) |
        FEATURE(VIRTIO_NET_F_SPEED_DUPLEX);

    if ((net->host_offloads & NET_OFFLOAD_CSUM) != 0)
        features |= FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
                    FEATURE(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
    if ((net->host_offloads & NET_OFFLOAD_TSO4) != 0)
        features |= FEATURE(VIRTIO_NET_F_HOST_TSO4) | FEATURE(VIRTIO_NET_F_GUEST_TSO4);
    if ((net->host_offloads & NET_OFFLOAD_TSO6) != 0)
        features |= FEATURE(VIRTIO_NET_F_HOST_TSO6) | FEATURE(VIRTIO_NET_F_GUEST_TSO6);
    if ((net->host_offloads & NET_OFFLOAD_ECN) != 0)
        features |= FEATURE(VIRTIO_NET_F_HOST_ECN) | FEATURE(VIRTIO_NET_F_GUEST_ECN);
    if ((net->host_offloads & NET_OFFLOAD_USO) != 0)
        features |= FEATURE(VIRTIO_NET_F_HOST_USO) | FEATURE(VIRTIO_NET_F_GUEST_USO4) |
                    FEATURE(VIRTIO_NET_F_GUEST_USO6);
    if (net->max_pairs > 1)
        features |= FEATURE(VIRTIO_NET_F_MQ);
    return features;
}

static void fill_config(struct net *net)
{
    struct virtio_net_config config;

    memset(&config, 0, sizeof(config));
    config.max_virtqueue_pairs = htole16((uint16_t)net->max_pairs);
    config.mtu = htole16(net->mtu);
    config.speed = htole32(SPEED_MBIT);
    config.duplex = 1;
    virtio_device_set_config(net->dev, &config, CONFIG_LEN);
    set_mac(net, net->own_mac);
    update_link(net, false);
}

static void free_net(struct net *net)
{
    for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
        if (net->fds[i] >= 0)
            close(net->fds[i]);
        free(net->rx[i].held);
        free(net->rx[i].spill);
        free(net->rx[i].iov);
    }
    pthread_mutex_destroy(&net->lock);
    free(net);
}

static int net_configure(struct net *net, const struct device_config *config, char *error,
                         size_t error_len)
{
    const char *mac = device_config_string(config, "mac");
    uint64_t queues = device_config_uint(config, "queues");
    uint64_t queue_size = device_config_uint(config, "queue-size");
    unsigned byte[6];

    if (mac == NULL || sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x", &byte[0], &byte[1], &byte[2],
                              &byte[3], &byte[4], &byte[5]) != 6) {
        snprintf(error, error_len, "%s: no address", config->name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < 6; i++)
        net->own_mac = net->own_mac << 8 | (byte[i] & 0xff);
    if (queues == 0)
        queues = MAX(config->n_vcpus, 1u);
    net->is_passt = strcmp(device_config_string(config, "backend"), "passt") == 0;
    if (net->is_passt)
        queues = 1;
    net->max_pairs = (unsigned)MIN(queues, MIN(config->n_fds, (size_t)NET_PAIRS_MAX));
    net->mtu = (uint16_t)device_config_uint(config, "mtu");
    if (net->mtu == 0)
        net->mtu = 1500;
    net->link_up = strcmp(device_config_string(config, "link"), "down") != 0;
    net->dev->n_queues = (uint16_t)(2 * net->max_pairs + 1);
    net->dev->queue_size = (uint16_t)queue_size;
    return 0;
}

static bool make_queues(struct net *net)
{
    for (unsigned i = 0; i < net->max_pairs; i++) {
        struct net_rx *rx = &net->rx[i];

        net_rx_init(rx, net, net->fds[i]);
        net->tx[i].net = net;
        net->tx[i].fd = net->fds[i];
        rx->size = net->dev->queue_size;
        rx->held = calloc(rx->size, sizeof(struct chain *));
        rx->iov = calloc(NET_IOV_MAX, sizeof(*rx->iov));
        rx->spill = malloc(NET_SPILL_LEN);
        if (rx->held == NULL || rx->iov == NULL || rx->spill == NULL)
            return false;
    }
    return true;
}

static int net_create(struct virtio_device *dev, const struct device_config *config, char *error,
                      size_t error_len)
{
    struct net *net;
    int ret;

    if (config->n_fds < 1 || config->fds[0] < 0) {
        snprintf(error, error_len, "%s: there is no interface", config->name);
        return -EBADF;
    }
    net = calloc(1, sizeof(*net));
    if (net == NULL) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < NET_PAIRS_MAX; i++)
        net->fds[i] = -1;
    pthread_mutex_init(&net->lock, NULL);
    net->dev = dev;
    net->state = dev->own;
    net->lose.run = run_lose;
    net->changed.run = run_changed;
    net->settled.run = net_control_settled;
    net->control_wait.expired = net_control_waited;
    net->retry.expired = retry;
    net->set_later.expired = net_set_tap_now;
    ret = net_configure(net, config, error, error_len);
    if (ret < 0)
        goto fail;
    for (unsigned i = 0; i < net->max_pairs; i++)
        net->fds[i] = config->fds[i];
    if (!make_queues(net) ||
        (net->is_passt && start_relay(net, (int *)(uintptr_t)config->fds, config->n_fds) < 0)) {
        snprintf(error, error_len, "%s: out of memory", config->name);
        ret = -ENOMEM;
        for (unsigned i = 0; i < NET_PAIRS_MAX; i++)
            net->fds[i] = -1; /* the caller's still */
        goto fail;
    }
    /* A queue that nobody reads would swallow frames, and the supervisor keeps a copy of it. */
    for (size_t i = net->max_pairs; i < config->n_fds && !net->is_passt; i++)
        (void)net_tap_use_queue(config->fds[i], false);
    /* Taken over: closed by net_destroy. What is left over is closed by the caller. */
    for (unsigned i = 0; i < net->max_pairs; i++)
        ((struct device_config *)config)->fds[i] = -1;
    if (!net->is_passt) {
        net->host_offloads = net_tap_offloads(net->fds[0]);
        /* What the driver was offered stays so, also where the interface is gone for the time being. */
        if (dev->adopted)
            net->host_offloads |= (unsigned)state_load64(&net->state->host_offloads) & NET_OFFLOADS;
        state_store64(&net->state->host_offloads, net->host_offloads);
    }
    net_forget_tap(net);
    dev->priv = net;
    dev->offered = offered_features(net);
    fill_config(net);
    if (!dev->adopted)
        net_reset(dev);
    return 0;
fail:
    free_net(net);
    return ret;
}

static void net_destroy(struct virtio_device *dev)
{
    struct net *net = dev->priv;

    loop_cancel_timer(dev->mmio_loop, &net->retry);
    loop_cancel_timer(dev->mmio_loop, &net->set_later);
    net_passt_destroy(net->relay);
    free_net(net);
    dev->priv = NULL;
}

const struct virtio_device_ops virtio_net_ops = {
    .name = "net",
    .id = 1,
    .request_size = sizeof(struct net_request),
    .error_status = VIRTIO_NET_ERR,
    .features = net_features,
    .queues_together = 2, /* a pair: 5.1.2 */
    .create = net_create,
    .negotiated = net_negotiated,
    .state_len = sizeof(struct net_state),
    .adopt = net_adopt,
    .queue_started = net_queue_started,
    .queue_work = net_queue_work,
    .queue_drain = net_queue_drain,
    .queue_stopped = net_queue_stopped,
    .reset = net_reset,
    .control = net_device_control,
    .answered = net_answered,
    .destroy = net_destroy,
};
