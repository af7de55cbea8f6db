# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2153  # rig_…, DOMU_… come with tests/rig/dom0/lib.sh
# What system tests share. No test depends on speed: where something has to happen, it may take $LONG.

# Emulated CPUs that others use too: minutes where hardware takes seconds.
LONG=400

IMAGES=/var/lib/viod-images
VIOD_LOG=/var/log/viod.log
mkdir -p "$IMAGES"

# A test that cannot go on says why, with what viod said.
give_up() {
    printf 'not ok  %s\n' "$*"
    echo "        the end of viod's log:"
    tail -n 15 "$VIOD_LOG" | sed 's/^/        /'
    exit 1
}
# must WHAT COMMAND…: a check without which the rest makes no sense.
must() { check "$@" || give_up "so the rest cannot be checked"; }

# --- images and configuration ----------------------------------------------------------
# new_image NAME MIB: a sparse file on dom0's ext4; prints its path.
new_image() {
    truncate -s "$2M" "$IMAGES/$1" && printf '%s\n' "$IMAGES/$1"
}
# configure GUEST: /etc/viod/GUEST.conf is what comes on standard input.
configure() { cat >"/etc/viod/$1.conf"; }
# blk_devices N [KEY=VALUE]: the value of virtio= for N block devices.
blk_devices() {
    local list='' number
    for ((number = 0; number < $1; number++)); do
        list+='"type=virtio,device2,transport=mmio'${2:+,$2}'",'
    done
    printf '[%s]' "${list%,}"
}
# The checksum of a file or block device as it is on storage, past dom0's page cache.
stored_sum() {
    sync "$1"
    [[ ! -b $1 ]] || blockdev --flushbufs "$1"
    dd if="$1" bs=1M iflag=direct status=none | md5sum | cut -d' ' -f1
}
# allocated FILE: the KiB that a file occupies.
allocated() { sync "$1" && echo $(($(stat -c '%b * %B' "$1") / 1024)); }

# --- viod --------------------------------------------------------------------------------
# show GUEST FILTER: jq's FILTER on what viod knows of a guest.
show() { viodctl --json show "$1" | jq -r "$2"; }
# device GUEST DEVICE KEY
device() { viodctl --json show "$1" "$2" | jq -r ".devices[0].$3"; }
supervisor() { cat /run/viod-rig.pid; }
worker() { show "$1" .pid; }
workers() { pgrep -f -- 'viod --worker' | sort -n; }
no_workers() { [[ -z $(workers) ]] || { workers | xargs -r ps -o pid,stat,args -p; return 1; }; }
served() { [[ $(device "$1" "$2" state) == ready ]]; }
all_served() { [[ $(show "$1" '[.devices[].state] | unique | join(" ")') == ready ]]; }
not_served() { ! viodctl list | grep -qE "^[0-9]+ +$1 "; }
# logged REGEX: viod's log has such a line.
logged() { grep -qE -- "$1" "$VIOD_LOG" || { tail -n 10 "$VIOD_LOG"; return 1; }; }
# no_node GUEST-DOMID: xenstore has none of its devices any more.
no_node() {
    local left
    left=$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -E "^/local/domain/0/backend/virtio(_disk)?/$1/")
    [[ -z $left ]] || { printf '%s\n' "$left"; return 1; }
}
no_errors() {
    local list found
    list=$(viodctl --json list) && jq -e 'length > 0' <<<"$list" >/dev/null ||
        { echo "no guest to ask for: $list"; return 1; }
    found=$(jq -r '.[] | .name as $n | .devices[] |
        select((.errors // 0) + (.needs_reset // 0) > 0) |
        "\($n) \(.name): \(.errors) errors, \(.needs_reset) needs-reset"' <<<"$list")
    [[ -z $found ]] || { printf '%s\n' "$found"; return 1; }
}
# start_viod: as its unit does, for tests that have stopped it or booted with --no-viod.
start_viod() {
    launch_viod
    wait_for 60 'viodctl version >/dev/null 2>&1'
}
launch_viod() {
    local command
    command=$(sed -n 's/^ExecStart=[-@:+!]*//p' /usr/lib/systemd/system/viod.service)
    # shellcheck disable=SC2086
    setsid $command >>"$VIOD_LOG" 2>&1 </dev/null &
    echo $! >/run/viod-rig.pid
}
# end_viod [SIGNAL]: as systemctl stop does, or with another signal. Guests keep their devices.
end_viod() {
    local pid
    pid=$(supervisor)
    kill "-${1:-TERM}" "$pid" && wait_for 60 "! running $pid"
}
# Guests lose their devices.
stop_viod() {
    local pid
    pid=$(supervisor)
    viodctl stop && wait_for 60 "! running $pid"
}
# A zombie runs no more.
running() { [[ -e /proc/$1/status ]] && ! grep -q '^State:.Z' "/proc/$1/status"; }

# --- guests ---------------------------------------------------------------------------------
# In the guest: `disk SERIAL` is the path of the disk with that serial number; and there is /mnt.
# shellcheck disable=SC2016
in_guest='disk() { local d; for d in /sys/block/vd*; do
    [[ $(<"$d/serial") != "$1" ]] || { echo "/dev/${d##*/}"; return; }; done; echo "no disk $1"; return 1; }
    mkdir -p /mnt
    '
# guest NAME SCRIPT: as domu_run, with time and with the above.
guest() { domu_run -t $((LONG * 2)) "$1" "$in_guest$2"; }
guest_job() { domu_start_job -t $((LONG * 4)) "$1" "$in_guest$2"; }
up() { domu_ready "$1" "$LONG"; }
# A check's command runs in a subshell, and only the shell that started a job can wait for it.
# check_job WHAT JOB: a check that it ends well. `job_output` has what it printed.
check_job() {
    local status=0
    job_output=$(mktemp)
    domu_wait "$2" >"$job_output" 2>&1 || status=$?
    job_result() { cat "$job_output" && return "$status"; }
    check "$1" job_result
}

# fio_verify FILE DEPTH MIB [OPTION…]: a command for a guest: four jobs, each with its own MIB of
# FILE, mix reads and writes and check all that they read; a difference ends them with an error.
fio_verify() {
    local file=$1 depth=$2 mib=$3
    shift 3
    printf 'fio --name=verify --filename=%s --numjobs=4 --size=%dm --offset_increment=%dm --rw=randrw' \
        "$file" "$mib" "$mib"
    printf ' --bs=4k --direct=1 --ioengine=io_uring --iodepth=%d --verify=crc32c --verify_fatal=1' "$depth"
    printf ' --group_reporting --output-format=terse --terse-version=3 %s' "$*"
}
# fio_verify_alone FILE DEPTH MIB [OPTION…]: the same by one thread of fio. For guests with one CPU that do
# more than this: while others need the machine, it starts a program rarely, and fio gives each job of its
# own ten seconds to come up.
fio_verify_alone() { fio_verify "$@" --numjobs=1 --thread; }
# until_enough COMMAND: a command for a guest that runs COMMAND again and again, until `enough GUEST` or
# until it fails.
until_enough() { printf 'while [[ ! -e /run/enough ]]; do %s || exit 1; done' "$1"; }
enough() { guest "$1" 'touch /run/enough'; }
