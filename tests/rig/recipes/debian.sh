# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# A Debian guest as its user has it: Debian's kernel and initramfs, a root disk with systemd, nothing
# of the rig in it. Packages are configured by their own scripts in an emulated machine (without
# Xen), so this machine needs neither binfmt_misc nor qemu-user.

needs=()
uses=(kernel)
inputs=(tests/rig/debian/second-stage)
packages=(debootstrap e2fsprogs qemu-system-arm)

recipe() {
    local out=$1 mirror
    mirror=$(debian_mirror)
    stage "downloading"
    debootstrap --arch=arm64 --foreign --variant=minbase --keyring="$(debian_keyring)" \
        --include=systemd-sysv,udev,dbus,linux-image-arm64,initramfs-tools,zstd,login,passwd,kmod,iproute2,procps \
        "$SUITE" root "$mirror"
    # Where debootstrap may not mount (in a container), it makes a link of this.
    rm -rf root/proc
    mkdir root/proc
    install -m 755 "$RIG/debian/second-stage" root/second-stage
    mke2fs -q -t ext4 -L debian-root -E root_owner=0:0 -d root "$out/root.img" 2G
    rm -rf root

    stage "configuring packages in an emulated machine (5 to 10 minutes)"
    TMPDIR=$PWD timeout 2700 qemu-system-aarch64 -machine virt,gic-version=3 -cpu cortex-a57 -smp 2 -m 1024 \
        -accel tcg,thread=multi -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -kernel "$(artifact kernel)/Image" -append "root=/dev/vda rw init=/second-stage panic=-1" \
        -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-device,rng=rng \
        -drive "if=none,id=root,file=$out/root.img,format=raw,cache=unsafe,discard=unmap" \
        -device virtio-blk-device,drive=root
    stage "taking kernel and initramfs out"
    # The links in / lead to the newest of each.
    local name
    mkdir boot
    for name in vmlinuz initrd.img; do
        debugfs -R "dump /boot/$(debugfs -R "stat /$name" "$out/root.img" |
            sed -n 's,.*Fast link dest: "boot/\(.*\)",\1,p') boot/${name%.img}" "$out/root.img"
        [[ -s boot/${name%.img} ]]
    done
    debugfs -R "stat /configured" "$out/root.img" | grep -q Inode
    mke2fs -q -t ext4 -O ^has_journal -d boot "$out/boot.img" 192M
}
