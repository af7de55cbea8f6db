# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: 200 vsock connections at once, called by the guest and by dom0, bring back what was sent into them
# files: common.bash vsock.bash
# timeout: 1800
. ./common.bash
. ./vsock.bash

start_vsock_guest
check "its CID is 1000 plus its domid" eval "viodctl show g1 vsock0 | grep -q 'CID $((1000 + $(domu_id g1)))'"
check "the guest sees the same" guest g1 "dmesg | grep -qi vsock; [[ -c /dev/vsock ]]"

# Each sends a beginning, waits at the gate until all are there, sends the rest, and reads it all back.
clients='exec 9>/tmp/gate; flock -x 9
    data=/usr/bin/bash pids=()
    for ((i = 0; i < 200; i++)); do
        ({ line; head -c $((i * 100)) $data; flock -s /tmp/gate true
           tail -c +$((i * 100 + 1)) $data | head -c 20000; } 9>&- |
            socat -t 900 - "$to" 9>&- | answer | md5sum >/tmp/sum.$i) &
        pids+=($!)
    done'
open_gate='flock -u 9; wait "${pids[@]}"'
results='good=0
    for ((i = 0; i < 200; i++)); do
        [[ $(</tmp/sum.$i) == "$(head -c $((i * 100 + 20000)) $data | md5sum)" ]] && good=$((good + 1))
    done
    echo "$good of 200 are right"; [[ $good == 200 ]]'

dom0_serves 5000 fork,backlog=256,unlink-close=0 PIPE
guest_job g1 "line() { :; }; answer() { cat; }; to=VSOCK-CONNECT:2:5000
    $clients
    until [[ -e /tmp/go ]]; do sleep 1; done
    $open_gate
    $results"
g1_job=$job
check "200 connections that the guest called are open" wait_for "$LONG" '[[ $(counters connections) -ge 200 ]]'
viodctl show g1 vsock0 | sed 's/^/        /'
guest g1 'touch /tmp/go'
check_job "what they sent has come back to each" "$g1_job"
sed 's/^/        /' "$job_output"
check "they are closed" none_open
check "none was reset" same "$(counters connection_resets) $(counters rejected)" "0 0"
kill "$server"

guest_serves 6000 fork,backlog=256 PIPE
to=UNIX-CONNECT:$sockets/vsock
line() { echo "CONNECT 6000"; }
answer() { read -r ok && [[ $ok == "OK "* ]] && cat; }
eval "$clients"
check "200 connections that dom0 called are open" wait_for "$LONG" '[[ $(counters connections) -ge 200 ]]'
from_dom0() { eval "$results"; }
eval "$open_gate"
check "what they sent has come back to each" from_dom0
check "they are closed" none_open
check "none was reset" same "$(counters connection_resets) $(counters rejected)" "0 0"
check "all were counted" same "$(counters connected) $(counters host_calls) $(counters guest_calls)" "400 200 200"
check "JSON has them" eval "viodctl --json show g1 vsock0 | jq -e '.devices[0].connected == 400'"
pid=$(worker g1)
check "no descriptor is left" test "$(find "/proc/$pid/fd" -lname 'socket:*' | wc -l)" -le 4
before=$(show g1 .sleeps)
sleep 5
check "an idle device makes no wake-ups" test $(($(show g1 .sleeps) - before)) -le 10
check "no request failed" no_errors
id=$(domu_id g1)
check "it shuts down" domu_shutdown g1 "$LONG"
check "its sockets are gone" wait_for 60 "[[ ! -e /run/viod/$id && ! -e $sockets ]]"
finish
