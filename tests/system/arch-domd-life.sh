# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154
# checks: a driver domain without viod, with a mistake in dom0, destroyed while a guest runs, and of a type that FLASK refuses
# boot: --flask --passthrough
# files: common.bash arch.bash
# timeout: 900
. ./common.bash
. ./arch.bash

must "the driver domain's disk is made" prepare_driver_domain
must "the guest's, too" prepare_two_backends
must "xl creates the driver domain" xl create "$EXAMPLES/driver-domain.cfg"
must "it comes up" domu_ready domd "$LONG"
domd=$(domu_id domd)
domu_run domd 'truncate -s 16M /var/lib/viod/two-backends/log.img'
must "viod starts in it" domd_viod

# --- viod restarts in the driver domain ------------------------------------------------------------
check "viod ends in the driver domain" domu_run domd 'kill $(pgrep -of "^viod"); for _ in {1..100}; do
    pgrep -f "^viod" >/dev/null || exit 0; sleep 0.1; done; exit 1'
check "a guest is created paused" xl create -p "$EXAMPLES/two-backends.cfg"
must "dom0's device is served" wait_for 60 'served two-backends blk0'
check "viodctl wait says who is not ready" eval \
    '! viodctl wait two-backends 1 2>wait.out && grep -q "blk1, served by domain $domd" wait.out'
must "viod starts there again" domd_viod
check "the devices become ready" viodctl wait two-backends "$LONG"
xl unpause two-backends
must "the guest comes up" up two-backends
check "both of its backends serve it" guest two-backends "$both_disks"

# --- a mistake in dom0's file ---------------------------------------------------------------------------
domu_destroy two-backends
sed -i 's/^serial = FROM-DOMD/&-WITH-MORE-THAN-20/' /etc/viod/two-backends.conf
check "a guest with a mistake in its file is created" xl create "$EXAMPLES/two-backends.cfg"
# Which says what it knows when its time is up; the mistake has to go to the driver domain and back.
check "the mistake is named" wait_for "$LONG" '! viodctl wait two-backends 1 2>wait.out &&
    { grep -E "blk1.*in domain 0: /etc/viod/two-backends.conf:[0-9]+: " wait.out || { cat wait.out; false; }; }'
check "the guest comes up without this device" up two-backends
check "but with those of dom0" guest two-backends '[[ $(ls -d /sys/block/vd? | wc -l) == 2 ]] && disk FROM-DOM0'
domu_destroy two-backends
sed -i 's/-WITH-MORE-THAN-20//' /etc/viod/two-backends.conf
must "without the mistake it has all again" create_guest

# --- the driver domain dies ----------------------------------------------------------------------------
must "the guest takes no random numbers any more" takes_no_numbers two-backends
accesses() { domu_run domd 'viodctl --json show two-backends | sed -E "s/.*\"mmio_writes\":([0-9]+).*/\1/"'; }
quiet() { local before; before=$(accesses) && sleep 3 && [[ $(accesses) == "$before" ]]; }
check "the guest lets the driver domain's devices alone" wait_for 120 quiet
check "the driver domain is destroyed" domu_destroy domd
must "dom0 answers in its place, and says so" wait_for 60 'answers_instead 2'
guest_job two-backends '(dd if=$(disk FROM-DOMD) of=/dev/null bs=4k count=1 iflag=direct status=none &) ; sleep 3; echo alive'
check_job "the guest touches a device of it, and lives" "$job"
check "dom0's device goes on" guest two-backends "$(fio_verify '$(disk FROM-DOM0)' 8 2)"
check "the guest is destroyed" domu_destroy two-backends
check "nothing of it is left" wait_for "$LONG" 'domu_gone two-backends'
check "nor a worker" wait_for 60 no_workers
# --- a policy that does not allow it --------------------------------------------------------------------
must "a driver domain of another type comes up" plain_driver_domain xen_privcmd.unrestricted=1 \
    seclabel=system_u:system_r:domU_t
check "what it lacks is named, in dom0 and there" refused "FLASK policy does not let this domain be its device model"
finish
