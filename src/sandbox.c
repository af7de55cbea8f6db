/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hypervisor_ioctls.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static const int allowed_calls[] = {
    /* rings, descriptors, messages */
    SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register), SCMP_SYS(read), SCMP_SYS(write),
    SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(close),
    SCMP_SYS(lseek), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(poll), SCMP_SYS(ppoll),
    SCMP_SYS(accept4),
    /* memory: see below for mmap and mprotect */
    SCMP_SYS(munmap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(mremap),
    /* threads and time */
    SCMP_SYS(futex), SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
    SCMP_SYS(sched_yield), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(membarrier),
    /* the end, orderly or by abort() */
    SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigaction), SCMP_SYS(restart_syscall), SCMP_SYS(getpid), SCMP_SYS(gettid),
    SCMP_SYS(tgkill), SCMP_SYS(getrandom),
};

/* Discards on block devices, and their size; a TAP's offloads, and which of its queues are in use. */
static const uint32_t backend_ioctls[] = {BLKDISCARD, BLKSECDISCARD, BLKGETSIZE64, TUNSETOFFLOAD,
                                           TUNSETQUEUE};

static int allow_ioctls(scmp_filter_ctx filter)
{
    int ret = 0;

    /* IOEVENTFD and IRQFD are not among them: a bad address in the former crashes the kernel. */
    for (size_t i = 0; i < n_hypervisor_ioctls && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                               SCMP_A1_32(SCMP_CMP_EQ, hypervisor_ioctls[i], 0));
    for (size_t i = 0; i < ARRAY_SIZE(backend_ioctls) && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                               SCMP_A1_32(SCMP_CMP_EQ, backend_ioctls[i], 0));
    return ret;
}

static int load_filter(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int ret;

    if (filter == NULL)
        return -ENOMEM;
    ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    for (size_t i = 0; i < ARRAY_SIZE(allowed_calls) && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0);
    if (ret == 0)
        ret = allow_ioctls(filter);
    /* Standard error, which may be a socket, is also that of the supervisor and of the other workers. */
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(shutdown), 1,
                               SCMP_A0_32(SCMP_CMP_GT, STDERR_FILENO, 0));
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(dup3), 2,
                               SCMP_A0_32(SCMP_CMP_GT, STDERR_FILENO, 0),
                               SCMP_A1_32(SCMP_CMP_GT, STDERR_FILENO, 0));
    /* No memory that is executable: neither new nor changed. */
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                               SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                               SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (ret == 0)
        ret = seccomp_load(filter);
    seccomp_release(filter);
    return ret;
}

int sandbox_prepare(void)
{
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
            return -errno;
    return 0;
}

int sandbox_enter(const char *root, uint32_t uid, char *error, size_t error_len)
{
    const struct rlimit no_core = {0, 0};
    const char *step;

    step = "chroot";
    if (chroot(root) < 0 || chdir("/") < 0)
        goto fail;
    step = "setrlimit";
    if (setrlimit(RLIMIT_CORE, &no_core) < 0)
        goto fail;
    step = "changing to the worker's user";
    if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
        goto fail;
    step = "no_new_privs";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        goto fail;
    if (!SANITIZED) {
        int ret = load_filter();

        step = "loading the seccomp filter";
        if (ret < 0) {
            errno = -ret;
            goto fail;
        }
    }
    return 0;
fail:
    snprintf(error, error_len, "cannot lock the worker down: %s: %s", step, strerror(errno));
    return errno != 0 ? -errno : -EPERM;
}
