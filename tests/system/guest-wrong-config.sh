# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: each wrong configuration is told clearly in the log, by viodctl and in xenstore, and harms no other guest
# files: common.bash
# timeout: 2400
. ./common.bash

new_image good 16 >/dev/null
new_image other 16 >/dev/null
configure good <<END
[blk0]
path = $IMAGES/good
serial = good
END
domu_create good "virtio=$(blk_devices 1)" || give_up "xl create"
must "a guest with a right configuration comes up" up good
good_worker=$(worker good)
# It reads and writes all the time, until told to stop.
guest_job good "while [[ ! -e /tmp/stop ]]; do $(fio_verify '$(disk good)' 4 1) || exit; echo >>/tmp/rounds; done; wc -l </tmp/rounds"

backend=/local/domain/0/backend/virtio
# try NAME [KEY=VALUE…]: a paused guest with these devices.
try() {
    domu_config "$1" memory=64 "${@:2}" >"$1.cfg"
    xl create -p "$1.cfg" >create.log 2>&1 || { cat create.log; return 1; }
    id=$(domu_id "$1")
}
# told NAME DEVICE REGEX: everybody who looks learns what is wrong.
told() {
    local name=$1 device=$2 regex=$3
    check "$name: viodctl list says so" wait_for 60 "viodctl list | grep -E '^$id +$name +$device +[a-z?]+ +failed .*$regex'"
    check "$name: viodctl show says so" eval "viodctl show $name $device | grep -E '^ +problem +.*$regex'"
    check "$name: the log says so" logged "domain $id \\($name\\), $device: .*$regex"
}
# in_xenstore NAME DEVID REGEX: and its node does.
in_xenstore() {
    check "$1: its node in xenstore says so" eval "xenstore-read $backend/$id/$2/viod-error | grep -E '$3'"
}
end() {
    check "$1: the guest can be destroyed" domu_destroy "$1"
    check "$1: and is gone" wait_for 60 domu_gone "$1"
    check "$1: xenstore has nothing of it" wait_for 60 "no_node $id"
    check "$1: the other guest's worker goes on" running "$good_worker"
}

# --- images -------------------------------------------------------------------------
configure missing <<<$'[blk0]\npath = /srv/nowhere.img'
try missing "virtio=$(blk_devices 1)"
told missing blk0 '/srv/nowhere.img: .*there is no such image'
in_xenstore missing 0 '/srv/nowhere.img'
end missing

configure nofile </dev/null
try nofile "virtio=$(blk_devices 1)"
told nofile blk0 'path'
end nofile

mkdir -p /srv/folder
configure folder <<<$'[blk0]\npath = /srv/folder'
try folder "virtio=$(blk_devices 1)"
told folder blk0 '/srv/folder: .*directory'
end folder

# root may do everything, except write where the file system is read-only
mkdir -p /srv/ro && mount -t tmpfs tmpfs /srv/ro && truncate -s 1M /srv/ro/image && mount -o remount,ro /srv/ro
configure denied <<<$'[blk0]\npath = /srv/ro/image\ncache = writeback'
try denied "virtio=$(blk_devices 1)"
told denied blk0 '/srv/ro/image: .*([Rr]ead-only|[Pp]ermission|not permitted)'
end denied

configure twice <<<"[blk0]
path = $IMAGES/good"
try twice "virtio=$(blk_devices 1)"
told twice blk0 "$IMAGES/good: .*(in use|used|locked|already)"
end twice

# --- what is written ------------------------------------------------------------------
configure unknown <<<"[blk0]
path = $IMAGES/other
cash = none"
try unknown "virtio=$(blk_devices 1)"
told unknown blk0 '/etc/viod/unknown.conf:3: .*cash'
end unknown

configure value <<<"[blk0]
path = $IMAGES/other
queues = many"
try value "virtio=$(blk_devices 1)"
told value blk0 '/etc/viod/value.conf:3: .*queues'
end value

# Without the toolstack's help: it writes 0 or 1.
configure grants <<<"[blk0]
path = $IMAGES/other"
try grants "virtio=$(blk_devices 1)"
check "grants: the device is served" wait_for 60 'served grants blk0'
for key in frontend frontend-id online transport type irq base; do
    nodes+=("$backend/$id/5/$key" "$(xenstore-read "$backend/$id/0/$key")")
done
xenstore-write "${nodes[@]}" "$backend/$id/5/grant_usage" some "$backend/$id/5/state" 1
told grants virtio-5 'grant_usage is .some.: expected 0 or 1'
in_xenstore grants 5 'grant_usage is .some.'
check "grants: the other device is still served" served grants blk0
xenstore-rm "$backend/$id/5"
nodes=()
end grants

try device7 'virtio=["type=virtio,device7,transport=mmio"]'
told device7 'device7-0' '(device7|number 7)'
end device7

# xl gives each device a slot of its own: write the second one's node as no xl would.
configure slots <<<"[blk0]
path = $IMAGES/other
[blk1]
path = $IMAGES/third"
new_image third 1 >/dev/null
try slots "virtio=$(blk_devices 1)"
check "slots: the first device is served" wait_for 60 'served slots blk0'
# As xl does: all of a node in one transaction, so the last write makes it complete.
for key in frontend frontend-id online transport type irq base grant_usage; do
    value=$(xenstore-read "$backend/$id/0/$key" 2>/dev/null) || continue
    nodes+=("$backend/$id/1/$key" "$value")
done
xenstore-write "${nodes[@]}" "$backend/$id/1/state" 1
told slots blk1 '(same slot|same interrupt)'
check "slots: the first device is still served" served slots blk0
xenstore-rm "$backend/$id/1"
end slots

# --- right and wrong in one guest ---------------------------------------------------------
configure half <<<"[blk0]
path = $IMAGES/other
serial = right
[blk1]
path = /srv/nowhere.img"
domu_create half "virtio=$(blk_devices 2)" || give_up "xl create"
id=$(domu_id half)
told half blk1 '/srv/nowhere.img'
must "half: the guest comes up all the same" up half
check "half: with the disk that is right" guest half "$(fio_verify '$(disk right)' 4 1)"
check "half: and without the other" guest half '[[ $(ls -d /sys/block/vd* | wc -l) == 1 ]]'
end half

check "a right configuration is served afterwards" try half "virtio=$(blk_devices 1)"
check "and its image is free again" wait_for 60 'served half blk0'
end half

guest good 'touch /tmp/stop'
check_job "the other guest's verified I/O went on all the time" "$job"
printf '        %s rounds of it\n' "$(tail -n 1 "$job_output" | cut -d' ' -f1)"
check "its worker is the same" same "$(worker good)" "$good_worker"
check "none of its requests failed" no_errors
finish
