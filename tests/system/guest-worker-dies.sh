# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a worker that dies takes nobody along, xenstore and viodctl say so, and its guest can be started again
# files: common.bash
# timeout: 2400
. ./common.bash
# A guest that has lost its root disk may well panic.
allow_guest_panic

for name in g1 g2; do
    new_image $name 16 >/dev/null
    configure $name <<END
[blk0]
path = $IMAGES/$name
serial = $name
END
    domu_create $name "virtio=$(blk_devices 1)" || give_up "xl create $name"
done
must "a guest comes up" up g1
must "another comes up" up g2
pid=$(supervisor) id=$(domu_id g1)
victim=$(worker g1) other=$(worker g2)
guest_job g1 "fio --name=a --filename=\$(disk g1) --rw=randrw --size=16m --direct=1 --time_based --runtime=1000 --ioengine=io_uring --iodepth=8"
g1_job=$job
guest_job g2 "$(fio_verify '$(disk g2)' 8 2)"
g2_job=$job
must "both read and write" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g2 blk0 requests) -gt 100 ]]'

kill -9 "$victim"
check "the supervisor notices" wait_for 60 "[[ \$(device g1 blk0 state) == failed ]]"
check "viodctl list says it" eval "viodctl list | grep -E '^$id +g1 +blk0 .*failed .*killed by signal 9'"
check "viodctl show says it" eval "viodctl show g1 | grep -E 'problem.*killed by signal 9'"
check "the log says it" logged "domain $id \\(g1\\): the worker was killed by signal 9"
backend=/local/domain/0/backend/virtio/$id/0
check "its node in xenstore is closed (6)" same "$(xenstore-read "$backend/state")" 6
check "and says why" eval "xenstore-read $backend/viod-error | grep 'killed by signal 9'"
check "its image is not open any more" rig_fails eval "readlink /proc/$pid/fd/* /proc/$other/fd/* | grep -F $IMAGES/g1"
check "the supervisor is the same process" running "$pid"
check "so is the other guest's worker" same "$(worker g2)" "$other"
check_job "the other guest's verified I/O goes on to its end" "$g2_job"
check "the guest without a worker can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
domu_wait "$g1_job" >/dev/null
check "viodctl has forgotten it" wait_for 60 not_served g1
check "xenstore too" no_node "$id"

domu_create g1 "virtio=$(blk_devices 1)" || give_up "xl create g1 again"
must "the same guest comes up again" up g1
check "with its disk" guest g1 "$(fio_verify '$(disk g1)' 8 1)"

# A worker that is killed before its guest has run, and one killed by a signal that it may not catch.
domu_config g3 memory=64 "virtio=$(blk_devices 1)" >g3.cfg
cp /etc/viod/g1.conf /etc/viod/g3.conf
new_image g3 1 >/dev/null
sed -i "s,images/g1,images/g3," /etc/viod/g3.conf
xl create -p g3.cfg >/dev/null 2>&1
must "a third, paused" wait_for 60 'served g3 blk0'
kill -SEGV "$(worker g3)"
check "is told of its worker's end" wait_for 60 '[[ $(device g3 blk0 state) == failed ]]'
check "and can be destroyed" domu_destroy g3
check "all others are served as before" same "$(viodctl --json list | jq -r '[.[] | .devices[].state] | join(" ")')" "ready ready"
finish
