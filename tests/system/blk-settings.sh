# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: fio verifies under every setting of polling and threads, and on the CPUs that are given
# files: common.bash
# timeout: 2400
. ./common.bash

main=/etc/viod/viod.conf
for name in direct cached packed; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/direct
serial = direct
[blk1]
path = $IMAGES/cached
cache = writeback
serial = cached
[blk2]
path = $IMAGES/packed
packed = yes
serial = packed
END
must "viod stops" stop_viod

# threads PID: those of viod's own, without what the kernel's io_uring adds.
threads() { grep -Lx 'iou-.*' /proc/"$1"/task/*/comm | wc -l; }
cpus_of() { sed -n 's/^Cpus_allowed_list:\s*//p' /proc/"$1"/task/*/status | sort -u; }
# settings LINE…: a guest with three disks under these.
settings() {
    local name
    printf '%s\n' '[viod]' "$@" >"$main"
    must "$*: viod starts" start_viod
    domu_create g1 vcpus=2 "virtio=$(blk_devices 3)" || give_up "xl create"
    must "$*: a guest comes up" up g1
    pid=$(worker g1)
    for name in direct cached packed; do
        check "$*: $name: depth 16, 4 jobs" guest g1 "$(fio_verify "\$(disk $name)" 16 1 --fsync=32)"
    done
    check "$*: no request failed" no_errors
}
end() {
    check "the guest can be destroyed" domu_destroy g1
    must "no worker is left" wait_for 60 no_workers
    must "viod stops" stop_viod
}
for poll in 0 2000; do
    for io_threads in 0 2; do
        settings "poll-max-us = $poll" "iothreads = $io_threads"
        # Beside the one that answers accesses, and the one that discards.
        check "it has as many I/O threads" same "$(threads "$pid")" $((io_threads + 2))
        [[ $poll != 0 ]] || check "it does not poll" same "$(show g1 '.poll_hits + .poll_misses')" 0
        end
    done
done
settings "cpus = 0"
check "all of the worker's threads are on CPU 0" same "$(cpus_of "$pid")" 0
end
finish
