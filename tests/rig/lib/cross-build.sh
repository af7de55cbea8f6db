# shellcheck shell=bash
# viod for Arm64 from this checkout, as an install tree.

# cross_build TREE [CMAKE-OPTION…]: adds to TREE what `cmake --install` puts on a system; nothing if
# this checkout has no viod. Quiet unless it fails.
cross_build() {
    local tree=$1
    shift
    if [[ ! -e $CHECKOUT/CMakeLists.txt ]]; then
        note "this checkout has no CMakeLists.txt: booting without viod"
        return 0
    fi
    local key dir sysroot
    sysroot=$(artifact sysroot)
    key=$(sha256sum <<<"$CHECKOUT $sysroot${*:+ $*}")
    dir=$CACHE/builds/arm64-${key:0:16}
    mkdir -p "$dir" "$CACHE/logs"
    host_packages clang lld cmake ninja-build pkg-config
    # Under a lock, as two boots may build at the same time; joined by &&, because `set -e` does
    # not hold in a function whose failure is handled.
    (
        flock 9
        if [[ ! -e $dir/build.ninja ]]; then
            rm -rf "$dir"
            cmake -S "$CHECKOUT" -B "$dir" -G Ninja --toolchain "$RIG/arm64-toolchain.cmake" \
                -DVIOD_SYSROOT="$sysroot" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
                -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_INSTALL_LIBDIR=lib/aarch64-linux-gnu \
                -DBUILD_TESTING=OFF "$@"
        fi &&
            cmake --build "$dir" &&
            DESTDIR=$tree cmake --install "$dir" --strip
    ) 9>"$dir.lock" >"$dir.log" 2>&1 || {
        tail -n 40 "$dir.log" >&2
        die "building viod failed; the full log is $dir.log"
    }
}

# cross_build_beside TREE NAME CMAKE-OPTION…: adds /usr/sbin/viod-NAME, the same program built otherwise.
cross_build_beside() {
    local tree=$1 name=$2 other
    shift 2
    other=$(mktemp -d)
    cross_build "$other" "$@" && install -D "$other/usr/sbin/viod" "$tree/usr/sbin/viod-$name"
    rm -rf "$other"
}
