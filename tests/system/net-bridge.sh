# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from nguest_job
# checks: two guests on a bridge: DHCP, packets up to the MTU 9000, VLAN, addresses, link, a large file, wrong checksums
# files: common.bash net.bash
# settings: MIB
# timeout: 3600
. ./common.bash
. ./net.bash

# Of the large file. Some ten minutes where all of this is emulated by two busy CPUs: `.ci/run` has less.
MIB=${MIB:-1024}
new_bridge xenbr0 10.0.0.1/24 9000
dnsmasq --conf-file=/dev/null --interface=xenbr0 --bind-interfaces --port=0 --user=root \
    --dhcp-range=10.0.0.100,10.0.0.200,1h --dhcp-option=option:mtu,9000 --dhcp-leasefile=/tmp/leases \
    --pid-file=/tmp/dnsmasq.pid
configure g1 <<END
[net0]
bridge = xenbr0
END
# The other one with the other kind of rings.
configure g2 <<END
[net0]
bridge = xenbr0
packed = yes
END
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(net_devices 1)" ||
    give_up "xl create g1"
domu_create g2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT2" xvda)]" "virtio=$(net_devices 1)" ||
    give_up "xl create g2"
must "a guest comes up" up g1
must "another comes up" up g2

# --- DHCP -------------------------------------------------------------------------
dhcp='cat >/tmp/udhcpc <<"END"
#!/bin/bash
[[ $1 != bound ]] || { ip addr flush dev "$interface"; ip addr add "$ip/24" dev "$interface"; }
END
chmod +x /tmp/udhcpc
n=$(nic) && ip link set $n up && busybox udhcpc -i $n -n -q -t 20 -T 2 -s /tmp/udhcpc'
address() { nguest "$1" 'ip -4 -o addr show dev $(nic) | sed "s/.*inet \([0-9.]*\).*/\1/"'; }
mac() { nguest "$1" 'cat /sys/class/net/$(nic)/address'; }
for name in g1 g2; do
    must "$name: an address by DHCP" nguest $name "$dhcp"
    check "$name: dnsmasq knows it by its MAC address" grep -F "$(mac $name) $(address $name)" /tmp/leases
done
a1=$(address g1) a2=$(address g2)
check "two addresses" test "$a1" != "$a2"
check "two MAC addresses" test "$(mac g1)" != "$(mac g2)"

# --- sizes ------------------------------------------------------------------------
check "the guests know the bridge's MTU" same "$(nguest g1 'cat /sys/class/net/$(nic)/mtu') $(nguest g2 'cat /sys/class/net/$(nic)/mtu')" "9000 9000"
for size in 0 1 18 1472 4000 8972; do
    check "ping between guests, $size bytes" nguest g1 "ping -M do -c 2 -W 20 -s $size $a2"
done
check_not "a packet larger than the MTU is refused" nguest g1 "ping -M do -c 1 -W 2 -s 8973 $a2"
check "in fragments, 30000 bytes" nguest g1 "ping -c 2 -W 20 -s 30000 $a2"

# --- VLAN --------------------------------------------------------------------------
for name in g1 g2; do
    number=${name#g}
    check "$name: VLAN 42" nguest $name "n=\$(nic) && ip link add link \$n name v42 type vlan id 42 && ip link set v42 up && ip addr add 10.42.0.$number/24 dev v42"
done
check "ping in the VLAN" nguest g1 "ping -c 2 -W 20 -s 5000 10.42.0.2"
drops=$(number g2 .rx.drops)
check "g2 leaves it" nguest g2 "ip link delete v42"
check_not "no ping in the VLAN" nguest g1 "ping -c 2 -W 2 10.42.0.2"
check "its frames were not even delivered" test "$(number g2 .rx.drops)" -gt "$drops"

# --- MAC addresses ---------------------------------------------------------------------
new=02:00:00:12:34:56
check "g2: another MAC address" nguest g2 "n=\$(nic); ip link set \$n address $new && [[ \$(<\"/sys/class/net/\$n/address\") == $new ]]"
nguest g1 "ip neigh flush all"
check "ping to it" nguest g1 "ping -c 2 -W 20 $a2"
check "by its new address" nguest g1 "ip neigh show $a2 | grep -i $new"

# --- the link -----------------------------------------------------------------------------
carrier() { nguest "$1" 'cat /sys/class/net/$(nic)/carrier'; }
check "viodctl link down" viodctl link g2 net0 down
check "the guest sees it" wait_for "$LONG" '[[ $(carrier g2) == 0 ]]'
check_not "no ping" nguest g1 "ping -c 1 -W 2 $a2"
check "viodctl link up" viodctl link g2 net0 up
check "the guest sees it" wait_for "$LONG" '[[ $(carrier g2) == 1 ]]'
check "ping again" nguest g1 "ping -c 2 -W 20 $a2"
check_not "viodctl link sideways" viodctl link g2 net0 sideways
check_not "viodctl link of a disk" viodctl link g2 xvda down

# --- segmentation of UDP, in both directions ------------------------------------------------
# The program hands 42 datagrams over at once. Whoever can takes them as one frame: g1's device does, the
# bridge passes it on, g2's device too, and only g2's kernel takes them apart.
cat >/tmp/uso.py <<'END'
import socket, sys, time
SOL_UDP, UDP_SEGMENT, SIZE, MANY, TIMES = 17, 103, 1400, 42, 20
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[1] == "receive":
    # Room for all of them: the guest may not run for a while. SO_RCVBUFFORCE.
    s.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
    s.bind(("", 5002))
    open("/tmp/bound", "w").close()
    s.settimeout(60)
    seen = set()
    while len(seen) < MANY * TIMES:
        data = s.recv(65535)
        assert len(data) == SIZE and data[4:] == data[4:5] * (SIZE - 4), len(data)
        seen.add(int.from_bytes(data[:4], "big"))
    print("all", len(seen))
else:
    s.setsockopt(SOL_UDP, UDP_SEGMENT, SIZE)
    for n in range(0, MANY * TIMES, MANY):
        s.sendto(b"".join(i.to_bytes(4, "big") + bytes([i & 255]) * (SIZE - 4) for i in range(n, n + MANY)),
                 (sys.argv[2], 5002))
        time.sleep(0.2)
END
for name in g1 g2; do
    guest $name "cat >/tmp/uso.py <<'END'
$(cat /tmp/uso.py)
END"
done
# Linux leaves that to the administrator.
check "g1: its driver leaves the segmentation of UDP to the device" nguest g1 \
    'n=$(nic) && ethtool -K $n tx-udp-segmentation on && ethtool -k $n | grep -x "tx-udp-segmentation: on"'
nguest_job g2 'python3 /tmp/uso.py receive'
listener=$job
must "g2 listens" wait_for 60 'guest g2 "[[ -e /tmp/bound ]]"'
sent=$(number g1 .tx.packets) sent_bytes=$(number g1 .tx.bytes)
got=$(number g2 .rx.packets) got_bytes=$(number g2 .rx.bytes)
guest g1 "python3 /tmp/uso.py send $a2"
check "840 datagrams arrive, each by itself" same "$(domu_wait "$listener")" "all 840"
sent=$(($(number g1 .tx.packets) - sent)) sent_bytes=$(($(number g1 .tx.bytes) - sent_bytes))
got=$(($(number g2 .rx.packets) - got)) got_bytes=$(($(number g2 .rx.bytes) - got_bytes))
check "g1 sent them in few frames ($sent, $sent_bytes bytes)" test "$sent_bytes" -ge 1176000 -a "$sent" -lt 200
check "and g2 got them so ($got, $got_bytes bytes)" test "$got_bytes" -ge 1176000 -a "$got" -lt 200

# --- a large file, from guest to guest ---------------------------------------------------
# The same random 16 MiB again and again: made once, as making them takes longer than sending them.
nguest_job g2 "timeout $((LONG * 4 - 60)) nc.openbsd -l 5000 | md5sum"
listener=$job start=$SECONDS bytes=$(number g2 .rx.bytes)
wait_for 60 'nguest g2 "ss -ltn | grep -q :5000"'
nguest_job g1 "head -c 16M /dev/urandom >/tmp/part; mkfifo /tmp/copy; md5sum </tmp/copy &
    for ((i = 0; i < $MIB; i += 16)); do cat /tmp/part; done | tee /tmp/copy | timeout $((LONG * 4 - 60)) nc.openbsd -N $a2 5000; wait"
sum=$(domu_wait "$job")
check "$MIB MiB from guest to guest arrive as they were" same "$(domu_wait "$listener")" "$sum"
check "all of it" test $(($(number g2 .rx.bytes) - bytes)) -ge $((MIB << 20))
echo "        in $((SECONDS - start)) s"
for name in g1 g2; do viodctl show $name net0 | sed 's/^/        /'; done

# --- checksums -------------------------------------------------------------------------------
# netem flips a bit of the packets that leave dom0 towards g1; the checksum is made before (tx off).
tap=viod$(domu_id g1).0
errors() { nguest g1 "grep '^Tcp: [0-9]' /proc/net/snmp | cut -d' ' -f14"; }
tcp_sum=$(head -c 2M /dev/urandom | tee /tmp/file | md5sum)
before=$(errors)
ethtool -K xenbr0 tx off >/dev/null 2>&1
tc qdisc add dev "$tap" root netem corrupt 5% || echo "        no netem"
nguest_job g1 "socat -u TCP-LISTEN:5001 STDOUT | md5sum"
listener=$job
wait_for 60 'nguest g1 "ss -ltn | grep -q :5001"'
timeout 300 socat -u STDIN "TCP:$a1:5001" </tmp/file
check "2 MiB over a line that corrupts packets arrive as they were" same "$(domu_wait "$listener")" "$tcp_sum"
check "segments with a wrong checksum were dropped" test "$(errors)" -gt "$before"
tc qdisc del dev "$tap" root

check "nothing broke" no_errors
for name in g1 g2; do
    check "$name: no frame in error" same "$(number $name .rx.errors) $(number $name .tx.errors)" "0 0"
done
domu_destroy g1 g2
check "with the guests go their TAPs" wait_for 60 '! ls /sys/class/net | grep -q ^viod'
finish
