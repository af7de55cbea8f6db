/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a port has said and heard lies in memory that its worker shares with the supervisor (struct
 * port_memory, backend.h), so that a successor goes on with it: what was not written yet is written, who
 * attaches late sees the last screenful, and what was typed reaches the guest.
 *
 * A request of the driver that was in hand when the worker died is popped again. How much of it had been
 * done is kept with its number: two words, of which the second is stored last and says which of two
 * firsts counts. So each byte counts as taken with one store.
 *
 * The worker that wrote it may have been taken over by its guest: positions are checked.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "device_state.h"
#include "devices/console_internal.h"

/* Which of two, the request's number, and bytes of it. */
#define MARK_WHICH 63
#define MARK_NUMBER 0x7fffffffu

static uint64_t mark(unsigned which, uint32_t number, uint32_t bytes)
{
    return (uint64_t)which << MARK_WHICH | (uint64_t)(number & MARK_NUMBER) << 32 | bytes;
}

static unsigned which_of(uint64_t word) { return (unsigned)(word >> MARK_WHICH); }
static uint32_t number_of(uint64_t word) { return (uint32_t)(word >> 32) & MARK_NUMBER; }

int console_memory_map(struct console *console, size_t n_ports, int fd)
{
    size_t len = n_ports * sizeof(struct port_memory);
    bool shared = fd >= 0;
    struct stat st;
    void *p;

    /* Behind its end there would be a signal. */
    if (shared && (fstat(fd, &st) < 0 || st.st_size < (off_t)len))
        return -EINVAL;
    p = mmap(NULL, len, PROT_READ | PROT_WRITE,
             shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    console->memory = p;
    console->memory_len = len;
    return 0;
}

void console_memory_unmap(struct console *console)
{
    if (console->memory != NULL)
        munmap(console->memory, console->memory_len);
    console->memory = NULL;
}

void port_keep_output(struct port *port)
{
    struct port_memory *m = port->memory;
    unsigned which = !which_of(state_load64(&m->taking));

    state_store64(&m->output[which], port->head - port->taken_bytes);
    state_store64(&m->taking, mark(which, port->taking_number, port->taken_bytes));
}

void port_keep_sink(struct port *port)
{
    state_store64(&port->memory->sink, port->sink.at << 1 | port->sink.present);
}

void port_keep_input(struct port *port)
{
    struct port_memory *m = port->memory;
    unsigned which = !which_of(state_load64(&m->giving));

    state_store64(&m->input[which], port->in_tail);
    state_store64(&m->giving, mark(which, port->giving_number, port->given_bytes));
}

void port_keep_heard(struct port *port)
{
    state_store64(&port->memory->in_head, port->in_head);
}

void port_adopt(struct port *port)
{
    const struct port_memory *m = port->memory;
    uint64_t taking = state_load64(&m->taking), giving = state_load64(&m->giving);
    uint64_t sink = state_load64(&m->sink);

    port->taking_number = number_of(taking);
    port->taken_bytes = (uint32_t)taking;
    port->head = state_load64(&m->output[which_of(taking)]) + port->taken_bytes;
    port->sink.at = sink >> 1;
    /* What it did not take is kept as far as the ring goes; it is not noted how much was overwritten. */
    if (port->head - port->sink.at > CONSOLE_OUT_SIZE)
        port->sink.at = port->sink.at < port->head ? port->head - CONSOLE_OUT_SIZE : port->head;
    /* Those who have these open do not notice anything, and have seen the last screenful. */
    port->resumed = (sink & 1) != 0 && port->stream.kind != STREAM_LISTEN &&
                    port->stream.kind != STREAM_CONNECT;
    port->giving_number = number_of(giving);
    port->given_bytes = (uint32_t)giving;
    port->in_tail = (uint32_t)state_load64(&m->input[which_of(giving)]);
    port->in_head = (uint32_t)state_load64(&m->in_head);
    if (port->in_head - port->in_tail > CONSOLE_IN_SIZE)
        port->in_head = port->in_tail;
}

void port_taking_begins(struct port *port)
{
    struct chain *chain = port->taking;
    uint32_t number = chain_number(chain) & MARK_NUMBER;

    /* It is in the ring up to there. */
    if (chain->replayed && number == port->taking_number)
        port->taken_bytes = (uint32_t)chain_skip_readable(chain, port->taken_bytes);
    else
        port->taken_bytes = 0;
    port->taking_number = number;
}

void port_giving_begins(struct port *port)
{
    uint32_t again = virtqueue_first_again(port->rx) & MARK_NUMBER;

    if (again == 0 || again != port->giving_number ||
        port->in_head - (port->in_tail - port->given_bytes) > CONSOLE_IN_SIZE)
        return;
    port->in_tail -= port->given_bytes;
    port_forget_giving(port);
}

void port_forget_taking(struct port *port)
{
    port->taking_number = port->taken_bytes = 0;
    port_keep_output(port);
}

void port_forget_giving(struct port *port)
{
    port->giving_number = port->given_bytes = 0;
    port_keep_input(port);
}
