# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: while a guest does no I/O, no thread of its worker and not the supervisor wakes up even once
# files: common.bash
# timeout: 1500
. ./common.bash

new_image data 8 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/data
serial = data
END
domu_create g1 vcpus=2 "virtio=$(blk_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
check "its disk is in use" guest g1 "$(fio_verify '$(disk data)' 8 1)"

# The switches of each thread, voluntary or not, and the CPU time that it has had. Left out are those of
# the kernel's io_uring, "iou-wrk-…", which it makes for I/O that has to wait and keeps in the process:
# the last one of them looks up every 5 s, whatever the process does.
switches() {
    local task line
    for task in /proc/"$1"/task/*; do
        [[ $(<"$task/comm") != iou-wrk-* ]] || continue
        read -ra line <<<"$(sed 's/.*) //' "$task/stat")"
        printf '%s: %s, CPU time %d\n' "$(<"$task/comm")" \
            "$(sed -n 's/_ctxt_switches:\s*/ /p' "$task/status" | tr '\n' ' ')" $((line[11] + line[12]))
    done
}
kernel_switches() {
    local task sum=0
    for task in /proc/"$1"/task/*; do
        [[ $(<"$task/comm") != iou-wrk-* ]] || sum=$((sum + $(sed -n 's/^voluntary_ctxt_switches:\s*//p' "$task/status")))
    done
    echo "$sum"
}
# When it has settled: what a guest's fio leaves behind comes to an end.
settled() {
    local before
    before=$(switches "$1")
    sleep 5
    [[ $(switches "$1") == "$before" ]]
}
pid=$(worker g1)
supervisor=$(supervisor)
check "it comes to rest" wait_for "$LONG" "settled $pid"
kernel_before=$(kernel_switches "$pid")
start=$SECONDS
before=$(switches "$pid") supervisor_before=$(switches "$supervisor")
sleep 20
check "in 20 s the worker has not woken up" same "$(switches "$pid")" "$before"
check "nor has the supervisor" same "$(switches "$supervisor")" "$supervisor_before"
switches "$pid" | sed 's/^/        /'
check "the kernel's io_uring looked up once in 5 s at most" \
    test $(($(kernel_switches "$pid") - kernel_before)) -le $((($(grep -l iou-wrk /proc/"$pid"/task/*/comm | wc -l) + 1) * ((SECONDS - start) / 5 + 2)))
check "but it is alive: the guest's I/O is served at once" guest g1 "$(fio_verify '$(disk data)' 8 1)"
check "and that counts as switches" rig_fails same "$(switches "$pid")" "$before"
finish
