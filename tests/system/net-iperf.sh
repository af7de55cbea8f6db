# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from nguest_job
# checks: TCP and UDP both ways and at once over a bridge, over four queues, with offloads on and off
# files: common.bash net.bash
# timeout: 1500
. ./common.bash
. ./net.bash

new_bridge xenbr0 10.0.0.1/24
configure g1 <<END
[net0]
bridge = xenbr0
END
domu_create g1 vcpus=4 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(net_devices 1)" ||
    give_up "xl create"
must "the guest comes up" up g1
must "it has an interface" nguest g1 'n=$(nic) && ip link set $n up && ip addr add 10.0.0.2/24 dev $n'
tap=viod$(domu_id g1).0

check "dom0 has the other end on the bridge" same "$(grep INTERFACE "/sys/class/net/$tap/master/uevent")" INTERFACE=xenbr0
check "the address is in Xen's range" nguest g1 '[[ $(<"/sys/class/net/$(nic)/address") == 00:16:3e:* ]]'
check "ethtool -i: virtio_net" nguest g1 'ethtool -i $(nic) | grep -x "driver: virtio_net"'
check "ethtool -l: four queues" nguest g1 'o=$(ethtool -l $(nic)); [[ $(grep -c "^Combined:[[:space:]]*4$" <<<"$o") == 2 ]]'
check "ethtool: 10 Gbit/s, link" nguest g1 'o=$(ethtool $(nic)); grep -q "Speed: 10000Mb/s" <<<"$o" && grep -q "Link detected: yes" <<<"$o"'
for feature in tx-checksum-ip-generic rx-checksumming tx-tcp-segmentation tx-tcp6-segmentation \
    tx-tcp-ecn-segmentation rx-gro-hw rx-vlan-filter; do
    check "ethtool -k: $feature" nguest g1 "ethtool -k \$(nic) | grep -E '^[[:space:]]*$feature: on'"
done
check "ethtool -k: UDP segmentation can be had" nguest g1 'ethtool -k $(nic) | grep -E "tx-udp-segmentation: (on|off)$"'

check "ping" ping -c 3 -W 20 10.0.0.2
iperf3 -s -D --logfile /tmp/iperf3.log
wait_for 60 "ss -ltn | grep -q ':5201 '"
received='.end.sum_received.bytes'
# What is sent is said in bytes, however long that takes.
check "TCP to dom0, 8 streams" at_least 1000000 "$(iperf g1 -n 4M -P 8)" "$received"
check "TCP to the guest, 8 streams" at_least 1000000 "$(iperf g1 -n 4M -P 8 -R)" "$received"
out=$(number g1 .tx.bytes) in=$(number g1 .rx.bytes)
nguest_job g1 'iperf3 -c 10.0.0.1 -t 3600 -P 2 --bidir >/tmp/bidir 2>&1 & i=$!
    until [[ -e /tmp/enough ]] || ! kill -0 $i; do sleep 0.2; done; kill $i; wait; cat /tmp/bidir'
check "TCP both ways at once: out" wait_for "$LONG" '[[ $(number g1 .tx.bytes) -gt $((out + 1000000)) ]]'
check "TCP both ways at once: in" wait_for "$LONG" '[[ $(number g1 .rx.bytes) -gt $((in + 1000000)) ]]'
guest g1 'touch /tmp/enough'
domu_wait "$job" | tail -n 4 | sed 's/^/        /'
check "UDP to dom0" at_least 100 "$(iperf g1 -u -t 4 -b 8M -l 1400)" '(.end.sum.packets - .end.sum.lost_packets)'
check "UDP to the guest" at_least 100 "$(iperf g1 -u -t 4 -b 8M -l 1400 -R)" '(.end.sum.packets - .end.sum.lost_packets)'
both=$(iperf g1 -u -t 4 -b 8M -l 1400 --bidir)
check "UDP both ways at once: out" at_least 100 "$both" '(.end.sum.packets - .end.sum.lost_packets)'
check "UDP both ways at once: in" at_least 100 "$both" \
    '(.end.sum_bidir_reverse.packets - .end.sum_bidir_reverse.lost_packets)'

echo "        frames of each queue: $(number g1 .queue_packets | tr -d '\n ')"
for queue in 0 1 2 3; do
    check "receive queue $queue was used" test "$(number g1 ".queue_packets[$((2 * queue))]")" -gt 0
    check "transmit queue $queue was used" test "$(number g1 ".queue_packets[$((2 * queue + 1))]")" -gt 0
done
check "no frame was in error" same "$(number g1 .rx.errors) $(number g1 .tx.errors)" "0 0"

# frame_size rx|tx OPTIONS…: the mean size of the frames that the guest receives or sends meanwhile.
frame_size() {
    local way=$1 packets bytes
    packets=$(number g1 ".$way.packets") bytes=$(number g1 ".$way.bytes")
    shift
    iperf g1 "$@" >/dev/null || return
    echo $((($(number g1 ".$way.bytes") - bytes) / ($(number g1 ".$way.packets") - packets)))
}
# Linux makes frames as large as a millisecond's worth of what it sends, which may be two segments where the
# machine is slow; so each side is told to make them of sixteen at least.
echo 16 >/proc/sys/net/ipv4/tcp_min_tso_segs
nguest g1 'echo 16 >/proc/sys/net/ipv4/tcp_min_tso_segs' || give_up "tcp_min_tso_segs"
size=$(frame_size tx -n 2M)
check "TSO on: the guest hands over large frames ($size bytes)" test "$size" -gt 3000
size=$(frame_size rx -n 2M -R)
check "GRO on: it takes large frames ($size bytes)" test "$size" -gt 3000
check "offloads off in the guest" nguest g1 'ethtool -K $(nic) tso off gso off tx off rx-gro-hw off'
size=$(frame_size tx -n 1M)
check "TSO off: frames of the MTU ($size bytes)" test "$size" -gt 1000 -a "$size" -le 1514
size=$(frame_size rx -n 1M -R)
check "GRO off: frames of the MTU ($size bytes)" test "$size" -gt 1000 -a "$size" -le 1514
check "offloads on again" nguest g1 'ethtool -K $(nic) tx on tso on gso on rx-gro-hw on'
size=$(frame_size tx -n 2M)
check "TSO on: large frames again ($size bytes)" test "$size" -gt 3000
check "ethtool -L: one queue" nguest g1 'ethtool -L $(nic) combined 1'
before=$(number g1 '.queue_packets[2]')
check "TCP over one queue" at_least 100000 "$(iperf g1 -n 4M -P 4 -R)" "$received"
check "the others rest" same "$(number g1 '.queue_packets[2]')" "$before"
check "ethtool -L: four queues" nguest g1 'ethtool -L $(nic) combined 4'
check "TCP over four" at_least 100000 "$(iperf g1 -n 4M -P 4)" "$received"

# A lone packet waits for company as long as the guest says, so no answer comes sooner.
soonest() { ping -c 4 -W 20 10.0.0.2 | sed -n 's|^rtt min/avg/max/mdev = \([0-9]*\).*|\1|p'; }
check "ethtool -C: an interrupt for what is received waits 300 ms" \
    nguest g1 'n=$(nic) && ethtool -C $n rx-usecs 300000 rx-frames 64 && ethtool -c $n | grep -x "rx-usecs:[[:space:]]*300000"'
check "and so does an answer to ping" test "$(soonest)" -ge 300
check "ethtool -C: at once again" nguest g1 'ethtool -C $(nic) rx-usecs 0 rx-frames 0'
check "ping" ping -c 2 -W 20 10.0.0.2
sleep 5
# Without frames nobody wakes up, but for the guest's own timers (neighbour discovery and the like).
# Frames are counted for longer than wake-ups, and only a time counts in which the root disk was left alone.
guest g1 sync
idle() {
    local disk
    frames=$(($(number g1 .rx.packets) + $(number g1 .tx.packets)))
    disk=$(device g1 xvda requests) sleeps=$(show g1 .sleeps)
    sleep 5
    sleeps=$(($(show g1 .sleeps) - sleeps))
    frames=$(($(number g1 .rx.packets) + $(number g1 .tx.packets) - frames))
    [[ $(device g1 xvda requests) == "$disk" ]]
}
wait_for "$LONG" idle
check "in 5 s without traffic the worker woke $sleeps times for $frames frames" test "$sleeps" -le $((10 * frames + 5))
check "nothing broke" no_errors
viodctl show g1 net0 | sed 's/^/        /'
finish
