/* SPDX-License-Identifier: Apache-2.0 */
#include "device_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Part of the file's format. */
static_assert(sizeof(struct state_request) == 24, "version 1");
static_assert(sizeof(struct state_descriptor) == 16, "version 1");
static_assert(sizeof(struct state_queue) == 64 + 40 * DEVICE_STATE_QUEUE_SIZE, "version 1");
static_assert(sizeof(struct state_registers) == 32, "version 1");
static_assert(offsetof(struct state_transport, queues) == 40, "version 1");
static_assert(offsetof(struct device_state, copies) == 64, "version 1");

static uint64_t check_of(const struct state_transport *transport)
{
    const uint8_t *at = (const uint8_t *)transport;
    uint64_t hash = 0, word;

    for (size_t i = 0; i < offsetof(struct state_transport, queues) +
                               transport->n_queues * sizeof(transport->queues[0]);
         i += sizeof(word)) {
        memcpy(&word, at + i, sizeof(word));
        hash = state_hash(hash, word);
    }
    return hash;
}

/* Which copy, and a number that tells a copy from the one before it. */
static uint64_t current_word(uint32_t number) { return state_sealed(number, 0, SALT_CURRENT); }

void device_state_save(struct device_state *state, const struct state_transport *transport)
{
    uint32_t number = (uint32_t)state_load64(&state->current) + 1;
    struct state_copy *copy = &state->copies[number & 1];

    memcpy(&copy->transport, transport,
           offsetof(struct state_transport, queues) +
               transport->n_queues * sizeof(transport->queues[0]));
    state_store64(&copy->check, check_of(transport) + number);
    state_store64(&state->current, current_word(number));
}

int device_state_load(const struct device_state *state, struct state_transport *transport)
{
    uint64_t current = state_load64(&state->current);
    const struct state_copy *copy = &state->copies[current & 1];

    if (current == 0)
        return 0;
    if (!state_is_sealed(current, 0, SALT_CURRENT) || (current & STATE_LOW48) > UINT32_MAX)
        return -EBADMSG;
    memcpy(transport, &copy->transport, sizeof(*transport)); /* once: then checked, then used */
    if (transport->n_queues > DEVICE_STATE_QUEUES ||
        state_load64(&copy->check) != check_of(transport) + (uint32_t)current)
        return -EBADMSG;
    for (unsigned i = 0; i < transport->n_queues; i++)
        if (transport->queues[i].phase > STATE_QUEUE_RUNNING ||
            transport->queues[i].size > DEVICE_STATE_QUEUE_SIZE)
            return -EBADMSG;
    return 1;
}

void device_state_clear(struct device_state *state)
{
    if (state_load64(&state->current) != 0)
        state_store64(&state->current, 0);
    if (state_load64(&state->broken) != 0)
        state_store64(&state->broken, 0);
}

void device_state_set_broken(struct device_state *state, bool broken)
{
    state_store64(&state->broken, broken ? state_sealed(1, 0, SALT_BROKEN) : 0);
}

bool device_state_broken(const struct device_state *state)
{
    return state_load64(&state->broken) != 0;
}

void device_state_start_queue(struct state_queue *queue, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (state_load64(&queue->requests[i].taken) != 0)
            state_store64(&queue->requests[i].taken, 0);
    state_store64(&queue->serving, 0);
}

/* ---- the file ---- */

static struct state_header header_for(uint32_t domid)
{
    struct state_header header = {.magic = DEVICE_STATE_MAGIC,
                                  .version = DEVICE_STATE_VERSION,
                                  .domid = domid,
                                  .size = sizeof(struct state_file)};

    header.check = state_hash(0, header.magic);
    header.check = state_hash(header.check, (uint64_t)header.version << 32 | header.domid);
    header.check = state_hash(header.check, header.size);
    return header;
}

int device_state_create(const char *path, uint32_t domid)
{
    const struct state_header header = header_for(domid);
    int fd, ret;

    (void)unlink(path);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, sizeof(struct state_file)) == 0 &&
        pwrite(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header))
        return fd;
    ret = errno != 0 ? -errno : -ENOSPC;
    close(fd);
    (void)unlink(path);
    return ret;
}

/* A file that is shorter than it should be would kill whoever looks behind its end. */
static int check_size(int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    return st.st_size == (off_t)sizeof(struct state_file) ? 0 : -EBADMSG;
}

static bool header_is_good(int fd, const struct state_header *expected)
{
    struct state_header header;

    return pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
           memcmp(&header, expected, sizeof(header)) == 0;
}

int device_state_open(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW), ret;

    if (fd < 0)
        return -errno;
    ret = check_size(fd);
    if (ret == 0)
        return fd;
    close(fd);
    return ret;
}

int device_state_repair(int fd, uint32_t domid)
{
    const struct state_header header = header_for(domid);

    if (header_is_good(fd, &header))
        return 0;
    if (pwrite(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
        return errno != 0 ? -errno : -EIO;
    return 1;
}

int device_state_map(int fd, uint32_t domid, struct state_file **out)
{
    const struct state_header header = header_for(domid);
    int ret = check_size(fd);
    void *p;

    if (ret == 0 && !header_is_good(fd, &header))
        ret = -EBADMSG;
    if (ret < 0)
        return ret;
    p = mmap(NULL, sizeof(**out), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    *out = p;
    return 0;
}

void device_state_unmap(struct state_file *file)
{
    if (file != NULL)
        munmap(file, sizeof(*file));
}
