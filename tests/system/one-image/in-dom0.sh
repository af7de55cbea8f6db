# shellcheck shell=bash
# shellcheck disable=SC2154 # DISK_… comes with tests/rig/boot --disk
# The Xen half of tests/build/arch-one-image.sh: the image is $DISK_ONE_IMAGE.
md5sum <"$KERNEL" >"$OUT/kernel.md5"
md5sum <"$DISK_ONE_IMAGE" >"$OUT/image.md5"
ip link add xenbr0 type bridge && ip addr add 10.0.2.2/24 dev xenbr0 && ip link set xenbr0 up
printf '[net0]\nbridge = xenbr0\n' >/etc/viod/one-image.conf
domu_create one-image "disk=[$(virtio_disk "$DISK_ONE_IMAGE" xvda)]" "extra=console=hvc0 root=/dev/vda rw init=/selftest" \
    'virtio=["type=virtio,device1,transport=mmio","type=virtio,device3,transport=mmio","type=virtio,device4,transport=mmio"]' \
    root=/dev/vda || die "xl create failed"
wait_console one-image '^selftest: (passed|FAILED)' 120
cp "$(domu_console one-image)" "$OUT/console"
check "no request failed" eval '! viodctl --json list | grep -E "\"(errors|needs_reset)\":[1-9]"'
finish
