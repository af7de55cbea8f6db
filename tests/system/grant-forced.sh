# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016  # the guest's shell expands
# checks: a guest whose kernel has XEN_VIRTIO_FORCE_GRANT uses grants for the devices with grant_usage=1, and for no other
# files: common.bash "$(../rig/build --path kernel)/Image-force-grant"
# timeout: 1200
. ./common.bash

for name in foreign grants; do
    new_image $name 16 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/foreign
serial = foreign
[blk1]
path = $IMAGES/grants
serial = grants
END
must "xl creates the guest" domu_create g1 "kernel=$PWD/Image-force-grant" root=/dev/vda \
    "disk=[$(virtio_disk "$DOMU_ROOT1" xvda w grant_usage=0)]" \
    'virtio=["type=virtio,device2,transport=mmio,grant_usage=0","type=virtio,device2,transport=mmio,grant_usage=1"]'
must "the guest comes up" up g1
check "its kernel has the option" guest g1 'busybox zcat /proc/config.gz | grep -x CONFIG_XEN_VIRTIO_FORCE_GRANT=y'
# Most other tests have the rig's usual kernel.
check "the usual one has it not" rig_fails eval 'busybox zcat /proc/config.gz | grep -x CONFIG_XEN_VIRTIO_FORCE_GRANT=y'
ACCESS_PLATFORM=$((1 << 33))
check "no grants for the disk without" same $(($(device g1 blk0 features) & ACCESS_PLATFORM)) 0
check "grants for the other" same $(($(device g1 blk1 features) & ACCESS_PLATFORM)) $ACCESS_PLATFORM
for name in foreign grants; do
    copies=$(show g1 .grant_copies)
    check "$name: verified I/O" guest g1 "$(fio_verify "\$(disk $name)" 8 2)"
    printf '        %s: %d copies of grants\n' $name $(($(show g1 .grant_copies) - copies))
done
check "some were copied" test "$(show g1 .grant_copies)" -gt 100
check "no request failed" no_errors
finish
