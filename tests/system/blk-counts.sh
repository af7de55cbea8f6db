# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: what a request costs, as counts: traps, interrupts, mapping calls and system calls at depth 1 and 32, and with the guest polling
# boot: --xen "dom0_max_vcpus=1 dom0_vcpus_pin"
# files: common.bash
# timeout: 1200
. ./common.bash

# dom0 and the guest have a CPU each, so that a poll can meet what it waits for. Whoever else uses this
# machine can stop either of them at any time: that only adds to the counts, as polls miss then. So what
# a request costs is the least of some windows of requests; all figures count, none is a time.
WINDOWS=60
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
# least VARIABLE N: makes it N if that is less.
least() { [[ ${!1} -le $2 ]] || printf -v "$1" %d "$2"; }
# count TRAPS CALLS REQUESTS FIO-OPTION…: runs fio in the guest, window after window of so many requests,
# until there was one with no more than so many traps, one with no more than so many system calls, for 1000
# requests, and one without a mapping call. The least of each is in traps, calls and maps; the most interrupts are in interrupts.
count() {
    local traps_wanted=$1 calls_wanted=$2 ios=$3 window before after requests n
    shift 3
    local fio="fio --name=count --filename=\$(disk data) --rw=randread --bs=4k --direct=1 --ioengine=io_uring"
    fio+=" --size=64m --norandommap --number_ios=$ios --output-format=terse"
    guest g1 "$fio $* >/dev/null" # all buffers are mapped then, and the image is in the page cache
    traps=1000000 calls=1000000 maps=1000000 interrupts=0
    for ((window = 0; window < WINDOWS &&
        (traps > traps_wanted || calls > calls_wanted || maps > 0); window++)); do
        read -ra before < <(counters)
        guest g1 "$fio $* >/dev/null"
        read -ra after < <(counters)
        requests=$((after[0] - before[0]))
        least traps $(((after[1] - before[1]) * 1000 / requests))
        least calls $(((after[4] - before[4]) * 1000 / requests))
        n=$(((after[2] - before[2]) * 1000 / requests))
        [[ $n -le $interrupts ]] || interrupts=$n
        least maps $((after[3] - before[3]))
    done
    printf '        %s: of 1000 requests, at best of %d windows: %d traps, %d system calls; %d mapping calls; at most %d interrupts\n' \
        "$*" $window $traps $calls $maps $interrupts
}

domu_create g1 vcpus=1 'cpus="1"' "virtio=$(blk_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
# 1 for each of: the interrupt, InterruptStatus, InterruptACK, and the I/O with all that is to be waited for.
# Data of a guest that grants its memory are copied by a call of their own.
granted=$([[ -n ${RIG_GRANTS:-} ]] && echo 1 || echo 0)
# Few of them are enough: the shorter a window, the sooner there is one in which nobody was stopped.
count 2050 $((5000 + 2000 * granted)) 1000 --iodepth=1
check "depth 1: InterruptStatus and InterruptACK, and hardly ever a kick" test $traps -le 2050
check "depth 1: one interrupt for each request" test $interrupts -ge 950 -a $interrupts -le 1050
check "depth 1: few system calls" test $calls -le $((5000 + 2000 * granted))
check "depth 1: what is mapped stays mapped" test $maps -eq 0
count 150 $((500 + 1000 * granted)) 4000 --iodepth=32
check "depth 32: three traps for many requests" test $traps -le 150
check "depth 32: at most one interrupt for two requests, also at worst" test $interrupts -le 500
check "depth 32: few system calls" test $calls -le $((500 + 1000 * granted))
check "depth 32: what is mapped stays mapped" test $maps -eq 0
check "no request failed" no_errors
domu_destroy g1

# Linux polls on a queue of its own, so there are two, as many as vCPUs. Both on one CPU, the other vCPU
# would stop the one that polls: it is not used.
domu_create g1 vcpus=2 'cpus="1"' 'cmdline=virtio_blk.poll_queues=1 maxcpus=1' "virtio=$(blk_devices 1)" ||
    give_up "xl create"
must "a guest that polls comes up" up g1
count 10 $((500 + 1000 * granted)) 4000 --iodepth=32 --hipri=1
check "the guest polls: no traps" test $traps -le 10
check "the guest polls: no interrupts" test $interrupts -eq 0
check "the guest polls: few system calls" test $calls -le $((500 + 1000 * granted))
count 1050 20000 4000 --iodepth=1 --hipri=1
check "the guest polls at depth 1: at most a kick for each request" test $traps -le 1050
check "the guest polls at depth 1: no interrupts" test $interrupts -eq 0
check "data are right when the guest polls" guest g1 "$(fio_verify "\$(disk data)" 8 8 --hipri=1)"
check "no request failed" no_errors
finish
