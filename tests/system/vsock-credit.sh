# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: vsock's half-close, readers that sleep, message boundaries, ports where nobody listens, peers that are killed
# files: common.bash vsock.bash
# timeout: 1800
. ./common.bash
. ./vsock.bash

start_vsock_guest
pid=$(worker g1)
memory() { sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status"; }
cpu() {
    local field
    read -ra field <"/proc/$pid/stat"
    echo $((field[13] + field[14]))
}

# --- half-close ---
eval "$helpers"
guest g1 "$helpers"
dom0_serves 1 fork EXEC:/tmp/question -t 300
check "the guest ends its half and gets an answer" guest g1 \
    '[[ $(head -c 100000 /usr/bin/bash | socat -t 300 - VSOCK-CONNECT:2:1,'$patient') == "answer to $(head -c 100000 /usr/bin/bash | md5sum)" ]]'
kill "$server"
guest_serves 2 fork EXEC:/tmp/question -t 300
host_question() {
    { echo "CONNECT 2"; head -c 100000 /usr/bin/bash; } | socat -t 300 - "UNIX-CONNECT:$sockets/vsock" >answer
    cat answer
    [[ $(tail -n 1 answer) == "answer to $(head -c 100000 /usr/bin/bash | md5sum)" ]]
}
check "dom0 ends its half and gets an answer" host_question

# --- ports where nobody listens ---
check_not "the guest is refused" guest g1 'socat -u VSOCK-CONNECT:2:99 - 2>/tmp/why </dev/null'
check "at once" guest g1 'grep -qi "reset" /tmp/why || { cat /tmp/why; false; }'
refused() { [[ -z $(echo "CONNECT 99" | socat -t 60 - "UNIX-CONNECT:$sockets/vsock") ]]; }
check "dom0 is refused: the connection ends without OK" refused
nonsense() { [[ -z $(echo "HELLO" | socat -t 60 - "UNIX-CONNECT:$sockets/vsock" 2>/dev/null) ]]; }
check "so is nonsense" nonsense
check "both are counted" test "$(counters rejected)" -ge 3

# --- a reader that sleeps ---
guest g1 'head -c 4000000 /dev/urandom >/tmp/data' || give_up "no data"
sum=$(guest g1 'md5sum </tmp/data')
before=$(memory) sent_before=$(counters write_bytes)
dom0_serves 3 unlink-close=0 EXEC:/tmp/sleeper -u
guest_job g1 'socat -u FILE:/tmp/data,rdonly VSOCK-CONNECT:2:3,'$patient
sleep 6
cpu_before=$(cpu)
sleep 4
stalled=$(($(counters write_bytes) - sent_before))
echo "        $stalled bytes, $(($(memory) - before)) KiB more of memory, $(($(cpu) - cpu_before)) ticks in 4 s"
check "the guest stops when its credit is used up" test "$stalled" -le 1500000
check "which is not at once" test "$stalled" -ge 130000
check "memory is bounded" test $(($(memory) - before)) -le 1500
check "waiting costs nothing" test $(($(cpu) - cpu_before)) -le 20
check "other connections go on" host_question
touch /tmp/wake
check_job "the reader wakes up, the guest's sender ends" "$job"
check "all has arrived" wait_for 60 '[[ $(cat /tmp/sum) == "$sum" ]]'

got_before=$(counters read_bytes)
guest g1 'rm -f /tmp/wake'
guest_serves 4 backlog=5 EXEC:/tmp/sleeper -u
head -c 4000000 /dev/urandom >data
{ echo "CONNECT 4"; cat data; } | socat -t 900 - "UNIX-CONNECT:$sockets/vsock" >/dev/null &
sender=$!
sleep 8
stalled=$(($(counters read_bytes) - got_before))
check "the guest's reader sleeps: the host's data waits" test "$stalled" -le 1000000
echo "        $stalled bytes"
guest g1 'touch /tmp/wake'
wait "$sender"
check "it wakes up: all has arrived" wait_for 120 '[[ $(guest g1 "cat /tmp/sum") == "$(md5sum <data)" ]]'

# --- messages ---
dom0_serves 5 type=5 CREATE:/tmp/messages -u -b 200000 -v 2>seen
check "the guest sends messages" guest g1 'head -c 250000 /tmp/data >/tmp/part
    socat -u -b 60000 FILE:/tmp/part,rdonly VSOCK-CONNECT:2:5,type=5,'$patient
wait "$server"
check "dom0 gets them as they were" same "$(messages seen)" "60000 60000 60000 60000 10000 "
check "with all that was in them" same "$(md5sum </tmp/messages)" "$(guest g1 'md5sum </tmp/part')"
guest_serves 6 type=5 CREATE:/tmp/messages -u -b 200000 -v
# One by one: when the last one was taken from dom0.
one_by_one() {
    local n taken
    echo "CONNECT 6"
    wait_for "$LONG" '[[ $(counters connections) == 1 ]]' >&2
    for n in 1 100 60000 5000 50000 7; do
        taken=$(counters read_bytes)
        dd if=data bs="$n" count=1 status=none
        wait_for 60 "[[ \$(counters read_bytes) -ge $((taken + n)) ]]" >&2
    done
}
check "no connection is open" none_open
one_by_one | socat -t 5 -b 200000 -v - "UNIX-CONNECT:$sockets/vsock.seqpacket,type=5" >/dev/null 2>said
check "the guest gets dom0's messages as they were" wait_for 60 \
    '[[ $(guest g1 "$messages; messages /tmp/serve.6") == "1 100 60000 5000 50000 7 " ]]'

# --- a peer is killed under load ---
check "connections are closed" none_open
dom0_serves 7 unlink-close=0 CREATE:/dev/null -u
guest_job g1 'dd if=/dev/zero bs=64k status=none | socat -u - VSOCK-CONNECT:2:7,'$patient' 2>/tmp/why; echo "socat: $?"'
sent_before=$(counters write_bytes)
must "the guest sends and sends" wait_for "$LONG" '[[ $(counters write_bytes) -gt $((sent_before + 3000000)) ]]'
kill -9 "$server"
check_job "dom0's peer is killed: the guest's sender ends" "$job"
check "the worker is the same" same "$(worker g1)" "$pid"
check "nothing is left of the connection" none_open
check_not "nobody listens now" guest g1 'socat -u VSOCK-CONNECT:2:7 - </dev/null'
dom0_serves 7 unlink-close=0 CREATE:/tmp/back -u
guest g1 'socat -u FILE:/tmp/data,rdonly VSOCK-CONNECT:2:7,'$patient
wait "$server"
check "it is back: so are connections" same "$(md5sum </tmp/back)" "$sum"
check "no request failed" no_errors
finish
