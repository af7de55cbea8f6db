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

# The switches of each thread, voluntary or not, and the CPU time that it has had.
switches() {
    local task line
    for task in /proc/"$1"/task/*; do
        read -ra line <<<"$(sed 's/.*) //' "$task/stat")"
        printf '%s: %s, CPU time %d\n' "$(<"$task/comm")" \
            "$(sed -n 's/_ctxt_switches:\s*/ /p' "$task/status" | tr '\n' ' ')" $((line[11] + line[12]))
    done
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
before=$(switches "$pid") supervisor_before=$(switches "$supervisor")
sleep 20
check "in 20 s the worker has not woken up" same "$(switches "$pid")" "$before"
check "nor has the supervisor" same "$(switches "$supervisor")" "$supervisor_before"
switches "$pid" | sed 's/^/        /'
check "but it is alive: the guest's I/O is served at once" guest g1 "$(fio_verify '$(disk data)' 8 1)"
check "and that counts as switches" rig_fails same "$(switches "$pid")" "$before"
finish
