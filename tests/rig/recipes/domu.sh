# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# A domU's root, as a disk image and as an initramfs, with the rig's init and agent.

needs=(domu-tree tools)
inputs=(tests/rig/domu/init tests/rig/lib/disk.sh tests/rig/lib/thin.sh)
packages=(e2fsprogs cpio zstd binutils)

recipe() {
    local out=$1
    stage "packing"
    cp -a "$(artifact domu-tree)" root
    install -m 755 "$RIG/domu/init" root/init
    install -m 755 "$(artifact tools)"/rig-agent root/usr/sbin/rig-agent
    ln -s rig-agent root/usr/sbin/poweroff
    ln -s rig-agent root/usr/sbin/reboot
    make_disk root "$out/root.img" 768M domu-root
    # The initramfs is copied, unpacked and kept in a guest's memory, for seconds under emulation:
    # leave out what only the full-blown root needs.
    rm -rf root/usr/bin/{python3*,perl*,dpkg*,apt*,strace*,socat*,iperf3,curl*,rngtest} root/usr/sbin/arpd \
        root/usr/lib/python3* root/usr/share/{terminfo,zoneinfo,perl*,common-licenses}
    drop_unused_libraries root
    (cd root && find . -print0 | LC_ALL=C sort -z |
        cpio --null --create --format=newc --owner=0:0 --quiet) | zstd -q -6 -o "$out/initramfs"
}
