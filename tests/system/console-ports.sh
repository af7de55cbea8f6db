# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: 10 MiB through each of 8 ports at once, and readers that are absent, killed, and back
# files: common.bash console.bash
# timeout: 1500
. ./common.bash
. ./console.bash

configure g1 <<END
[console0]
ports = console p1 p2 p3 p4 p5 p6 p7 p8 log
[console0.p2]
backend = listen
[console0.p3]
backend = listen
[console0.p4]
backend = listen
path = /tmp/p4.sock
[console0.p5]
backend = listen
announce = yes
[console0.p6]
backend = listen
[console0.p7]
backend = connect
path = /tmp/p7.sock
[console0.p8]
backend = file
path = /tmp/out8
[console0.log]
backend = log
path = /tmp/port.log
max-size = 65536
old-files = 2
END
socat -u UNIX-LISTEN:/tmp/p7.sock CREATE:/tmp/out7 &
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
    'virtio=["type=virtio,device3,transport=mmio"]' || give_up "xl create"
must "the guest comes up" up g1
in_guest() { guest g1 "$in_console_guest$1"; }
check "the guest sees all ports by their names" in_guest \
    'cat /sys/class/virtio-ports/*/name | sort | tr "\n" " " | grep -qx "console log p1 p2 p3 p4 p5 p6 p7 p8 "'
check "the connecting one is connected" same "$(port_state g1 p7 host_open)" true
check "the listening ones wait" same "$(port_state g1 p2 host_open)" false

# With several ports a size is told in a message.
guest g1 'sleep 1000 </dev/hvc1 >/dev/null 2>&1 &'
terminal_open
attach g1
stty -F "$terminal" rows 33 cols 101
check "the size of a console among them" wait_for "$LONG" \
    'guest g1 "[[ \$(stty -F /dev/hvc1 size) == \"33 101\" ]]"'
type_keys '\035'
check "detached" wait_for 60 "! running $attached"

size=10485760
in_guest "head -c $size /dev/urandom >/tmp/x"
in_guest 'cat >/tmp/data.sh <<"END"
tail -c +$((1 + $1 * 1000)) /tmp/x; head -c $(($1 * 1000)) /tmp/x
END'
path() { case $1 in 4) echo /tmp/p4.sock ;; *) echo "/run/viod/g1/p$1" ;; esac; }
head -c "$size" /run/viod/g1/p1 >/tmp/out1 &
for i in 2 3 4 5 6; do socat -u "UNIX-CONNECT:$(path "$i")" "CREATE:/tmp/out$i" & done
readers() { local i; for i in {1..6}; do [[ $(port_state g1 "p$i" host_open) == true ]] || return 1; done; }
check "readers are seen" wait_for 60 readers
start=$SECONDS
sums=$(in_guest 'for i in {1..8}; do bash /tmp/data.sh $i >$(port p$i) & done; wait
    for i in {1..8}; do bash /tmp/data.sh $i | md5sum | cut -d" " -f1; done')
echo "        8 times 10 MiB in $((SECONDS - start)) s"
mapfile -t sums <<<"$sums"
for i in {1..8}; do
    wait_for 60 "[[ \$(stat -c %s /tmp/out$i) -ge $size ]]"
    check "p$i: 10 MiB, as they were sent" same "$(md5sum </tmp/out$i | cut -d' ' -f1)" "${sums[i - 1]}"
done
check "nothing was lost" same "$(for i in {1..8}; do port_state g1 "p$i" lost_bytes; done | sort -u)" 0

# --- the other way ------------------------------------------------------------------------
rm -f /tmp/out*
kill $(jobs -p) 2>/dev/null
head -c "$size" /dev/urandom >/tmp/y
jobs=()
for i in 1 2 3 4; do
    guest_job g1 "$in_console_guest head -c $size <\$(port p$i) | md5sum"
    jobs+=("$job")
done
check "the guest opens them" wait_for "$LONG" '[[ $(port_state g1 p4 guest_open)$(port_state g1 p1 guest_open) == truetrue ]]'
for i in 2 3 4; do socat -u OPEN:/tmp/y "UNIX-CONNECT:$(path "$i")" & done
cat /tmp/y >/run/viod/g1/p1 &
for i in 1 2 3 4; do
    check_job "p$i: the guest gets 10 MiB" "${jobs[i - 1]}"
    check "p$i: as they were sent" same "$(cut -d' ' -f1 <"$job_output")" "$(md5sum </tmp/y | cut -d' ' -f1)"
done

# --- readers that are not there ------------------------------------------------------------
check "p2: nobody reads 1 MiB, and the guest does not wait" in_guest \
    'time timeout 60 dd if=/tmp/x of=$(port p2) bs=64k count=16 status=none'
check "p2: most of it is lost, and counted" test "$(port_state g1 p2 lost_bytes)" -ge 900000
# The device driver opens a port for one at a time.
check "p5 is announced: without a reader its writer waits" in_guest \
    'timeout 3 dd if=/tmp/x of=$(port p5) bs=64k count=1 status=none; [[ $? == 124 ]]'
guest_job g1 "$in_console_guest echo announced >\$(port p5)"
socat -u UNIX-CONNECT:/run/viod/g1/p5 CREATE:/tmp/out5 &
check_job "p5: until one comes" "$job"
check "p5: and gets it" wait_for "$LONG" 'grep -q announced /tmp/out5'

# --- killed and back --------------------------------------------------------------------------
again() { # again PORT FILE: what the guest says now arrives
    in_guest "echo round-$1-$3 >\$(port $1)"
    wait_for 60 "grep -qa round-$1-$3 $2"
}
stop_reading() { kill -KILL "$1"; wait "$1" 2>/dev/null; }
for round in 1 2; do
    socat -u UNIX-CONNECT:/run/viod/g1/p3 "CREATE:/tmp/out3.$round" & reader=$!
    check "p3, round $round: a reader is there" wait_for 60 '[[ $(port_state g1 p3 host_open) == true ]]'
    check "p3, round $round: it reads" again p3 "/tmp/out3.$round" "$round"
    stop_reading "$reader"
    check "p3, round $round: killed, and that is seen" wait_for 60 '[[ $(port_state g1 p3 host_open) == false ]]'
    check "p3, round $round: the guest goes on" in_guest 'timeout 20 bash -c "echo x >$(port p3)"'
    cat /run/viod/g1/p1 >"/tmp/out1.$round" & reader=$!
    check "p1, round $round: somebody opens the pty" wait_for 60 '[[ $(port_state g1 p1 host_open) == true ]]'
    check "p1, round $round: and reads" again p1 "/tmp/out1.$round" "$round"
    stop_reading "$reader"
    check "p1, round $round: closed, and that is seen" wait_for 60 '[[ $(port_state g1 p1 host_open) == false ]]'
    socat -u UNIX-LISTEN:/tmp/p7.sock,unlink-early "CREATE:/tmp/out7.$round" & reader=$!
    check "p7, round $round: connected again" wait_for 60 '[[ $(port_state g1 p7 host_open) == true ]]'
    check "p7, round $round: its peer reads" again p7 "/tmp/out7.$round" "$round"
    stop_reading "$reader"
    check "p7, round $round: killed, and that is seen" wait_for 60 '[[ $(port_state g1 p7 host_open) == false ]]'
done
check "the log says each loss once" same "$(grep -c 'console0, port p7: lost' "$VIOD_LOG")" 3

# --- killed under load ------------------------------------------------------------------------
# Writers that do not stop; readers of a pty, of a socket that listens and of one that connects.
start_reader() {
    case $1 in
        p1) cat /run/viod/g1/p1 >/dev/null & ;;
        p3) socat -u UNIX-CONNECT:/run/viod/g1/p3 OPEN:/dev/null & ;;
        p7) socat -u UNIX-LISTEN:/tmp/p7.sock,unlink-early OPEN:/dev/null & ;;
    esac
    reader=$!
    wait_for 60 "[[ \$(port_state g1 $1 host_open) == true ]]"
}
losses() { grep -c "console0, port $1: its reader is gone" "$VIOD_LOG"; }
listened=$(losses p3) opened=$(losses p1)
for port in p1 p3 p7; do
    guest_job g1 "$in_console_guest while [[ ! -e /tmp/enough ]]; do cat /tmp/x; done >\$(port $port)"
    load=$job
    for round in 1 2; do
        start_reader "$port"
        given=$(port_state g1 "$port" out_bytes) lost=$(port_state g1 "$port" lost_bytes)
        check "$port, round $round: it reads what comes and comes" wait_for 60 \
            '[[ $(($(port_state g1 "$port" out_bytes) - given)) -ge 5000000 ]]'
        stop_reading "$reader"
        check "$port, round $round: killed, and the guest goes on" wait_for 60 \
            '[[ $(($(port_state g1 "$port" lost_bytes) - lost)) -ge 5000000 ]]'
    done
    guest g1 'touch /tmp/enough'
    check_job "$port: its writer was never stopped" "$load"
    guest g1 'rm /tmp/enough'
done
check "the log says each loss once" same "$(grep -c 'console0, port p7: lost' "$VIOD_LOG")" 5
check "that of who listens, too" same "$(losses p3)" $((listened + 2))
check "and of the pty" same "$(losses p1)" $((opened + 2))

# --- one that stops reading -------------------------------------------------------------------
socat -u UNIX-CONNECT:/run/viod/g1/p6 CREATE:/tmp/out6 & reader=$!
wait_for 60 '[[ $(port_state g1 p6 host_open) == true ]]'
kill -STOP "$reader"
guest_job g1 "$in_console_guest cat /tmp/x >\$(port p6)"
sleep 3
check "p6 waits; another port goes on" in_guest 'timeout 20 bash -c "echo fine >$(port p3)"'
kill -CONT "$reader"
check_job "p6: its writer gets done when the reader goes on" "$job"
check "p6: all of it arrives" wait_for 60 "[[ \$(stat -c %s /tmp/out6) -ge $size ]]"
check "p6: as it was sent" same "$(md5sum </tmp/out6)" "$(in_guest 'md5sum </tmp/x')"

in_guest 'for i in {1..100}; do head -c 8000 /tmp/x; done >$(port log)'
check "the log is bounded: two old files" wait_for 60 '[[ -e /tmp/port.log.2 && ! -e /tmp/port.log.3 ]]'
check "of the size that was said" test "$(stat -c %s /tmp/port.log.1)" -le 200000
check "no request failed" no_errors
xl destroy g1
check "links and sockets are gone" wait_for "$LONG" '[[ ! -e /tmp/p4.sock && ! -e /run/viod/g1 ]]'
finish
