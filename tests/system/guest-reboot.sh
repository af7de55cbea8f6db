# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest that reboots comes back, under a new domid, with the same disk and a new worker
# files: common.bash
# timeout: 2400
. ./common.bash

domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" || give_up "xl create"
must "the guest comes up" up g1
guest g1 'echo 0 >/boots; sync'
for round in 1 2 3; do
    id=$(domu_id g1)
    pid=$(worker g1)
    sum=$(guest g1 'dd if=/dev/urandom of=/file bs=1M count=4 status=none; md5sum </file' | cut -d' ' -f1)
    guest g1 "sync; echo $round >/boots; sync"
    must "reboot $round: the guest comes back" domu_reboot g1 "$LONG"
    check "reboot $round: it is a new domain" test "$(domu_id g1)" -ne "$id"
    check "reboot $round: its data are there" guest g1 "[[ \$(</boots) == $round && \$(md5sum </file) == $sum* ]]"
    check "reboot $round: the old worker has ended" wait_for 60 "! running $pid"
    check "reboot $round: viodctl knows the new domain only" same "$(viodctl --json list | jq -c '[.[].domid]')" "[$(domu_id g1)]"
    check "reboot $round: xenstore has nothing of the old one" no_node "$id"
done
check "no request failed" no_errors
finish
