# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154  # variables of the plan
# The part of the benchmark that runs in dom0: starts back ends and jobs in turn, and leaves what it
# read in $OUT, one folder per measurement. It computes nothing.

# shellcheck disable=SC1091  # written by tests/bench/run
. ./plan
# From ./plan: rounds, runtime, guest_cpus, backends=(LABEL…), and for each label
# backend_file[LABEL], backend_args[LABEL]; jobs=("VCPUS NAME OPTIONS"…); counts (yes or no).

# --- for back ends ---------------------------------------------------------------------
bench_guest=bench
bench_disk=/dev/ram0
bench_backends=$PWD/backends
export bench_guest bench_disk bench_backends

# bench_guest_start [KEY=VALUE…]: creates the guest, which is the same for all back ends, with these
# keys of its xl.cfg, and waits until it runs.
bench_guest_start() {
    domu_create "$bench_guest" "vcpus=$vcpus" memory=256 "cpus=$guest_cpus" "$@" &&
        domu_ready "$bench_guest" 90
}

bench_guest_stop() {
    domu_destroy "$bench_guest" && wait_for 30 "domu_gone $bench_guest"
}

# --- one back end ------------------------------------------------------------------------
# backend_start LABEL
backend_start() {
    unset -f start stop pids counters
    guest_device='' guest_irq='virtio|blkif'
    # Those that a back end may leave out.
    pids() { :; }
    counters() { :; }
    bench_args=${backend_args[$1]}
    bench_dir=$(dirname "${backend_file[$1]}")
    export bench_args bench_dir
    # shellcheck disable=SC1090
    . "${backend_file[$1]}"
    # Nothing that another back end left in the page cache.
    blockdev --flushbufs "$bench_disk"
    start && [[ -n $guest_device ]] && warm_up && return 0
    echo "BROKEN $1 does not start"
    cat "/rig/$bench_guest.create" 2>/dev/null
    tail -n 20 /var/log/viod.log
    domu_gone "$bench_guest" || domu_destroy "$bench_guest"
    return 1
}

# A back end maps the guest's memory when it first meets it: large enough buffers make it meet most of
# what fio is given later.
warm_up() {
    domu_run -t 120 "$bench_guest" "fio --name=warm --filename=$guest_device --ioengine=io_uring --direct=1 \
        --rw=read --bs=1m --iodepth=64 --size=64m --output=/dev/null"
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

# measure DIR FIO-OPTIONS…: counts lie between the snapshots; fio's own time is part of its output.
measure() {
    local dir=$1 pid
    shift
    mkdir -p "$dir"
    sync "$bench_disk"
    snapshot "$dir" before
    domu_run -t $((runtime + 60)) "$bench_guest" "
        grep -E '$guest_irq' /proc/interrupts >/tmp/irq.before
        fio --name=bench --filename=$guest_device --ioengine=io_uring --direct=1 --time_based \
            --runtime=$runtime --norandommap --thread --group_reporting --output=/tmp/fio \
            --output-format=json $*
        status=\$?
        grep -E '$guest_irq' /proc/interrupts >/tmp/irq.after
        exit \$status" >"$dir/guest" 2>&1 || echo "BROKEN ${dir#"$OUT"/}: fio failed: $(tail -n 3 "$dir/guest")"
    snapshot "$dir" after
    # Only now, because output of the guest comes by xenstore, with event channel calls of its own.
    domu_run "$bench_guest" 'cd /tmp && tail -n +1 -v irq.before irq.after fio' >>"$dir/guest"
    for pid in $(pids); do
        cat "/proc/$pid/status"
    done >"$dir/status"
}

# --- all ---------------------------------------------------------------------------------------
# Every page of the disk is there before anyone reads or writes it.
dd if=/dev/zero of="$bench_disk" bs=1M oflag=direct status=none 2>/dev/null
{
    echo "xen $(xl info | sed -n 's/^xen_version *: //p')"
    echo "kernel $(uname -r)"
    echo "xen_commandline $(xl info | sed -n 's/^xen_commandline *: //p')"
    echo "dom0_vcpus $(nproc)"
    echo "disk $bench_disk, a RAM disk of $(($(<"/sys/block/${bench_disk##*/}/size") / 2048)) MiB"
    echo "blkback_max_queues $(cat /sys/module/xen_blkback/parameters/max_queues)"
    echo "viod $(viodctl version 2>/dev/null | head -n 1)"
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
        # What Xen counts when the same is done without a disk: noise of the measurement.
        measure "$OUT/raw/$label/noise" --rw=randread --bs=4k --size=1m --ioengine=null --thinktime=900ms
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
