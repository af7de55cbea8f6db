# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: fio verifies random reads and writes while the worker is killed again and again: no error, no reset
# files: common.bash
# timeout: 2400
. ./common.bash
KILLS=${KILLS:-20}

for name in split packed g2; do
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
END
configure g2 <<END
[blk0]
path = $IMAGES/g2
serial = g2
END
domu_create g1 vcpus=4 "virtio=$(blk_devices 2)" || give_up "xl create g1"
domu_create g2 "virtio=$(blk_devices 1)" || give_up "xl create g2"
must "a guest comes up" up g1
must "another comes up" up g2
pid=$(supervisor) id=$(domu_id g1) other=$(worker g2)
job_of() { fio_verify "\$(disk $1)" 16 4 --fsync=16 --time_based --runtime=$((KILLS * 10)); }
guest_job g1 "$(job_of split) & $(job_of packed) && wait %1"
g1_job=$job
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g1 blk1 requests) -gt 100 ]]'

# killed: the worker is another one, and serves.
replaced() { local now; now=$(worker g1) && [[ $now -gt 0 && $now != "$1" ]] && served g1 blk0 && served g1 blk1; }
for ((n = 1; n <= KILLS; n++)); do
    victim=$(worker g1)
    before=$(device g1 blk0 requests)
    kill -9 "$victim"
    wait_for 30 "replaced $victim" || give_up "kill $n: no successor"
    wait_for 60 "[[ \$(device g1 blk0 requests) -gt $before ]]" || give_up "kill $n: the guest stands still"
    sleep $((RANDOM % 2)).$((RANDOM % 10))
done
check_job "the guest's verified I/O goes on to its end" "$g1_job"
check "the log says it" logged "domain $id \\(g1\\): the worker was killed by signal 9"
check "no request failed, no ring was broken" no_errors
for name in split packed; do
    sum=$(guest g1 "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $name)" | cut -d' ' -f1)
    check "$name: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name")" "$sum"
done
check "viodctl counts it" same "$(show g1 .restarts)" "$KILLS"
check "the supervisor is the same process" running "$pid"
check "so is the other guest's worker" same "$(worker g2)" "$other"
grep -oE 'has taken over all devices, [0-9]+ ms' "$VIOD_LOG"

# A worker that dies before its guest has run, of a signal that it may not catch.
domu_config g3 memory=64 "virtio=$(blk_devices 1)" >g3.cfg
new_image g3 1 >/dev/null
configure g3 <<END
[blk0]
path = $IMAGES/g3
END
xl create -p g3.cfg >/dev/null 2>&1
must "a third, paused" wait_for 60 'served g3 blk0'
victim=$(worker g3)
kill -SEGV "$victim"
check "has another worker, too" wait_for 60 "[[ \$(worker g3) != $victim ]] && served g3 blk0"
check "and can be destroyed" domu_destroy g3
check "the guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
finish
