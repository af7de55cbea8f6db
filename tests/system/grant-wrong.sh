# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from guest_job
# checks: a hostile driver gives two disks, one copied and one mapped, every kind of grant that is not good: nothing stays mapped, all goes on
# host: grant-wrong/build
# files: common.bash "$SCRATCH/wrong-grants"
# timeout: 1500
. ./common.bash

for name in copied mapped other; do
    new_image $name 16 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/copied
serial = copied
[blk1]
path = $IMAGES/mapped
serial = mapped
grant-copy-max = 512
[blk2]
path = $IMAGES/other
serial = other
END
mount "$DOMU_ROOT1" /mnt && cp wrong-grants /mnt/usr/bin/ && umount /mnt
# Linux gives a reference that has ended to whoever wants the next one: so no other device of this guest has
# grants, or this driver would harm those.
device='"type=virtio,device2,transport=mmio,grant_usage'
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda w grant_usage=0)]" \
    "virtio=[$device=1\",$device=1\",$device=0\"]" || give_up "xl create"
must "the guest comes up" up g1
id=$(domu_id g1)
pid=$(worker g1)
# What the other devices have mapped: rings only. The disks under test have theirs unmapped when they
# are reset.
for name in copied mapped; do
    errors_of() { device g1 "$([[ $name == copied ]] && echo blk0 || echo blk1)" errors; }
    guest_job g1 "$(fio_verify '$(disk other)' 4 1 --time_based --runtime=15)"
    other=$job
    # The transport, too: its interrupt handler is not made for a device without a driver.
    check "$name: its driver lets go of it" guest g1 'd=$(disk '$name') && d=$(readlink -f /sys/block/${d##*/}/device) &&
        d=${d%/virtio*} && d=${d##*/} && echo $d >/run/device && echo 0x${d%.virtio} >/run/base &&
        echo $d >/sys/bus/platform/drivers/virtio-mmio/unbind'
    idle=$(show g1 .granted_kib) maps=$(show g1 .grant_maps)
    guest_job g1 'wrong-grants $(</run/base) 0'
    check_job "$name: each grant that is not good is the error of its request, or of its device" "$job"
    cat "$job_output"
    check "$name: nothing stays mapped" wait_for 60 "[[ \$(show g1 .granted_kib) == $idle ]]"
    check "$name: requests failed" test "$(errors_of)" -gt 10
    printf '        %d calls that map\n' $(($(show g1 .grant_maps) - maps))
    check_job "$name: the guest's other disk did not notice" "$other"
done
check "the worker is the same" same "$(worker g1)" "$pid"
check "it was never restarted" same "$(show g1 .restarts)" 0
check "the log is no longer for it" test "$(grep -c '' "$VIOD_LOG")" -lt 400
# That they work again, the hostile driver has seen; Linux's own takes them in the next boot only: its memory of a
# device's grants is freed and not forgotten when the transport's driver lets go (grant-dma-ops.c), so that after
# a bind it depends on who has that memory whether the device counts as broken.
must "the guest reboots" domu_reboot g1 "$LONG"
check "xenstore has nothing of the one before" no_node "$id"
id=$(domu_id g1)
for name in copied mapped; do
    check "$name: Linux's driver takes it, and it works" guest g1 "$(fio_verify "\$(disk $name)" 4 1)"
done
check "xl destroy" domu_destroy g1
check "no zombie" wait_for 60 domu_gone g1
check "xenstore has nothing of it" no_node "$id"
finish
