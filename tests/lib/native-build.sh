# shellcheck shell=bash
# Builds of viod for this machine, for unit tests and fuzzing. Needs rig/lib/common.sh.

# native_build_dir KIND: where the build is; one for each checkout, outside of it.
native_build_dir() {
    local key
    key=$(sha256sum <<<"$CHECKOUT")
    printf '%s/builds/%s-%s\n' "$CACHE" "$1" "${key:0:16}"
}

# native_build KIND: gcc (unit tests under sanitizers) or fuzz (clang). Incremental; quiet unless it fails.
native_build() {
    local kind=$1 dir options
    dir=$(native_build_dir "$kind")
    host_packages gcc libc6-dev cmake ninja-build pkg-config libxen-dev liburing-dev libinih-dev \
        libseccomp-dev libcap-dev libcmocka-dev libsystemd-dev
    case $kind in
        gcc)
            options=(-DCMAKE_C_COMPILER=gcc -DVIOD_TESTS=ON "-DVIOD_SANITIZE=address,undefined")
            ;;
        fuzz)
            host_packages clang lld libclang-rt-dev
            options=(-DCMAKE_C_COMPILER=clang -DVIOD_FUZZ=ON "-DVIOD_SANITIZE=address,undefined")
            ;;
    esac
    note "building viod ($kind)"
    mkdir -p "$dir"
    (
        flock 9
        cmake -S "$CHECKOUT" -B "$dir" -G Ninja "${options[@]}" && cmake --build "$dir"
    ) 9>"$dir.lock" >"$dir.log" 2>&1 || {
        tail -n 40 "$dir.log" >&2
        note "building viod ($kind) failed; the full log is $dir.log"
        return 1
    }
}

# build_rig NAME…: all that these tests boot; the Debian guest only if one of them asks for it.
build_rig() {
    local artifacts=() name
    for name in "$@"; do
        [[ $name == system/* && $(test_header "$name" boot) == *--debian* ]] || continue
        artifacts=(sysroot xen kernel tools dom0 domu debian)
        break
    done
    note "building the rig, unless it is there"
    "$RIG/build" "${artifacts[@]}"
}
