#!/usr/bin/env bash
# checks: unit tests run through at least 90 % of the lines of virtqueue*.c and of virtio_mmio.c
# timeout: 1800
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=build-tree.sh
. "$source_dir/tests/build/build-tree.sh"

least=90
must=(src/virtqueue.c src/virtqueue_chain.c src/virtqueue_grants.c src/virtqueue_split.c
    src/virtqueue_packed.c src/virtio_mmio.c)
report=("${must[@]}" src/virtio_device.c src/guest_memory.c src/grant_memory.c src/event_loop.c src/log.c)

build=$(build_tree coverage)
trap 'remove_tree "$build"' EXIT
cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_C_COMPILER=gcc -DVIOD_TESTS=ON \
    -DVIOD_COVERAGE=ON >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
# The tests of the core; the hooked ones run another copy of it.
mapfile -t tests < <(cd "$source_dir/tests/unit" &&
    ls test_virtqueue*.c test_virtio*.c test_restart*.c test_grants.c test_guest_memory.c test_event_loop.c test_log.c |
    sed 's/\.c$//' | grep -v _hooked)
cmake --build "$build" --target "${tests[@]}" >"$build/build.log" || { cat "$build/build.log"; exit 1; }
find "$build" -name '*.gcda' -delete
for name in "${tests[@]}"; do
    "$build/tests/unit/$name" >"$build/$name.log" 2>&1 || { cat "$build/$name.log"; exit 1; }
done

# percent FILE: "lines of lines, percent", from what gcov says of the core's object.
failed=0
printf '%-28s %8s %8s %8s\n' file lines run percent
for file in "${report[@]}"; do
    data=$build/CMakeFiles/viod_core.dir/$file.gcda
    [[ -e $data ]] || { echo "$file was never run"; exit 1; }
    read -r percent lines < <(gcov -n "$data" 2>/dev/null | sed -nE "\\,^File '.*$file'\$,{n
        s/^Lines executed:([0-9.]+)% of ([0-9]+)\$/\\1 \\2/p}")
    run=$(awk -v p="$percent" -v n="$lines" 'BEGIN { printf "%d", p * n / 100 + 0.5 }')
    verdict=
    if printf '%s\n' "${must[@]}" | grep -qx "$file" &&
        awk -v p="$percent" -v least="$least" 'BEGIN { exit !(p < least) }'; then
        verdict="  below $least %"
        failed=1
    fi
    printf '%-28s %8d %8d %7s%%%s\n' "$file" "$lines" "$run" "$percent" "$verdict"
    if [[ -n $verdict || -n ${VIOD_COVERAGE_LINES:-} ]]; then
        (cd "$build" && gcov "$data" >/dev/null 2>&1 && grep -n '#####' "${file##*/}.gcov" | head -60) || true
    fi
done
[[ $failed -eq 0 ]] || exit 1
echo "ok ${#must[@]} files are covered by $least % of their lines or more"
