# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154  # wait_for expands; the guest's shell expands; $job comes from nguest_job
# checks: a guest behind passt gets an address and a file, and survives its end
# files: common.bash net.bash
# timeout: 1500
. ./common.bash
. ./net.bash

# passt shows the guest the host's own network; there is none here but this.
ip link set dummy0 up
ip addr add 192.0.2.2/24 dev dummy0
ip route add default via 192.0.2.1
start_passt() {
    rm -f /tmp/passt.sock
    passt --foreground --runas 0 --socket /tmp/passt.sock >>/tmp/passt.log 2>&1 &
    passt=$!
    wait_for 30 '[[ -S /tmp/passt.sock ]]' || { cat /tmp/passt.log; give_up passt; }
}
configure g1 <<END
[net0]
backend = passt
socket = /tmp/passt.sock
END
start_passt
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(net_devices 1)" || give_up "xl create"
must "the guest comes up" up g1
check "viodctl list says where it leads" eval 'viodctl list | grep -F "passt at /tmp/passt.sock"'
dhcp='cat >/tmp/udhcpc <<"END"
#!/bin/bash
[[ $1 != bound ]] || { ip addr flush dev "$interface"; ip addr add "$ip/24" dev "$interface"; ip route replace default via "$router"; }
END
chmod +x /tmp/udhcpc
n=$(nic) && ip link set $n up && busybox udhcpc -i $n -n -q -t 20 -T 2 -s /tmp/udhcpc'
must "an address by DHCP" nguest g1 "$dhcp"
check "it is the host's" nguest g1 'ip -4 addr show dev $(nic) | grep -F 192.0.2.2/'
# The gateway's address leads to dom0 itself.
mkdir -p /tmp/www && head -c 8M /dev/urandom >/tmp/www/file
sum=$(md5sum </tmp/www/file)
socat -U TCP-LISTEN:8000,bind=127.0.0.1,reuseaddr,fork OPEN:/tmp/www/file,rdonly &
wait_for 60 "ss -ltn | grep -q ':8000 '"
check "8 MiB from dom0" same "$(nguest g1 'socat -u TCP:192.0.2.1:8000 STDOUT | md5sum')" "$sum"
# It is killed under load.
socat -U TCP-LISTEN:8001,bind=127.0.0.1,reuseaddr,fork OPEN:/dev/zero,rdonly &
wait_for 60 "ss -ltn | grep -q ':8001 '"
before=$(number g1 .rx.bytes)
nguest_job g1 'timeout 60 socat -u TCP:192.0.2.1:8001 OPEN:/dev/null; true'
load=$job
must "there is load" wait_for "$LONG" '[[ $(number g1 .rx.bytes) -gt $((before + 3000000)) ]]'
kill -9 "$passt"
carrier() { nguest g1 'cat /sys/class/net/$(nic)/carrier'; }
check "without passt there is no link" wait_for "$LONG" '[[ $(carrier) == 0 ]]'
sleep 3
check "the log says so once" same "$(grep -c 'net0: its interface is gone' "$VIOD_LOG")" 1
wait "$passt" 2>/dev/null
start_passt
check "with it there is" wait_for "$LONG" '[[ $(carrier) == 1 ]]'
check "8 MiB again" same "$(nguest g1 'socat -u TCP:192.0.2.1:8000 STDOUT | md5sum')" "$sum"
check_job "the load came to its end" "$load"
check "nothing broke" no_errors
finish
