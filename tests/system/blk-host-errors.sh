# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: errors of the host (full file system, shrunk image, broken disk) are I/O errors in the guest, with the cause in the log
# files: common.bash
# timeout: 1500
. ./common.bash

mkdir -p /small
mount -t tmpfs -o size=8m tmpfs /small
truncate -s 32M /small/image
new_image shrinks 32 >/dev/null
new_image broken 32 >/dev/null
loop=$(losetup -f --show "$IMAGES/broken")
dmsetup create broken <<END
0 16384 linear $loop 0
16384 16384 error
32768 32768 linear $loop 32768
END
dmsetup mknodes
configure g1 <<END
[xvda]
serial = broken
[blk0]
path = /small/image
cache = writeback
serial = full
[blk1]
path = $IMAGES/shrinks
serial = shrinks
END
domu_create g1 "virtio=$(blk_devices 2)" "disk=[$(virtio_disk /dev/mapper/broken xvda)]" || give_up "xl create"
must "the guest comes up" up g1
pid=$(worker g1)

check "full file system: a write fails in the guest" guest g1 \
    '! dd if=/dev/urandom of=$(disk full) bs=1M count=16 oflag=direct conv=notrunc'
check "full file system: as an I/O error" guest g1 'dmesg | grep -E "I/O error, dev $(basename $(disk full)),"'
check "full file system: the log has the cause" logged 'blk0: .*(No space left on device)'
mount -o remount,size=48m /small
check "full file system: with room again, writes succeed" guest g1 \
    'dd if=/dev/urandom of=$(disk full) bs=1M count=16 oflag=direct conv=fsync,notrunc'

truncate -s 8M "$IMAGES/shrinks"
check "shrunk image: what is left can be read" guest g1 'dd if=$(disk shrinks) of=/dev/null bs=1M count=8 iflag=direct'
check "shrunk image: what is gone is an I/O error" guest g1 '
    ! dd if=$(disk shrinks) of=/dev/null bs=4k skip=4096 count=1 iflag=direct &&
    dmesg | grep -E "I/O error, dev $(basename $(disk shrinks)),"'
check "shrunk image: the log has the cause" logged 'blk1: .*failed'

check "broken disk: the good part can be read and written" guest g1 \
    'dd if=/dev/urandom of=$(disk broken) bs=1M count=8 oflag=direct conv=fsync,notrunc'
check "broken disk: the bad part cannot" guest g1 '
    ! dd if=$(disk broken) of=/dev/null bs=4k skip=2100 count=1 iflag=direct &&
    ! dd if=/dev/zero of=$(disk broken) bs=4k seek=2200 count=1 oflag=direct conv=notrunc'
check "broken disk: the log has the cause" logged 'xvda: .*(Input/output error)'
check "broken disk: behind it all is well" guest g1 'dd if=$(disk broken) of=/dev/null bs=1M skip=16 iflag=direct'
check "viodctl counts the errors" test "$(show g1 '[.devices[].errors] | min')" -gt 0
check "the worker is the same" same "$(worker g1)" "$pid"
check "no device needs a reset" same "$(show g1 '[.devices[].needs_reset] | add')" 0
finish
