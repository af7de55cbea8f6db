# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from guest_job
# checks: xl destroy of a guest with grant disks at full depth, and the death of its worker: nothing stays mapped, no zombie
# files: common.bash
# timeout: 1500
. ./common.bash

new_image data 64 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/data
cache = writeback
serial = data
END
grants=type=virtio,device2,transport=mmio,grant_usage=1
load='fio --name=load --filename=$(disk data) --size=16m --offset_increment=16m --rw=randrw --bssplit=4k/60:256k/40
    --direct=1 --ioengine=io_uring --iodepth=16 --numjobs=4 --time_based --runtime=1000 --norandommap --output-format=terse'
load=${load//$'\n'/ }
for round in 1 2; do
    domu_create g1 vcpus=2 "virtio=[\"$grants\"]" || give_up "xl create"
    must "round $round: the guest comes up" up g1
    id=$(domu_id g1)
    pid=$(worker g1)
    guest_job g1 "$load"
    must "round $round: it is under load" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 200 ]]'
    check "round $round: grants are mapped" test "$(show g1 .granted_kib)" -gt 0
    if [[ $round == 2 ]]; then
        # A worker that dies holds nothing either: its successor's guest ends like any other.
        kill -KILL "$pid"
        check "the worker is gone" wait_for 60 "! running $pid"
    fi
    start=${EPOCHREALTIME/./}
    check "round $round: xl destroy" domu_destroy g1
    printf '        it took %d ms\n' $(((${EPOCHREALTIME/./} - start) / 1000))
    check "round $round: no zombie" wait_for 60 domu_gone g1
    check "round $round: its worker has ended" wait_for 60 "! running $pid"
    check "round $round: xenstore has nothing of it" no_node "$id"
    domu_wait "$job" >/dev/null
done
check "no worker had to be killed" rig_fails grep 'did not end within' "$VIOD_LOG"
domu_create g1 vcpus=2 "virtio=[\"$grants\"]" || give_up "xl create"
must "the next one comes up" up g1
check "and its disk works" guest g1 "$(fio_verify '$(disk data)' 8 1)"
check "no request failed" no_errors
finish
