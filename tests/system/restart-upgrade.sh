# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # the guest's shell expands; $job comes from guest_job
# checks: two versions of viod take over from each other under fio verify, foreign and grants: no error, no reset, no acknowledged write lost; what cannot take over is refused
# boot: --other-version
# files: common.bash restart.bash
# settings: UPGRADES
# timeout: 2400
. ./common.bash
. ./restart.bash
UPGRADES=${UPGRADES:-6}

for name in g1.split g1.packed; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/g1.split
serial = split
[blk1]
path = $IMAGES/g1.packed
packed = yes
in-order = no
serial = packed
END
virtio=$(blk_devices 1)
domu_create g1 vcpus=4 "virtio=${virtio%]},\"type=virtio,device2,transport=mmio,grant_usage=1\"]" || give_up "xl create g1"
must "a guest comes up" up g1
pid=$(supervisor) id=$(domu_id g1)
program=$(readlink "/proc/$pid/exe")
version() { viodctl --json version | jq -r .daemon.viod; }
own=$(version)
other=$own+other
must "the other version is another one" same "$(/usr/sbin/viod-other --version)" "viod $other"
guest_job g1 "$(checked_io split packed)"
g1_job=$job
all_requests() { show g1 '[.devices[].requests] | add'; }
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g1 blk1 requests) -gt 100 ]]'

for ((n = 1; n <= UPGRADES; n++)); do
    victim=$(worker g1) before=$(all_requests)
    if ((n % 2 > 0)); then next=/usr/sbin/viod-other wanted=$other; else next=$program wanted=$own; fi
    answer=$(viodctl upgrade "$next") || give_up "upgrade $n is refused"
    [[ $answer == "viod $wanted takes over" ]] || give_up "upgrade $n: $answer"
    wait_for 60 "[[ \$(version 2>/dev/null) == $wanted ]]" || give_up "upgrade $n: the version is $(version)"
    wait_for "$LONG" 'all_served g1' || give_up "upgrade $n: not all devices are served"
    [[ $(worker g1) != "$victim" ]] || give_up "upgrade $n: the worker is the old one"
    [[ $(readlink "/proc/$(worker g1)/exe") == "$next" ]] || give_up "upgrade $n: the worker is of another program"
    wait_for 60 "[[ \$(all_requests) -gt $before ]]" || give_up "upgrade $n: the guest stands still"
    sleep 0.$((RANDOM % 10))
done
check "the process is the same" running "$pid"

# --- what is refused ------------------------------------------------------------------------------------
before=$(version)
victim=$(worker g1)
refused() { # refused PROGRAM REGEX
    viodctl upgrade "$1" 2>refused.log && return 1
    grep -E -- "$2" refused.log || { cat refused.log; return 1; }
}
check "a program that does not exist" refused /usr/sbin/no-viod 'No such file'
check "one without an absolute path" refused viod-other 'not the absolute path'
check "one that is no viod" refused /bin/false 'false ended with status 1'
printf '\x63' | dd of="/run/viod/$id/guest.record" bs=1 seek=8 conv=notrunc status=none
check "one that cannot read a record" refused /usr/sbin/viod-other "cannot take domain $id over.*of another version"
printf '\x01' | dd of="/run/viod/$id/guest.record" bs=1 seek=8 conv=notrunc status=none
check "the old one goes on" same "$(version)" "$before"
check "and its worker" same "$(worker g1)" "$victim"

# --- the package's files are replaced -------------------------------------------------------------------
# What a worker can write, its guest may have made it write.
printf '\x63' | dd of="/run/viod/$id/state" bs=1 seek=8 conv=notrunc status=none
check "viod takes over from the other one, from a state whose head is damaged" viodctl upgrade "$program"
wait_for 60 "[[ \$(version 2>/dev/null) == $own ]]"
cp /usr/sbin/viod-other "$program.new" && mv "$program.new" "$program"
check "with its file replaced, that is what takes over" viodctl upgrade
check "it does" wait_for 60 "[[ \$(version 2>/dev/null) == $other ]]"
check "and serves all" wait_for "$LONG" 'all_served g1'

stop_checked_io g1 "$g1_job" split packed
check "no request failed, no ring was broken" no_errors
report_takeovers
check "the guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
check "no worker is left" wait_for 60 no_workers
finish
