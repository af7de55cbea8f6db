# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest with 4 GiB of RAM in two banks reads and writes with memory of both
# boot: --mem 8192
# files: common.bash
# timeout: 2400
. ./common.bash

# A sparse image, 512 MiB, with a line of its own at the start of every 4 MiB: what is read tells
# whether each piece arrived where it should, and zeroes are quickly made.
image=$(new_image big 512)
for ((mib = 0; mib < 512; mib += 4)); do
    printf 'viod %04d\n' $mib | dd of="$image" bs=1M seek=$mib conv=notrunc status=none
done
sum=$(for ((mib = 0; mib < 512; mib += 4)); do printf 'viod %04d\n' $mib; done | md5sum)
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

# MiB of files' pages, in the first bank (zones DMA and DMA32) and in the second
# shellcheck disable=SC2016
file_mib='mawk "/^Node/ { low = /DMA/ } /nr_zone_(in)?active_file/ { if (low) l += \$2; else h += \$2 }
    END { print int(l / 256), int(h / 256) }" /proc/zoneinfo'
# Linux takes memory from the second bank first: fill most of it.
guest g1 'mount -t tmpfs -o size=3g tmpfs /mnt && fallocate -l 750M /mnt/ballast'
# The cache of a disk goes when nobody has the disk open any more.
guest g1 'setsid sleep 100000 <$(disk big) >/dev/null 2>&1 &'
check "reading 512 MiB through the page cache gives the right data" guest g1 "
    s=\$(tr -d '\\0' <\$(disk big) | md5sum); [[ \$s == '$sum' ]] || { echo \"\$s\"; exit 1; }"
read -r low high < <(guest g1 "$file_mib")
echo "        of what was read, $low MiB are in the first bank, $high MiB in the second"
check "the device wrote into the first bank" test "${low:-0}" -ge 32
check "the device wrote into the second bank" test "${high:-0}" -ge 32
reads=$(device g1 blk0 requests)
check "what lies in both banks is right when read from memory again" guest g1 "
    [[ \$(tr -d '\\0' <\$(disk big) | md5sum) == '$sum' ]]"
check "without the disk" test $(($(device g1 blk0 requests) - reads)) -le 100

# A page of each MiB is changed where it is: in both banks.
guest g1 'fio --name=w --filename=$(disk big) --rw=write:1020k --bs=4k --size=512m --io_size=2m --ioengine=psync \
    --refill_buffers --end_fsync=1 --output-format=terse >/dev/null'
written=$(guest g1 'tr -d "\\0" <$(disk big) | md5sum')
check "what was written is not what was there" test "$written" != "$sum"
check "what is written from both banks is what dom0 has" same "$(tr -d '\0' <"$image" | md5sum)" "$written"
viodctl show g1 | grep -E 'memory|traps'
check "no request failed" no_errors
check "it can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
finish
