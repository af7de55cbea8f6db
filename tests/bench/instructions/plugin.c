/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plugin for QEMU's emulator that counts instructions: for each CPU of the machine, those of Xen,
 * of kernels and of programs. Unlike times, such counts do not depend on what else the host does.
 *
 * plugin.so,out=FILE[,profile=PREFIX]: each time a program in the machine executes `hint #113` (see
 * mark.c) one record is appended to FILE: COUNTS_CPUS * COUNTS_KINDS numbers of 64 bits, native. With
 * profile=, each mark also writes PREFIX.N: per block of code its address and what each CPU executed
 * of it since the mark before (see profile.py).
 *
 * The interface is QEMU's (include/qemu/qemu-plugin.h, documented in docs/devel/tcg-plugins); Debian
 * has no package with that header, so what is used of it is declared here.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNTS_CPUS 8u
/* hint #113, a no-op that no compiler emits. */
#define MARK_INSTRUCTION 0xd5032e3fu

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
                                          void (*cb)(unsigned cpu, void *user), int flags,
                                          void *user);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
                                            void (*cb)(unsigned cpu, void *user), int flags,
                                            void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);

/* Of the interface, as the installed QEMU has it. */
EXPORT int qemu_plugin_version = PLUGIN_VERSION;

enum kind { KIND_XEN, KIND_KERNEL, KIND_PROGRAM, COUNTS_KINDS };

/* A CPU writes only its own line. */
static struct {
    uint64_t of[COUNTS_KINDS];
} __attribute__((aligned(64))) counts[COUNTS_CPUS];
static int out = -1;
static const char *profile;

/* What was translated, newest first; never freed: QEMU does not say when it forgets a translation. */
struct block {
    struct block *next;
    uint64_t vaddr, instructions;
    uint64_t executed[COUNTS_CPUS];
};
static struct block *blocks;

/* Linux's kernel is at the top; Xen 4.20 is in slot 20 of its first-level table, which no program uses. */
static enum kind kind_of(uint64_t vaddr)
{
    if (vaddr >> 55 != 0)
        return KIND_KERNEL;
    return vaddr >> 39 == 20 ? KIND_XEN : KIND_PROGRAM;
}

static void executed(unsigned cpu, void *user)
{
    uintptr_t what = (uintptr_t)user;

    if (cpu < COUNTS_CPUS)
        counts[cpu].of[what % 4] += what / 4;
}

static void executed_block(unsigned cpu, void *user)
{
    struct block *block = user;

    if (cpu < COUNTS_CPUS)
        block->executed[cpu] += block->instructions;
}

static void write_profile(void)
{
    static unsigned number;
    char name[4096];
    FILE *file;

    snprintf(name, sizeof(name), "%s.%u", profile, number++);
    file = fopen(name, "w");
    for (struct block *block = blocks; block != NULL && file != NULL; block = block->next) {
        uint64_t any = 0;

        for (unsigned i = 0; i < COUNTS_CPUS; i++)
            any |= block->executed[i];
        if (any == 0)
            continue;
        fprintf(file, "%" PRIx64, block->vaddr);
        for (unsigned i = 0; i < COUNTS_CPUS; i++) {
            fprintf(file, " %" PRIu64, block->executed[i]);
            block->executed[i] = 0;
        }
        fputc('\n', file);
    }
    if (file == NULL || fclose(file) != 0)
        perror("instructions: profile");
}

static void marked(unsigned cpu, void *user)
{
    uint64_t record[COUNTS_CPUS][COUNTS_KINDS];

    (void)cpu;
    (void)user;
    for (unsigned i = 0; i < COUNTS_CPUS; i++)
        memcpy(record[i], counts[i].of, sizeof(record[i]));
    if (write(out, record, sizeof(record)) != (ssize_t)sizeof(record))
        perror("instructions: write");
    if (profile != NULL)
        write_profile();
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    size_t n = qemu_plugin_tb_n_insns(tb);
    uintptr_t what = n * 4 + kind_of(qemu_plugin_tb_vaddr(tb));

    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, (void *)what);
    if (profile != NULL) {
        struct block *block = calloc(1, sizeof(*block));

        if (block != NULL) {
            block->vaddr = qemu_plugin_tb_vaddr(tb);
            block->instructions = n;
            block->next = blocks;
            while (!__atomic_compare_exchange_n(&blocks, &block->next, block, true,
                                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                ;
            qemu_plugin_register_vcpu_tb_exec_cb(tb, executed_block, NO_REGISTERS, block);
        }
    }
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t code;

        memcpy(&code, qemu_plugin_insn_data(insn), sizeof(code));
        if (code == MARK_INSTRUCTION)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGISTERS, NULL);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                               char **argv);
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                               char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0)
            out = open(argv[i] + 4, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
        else if (strncmp(argv[i], "profile=", 8) == 0)
            profile = strdup(argv[i] + 8);
    }
    if (out < 0) {
        perror("instructions: out=");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
