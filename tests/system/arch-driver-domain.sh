# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154
# checks: a driver domain under FLASK, with devices of the machine, serves a guest beside dom0, and its next instances
# boot: --flask --passthrough
# files: common.bash arch.bash
# timeout: 2400
. ./common.bash
. ./arch.bash

must "the driver domain's disk is made" prepare_driver_domain
must "the guest's, too" prepare_two_backends
check "viodctl check says that the driver domain is missing" eval \
    '! viodctl check "$EXAMPLES/two-backends.cfg" >check.out && grep -q "there is no domain domd now" check.out'

must "xl creates the driver domain" xl create "$EXAMPLES/driver-domain.cfg"
must "it comes up" domu_ready domd "$LONG"
domd=$(domu_id domd)
check "FLASK knows it as one" eval 'xl list -Z | grep -E "^domd .*:domd_t"'

check_machine_devices domd

# --- viod in it --------------------------------------------------------------------------------
domu_run domd 'truncate -s 16M /var/lib/viod/two-backends/log.img'
check "viodctl check says that it has no viod" eval \
    '! viodctl check "$EXAMPLES/two-backends.cfg" >check.out && grep -q "viod does not run in domain domd" check.out'
must "viod starts in it" domd_viod
check "viodctl check has no objection any more" viodctl check "$EXAMPLES/two-backends.cfg"
check "and serves what is this domain's" domd_logged "devices whose backend is domain $domd\$"

sed s/grant_usage=1/grant_usage=0/ "$EXAMPLES/two-backends.cfg" >without-grants.cfg
must "a guest with devices of both comes up" create_guest
guest=$(domu_id two-backends)
check "it has three disks" guest two-backends '[[ $(ls -d /sys/block/vd? | wc -l) == 3 ]]'
check "both of its backends move its data at once, and none is different" guest two-backends "$both_disks"
check "its random numbers come from the driver domain" guest two-backends 'head -c 64 /dev/hwrng | wc -c | grep -qx 64'
check "dom0's viod serves what is dom0's, and no more" same "$(show two-backends '[.devices[].name] | sort | join(" ")')" "blk0 xvda"
check "the driver domain's knows the guest by name" domu_run domd 'viodctl show two-backends | grep -q "^blk1: blk, ready"'
check "its worker is nobody" domu_run domd "[[ \$(stat -c %u /proc/\$(viodctl --json show two-backends | sed -E 's/.*\"pid\":([0-9]+).*/\\1/')) -eq $((1996488704 + guest)) ]]"
node=/local/domain/$domd/backend/virtio/$guest/1
check "dom0 has told it the device's settings" eval "xenstore-read $node/viod/settings/0 | grep -q 'serial=FROM-DOMD'"
check "but not those of dom0's own" eval "! xenstore-ls $node/viod | grep FROM-DOM0"
check "the guest can read the node" guest two-backends "xenstore-read $node/state"
check "but not the settings" guest two-backends "! xenstore-read $node/viod/settings/0 && ! xenstore-ls $node/viod"

check "data is written" guest two-backends 'dd if=/dev/urandom of=/run/data bs=1M count=2 status=none &&
    dd if=/run/data of=$(disk FROM-DOMD) bs=1M oflag=direct status=none'
sum=$(guest two-backends 'md5sum </run/data')

check "its devices of the driver domain have grants" grants two-backends 2

# --- the guest goes and comes --------------------------------------------------------------------
# The second time, the driver domain may map its memory.
for round in 1 2; do
    [[ $round == 1 ]] || guest_cfg=without-grants.cfg
    check "$round: the guest is destroyed" domu_destroy two-backends
    check "$round: the driver domain has removed its nodes" wait_for "$LONG" "no_domd_node $guest"
    check "$round: no domain without a name is left" wait_for "$LONG" 'domu_gone two-backends'
    check "$round: nor a worker in the driver domain" wait_for "$LONG" \
        'domu_run domd "! pgrep -x viod-worker && ! viodctl list | grep two-backends"'
    must "$round: it is there again" create_guest
    guest=$(domu_id two-backends)
    check "$round: with the same data" same "$sum" \
        "$(guest two-backends 'dd if=$(disk FROM-DOMD) bs=1M count=2 iflag=direct status=none | md5sum')"
    check "$round: with grants, or without" grants two-backends $((round == 1 ? 2 : 0))
done
check "without grants, too, both of its backends move its data" guest two-backends "$both_disks"

check "the guest is destroyed" domu_destroy two-backends
check "FLASK had nothing to refuse" eval '! xl dmesg | grep "avc:.*denied" | grep -E "domd_t|domU_t"'
finish
