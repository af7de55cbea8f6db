/* SPDX-License-Identifier: Apache-2.0 */
/* A queue in its I/O thread: taking chains, publishing what is done, interrupts, start, stop, pause. */
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include "log.h"
#include "stats.h"
#include "virtio_device_internal.h"

/* Chains taken per queue and turn, so that queues of one thread share it fairly. */
#define QUEUE_BUDGET 64
/* Requests that are submitted together at most, when there is a choice. */
#define SUBMIT_BATCH 8u
/* How long the last requests take until more is known: too long for an early interrupt. */
#define TAIL_FIRST_NS INT64_C(1000000000)
/* Without polling, an interrupt that waits for company waits asleep: at least for as long as a sleep is
 * worth its price. */
#define NAP_MIN_NS 20000
/* Interrupts until one waits to see whether there would be company: at first, and at most. */
#define PROBE_FIRST 16u
#define PROBE_MAX 1024u
/* An interrupt that waits for company waits for so many times its own cost, at most. */
#define PATIENCE_MAX 8u
/* How long a queue waits when the host has no memory: at first, and at most. */
#define SHORTAGE_FIRST_NS INT64_C(10000000)
#define SHORTAGE_MAX_NS INT64_C(1000000000)
/* How long a driver may take from its acknowledgement to its look at the rings. */
#define RECHECK_NS 1000000

static int64_t coalesce_ns(struct virtio_queue *q)
{
    return 1000 * (int64_t)atomic_load_explicit(&q->coalesce_us, memory_order_relaxed);
}

/* Publishes what was completed. True if anything was. */
static bool flush(struct virtio_queue *q)
{
    unsigned n = virtqueue_unpublished(q->vq), foretold;

    if (n == 0)
        return false;
    stat_add(&q->stats->batches, 1);
    if (q->full_ns != 0 && virtqueue_in_flight(q->vq) == 0) {
        q->tail_ns = (3 * q->tail_ns + monotonic_ns() - q->full_ns) / 4;
        q->full_ns = 0;
    }
    foretold = MIN(q->early, n);
    q->early -= foretold;
    q->completed += n - foretold;
    if (virtqueue_flush(q->vq)) {
        q->completed += foretold; /* too late: the driver has looked at the ring already */
        if (foretold > 0)
            q->tail_ns = MIN(2 * q->tail_ns, TAIL_FIRST_NS); /* not so soon again */
        if (!q->irq_wanted) {
            bool coalesces = coalesce_ns(q) > 0;

            q->wanted_ns = q->may_hold || coalesces ? monotonic_ns() : 0;
            if (coalesces)
                q->completed = n; /* those before were none of this interrupt's */
        }
        q->irq_wanted = true;
    }
    return true;
}

static bool still_adding(const struct virtio_queue *q, int64_t now)
{
    return now - q->arrival_ns <
           atomic_load_explicit(&q->dev->irq_cost_ns, memory_order_relaxed);
}

/*
 * For the same driver, requests go to the kernel in batches: some at a time while many are still to
 * come, one by one at the end, so that the last one is not late for the interrupt.
 */
static bool hold_submission(const struct virtio_queue *q)
{
    unsigned outstanding = virtqueue_in_flight(q->vq) + q->completed;
    unsigned waiting = loop_unsubmitted(q->loop);

    if (!q->may_hold || waiting == 0 || outstanding >= q->depth || !loop_polling_pays(q->loop))
        return false;
    return waiting < MIN(SUBMIT_BATCH, (q->depth - outstanding + 1) / 2) &&
           still_adding(q, monotonic_ns());
}

/*
 * To fetch granted requests takes a call, whether one or many: for the same driver, they wait in the ring
 * as others wait for their submission. Those are submitted at once then, for the same reason.
 */
static bool hold_fetch(struct virtio_queue *q)
{
    unsigned waiting = virtqueue_sharing(q->vq), outstanding;

    if (waiting == 0 || !q->may_hold || !loop_polling_pays(q->loop))
        return false;
    if (waiting > q->sharing)
        q->arrival_ns = monotonic_ns();
    q->sharing = MAX(q->sharing, waiting);
    outstanding = virtqueue_in_flight(q->vq) + q->completed + waiting;
    return outstanding < q->depth && waiting < MIN(SUBMIT_BATCH, (q->depth - outstanding + 1) / 2) &&
           still_adding(q, monotonic_ns());
}

enum hold { HOLD_NOT, HOLD_SPINNING, HOLD_ASLEEP };

/*
 * The interrupt for few requests stops the driver before it has added the next one, however many it could
 * keep outstanding: only waiting shows that, now and then. More rarely each time that it was in vain:
 * interrupts of a driver that keeps no more outstanding hardly ever wait. With polling, those of one that
 * waits for each request never do: one that does not is mostly seen to add before it is stopped.
 */
static bool probe(struct virtio_queue *q)
{
    if (q->probing)
        return true;
    if (--q->probe_in > 0)
        return false;
    q->probe_in = q->probe_next;
    q->probe_next = MIN(2 * q->probe_next, PROBE_MAX);
    q->probing = true;
    return true;
}

/*
 * The driver added nothing for so long that it was told what is done, less than it is believed to keep
 * outstanding. It may have no more; or it was only held up, by an interrupt of its own or by another
 * guest. That shows when it comes back: if it has more outstanding then, more patience pays; if not, less
 * does, and at the second time in a row it is believed.
 */
static void judge_gap(struct virtio_queue *q, bool more)
{
    if (q->gap_at == 0)
        return;
    q->patience = more ? MIN(2 * q->patience, PATIENCE_MAX) : MAX(q->patience / 2, 1u);
    q->gap_at = 0;
}

static void note_gap(struct virtio_queue *q)
{
    unsigned outstanding = MAX(virtqueue_in_flight(q->vq) + q->completed, 1u), before = q->gap_at;

    judge_gap(q, false);
    q->gap_at = outstanding;
    if (before == 0)
        return;
    q->depth = MIN(q->depth, MAX(before, outstanding));
    q->probe_in = q->probe_next = PROBE_FIRST; /* the belief is new */
}

/*
 * A fast backend has a request done while the driver still prepares the next one. An interrupt for
 * each would cost the driver two traps (InterruptStatus, InterruptACK), in which it adds nothing, so
 * that the next request comes alone again. So the interrupt waits, while what is done is published
 * already, until all that the driver is believed to keep outstanding is done - then it has nothing
 * else to do - or until it has added nothing for as long as an interrupt would have cost it (or, where
 * that pays, longer: judge_gap). A driver that waits for each request keeps one outstanding: its
 * interrupts never wait.
 *
 * Between the interrupt and its acknowledgement, after which the driver looks at the ring, the last
 * requests go on: where they are usually done within that time, the interrupt does not wait for them.
 * If they are late for once, an interrupt of their own follows: virtqueue_flush asks the ring.
 *
 * Where polling is off, or does not pay, the loop sleeps meanwhile, and the driver need not notify it:
 * it wakes up by itself, and finds many where there had been a trap for each.
 */
static enum hold hold_interrupt(struct virtio_queue *q)
{
    bool polls = loop_polling_pays(q->loop), done = q->completed >= q->depth;
    int64_t now, cost, patience;

    if (!q->may_hold || (done && polls && q->depth == 1))
        return HOLD_NOT;
    now = monotonic_ns();
    cost = atomic_load_explicit(&q->dev->irq_cost_ns, memory_order_relaxed);
    if (!polls)
        cost = MAX(cost, NAP_MIN_NS);
    if (!done && polls && q->full_ns != 0 && now - q->full_ns + cost >= q->tail_ns)
        q->early = virtqueue_in_flight(q->vq);
    if ((done || q->early > 0) && !probe(q)) {
        judge_gap(q, false);
        return HOLD_NOT;
    }
    q->early = 0;
    patience = q->probing ? cost : cost * q->patience;
    if (now - q->arrival_ns < patience &&
        now - q->wanted_ns < MIN(HOLD_MAX_COSTS * cost, q->dev->irq_hold_max_ns)) {
        if (polls)
            return HOLD_SPINNING;
        loop_set_timer(q->loop, &q->hold_timer,
                       MIN(q->arrival_ns + patience - now, MAX(q->dev->irq_nap_max_ns, NAP_MIN_NS)));
        return HOLD_ASLEEP;
    }
    if (!q->added)
        return HOLD_NOT; /* these are late for the last interrupt: the driver is busy with that one */
    if (q->probing)
        q->depth = MAX(q->depth, q->completed);
    else
        note_gap(q);
    return HOLD_NOT;
}

/*
 * The driver has said how long it wants to wait for company. The loop may sleep meanwhile; that no
 * interrupt comes that the driver does not want any more is looked at when it is over.
 */
static bool coalesce(struct virtio_queue *q)
{
    uint32_t most = atomic_load_explicit(&q->coalesce_buffers, memory_order_relaxed);
    int64_t ns = coalesce_ns(q), left;

    if (ns == 0 || (most != 0 && q->completed >= most))
        return false;
    left = q->wanted_ns + ns - monotonic_ns();
    if (left <= 0)
        return false;
    if (q->hold_timer.due_ns == 0 || q->hold_timer.due_ns > q->wanted_ns + ns + left / 8)
        loop_set_timer(q->loop, &q->hold_timer, left);
    return true;
}

/* The loop turns, and so the queue is looked at. */
static void look_again(struct loop_timer *timer)
{
    (void)timer;
}

void virtio_queue_coalesce(struct virtio_device *dev, unsigned index, uint32_t buffers, uint32_t us)
{
    struct virtio_queue *q = &dev->queues[index];

    atomic_store_explicit(&q->coalesce_buffers, buffers, memory_order_relaxed);
    atomic_store_explicit(&q->coalesce_us, us, memory_order_relaxed);
    loop_post(q->loop, &q->kick); /* one that waits now may wait for less */
}

static void deliver_interrupt(struct virtio_queue *q)
{
    bool waited = q->depth > 1 || q->hold_timer.due_ns != 0 || coalesce_ns(q) > 0;

    loop_cancel_timer(q->loop, &q->hold_timer);
    q->irq_wanted = q->napping = q->probing = q->added = false;
    q->delivered = q->completed + q->early;
    q->completed = 0;
    /* The driver may have come for them by itself meanwhile. */
    if (waited && virtqueue_driver_lag(q->vq) < DRIVER_BEHIND) {
        q->early = 0;
        return;
    }
    stat_add(&q->stats->interrupts, 1);
    virtio_device_interrupt(q->dev, VIRTIO_MMIO_INT_VRING);
    if (q->loop == q->dev->mmio_loop)
        loop_expect(q->loop); /* the driver will read InterruptStatus */
}

static void note_arrival(struct virtio_queue *q)
{
    unsigned depth = q->depth, outstanding;
    enum driver_lag lag;

    if (!q->may_hold)
        return;
    q->arrival_ns = monotonic_ns();
    q->added = true;
    lag = virtqueue_driver_lag(q->vq);
    if (lag != DRIVER_BEHIND)
        q->delivered = 0; /* it has looked at them */
    if (lag < DRIVER_BEHIND) {
        q->completed = 0; /* and at these */
        q->irq_wanted = false;
    }
    /*
     * The driver went on adding after an interrupt that said that all it has is done: there is more,
     * and only more patience can tell how much. Less than that shows above.
     */
    if (q->delivered > 0)
        depth = MAX(depth, 2 * q->delivered);
    /* What was done at once is not published yet. */
    outstanding = virtqueue_in_flight(q->vq) + virtqueue_unpublished(q->vq) + q->completed;
    if (outstanding > q->gap_at)
        judge_gap(q, true);
    if (q->probing && outstanding > q->depth)
        q->probe_in = q->probe_next = PROBE_FIRST; /* there is company, perhaps more of it */
    q->depth = MIN(MAX(depth, outstanding), q->setup.size);
    q->full_ns = outstanding >= q->depth && virtqueue_in_flight(q->vq) > 0 ? q->arrival_ns : 0;
}

static void run_recheck(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, recheck);

    if (q->running && q->recheck_timer.due_ns == 0)
        loop_set_timer(q->loop, &q->recheck_timer, RECHECK_NS);
}

static void recheck_now(struct loop_timer *timer)
{
    struct virtio_queue *q = container_of(timer, struct virtio_queue, recheck_timer);

    if (virtqueue_driver_lag(q->vq) >= DRIVER_BEHIND)
        virtio_device_interrupt(q->dev, VIRTIO_MMIO_INT_VRING);
}

static void finish_pause(struct virtio_queue *q)
{
    virtqueue_forget_mapping(q->vq);
    q->pausing = false;
    q->is_paused = true;
    loop_post(q->dev->mmio_loop, &q->paused);
}

/* The queue is to become quiet. True when it did. */
static bool drain(struct virtio_queue *q)
{
    if (q->dev->ops->queue_drain != NULL && virtqueue_in_flight(q->vq) > 0)
        q->dev->ops->queue_drain(q->dev, q->vq);
    flush(q);
    if (q->irq_wanted)
        deliver_interrupt(q);
    if (virtqueue_in_flight(q->vq) > 0)
        return false; /* its completion turns the loop, and we are called again */
    if (q->stopping && q->dev->ops->queue_idle != NULL && !q->dev->ops->queue_idle(q->dev, q->vq))
        return false; /* likewise */
    if (q->pausing)
        finish_pause(q);
    if (q->stopping) {
        q->running = false;
        q->stopping = false;
        q->poller.hot = false;
        loop_remove_poller(q->loop, &q->poller);
        loop_cancel_timer(q->loop, &q->recheck_timer);
        loop_cancel_timer(q->loop, &q->hold_timer);
        loop_cancel_timer(q->loop, &q->shortage_timer);
        if (q->dev->ops->queue_stopped != NULL)
            q->dev->ops->queue_stopped(q->dev, q->vq);
        virtqueue_stop(q->vq);
        loop_post(q->dev->mmio_loop, &q->stopped);
    }
    return true;
}

static bool is_active(const struct virtio_queue *q)
{
    return q->running && !q->stopping && !q->pausing && !q->is_paused && !q->stalled &&
           (status_of(q->dev) & VIRTIO_CONFIG_S_NEEDS_RESET) == 0;
}

static bool may_look(const struct virtio_queue *q)
{
    return is_active(q) && !q->held;
}

/* The guest's memory cannot be reached now; `ret` says why. What is in flight goes on. */
static void stall(struct virtio_queue *q, int ret)
{
    q->stalled = true;
    if (ret == -EAGAIN) {
        q->dev->memory_stale(q->dev);
        return;
    }
    q->shortage_ns = q->shortage_ns == 0 ? SHORTAGE_FIRST_NS : MIN(2 * q->shortage_ns, SHORTAGE_MAX_NS);
    loop_set_timer(q->loop, &q->shortage_timer, q->shortage_ns);
}

static void shortage_over(struct loop_timer *timer)
{
    container_of(timer, struct virtio_queue, shortage_timer)->stalled = false;
}

/* What its predecessor had completed is published, even if nothing is to be popped. */
static void map_adopted(struct virtio_queue *q)
{
    int ret = virtqueue_map(q->vq);

    q->unmapped = virtqueue_is_later(ret);
    if (q->unmapped)
        stall(q, ret);
    else if (ret < 0)
        virtio_device_broken(q->dev, virtqueue_error(q->vq));
}

static bool queue_poll(struct loop_poller *poller)
{
    struct virtio_queue *q = container_of(poller, struct virtio_queue, poller);
    struct virtio_device *dev = q->dev;
    int n, taken = 0;
    bool progress, adopts;

    if (q->stopping || q->pausing)
        return drain(q);
    adopts = q->unmapped && is_active(q);
    if (adopts)
        map_adopted(q);
    progress = flush(q) || (adopts && !q->unmapped);
    /* Broken: a pop of the device's own found it (virtio_queue_active); it is reported here. */
    if (may_look(q) && hold_fetch(q)) {
        progress = true;
    } else if (may_look(q) && (virtqueue_has_work(q->vq) || virtqueue_broken(q->vq))) {
        loop_found(q->loop);
        q->sharing = 0;
        virtqueue_set_serving(q->vq, true);
        n = dev->ops->queue_work(dev, q->vq, QUEUE_BUDGET);
        virtqueue_set_serving(q->vq, false);
        if (n > 0) {
            taken = n;
            q->shortage_ns = 0;
            note_arrival(q);
            progress = true;
        } else if (virtqueue_is_later(n)) {
            stall(q, n);
        } else if (n < 0) {
            virtio_device_broken(dev, virtqueue_error(q->vq));
        }
        progress |= n < 0;
    }
    progress |= flush(q); /* what was done at once */
    q->napping = false;
    if (q->irq_wanted && !coalesce(q)) {
        enum hold hold = hold_interrupt(q);

        q->napping = hold == HOLD_ASLEEP;
        progress |= hold != HOLD_ASLEEP;
        if (hold == HOLD_NOT)
            deliver_interrupt(q);
    }
    if (hold_submission(q)) {
        loop_submit_later(q->loop);
        progress = true;
    } else if (taken > 0) {
        loop_submit_now(q->loop); /* even if another queue of this loop would wait */
    }
    return progress;
}

static bool queue_arm(struct loop_poller *poller)
{
    struct virtio_queue *q = container_of(poller, struct virtio_queue, poller);

    /* Who naps looks at the ring when it is over. */
    return may_look(q) && !q->napping && virtqueue_enable_notify(q->vq);
}

static void queue_disarm(struct loop_poller *poller)
{
    struct virtio_queue *q = container_of(poller, struct virtio_queue, poller);

    if (may_look(q))
        virtqueue_disable_notify(q->vq);
}

static void run_start(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, start);

    int ret = q->adopting ? virtqueue_adopt(q->vq, &q->setup) : -ENOENT;

    if (ret == -EBADMSG && virtio_device_set_needs_reset(q->dev))
        log_error("%s: needs reset: what was kept of its queue %u is damaged", q->dev->name,
                  virtqueue_index(q->vq));
    /* Checked when QueueReady was written: cannot fail. */
    if (ret < 0 && virtqueue_start(q->vq, &q->setup) < 0)
        virtio_device_broken(q->dev, "queue set-up changed under us");
    q->unmapped = q->adopting;
    q->adopting = false;
    q->running = true;
    q->stalled = false;
    q->shortage_ns = 0;
    q->held = false;
    q->is_paused = false;
    q->irq_wanted = q->napping = q->probing = q->added = false;
    q->completed = q->delivered = q->early = q->sharing = 0;
    q->full_ns = 0;
    q->tail_ns = TAIL_FIRST_NS;
    q->depth = 1;
    q->patience = 1;
    q->gap_at = 0;
    q->probe_in = q->probe_next = PROBE_FIRST;
    q->may_hold = q->dev->ops->requests && virtio_has_feature(q->dev, VIRTIO_RING_F_EVENT_IDX);
    q->poller.hot = true;
    if (q->dev->ops->queue_started != NULL)
        q->dev->ops->queue_started(q->dev, q->vq);
    loop_add_poller(q->loop, &q->poller);
}

static void run_stop(struct loop_work *work)
{
    container_of(work, struct virtio_queue, stop)->stopping = true;
}

/* The loop turns, and so the queue is looked at: there is nothing else to do. */
static void run_kick(struct loop_work *work)
{
    (void)work;
}

static void run_pause(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, pause);

    if (q->running)
        q->pausing = true;
    else
        finish_pause(q);
}

static void run_resume(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, resume);

    q->is_paused = false;
    q->stalled = false;
    loop_cancel_timer(q->loop, &q->shortage_timer);
}

static void run_leave(struct loop_work *work)
{
    struct virtio_queue *q = container_of(work, struct virtio_queue, leave);

    loop_post(q->dev->mmio_loop, &q->left);
}

void virtio_queue_hold(struct virtio_device *dev, const struct virtqueue *vq)
{
    queue_of(dev, vq)->held = true;
}

/* Called in the loop's thread, so the loop turns and looks at the queue before it sleeps. */
void virtio_queue_release(struct virtio_device *dev, const struct virtqueue *vq)
{
    queue_of(dev, vq)->held = false;
}

bool virtio_queue_active(struct virtio_device *dev, const struct virtqueue *vq)
{
    const struct virtio_queue *q = queue_of(dev, vq);

    /* What a dead process had completed is published first: the driver may offer these buffers anew. */
    return is_active(q) && !q->unmapped;
}

struct event_loop *virtio_queue_loop(struct virtio_device *dev, const struct virtqueue *vq)
{
    return queue_of(dev, vq)->loop;
}

void virtio_queue_init(struct virtio_queue *q)
{
    q->start.run = run_start;
    q->stop.run = run_stop;
    q->kick.run = run_kick;
    q->recheck.run = run_recheck;
    q->recheck_timer.expired = recheck_now;
    q->hold_timer.expired = look_again;
    q->shortage_timer.expired = shortage_over;
    q->pause.run = run_pause;
    q->resume.run = run_resume;
    q->leave.run = run_leave;
    q->poller.poll = queue_poll;
    q->poller.arm = queue_arm;
    q->poller.disarm = queue_disarm;
}
