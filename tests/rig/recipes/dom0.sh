# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# dom0's root disk: the packages, the kernel for domUs and its modules, the domU's initramfs.
# What changes from one boot to the next (viod, the script, the rig's own dom0 scripts) comes as payload.

needs=(dom0-tree kernel domu tools)
inputs=(tests/rig/dom0/init tests/rig/lib/disk.sh)
packages=(e2fsprogs)

recipe() {
    local out=$1
    stage "packing"
    cp -a "$(artifact dom0-tree)" root
    install -m 755 "$RIG/dom0/init" root/init
    install -m 755 "$(artifact tools)"/{rig-exec,rig-follow} root/usr/sbin
    mkdir -p root/rig root/lib/modules
    cp -a "$(artifact kernel)"/lib/modules/. root/lib/modules
    cp "$(artifact kernel)/Image" root/rig/Image
    cp "$(artifact domu)/initramfs" root/rig/initramfs
    make_disk root "$out/root.img" 2G dom0-root
}
