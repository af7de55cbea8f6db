# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest boots on a console of viod's; viodctl console: login, size, escape, terminal given back
# files: common.bash console.bash
# timeout: 1500
. ./common.bash
. ./console.bash

configure g1 <<END
[console0.console]
backend = file
path = /tmp/console.txt
END
# Xen's own console is hvc0, so the first one of virtio is hvc1.
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
    'virtio=["type=virtio,device3,transport=mmio"]' \
    extra="console=hvc1 hostname=g1 oops=panic panic=-1 root=/dev/vda rw init=/init" || give_up "xl create"
must "the guest comes up" up g1
check "it is its kernel's console" guest g1 'grep -q "^hvc1 .*C" /proc/consoles'
# Linux has no words for a console of virtio before its driver is there: what it has said until then is
# told to Xen's console only. From then on all of it must be here.
from_then_on() { sed "1,/console \[hvc1\] enabled/d; s/^\[ *[0-9.]*\] //" | tr -d '\r'; }
guest g1 dmesg | from_then_on | head -n 20 >/tmp/said
check "from its driver's first moment on, every line is there" test -s /tmp/said
sed 's/^\[ *[0-9.]*\] //' /tmp/console.txt | tr -d '\r' >/tmp/printed
check "word for word" same "$(grep -aFxf /tmp/said /tmp/printed | head -n 20)" "$(cat /tmp/said)"
check "the size that it sees when nobody has attached" guest g1 '[[ $(stty -F /dev/hvc1 size) == "24 80" ]]'

cat >/tmp/login.sh <<'END'
#!/bin/bash
echo "welcome, ${*: -1}"
cd / && PS1='shell> ' exec bash --norc -i
END
guest g1 "cat >/tmp/login.sh <<'END'
$(cat /tmp/login.sh)
END
chmod +x /tmp/login.sh
(while :; do env --default-signal=INT,QUIT setsid busybox getty -L -l /tmp/login.sh 0 hvc1 vt100; done) >/dev/null 2>&1 &"
terminal_open
attach g1
check "viodctl console: the last screenful" shows 'Freeing unused kernel memory|rig: domU is up|login:'
type_keys '\r'
check "it asks who is there" shows 'g1 login: '
type_keys 'root\r'
check "login" shows 'welcome, root'
check "a shell" shows 'shell> '
type_keys 'echo $((6 * 7))-and-$HOSTNAME\r'
check "what is typed is done there" shows '42-and-g1'
type_keys 'echo $((1 + 1))-to-sleep; sleep 600\r'
check "it is busy" shows '2-to-sleep'
sleep 3
type_keys '\003'
sleep 1
type_keys 'echo after-$((3 * 3))\r'
check "Ctrl-C is the guest's" shows 'after-9'

stty -F "$terminal" rows 33 cols 101
check "a new size is seen by the guest" wait_for "$LONG" \
    'guest g1 "[[ \$(stty -F /dev/hvc1 size) == \"33 101\" ]]"'
stty -F "$terminal" rows 50 cols 132
type_keys 'stty size\r'
check "and another" shows '50 132'
: >"$screen"
type_keys 'seq -f %08.0f 2000\r'
check "18 KB of output" shows 00002000
tr -d '\r' <"$screen" | grep -aE '^[0-9]{8}$' >/tmp/seen
check "every line of it, in order" same "$(md5sum </tmp/seen)" "$(seq -f %08.0f 2000 | md5sum)"

type_keys '\035'
check "Ctrl-] ends it" wait_for 60 "! running $attached"
check "and gives the terminal back" terminal_is_back
# In its login shell the guest does nothing, and nor does its worker.
# Threads of the kernel's io_uring look whether they are still needed, every five seconds.
switches() {
    local task
    for task in "/proc/$1"/task/*; do
        [[ $(<"$task/comm") == iou-wrk-* ]] || grep ctxt_switches "$task/status"
    done 2>/dev/null
}
idle() {
    local before
    before=$(switches "$1")
    sleep 10
    same "$(switches "$1")" "$before"
}
pid=$(worker g1)
check "an idle console wakes nobody up" wait_for "$LONG" "idle $pid"
for signal in TERM HUP INT; do
    attach g1
    kill -$signal "$attached"
    check "SIG$signal ends it, too" wait_for 60 "! running $attached"
    check "and gives the terminal back" terminal_is_back
done
attach g1
kill -TSTP "$attached"
check "SIGTSTP stops it, with the terminal given back" wait_for 60 terminal_is_back
kill -CONT "$attached"
check "SIGCONT lets it go on, raw again" wait_for 60 "stty -F $terminal -a | grep -q -- -icanon"
: >"$screen"
type_keys 'echo again-$((4 * 4))\r'
check "and works" shows 'again-16'
check_not "no such port" viodctl console g1 nothing
check_not "no such guest" viodctl console g7

# Emergency writes: the register at 8 of the configuration space of slot 1.
guest g1 'for c in 0x45 0x4d 0x45 0x52 0x47; do busybox devmem 0x02000308 32 $c; done'
check "emergency writes" shows EMERG
check "nothing was lost" same "$(port_state g1 console lost_bytes)" 0
check "no request failed" no_errors
guest g1 'rm -f /tmp/login.sh; poweroff -f' >/dev/null 2>&1 || xl destroy g1
check "the guest's end ends it" wait_for "$LONG" "! running $attached"
check "and gives the terminal back" terminal_is_back
check "and says so" shows 'the guest has ended'
check "its folder is gone" wait_for "$LONG" '[[ ! -e /run/viod/g1 ]]'
finish
