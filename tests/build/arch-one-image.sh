#!/usr/bin/env bash
# checks: one guest image and one kernel, byte for byte, pass the same test of their devices on Xen with viod and in plain QEMU
# timeout: 900
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../rig/lib/common.sh
. "$tests/rig/lib/common.sh"

host_packages qemu-system-arm e2fsprogs
"$tests/rig/build" kernel domu
kernel=$("$tests/rig/build" --path kernel)/Image
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image=$work/image
cp --sparse=always "$("$tests/rig/build" --path domu)/root.img" "$image"
# What debugfs writes belongs to the user who runs it, and has the file's mode.
debugfs -w -R "write $tests/system/one-image/selftest /selftest" "$image" 2>/dev/null
debugfs -w -R "set_inode_field /selftest mode 0100755" "$image" 2>/dev/null

# verdict NAME CONSOLE: what the self-test said there.
failed=0
verdict() {
    sed -n "s/\r*\$//; s/^selftest:/$1: &/p" "$2"
    if tr -d '\r' <"$2" | grep -qa '^selftest: passed$'; then
        echo "ok $1: the self-test passed"
    else
        echo "not ok $1: the self-test did not pass; the end of its console:"
        tail -n 15 "$2"
        failed=1
    fi
}

# --- in plain QEMU ------------------------------------------------------------------------------
touch "$work/qemu.console"
TMPDIR=$work timeout 200 qemu-system-aarch64 -machine virt,gic-version=3 -cpu cortex-a57 -smp 1 -m 384 \
    -accel tcg -nodefaults -no-user-config -display none -no-reboot \
    -global virtio-mmio.force-legacy=false \
    -kernel "$kernel" -append "console=hvc0 root=/dev/vda rw init=/selftest" \
    -netdev user,id=net -device virtio-net-device,netdev=net \
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-device,rng=rng \
    -chardev "file,id=console,path=$work/qemu.console" \
    -device virtio-serial-device -device virtconsole,chardev=console,name=console \
    -drive "if=none,id=root,file=$image,format=raw,snapshot=on" -device virtio-blk-device,drive=root ||
    echo "QEMU ended with status $?"
verdict "in QEMU" "$work/qemu.console"

# --- on Xen -----------------------------------------------------------------------------------------
status=0
"$tests/rig/boot" --disk ONE_IMAGE="$image" --out "$work/out" --timeout 250 "$tests/system/one-image/in-dom0.sh" || status=$?
[[ $status -eq 0 ]] || failed=1
verdict "on Xen" "$work/out/console"
for what in kernel image; do
    file=$image
    [[ $what == image ]] || file=$kernel
    if [[ $(md5sum <"$file") == "$(<"$work/out/$what.md5")" ]]; then
        echo "ok the $what is the same, byte for byte"
    else
        echo "not ok the $what differs"
        failed=1
    fi
done
exit "$failed"
