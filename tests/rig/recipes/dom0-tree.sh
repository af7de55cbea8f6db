# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# The packages of dom0's root, unpacked: Xen's tools, what viod needs at run time, what tests use.

needs=()
inputs=(tests/rig/lib/tree.sh tests/rig/lib/thin.sh)
packages=(mmdebstrap binutils clang lld)

recipe() {
    local out=$1 list=(
        base-files base-passwd bash coreutils tar sed grep gawk mawk findutils diffutils
        util-linux mount procps psmisc kmod iproute2 iputils-ping bridge-utils ethtool nftables
        e2fsprogs dmsetup fio strace lsof socat netcat-openbsd jq xz-utils gzip zstd
        xen-utils-4.20 xenstore-utils libxendevicemodel1 libxenforeignmemory1 libxenevtchn1
        libxengnttab1 libxenstore4 libxentoolcore1 liburing2 libinih1 libseccomp2 libcap2
        libcap2-bin libsystemd0 libcmocka0
        gpiod i2c-tools can-utils alsa-utils evtest iperf3 dnsmasq-base passt tcpdump curl busybox)
    stage "unpacking packages"
    debian_tree "$out" "${list[@]}"
    thin_tree "$out"
    thin_fio "$out"
    # xl and its kin, on PATH for everybody.
    local tool
    for tool in "$out"/usr/lib/xen-4.20/bin/*; do
        [[ -e $out/usr/sbin/${tool##*/} && ! -L $out/usr/sbin/${tool##*/} ]] &&
            rm "$out/usr/sbin/${tool##*/}"
        ln -sf "../lib/xen-4.20/bin/${tool##*/}" "$out/usr/sbin/${tool##*/}"
    done
}
