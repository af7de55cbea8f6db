# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# Headers and libraries of Debian arm64 to cross-compile viod against; see arm64-toolchain.cmake.

needs=()
inputs=(tests/rig/lib/tree.sh)
packages=(mmdebstrap clang lld cmake ninja-build pkg-config)

recipe() {
    local out=$1 dev=(libc6-dev linux-libc-dev libgcc-14-dev libxen-dev liburing-dev libinih-dev
        libseccomp-dev libcap-dev libcmocka-dev libsystemd-dev)
    stage "unpacking ${#dev[@]} development packages and their libraries"
    debian_tree "$out" "${dev[@]}"
    # Absolute links would lead out of the sysroot.
    local link target
    while IFS= read -r -d '' link; do
        target=$(readlink "$link")
        ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$out$target")" "$link"
    done < <(find "$out" -type l -lname '/*' -print0)
}
