#!/usr/bin/env bash
# checks: no data race between MMIO thread, I/O threads and a guest that races them (ThreadSanitizer)
# timeout: 1800
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=build-tree.sh
. "$source_dir/tests/build/build-tree.sh"

tests=(event_loop virtqueue_events virtio_threads virtio_hostile restart blk net console rng vsock)
build=$(build_tree thread-sanitizer)
trap 'remove_tree "$build"' EXIT
cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_C_COMPILER=gcc -DVIOD_TESTS=ON \
    -DVIOD_SANITIZE=thread >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --target "${tests[@]/#/test_}" >"$build/build.log" ||
    { cat "$build/build.log"; exit 1; }
for name in "${tests[@]}"; do
    # Its shadow memory needs addresses that randomization may give to others.
    TSAN_OPTIONS=halt_on_error=1 setarch -R "$build/tests/unit/test_$name" >"$build/$name.log" 2>&1 ||
        { cat "$build/$name.log"; exit 1; }
    echo "ok $name"
done
