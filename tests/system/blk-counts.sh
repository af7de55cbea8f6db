# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: what a request costs, as counts: traps, interrupts, mapping calls and system calls at depth 1 and 32, and with the guest polling
# files: common.bash
# timeout: 1200
. ./common.bash

# How often a poll meets what it waits for depends on the machine: here dom0 and the guest share CPUs, so
# polling may be off all the time. The limits hold without it, too.
new_image data 64 >/dev/null
configure g1 <<END
[blk0]
path = $IMAGES/data
cache = writeback
serial = data
END

counters() {
    show g1 '[.devices[0].requests, .mmio_reads + .mmio_writes, .devices[0].interrupts, .map_calls, .syscalls] | @tsv'
}
# count WHAT FIO-OPTION…: runs fio in the guest; counts per 1000 requests are in traps, interrupts, calls;
# maps is the number of mapping calls.
count() {
    local before after requests
    local fio="fio --name=count --filename=\$(disk data) --rw=randread --bs=4k --direct=1 --ioengine=io_uring"
    fio+=" --size=64m --norandommap --number_ios=4000 --output-format=terse"
    guest g1 "$fio $* >/dev/null" # all buffers are mapped then, and the image is in the page cache
    read -ra before < <(counters)
    guest g1 "$fio $* >/dev/null"
    read -ra after < <(counters)
    requests=$((after[0] - before[0]))
    traps=$(((after[1] - before[1]) * 1000 / requests))
    interrupts=$(((after[2] - before[2]) * 1000 / requests))
    maps=$((after[3] - before[3]))
    calls=$(((after[4] - before[4]) * 1000 / requests))
    printf '        %s: of 1000 requests: %d traps, %d interrupts, %d system calls; %d mapping calls in all\n' \
        "$*" $traps $interrupts $calls $maps
}

domu_create g1 vcpus=2 'cmdline=virtio_blk.poll_queues=1' "virtio=$(blk_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
count --iodepth=1
check "depth 1: at most a kick, InterruptStatus and InterruptACK for each request" test $traps -le 3050
check "depth 1: one interrupt for each request" test $interrupts -ge 950 -a $interrupts -le 1050
check "depth 1: at most 20 system calls for each request" test $calls -le 20000
check "depth 1: what is mapped stays mapped" test $maps -le 4
count --iodepth=32
check "depth 32: at most half of the traps of depth 1" test $traps -le 1500
check "depth 32: at most half of the interrupts" test $interrupts -le 500
check "depth 32: at most 8 system calls for each request" test $calls -le 8000
check "depth 32: what is mapped stays mapped" test $maps -le 4
count --iodepth=1 --hipri=1
check "the guest polls: at most a kick for each request" test $traps -le 1050
check "the guest polls: no interrupts" test $interrupts -le 10
count --iodepth=8 --hipri=1
check "the guest polls at depth 8: no interrupts" test $interrupts -le 10
check "data are right when the guest polls" guest g1 "$(fio_verify "\$(disk data)" 8 8 --hipri=1)"
check "no request failed" no_errors
finish
