# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154
# checks: a driver domain that crashes: its guest lives on dom0's devices, and what it takes to have all of them again
# boot: --flask --passthrough
# files: common.bash arch.bash
# timeout: 1500
. ./common.bash
. ./arch.bash

start_domd() {
    xl create "$EXAMPLES/driver-domain.cfg" && domu_ready domd "$LONG" && domd_viod &&
        domu_run domd 'truncate -s 16M /var/lib/viod/two-backends/log.img'
}
must "the driver domain's disk is made" prepare_driver_domain
must "the guest's, too" prepare_two_backends
must "the driver domain comes up, with viod" start_domd
must "a guest has devices of both" create_guest
check "both of its backends serve it" guest two-backends "$both_disks"

must "the guest takes no random numbers any more" takes_no_numbers two-backends
accesses() { domu_run domd 'viodctl --json show two-backends | sed -E "s/.*\"mmio_writes\":([0-9]+).*/\1/"'; }
quiet() { local before; before=$(accesses) && sleep 3 && [[ $(accesses) == "$before" ]]; }
must "the guest lets the driver domain's devices alone" wait_for 120 quiet
allow_guest_panic
domu_run -t 10 domd 'echo c >/proc/sysrq-trigger' || true
must "it panics, and xl destroys it" wait_for 120 '! xl domid domd'
check "the guest goes on with dom0's device" guest two-backends "$(fio_verify '$(disk FROM-DOM0)' 8 2)"
check "what it had passed through is not free while its guest is there" eval \
    '! xl create "$EXAMPLES/driver-domain.cfg" 2>create.out; grep -iE "irq" create.out || { cat create.out; false; }'
# Its root file system has no journal: let it be whole.
guest two-backends 'sync; mount -o remount,ro / || sync'
check "the guest is destroyed" domu_destroy two-backends
check "nothing of both is left" wait_for 60 'domu_gone two-backends && domu_gone domd'
check "nor a worker" wait_for 60 no_workers

must "the driver domain created anew comes up, with viod" start_domd
must "the guest created anew has devices of both" create_guest
check "both of its backends serve it" guest two-backends "$both_disks"
check "the driver domain's clock is the machine's again" domu_run domd 'grep -q pl031 /sys/class/rtc/rtc0/name'
finish
