# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from nguest_job
# checks: a TAP deleted under load is seen by the guest, logged once, and replaced
# files: common.bash net.bash
# timeout: 1500
. ./common.bash
. ./net.bash

new_bridge xenbr0 10.0.0.1/24
configure g1 <<END
[net0]
bridge = xenbr0
END
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=$(net_devices 1)" ||
    give_up "xl create"
must "the guest comes up" up g1
must "it has an interface" nguest g1 'n=$(nic) && ip link set $n up && ip addr add 10.0.0.2/24 dev $n'
tap=viod$(domu_id g1).0
pid=$(worker g1)
iperf3 -s -D --logfile /tmp/iperf3.log
wait_for 60 "ss -ltn | grep -q ':5201 '"
check "ping" ping -c 2 -W 20 10.0.0.2
changes() { number g1 .config_changes; }
tap_index() { cat "/sys/class/net/$tap/ifindex" 2>/dev/null; }
has_tap() { [[ -e /sys/class/net/$tap/master && $(tap_index) != "$1" ]]; }

for round in 1 2; do
    before=$(changes) index=$(tap_index)
    nguest_job g1 'iperf3 -c 10.0.0.1 -t 8 -P 4 --bidir >/dev/null; true'
    load=$job
    packets=$(number g1 .tx.packets)
    must "round $round: there is load" wait_for "$LONG" "[[ \$(number g1 .tx.packets) -gt $((packets + 500)) ]]"
    check "round $round: the TAP is deleted" ip link delete "$tap"
    check "round $round: a new one is on the bridge" wait_for 60 "has_tap $index"
    check "round $round: the guest answers" wait_for "$LONG" 'ping -c 1 -W 5 10.0.0.2 >/dev/null'
    check "round $round: it was told of both" test "$(changes)" -ge $((before + 2))
    domu_wait "$load" >/dev/null
done
check "TCP works" at_least 100000 "$(iperf g1 -n 1M)" .end.sum_received.bytes
check "the log says each loss once" same "$(grep -c 'net0: its interface is gone' "$VIOD_LOG")" 2
check "and each return" same "$(grep -c 'net0: has a new interface' "$VIOD_LOG")" 2

# No bridge to come back to: the guest runs on, and viod goes on trying.
ip link delete xenbr0
ip link delete "$tap"
check "without a bridge there is no link" wait_for "$LONG" 'nguest g1 "[[ \$(<\"/sys/class/net/\$(nic)/carrier\") == 0 ]]"'
sleep 4
check "the log says why, once" same "$(grep -c 'no new interface' "$VIOD_LOG")" 1
check "and what to do" logged 'there is no bridge "xenbr0": make it'
check "the guest runs on" nguest g1 'ip link set $(nic) up && sleep 1'
check "nothing broke" no_errors
# Whoever comes then knows no interface either.
kill -9 "$pid"
has_another() { [[ $(worker g1) != "$pid" && $(worker g1) != null ]] && all_served g1; }
check "its worker is killed: another one goes on, without a link" wait_for 60 has_another
pid=$(worker g1)
check "viod is killed" end_viod KILL
check "and starts again" start_viod
check "a worker goes on without a link" wait_for 60 has_another
pid=$(worker g1)
check "the guest runs on through both" nguest g1 'ip link set $(nic) up && [[ $(<"/sys/class/net/$(nic)/carrier") == 0 ]]'
new_bridge xenbr0 10.0.0.1/24
check "with the bridge comes a TAP" wait_for 60 'has_tap 0'
check "and the guest answers" wait_for "$LONG" 'ping -c 1 -W 5 10.0.0.2 >/dev/null'
check "the worker is the same" same "$(worker g1)" "$pid"
check "nothing broke" no_errors

check "it has one descriptor for each queue" same "$(readlink /proc/"$pid"/fd/* | grep -c /dev/net/tun)" 2
check "the supervisor keeps those for a successor, and none of before" \
    same "$(readlink "/proc/$(supervisor)"/fd/* | grep -c /dev/net/tun)" 2
domu_destroy g1
check "with the guest goes its TAP" wait_for 60 "[[ ! -e /sys/class/net/$tap ]]"
check "no worker is left" wait_for 60 no_workers
finish
