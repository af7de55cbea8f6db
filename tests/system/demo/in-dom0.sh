# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The part of tests/demo that runs in dom0. It stops at the first thing that goes wrong.
set -uo pipefail

indent() { sed -u 's/^/    /'; }
quote() { sed -u 's/^/    | /'; }
say() { printf '    %s\n' "$*"; }
fail() {
    printf '\n    FAILED: %s\n' "$*"
    [[ ! -s /var/log/viod.log ]] || { say "viod's log:" && tail -n 20 /var/log/viod.log | quote; }
    exit 1
}
# A command as one would type it, and what it prints.
run() {
    printf '    # %s\n' "$*"
    "$@" 2>&1 | quote
    [[ ${PIPESTATUS[0]} -eq 0 ]] || fail "$*"
}
# The same in the guest.
guest() {
    printf '    demo# %s\n' "$1"
    domu_run -t 240 demo "$1" 2>&1 | quote
    [[ ${PIPESTATUS[0]} -eq 0 ]] || fail "in the guest: $1"
}
# A counter of the guest's worker or of its disk.
counter() { viodctl --json show demo | jq "$1"; }

say "Xen $(xl info xen_version), dom0 Linux $(uname -r), $(viodctl version | sed -n 2p) (process $(</run/viod-rig.pid))"

echo "== 3. Create the guest"
say "Its disk, $DOMU_ROOT1 of dom0, holds a Debian root file system."
cat >demo.cfg <<END
name   = "demo"
kernel = "$KERNEL"
extra  = "console=hvc0 root=/dev/vda rw init=/init hostname=demo panic=-1"
memory = 512
vcpus  = 2
disk   = [ "$DOMU_ROOT1,raw,xvda,w,backendtype=standalone,specification=virtio" ]
END
run cat demo.cfg
run viodctl check demo.cfg
run xl create -q demo.cfg
domu_ready demo 240 || fail "the guest did not come up: see its console below" "$(tail -n 5 "$(domu_console demo)")"
run xl list

echo "== 4. Who serves it"
run viodctl list
run viodctl show demo
worker=$(counter .pid)
say "The worker, process $worker, runs without any rights:"
grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' "/proc/$worker/status" | sed 's/^/    |   /'
status_of() { sed -n "s/^$1:[[:space:]]*\\([^[:space:]]*\\).*/\\1/p" "/proc/$worker/status"; }
[[ $(status_of Uid) -ne 0 ]] || fail "the worker is root"
[[ $(status_of Seccomp) -eq 2 ]] || fail "the worker has no seccomp filter"

echo "== 5. What the guest sees"
guest 'uname -srm'
guest 'findmnt -o TARGET,SOURCE,FSTYPE,OPTIONS /'
guest 'lsblk -o NAME,SIZE,RO,TYPE,MOUNTPOINTS /dev/vda'
guest 'dmesg | grep "virtio_blk"'
[[ $(domu_run demo 'stat -c %t:%T /dev/vda; mountpoint -d /') == $'fe:0\n254:0' ]] ||
    fail "the guest's root is not the virtio disk"
guest 'dd if=/dev/urandom of=/file bs=1M count=8 conv=fsync status=none && sync &&
    sum=$(md5sum </file) && echo 3 >/proc/sys/vm/drop_caches && [[ $sum == "$(md5sum </file)" ]] &&
    echo "8 MiB written, flushed, read back from the disk: the same" && rm /file'

echo "== 6. A few numbers"
say "Emulated CPUs: compare these with each other, with nothing else."
say ""
printf '    %-28s %9s %14s %16s\n' "random reads of 4 KiB" "requests" "requests/s" "traps / request"
for depth in 1 32; do
    mapfile -t before < <(counter '.devices[0].requests, .mmio_reads + .mmio_writes')
    output=$(domu_run -t 240 demo "fio --name=j --filename=/dev/vda --readonly --rw=randread --bs=4k \
        --direct=1 --ioengine=io_uring --iodepth=$depth --time_based --runtime=5 --norandommap \
        --output-format=json") || fail "fio: $output"
    mapfile -t after < <(counter '.devices[0].requests, .mmio_reads + .mmio_writes')
    errors=$(jq '.jobs[0].error' <<<"$output")
    [[ $errors == 0 ]] || fail "fio reports error $errors"
    iops=$(jq '.jobs[0].read.iops | floor' <<<"$output")
    requests=$((after[0] - before[0]))
    [[ $requests -gt 0 ]] || fail "fio made no request"
    printf '    %-28s %9d %14d %16s\n' "  $depth at a time" "$requests" "$iops" \
        "$(jq -n "$((after[1] - before[1])) / $requests * 100 | round / 100")"
done
[[ $(counter '[.devices[].errors] | add') == 0 ]] || fail "requests with errors"

echo "== 7. Off"
printf '    # xl shutdown demo\n'
domu_shutdown demo 300 2>/dev/null || fail "the guest did not shut down"
wait_for 30 '! viodctl list | grep -q demo' || fail "viod still lists the guest"
run xl list
[[ ! -d /proc/$worker ]] || fail "the worker is still there"
say "The guest is gone and its worker with it."
