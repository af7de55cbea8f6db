# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC1091,SC2154 # DISK_… comes with tests/rig/boot --disk
# checks: one guest image and one kernel, byte for byte, pass the same test of their devices in plain QEMU and on Xen with viod
# host: one-image/in-qemu
# boot: --disk "ONE_IMAGE=$SCRATCH/image"
# files: common.bash "$SCRATCH/sums" "$SCRATCH/qemu.console" "$SCRATCH/qemu.port"
# timeout: 1500
. ./common.bash

# verdict WHERE CONSOLE PORT: what the self-test said there, and what its port gave.
verdict() {
    local line
    while IFS= read -r line; do
        case $line in
            'selftest: ok '*) check "$1: ${line#selftest: ok }" true ;;
        esac
    done < <(tr -d '\r' <"$2")
    check "$1: the self-test passes" eval "tr -d '\r' <$2 | grep -qax 'selftest: passed' || { tail -n 25 $2; false; }"
    check "$1: what came from its port is what it wrote" same "$(md5sum <"$3")" "$(seq 20000 | md5sum)"
}
verdict "in QEMU" qemu.console qemu.port

. ./sums
check "the kernel is the same, byte for byte" same "$(md5sum <"$KERNEL")" "$kernel_sum"
check "so is the image" same "$(md5sum <"$DISK_ONE_IMAGE")" "$image_sum"
ip link add xenbr0 type bridge && ip addr add 10.0.2.2/24 dev xenbr0 && ip link set xenbr0 up
configure one-image <<END
[net0]
bridge = xenbr0
[console0]
ports = console selftest
[console0.selftest]
backend = file
path = /tmp/port
END
must "xl creates the guest" domu_create one-image "disk=[$(virtio_disk "$DISK_ONE_IMAGE" xvda)]" \
    "extra=console=hvc0 root=/dev/vda rw init=/selftest" root=/dev/vda \
    'virtio=["type=virtio,device1,transport=mmio","type=virtio,device3,transport=mmio","type=virtio,device4,transport=mmio"]'
check "the self-test comes to its end" wait_for "$LONG" \
    "grep -qaE '^selftest: (passed|FAILED)' $(domu_console one-image)"
check "the guest ends by itself" wait_for "$LONG" domu_gone one-image
verdict "on Xen" "$(domu_console one-image)" /tmp/port
finish
