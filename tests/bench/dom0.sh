# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables of the plan, and for back ends
# The part of the benchmark that runs in dom0: starts back ends and jobs in turn, and leaves what it
# read in $OUT, one folder per measurement. It computes nothing.

# shellcheck disable=SC1091  # written by tests/bench/run
. ./plan
# From ./plan: rounds, runtime, guest_cpus, backends=(LABEL…), and for each label
# backend_file[LABEL], backend_args[LABEL]; jobs=("VCPUS NAME OPTIONS"…); counts (yes or no); kind.

# What is special about this kind of device:
#   bench_prepare       once, at first; prints lines for `setup`
#   bench_clean         before each back end starts; sets guest_irq, which matches the device's lines
#                       in the guest's /proc/interrupts
#   bench_guest_keys    keys of the guest's xl.cfg beyond those of the back end
#   warm_up             after a back end's start: the guest is made ready, and its memory known
#   load OPTIONS…       prints what the guest runs; its result is left in the file load_result OPTIONS…
#   noise_options       options of a load that does next to nothing
bench_guest_keys=()
# shellcheck source=kinds/block.sh
. "./kinds/$kind.sh"

# --- for back ends ---------------------------------------------------------------------
bench_guest=bench
bench_backends=$PWD/backends
export bench_guest bench_backends

# bench_guest_start [KEY=VALUE…]: creates the guest, which is the same for all back ends, with these
# keys of its xl.cfg, and waits until it runs.
bench_guest_start() {
    domu_create "$bench_guest" "vcpus=$vcpus" memory=256 "cpus=$guest_cpus" "${bench_guest_keys[@]}" \
        "$@" && domu_ready "$bench_guest" 90
}

bench_guest_stop() {
    domu_destroy "$bench_guest" && wait_for 30 "domu_gone $bench_guest"
}

# Of viod: bench_args as viod_device, lines for the device's section, and viod_grants; viod runs with
# those that are the daemon's.
viod_settings() {
    local pair daemon=''
    viod_device='' viod_grants=0
    local IFS=,
    for pair in $bench_args; do
        case ${pair%%=*} in
            grants) viod_grants=1 ;;
            iothreads | cpus | poll-max-us | log-level) daemon+=$pair$'\n' ;;
            *) viod_device+=$pair$'\n' ;;
        esac
    done
    unset IFS
    viod_daemon_settings "$daemon"
}

# viod_daemon_settings LINES: starts viod, or viod_program, anew if it does not run with these.
viod_daemon_settings() {
    local main=/etc/viod/viod.conf wanted program
    [[ -e /etc/viod/viod.conf.installed ]] || cp "$main" /etc/viod/viod.conf.installed
    wanted=$(cat /etc/viod/viod.conf.installed && printf '%s' "$1")
    program=$(type -P "${viod_program:-viod}")
    [[ $wanted != "$(<"$main")" || ! $program -ef /proc/$(</run/viod-rig.pid)/exe ]] || return 0
    printf '%s\n' "$wanted" >"$main"
    kill "$(</run/viod-rig.pid)"
    wait_for 10 '! viodctl version >/dev/null 2>&1'
    setsid "$program" --config "$main" >>/var/log/viod.log 2>&1 </dev/null &
    echo $! >/run/viod-rig.pid
    wait_for 20 'viodctl version >/dev/null 2>&1'
}

viod_pids() { viodctl --json show "$bench_guest" | jq .pid; }

# --- one back end ------------------------------------------------------------------------
# backend_start LABEL
backend_start() {
    unset -f start stop pids counters
    unset viod_program
    # Those that a back end may leave out.
    pids() { :; }
    counters() { :; }
    bench_args=${backend_args[$1]}
    bench_dir=$(dirname "${backend_file[$1]}")
    export bench_args bench_dir
    bench_clean
    # shellcheck disable=SC1090
    . "${backend_file[$1]}"
    start && warm_up && return 0
    echo "BROKEN $1 does not start"
    cat "/rig/$bench_guest.create" 2>/dev/null
    tail -n 20 /var/log/viod.log
    domu_gone "$bench_guest" || domu_destroy "$bench_guest"
    return 1
}

# snapshot DIR WHEN
marks=0
snapshot() {
    if [[ -x more/mark ]]; then
        more/mark
        echo $((marks++)) >"$1/mark.$2"
    fi
    xenperf -p >"$1/xenperf.$2"
    counters >"$1/counters.$2"
}

# measure DIR OPTIONS…: counts lie between the snapshots; a load's own time is part of its result.
measure() {
    local dir=$1 pid
    shift
    mkdir -p "$dir"
    sync
    snapshot "$dir" before
    domu_run -t $((runtime + 60)) "$bench_guest" "
        grep -E '$guest_irq' /proc/interrupts >/tmp/irq.before
        $(load "$@")
        status=\$?
        grep -E '$guest_irq' /proc/interrupts >/tmp/irq.after
        exit \$status" >"$dir/guest" 2>&1 || echo "BROKEN ${dir#"$OUT"/}: its load failed: $(tail -n 3 "$dir/guest")"
    snapshot "$dir" after
    # Only now, because output of the guest comes by xenstore, with event channel calls of its own.
    domu_run "$bench_guest" "cd /tmp && tail -n +1 -v irq.before irq.after $(load_result "$@")" >>"$dir/guest"
    for pid in $(pids); do
        cat "/proc/$pid/status"
    done >"$dir/status"
}

# --- all ---------------------------------------------------------------------------------------
{
    echo "xen $(xl info | sed -n 's/^xen_version *: //p')"
    echo "kernel $(uname -r)"
    echo "xen_commandline $(xl info | sed -n 's/^xen_commandline *: //p')"
    echo "dom0_vcpus $(nproc)"
    echo "viod $(viodctl version 2>/dev/null | head -n 1)"
    bench_prepare
} >"$OUT/setup"

sizes=$(printf '%s\n' "${jobs[@]}" | cut -d' ' -f1 | sort -nu)
# Each back end goes first in one round, second in the next, and so on.
for ((round = 0; round < rounds; round++)); do
    for vcpus in $sizes; do
        for ((i = 0; i < ${#backends[@]}; i++)); do
            label=${backends[(i + round) % ${#backends[@]}]}
            echo "BEGIN $round $vcpus $label"
            backend_start "$label" || continue
            for job in "${jobs[@]}"; do
                read -r size name options <<<"$job"
                [[ $size == "$vcpus" ]] || continue
                # shellcheck disable=SC2086
                measure "$OUT/raw/$label/$vcpus/$name/$round" $options
            done
            echo "END $round $vcpus $label"
            stop || echo "BROKEN $label does not stop"
        done
    done
done

# Counts that need a run of their own, because taking them costs time.
if [[ $counts == yes ]]; then
    read -r vcpus name options <<<"${jobs[0]}"
    for label in "${backends[@]}"; do
        echo "BEGIN counts $vcpus $label"
        backend_start "$label" || continue
        # What Xen counts when the same is done without the device: noise of the measurement.
        # shellcheck disable=SC2154,SC2086
        measure "$OUT/raw/$label/noise" $noise_options
        dir=$OUT/raw/$label/idle
        mkdir -p "$dir"
        sleep 1
        counters >"$dir/counters.before"
        sleep 10
        counters >"$dir/counters.after"
        pid=$(pids | head -n 1)
        if [[ -n $pid ]]; then
            strace -c -f -p "$pid" -o "$OUT/strace" 2>/dev/null &
            tracer=$!
            sleep 1
            # shellcheck disable=SC2086
            measure "$OUT/raw/$label/strace" $options
            kill -INT "$tracer"
            wait "$tracer"
            mv "$OUT/strace" "$OUT/raw/$label/strace/strace"
        fi
        echo "END counts $vcpus $label"
        stop || echo "BROKEN $label does not stop"
    done
fi
