/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker left that its guest has taken over: any bytes, and words that are well sealed and say
 * anything. Whatever a successor finds, it lives, and a reset brings the device back to work.
 */
#include <string.h>

#include "driver.h"

#define SIZE 8u
#define LEN 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *at;
static size_t left;

static uint8_t u8(void)
{
    if (left == 0)
        return 0;
    left--;
    return *at++;
}
static uint16_t u16(void)
{
    uint16_t low = u8();

    return (uint16_t)(low | u8() << 8);
}
static uint32_t u32(void)
{
    uint32_t low = u16();

    return low | (uint32_t)u16() << 16;
}

/* Of the descriptors that a request's copies are, wherever they lead. */
static uint64_t copies(const struct state_queue *queue, uint16_t first, unsigned n)
{
    uint64_t hash = 0;
    size_t i = first;

    for (; n > 0; n--) {
        const struct state_descriptor *d = &queue->descriptors[i % DEVICE_STATE_QUEUE_SIZE];

        hash = state_hash(state_hash(hash, d->addr), d->len | (uint64_t)d->flags << 32);
        i = d->next;
    }
    return state_sealed(first, hash, SALT_TAKEN);
}

static void damage(struct machine *m, struct device_state *state, size_t len, bool packed)
{
    struct state_queue *queue = &state->queues[0];
    struct state_descriptor *d = &queue->descriptors[u8() % SIZE];
    uint16_t id = u8() % SIZE, n;
    struct state_request *request = &queue->requests[id];
    struct state_transport t;

    switch (u8() % 7) {
    case 0:
        ((uint8_t *)state)[u32() % len] = u8();
        break;
    case 1:
        queue->avail = state_position(u8(), u16(), SALT_AVAIL);
        break;
    case 2:
        queue->published = state_position(u8(), u16(), SALT_PUBLISHED);
        break;
    case 3:
        n = packed ? u8() % (SIZE + 2) : 1;
        request->copies = copies(queue, u8() % (SIZE + 1), n);
        request->taken = state_taken(u8(), n, id, packed ? request->copies : 0);
        break;
    case 4:
        request->done = state_done(u32(), u8(), u8() % 2, id);
        break;
    case 5:
        *d = (struct state_descriptor){.addr = u8() % 2 != 0 ? d->addr + u8() : u32(),
                                       .len = u16(),
                                       .flags = u8() % 8,
                                       .next = u8() % (SIZE + 1)};
        break;
    default:
        if (device_state_load(m->state, &t) == 1) {
            ((uint8_t *)&t)[u16() % (offsetof(struct state_transport, queues) +
                                     sizeof(t.queues[0]))] = u8();
            if (t.n_queues <= DEVICE_STATE_QUEUES)
                device_state_save(state, &t);
        }
    }
}

static void add(struct driver *d, gpa_t buffer, unsigned n)
{
    for (uint32_t i = 0; i < n; i++)
        if (driver_add_echo(&d->rings[0], (gpa_t){buffer.addr + 2 * LEN * i}, LEN, i, i % 2 != 0) < 0)
            fake_die("no room");
    driver_kick(d, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct machine_config config = {.state = true,
                                    .test = {.queue_size = SIZE, .mode = TEST_HOLD}};
    struct machine *m = machine_create(&config);
    gpa_t buffer = guest_alloc(&m->heap[0], (size_t)2 * LEN * SIZE, 16);
    struct device_state *state;
    struct test_device *td;
    struct ring_used used;
    struct driver d;
    size_t len;
    bool packed;

    at = bytes;
    left = size;
    packed = u8() % 2 != 0;
    driver_start(&d, m, F_VERSION_1 | F_INDIRECT | (packed ? F_PACKED : 0), 1, SIZE);
    add(&d, buffer, 4);
    test_device_complete(test_device(m->dev), u8() % 4);
    machine_take_picture(m);
    state = machine_pictured_state(m, &len);
    for (unsigned i = 0; i < 64 && left > 0; i++)
        damage(m, state, len, packed);
    machine_succeed(m, false);
    td = test_device(m->dev);
    for (unsigned i = 0; i < 2 * SIZE && td->n_held > 0; i++)
        test_device_complete(td, u8() % td->n_held);
    machine_settle(m);
    /* The rings hold whatever that has made of them. */
    driver_restart(&d);
    add(&d, buffer, 4);
    td = test_device(m->dev);
    while (td->n_held > 0)
        test_device_complete(td, 0);
    machine_settle(m);
    for (uint32_t i = 0; i < 4; i++)
        if (!ring_get(&d.rings[0], &used) ||
            !driver_check_echo(&d.rings[0], (gpa_t){buffer.addr + 2 * LEN * i}, LEN, i))
            fake_die("the device does not work after a reset");
    driver_end(&d);
    machine_destroy(m);
    return 0;
}
