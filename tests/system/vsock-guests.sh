# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154  # wait_for expands; the guests' shells expand; $job comes from guest_job
# checks: guests whose configuration wants it connect to each other through vsock, and no other guests do
# files: common.bash vsock.bash
# timeout: 1800
. ./common.bash
. ./vsock.bash

serving=g2
configure g1 <<END
[vsock0]
guest-to-guest = g2
END
configure g2 <<END
[vsock0]
cid = 77
guest-to-guest = yes
END
# g3 has said nothing. Linux would look for CIDs above 2 among guests of its own, if it could have any.
number=1
for name in g1 g2 g3; do
    root=DOMU_ROOT$((number++))
    domu_create $name root=/dev/vda "disk=[$(virtio_disk "${!root}" xvda)]" memory=256 \
        'virtio=["type=virtio,device13,transport=mmio"]' cmdline=initcall_blacklist=vhost_vsock_init ||
        give_up "xl create $name"
done
for name in g1 g2 g3; do
    must "$name comes up" up $name
    must "its vsock0 is served" served $name vsock0
done
cid1=$((1000 + $(domu_id g1))) cid3=$((1000 + $(domu_id g3)))
counter() { device "$1" vsock0 "$2"; }

guest_serves 5000 fork,backlog=32 PIPE -d -d
guest g1 'mkdir /tmp/p && cd /tmp/p && head -c 2000000 /dev/urandom | split -b 100000 - in.'
check "20 connections at once bring back what g1 sent to g2" guest g1 'cd /tmp/p
    for piece in in.*; do socat -t 300 - VSOCK-CONNECT:77:5000,'$patient' <$piece >out.${piece#in.} & done; wait
    for piece in in.*; do cmp $piece out.${piece#in.} || exit 1; done'
check "g2 sees them come from g1's CID" guest g2 "[[ \$(grep -c 'accepting connection from.*cid:$cid1 ' /tmp/serve.5000) == 20 ]] ||
    { grep accepting /tmp/serve.5000 | head -n 3; false; }"
check "they are counted" same "$(counter g1 guest_calls) $(counter g2 peer_calls) $(counter g2 host_calls)" "20 20 0"
check "no connection is left" wait_for 60 '[[ $(counter g1 connections)$(counter g2 connections) == 00 ]]'
check_not "the port is not dom0's" guest g1 'socat -u VSOCK-CONNECT:2:5000 - </dev/null'

eval "$helpers"
for name in g1 g2; do guest $name "$helpers"; done
guest_serves 5001 fork EXEC:/tmp/question -t 300
check "half-close: g1 ends its half and gets an answer" guest g1 \
    '[[ $(head -c 100000 /usr/bin/bash | socat -t 300 - VSOCK-CONNECT:77:5001,'$patient') == "answer to $(head -c 100000 /usr/bin/bash | md5sum)" ]]'
guest_serves 5002 type=5 CREATE:/tmp/messages -u -b 200000 -v
guest g1 'socat -u -b 60000 OPEN:/tmp/p/in.aa,rdonly VSOCK-CONNECT:77:5002,type=5,'$patient
check "messages arrive as they were" wait_for 60 \
    '[[ $(guest g2 "$messages; messages /tmp/serve.5002") == "60000 40000 " ]]'
check_not "nobody listens: refused" guest g1 'socat -u VSOCK-CONNECT:77:99 - 2>/tmp/why </dev/null'
check "at once" guest g1 'grep -qi reset /tmp/why || { cat /tmp/why; false; }'

# --- who may not ---
serving=g3
guest_serves 5000 fork PIPE
serving=g1
guest_serves 5000 fork PIPE
check_not "g1 does not reach g3, which wants nobody" guest g1 "socat -u VSOCK-CONNECT:$cid3:5000 - </dev/null"
check_not "g3 does not reach g1" guest g3 "socat -u VSOCK-CONNECT:$cid1:5000 - </dev/null"
check_not "nor g2, which wants everybody" guest g3 'socat -u VSOCK-CONNECT:77:5000 - </dev/null'
check_not "nor does g2 reach g3" guest g2 "socat -u VSOCK-CONNECT:$cid3:5000 - </dev/null"
check "neither g1 nor g3 was called" same "$(counter g1 peer_calls) $(counter g3 peer_calls)" "0 0"
check "g2 reaches g1: it is in its list" guest g2 "[[ \$(echo hello | socat -t 300 - VSOCK-CONNECT:$cid1:5000,$patient) == hello ]]"

# --- the other one goes away ---
serving=g2
worker2=$(worker g2)
kill -9 "$worker2"
check "g2's worker is killed, and has a successor" wait_for 60 '[[ $(worker g2) != "$worker2" ]] && served g2 vsock0'
check "which gets calls, too" wait_for "$LONG" 'guest g1 "[[ \$(echo hello | socat -t 60 - VSOCK-CONNECT:77:5000) == hello ]]"'
guest_serves 5003 fork CREATE:/dev/null -u
before=$(counter g1 write_bytes)
guest_job g1 'dd if=/dev/zero bs=64k status=none | socat -u - VSOCK-CONNECT:77:5003,'$patient' 2>/dev/null; echo "socat: $?"'
must "g1 sends and sends" wait_for "$LONG" '[[ $(counter g1 write_bytes) -gt $((before + 1000000)) ]]'
domu_destroy g2
check_job "g2 is destroyed: g1's sender ends" "$job"
check "nothing is left of the connection" wait_for 60 '[[ $(counter g1 connections) == 0 ]]'
check_not "nobody is there any more" guest g1 'socat -u VSOCK-CONNECT:77:5000 - </dev/null'
check "no request failed" no_errors
finish
