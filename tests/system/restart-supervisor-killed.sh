# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # the guest's shell expands; $job comes from guest_job
# checks: the supervisor is killed, ended and started again under fio verify, foreign and grants: no error, no reset, no acknowledged write lost
# files: common.bash restart.bash
# settings: KILLS
# timeout: 2400
. ./common.bash
. ./restart.bash
KILLS=${KILLS:-6}

for name in g1.split g1.packed g1.granted gone new; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/g1.split
serial = split
[blk1]
path = $IMAGES/g1.packed
packed = yes
in-order = no
cache = writeback
serial = packed
[blk2]
path = $IMAGES/g1.granted
serial = granted
END
for name in gone new; do
    configure $name <<END
[blk0]
path = $IMAGES/$name
serial = $name
END
done
virtio=$(blk_devices 2)
domu_create g1 vcpus=4 "virtio=${virtio%]},\"type=virtio,device2,transport=mmio,grant_usage=1\"]" || give_up "xl create g1"
must "a guest comes up" up g1
id=$(domu_id g1)
guest_job g1 "$(checked_io split packed granted)"
g1_job=$job
all_requests() { show g1 '[.devices[].requests] | add'; }
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g1 blk2 requests) -gt 100 ]]'

for ((n = 1; n <= KILLS; n++)); do
    victim=$(worker g1) before=$(all_requests)
    signal=KILL
    ((n % 3 > 0)) || signal=TERM
    end_viod $signal || give_up "end $n: it does not end"
    running "$victim" || give_up "end $n: the worker has ended with its supervisor"
    # With and without a while in between; now and then the worker dies in it, or the next supervisor
    # while it takes over.
    ((n % 2 > 0)) || sleep 0.$((RANDOM % 10))
    ((n % 5 > 0)) || kill -9 "$victim"
    if ((n % 3 == 1)); then
        launch_viod
        sleep 0.$((RANDOM % 4))$((RANDOM % 10))
        end_viod KILL || give_up "end $n: the next one does not end"
    fi
    start_viod || give_up "end $n: viod does not start again"
    wait_for "$LONG" 'all_served g1' || give_up "end $n: not all devices are served again"
    ! running "$victim" || give_up "end $n: the old worker lives"
    wait_for 60 "[[ \$(all_requests) -gt $before ]]" || give_up "end $n: the guest stands still"
    sleep 0.$((RANDOM % 10))
done
stop_checked_io g1 "$g1_job" split packed granted
check "no request failed, no ring was broken" no_errors
check "the log says who took over" logged "domain $id \\(g1\\): taken over from worker [0-9]+, with 3 devices"
report_takeovers

# --- what happens while no viod runs --------------------------------------------------------------
domu_create gone "virtio=$(blk_devices 1)" || give_up "xl create gone"
must "another guest comes up" up gone
gone_worker=$(worker gone) gone_id=$(domu_id gone)
must "viod is killed" end_viod KILL
guest g1 "$(fio_verify '$(disk split)' 8 1)" >/dev/null
check "a guest reads and writes without it" same $? 0
check "viodctl says that it is not running" eval '! viodctl list 2>list.log && grep "not running" list.log'
# xl waits in vain for its device's last state, and says so.
domu_destroy gone
domu_config new "virtio=$(blk_devices 1)" >new.cfg
check "a new one is created, paused" xl create -p new.cfg
mkdir -p /run/viod/31999
cp "/run/viod/$id/guest.record" /run/viod/31999/
must "viod starts" start_viod
check "the worker of the guest that is gone has ended" wait_for 60 "! running $gone_worker"
check "and the guest with it" wait_for "$LONG" domu_gone gone
check "nothing is left of it" test ! -e "/run/viod/$gone_id"
check "nor of one that never was" test ! -e /run/viod/31999
check "the new one's device is served" wait_for "$LONG" 'served new blk0'
xl unpause new
must "it comes up" up new
check "with its disk" guest new "$(fio_verify '$(disk new)' 4 1)"

# --- what cannot be taken over ----------------------------------------------------------------------
new_id=$(domu_id new) g1_worker=$(worker g1)
cp "/run/viod/$new_id/guest.record" record
must "viod ends" end_viod
printf '\x63' | dd of="/run/viod/$new_id/guest.record" bs=1 seek=8 conv=notrunc status=none
check "a record of another version is refused" eval '! timeout 60 viod 2>refused.log'
check "with the reason" grep -E "cannot take domain $new_id over.*of another version" refused.log
check "the workers go on" running "$g1_worker"
check "and their guests" guest g1 "$(fio_verify '$(disk split)' 8 1)"
printf '\x01' | dd of="/run/viod/$new_id/guest.record" bs=1 seek=8 conv=notrunc status=none
check "the record is what it was" cmp record "/run/viod/$new_id/guest.record"
must "viod starts" start_viod
check "all guests go on" guest new "$(fio_verify '$(disk new)' 4 1)"
check "no request failed, no ring was broken" no_errors

check "a guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
check "viodctl stop ends all" stop_viod
check "no worker is left" no_workers
finish
