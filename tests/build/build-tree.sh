# shellcheck shell=bash
# Where a test's own build of viod goes. Sourced.

# build_tree NAME: prints a folder. VIOD_BUILD_CACHE or SCRATCH name one that is kept, so that the
# next build is quick; else it is a new one below the user's cache, removed at the end.
build_tree() {
    local keep=${VIOD_BUILD_CACHE:-${SCRATCH:-}} tree
    if [[ -n $keep ]]; then
        tree=$keep/$1
        mkdir -p "$tree"
    else
        mkdir -p "${XDG_CACHE_HOME:-$HOME/.cache}/viod/build"
        tree=$(mktemp -d "${XDG_CACHE_HOME:-$HOME/.cache}/viod/build/$1.XXXXXX")
    fi
    printf '%s\n' "$tree"
}

# remove_tree FOLDER: unless it is kept.
remove_tree() {
    [[ -n ${VIOD_BUILD_CACHE:-${SCRATCH:-}} ]] || rm -rf "$1"
}
