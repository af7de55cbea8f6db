/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a driver sets in the host: which offloads a TAP may use towards it, and how many of its queues.
 * MMIO thread and thread of the control queue.
 *
 * Each change takes the lock of the host's whole network configuration (RTNL), and to take a queue out
 * of use waits for all of the host's CPUs under it. So nothing is set that is so already, and what a
 * driver changes has a price, which limits how often it can.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "devices/net_internal.h"
#include "log.h"

#define UNKNOWN UINT_MAX
/* Prices: a driver can spend a second's worth at once, and a second's worth in each second. */
#define QUEUE_PRICE_NS INT64_C(10000000)
#define OFFLOADS_PRICE_NS INT64_C(1000000)
#define CREDIT_NS INT64_C(1000000000)

unsigned net_guest_offloads(uint64_t features)
{
    unsigned offloads = 0;

    if ((features & FEATURE(VIRTIO_NET_F_GUEST_CSUM)) == 0)
        return 0;
    offloads |= NET_OFFLOAD_CSUM;
    if ((features & FEATURE(VIRTIO_NET_F_GUEST_TSO4)) != 0)
        offloads |= NET_OFFLOAD_TSO4;
    if ((features & FEATURE(VIRTIO_NET_F_GUEST_TSO6)) != 0)
        offloads |= NET_OFFLOAD_TSO6;
    if ((features & FEATURE(VIRTIO_NET_F_GUEST_ECN)) != 0 && offloads != NET_OFFLOAD_CSUM)
        offloads |= NET_OFFLOAD_ECN;
    if ((features & FEATURE(VIRTIO_NET_F_GUEST_USO4)) != 0 &&
        (features & FEATURE(VIRTIO_NET_F_GUEST_USO6)) != 0)
        offloads |= NET_OFFLOAD_USO; /* Linux knows both together only */
    return offloads;
}

static bool is_gone(const struct net *net)
{
    return atomic_load_explicit((atomic_bool *)(uintptr_t)&net->lost, memory_order_relaxed);
}

/* ---- with the lock held ---- */

static void pay(struct net *net, int64_t price)
{
    int64_t now = monotonic_ns();

    net->paid_until_ns = MIN(MAX(net->paid_until_ns, now) + price, now + 2 * CREDIT_NS);
}

/* passt has nothing to set. */
static int apply_offloads(struct net *net)
{
    int ret;

    atomic_store_explicit(&net->allowed, net->offloads, memory_order_relaxed);
    if (net->is_passt || net->set_offloads == net->offloads)
        return 0;
    pay(net, OFFLOADS_PRICE_NS);
    ret = net_tap_set_offloads(net->fds[0], net->offloads);
    net->set_offloads = ret == 0 ? net->offloads : UNKNOWN;
    if (ret < 0 && !is_gone(net))
        log_host("%s: cannot set the interface's offloads: %s", net->dev->name, strerror(-ret));
    return ret;
}

/* A driver that resets the device and starts again cannot be made to wait: the interface is told later. */
static void apply_or_later(struct net *net)
{
    int64_t wait = net->paid_until_ns - CREDIT_NS - monotonic_ns();

    if (wait <= 0 || net->set_offloads == net->offloads) {
        (void)apply_offloads(net);
        return;
    }
    atomic_store_explicit(&net->allowed, net->offloads, memory_order_relaxed);
    loop_set_timer(net->dev->mmio_loop, &net->set_later, wait);
}

static int apply_pairs(struct net *net)
{
    int ret = 0;

    for (unsigned i = 0; i < net->max_pairs && ret == 0 && !net->is_passt; i++) {
        unsigned use = i < net->pairs;

        if (net->set_use[i] == use)
            continue;
        pay(net, QUEUE_PRICE_NS);
        ret = net_tap_use_queue(net->fds[i], use);
        net->set_use[i] = ret == 0 ? use : UNKNOWN;
    }
    if (ret < 0 && !is_gone(net))
        log_host("%s: cannot set the interface's queues: %s", net->dev->name, strerror(-ret));
    return ret;
}

static void forget(struct net *net)
{
    net->set_offloads = UNKNOWN;
    for (unsigned i = 0; i < NET_PAIRS_MAX; i++)
        net->set_use[i] = UNKNOWN;
}

/* ---- */

int net_set_pairs(struct net *net, unsigned pairs)
{
    int ret;

    if (pairs == 0 || pairs > net->max_pairs)
        return -EINVAL;
    pthread_mutex_lock(&net->lock);
    net->pairs = pairs;
    state_store64(&net->state->pairs, pairs);
    ret = apply_pairs(net);
    pthread_mutex_unlock(&net->lock);
    return is_gone(net) ? 0 : ret; /* the next TAP gets it so */
}

int net_set_guest_offloads(struct net *net, uint64_t features)
{
    const uint64_t known = FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
                           FEATURE(VIRTIO_NET_F_GUEST_TSO6) | FEATURE(VIRTIO_NET_F_GUEST_ECN) |
                           FEATURE(VIRTIO_NET_F_GUEST_USO4) | FEATURE(VIRTIO_NET_F_GUEST_USO6);
    int ret;

    if ((features & ~(known & net->dev->features)) != 0) /* 5.1.6.5.8.1 */
        return -EINVAL;
    pthread_mutex_lock(&net->lock);
    net->offloads = net_guest_offloads(features);
    state_store64(&net->state->offloads, net->offloads);
    ret = apply_offloads(net);
    pthread_mutex_unlock(&net->lock);
    return is_gone(net) ? 0 : ret;
}

void net_set_tap(struct net *net, unsigned pairs, unsigned offloads)
{
    pthread_mutex_lock(&net->lock);
    net->pairs = pairs;
    net->offloads = offloads;
    state_store64(&net->state->pairs, pairs);
    state_store64(&net->state->offloads, offloads);
    (void)apply_pairs(net);
    apply_or_later(net);
    pthread_mutex_unlock(&net->lock);
}

void net_set_tap_now(struct loop_timer *timer)
{
    struct net *net = container_of(timer, struct net, set_later);

    pthread_mutex_lock(&net->lock);
    (void)apply_offloads(net);
    pthread_mutex_unlock(&net->lock);
}

void net_rest_tap(struct net *net)
{
    pthread_mutex_lock(&net->lock);
    net->pairs = 1;
    net->offloads = 0;
    state_store64(&net->state->pairs, 1);
    state_store64(&net->state->offloads, 0);
    atomic_store_explicit(&net->allowed, 0, memory_order_relaxed);
    (void)apply_pairs(net);
    pthread_mutex_unlock(&net->lock);
}

void net_set_new_tap(struct net *net)
{
    pthread_mutex_lock(&net->lock);
    forget(net);
    (void)apply_pairs(net);
    (void)apply_offloads(net);
    pthread_mutex_unlock(&net->lock);
}

void net_forget_tap(struct net *net)
{
    pthread_mutex_lock(&net->lock);
    forget(net);
    pthread_mutex_unlock(&net->lock);
}

int64_t net_set_wait(struct net *net)
{
    int64_t wait;

    pthread_mutex_lock(&net->lock);
    wait = net->paid_until_ns - CREDIT_NS;
    if (wait > 0)
        wait -= monotonic_ns();
    pthread_mutex_unlock(&net->lock);
    return MAX(wait, 0);
}
