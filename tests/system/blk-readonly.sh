# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: beside a root disk, read-only disks refuse writes in the guest, and their images stay as they are
# files: common.bash
# timeout: 1500
. ./common.bash

for name in disk file; do
    image=$(new_image "$name" 24)
    mke2fs -q -t ext4 -O ^has_journal "$image"
    mount -o loop "$image" /mnt
    echo "in the $name" >/mnt/hello
    umount /mnt
done
loop=$(losetup -f --show "$IMAGES/disk")
before_disk=$(stored_sum "$loop")
before_file=$(stored_sum "$IMAGES/file")
chmod 444 "$IMAGES/file"

configure g1 <<END
[xvda]
serial = root
[xvdb]
serial = ro-disk
[blk0]
path = $IMAGES/file
readonly = yes
serial = ro-file
END
domu_create g1 root=/dev/vda "virtio=$(blk_devices 1)" \
    "disk=[$(virtio_disk "$DOMU_ROOT1" xvda), $(virtio_disk "$loop" xvdb r)]" || give_up "xl create"
must "the guest comes up" up g1
for name in disk file; do
    check "$name: Linux knows that it is read-only" guest g1 \
        "d=\$(disk ro-$name); cat /sys/block/\${d#/dev/}/ro; [[ \$(</sys/block/\${d#/dev/}/ro) == 1 ]]"
    check "$name: it can be read" guest g1 \
        "mount -o ro \$(disk ro-$name) /mnt && [[ \$(</mnt/hello) == 'in the $name' ]] && umount /mnt"
    check "$name: a write fails" guest g1 "! dd if=/dev/urandom of=\$(disk ro-$name) bs=4k count=1 oflag=direct"
    check "$name: even when the guest clears its own mark" guest g1 "
        blockdev --setrw \$(disk ro-$name); ! dd if=/dev/urandom of=\$(disk ro-$name) bs=4k count=1 seek=9 oflag=direct"
    check "$name: discard fails" guest g1 "! blkdiscard -f \$(disk ro-$name)"
    check "$name: writing zeroes fails" guest g1 "! blkdiscard -f -z \$(disk ro-$name)"
    check "$name: a mount for writing fails" guest g1 "! mount -o rw \$(disk ro-$name) /mnt || ! touch /mnt/x"
done
check "the root disk can still be written" guest g1 'echo yes >/written && sync && [[ $(</written) == yes ]]'
domu_destroy g1
check "the guest is gone" wait_for 60 domu_gone g1
check "the disk's image is unchanged" same "$(stored_sum "$loop")" "$before_disk"
check "the file is unchanged" same "$(stored_sum "$IMAGES/file")" "$before_file"
finish
