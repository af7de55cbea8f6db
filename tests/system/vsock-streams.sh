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

# Text in 200 pieces, each for one connection. Servers stand still until all of them are there: then
# every one is open, and has sent.
pieces='rm -rf /tmp/pieces && mkdir /tmp/pieces && cd /tmp/pieces
    cat /usr/bin/* 2>/dev/null | head -c 3100000 | base64 | head -c 4000000 | split -b 20000 -a 3 - in.'
# clients ADDRESS
clients='clients() {
    local piece
    for piece in in.*; do socat -t 900 - "$1" <"$piece" >"out.${piece#in.}" & done
}'
right='ls in.* | wc -l; wc -c in.* | tail -n 1; wc -c out.* | tail -n 1
    for piece in in.*; do cmp "$piece" "out.${piece#in.}" || exit 1; done'

guest g1 "$pieces"
dom0_serves 5000 fork,backlog=256 PIPE
kill -STOP "$server"
guest_job g1 "cd /tmp/pieces; $clients; clients VSOCK-CONNECT:2:5000,$patient; wait"
check "200 connections that the guest called are open" wait_for "$LONG" '[[ $(counters connections) == 200 ]]'
viodctl show g1 vsock0 | sed 's/^/        /'
kill -CONT "$server"
check_job "they come to their end" "$job"
check "what each sent has come back to it" guest g1 "cd /tmp/pieces; $right"
check "they are closed" none_open
check "none was reset" same "$(counters connection_resets) $(counters rejected)" "0 0"
kill "$server"

eval "$pieces; $clients"
sed -s -i '1i CONNECT 6000' in.*
guest_serves 6000 fork,backlog=256 PIPE
guest g1 'kill -STOP $(pgrep "^socat")'
clients "UNIX-CONNECT:$sockets/vsock"
check "200 connections that dom0 called are open" wait_for "$LONG" '[[ $(counters connected) == 400 ]]'
check "at once" same "$(counters connections)" 200
guest g1 'kill -CONT $(pgrep "^socat")'
check "they come to their end" wait_for "$LONG" '! pgrep "^socat" >/dev/null'
sed -s -i 1d in.* out.*
dom0_is_right() { (eval "$right"); }
check "what each sent has come back to it" dom0_is_right
check "they are closed" none_open
check "none was reset" same "$(counters connection_resets) $(counters rejected)" "0 0"
check "all were counted" same "$(counters connected) $(counters host_calls) $(counters guest_calls)" "400 200 200"
check "JSON has them" eval "viodctl --json show g1 vsock0 | jq -e '.devices[0].connected == 400'"
pid=$(worker g1)
check "no descriptor is left" test "$(find "/proc/$pid/fd" -lname 'socket:*' | wc -l)" -le 4
# The worker serves the guest's disk, too, which Linux writes to when it likes: so those 5 s count in which it
# did not.
guest g1 sync
idle() {
    local disk sleeps
    disk=$(device g1 xvda requests) sleeps=$(show g1 .sleeps)
    sleep 5
    sleeps=$(($(show g1 .sleeps) - sleeps))
    [[ $(device g1 xvda requests) == "$disk" ]] && echo "$sleeps" >/tmp/sleeps
}
check "a time comes in which nothing happens" wait_for "$LONG" idle
check "an idle device makes no wake-ups ($(</tmp/sleeps))" test "$(</tmp/sleeps)" -le 10
check "no request failed" no_errors
id=$(domu_id g1)
check "it shuts down" domu_shutdown g1 "$LONG"
check "its sockets are gone" wait_for 60 "[[ ! -e /run/viod/$id && ! -e $sockets ]]"
finish
