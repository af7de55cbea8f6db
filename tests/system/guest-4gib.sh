# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest with 4 GiB of RAM in two banks reads and writes with memory of both
# boot: --mem 8192
# files: common.bash
# timeout: 2400
. ./common.bash

# A sparse image, 256 MiB, with a line of its own at the start of every 4 MiB: what is read tells
# whether each piece arrived where it should, and zeroes are quickly made.
image=$(new_image big 256)
for ((mib = 0; mib < 256; mib += 4)); do
    printf 'viod %04d\n' $mib | dd of="$image" bs=1M seek=$mib conv=notrunc status=none
done
sum=$(for ((mib = 0; mib < 256; mib += 4)); do printf 'viod %04d\n' $mib; done | md5sum)
configure g1 <<END
[blk0]
path = $image
cache = writeback
serial = big
END
domu_create g1 memory=4096 vcpus=2 "virtio=$(blk_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
check "it has 4 GiB" guest g1 '[[ $(sed -n "s/^MemTotal: *\([0-9]*\) kB/\1/p" /proc/meminfo) -gt $((3800 << 10)) ]]'
guest g1 'grep "System RAM" /proc/iomem'
check "its RAM is in two banks, the second from 8 GiB on" guest g1 'grep -q "^200000000-.*System RAM" /proc/iomem'

# What Linux reads at first lies at one end of its memory; with that taken by a file in memory, at the
# other. viod tells what it has mapped of each bank.
read_all() { guest g1 'tr -d "\0" <$(disk big) | md5sum'; }
check "reading 256 MiB through the page cache gives the right data" same "$(read_all)" "$sum"
guest g1 'mount -t tmpfs -o size=3200m tmpfs /mnt && fallocate -l 3072M /mnt/ballast'
check "and again, with most of the memory taken" same "$(read_all)" "$sum"
viodctl show g1 | grep -E 'memory|traps'
check "the device wrote into the first bank" test "$(show g1 '.mapped_kib[0]')" -ge $((64 << 10))
check "the device wrote into the second bank" test "$(show g1 '.mapped_kib[1]')" -ge $((64 << 10))

# A page of each MiB is changed.
guest g1 'fio --name=w --filename=$(disk big) --rw=write:1020k --bs=4k --size=256m --io_size=1m --ioengine=psync \
    --refill_buffers --end_fsync=1 --output-format=terse >/dev/null'
written=$(read_all)
check "what was written is not what was there" test "$written" != "$sum"
check "and it is what dom0 has" same "$(tr -d '\0' <"$image" | md5sum)" "$written"
check "no request failed" no_errors
check "it can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
finish
