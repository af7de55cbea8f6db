# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# One Linux image for dom0 and domUs from Debian's kernel source, and the very few modules that
# cannot be built in.

needs=()
inputs=(configs/kernel.config-fragment tests/rig/kernel.config-fragment)
packages=(gcc-aarch64-linux-gnu make gcc libc6-dev bison flex bc kmod xz-utils libssl-dev libelf-dev python3)

recipe() {
    local out=$1 config
    stage "downloading"
    config=$(debian_apt_config "$PWD/apt")
    APT_CONFIG=$config apt-get download linux-source-6.12
    dpkg-deb -x linux-source-6.12_*.deb package
    mkdir linux
    tar -C linux --strip-components=1 -xf package/usr/src/linux-source-6.12.tar.xz
    stage "building (4 minutes on 2 CPUs)"
    export ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
    (cd "$CHECKOUT" && cat "${inputs[@]}") >fragment
    make -C linux -s KCONFIG_ALLCONFIG="$PWD/fragment" allnoconfig
    check_config linux/.config "${inputs[@]}"
    make -C linux -j"$(nproc)" Image modules
    make -C linux -s INSTALL_MOD_PATH="$out" modules_install
    rm -f "$out"/lib/modules/*/build
    cp linux/arch/arm64/boot/Image "$out"
    cp linux/.config "$out/config"
    # What some distributions set, for guests: viod is to work with either.
    echo CONFIG_XEN_VIRTIO_FORCE_GRANT=y >>linux/.config
    make -C linux -s olddefconfig
    grep -qx CONFIG_XEN_VIRTIO_FORCE_GRANT=y linux/.config
    make -C linux -j"$(nproc)" Image
    cp linux/arch/arm64/boot/Image "$out/Image-force-grant"
}
