# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# Xen for Arm64 from Debian's source package, with what viod needs switched on.

needs=()
inputs=(configs/xen.config-fragment tests/rig/xen.config-fragment)
packages=(gcc-aarch64-linux-gnu make gcc libc6-dev bison flex python3 xz-utils patch checkpolicy)

recipe() {
    local out=$1
    stage "downloading"
    debian_source xen
    debian_unpack xen
    stage "building"
    export XEN_TARGET_ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
    make -C xen/xen defconfig
    (cd "$CHECKOUT" && cat "${inputs[@]}") >>xen/xen/.config
    make -C xen/xen olddefconfig
    check_config xen/xen/.config "${inputs[@]}"
    make -C xen/xen -j"$(nproc)"
    cp xen/xen/xen xen/xen/.config "$out"
}
