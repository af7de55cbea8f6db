# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; $job comes from nguest_job
# checks: TCP transfers with checksums go on while the worker is killed again and again; vsock connects again
# files: common.bash net.bash vsock.bash
# timeout: 1800
. ./common.bash
. ./net.bash
. ./vsock.bash
KILLS=${KILLS:-20}

new_bridge xenbr0 10.0.0.1/24
configure g1 <<END
[net0]
bridge = xenbr0
END
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
    'virtio=["type=virtio,device1,transport=mmio","type=virtio,device13,transport=mmio"]' || give_up "xl create"
must "the guest comes up" up g1
must "it has an interface" nguest g1 'n=$(nic) && ip link set $n up && ip addr add 10.0.0.2/24 dev $n && ping -c 1 -W 20 10.0.0.1'
tap=viod$(domu_id g1).0
index=$(<"/sys/class/net/$tap/ifindex")

head -c 4000000 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -d' ' -f1)
socat TCP-LISTEN:7000,fork,reuseaddr OPEN:/tmp/data &
socat -u TCP-LISTEN:7001,fork,reuseaddr SYSTEM:'md5sum >>/tmp/sums' &
# Both ways, until it is told to stop; prints how many transfers were good.
nguest_job g1 'n=0; until [[ -e /tmp/stop ]]; do
    socat -u TCP:10.0.0.1:7000 - >/tmp/data || exit 1
    [[ $(md5sum </tmp/data | cut -d" " -f1) == '"$sum"' ]] || { echo "another sum"; exit 1; }
    socat -u - TCP:10.0.0.1:7001 </tmp/data || exit 1
    n=$((n + 1)); done; echo "$n transfers"'
transfers=$job
must "they begin" wait_for "$LONG" '[[ -s /tmp/sums ]]'
# A connection that is there when the worker dies.
dom0_serves 5000 fork PIPE
guest_job g1 'sleep 1000 | socat -t 1 - VSOCK-CONNECT:2:5000'
connection=$job
must "a vsock connection is open" wait_for "$LONG" '[[ $(counters connections) == 1 ]]'

replaced() { local now; now=$(worker g1) && [[ $now -gt 0 && $now != "$1" ]] && served g1 net0 && served g1 vsock0 && served g1 xvda; }
for ((n = 1; n <= KILLS; n++)); do
    victim=$(worker g1)
    before=$(wc -l </tmp/sums)
    kill -9 "$victim"
    wait_for 30 "replaced $victim" || give_up "kill $n: no successor"
    [[ $((n % 4)) != 0 ]] || wait_for "$LONG" "[[ \$(wc -l </tmp/sums) -gt $before ]]" || give_up "kill $n: transfers stand still"
    sleep 0.$((RANDOM % 9))
done
nguest g1 'touch /tmp/stop'
check_job "all transfers to the guest were good" "$transfers"
job_result | tail -n 1
check "all to dom0, too" same "$(sort -u /tmp/sums | cut -d' ' -f1)" "$sum"
check "the interface is the same one" same "$(<"/sys/class/net/$tap/ifindex")" "$index"
check "and still on the bridge" same "$(grep INTERFACE "/sys/class/net/$tap/master/uevent")" INTERFACE=xenbr0
check "the guest was told that its vsock connection is over" wait_for 60 '! guest g1 "pgrep -f VSOCK-CONNECT:2:5000"'
domu_wait "$connection" >/dev/null
check "it can connect again" same "$(guest g1 'echo again | socat -t 20 - VSOCK-CONNECT:2:5000')" again
check "no request failed, no ring was broken" no_errors
grep -oE 'has taken over all devices, [0-9]+ ms' "$VIOD_LOG"
check "the guest shuts down" domu_shutdown g1 "$LONG"
finish
