# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: flush, write-through, discard and write-zeroes of a guest arrive at the host's storage
# files: common.bash
# timeout: 2400
. ./common.bash

for name in direct cached kept; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/direct
discard = yes
serial = direct
[blk1]
path = $IMAGES/cached
cache = writeback
discard = yes
serial = cached
[blk2]
path = $IMAGES/kept
discard = no
serial = kept
END
domu_create g1 vcpus=2 "virtio=$(blk_devices 3)" || give_up "xl create"
must "the guest comes up" up g1

# Flushes that dom0's own disk, where the images are, was sent: the last but one number of its line.
root_disk=$(findmnt -n -o SOURCE /)
[[ $root_disk == /dev/vd* ]] || root_disk=/dev/vda
flushes() { local f; read -ra f <"/sys/block/${root_disk#/dev/}/stat"; echo "${f[15]}"; }
# flushed AT-LEAST COMMAND…: while COMMAND runs, as many flushes reach the disk.
flushed() {
    local least=$1 before
    shift
    before=$(flushes)
    "$@" || return
    [[ $(($(flushes) - before)) -ge $least ]] || { echo "only $(($(flushes) - before))"; return 1; }
}

for name in direct cached; do
    check "$name: the guest sees a write-back cache" guest g1 \
        "d=\$(disk $name); d=\${d#/dev/}; [[ \$(</sys/block/\$d/cache_type) == 'write back' && \$(</sys/block/\$d/queue/write_cache) == 'write back' ]]"
    check "$name: each of 5 fsyncs is a flush on dom0's disk" flushed 5 guest g1 "
        for i in 1 2 3 4 5; do dd if=/dev/urandom of=\$(disk $name) bs=4k count=1 seek=\$i conv=fsync,notrunc || exit; done"
    check "$name: it can be set to write-through" guest g1 "
        d=\$(disk $name); d=\${d#/dev/}; echo 'write through' >/sys/block/\$d/cache_type && [[ \$(</sys/block/\$d/cache_type) == 'write through' ]]"
    check "$name: then each of 5 writes is stable without the guest's flush" flushed 5 guest g1 "
        dd if=/dev/urandom of=\$(disk $name) bs=4k count=5 seek=20 oflag=direct conv=notrunc"
    check "$name: and back to write-back" guest g1 "
        d=\$(disk $name); d=\${d#/dev/}; echo 'write back' >/sys/block/\$d/cache_type && [[ \$(</sys/block/\$d/cache_type) == 'write back' ]]"

    guest g1 "dd if=/dev/urandom of=\$(disk $name) bs=1M count=16 oflag=direct conv=fsync,notrunc status=none"
    full=$(allocated "$IMAGES/$name")
    check "$name: 16 MiB written are 16 MiB in the image" test "$full" -ge 16384
    outside() { { dd if="$IMAGES/$1" bs=1M count=4; dd if="$IMAGES/$1" bs=1M skip=12; } 2>/dev/null | md5sum; }
    before=$(outside $name)
    check "$name: the guest discards 8 MiB at 4 MiB" guest g1 "blkdiscard -f -o 4M -l 8M \$(disk $name)"
    less=$(allocated "$IMAGES/$name")
    check "$name: the image gives back 8 MiB ($full -> $less KiB)" test $((full - less)) -ge 8192
    check "$name: what is around stays" same "$(outside $name)" "$before"
    check "$name: the guest reads zeroes there" guest g1 "
        cmp <(dd if=\$(disk $name) bs=1M skip=4 count=8 iflag=direct status=none) <(head -c 8M /dev/zero)"

    guest g1 "dd if=/dev/urandom of=\$(disk $name) bs=1M count=16 oflag=direct conv=fsync,notrunc status=none"
    full=$(allocated "$IMAGES/$name")
    before=$(outside $name)
    check "$name: the guest writes zeroes over 8 MiB" guest g1 "blkdiscard -f -z -o 4M -l 8M \$(disk $name)"
    sync
    check "$name: the image has them" cmp -i 4M:0 -n 8M "$IMAGES/$name" /dev/zero
    check "$name: without giving back blocks, as the guest wants it" test $(($(allocated "$IMAGES/$name") + 64)) -ge "$full"
    check "$name: what is around stays" same "$(outside $name)" "$before"
    check "$name: zeroes that may be holes (fallocate -p)" guest g1 "fallocate -p -o 4M -l 8M \$(disk $name)"
    check "$name: are holes" test $((full - $(allocated "$IMAGES/$name"))) -ge 8192
    check "$name: and zeroes" cmp -i 4M:0 -n 8M "$IMAGES/$name" /dev/zero
    check "$name: what is around stays" same "$(outside $name)" "$before"
done

guest g1 'dd if=/dev/urandom of=$(disk kept) bs=1M count=4 oflag=direct conv=fsync,notrunc status=none'
before=$(stored_sum "$IMAGES/kept")
check "discard=no: the guest is not offered discard" guest g1 '
    d=$(disk kept); [[ $(</sys/block/${d#/dev/}/queue/discard_max_bytes) == 0 ]] && ! blkdiscard -f /dev/${d#/dev/}'
check "discard=no: nothing has changed" same "$(stored_sum "$IMAGES/kept")" "$before"
check "no request failed" no_errors
finish
