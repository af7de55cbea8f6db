# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: xl destroy of a guest that reads and writes at full depth is quick, leaves no zombie, and the next guest is served
# files: common.bash
# timeout: 2400
. ./common.bash

new_image data 64 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/data
cache = writeback
serial = data
END
for round in 1 2 3; do
    domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(blk_devices 1)" ||
        give_up "xl create"
    must "round $round: the guest comes up" up g1
    id=$(domu_id g1)
    pid=$(worker g1)
    guest_job g1 'fio --name=load --filename=$(disk data) --size=16m --offset_increment=16m --rw=randrw --bs=16k --direct=1 \
        --ioengine=io_uring --iodepth=32 --numjobs=4 --time_based --runtime=1000 --norandommap --output-format=terse'
    before=$(device g1 blk0 requests)
    must "round $round: it is under load" wait_for "$LONG" "[[ \$(device g1 blk0 requests) -gt $((before + 200)) ]]"
    start=${EPOCHREALTIME/./}
    check "round $round: xl destroy" domu_destroy g1
    printf '        it took %d ms\n' $(((${EPOCHREALTIME/./} - start) / 1000))
    check "round $round: no zombie" wait_for 60 domu_gone g1
    check "round $round: its worker has ended" wait_for 60 "! running $pid"
    check "round $round: xenstore has nothing of it" no_node "$id"
    domu_wait "$job" >/dev/null
done
check "no worker had to be killed" rig_fails grep 'did not end within' "$VIOD_LOG"
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(blk_devices 1)" || give_up "xl create"
must "the next one comes up" up g1
check "and its disk works" guest g1 "$(fio_verify '$(disk data)' 8 1)"
check "no request failed" no_errors
finish
