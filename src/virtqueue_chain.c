/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing the buffers of a chain, whatever elements the driver cut them into. */
#include <string.h>

#include "virtqueue.h"
#include "virtqueue_internal.h"

static size_t walk_chain(struct chain *chain, bool write, uint8_t *to, const uint8_t *from,
                         size_t len)
{
    uint16_t *index = write ? &chain->write_index : &chain->read_index;
    uint32_t *offset = write ? &chain->write_offset : &chain->read_offset;
    uint32_t *left = write ? &chain->writable_bytes : &chain->readable_bytes;
    size_t done = 0;

    len = MIN(len, *left);
    while (done < len) {
        const struct iovec *iov = &chain->iov[*index];
        size_t n = MIN(iov->iov_len - *offset, len - done);
        uint8_t *guest = (uint8_t *)iov->iov_base + *offset;

        if (to != NULL)
            memcpy(to + done, guest, n);
        else if (from != NULL)
            memcpy(guest, from + done, n);
        done += n;
        *offset += (uint32_t)n;
        if (*offset == iov->iov_len) {
            (*index)++;
            *offset = 0;
        }
    }
    *left -= (uint32_t)done;
    return done;
}

size_t chain_read(struct chain *chain, void *to, size_t len)
{
    return walk_chain(chain, false, to, NULL, len);
}

size_t chain_write(struct chain *chain, const void *from, size_t len)
{
    static const uint8_t zeros[256];
    size_t done = 0;

    if (from != NULL)
        return walk_chain(chain, true, NULL, from, len);
    while (done < len) {
        size_t n = walk_chain(chain, true, NULL, zeros, MIN(len - done, sizeof(zeros)));

        if (n == 0)
            break;
        done += n;
    }
    return done;
}

size_t chain_skip_readable(struct chain *chain, size_t len)
{
    return walk_chain(chain, false, NULL, NULL, len);
}

size_t chain_skip_writable(struct chain *chain, size_t len)
{
    return walk_chain(chain, true, NULL, NULL, len);
}

static int gather(const struct chain *chain, uint16_t index, uint32_t offset, size_t left,
                  struct iovec *iov, int max, size_t len, size_t *bytes)
{
    size_t total = 0;
    int n = 0;

    len = MIN(len, left);
    while (total < len && n < max) {
        const struct iovec *from = &chain->iov[index++];
        size_t part = MIN(from->iov_len - offset, len - total);

        iov[n].iov_base = (uint8_t *)from->iov_base + offset;
        iov[n++].iov_len = part;
        total += part;
        offset = 0;
    }
    *bytes = total;
    return n;
}

int chain_readable(const struct chain *chain, struct iovec *iov, int max, size_t len,
                   size_t *bytes)
{
    return gather(chain, chain->read_index, chain->read_offset, chain->readable_bytes, iov, max,
                  len, bytes);
}

int chain_writable(const struct chain *chain, struct iovec *iov, int max, size_t len,
                   size_t *bytes)
{
    return gather(chain, chain->write_index, chain->write_offset, chain->writable_bytes, iov, max,
                  len, bytes);
}

static unsigned rest(struct chain *chain, uint16_t *index, uint32_t *offset, uint16_t end,
                     const struct iovec **iov)
{
    struct iovec *first = &chain->iov[*index];

    if (*index < end && *offset > 0) {
        first->iov_base = (uint8_t *)first->iov_base + *offset;
        first->iov_len -= *offset;
        *offset = 0;
    }
    *iov = first;
    return *index < end ? (unsigned)(end - *index) : 0;
}

unsigned chain_rest_readable(struct chain *chain, const struct iovec **iov)
{
    return rest(chain, &chain->read_index, &chain->read_offset, chain->n_readable, iov);
}

unsigned chain_rest_writable(struct chain *chain, const struct iovec **iov)
{
    return rest(chain, &chain->write_index, &chain->write_offset,
                (uint16_t)(chain->n_readable + chain->n_writable), iov);
}

unsigned chain_readable_behind(struct chain *chain, void *header, size_t len,
                               const struct iovec **iov)
{
    const struct iovec *from;
    unsigned n = rest(chain, &chain->read_index, &chain->read_offset, chain->n_readable, &from);
    /* What lies before the cursor was consumed, or is the spare element. */
    struct iovec *first = &chain->iov[(int)chain->read_index - 1];

    *first = (struct iovec){.iov_base = header, .iov_len = len};
    *iov = first;
    return n + 1;
}

int chain_take_tail(struct chain *chain, size_t len, struct iovec *iov, int max)
{
    uint16_t end = (uint16_t)(chain->n_readable + chain->n_writable);
    size_t left = len;
    uint16_t first = end;
    int n = 0;

    if (len == 0 || len > chain->writable_bytes)
        return -EINVAL;
    while (left > 0) {
        first--;
        left -= MIN(chain->iov[first].iov_len, left);
        n++;
        if (n > max)
            return -EINVAL;
    }
    left = len;
    for (int i = n - 1; i >= 0; i--) {
        struct iovec *last = &chain->iov[--end];
        size_t here = MIN(last->iov_len, left);

        iov[i].iov_base = (uint8_t *)last->iov_base + (last->iov_len - here);
        iov[i].iov_len = here;
        last->iov_len -= here;
        left -= here;
        if (last->iov_len == 0)
            chain->n_writable--;
    }
    chain->writable_bytes -= (uint32_t)len;
    chain->tail_bytes = (uint32_t)len;
    return n;
}
