# shellcheck shell=bash
# The packages of a domU's root, unpacked: a shell and the tools that tests use inside guests.

needs=()
inputs=()
packages=(mmdebstrap)

recipe() {
    local out=$1 list=(
        base-files base-passwd bash coreutils tar sed grep gawk mawk findutils diffutils
        util-linux mount procps kmod iproute2 iputils-ping ethtool e2fsprogs fio libaio1t64 xenstore-utils
        strace socat netcat-openbsd iperf3)
    stage "unpacking packages"
    local IFS=,
    debian_tree "$out" "${list[*]}"
    thin_tree "$out"
}
