# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154 # $job comes from guest_job
# checks: the worker is killed again and again under fio verify, foreign and grants: no error, no reset, no acknowledged write lost
# files: common.bash
# timeout: 2400
. ./common.bash
KILLS=${KILLS:-20}
shopt -s extglob

# --- a guest with two disks, one of them with grants ---------------------------------------
# What the guest logs: the last MiB of each disk is written by two writers, block after block, each
# with a number; what is acknowledged goes into their logs.
LOG_SEEK=$((31 * 2048)) SLOTS=512
# shellcheck disable=SC2016 # the guest's shell expands
writer='disk=$(disk SERIAL) n=0; until [[ -e /tmp/stop ]]; do
    slot=$((n % '$SLOTS')) && n=$((n + 1))
    printf "%-512s" "SERIAL WRITER $n" | dd of=$disk bs=512 count=1 seek=$(('$LOG_SEEK' + WRITER * '$SLOTS' + slot)) oflag=direct \
        conv=notrunc status=none || exit 1
    echo "$slot $n" >>/tmp/log.SERIAL.WRITER; done'
# One run of fio after the other, until it is told to stop.
job_of() {
    printf '%s' "until [[ -e /tmp/stop ]]; do $(fio_verify "\$(disk $1)" 16 4 --fsync=16 --time_based --runtime=4) >/dev/null || exit 1; done &"
    printf '\n%s\n' "{ ${writer//SERIAL/$1}; } &" | sed 's/WRITER/0/g'
    printf '\n%s\n' "{ ${writer//SERIAL/$1}; } &" | sed 's/WRITER/1/g'
}
begin() {
    local name=$1 serial
    new_image "$name.foreign" 32 >/dev/null
    new_image "$name.grants" 32 >/dev/null
    configure "$name" <<EOF
[blk0]
path = $IMAGES/$name.foreign
serial = foreign
$2
[blk1]
path = $IMAGES/$name.grants
serial = grants
$3
EOF
    domu_create "$name" vcpus=4 'virtio=["type=virtio,device2,transport=mmio,grant_usage=0","type=virtio,device2,transport=mmio,grant_usage=1"]' ||
        give_up "xl create $name"
    must "$name comes up" up "$name"
    normal=$(sed -nE "s/.*\\($name\\): worker [0-9]+ serves all devices, ([0-9]+) ms.*/\\1/p" "$VIOD_LOG" | tail -n 1)
    guest_job "$name" "pids=(); for_all() { local p; for p in \$(jobs -p); do wait \$p || return 1; done; }
        $(job_of foreign)
        $(job_of grants)
        for_all"
    must "it reads and writes" wait_for "$LONG" "[[ \$(device $name blk0 requests) -gt 200 && \$(device $name blk1 requests) -gt 200 ]]"
}

# Kills each worker at a random moment of its first seconds; how long the guest had none goes into `pauses`.
pauses=() viods=() starts=()
kill_all() {
    local name=$1 kills=$2 victim line number before now start
    victim=$(worker "$name")
    exec 5< <(exec tail -n 0 -f "$VIOD_LOG")
    for ((number = 1; number <= kills; number++)); do
        sleep $((RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))
        start=${EPOCHREALTIME/./}
        kill -9 "$victim" || give_up "kill $number: no worker $victim"
        until [[ ${line-} =~ \($name\):\ worker\ ([0-9]+)\ has\ taken\ over\ all\ devices,\ ([0-9]+)\ ms\ after\ the\ other\'s\ end,\ ([0-9]+)\ ms ]]; do
            read -r -t 60 line <&5 || give_up "kill $number: no successor"
        done
        pauses+=($(((${EPOCHREALTIME/./} - start) / 1000)))
        victim=${BASH_REMATCH[1]} line=
        viods+=("${BASH_REMATCH[2]}")
        starts+=("${BASH_REMATCH[3]}")
        [[ $((number % 10)) == 0 ]] || continue
        before=$(device "$name" blk0 requests) now=$(device "$name" blk1 requests)
        wait_for "$LONG" "[[ \$(device $name blk0 requests) -gt $before && \$(device $name blk1 requests) -gt $now ]]" ||
            give_up "kill $number: the guest stands still"
    done
    exec 5<&-
}

# lost IMAGE SERIAL WRITER GUEST: prints the acknowledged writes that the image does not have.
lost() {
    local slot n block
    local -A last=()
    while read -r slot n; do
        [[ -z $slot ]] || last[$slot]=$n
    done <"$1.log.$3"
    [[ ${#last[@]} -gt 10 ]] || echo "only ${#last[@]} blocks were written"
    mapfile -t blocks < <(dd if="$1" bs=512 skip=$((LOG_SEEK + $3 * SLOTS)) count=$SLOTS iflag=direct status=none | fold -w 512)
    for slot in "${!last[@]}"; do
        block=${blocks[slot]%% *([ ])}
        [[ $block == "$2 $3 ${last[$slot]}" ]] || printf 'block %s: acknowledged %s, there is "%s"\n' "$slot" "$2 $3 ${last[$slot]}" "$block"
    done
}
nothing_lost() { local found; found=$(lost "$@"); [[ -z $found ]] || { printf '%s\n' "$found" | head -n 5; return 1; }; }


end() {
    local name=$1 serial number sum id
    id=$(domu_id "$name")
    guest "$name" 'touch /tmp/stop'
    check_job "$name: all that fio and the writers did was good" "$2"
    for serial in foreign grants; do
        sum=$(guest "$name" "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $serial)" | cut -d' ' -f1)
        check "$name, $serial: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name.$serial")" "$sum"
        for number in 0 1; do
            guest "$name" "cat /tmp/log.$serial.$number" >"$IMAGES/$name.$serial.log.$number"
            check "$name, $serial: the image has all writes of the guest's log $number ($(wc -l <"$IMAGES/$name.$serial.log.$number"))" \
                nothing_lost "$IMAGES/$name.$serial" $serial $number
        done
    done
    check "$name: the log says that workers were killed" logged "domain $id \\($name\\): the worker was killed by signal 9"
    check "$name: no request failed, no ring was broken" no_errors
    check "$name: viodctl counts the workers" same "$(show "$name" .restarts)" "$3"
    check "$name can be destroyed" domu_destroy "$name"
    check "and is gone" wait_for "$LONG" domu_gone "$name"
}

# --- another guest, which is not to notice ---------------------------------------------------
new_image other 32 >/dev/null
configure other <<EOF
[blk0]
path = $IMAGES/other
EOF
domu_create other "virtio=$(blk_devices 1)" || give_up "xl create other"
must "a guest comes up" up other
pid=$(supervisor) other=$(worker other)
check_not "viod is not a build for tests" logged 'build for tests'
descriptors() { find "/proc/$pid/fd" -type l | wc -l; }
before=$(descriptors)

begin g1 '' $'packed = yes\nin-order = no'
kill_all g1 $((KILLS / 2))
end g1 "$job" $((KILLS / 2))
begin g2 $'packed = yes\nin-order = no\ncache = writeback' ''
kill_all g2 $((KILLS - KILLS / 2))
end g2 "$job" $((KILLS - KILLS / 2))
check "the supervisor is the same process" running "$pid"
check "and has as many descriptors as before" same "$(descriptors)" "$before"
check "so is the other guest's worker" same "$(worker other)" "$other"

# ratio NUMBER: of a normal start, in hundredths.
ratio() { printf '%d.%02d' $((100 * $1 / normal / 100)) $((100 * $1 / normal % 100)); }
report() {
    local what=$1 sorted
    shift
    mapfile -t sorted < <(printf '%s\n' "$@" | sort -n)
    printf '%s: median %s, 99th percentile %s of a normal start (%s, %s, %s ms)\n' "$what" \
        "$(ratio "${sorted[${#sorted[@]} / 2]}")" "$(ratio "${sorted[(${#sorted[@]} * 99 + 99) / 100 - 1]}")" \
        "${sorted[${#sorted[@]} / 2]}" "${sorted[(${#sorted[@]} * 99 + 99) / 100 - 1]}" "$normal"
}
report "from the kill to all devices served" "${pauses[@]}"
report "of that, from the end of the process" "${viods[@]}"
report "of that, from the start of the next one" "${starts[@]}"
mapfile -t ports < <(sed -nE 's/.*its ports were free after ([0-9]+) ms.*/\1/p' "$VIOD_LOG")
report "of that, until the dead one let go of its event channels" "${ports[@]}"

# A worker that dies before its guest has run, of a signal that it may not catch.
domu_config g3 memory=64 "virtio=$(blk_devices 1)" >g3.cfg
new_image g3 1 >/dev/null
configure g3 <<EOF
[blk0]
path = $IMAGES/g3
EOF
xl create -p g3.cfg >/dev/null 2>&1
must "a third, paused" wait_for 60 'served g3 blk0'
victim=$(worker g3)
kill -SEGV "$victim"
check "has another worker, too" wait_for 60 "[[ \$(worker g3) != $victim ]] && served g3 blk0"
check "and can be destroyed" domu_destroy g3
finish
