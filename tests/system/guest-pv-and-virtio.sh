# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest with a virtio disk of viod and a PV disk of the kernel's blkback uses both
# files: common.bash
# timeout: 1500
. ./common.bash

modprobe xen-blkback 2>/dev/null
loop=$(losetup -f --show "$(new_image pv 32)")
domu_create g1 vcpus=2 root=/dev/vda \
    "disk=[$(virtio_disk "$DOMU_ROOT1" xvda), \"format=raw,vdev=xvdb,access=w,backendtype=phy,target=$loop\"]" ||
    give_up "xl create: $(cat /rig/g1.create)"
must "the guest comes up" up g1
id=$(domu_id g1)
check "its root is the virtio disk" guest g1 '[[ $(mountpoint -d /) == 254:0 && $(readlink /sys/block/vda/device/driver) == */virtio_blk ]]'
check "its other disk is a PV disk" guest g1 '[[ $(readlink /sys/block/xvdb/device/driver) == */vbd ]]'
check "viod serves the one, and leaves the other alone" same "$(show g1 '[.devices[].name] | join(" ")')" xvda
check "blkback serves the other" same "$(xenstore-read "/local/domain/0/backend/vbd/$id/51728/state")" 4
guest_job g1 "$(fio_verify /verify 8 1)"
virtio_job=$job
guest_job g1 "$(fio_verify /dev/xvdb 8 1)"
pv_job=$job
check_job "verified I/O on the virtio disk" "$virtio_job"
check_job "and on the PV disk at the same time" "$pv_job"
sum=$(guest g1 'head -c 2M /dev/urandom >/copy; dd if=/copy of=/dev/xvdb bs=1M conv=fsync,notrunc status=none; sync; md5sum </copy')
check "each wrote to its own image" same "$(dd if="$loop" bs=1M count=2 iflag=direct status=none | md5sum)" "$sum"
check "no request failed" no_errors
check "it shuts down" domu_shutdown g1 "$LONG"
mount "$DOMU_ROOT1" /mnt
check "the virtio disk has its data" same "$(md5sum </mnt/copy)" "$sum"
umount /mnt
check "xenstore has nothing of it" no_node "$id"
finish
