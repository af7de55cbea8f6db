# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # the guest's shell expands; $job comes from nguest_job, others from *.bash
# checks: TCP transfers, a console transfer and a login session go on while the worker is killed again and again; vsock connects again each time
# files: common.bash net.bash vsock.bash console.bash
# settings: KILLS
# timeout: 1800
. ./common.bash
. ./net.bash
. ./vsock.bash
. ./console.bash
KILLS=${KILLS:-5}

new_bridge xenbr0 10.0.0.1/24
configure g1 <<EOF
[net0]
bridge = xenbr0
[console0]
ports = console data
[console0.data]
backend = pty
console = no
EOF
domu_create g1 vcpus=2 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
    'virtio=["type=virtio,device1,transport=mmio","type=virtio,device13,transport=mmio","type=virtio,device3,transport=mmio"]' ||
    give_up "xl create"
must "the guest comes up" up g1
must "it has an interface" nguest g1 'n=$(nic) && ip link set $n up && ip addr add 10.0.0.2/24 dev $n && ping -c 1 -W 20 10.0.0.1'
tap=viod$(domu_id g1).0
index=$(<"/sys/class/net/$tap/ifindex")

# --- TCP, both ways ---------------------------------------------------------------------------
head -c 2000000 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -d' ' -f1)
socat TCP-LISTEN:7000,fork,reuseaddr OPEN:/tmp/data &
wait_for 60 "ss -ltn | grep -q ':7000 '"
# Not by EXEC: socat ends a program half a second after its input.
while :; do
    socat -u TCP-LISTEN:7001,reuseaddr CREATE:/tmp/received && md5sum </tmp/received >>/tmp/sums
done &
nguest_job g1 'n=0; until [[ -e /tmp/stop ]]; do
    socat -u TCP:10.0.0.1:7000 - >/tmp/data || exit 1
    [[ $(md5sum </tmp/data | cut -d" " -f1) == '"$sum"' ]] || { echo "another sum"; exit 1; }
    socat -u - TCP:10.0.0.1:7001,retry=600,interval=0.1 </tmp/data || exit 1
    n=$((n + 1)); done; echo "$n transfers"'
transfers=$job
must "they begin" wait_for "$LONG" '[[ -s /tmp/sums ]]'

# --- a port: the guest says numbers, and dom0 hears them -----------------------------------------
# The reader is on its pty all the time. What a dead worker had written and not noted yet comes twice.
data=$(readlink -f /run/viod/g1/data)
stty -F "$data" raw -echo
cat "$data" >/tmp/heard &
reader=$!
guest_job g1 "$in_console_guest"'n=100000; until [[ -e /tmp/stop ]]; do
    n=$((n + 1)); echo "line $n" || exit 1; ((n % 50)) || sleep 0.2; done >$(port data); echo "$n" >/tmp/last'
lines=$job
must "lines come" wait_for "$LONG" '[[ $(wc -l </tmp/heard) -gt 100 ]]'

# --- a login session, by viodctl console ------------------------------------------------------------
guest g1 'for h in /dev/hvc1 /dev/hvc2; do [[ ! -e $h ]] || break; done
(while :; do PS1="shell> " setsid --ctty bash --norc -i <>$h >&0 2>&1; done) >/dev/null 2>&1 &'
terminal_open
attach g1 console
type_keys '\r'
must "a shell" shows 'shell> '

# --- vsock ------------------------------------------------------------------------------------------
dom0_serves 5000 fork PIPE
guest_job g1 'socat PIPE VSOCK-CONNECT:2:5000'
connection=$job
must "a vsock connection is open" wait_for "$LONG" '[[ $(counters connections) == 1 ]]'
# Others come and go: what is said comes back, or the connection is over, and the next one works.
guest_job g1 'good=0 over=0; until [[ -e /tmp/stop ]]; do
    heard=$(echo "call $good" | socat -t 60 - VSOCK-CONNECT:2:5000 2>/dev/null)
    case $heard in "call $good") good=$((good + 1)) ;; "") over=$((over + 1)) ;; *) echo "heard: $heard"; exit 1 ;; esac
    sleep 0.3; done; echo "$good calls were answered, $over were cut off"'
calls=$job
must "others are answered" wait_for "$LONG" '[[ $(counters connected) -gt 3 ]]'

taken_over() { [[ $(grep -c 'has taken over all devices' "$VIOD_LOG") -ge $1 ]]; }
for ((n = 1; n <= KILLS; n++)); do
    before=$(wc -l </tmp/sums) heard=$(wc -l </tmp/heard) connected=$(counters connected)
    victim=$(worker g1)
    kill -9 "$victim"
    type_keys "echo typed-\$(($n * 3))-ok\\r"
    wait_for 60 "taken_over $n" || give_up "kill $n: no successor"
    shows "^typed-$((n * 3))-ok" >/dev/null || give_up "kill $n: the shell does not answer: $(tail -n 5 "$screen")"
    [[ $((n % 5)) != 0 ]] ||
        wait_for "$LONG" "[[ \$(wc -l </tmp/sums) -gt $before && \$(wc -l </tmp/heard) -gt $heard && \$(counters connected) -gt $connected ]]" ||
        give_up "kill $n: transfers stand still"
    sleep 0.$((RANDOM % 9))
done
check "the shell has answered each time, once" same \
    "$(tr -d '\r' <"$screen" | grep -aE '^typed-[0-9]+-ok$')" "$(for ((n = 1; n <= KILLS; n++)); do echo "typed-$((n * 3))-ok"; done)"
check "viodctl console is the same process" running "$attached"

guest g1 'touch /tmp/stop'
check_job "all transfers to the guest were good" "$transfers"
tail -n 1 "$job_output"
check "all to dom0, too" same "$(sort -u /tmp/sums | cut -d' ' -f1)" "$sum"
check_job "the guest could write all its lines" "$lines"
last=$(guest g1 'cat /tmp/last')
check "the last one is there" wait_for 60 "grep -qax 'line $last' /tmp/heard"
kill "$reader"
for ((n = 100001; n <= last; n++)); do echo "line $n"; done >/tmp/said
check "no line is missing" same "$(grep -axE 'line [0-9]{6}' /tmp/heard | sort -u | comm -13 - /tmp/said | head -n 3)" ''
echo "lines: $(wc -l </tmp/said); heard twice: $(($(wc -l </tmp/heard) - $(wc -l </tmp/said)))"

check "the interface is the same one" same "$(<"/sys/class/net/$tap/ifindex")" "$index"
check "and still on the bridge" same "$(grep INTERFACE "/sys/class/net/$tap/master/uevent")" INTERFACE=xenbr0
check "the guest was told that its first vsock connection is over" wait_for 60 "[[ -s ${rig_jobs[$connection]}.status ]]"
check_job "it could connect again, each time" "$calls"
cat "$job_output"
check "no request failed, no ring was broken" no_errors
check "the guest shuts down" domu_shutdown g1 "$LONG"
finish
