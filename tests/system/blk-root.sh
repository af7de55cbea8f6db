# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest's root file system is a virtio disk on a block device of dom0
# files: common.bash
# timeout: 1500
. ./common.bash

domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" || give_up "xl create"
id=$(domu_id g1)
must "the guest comes up" up g1
check "its root is the virtio disk" guest g1 '
    [[ $(mountpoint -d /) == 254:0 && $(cat /sys/block/vda/dev) == 254:0 ]] &&
    [[ $(readlink /sys/block/vda/device/driver) == */virtio_blk ]]'
check "viod serves it from the device that xl was given" same "$(device g1 xvda backing)" "$DOMU_ROOT1"
check "xenstore says state 2, and nothing is wrong" same \
    "$(xenstore-read "/local/domain/0/backend/virtio_disk/$id/51712/state")" 2
sum=$(guest g1 'dd if=/dev/urandom of=/file bs=1M count=8 conv=fsync status=none; sync
    echo 3 >/proc/sys/vm/drop_caches; md5sum </file' | cut -d' ' -f1)
check "what it wrote it reads again" guest g1 "echo 3 >/proc/sys/vm/drop_caches; [[ \$(md5sum </file) == $sum* ]]"
check "no request failed" no_errors
pid=$(worker g1)
check "it shuts down in an orderly way" domu_shutdown g1 "$LONG"
check "its worker has ended" wait_for 60 "! running $pid"
check "xenstore has nothing of it" no_node "$id"
mount "$DOMU_ROOT1" /mnt
check "the file is on dom0's block device" same "$(md5sum </mnt/file | cut -d' ' -f1)" "$sum"
umount /mnt
finish
