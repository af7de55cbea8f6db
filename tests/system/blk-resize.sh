# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a running guest sees that its image file (viodctl resize) or block device (by itself) has grown
# files: common.bash
# timeout: 1500
. ./common.bash

new_image file 16 >/dev/null
new_image disk 16 >/dev/null
loop=$(losetup -f --show "$IMAGES/disk")
configure g1 <<END
[xvda]
serial = disk
[blk0]
path = $IMAGES/file
serial = file
END
domu_create g1 "virtio=$(blk_devices 1)" "disk=[$(virtio_disk "$loop" xvda)]" || give_up "xl create"
must "the guest comes up" up g1

size_is() { guest g1 "[[ \$(blockdev --getsize64 \$(disk $1)) == $(($2 << 20)) ]]"; }
for name in file disk; do
    check "$name: 16 MiB at first" size_is $name 16
    check "$name: a write behind the end fails" guest g1 \
        "! dd if=/dev/zero of=\$(disk $name) bs=1M seek=20 count=1 oflag=direct conv=notrunc"
done

truncate -s 40M "$IMAGES/file"
check "file: as long as nobody says so, the guest knows nothing" size_is file 16
check "file: viodctl resize" viodctl resize g1 blk0
check "file: the guest sees 40 MiB" wait_for "$LONG" "size_is file 40"
check_not "file: viodctl resize of a device that is not there" viodctl resize g1 blk7

truncate -s 40M "$IMAGES/disk"
losetup -c "$loop"
check "disk: the guest sees 40 MiB without anybody saying so" wait_for "$LONG" "size_is disk 40"

for name in file disk; do
    sum=$(guest g1 "head -c 1M /dev/urandom >/tmp/x; dd if=/tmp/x of=\$(disk $name) bs=1M seek=39 oflag=direct conv=fsync,notrunc status=none; md5sum </tmp/x")
    check "$name: the new area can be written" same "$(dd if="$IMAGES/$name" bs=1M skip=39 status=none | md5sum)" "$sum"
    check "$name: and read" guest g1 "[[ \$(dd if=\$(disk $name) bs=1M skip=39 iflag=direct status=none | md5sum) == '$sum' ]]"
done
check "the guest was told twice" same "$(show g1 '[.devices[].config_changes] | add')" 2
check "no request failed" no_errors
finish
