# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: fio verifies random reads and writes at depth 1 and 32, 4 jobs, 4 vCPUs: direct, cached, packed rings
# files: common.bash
# timeout: 2400
. ./common.bash

for name in direct cached packed; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/direct
serial = direct
[blk1]
path = $IMAGES/cached
cache = writeback
serial = cached
[blk2]
path = $IMAGES/packed
packed = yes
in-order = no
serial = packed
END
domu_create g1 vcpus=4 memory=512 "virtio=$(blk_devices 3)" || give_up "xl create"
must "the guest comes up" up g1

RING_PACKED=$((1 << 34))
check "split rings where nothing else was asked for" same $(($(device g1 blk0 features) & RING_PACKED)) 0
check "packed rings where asked for" same $(($(device g1 blk2 features) & RING_PACKED)) $RING_PACKED
for name in direct cached packed; do
    check "$name: the guest has a queue for each vCPU" guest g1 \
        "d=\$(disk $name); ls /sys/block/\${d#/dev/}/mq; [[ \$(ls /sys/block/\${d#/dev/}/mq | wc -l) == 4 ]]"
    check "$name: depth 1, 4 jobs: no error" guest g1 "$(fio_verify "\$(disk $name)" 1 1)"
    check "$name: depth 32, 4 jobs: no error" guest g1 "$(fio_verify "\$(disk $name)" 32 4)"
    check "$name: depth 32, 64 KiB: no error" guest g1 "$(fio_verify "\$(disk $name)" 32 8 --bs=64k)"
    sum=$(guest g1 "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $name)" | cut -d' ' -f1)
    check "$name: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name")" "$sum"
done
# fio's four jobs run on any vCPU, so every queue has had requests.
viodctl show g1
for name in blk0 blk1 blk2; do
    check "$name: all 4 queues were used" same "$(viodctl show g1 $name | grep -cE 'queue [0-9]+ +[1-9][0-9]* requests')" 4
done
check "no request failed, no ring was broken" no_errors
finish
