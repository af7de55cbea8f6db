/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TURNS_MAX 10000
static void finished(struct virtio_mmio *mmio, void *arg, const struct mmio_request *request)
{
    struct machine *m = arg;

    (void)mmio;
    if (m->deferred == 0)
        fake_die("finished without a request that waits");
    m->deferred--;
    m->hv->ops->finish_request(m->hv, request);
}

static void memory_stale(struct virtio_device *dev)
{
    struct machine *m = dev->worker;

    atomic_store(&m->stale, true);
}

static void paused(struct virtio_device *dev)
{
    struct machine *m = dev->worker;

    if (!m->pausing)
        fake_die("paused without being asked");
    m->pausing = false;
    m->drops++;
    if (m->invalidating) {
        guest_memory_drop(m->memory);
        m->invalidating = false;
        m->hv->ops->finish_request(m->hv, &m->invalidate);
    } else {
        guest_memory_drop_stale(m->memory);
    }
    virtio_device_resume(dev);
}

static void serve(struct machine *m, struct mmio_request *request)
{
    uint32_t offset = (uint32_t)(request->addr - MACHINE_BASE);

    switch (request->kind) {
    case REQUEST_READ:
    case REQUEST_WRITE:
        if (virtio_mmio_is_notify(offset, request)) {
            m->hv->ops->finish_request(m->hv, request);
            if (!virtio_mmio_access(m->mmio, offset, request))
                fake_die("a notification was left open");
        } else if (virtio_mmio_access(m->mmio, offset, request)) {
            m->hv->ops->finish_request(m->hv, request);
        } else {
            m->deferred++;
        }
        break;
    case REQUEST_INVALIDATE:
        m->invalidate = *request;
        m->invalidating = true;
        break;
    case REQUEST_UNKNOWN:
        request->data = UINT64_MAX;
        m->hv->ops->finish_request(m->hv, request);
        break;
    }
}

bool machine_turn(struct machine *m)
{
    struct mmio_request request;
    bool work = false;
    int ret;

    while (m->hv->ops->next_request(m->hv, &request) == 1) {
        work = true;
        serve(m, &request);
    }
    if (!m->pausing && (atomic_exchange(&m->stale, false) || m->invalidating)) {
        work = true;
        m->pausing = true;
        virtio_device_pause(m->dev, paused);
    }
    ret = event_loop_turn(m->loop, 0);
    if (ret < 0)
        fake_die("event_loop_turn: %s", strerror(-ret));
    return work || ret > 0;
}

void machine_settle(struct machine *m)
{
    for (unsigned i = 0; machine_turn(m); i++) {
        if (i == TURNS_MAX)
            fake_die("still work after %u turns", i);
    }
}

static uint64_t access_wait(struct machine *m)
{
    int64_t end = monotonic_ns() + INT64_C(30000000000); /* a reset waits for the host's I/O */
    uint64_t data;

    while (!fake_answered(m->fake, 0, &data)) {
        if (monotonic_ns() > end)
            fake_die("the access was never answered");
        machine_turn(m);
    }
    if (!m->io_threaded)
        machine_settle(m);
    if (m->picture != NULL && !m->succeeding) {
        machine_succeed(m, false);
        return access_wait(m); /* by the successor, unless it was answered before */
    }
    return data;
}

uint64_t machine_read(struct machine *m, uint32_t offset, unsigned size)
{
    fake_trap(m->fake, 0, REQUEST_READ, MACHINE_BASE + offset, size, 0);
    return access_wait(m);
}

void machine_write(struct machine *m, uint32_t offset, unsigned size, uint64_t value)
{
    fake_trap(m->fake, 0, REQUEST_WRITE, MACHINE_BASE + offset, size, value);
    access_wait(m);
}

void machine_write_start(struct machine *m, unsigned vcpu, uint32_t offset, uint64_t value)
{
    fake_trap(m->fake, vcpu, REQUEST_WRITE, MACHINE_BASE + offset, 4, value);
    machine_turn(m);
}

void machine_invalidate(struct machine *m)
{
    fake_trap(m->fake, 1, REQUEST_INVALIDATE, 0, 4, UINT64_MAX);
    machine_settle(m);
}

void machine_balloon_out(struct machine *m, uint64_t gpa, size_t pages)
{
    fake_balloon_out(m->fake, gpa, pages);
    machine_invalidate(m);
}

static const struct loop_config loop_config = {.poll_max_ns = 50000, .entries = 64};
static const struct loop_config asleep_config = {.entries = 64};

static void *io_main(void *arg)
{
    struct machine *m = arg;
    int ret = event_loop_create(&loop_config, &m->io_loop);

    if (ret != 0)
        fake_die("event_loop_create: %s", strerror(-ret));
    pthread_barrier_wait(&m->ready);
    ret = event_loop_run(m->io_loop);
    if (ret != 0)
        fake_die("event_loop_run: %s", strerror(-ret));
    /* The device lets go of its loop in between: see machine_destroy. */
    pthread_barrier_wait(&m->ready);
    pthread_barrier_wait(&m->ready);
    event_loop_destroy(m->io_loop);
    return NULL;
}

/* ---- successors ---- */

struct machine_picture {
    struct fake_picture *fake;
    uint64_t base;     /* of the guest's heap, which is all that the tests use ... */
    size_t len;        /* ... and what of it */
    size_t state_len;
    _Alignas(4096) uint8_t bytes[]; /* the state, then the heap */
};

void machine_take_picture(struct machine *m)
{
    uint64_t base = m->heap_base;
    size_t len = (size_t)(m->heap[0].next - base);
    size_t state_len = offsetof(struct device_state, queues) +
                       m->dev->n_queues * sizeof(struct state_queue);
    struct machine_picture *picture =
        aligned_alloc(4096, (sizeof(*picture) + len + state_len + 4095) & ~(size_t)4095);

    if (picture == NULL || m->picture != NULL)
        fake_die("no memory, or a second picture");
    picture->fake = fake_picture(m->fake);
    picture->base = base;
    picture->len = len;
    picture->state_len = state_len;
    memcpy(picture->bytes, m->state, state_len);
    memcpy(picture->bytes + state_len, fake_ram(m->fake, base, len), len);
    m->picture = picture;
}

void *machine_pictured_state(struct machine *m, size_t *len)
{
    *len = m->picture->state_len;
    return m->picture->bytes;
}

static void end_device(struct machine *m)
{
    machine_write32(m, VIRTIO_MMIO_STATUS, 0);
    while (!virtio_device_detach(m->dev))
        machine_turn(m);
    virtio_mmio_destroy(m->mmio);
}

static struct virtio_environment environment(struct machine *m)
{
    return (struct virtio_environment){
        .hv = m->hv,
        .memory = m->memory,
        .grants = m->grants,
        .mmio_loop = m->loop,
        .io_loops = &m->io_loop,
        .n_io_loops = 1,
        .memory_stale = memory_stale,
        .ask = m->ask,
        .worker = m,
        .state = m->state,
    };
}

void machine_succeed(struct machine *m, bool sacrifice)
{
    struct machine_picture *picture = m->picture;
    struct virtio_environment env;
    char error[256] = "";
    int ret;

    m->succeeding = true;
    machine_settle(m);
    end_device(m);
    virtio_device_destroy(m->dev);
    guest_memory_drop(m->memory);
    memcpy(m->state, picture->bytes, picture->state_len);
    memcpy(fake_ram(m->fake, picture->base, picture->len), picture->bytes + picture->state_len,
           picture->len);
    fake_succeed(m->fake, picture->fake);
    free(picture->fake);
    free(picture);
    m->picture = NULL;
    if (m->meanwhile != NULL)
        m->meanwhile(m->meanwhile_arg);
    env = environment(m);
    env.sacrifice = sacrifice;
    ret = virtio_device_create(m->ops, &env, m->device, m->stats, &m->dev, error, sizeof(error));
    if (ret != 0 || virtio_mmio_create(m->dev, finished, m, &m->mmio) != 0)
        fake_die("the successor's device: %s (%s)", strerror(-ret), error);
    virtio_device_resume(m->dev);
    m->succeeding = false;
    machine_settle(m);
}

int machine_try_create(const struct machine_config *config, struct machine **out, char *error,
                       size_t error_len)
{
    static const struct machine_config defaults;
    struct machine *m = calloc(1, sizeof(*m));
    const struct virtio_device_ops *ops;
    const struct device_config *device;
    struct virtio_environment env;
    const struct ram_bank *banks;
    size_t n_banks;
    int ret;

    if (config == NULL)
        config = &defaults;
    if (m == NULL)
        fake_die("no memory");
    m->stats = aligned_alloc(_Alignof(struct device_stats), sizeof(*m->stats));
    if (m->stats == NULL)
        fake_die("no memory");
    memset(m->stats, 0, sizeof(*m->stats));
    m->fake = fake_create(&config->hypervisor);
    m->hv = fake_seam(m->fake);
    banks = fake_banks(m->fake, &n_banks);
    ret = guest_memory_create(m->hv, banks, n_banks, &m->memory);
    if (ret != 0)
        fake_die("guest_memory_create: %s", strerror(-ret));
    for (size_t i = 0; i < MIN(n_banks, ARRAY_SIZE(m->heap)); i++)
        m->heap[i] = guest_heap(m->fake, banks[i].base, banks[i].size - GUEST_CHUNK_SIZE);
    if (config->grants || getenv("VIOD_FAKE_GRANTS") != NULL)
        if (grant_memory_create(m->hv, &m->grants) != 0)
            fake_die("no memory");
    ret = event_loop_create(config->no_polling ? &asleep_config : &loop_config, &m->loop);
    if (ret != 0)
        fake_die("event_loop_create: %s", strerror(-ret));
    m->io_loop = m->loop;
    m->io_threaded = config->io_thread;
    if (m->io_threaded) {
        pthread_barrier_init(&m->ready, NULL, 2);
        if (pthread_create(&m->thread, NULL, io_main, m) != 0)
            fake_die("pthread_create");
        pthread_barrier_wait(&m->ready);
    }

    m->heap_base = banks[0].base;
    if (config->state) {
        m->state = mmap(NULL, sizeof(*m->state), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m->state == MAP_FAILED)
            fake_die("no memory");
    }
    env = environment(m);
    m->test = config->test;
    device = config->device == NULL ? &m->test.base : config->device;
    ops = config->ops == NULL ? &test_device_ops : config->ops;
    if (device == &m->test.base) {
        test_device_config_init(&m->test);
        m->test.base.base = MACHINE_BASE;
        m->test.base.irq = MACHINE_IRQ;
        m->test.base.n_vcpus = 1;
    }
    m->ops = ops;
    m->device = device;
    ret = m->hv->ops->claim_mmio(m->hv, MACHINE_BASE, VIRTIO_MMIO_WINDOW);
    if (ret != 0)
        fake_die("claim_mmio: %s", strerror(-ret));
    if (m->grants != NULL)
        ((struct device_config *)device)->grant_usage = true; /* as a worker is told */
    ret = virtio_device_create(ops, &env, device, m->stats, &m->dev, error, error_len);
    if (ret == 0) {
        ret = virtio_mmio_create(m->dev, finished, m, &m->mmio);
        if (ret != 0)
            fake_die("virtio_mmio_create: %s", strerror(-ret));
        virtio_device_resume(m->dev);
        m->hv->ops->lock_down(m->hv);
        *out = m;
    } else {
        machine_destroy(m);
    }
    return ret;
}

struct machine *machine_create(const struct machine_config *config)
{
    char error[256] = "";
    struct machine *m;
    int ret = machine_try_create(config, &m, error, sizeof(error));

    if (ret != 0)
        fake_die("virtio_device_create: %s (%s)", strerror(-ret), error);
    return m;
}

void machine_destroy(struct machine *m)
{
    if (m->dev != NULL)
        end_device(m);
    if (m->io_threaded) {
        loop_stop(m->io_loop);
        pthread_barrier_wait(&m->ready);
    }
    if (m->dev != NULL)
        virtio_device_destroy(m->dev);
    if (m->io_threaded) {
        pthread_barrier_wait(&m->ready);
        pthread_join(m->thread, NULL);
        pthread_barrier_destroy(&m->ready);
    }
    event_loop_destroy(m->loop);
    guest_memory_destroy(m->memory);
    grant_memory_destroy(m->grants);
    m->hv->ops->close(m->hv);
    fake_destroy(m->fake);
    if (m->state != NULL)
        munmap(m->state, sizeof(*m->state));
    free(m->stats);
    free(m);
}
