/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's calls: the supervisor connects, for a worker can reach no path. The MMIO thread asks and
 * gets the answers; a bounded number is out at one time, and the other callers wait in line.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "devices/vsock_internal.h"
#include "log.h"

/* A listener whose queue is full is asked again after this time. */
#define RETRY_NS 20000000
/* As long as this: a Linux guest gives up after 2 seconds if it is not told otherwise. */
#define ASK_SECONDS 5u

static void pump(struct vsock *vs)
{
    for (size_t i = 0; i < VSOCK_ASKS_MAX && !vs->forgetting; i++) {
        struct vsock_connection *c = TAILQ_FIRST(&vs->asking);
        struct vsock_ask *ask = &vs->asks[i];

        if (c == NULL)
            break;
        if (ask->busy)
            continue;
        vsock_wait_in(c, NULL);
        c->ask = ask;
        ask->busy = true;
        ask->connection = c;
        ask->cid = c->peer_cid;
        ask->port = c->host_port;
        ask->from_port = c->guest_port;
        ask->seqpacket = c->seqpacket;
        loop_post(vs->dev->mmio_loop, &ask->send);
    }
}

static void retry_now(struct loop_timer *timer)
{
    struct vsock *vs = container_of(timer, struct vsock, retry_timer);
    struct vsock_connection *c;

    while ((c = TAILQ_FIRST(&vs->retry)) != NULL)
        vsock_wait_in(c, &vs->asking);
    pump(vs);
}

void vsock_ask_for(struct vsock_connection *c)
{
    vsock_set_deadline(c, ASK_SECONDS);
    vsock_wait_in(c, &c->vs->asking);
    pump(c->vs);
}

void vsock_unask(struct vsock_connection *c)
{
    if (c->ask != NULL)
        c->ask->connection = NULL; /* its answer will find nobody */
    c->ask = NULL;
}

/* I/O thread. */
static void run_answer(struct loop_work *work)
{
    struct vsock_ask *ask = container_of(work, struct vsock_ask, answer);
    struct vsock_connection *c = ask->connection;
    struct vsock *vs = ask->vs;

    ask->busy = false;
    ask->connection = NULL;
    if (c == NULL) {
        if (ask->fd >= 0)
            close(ask->fd);
    } else if (ask->status == -EAGAIN) {
        c->ask = NULL;
        vsock_wait_in(c, &vs->retry);
        if (vs->retry_timer.due_ns == 0)
            loop_set_timer(vs->loop, &vs->retry_timer, RETRY_NS);
    } else if (ask->status < 0) {
        c->ask = NULL;
        vsock_count(vs, COUNT_REJECTED, 1);
        vsock_finish(c);
    } else if (c->peer_cid != VSOCK_HOST_CID) {
        c->ask = NULL;
        c->fd = ask->fd;
        c->state = VSOCK_AWAITING; /* until the deadline that it has */
        vsock_watch_input(c);
    } else {
        c->ask = NULL;
        c->fd = ask->fd;
        c->state = VSOCK_OPEN;
        vsock_set_deadline(c, 0);
        vsock_count(vs, COUNT_CONNECTED, 1);
        vsock_say(c, PENDING_RESPONSE);
        vsock_watch_input(c);
    }
    pump(vs);
}

/* I/O thread: everything that was on its way between the threads has arrived. */
static void run_forgotten(struct loop_work *work)
{
    struct vsock *vs = container_of(work, struct vsock, forgotten);

    for (size_t i = 0; i < VSOCK_ASKS_MAX; i++)
        vs->asks[i].busy = false;
    vs->forgetting = false;
    vs->unasked = true;
    pump(vs);
}

void vsock_forget_asks(struct vsock *vs)
{
    loop_cancel_timer(vs->loop, &vs->retry_timer);
    vs->unasked = false;
    if (vs->forgetting)
        return;
    vs->forgetting = true;
    loop_post(vs->dev->mmio_loop, &vs->forget);
}

/* ---- MMIO thread ---- */

static void answer(struct vsock_ask *ask, int status, int fd)
{
    ask->sent = false;
    ask->round++;
    ask->status = status;
    ask->fd = fd;
    loop_post(ask->vs->loop, &ask->answer);
}

static void run_send(struct loop_work *work)
{
    struct vsock_ask *ask = container_of(work, struct vsock_ask, send);
    uint32_t index = (uint32_t)(ask - ask->vs->asks);
    char request[64];
    int ret;

    if (ask->cid == VSOCK_HOST_CID)
        snprintf(request, sizeof(request), "%s %u",
                 ask->seqpacket ? "connect-seqpacket" : "connect", ask->port);
    else
        snprintf(request, sizeof(request), "%s %u %u %u", ask->seqpacket ? "call-seqpacket" : "call",
                 ask->cid, ask->port, ask->from_port);
    ask->sent = true;
    ret = virtio_device_ask(ask->vs->dev, ask->round * VSOCK_ASKS_MAX + index, request);
    if (ret < 0)
        answer(ask, ret, -1);
}

void vsock_answered(struct virtio_device *dev, uint32_t id, int status, const char *text, int *fds,
                    size_t n_fds)
{
    struct vsock *vs = dev->priv;
    struct vsock_ask *ask = &vs->asks[id % VSOCK_ASKS_MAX];
    int fd = -1;

    /* The number of rounds wraps where the id does. */
    if (!ask->sent || id / VSOCK_ASKS_MAX != ask->round % (UINT32_MAX / VSOCK_ASKS_MAX + 1))
        return;
    if (status == 0 && n_fds > 0) {
        fd = fds[0];
        fds[0] = -1;
    }
    if (status == 0 && fd < 0)
        status = -EPROTO;
    if (status < 0 && status != -EAGAIN)
        log_debug("%s: a call of the guest is refused: %s", dev->name, text);
    answer(ask, MIN(status, 0), fd);
}

static void run_forget(struct loop_work *work)
{
    struct vsock *vs = container_of(work, struct vsock, forget);

    for (size_t i = 0; i < VSOCK_ASKS_MAX; i++)
        if (vs->asks[i].sent) {
            vs->asks[i].sent = false;
            vs->asks[i].round++;
        }
    loop_post(vs->loop, &vs->forgotten);
}

void vsock_asks_init(struct vsock *vs)
{
    for (size_t i = 0; i < VSOCK_ASKS_MAX; i++) {
        vs->asks[i].vs = vs;
        vs->asks[i].send.run = run_send;
        vs->asks[i].answer.run = run_answer;
        vs->asks[i].fd = -1;
    }
    vs->forget.run = run_forget;
    vs->forgotten.run = run_forgotten;
    vs->retry_timer.expired = retry_now;
}
