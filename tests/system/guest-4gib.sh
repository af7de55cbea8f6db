# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest with 4 GiB of RAM in two banks reads and writes with memory of both
# boot: --mem 8192
# files: common.bash
# timeout: 2400
. ./common.bash

# A sparse image, 1024 MiB, with a line of its own at the start of every 4 MiB: what is read tells
# whether each piece arrived where it should, and zeroes are quickly made, and quickly compared.
# shellcheck disable=SC2016 # both dom0's shell and the guest's
make_image='make_image() {
    truncate -s 1024M "$1"
    for ((mib = 0; mib < 1024; mib += 4)); do
        printf "viod %04d\n" $mib | dd of="$1" bs=1M seek=$mib conv=notrunc status=none
    done
}'
eval "$make_image"
image=$(new_image big 1024)
make_image "$image"
configure g1 <<END
[blk0]
path = $image
cache = writeback
serial = big
END
# Mapped as a whole, that is without grants.
domu_create g1 memory=4096 vcpus=2 "virtio=$(blk_devices 1 grant_usage=0)" || give_up "xl create"
must "the guest comes up" up g1
check "it has 4 GiB" guest g1 '[[ $(sed -n "s/^MemTotal: *\([0-9]*\) kB/\1/p" /proc/meminfo) -gt $((3800 << 10)) ]]'
guest g1 'grep "System RAM" /proc/iomem'
check "its RAM is in two banks, the second from 8 GiB on" guest g1 'grep -q "^200000000-.*System RAM" /proc/iomem'

# Where Linux puts what it reads is its own affair. So nearly all of its memory is used up, in turn by a
# file in memory and by what is read (which stays while the disk is open): both are everywhere then.
guest g1 'mount -t tmpfs -o size=3500m tmpfs /mnt; setsid sleep 100000 <$(disk big) >/dev/null 2>&1 &'
guest g1 "$make_image; make_image /mnt/expected"
as_expected() {
    guest g1 "dd if=\$(disk big) bs=1M skip=$1 count=128 status=none | cmp -n $((128 << 20)) - /mnt/expected 0 $(($1 << 20))"
}
for range in 0 1 2 3 4 5 6 7; do
    guest g1 "fallocate -l $((range * 350 + 350))M /mnt/ballast"
    check "128 MiB read beside $((range * 350 + 350)) MiB in memory are right" \
        as_expected $((range * 128))
done
viodctl show g1 | grep -E 'memory|traps'
mapped() { [[ $(show g1 ".mapped_kib[$1]") -ge $((32 << 10)) ]]; }
check "the device has used the first bank" mapped 0
check "and the second" mapped 1

# A page of each MiB is changed: all over the memory, as it was read.
guest g1 'fio --name=w --filename=$(disk big) --rw=write:1020k --bs=4k --size=1024m --io_size=4m --ioengine=psync \
    --refill_buffers --end_fsync=1 --output-format=terse >/dev/null'
for range in 0 4 7; do
    stored=$(dd if="$image" bs=1M skip=$((range * 128)) count=128 status=none | cksum)
    check "what was written to range $range is what dom0 has" same "$stored" \
        "$(guest g1 "dd if=\$(disk big) bs=1M skip=$((range * 128)) count=128 status=none | cksum")"
    check_not "and not what was there" as_expected $((range * 128))
done
check "no request failed" no_errors
check "it can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
finish
