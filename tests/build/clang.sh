#!/usr/bin/env bash
# checks: all of it, tests and fuzz targets too, compiles with clang without a warning
# timeout: 1800
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=build-tree.sh
. "$source_dir/tests/build/build-tree.sh"

command -v clang >/dev/null || { echo "clang is not installed: apt install clang"; exit 1; }
build=$(build_tree clang)
trap 'remove_tree "$build"' EXIT
cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_C_COMPILER=clang -DVIOD_TESTS=ON \
    -DVIOD_FUZZ=ON >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
# Warnings are errors in every target (viod_options).
cmake --build "$build"
echo "ok clang $(clang -dumpversion) builds everything"
