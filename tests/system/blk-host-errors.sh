# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # the guest's shell expands; $job comes from guest_job
# checks: errors of the host (full file system, shrunk image, broken disk, failed write-back, a disk in use) are I/O errors in the guest or waited for, with the cause in the log
# files: common.bash
# timeout: 1500
. ./common.bash

mkdir -p /small
mount -t tmpfs -o size=8m tmpfs /small
truncate -s 32M /small/image
new_image shrinks 32 >/dev/null
new_image broken 32 >/dev/null
loop=$(losetup -f --show "$IMAGES/broken")
dmsetup create broken <<END
0 16384 linear $loop 0
16384 16384 error
32768 32768 linear $loop 32768
END
# One that is broken for some time only.
flaky_image=$(losetup -f --show "$(new_image flaky 32)")
flaky() { # "linear DEVICE 0", or "error"
    dmsetup suspend --noflush flaky && dmsetup load flaky --table "0 65536 $1" && dmsetup resume flaky
}
dmsetup create flaky --table "0 65536 linear $flaky_image 0"
dmsetup mknodes
configure g1 <<END
[xvda]
serial = broken
[blk0]
path = /small/image
cache = writeback
serial = full
[blk1]
path = $IMAGES/shrinks
serial = shrinks
[blk2]
path = /dev/mapper/flaky
cache = writeback
serial = flaky
END
create() {
    domu_create g1 vcpus=2 "virtio=$(blk_devices 3)" "disk=[$(virtio_disk /dev/mapper/broken xvda)]" && up g1
}
must "the guest comes up" create
pid=$(worker g1)

check "full file system: a write fails in the guest" guest g1 \
    '! dd if=/dev/urandom of=$(disk full) bs=1M count=16 oflag=direct conv=notrunc'
check "full file system: as an I/O error" guest g1 'dmesg | grep -E "I/O error, dev $(basename $(disk full)),"'
check "full file system: the log has the cause" logged 'blk0: .*(No space left on device)'
mount -o remount,size=48m /small
check "full file system: with room again, writes succeed" guest g1 \
    'dd if=/dev/urandom of=$(disk full) bs=1M count=16 oflag=direct conv=fsync,notrunc'

truncate -s 8M "$IMAGES/shrinks"
check "shrunk image: what is left can be read" guest g1 'dd if=$(disk shrinks) of=/dev/null bs=1M count=8 iflag=direct'
check "shrunk image: what is gone is an I/O error" guest g1 '
    ! dd if=$(disk shrinks) of=/dev/null bs=4k skip=4096 count=1 iflag=direct &&
    dmesg | grep -E "I/O error, dev $(basename $(disk shrinks)),"'
check "shrunk image: the log has the cause" logged 'blk1: .*failed'

check "broken disk: the good part can be read and written" guest g1 \
    'dd if=/dev/urandom of=$(disk broken) bs=1M count=8 oflag=direct conv=fsync,notrunc'
check "broken disk: the bad part cannot" guest g1 '
    ! dd if=$(disk broken) of=/dev/null bs=4k skip=2100 count=1 iflag=direct &&
    ! dd if=/dev/zero of=$(disk broken) bs=4k seek=2200 count=1 oflag=direct conv=notrunc'
check "broken disk: the log has the cause" logged 'xvda: .*(Input/output error)'
check "broken disk: behind it all is well" guest g1 'dd if=$(disk broken) of=/dev/null bs=1M skip=16 iflag=direct'
# --- the host's page cache cannot be written back ------------------------------------------------------
flush='dd if=/dev/urandom of=$(disk flaky) bs=4k count=4 oflag=direct conv=fsync,notrunc'
check "write-back: a flush succeeds" guest g1 "$flush"
check "write-back: the disk breaks" flaky error
check "write-back: a flush fails" guest g1 "! $flush"
check "write-back: the disk is whole again" flaky "linear $flaky_image 0"
check "write-back: what is lost stays lost: no flush succeeds" guest g1 "! $flush && ! $flush"
check "write-back: the log says so" logged 'blk2: the host could not write what the guest has written \(Input/output error\)'
check "write-back: reads and writes go on" guest g1 'dd if=$(disk flaky) of=/dev/null bs=4k count=100 iflag=direct &&
    dd if=/dev/urandom of=$(disk flaky) bs=4k count=100 oflag=direct conv=notrunc'
check "write-back: nor for the other disks is anything different" guest g1 \
    'dd if=/dev/urandom of=$(disk full) bs=4k count=4 oflag=direct conv=fsync,notrunc'
check "viodctl counts the errors" test "$(show g1 '[.devices[].errors] | min')" -gt 0
check "the worker is the same" same "$(worker g1)" "$pid"
check "no device needs a reset" same "$(show g1 '[.devices[].needs_reset] | add')" 0

# --- a disk in use while its worker is replaced: the guest waits, as it would for the storage ---------------
guest_job g1 'while [[ ! -e /run/enough ]]; do
    dd if=/dev/urandom of=$(disk broken) bs=4k count=16 oflag=direct conv=fsync,notrunc status=none || exit 1; done'
writes=$job
requests=$(device g1 xvda requests)
must "a disk is written to" wait_for "$LONG" "[[ \$(device g1 xvda requests) -gt $((requests + 50)) ]]"
check "viod is killed" end_viod KILL
kill -9 "$pid"
hold() { dmsetup create holder --table "0 65536 linear /dev/mapper/broken 0" 2>/dev/null; }
must "its worker, too, and something else uses the disk" wait_for 60 hold
must "viod starts again" start_viod
check "the disk is waited for" wait_for 60 "logged 'xvda: waiting for what it is on'"
sleep 4
check "it is not given up" same "$(device g1 xvda state)" waiting
check "other disks are served" wait_for 60 'served g1 blk1'
check "it is free again" wait_for 60 'dmsetup remove holder'
check "and served" wait_for 60 'served g1 xvda'
check "the guest is told to come to an end" enough g1
check_job "it has waited: no write failed" "$writes"
check "write-back: a successor knows what was lost" guest g1 "! $flush"
check "no device needs a reset after all that" same "$(show g1 '[.devices[].needs_reset] | add')" 0

# --- what the log says is to be done -------------------------------------------------------------------------
flaky error
check "write-back: more is lost, and nobody asks" guest g1 'dd if=/dev/urandom of=$(disk flaky) bs=4k count=100 oflag=direct conv=notrunc'
sync
flaky "linear $flaky_image 0"
check "the guest is destroyed" domu_destroy g1
check "it is gone" wait_for 60 'domu_gone g1'
must "it is created again" create
check "write-back: its flushes succeed" guest g1 "$flush && $flush"
check "write-back: what was lost before is said once" same "$(grep -c 'the host could not write all of it back before' "$VIOD_LOG")" 1
finish
