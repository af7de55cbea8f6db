# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# The packages of a domU's root, unpacked: a shell and the tools that tests use inside guests.

needs=()
inputs=(tests/rig/lib/tree.sh tests/rig/lib/thin.sh)
packages=(mmdebstrap binutils clang lld)

recipe() {
    local out=$1 list=(
        base-files base-passwd bash coreutils tar sed grep gawk mawk findutils diffutils
        util-linux mount procps kmod iproute2 iputils-ping ethtool e2fsprogs fio libaio1t64 xenstore-utils
        strace socat netcat-openbsd iperf3 rng-tools5 curl busybox)
    stage "unpacking packages"
    debian_tree "$out" "${list[@]}"
    thin_tree "$out"
    thin_fio "$out"
}
