# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154 # $job comes from guest_job
# checks: the worker is killed again and again under fio verify, foreign and grants: no error, no reset, no acknowledged write lost
# files: common.bash restart.bash
# settings: KILLS
# timeout: 2400
. ./common.bash
. ./restart.bash
KILLS=${KILLS:-20}

# --- a guest with two disks, one of them with grants ---------------------------------------
begin() {
    local name=$1
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
    guest_job "$name" "$(checked_io foreign grants)"
    must "it reads and writes" wait_for "$LONG" "[[ \$(device $name blk0 requests) -gt 200 && \$(device $name blk1 requests) -gt 200 ]]"
}

# Kills each worker at a random moment of its first seconds; how long the guest had none goes into `pauses`.
pauses=()
kill_all() {
    local name=$1 kills=$2 victim line number before now start
    victim=$(worker "$name")
    exec 5< <(exec tail -n "+$(($(wc -l <"$VIOD_LOG") + 1))" -f "$VIOD_LOG")
    for ((number = 1; number <= kills; number++)); do
        sleep $((RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))
        start=${EPOCHREALTIME/./}
        kill -9 "$victim" || give_up "kill $number: no worker $victim"
        until [[ ${line-} =~ \($name\):\ worker\ ([0-9]+)\ has\ taken\ over\ all\ devices, ]]; do
            read -r -t 60 line <&5 || give_up "kill $number: no successor"
        done
        pauses+=($(((${EPOCHREALTIME/./} - start) / 1000)))
        victim=${BASH_REMATCH[1]} line=
        [[ $((number % 10)) == 0 ]] || continue
        before=$(device "$name" blk0 requests) now=$(device "$name" blk1 requests)
        wait_for "$LONG" "[[ \$(device $name blk0 requests) -gt $before && \$(device $name blk1 requests) -gt $now ]]" ||
            give_up "kill $number: the guest stands still"
    done
    exec 5<&-
}

end() {
    local name=$1 id
    id=$(domu_id "$name")
    stop_checked_io "$name" "$2" foreign grants
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
check "and has as many descriptors as before" wait_for 60 "[[ \$(descriptors) == '$before' ]]"
check "so is the other guest's worker" same "$(worker other)" "$other"

report "from the kill to all devices served" "${pauses[@]}"
report_takeovers

# A worker that dies before its guest has run, of a signal that it may not catch.
domu_config g3 memory=64 "virtio=$(blk_devices 1)" >g3.cfg
new_image g3 1 >/dev/null
configure g3 <<EOF
[blk0]
path = $IMAGES/g3
EOF
xl create -p g3.cfg >/dev/null 2>&1
must "a third, paused" wait_for "$LONG" 'served g3 blk0'
victim=$(worker g3)
kill -SEGV "$victim"
check "has another worker, too" wait_for 60 "[[ \$(worker g3) != $victim ]] && served g3 blk0"
check "and can be destroyed" domu_destroy g3
finish
