/* SPDX-License-Identifier: Apache-2.0 */
#include "supervisor_blame.h"

#include <string.h>
#include <unistd.h>

static void suspect(struct suspicion *s, uint64_t in_hand)
{
    s->deaths = in_hand != 0 && in_hand == s->in_hand ? s->deaths + 1 : 0;
    s->in_hand = in_hand;
}

static uint64_t read_word(int fd, size_t offset)
{
    uint64_t word = 0;

    return pread(fd, &word, sizeof(word), (off_t)offset) == sizeof(word) ? word : 0;
}

/* The number of the request that has been in flight for the longest, and bit 32; 0: none is. */
static uint64_t oldest_request(int fd, size_t queue, uint32_t taken)
{
    static struct state_request requests[DEVICE_STATE_QUEUE_SIZE]; /* one thread: the supervisor's */
    uint32_t oldest = 0;
    bool any = false;

    if (pread(fd, requests, sizeof(requests),
              (off_t)(queue + offsetof(struct state_queue, requests))) != sizeof(requests))
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        uint32_t age = taken - (uint32_t)requests[i].taken;

        /* What was not counted yet any more is not in flight: see virtqueue_state.c. */
        if (requests[i].taken == 0 || requests[i].done != 0 || age == UINT32_MAX)
            continue;
        oldest = any ? MAX(oldest, age) : age;
        any = true;
    }
    return any ? (uint64_t)(taken - oldest) | UINT64_C(1) << 32 : 0;
}

void blame_look(struct blame *blame, int state_fd, unsigned slot, bool is_block)
{
    size_t at = offsetof(struct state_file, slots) + slot * sizeof(struct device_state);
    uint64_t access = read_word(state_fd, at + offsetof(struct device_state, serving)), sum = 0;
    bool holds = false;

    suspect(&blame->access, state_access_open(access) ? access : 0);
    for (size_t i = 0; i < DEVICE_STATE_QUEUES; i++) {
        size_t queue = at + offsetof(struct device_state, queues) + i * sizeof(struct state_queue);
        uint64_t avail = read_word(state_fd, queue + offsetof(struct state_queue, avail));
        uint64_t published = read_word(state_fd, queue + offsetof(struct state_queue, published));
        uint64_t serving = read_word(state_fd, queue + offsetof(struct state_queue, serving));
        uint64_t oldest = 0;

        if (is_block && published != 0)
            oldest = oldest_request(state_fd, queue, state_count(avail));
        /* While it takes requests, the position is that of what it died of. */
        suspect(&blame->served[i], serving == 1 ? state_hash(1, avail) | 1 : serving);
        suspect(&blame->oldest[i], oldest);
        holds |= oldest != 0;
        sum = state_hash(state_hash(sum, avail), published);
    }
    suspect(&blame->held, holds ? sum | 1 : 0);
}

unsigned blame_strong(const struct blame *blame)
{
    unsigned most = blame->access.deaths;

    for (size_t i = 0; i < DEVICE_STATE_QUEUES; i++)
        most = MAX(most, blame->served[i].deaths);
    return most;
}

unsigned blame_weak(const struct blame *blame)
{
    return blame->held.deaths;
}

unsigned blame_oldest(const struct blame *blame)
{
    unsigned most = 0;

    for (size_t i = 0; i < DEVICE_STATE_QUEUES; i++)
        most = MAX(most, blame->oldest[i].deaths);
    return most;
}
