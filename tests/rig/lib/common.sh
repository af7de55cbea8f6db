# shellcheck shell=bash
# What every script of the rig shares: where things are, how to speak, how to fail.
# Sourced, never run.
# shellcheck disable=SC2034 # what it sets is for those who source it

RIG=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CHECKOUT=$(cd "$RIG/../.." && pwd)
CACHE=${VIOD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/viod}
# The Debian release that Xen, the kernel and all root images come from.
SUITE=trixie

note() { printf '%s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# as_root COMMAND…: installing packages is the only thing that needs it.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "root (or sudo) is needed for: $*"
    fi
}

# host_packages PACKAGE…: installs those that this machine lacks. Every call of the
# rig comes through here, so the usual case, all present, must cost next to nothing.
host_packages() {
    local missing=() package present
    # shellcheck disable=SC2016 # dpkg's own placeholders
    present=$(dpkg-query -W -f ' ${Package}=${db:Status-Status} ' "$@" 2>/dev/null) || true
    for package in "$@"; do
        [[ $present == *" $package=installed "* ]] || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    note "installing on this machine: ${missing[*]}"
    mkdir -p "$CACHE/locks" "$CACHE/logs"
    local log=$CACHE/logs/apt.log
    (
        flock 9
        export DEBIAN_FRONTEND=noninteractive
        if ! as_root apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends \
            "${missing[@]}"; then
            as_root apt-get -o DPkg::Lock::Timeout=600 update
            as_root apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends \
                "${missing[@]}"
        fi
    ) 9>"$CACHE/locks/apt" >"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        die "cannot install ${missing[*]}; the full log is $log"
    }
}
