# shellcheck shell=bash
# Functions for test scripts in dom0. Every script of tests/rig/boot has them (through BASH_ENV).

# --- checks -----------------------------------------------------------------------

rig_failed=0

# check WHAT COMMAND…: runs COMMAND; "ok" or "not ok" and WHAT; what it printed only if it failed.
check() {
    local what=$1 output status=0
    shift
    output=$("$@" 2>&1) || status=$?
    if [[ $status -eq 0 ]]; then
        printf 'ok      %s\n' "$what"
        return 0
    fi
    printf 'not ok  %s   (status %d: %s)\n' "$what" "$status" "$*"
    [[ -z $output ]] || printf '        %s\n' "${output//$'\n'/$'\n        '}"
    rig_failed=$((rig_failed + 1))
    return 1
}

# check_not WHAT COMMAND…: the same for a command that has to fail.
check_not() {
    local what=$1
    shift
    check "$what" rig_fails "$@"
}
rig_fails() { ! "$@"; }

# same A B: for check; says what differs.
same() { [[ $1 == "$2" ]] || { printf 'this: %s\nthat: %s\n' "$1" "$2"; return 1; }; }

# finish: the last line of a script: its status is whether every check held.
finish() {
    [[ $rig_failed -eq 0 ]] || printf '%d checks failed\n' "$rig_failed"
    exit $((rig_failed > 0))
}

die() {
    printf 'FATAL: %s\n' "$*"
    exit 1
}

# wait_for SECONDS CONDITION: until CONDITION, a piece of shell, is true.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until eval "$*"; do
        if [[ $SECONDS -ge $end ]]; then
            printf 'waited in vain for: %s\n' "$*"
            return 1
        fi
        sleep 0.1
    done
}

# --- domUs --------------------------------------------------------------------------

# domu_config NAME [KEY=VALUE…]: prints an xl.cfg. VALUE is as in an xl.cfg, but quotes around
# plain words may be left out. Without `root` the domU runs from the initramfs.
#   root=/dev/vda   what it boots from instead
#   cmdline=TEXT    added to the kernel's command line
# With `boot --grants`, devices of disk= and virtio= that do not say otherwise have grant_usage=1.
domu_config() {
    local name=$1 pair key
    local -A keys=([name]=$name [kernel]=$KERNEL [memory]=384 [vcpus]=1)
    local cmdline="console=hvc0 hostname=$name oops=panic panic=-1 null_blk.nr_devices=0"
    shift
    for pair in "$@"; do
        keys[${pair%%=*}]=${pair#*=}
    done
    if [[ -n ${keys[root]:-} ]]; then
        cmdline+=" root=${keys[root]} rw init=/init"
    elif [[ -z ${keys[ramdisk]:-} ]]; then
        keys[ramdisk]=$DOMU_INITRAMFS
        cmdline+=" rdinit=/init"
    fi
    [[ -n ${keys[extra]:-} ]] || keys[extra]="$cmdline ${keys[cmdline]:-}"
    unset 'keys[root]' 'keys[cmdline]'
    for key in disk virtio; do
        [[ -n ${RIG_GRANTS:-} && -n ${keys[$key]:-} && ${keys[$key]} != *grant_usage=* ]] || continue
        keys[$key]=${keys[$key]//specification=virtio/specification=virtio,grant_usage=1}
        keys[$key]=${keys[$key]//transport=mmio/transport=mmio,grant_usage=1}
    done
    for key in "${!keys[@]}"; do
        case ${keys[$key]} in
            \[* | \"* | \'*) printf '%s=%s\n' "$key" "${keys[$key]}" ;;
            *) printf '%s="%s"\n' "$key" "${keys[$key]}" ;;
        esac
    done
}

# virtio_disk PATH VDEV [MODE [MORE…]]: prints an item for disk=[…].
virtio_disk() {
    local path=$1 vdev=$2 mode=${3:-w} more
    shift $(($# < 3 ? $# : 3))
    printf '"format=raw,vdev=%s,access=%s,backendtype=standalone,specification=virtio' "$vdev" "$mode"
    for more in "$@"; do printf ',%s' "$more"; done
    printf ',target=%s"' "$path"
}

# domu_create NAME [KEY=VALUE…]: as domu_config, and creates it; the xl.cfg is /rig/NAME.cfg.
domu_create() {
    domu_config "$@" >"/rig/$1.cfg"
    xl create "/rig/$1.cfg" >"/rig/$1.create" 2>&1 </dev/null || {
        echo "xl create $1 failed:"
        cat "/rig/$1.create"
        return 1
    }
}

domu_id() { xl domid "$1"; }

# domu_ready NAME [SECONDS]: until its agent takes jobs.
domu_ready() { rig-exec -w -t "${2:-180}" "$1" </dev/null; }

# domu_run [-t SECONDS] NAME SCRIPT: runs SCRIPT, a text, with bash in the domU; prints what it
# prints, returns its status; 124 when time (120 s) is up, 125 when the domain is not there or dies.
domu_run() {
    local time=120
    if [[ $1 == -t ]]; then
        time=$2
        shift 2
    fi
    rig-exec -t "$time" "$1" <<<"$2"
}

# domu_start_job [-t SECONDS] NAME SCRIPT: the same in the background; sets $job, for
# domu_wait JOB: prints the job's output, returns its status.
declare -A rig_jobs=()
domu_start_job() {
    local output
    output=$(mktemp /tmp/job.XXXXXX)
    { domu_run "$@" >"$output" 2>&1; echo $? >"$output.status"; } &
    job=$!
    rig_jobs[$job]=$output
}
domu_wait() {
    local output=${rig_jobs[$1]} status
    # By its file, and not by `wait`: that knows only children of this very shell, and check has another.
    until [[ -s $output.status ]]; do sleep 0.1; done
    status=$(<"$output.status")
    cat "$output"
    rm -f "$output" "$output.status"
    return "$status"
}

# domu_console NAME: the path of the file that has all its console output.
domu_console() { printf '/var/log/xen/console/guest-%s.log\n' "$1"; }

# wait_console NAME REGEX [SECONDS]: until a line of its console matches.
wait_console() {
    wait_for "${3:-180}" grep -qaE "$(printf %q "$2")" "$(domu_console "$1")" '2>/dev/null'
}

# domu_destroy NAME…
domu_destroy() {
    local name
    for name in "$@"; do xl destroy "$name"; done
}

# domu_gone NAME: no domain has that name any more (and none is left without one).
domu_gone() { ! xl list 2>/dev/null | grep -qE "^($1|\(null\)) "; }

# domu_shutdown NAME [SECONDS]: an orderly end, and until it is over.
domu_shutdown() {
    xl shutdown "$1" >/dev/null
    wait_for "${2:-120}" domu_gone "$1"
}

# domu_reboot NAME [SECONDS]: reboots it from inside and waits till the new one takes jobs.
domu_reboot() {
    local old sender status=0
    old=$(domu_id "$1")
    rig-exec -t 20 "$1" <<<reboot >/dev/null 2>&1 & # nobody will say that it was done
    sender=$!
    wait_for "${2:-120}" "new=\$(xl domid $1 2>/dev/null) && [[ \$new -ne $old ]]" && domu_ready "$1" "${2:-180}" || status=$?
    kill "$sender" 2>/dev/null
    wait "$sender" 2>/dev/null
    return "$status"
}

# A domU's kernel panic ends the whole run, unless the script says that it expects one.
allow_guest_panic() { touch /rig/allow-guest-panic; }
