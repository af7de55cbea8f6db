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
# The tests of the core; those of double fetches run a third copy of it.
mapfile -t tests < <(cd "$source_dir/tests/unit" &&
    ls test_virtqueue*.c test_virtio*.c test_restart*.c test_grants.c test_guest_memory.c test_event_loop.c test_log.c |
    sed 's/\.c$//' | grep -v _hooked)
cmake --build "$build" --target "${tests[@]}" >"$build/build.log" || { cat "$build/build.log"; exit 1; }
find "$build" -name '*.gcda' -delete
for name in "${tests[@]}"; do
    "$build/tests/unit/$name" >"$build/$name.log" 2>&1 || { cat "$build/$name.log"; exit 1; }
done

# lines FILE: which of its lines were run, by what gcov says of both copies of the core (that of the tests
# in which workers die is built for it): "1 123" for line 123, "0 124 text" for one that was not.
lines() {
    local core data found=()
    for core in viod_core viod_core_mortal; do
        data=$(find "$build" -path "*/$core.dir/*$1.gcda")
        [[ -z $data ]] || found+=("$data")
    done
    [[ ${#found[@]} -gt 0 ]] || { echo "$1 was never run" >&2; return 1; }
    for data in "${found[@]}"; do gcov -t "$data" 2>/dev/null; done | awk -F: -v file="/$1" '
        $2 + 0 == 0 && $3 == "Source" { ours = substr($4, length($4) - length(file) + 1) == file; next }
        !ours || $1 ~ /-$/ { next }
        { line = $2 + 0; known[line] = $0; if ($1 !~ /[#=]/) run[line] = 1 }
        END { for (line in known) print run[line] + 0, line, run[line] ? "" : known[line] }'
}
failed=0
printf '%-28s %8s %8s %8s\n' file lines run percent
for file in "${report[@]}"; do
    lines "$file" >"$build/lines"
    read -r all run percent < <(awk '{ run += $1 } END { printf "%d %d %.2f\n", NR, run, 100 * run / NR }' "$build/lines")
    verdict=
    if printf '%s\n' "${must[@]}" | grep -qx "$file" &&
        awk -v p="$percent" -v least="$least" 'BEGIN { exit !(p < least) }'; then
        verdict="  below $least %"
        failed=1
    fi
    printf '%-28s %8d %8d %7s%%%s\n' "$file" "$all" "$run" "$percent" "$verdict"
    if [[ -n $verdict || -n ${VIOD_COVERAGE_LINES:-} ]]; then
        grep '^0' "$build/lines" | sort -n -k2 | cut -d' ' -f3- | head -60
    fi
done
[[ $failed -eq 0 ]] || exit 1
echo "ok ${#must[@]} files are covered by $least % of their lines or more"
