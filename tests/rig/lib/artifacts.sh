# shellcheck shell=bash
# The cache of built things. Each is made by recipes/NAME.sh, which sets
#   needs=(NAME…)     other artifacts it is made from
#   uses=(NAME…)      artifacts that help to make it, but leave no trace in it
#   inputs=(FILE…)    files of the checkout it is made from, relative to it
#   packages=(NAME…)  packages that making it needs on this machine
# and defines `recipe OUT`, which fills the folder OUT. An artifact is kept in a folder
# named after a hash of all that it is made from, so a changed recipe never meets an old result,
# and two checkouts with the same recipe share one.

# shellcheck disable=SC2034 # for `build --list`
ARTIFACTS=(sysroot xen flask kernel tools dom0-tree domu-tree domu dom0 debian)
declare -A artifact_keys=()

load_recipe() {
    needs=() uses=() inputs=() packages=()
    [[ -r $RIG/recipes/$1.sh ]] || die "no such artifact: $1"
    # shellcheck source=/dev/null
    . "$RIG/recipes/$1.sh"
}

# hash_inputs FILE…: comments in shell files and fragments make no difference.
hash_inputs() {
    local file
    for file in "$@"; do
        if [[ $file == *.sh || $file == *fragment ]]; then
            sed '/^ *#/{/is not set/!d;}' "$file" | sha256sum
        else
            sha256sum "$file"
        fi
    done
}

# Sets artifact_keys[NAME] for NAME and all that it needs.
artifact_key() {
    local name=$1 need text
    [[ -z ${artifact_keys[$name]:-} ]] || return 0
    local needs uses inputs packages
    load_recipe "$name"
    text="$SUITE ${packages[*]}"
    for need in "${needs[@]}"; do
        artifact_key "$need"
        text+=" ${artifact_keys[$need]}"
    done
    text+=$(cd "$CHECKOUT" && hash_inputs "tests/rig/recipes/$name.sh" "${inputs[@]}")
    text=$(sha256sum <<<"$text")
    artifact_keys[$name]=${text:0:16}
}

# artifact NAME: prints the folder where NAME is, or will be.
artifact() {
    artifact_key "$1"
    printf '%s\n' "$CACHE/artifacts/$1-${artifact_keys[$1]}"
}

artifact_exists() {
    artifact_key "$1"
    [[ -d $CACHE/artifacts/$1-${artifact_keys[$1]} ]]
}

# stage TEXT: said by recipes as they go on.
stage() {
    printf '[%4d s] %s: %s\n' "$SECONDS" "$recipe_name" "$*" >&3
}

# ensure_artifact NAME: builds NAME, and first what it needs, unless it is there.
ensure_artifact() {
    local name=$1 out need
    artifact_key "$name"
    out=$CACHE/artifacts/$name-${artifact_keys[$name]}
    if [[ -d $out ]]; then
        touch "$out"
        return 0
    fi
    local needs uses inputs packages
    load_recipe "$name"
    local own_packages=("${packages[@]}")
    for need in "${needs[@]}" "${uses[@]}"; do
        ensure_artifact "$need"
    done
    host_packages "${own_packages[@]}"
    mkdir -p "$CACHE"/{artifacts,locks,logs,tmp}
    local log=$CACHE/logs/build-$name.log status=0
    # Another call may be building it right now: wait for it, then look again.
    exec {lock}>"$CACHE/locks/$name-${artifact_keys[$name]}"
    flock -n "$lock" || { note "[$(printf '%4d' $SECONDS) s] $name: waiting for another build"; flock "$lock"; }
    if [[ ! -d $out ]]; then
        build_artifact "$name" "$out" "$log" || status=$?
    fi
    exec {lock}>&-
    return "$status"
}

build_artifact() {
    local name=$1 out=$2 log=$3 work
    # What builds that were killed have left.
    find "$CACHE/tmp" -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {} +
    work=$(mktemp -d "$CACHE/tmp/$name.XXXXXX")
    # In a process of its own: a recipe may change folder and environment as it likes, and
    # `set -e` holds in it whatever calls us.
    mkdir "$work/out"
    local status=0
    "$RIG/build" --recipe "$name" "$work" "$SECONDS" 3>&2 >"$log" 2>&1 </dev/null || status=$?
    if [[ $status -eq 0 ]]; then
        # An older result stays a week for the checkouts that still have its recipe.
        find "$CACHE/artifacts" -mindepth 1 -maxdepth 1 -name "$name-????????????????" -mtime +7 \
            -exec rm -rf {} +
        chmod 755 "$work/out"
        # A root tree carries the date of its package; ours is the day of its last use.
        touch "$work/out"
        mv -T "$work/out" "$out"
    else
        tail -n 25 "$log" >&2
        note "$name: building failed; the full log is $log"
    fi
    rm -rf "$work"
    return "$status"
}

# run_recipe NAME WORK SECONDS: the process of its own. Its descriptor 3 is where stages are announced.
run_recipe() {
    recipe_name=$1
    cd "$2"
    SECONDS=$3
    load_recipe "$recipe_name"
    recipe "$PWD/out"
    stage "done"
}
