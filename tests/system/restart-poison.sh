# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # the guest's shell expands; $job comes from guest_job
# checks: a request that kills each worker that meets it costs its device a reset, and nobody else anything
# boot: --faults
# files: common.bash
# timeout: 1200
. ./common.bash
# Sectors that do so in this build: when the request is taken, and when it is done (blk_requests.c).
START=$((0xfa17)) END=$((0xfa18))

for name in good start end other; do
    new_image $name 64 >/dev/null
done
configure g1 <<EOF
[blk0]
path = $IMAGES/good
serial = good
[blk1]
path = $IMAGES/start
serial = start
[blk2]
path = $IMAGES/end
serial = end
EOF
configure g2 <<EOF
[blk0]
path = $IMAGES/other
serial = other
EOF
check "viod says that it is a build for tests" logged 'build for tests'
domu_create g1 vcpus=2 "virtio=$(blk_devices 3)" || give_up "xl create g1"
domu_create g2 "virtio=$(blk_devices 1)" || give_up "xl create g2"
must "a guest comes up" up g1
must "another comes up" up g2
pid=$(supervisor) id=$(domu_id g1) other=$(worker g2)

# Writes to the good disks, all the time, with a request in flight most of it.
busy='until [[ -e /tmp/stop ]]; do dd if=/dev/urandom of=/tmp/data bs=64k count=16 status=none &&
    dd if=/tmp/data of=$(disk SERIAL) bs=64k oflag=direct conv=fsync,notrunc status=none &&
    dd if=$(disk SERIAL) bs=64k count=16 iflag=direct status=none | cmp - /tmp/data || exit 1; done'
guest_job g1 "${busy//SERIAL/good}"
g1_job=$job
guest_job g2 "${busy//SERIAL/other}"
g2_job=$job
must "they write" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g2 blk0 requests) -gt 100 ]]'

# Now: to ask a disk that was given up for its serial number would wait for ever.
start=$(guest g1 'disk start') end=$(guest g1 'disk end')
# poison DISK SECTOR: one read that will not come back, and so nobody waits for it.
poison() { guest g1 "dd if=$1 of=/dev/null bs=512 count=1 skip=$2 iflag=direct >/dev/null 2>&1 </dev/null & disown; echo sent"; }
given_up() { [[ $(device g1 "$1" needs_reset) -gt 0 ]]; }
goes_on() { local before; before=$(device g1 blk0 requests) && wait_for "$LONG" "[[ \$(device g1 blk0 requests) -gt $((before + 100)) ]]"; }

poison "$start" $START
check "taken: the device is given up" wait_for "$LONG" 'given_up blk1'
check "after the first worker and three more" same "$(show g1 .restarts)" 4
check "the log says which, and why" logged "domain $id \\(g1\\), blk1: .*it needs a reset"
check "viodctl shows it" grep -q needs-reset <<<"$(viodctl show g1 blk1 | grep -v 'resets  ')"
check "the guest's good disk goes on" goes_on
check "and needs no reset" same "$(device g1 blk0 needs_reset)" 0
check "neither does the other one" same "$(device g1 blk2 needs_reset)" 0

poison "$end" $END
check "done: that device is given up, too" wait_for "$LONG" 'given_up blk2'
check "after four more workers" same "$(show g1 .restarts)" 8
check "the guest's good disk goes on, again" goes_on
check "and needs no reset yet" same "$(device g1 blk0 needs_reset)" 0

guest g1 'touch /tmp/stop'
guest g2 'touch /tmp/stop'
check_job "all that the guest wrote to its good disk was there" "$g1_job"
check_job "so it was in the other guest" "$g2_job"
check "whose worker is the same" same "$(worker g2)" "$other"
check "the supervisor is the same" running "$pid"
check "the guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
finish
