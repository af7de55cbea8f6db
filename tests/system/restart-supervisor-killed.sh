# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: fio verifies random reads and writes while the supervisor is killed, ended and started again: no error, no reset
# files: common.bash
# timeout: 2400
. ./common.bash
KILLS=${KILLS:-6}

for name in split packed granted gone new; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/split
serial = split
[blk1]
path = $IMAGES/packed
packed = yes
in-order = no
cache = writeback
serial = packed
[blk2]
path = $IMAGES/granted
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
job_of() { until_enough "$(fio_verify "\$(disk $1)" 16 4 --fsync=16)"; }
guest_job g1 "($(job_of split)) & split=\$!; ($(job_of packed)) & packed=\$!
    ($(job_of granted)) && wait \$split && wait \$packed"
g1_job=$job
all_requests() { show g1 '[.devices[].requests] | add'; }
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g1 blk2 requests) -gt 100 ]]'

all_served() { served g1 blk0 && served g1 blk1 && served g1 blk2; }
for ((n = 1; n <= KILLS; n++)); do
    victim=$(worker g1) before=$(all_requests)
    signal=KILL
    ((n % 3 > 0)) || signal=TERM
    end_viod $signal || give_up "end $n: it does not end"
    running "$victim" || give_up "end $n: the worker has ended with its supervisor"
    # With and without a while in between; once, the worker dies in it.
    ((n % 2 > 0)) || sleep $((RANDOM % 2)).$((RANDOM % 10))
    ((n % 5 > 0)) || kill -9 "$victim"
    start_viod || give_up "end $n: viod does not start again"
    wait_for 30 all_served || give_up "end $n: not all devices are served again"
    ! running "$victim" || give_up "end $n: the old worker lives"
    wait_for 60 "[[ \$(all_requests) -gt $before ]]" || give_up "end $n: the guest stands still"
    sleep $((RANDOM % 2)).$((RANDOM % 10))
done
check "it is told to come to an end" enough g1
check_job "the guest's verified I/O goes on to its end" "$g1_job"
check "no request failed, no ring was broken" no_errors
for name in split packed granted; do
    sum=$(guest g1 "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $name)" | cut -d' ' -f1)
    check "$name: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name")" "$sum"
done
check "the log says who took over" logged "domain $id \\(g1\\): taken over from worker [0-9]+, with 3 devices"
grep -oE 'has taken over all devices, [0-9]+ ms' "$VIOD_LOG"

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
check "the new one's device is served" wait_for 60 'served new blk0'
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
