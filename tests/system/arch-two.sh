# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154
# checks: architecture II in one boot: dom0 and a driver domain serve two guests at once, which come and go, as do workers and the driver domain
# boot: --flask --passthrough
# files: common.bash arch.bash
# timeout: 2400
. ./common.bash
. ./arch.bash

# --- the driver domain ---------------------------------------------------------------------------
must "the driver domain's disk is made" prepare_driver_domain
must "xl creates the driver domain" xl create "$EXAMPLES/driver-domain.cfg"
must "it comes up" domu_ready domd "$LONG"
check "FLASK knows it as one" eval 'xl list -Z | grep -E "^domd .*:domd_t"'
check_machine_devices domd
must "viod starts in it" domd_viod
must "it has a bridge, images, and an answer for those who call" domu_run domd \
    'ip link add br0 type bridge && ip addr add 10.0.0.1/24 dev br0 && ip link set br0 up &&
    truncate -s 16M /var/lib/viod/g1.img /var/lib/viod/g2.img /var/lib/viod/pv.img &&
    losetup /dev/loop0 /var/lib/viod/pv.img || exit 1
    setsid socat -t 300 TCP-LISTEN:5000,fork,reuseaddr PIPE >/dev/null 2>&1 </dev/null &'
# What xl devd does in a driver domain, with the rig's short script.
must "and hotplug for PV disks" domu_run domd 'setsid bash -c "while sleep 0.2; do
    for guest in \$(xenstore-list backend/vbd 2>/dev/null); do
        for node in \$(xenstore-list backend/vbd/\$guest 2>/dev/null); do
            node=backend/vbd/\$guest/\$node
            if [[ \$(xenstore-read \$node/online 2>/dev/null) == 0 && \$(xenstore-read \$node/state) == 6 ]]; then
                xenstore-rm \$node
            elif ! xenstore-exists \$node/hotplug-status; then
                xenstore-write \$node/physical-device 7:0 \$node/hotplug-status connected
            fi
        done
    done
done" >/dev/null 2>&1 </dev/null &'

# --- two guests --------------------------------------------------------------------------------------
for name in g1 g2; do
    configure $name <<END
[console0]
ports = console data
[console0.data]
backend = file
path = /tmp/$name.port
[blk0]
path = $(new_image $name 16)
serial = FROM-DOM0
[blk1]
path = /var/lib/viod/$name.img
serial = FROM-DOMD
[net0]
bridge = br0
END
done
from_domd() { printf '"type=virtio,device%s,transport=mmio,backend=domd,grant_usage=1"' "$1"; }
from_dom0() { printf '"type=virtio,device%s,transport=mmio,grant_usage=0"' "$1"; }
virtio="[$(from_dom0 3),$(from_dom0 2),$(from_domd 2),$(from_domd 1),$(from_domd 4)]"
root_disk() { virtio_disk "$1" xvda w grant_usage=0; }
domu_config g1 root=/dev/vda "virtio=$virtio" \
    "disk=[$(root_disk "$DOMU_ROOT1"),\"format=raw,vdev=xvdc,access=w,backendtype=phy,backend=domd,target=/dev/loop0\"]" >g1.cfg
domu_config g2 root=/dev/vda "virtio=$virtio" "disk=[$(root_disk "$DOMU_ROOT2")]" >g2.cfg
create() {
    xl create -p "$1.cfg" >/dev/null && viodctl wait "$1" "$LONG" && xl unpause "$1" && up "$1"
}
for name in g1 g2; do
    check "$name: viodctl check has no objection" viodctl check $name.cfg
    must "$name comes up" create $name
    check "$name: each backend serves what is its" eval "show $name '[.devices[].name] | sort | join(\" \")' | grep -qx 'blk0 console0 xvda' &&
        domu_run domd 'viodctl show $name' | grep -cE '^(blk1|net0|rng0): [a-z]+, ready' | grep -qx 3"
    check "$name: those of the driver domain have grants" grants $name 3
done

# --- all at once ----------------------------------------------------------------------------------------
# load DISK…: until /run/stop is there: each path is written and read, and verified; what goes through
# the driver domain's network comes back unchanged; random numbers; text for dom0 through the console's
# port. Says how often that was.
load() {
    local path
    # The root file systems have no journal: what is written there would not survive xl destroy.
    printf '%s\n' 'until_stop() { while "$@"; do [[ ! -e /run/stop ]] || return 0; done; echo "failed: $*"; return 1; }
        fio_on() { '"$(fio_verify_alone '$1' 32 4 --thinktime=20000 --thinktime_blocks=8)"' >/tmp/fio.${1##*/} 2>&1 || { cat /tmp/fio.${1##*/}; return 1; }; sleep 1; }
        echo_of() { socat -t 300 - TCP:10.0.0.1:5000 </tmp/in >/tmp/out && cmp /tmp/in /tmp/out && sleep 0.2; }
        random() { [[ $(dd if=/dev/hwrng bs=64 count=1 iflag=fullblock status=none | wc -c) == 64 ]] && sleep 0.2; }
        text() { seq 1000 >"$port" && echo >>/run/texts && sleep 0.2; }
        for port in /sys/class/virtio-ports/*; do [[ $(<$port/name) != data ]] || break; done; port=/dev/${port##*/}
        rm -f /run/stop; : >/run/texts; head -c 100000 /dev/urandom >/tmp/in; pids='
    for path; do printf 'until_stop fio_on "%s" & pids+=" $!"\n' "$path"; done
    printf '%s\n' 'until_stop text & pids+=" $!"' \
        '[[ ! -e /run/net ]] || { until_stop echo_of & pids+=" $!"; until_stop random & pids+=" $!"; }' \
        'status=0; for pid in $pids; do wait $pid || status=1; done; wc -l </run/texts; exit $status'
}
network() { guest "$1" "ip addr add 10.0.0.$2/24 dev eth0 && ip link set eth0 up && touch /run/net && ping -c 2 -W 60 10.0.0.1"; }
all_g1=$(load '$(disk FROM-DOM0)' '$(disk FROM-DOMD)' /dev/xvdc)
all_g2=$(load '$(disk FROM-DOM0)' '$(disk FROM-DOMD)')
# goes_on GUEST: dom0's disk and the driver domain's move. If not, who has what of which disk.
goes_on() {
    local here there
    here=$(device "$1" blk0 requests) there=$(domd_requests "$1")
    wait_for 60 "[[ \$(device $1 blk0 requests) -gt $here && \$(domd_requests $1) -gt $there ]]" && return
    echo "before: $here in dom0, $there in the driver domain"
    viodctl show "$1"
    domu_run domd "viodctl show $1; viodctl stats $1; ps ax -o pid,stat,time,wchan:20,args | grep -v '\[' | tail -n 20; tail -n 5 /var/log/viod.log"
    domu_run "$1" 'grep . /sys/block/*/inflight; ps ax -o pid,stat,wchan:20,args | grep -E "fio|socat|dd" | head -n 20; tail -n 3 /tmp/fio.*'
    return 1
}
domd_device() { domu_run domd "viodctl --json show $1 ${*:2}" | jq -r '.pid, (.devices[] | select(.name == "blk1") | .requests)'; }
domd_worker() { domd_device "$1" | sed -n 1p; }
domd_requests() { domd_device "$1" | sed -n 2p; }

must "g1: its network works" network g1 2
must "g2: its network works" network g2 3
: >/tmp/g1.port
guest_job g1 "$all_g1"
g1_job=$job
guest_job g2 "$all_g2"
must "g1: its disks of both domains move" goes_on g1
must "g2: so do its" goes_on g2

# --- one comes and goes, the other goes on ---------------------------------------------------------------
old=$(domu_id g2)
# What its root file system, without a journal, has changed since it came up.
guest g2 sync
check "g2 is destroyed under load" domu_destroy g2
domu_wait "$job" >/dev/null
check "it is gone" wait_for 60 domu_gone g2
check "the driver domain has removed its nodes" wait_for "$LONG" "no_domd_node $old"
check "dom0, too" no_node "$old"
check "g1 goes on" goes_on g1
must "g2 is there again" create g2
must "g2: its network works" network g2 3
old=$(domu_id g2)
check "g2 reboots" domu_reboot g2 "$LONG"
check "the driver domain has removed the nodes of before" wait_for "$LONG" "no_domd_node $old"
must "g2: its network works" network g2 3
guest_job g2 "$all_g2"
check "g2: its disks of both domains move" goes_on g2
check "g1 goes on" goes_on g1

# --- the driver domain's viod is killed and goes on ---------------------------------------------------------
# What serves both guests there, one after the other; then all of it is restarted.
for name in g1 g2; do
    pid=$(domd_worker $name)
    check "$name: its worker in the driver domain is killed" domu_run domd "kill -9 $pid"
    check "$name: it has another one" wait_for 60 "now=\$(domd_worker $name) && [[ \$now -gt 0 && \$now != $pid ]]"
done
check "g1 goes on" goes_on g1
check "g2 goes on" goes_on g2
declare -A before=([g1]=$(domd_worker g1) [g2]=$(domd_worker g2))
check "viod ends in the driver domain, and its workers go on" domu_run domd 'pid=$(pgrep -of "^viod --config") &&
    kill $pid && for _ in {1..100}; do [[ -e /proc/$pid ]] || break; sleep 0.1; done &&
    [[ ! -e /proc/$pid && $(pgrep -fc "^viod --worker") == 2 ]]'
must "viod starts there again" domd_viod
for name in g1 g2; do
    check "$name: a worker of the new one has taken over" wait_for 60 \
        "now=\$(domd_worker $name) && [[ \$now -gt 0 && \$now != ${before[$name]} ]]"
    check "$name goes on" goes_on $name
done
for name in g1 g2; do
    guest $name 'touch /run/stop'
done
check_job "g2: nothing was different, nothing failed" "$job"
check_job "g1: nothing was different, nothing failed, all the time" "$g1_job"
texts=$(tail -n 1 "$job_output")
check "dom0 has all that g1 said on its port" same "$(md5sum </tmp/g1.port)" \
    "$(for ((n = 0; n < texts; n++)); do seq 1000; done | md5sum)"
check "FLASK had nothing to refuse" eval '! xl dmesg | grep "avc:.*denied" | grep -E "domd_t|domU_t"'
check "no guest found a page of its own in use" eval '
    for name in g1 g2; do guest $name "! dmesg | grep -i \"still in use\"" || exit 1; done'
check "no request failed in dom0" no_errors

# --- the driver domain dies -----------------------------------------------------------------------------------
# An access at the very moment would never end (viod(8), DRIVER DOMAINS).
for name in g1 g2; do
    must "$name takes no random numbers any more" takes_no_numbers $name
    guest $name 'ip link set eth0 down; rm -f /run/net'
done
jobs=()
for name in g1 g2; do
    guest_job $name "$(load '$(disk FROM-DOM0)')"
    jobs+=("$job")
done
accesses() { domu_run domd 'viodctl --json list' | jq '[.[].mmio_writes // 0] | add'; }
quiet() { local before; before=$(accesses) && sleep 3 && [[ $(accesses) == "$before" ]]; }
check "the guests let the driver domain's devices alone" wait_for 120 quiet
check "the driver domain is destroyed" domu_destroy domd
must "dom0 answers in its place, and says so" wait_for 60 'answers_instead 6'
for name in g1 g2; do
    guest_job $name '(dd if=$(disk FROM-DOMD) of=/dev/null bs=4k count=1 iflag=direct status=none &) ; sleep 2; echo alive'
    check_job "$name touches a device of it, and lives" "$job"
    check "$name: dom0's disk goes on" wait_for "$LONG" "[[ \$(device $name blk0 requests) -gt $(device $name blk0 requests) ]]"
    guest $name 'touch /run/stop'
done
for name in g1 g2; do
    check_job "$name: nothing of dom0's was different" "${jobs[0]}"
    jobs=("${jobs[@]:1}")
    id=$(domu_id $name)
    check "$name is destroyed" domu_destroy $name
    # Xen keeps what is left of the driver domain until the last guest of its IOREQ servers has ended.
    check "$name: nothing is left" wait_for 60 "! xl list | grep -qE '^[^ ]+ +$id '"
done
check "nor of the driver domain" wait_for 60 domu_gone domd
check "nor a worker" wait_for 60 no_workers
finish
