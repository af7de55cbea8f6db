# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest's root is an image file, by virtio=[] and /etc/viod, without and with dom0's page cache
# files: common.bash
# timeout: 1800
. ./common.bash

image=$IMAGES/root.img
dd if="$DOMU_ROOT1" of="$image" bs=1M conv=sparse status=none

# O_DIRECT, as Arm has it, in the flags of the worker's descriptor for the image.
opened_directly() {
    local fd pid
    pid=$(worker g1)
    for fd in "/proc/$pid/fd"/*; do
        [[ $(readlink "$fd") != "$image" ]] ||
            return $(((8#$(sed -n 's/^flags:\s*//p' "/proc/$pid/fdinfo/${fd##*/}") & 8#200000) == 0))
    done
    echo "the image is not open at all"
    return 2
}

for cache in none writeback; do
    configure g1 <<END
[blk0]
path = $image
cache = $cache
serial = ROOT-$cache
END
    domu_config g1 root=/dev/vda "virtio=$(blk_devices 1)" >g1.cfg
    check "cache=$cache: viodctl check finds no problem" viodctl check g1.cfg
    domu_create g1 vcpus=2 root=/dev/vda "virtio=$(blk_devices 1)" || give_up "xl create"
    must "cache=$cache: the guest comes up" up g1
    check "cache=$cache: its root is that image" guest g1 "[[ \$(disk ROOT-$cache) == /dev/vda && \$(mountpoint -d /) == 254:0 ]]"
    if [[ $cache == none ]]; then
        check "cache=none: the image is opened past the page cache" opened_directly
    else
        check_not "cache=writeback: the image is opened with the page cache" opened_directly
    fi
    sum=$(guest g1 "dd if=/dev/urandom of=/$cache bs=1M count=6 conv=fsync status=none; sync
        echo 3 >/proc/sys/vm/drop_caches; md5sum </$cache" | cut -d' ' -f1)
    check "cache=$cache: what it wrote it reads again" guest g1 \
        "echo 3 >/proc/sys/vm/drop_caches; [[ \$(md5sum </$cache) == $sum* ]]"
    check "cache=$cache: no request failed" no_errors
    check "cache=$cache: it shuts down" domu_shutdown g1 "$LONG"
    mount -o loop "$image" /mnt
    check "cache=$cache: the file is in the image" same "$(md5sum </mnt/$cache | cut -d' ' -f1)" "$sum"
    umount /mnt
done
finish
