/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void fake_die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("fake: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

void fake_violation(struct fake_hypervisor *fake, const char *what)
{
    fake->counts.violations++;
    if (!fake->count_violations)
        fake_die("violation: %s", what);
}

int fake_injected(struct fake_hypervisor *fake, enum fake_op op)
{
    struct fault *fault = &fake->faults[op];

    if (fault->always)
        return fault->error;
    if (fault->nth > 0 && --fault->nth == 0)
        return fault->error;
    return 0;
}

/* ---- MMIO ---- */

static bool overlaps(struct ram_bank a, struct ram_bank b)
{
    return a.base < b.base + b.size && b.base < a.base + a.size;
}

static int fake_claim_mmio(struct hypervisor *hv, uint64_t base, uint64_t len)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct ram_bank range = {.base = base, .size = len};
    int result;

    pthread_mutex_lock(&fake->lock);
    result = fake_injected(fake, FAKE_CLAIM);
    if (len == 0 || base + len < base || fake->n_claims == CLAIMS_MAX)
        result = -EINVAL;
    for (size_t i = 0; result == 0 && i < fake->n_claims; i++) {
        if (overlaps(range, fake->claims[i]))
            result = -EEXIST;
    }
    if (result == 0)
        fake->claims[fake->n_claims++] = range;
    pthread_mutex_unlock(&fake->lock);
    return result;
}

static int fake_release_mmio(struct hypervisor *hv, uint64_t base, uint64_t len)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    int result = -ENOENT;

    pthread_mutex_lock(&fake->lock);
    for (size_t i = 0; i < fake->n_claims; i++) {
        if (fake->claims[i].base == base && fake->claims[i].size == len) {
            fake->claims[i] = fake->claims[--fake->n_claims];
            result = 0;
            break;
        }
    }
    pthread_mutex_unlock(&fake->lock);
    return result;
}

void fake_trap(struct fake_hypervisor *fake, unsigned vcpu, enum request_kind kind, uint64_t addr,
               unsigned size, uint64_t data)
{
    struct ram_bank access = {.base = addr, .size = 1};
    struct vcpu *slot = &fake->vcpus[vcpu];
    bool claimed = kind == REQUEST_INVALIDATE || kind == REQUEST_UNKNOWN;

    pthread_mutex_lock(&fake->lock);
    if (vcpu >= fake->n_vcpus || slot->state == SLOT_READY || slot->state == SLOT_IN_PROCESS)
        fake_die("vCPU %u does not run", vcpu);
    for (size_t i = 0; i < fake->n_claims; i++)
        claimed |= overlaps(access, fake->claims[i]);
    slot->request = (struct mmio_request){
        .kind = kind, .vcpu = vcpu, .size = size, .addr = addr, .data = data};
    if (!claimed) {
        slot->request.data = UINT64_MAX;
        slot->state = SLOT_ANSWERED;
    } else {
        slot->order = ++fake->order;
        slot->state = SLOT_READY;
        fake->counts.requests++;
        if (fake->armed && eventfd_write(fake->event, 1) != 0)
            fake_die("eventfd: %s", strerror(errno));
    }
    pthread_mutex_unlock(&fake->lock);
}

static uint64_t answer_of(const struct mmio_request *request)
{
    if (request->kind != REQUEST_READ || request->size >= 8)
        return request->data;
    return request->data & ((UINT64_C(1) << (request->size * 8)) - 1);
}

bool fake_answered(struct fake_hypervisor *fake, unsigned vcpu, uint64_t *data)
{
    struct vcpu *slot = &fake->vcpus[vcpu];
    bool answered;

    pthread_mutex_lock(&fake->lock);
    answered = slot->state == SLOT_ANSWERED;
    if (answered && data != NULL)
        *data = answer_of(&slot->request);
    pthread_mutex_unlock(&fake->lock);
    return answered;
}

static struct timespec deadline(int timeout_ms)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += timeout_ms / 1000;
    t.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

bool fake_wait_answer(struct fake_hypervisor *fake, unsigned vcpu, uint64_t *data, int timeout_ms)
{
    struct timespec until = deadline(timeout_ms);
    struct vcpu *slot = &fake->vcpus[vcpu];
    bool answered;

    pthread_mutex_lock(&fake->lock);
    while (slot->state != SLOT_ANSWERED) {
        if (pthread_cond_timedwait(&fake->changed, &fake->lock, &until) == ETIMEDOUT)
            break;
    }
    answered = slot->state == SLOT_ANSWERED;
    if (answered && data != NULL)
        *data = answer_of(&slot->request);
    pthread_mutex_unlock(&fake->lock);
    return answered;
}

static int fake_event_fd(struct hypervisor *hv) { return fake_from_hv(hv)->event; }

static struct vcpu *oldest_ready(struct fake_hypervisor *fake)
{
    struct vcpu *oldest = NULL;

    for (unsigned i = 0; i < fake->n_vcpus; i++) {
        struct vcpu *slot = &fake->vcpus[i];

        if ((slot->state == SLOT_READY || slot->again) && (oldest == NULL || slot->order < oldest->order))
            oldest = slot;
    }
    return oldest;
}

static int fake_next_request(struct hypervisor *hv, struct mmio_request *request)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct vcpu *slot;

    pthread_mutex_lock(&fake->lock);
    if (fake->armed)
        fake_violation(fake, "next_request between arm and disarm");
    if (fake->counts.closed)
        fake_violation(fake, "next_request after close");
    slot = oldest_ready(fake);
    if (slot != NULL) {
        slot->state = SLOT_IN_PROCESS;
        slot->again = false;
        *request = slot->request;
    }
    pthread_mutex_unlock(&fake->lock);
    return slot != NULL;
}

static void fake_finish_request(struct hypervisor *hv, const struct mmio_request *request)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    struct vcpu *slot;

    pthread_mutex_lock(&fake->lock);
    if (request->vcpu >= fake->n_vcpus) {
        fake_violation(fake, "answered a vCPU that does not exist");
        goto out;
    }
    slot = &fake->vcpus[request->vcpu];
    /* Xen crashes the domain when a slot takes a state that does not follow. */
    if (slot->state != SLOT_IN_PROCESS || slot->request.kind != request->kind ||
        slot->request.addr != request->addr || slot->request.size != request->size) {
        fake_violation(fake, "answered a request that is not outstanding");
        goto out;
    }
    /* A mapping that survives this answer is silently stale from now on. */
    if (request->kind == REQUEST_INVALIDATE && fake->mappings != NULL)
        fake_violation(fake, "answered an invalidation with guest RAM still mapped");
    if (request->kind == REQUEST_INVALIDATE)
        fake_settle_given(fake);
    slot->request.data = request->data;
    slot->state = SLOT_ANSWERED;
    fake->counts.answers++;
    pthread_cond_broadcast(&fake->changed);
out:
    pthread_mutex_unlock(&fake->lock);
}

static bool fake_arm(struct hypervisor *hv)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    bool there;

    pthread_mutex_lock(&fake->lock);
    fake->armed = true;
    there = oldest_ready(fake) != NULL;
    pthread_mutex_unlock(&fake->lock);
    return there;
}

static void fake_disarm(struct hypervisor *hv)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    eventfd_t value;

    pthread_mutex_lock(&fake->lock);
    fake->armed = false;
    (void)eventfd_read(fake->event, &value);
    pthread_mutex_unlock(&fake->lock);
}

/* ---- interrupts ---- */

static int fake_raise_irq(struct hypervisor *hv, uint32_t irq)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);
    int result;

    pthread_mutex_lock(&fake->lock);
    result = fake_injected(fake, FAKE_RAISE);
    if (irq >= FAKE_IRQS_MAX)
        result = -EINVAL;
    if (result == 0) {
        fake->irqs[irq]++;
        fake->counts.irqs++;
        pthread_cond_broadcast(&fake->changed);
    }
    pthread_mutex_unlock(&fake->lock);
    return result;
}

unsigned fake_take_irqs(struct fake_hypervisor *fake, uint32_t irq)
{
    unsigned n;

    pthread_mutex_lock(&fake->lock);
    n = fake->irqs[irq];
    fake->irqs[irq] = 0;
    pthread_mutex_unlock(&fake->lock);
    return n;
}

bool fake_wait_irq(struct fake_hypervisor *fake, uint32_t irq, int timeout_ms)
{
    struct timespec until = deadline(timeout_ms);
    bool raised;

    pthread_mutex_lock(&fake->lock);
    while (fake->irqs[irq] == 0) {
        if (pthread_cond_timedwait(&fake->changed, &fake->lock, &until) == ETIMEDOUT)
            break;
    }
    raised = fake->irqs[irq] != 0;
    pthread_mutex_unlock(&fake->lock);
    return raised;
}

/* ---- life ---- */

static int fake_lock_down(struct hypervisor *hv)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);

    pthread_mutex_lock(&fake->lock);
    if (fake->counts.answers != 0)
        fake_violation(fake, "locked down after the first request");
    fake->counts.locked_down = true;
    pthread_mutex_unlock(&fake->lock);
    return 0;
}

static void fake_close(struct hypervisor *hv)
{
    struct fake_hypervisor *fake = fake_from_hv(hv);

    pthread_mutex_lock(&fake->lock);
    if (fake->counts.closed)
        fake_violation(fake, "closed twice");
    fake->counts.closed = true;
    /* The vCPU would hang for good, and the next event on its port panic the machine. */
    for (unsigned i = 0; i < fake->n_vcpus; i++) {
        if (fake->vcpus[i].state == SLOT_READY || fake->vcpus[i].state == SLOT_IN_PROCESS)
            fake_violation(fake, "closed with a request outstanding");
    }
    /* A mapping held keeps a dead domain as a zombie. */
    if (fake->mappings != NULL)
        fake_violation(fake, "closed with guest RAM still mapped");
    if (fake->grant_mappings != NULL)
        fake_violation(fake, "closed with granted pages still mapped");
    pthread_mutex_unlock(&fake->lock);
}

struct fake_picture {
    struct vcpu vcpus[FAKE_VCPUS_MAX];
    unsigned irqs[FAKE_IRQS_MAX];
};

struct fake_picture *fake_picture(struct fake_hypervisor *fake)
{
    struct fake_picture *picture = malloc(sizeof(*picture));

    if (picture == NULL)
        fake_die("no memory");
    pthread_mutex_lock(&fake->lock);
    memcpy(picture->vcpus, fake->vcpus, sizeof(picture->vcpus));
    memcpy(picture->irqs, fake->irqs, sizeof(picture->irqs));
    pthread_mutex_unlock(&fake->lock);
    return picture;
}

void fake_succeed(struct fake_hypervisor *fake, const struct fake_picture *picture)
{
    pthread_mutex_lock(&fake->lock);
    memcpy(fake->vcpus, picture->vcpus, sizeof(fake->vcpus));
    memcpy(fake->irqs, picture->irqs, sizeof(fake->irqs));
    /* A slot that is IN_PROCESS stays so for the hypervisor, and is executed again (xen/ioreq.c). */
    for (unsigned i = 0; i < fake->n_vcpus; i++)
        fake->vcpus[i].again = fake->vcpus[i].state == SLOT_IN_PROCESS;
    fake->armed = false;
    pthread_mutex_unlock(&fake->lock);
}

static const struct hypervisor_ops fake_ops = {
    .map_ram = fake_map_ram,
    .unmap_ram = fake_unmap_ram,
    .probe_ram = fake_probe_ram,
    .map_grants = fake_map_grants,
    .unmap_grants = fake_unmap_grants,
    .copy_grants = fake_copy_grants,
    .claim_mmio = fake_claim_mmio,
    .release_mmio = fake_release_mmio,
    .raise_irq = fake_raise_irq,
    .event_fd = fake_event_fd,
    .next_request = fake_next_request,
    .finish_request = fake_finish_request,
    .arm = fake_arm,
    .disarm = fake_disarm,
    .lock_down = fake_lock_down,
    .close = fake_close,
};

struct fake_hypervisor *fake_create(const struct fake_config *config)
{
    static const struct fake_config defaults;
    static const struct ram_bank banks[] = {{FAKE_BANK0_BASE, FAKE_BANK_SIZE},
                                            {FAKE_BANK1_BASE, FAKE_BANK_SIZE}};
    struct fake_hypervisor *fake = calloc(1, sizeof(*fake));
    pthread_condattr_t monotonic;

    if (fake == NULL)
        fake_die("no memory");
    if (config == NULL)
        config = &defaults;
    fake->hv.ops = &fake_ops;
    fake->count_violations = config->count_violations;
    fake->n_vcpus = config->vcpus == 0 ? 4 : config->vcpus;
    pthread_mutex_init(&fake->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&fake->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    fake->memfd = memfd_create("guest", MFD_CLOEXEC);
    fake->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fake->memfd < 0 || fake->event < 0 || fake->n_vcpus > FAKE_VCPUS_MAX)
        fake_die("cannot make a hypervisor: %s", strerror(errno));
    fake->grants = calloc(FAKE_GRANTS_MAX, sizeof(*fake->grants));
    if (fake->grants == NULL)
        fake_die("no memory");
    fake->n_banks = config->n_banks == 0 ? ARRAY_SIZE(banks) : config->n_banks;
    for (size_t i = 0; i < fake->n_banks; i++) {
        fake->ranges[i] = config->n_banks == 0 ? banks[i] : config->banks[i];
        fake_bank_create(fake, &fake->banks[i], fake->ranges[i]);
    }
    return fake;
}

void fake_destroy(struct fake_hypervisor *fake)
{
    if (!fake->counts.closed)
        fake_close(&fake->hv);
    fake_check_poison(fake);
    while (fake->mappings != NULL)
        fake_unmap_ram(&fake->hv, fake->mappings->at, fake->mappings->pages);
    while (fake->grant_mappings != NULL)
        fake_unmap_grants(&fake->hv, &(struct grant_map){
                                         .at = fake->grant_mappings->at,
                                         .pages = fake->grant_mappings->pages,
                                         .handle = (uintptr_t)fake->grant_mappings});
    for (size_t i = 0; i < fake->n_banks; i++)
        fake_bank_destroy(&fake->banks[i]);
    close(fake->memfd);
    close(fake->event);
    pthread_cond_destroy(&fake->changed);
    pthread_mutex_destroy(&fake->lock);
    free(fake->given);
    free(fake->grants);
    free(fake);
}

struct hypervisor *fake_seam(struct fake_hypervisor *fake) { return &fake->hv; }

const struct ram_bank *fake_banks(const struct fake_hypervisor *fake, size_t *n)
{
    *n = fake->n_banks;
    return fake->ranges;
}

struct fake_counts fake_counts(struct fake_hypervisor *fake)
{
    struct fake_counts counts;

    pthread_mutex_lock(&fake->lock);
    counts = fake->counts;
    pthread_mutex_unlock(&fake->lock);
    return counts;
}

void fake_fail(struct fake_hypervisor *fake, enum fake_op op, unsigned nth, int error)
{
    pthread_mutex_lock(&fake->lock);
    fake->faults[op] = (struct fault){.nth = nth, .error = error, .always = nth == 0 && error != 0};
    pthread_mutex_unlock(&fake->lock);
}
