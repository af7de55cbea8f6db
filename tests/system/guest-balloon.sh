# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest's memory is ballooned down and up while it reads and writes: all data are right, the worker lives
# files: common.bash
# timeout: 1200
. ./common.bash

new_image data 64 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/data
serial = data
END
domu_create g1 memory=768 vcpus=2 "virtio=$(blk_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
id=$(domu_id g1)
pid=$(worker g1)
full=$(xenstore-read "/local/domain/$id/memory/target")
invalidates=$(show g1 .invalidates)
memory() { xl list g1 | sed -n '2s/^[^ ]* *[0-9]* *\([0-9]*\).*/\1/p'; }
guest_job g1 "while [[ ! -e /tmp/stop ]]; do $(fio_verify '$(disk data)' 16 2) || exit; echo >>/tmp/rounds; done; wc -l </tmp/rounds"
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 ]]'
for round in 1 2; do
    xenstore-write "/local/domain/$id/memory/target" $((full - (160 << 10)))
    check "round $round: 160 MiB less" wait_for "$LONG" "[[ \$(memory) -le $((768 - 150)) ]]" || memory
    requests=$(device g1 blk0 requests)
    check "round $round: I/O goes on" wait_for "$LONG" "[[ \$(device g1 blk0 requests) -gt $((requests + 50)) ]]"
    xenstore-write "/local/domain/$id/memory/target" "$full"
    check "round $round: and back" wait_for "$LONG" "[[ \$(memory) -ge $((768 - 20)) ]]" || memory
    requests=$(device g1 blk0 requests)
    check "round $round: I/O goes on" wait_for "$LONG" "[[ \$(device g1 blk0 requests) -gt $((requests + 50)) ]]"
done
guest g1 'touch /tmp/stop'
check_job "fio has found no difference" "$job"
check "the memory that it got back takes data, too" guest g1 '
    dd if=/dev/urandom of=/tmp/x bs=1M count=24 status=none
    dd if=/tmp/x of=$(disk data) bs=1M conv=fsync,notrunc status=none
    echo 3 >/proc/sys/vm/drop_caches
    [[ $(head -c 24M $(disk data) | md5sum) == $(md5sum </tmp/x) ]]'
check "Xen had asked to drop mappings ($(($(show g1 .invalidates) - invalidates)) times)" test "$(show g1 .invalidates)" -gt "$invalidates"
check "the worker is the same" same "$(worker g1)" "$pid"
check "no request failed" no_errors
check "it can be destroyed" domu_destroy g1
check "and is gone" wait_for 60 domu_gone g1
finish
