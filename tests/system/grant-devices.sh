# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $server comes from dom0_serves
# checks: disk, network, console, entropy and vsock devices of one guest, all with grant_usage=1, at once
# files: common.bash net.bash vsock.bash
# timeout: 1500
. ./common.bash
. ./net.bash
. ./vsock.bash

new_bridge xenbr0 10.0.0.1/24
configure g1 <<END
[net0]
bridge = xenbr0
[console0]
ports = console data
[console0.data]
backend = file
path = /tmp/port.out
END
list=''
for type in 1 3 4 13; do
    list+="\"type=virtio,device$type,transport=mmio,grant_usage=1\","
done
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda w grant_usage=1)]" \
    "virtio=[${list%,}]" || give_up "xl create"
must "the guest comes up" up g1
ACCESS_PLATFORM=$((1 << 33))
for name in xvda net0 console0 rng0 vsock0; do
    check "$name is served" served g1 $name
    check "$name: ACCESS_PLATFORM was negotiated" \
        same $(($(device g1 $name features) & ACCESS_PLATFORM)) $ACCESS_PLATFORM
done
must "it has an interface" nguest g1 'n=$(nic) && ip link set $n up && ip addr add 10.0.0.2/24 dev $n'
check "ping" ping -c 3 -W 20 10.0.0.2
iperf3 -s -D --logfile /tmp/iperf3.log
wait_for 60 "ss -ltn | grep -q ':5201 '"
for reverse in '' -R; do
    result=$(iperf g1 -n 2M -P 2 $reverse)
    check "TCP ${reverse:+back}" at_least 500000 "$result" .end.sum_received.bytes
    jq -r '"        \(.end.sum_received.bits_per_second / 1000000 | floor) Mbit/s"' <<<"$result"
done
check "/dev/hwrng" guest g1 'dd if=/dev/hwrng of=/tmp/x bs=4096 count=8 iflag=fullblock status=none &&
    [[ $(stat -c %s /tmp/x) == 32768 && $(od -An -v -tx8 -w8 /tmp/x | sort | uniq -d | wc -l) == 0 ]]'
check "the console's port" guest g1 'for p in /sys/class/virtio-ports/*; do
    [[ $(<$p/name) != data ]] || { seq 20000 >/dev/${p##*/} && exit; }; done; exit 1'
check "all of it arrives" wait_for 60 '[[ $(md5sum </tmp/port.out) == $(seq 20000 | md5sum) ]]'

# All at once: vsock there and back, frames, random numbers, the root disk past its cache.
dom0_serves 5000 fork,backlog=16 PIPE -t 300
guest_job g1 'head -c 1000000 /dev/urandom >/tmp/in; for i in 1 2 3 4; do
    socat -t 300 - VSOCK-CONNECT:2:5000,'$patient' </tmp/in >/tmp/out.$i & done; wait
    for i in 1 2 3 4; do cmp /tmp/in /tmp/out.$i || exit 1; done'
vsock=$job
guest_job g1 "truncate -s 16M /data; $(fio_verify /data 8 4 --bs=4k-128k)"
disk=$job
guest_job g1 'dd if=/dev/hwrng of=/dev/null bs=4096 count=64 iflag=fullblock status=none'
random=$job
check "meanwhile: frames both ways" ping -c 50 -i 0.1 -s 1400 -W 60 10.0.0.2
check_job "four vsock connections bring back what was sent" "$vsock"
check_job "fio verifies on the root disk" "$disk"
check_job "random numbers" "$random"
kill "$server"
check "they came to dom0" same "$(device g1 vsock0 guest_calls)" 4
viodctl show g1
viodctl stats g1
check "the guest never found a page of its own in use" guest g1 '! dmesg | grep -i "still in use"'
check "no request failed, no ring was broken" no_errors
id=$(domu_id g1)
check "it shuts down" domu_shutdown g1 "$LONG"
check "no zombie" domu_gone g1
check "xenstore has nothing of it" no_node "$id"
finish
