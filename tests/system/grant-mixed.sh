# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: one guest has foreign and grant disks, direct, cached and packed: fio verifies on all, grants are copied, mapped and given back
# files: common.bash
# timeout: 2400
. ./common.bash

for name in foreign direct cached packed; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/foreign
cache = writeback
serial = foreign
[blk1]
path = $IMAGES/direct
serial = direct
[blk2]
path = $IMAGES/cached
cache = writeback
serial = cached
[blk3]
path = $IMAGES/packed
cache = writeback
packed = yes
in-order = no
serial = packed
END
grants=type=virtio,device2,transport=mmio,grant_usage=1
domu_create g1 vcpus=2 memory=512 \
    "virtio=[\"type=virtio,device2,transport=mmio,grant_usage=0\",\"$grants\",\"$grants\",\"$grants\"]" ||
    give_up "xl create"
must "the guest comes up" up g1

ACCESS_PLATFORM=$((1 << 33))
check "no ACCESS_PLATFORM without grants" same $(($(device g1 blk0 features) & ACCESS_PLATFORM)) 0
for name in blk1 blk2 blk3; do
    check "$name: ACCESS_PLATFORM was negotiated" same $(($(device g1 $name features) & ACCESS_PLATFORM)) $ACCESS_PLATFORM
done
check "the worker holds gntdev once" same "$(find "/proc/$(worker g1)/fd" -lname /dev/xen/gntdev | wc -l)" 1
for name in direct cached packed; do
    check "$name: depth 1, 4 jobs: no error" guest g1 "$(fio_verify "\$(disk $name)" 1 1)"
    check "$name: depth 32, 4 jobs: no error" guest g1 "$(fio_verify "\$(disk $name)" 32 1)"
    check "$name: depth 8, 256 KiB: no error" guest g1 "$(fio_verify "\$(disk $name)" 8 8 --bs=256k --io_size=4m)"
    # Requests of more than 1 MiB are mapped.
    maps=$(show g1 .grant_maps)
    check "$name: depth 2, 1280 KiB: no error" guest g1 "$(fio_verify "\$(disk $name)" 2 5 --bs=1280k)"
    check "$name: these were mapped" test "$(show g1 .grant_maps)" -ge $((maps + 16))
    sum=$(guest g1 "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $name)" | cut -d' ' -f1)
    check "$name: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name")" "$sum"
done
# All at once, in one guest.
jobs=()
for name in foreign direct cached packed; do
    guest_job g1 "$(fio_verify "\$(disk $name)" 8 2 --bs=4k-256k)"
    jobs+=("$job")
done
for job in "${jobs[@]}"; do
    check_job "all disks at once: no error" "$job"
done
viodctl show g1
viodctl stats g1
check "others were copied" test "$(show g1 .grant_copies)" -gt 1000
check "the guest never found a page of its own in use" guest g1 '! dmesg | grep -i "still in use"'
check "no request failed, no ring was broken" no_errors
# Rings are mapped while they live, and nothing else is.
rings=$(show g1 '.grant_maps - .grant_unmaps')
check "only rings are mapped" same "$rings" $((3 * 2 * 3))
id=$(domu_id g1)
check "xl destroy" domu_destroy g1
check "no zombie" wait_for 60 domu_gone g1
check "xenstore has nothing of it" no_node "$id"

# A guest without such devices has a worker without gntdev.
configure g2 <<END
[blk0]
path = $IMAGES/foreign
END
domu_create g2 'virtio=["type=virtio,device2,transport=mmio,grant_usage=0"]' || give_up "xl create"
must "the second guest comes up" up g2
check "no grants: no gntdev" same "$(find "/proc/$(worker g2)/fd" -lname '*gntdev' | wc -l)" 0
finish
