# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: three guests at once, each on its own root disk, all with verified I/O and none with another's data
# files: common.bash
# timeout: 2400
. ./common.bash

names=(g1 g2 g3)
roots=("$DOMU_ROOT1" "$DOMU_ROOT2" "$DOMU_ROOT3")
for i in 0 1 2; do
    domu_create "${names[i]}" memory=256 root=/dev/vda "disk=[$(virtio_disk "${roots[i]}" xvda)]" ||
        give_up "xl create ${names[i]}"
done
for name in "${names[@]}"; do
    must "$name comes up" up "$name"
done
check "each has a worker of its own" same "$(for name in "${names[@]}"; do worker "$name"; done | sort -u | wc -l)" 3

declare -A jobs=() sums=()
for name in "${names[@]}"; do
    guest_job "$name" "dd if=/dev/urandom of=/mine bs=1M count=4 conv=fsync status=none &&
        $(fio_verify /verify 8 1) && md5sum </mine"
    jobs[$name]=$job
done
for name in "${names[@]}"; do
    check_job "$name: fio, at the same time as the others, found no difference" "${jobs[$name]}"
    sums[$name]=$(tail -n 1 "$job_output" | cut -d' ' -f1)
done
check "no request failed" no_errors
check "the three wrote different data" same "$(printf '%s\n' "${sums[@]}" | sort -u | wc -l)" 3
for i in 0 1 2; do
    check "${names[i]} shuts down, the others run on" domu_shutdown "${names[i]}" "$LONG"
    for ((other = i + 1; other < 3; other++)); do
        check "${names[other]} still reads its disk" guest "${names[other]}" \
            "echo 3 >/proc/sys/vm/drop_caches; [[ \$(md5sum </mine) == ${sums[${names[other]}]}* ]]"
    done
    mount "${roots[i]}" /mnt
    check "${names[i]}'s disk has ${names[i]}'s data" same "$(md5sum </mnt/mine | cut -d' ' -f1)" "${sums[${names[i]}]}"
    umount /mnt
done
check "no worker is left" wait_for 60 no_workers
finish
