# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: two versions of viod take over from each other while fio verifies reads and writes; what cannot take over is refused
# boot: --other-version
# files: common.bash
# timeout: 2400
. ./common.bash
UPGRADES=${UPGRADES:-6}

for name in split packed; do
    new_image $name 32 >/dev/null
done
configure g1 <<END
[blk0]
path = $IMAGES/split
serial = split
[blk1]
path = $IMAGES/packed
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
job_of() { until_enough "$(fio_verify "\$(disk $1)" 16 4 --fsync=16)"; }
guest_job g1 "($(job_of split)) & split=\$!; ($(job_of packed)) && wait \$split"
g1_job=$job
all_requests() { show g1 '[.devices[].requests] | add'; }
must "it reads and writes" wait_for "$LONG" '[[ $(device g1 blk0 requests) -gt 100 && $(device g1 blk1 requests) -gt 100 ]]'

for ((n = 1; n <= UPGRADES; n++)); do
    victim=$(worker g1) before=$(all_requests)
    if ((n % 2 > 0)); then next=/usr/sbin/viod-other wanted=$other; else next=$program wanted=$own; fi
    answer=$(viodctl upgrade "$next") || give_up "upgrade $n is refused"
    [[ $answer == "viod $wanted takes over" ]] || give_up "upgrade $n: $answer"
    wait_for 60 "[[ \$(version 2>/dev/null) == $wanted ]]" || give_up "upgrade $n: the version is $(version)"
    wait_for 60 'served g1 blk0 && served g1 blk1' || give_up "upgrade $n: not all devices are served"
    [[ $(worker g1) != "$victim" ]] || give_up "upgrade $n: the worker is the old one"
    [[ $(readlink "/proc/$(worker g1)/exe") == "$next" ]] || give_up "upgrade $n: the worker is of another program"
    wait_for 60 "[[ \$(all_requests) -gt $before ]]" || give_up "upgrade $n: the guest stands still"
    sleep $((RANDOM % 2)).$((RANDOM % 10))
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
printf '\x63' | dd of="/run/viod/$id/state" bs=1 seek=8 conv=notrunc status=none
check "one that cannot read a state" refused /usr/sbin/viod-other "cannot take domain $id over.*state is of another version"
printf '\x01' | dd of="/run/viod/$id/state" bs=1 seek=8 conv=notrunc status=none
check "the old one goes on" same "$(version)" "$before"
check "and its worker" same "$(worker g1)" "$victim"

# --- the package's files are replaced -------------------------------------------------------------------
check "viod takes over from the other one" viodctl upgrade "$program"
wait_for 60 "[[ \$(version 2>/dev/null) == $own ]]"
cp /usr/sbin/viod-other "$program.new" && mv "$program.new" "$program"
check "with its file replaced, that is what takes over" viodctl upgrade
check "it does" wait_for 60 "[[ \$(version 2>/dev/null) == $other ]]"
check "and serves all" wait_for 60 'served g1 blk0 && served g1 blk1'

check "the guest is told to come to an end" enough g1
check_job "the guest's verified I/O went on all the time" "$g1_job"
check "no request failed, no ring was broken" no_errors
for name in split packed; do
    sum=$(guest g1 "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $name)" | cut -d' ' -f1)
    check "$name: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name")" "$sum"
done
grep -oE 'has taken over all devices, [0-9]+ ms' "$VIOD_LOG"
check "the guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
check "no worker is left" wait_for 60 no_workers
finish
