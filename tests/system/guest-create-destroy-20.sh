# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: 20 guests created and destroyed at various moments leave nothing behind
# files: common.bash
# timeout: 3000
. ./common.bash

cycle() { # MOMENT
    local id
    case $1 in
        paused)
            domu_config g1 memory=256 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(blk_devices 1)" >g1.cfg
            xl create -p g1.cfg >create.log 2>&1 || { cat create.log; return 1; }
            ;;
        *) domu_create g1 memory=256 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(blk_devices 1)" || return ;;
    esac
    id=$(domu_id g1)
    case $1 in
        starting) sleep 1 ;;
        probing) wait_for "$LONG" "[[ \$(device g1 xvda driver) != none ]]" ;;
        ready) up g1 ;;
        busy) up g1 && guest_job g1 "$(fio_verify /verify 16 8)" && sleep 3 ;;
    esac || return
    domu_destroy g1 || return
    wait_for "$LONG" 'domu_gone g1' || return
    wait_for 60 'not_served g1' || return
    wait_for 60 no_workers || return
    [[ $1 != busy ]] || domu_wait "$job" >/dev/null
    no_node "$id"
}
# After all that ever runs has run once: what there is.
count_fds() { ls "/proc/$(supervisor)/fd" | wc -l; }
count_events() { lsevtchn 0 | wc -l; }
free_memory() { xl info free_memory; }
# Pages of dom0 that stand for guests' pages come and go in large blocks; what matters is dom0's own memory.
supervisor_kib() { sed -n 's/^VmRSS:\s*\([0-9]*\) kB/\1/p' "/proc/$(supervisor)/status"; }

new_image image 16 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/image
END
pid=$(supervisor)
must "a first guest comes and goes" cycle ready
must "a second one" cycle busy
fds=$(count_fds) events=$(count_events) free=$(free_memory) kib=$(supervisor_kib)
echo "        before: $fds descriptors and $kib KiB of the supervisor, $events event channels of dom0, $free MiB free in Xen"

moments=(paused starting probing ready starting paused probing busy probing starting
    paused probing starting ready probing paused starting probing starting busy)
for ((i = 0; i < 20; i++)); do
    check "guest $((i + 1)), destroyed ${moments[i]}" cycle "${moments[i]}"
done

check "no domain is left, not even without a name" same "$(xl list | tail -n +2 | wc -l)" 1
check "Xen has its memory back" wait_for 60 '[[ $(free_memory) == '"$free"' ]]'
echo "        after: $(count_fds) descriptors and $(supervisor_kib) KiB of the supervisor, $(count_events) event channels of dom0, $(free_memory) MiB free in Xen"
check "the supervisor is the same process" running "$pid"
check "it has as many descriptors as before" same "$(count_fds)" "$fds"
check "it has not grown" test $(($(supervisor_kib) - kib)) -lt 256
check "no worker is left" no_workers
check "nor a dead one that nobody has asked for" same "$(ps -e -o stat=,ppid= | grep -c "^Z.* $pid\$")" 0
check "dom0 has as many event channels as before" wait_for 60 '[[ $(count_events) == '"$events"' ]]' || lsevtchn 0
check "viod serves nobody" same "$(viodctl --json list | jq length)" 0
check "xenstore has no virtio device" rig_fails xenstore-ls /local/domain/0/backend/virtio_disk/1
left=$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -E 'backend/virtio(_disk)?/.+' || true)
check "nor any node of ours" same "$left" ""
finish
