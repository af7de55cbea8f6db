/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types that everything shares: guest addresses, little-endian fields, and the only ways to touch
 * memory that a guest can write at the same time.
 *
 * A guest address and a little-endian field are structs, so that arithmetic on them and a missing
 * byte swap do not compile.
 */
#ifndef VIOD_TYPES_H
#define VIOD_TYPES_H

#include <assert.h>
#include <endian.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A guest-physical address, or a grant address (bit 63 set). Opaque to devices. */
typedef struct {
    uint64_t addr;
} gpa_t;

typedef struct {
    uint16_t v;
} le16_t;
typedef struct {
    uint32_t v;
} le32_t;
typedef struct {
    uint64_t v;
} le64_t;

static inline uint16_t from_le16(le16_t x) { return le16toh(x.v); }
static inline uint32_t from_le32(le32_t x) { return le32toh(x.v); }
static inline uint64_t from_le64(le64_t x) { return le64toh(x.v); }
static inline le16_t to_le16(uint16_t x) { return (le16_t){htole16(x)}; }
static inline le32_t to_le32(uint32_t x) { return (le32_t){htole32(x)}; }
static inline le64_t to_le64(uint64_t x) { return (le64_t){htole64(x)}; }

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/*
 * Guest memory is read by these and by nothing else. Each call is exactly one load: what it returns
 * is a private copy that is checked and then used; the field is never looked at again. Test builds
 * replace VIOD_GUEST_LOAD to let a field change between any two loads.
 */
#ifdef VIOD_GUEST_LOAD_HOOK
uint64_t viod_guest_load_hook(const volatile void *p, unsigned size);
#define VIOD_GUEST_LOAD(type, p) ((type)viod_guest_load_hook((p), sizeof(type)))
#else
#define VIOD_GUEST_LOAD(type, p) (*(const volatile type *)(p))
#endif

static inline uint8_t guest_load8(const void *p) { return VIOD_GUEST_LOAD(uint8_t, p); }
static inline uint16_t guest_load16(const void *p)
{
    return le16toh(VIOD_GUEST_LOAD(uint16_t, p));
}
static inline uint32_t guest_load32(const void *p)
{
    return le32toh(VIOD_GUEST_LOAD(uint32_t, p));
}
static inline uint64_t guest_load64(const void *p)
{
    return le64toh(VIOD_GUEST_LOAD(uint64_t, p));
}

/* Test builds: called before each store that others, or a successor of the process, can see: moments
 * at which the process may die. */
#ifdef VIOD_STORE_HOOK
void viod_store_hook(void);
#else
static inline void viod_store_hook(void) {}
#endif

static inline void guest_store16(void *p, uint16_t v)
{
    viod_store_hook();
    *(volatile uint16_t *)p = htole16(v);
}
static inline void guest_store32(void *p, uint32_t v)
{
    viod_store_hook();
    *(volatile uint32_t *)p = htole32(v);
}
static inline void guest_store64(void *p, uint64_t v)
{
    viod_store_hook();
    *(volatile uint64_t *)p = htole64(v);
}

/*
 * The barriers of the ring protocol (VIRTIO 1.2, 2.7.13 and 2.8.21). Each use says what it pairs
 * with. The guest runs on another CPU of the same, coherent system: the SMP barriers suffice.
 */
static inline uint16_t guest_load16_acquire(const void *p)
{
    uint16_t v = guest_load16(p);
    atomic_thread_fence(memory_order_acquire);
    return v;
}
static inline void guest_store16_release(void *p, uint16_t v)
{
    atomic_thread_fence(memory_order_release);
    guest_store16(p, v);
}
/* Orders an earlier store before a later load: the "enable notifications, look again" pattern. */
static inline void full_barrier(void) { atomic_thread_fence(memory_order_seq_cst); }

static inline void cpu_relax(void)
{
#if defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#elif defined(__x86_64__)
    __asm__ volatile("pause" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

#endif
