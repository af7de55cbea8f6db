# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: a guest's /dev/hwrng gives good random numbers, and not more of them than its limit allows
# files: common.bash
# timeout: 1500
. ./common.bash

configure g1 <<END
[rng1]
max-bytes = 4096
period = 2000
[rng2]
max-bytes = 4096
period = 3600000
END
rng='"type=virtio,device4,transport=mmio"'
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" "virtio=[$rng,$rng,$rng]" ||
    give_up "xl create"
must "the guest comes up" up g1
check "rng0 is served" served g1 rng0
check "what it is: its limit" test "$(device g1 rng1 backing)" = "random numbers, at most 4096 bytes in 2000 ms"
misc=/sys/class/misc/hw_random
check "the guest sees all" guest g1 "[[ \$(tr ' ' '\n' <$misc/rng_available | grep -c '^virtio_rng\.[012]\$') == 3 ]]"
check "its current one is one of them" guest g1 "grep -q '^virtio_rng\.[012]$' $misc/rng_current"

# Which of them is which? The one whose use shows there.
use() { guest g1 "echo $1 >$misc/rng_current && grep -qx $1 $misc/rng_current"; }
bytes() { device g1 "$1" read_bytes; }
declare -A guests_name=()
for number in 0 1 2; do
    must "it can choose virtio_rng.$number" use "virtio_rng.$number"
    before=("$(bytes rng0)" "$(bytes rng1)" "$(bytes rng2)")
    guest g1 'dd if=/dev/hwrng of=/dev/null bs=64 count=2 status=none'
    for device in 0 1 2; do
        [[ $(bytes "rng$device") -eq ${before[device]} ]] || guests_name[rng$device]=virtio_rng.$number
    done
done
must "each is one of viod's" test "${#guests_name[@]}" -eq 3
must "it can choose the one without a limit" use "${guests_name[rng0]}"

check "dd from /dev/hwrng" guest g1 \
    'dd if=/dev/hwrng of=/tmp/x bs=4096 count=16 iflag=fullblock status=none && [[ $(stat -c %s /tmp/x) == 65536 ]]'
check "no two of its bytes in a row are the same for long" guest g1 \
    '[[ $(od -An -v -tx8 -w8 /tmp/x | sort | uniq -d | wc -l) == 0 ]]'
# One block in a thousand fails by the laws of chance.
check "rngtest: of 40 blocks at most 2 fail" guest g1 \
    'rngtest -c 40 </dev/hwrng 2>&1 | tee /tmp/r; failures=$(sed -n "s/.*FIPS 140-2 failures: //p" /tmp/r)
     [[ -n $failures && $failures -le 2 ]] && grep -q "FIPS 140-2 successes: [34]" /tmp/r'

check "it can choose one with a limit" use "${guests_name[rng1]}"
start=$SECONDS given=$(bytes rng1)
guest_job g1 'timeout 13 dd if=/dev/hwrng of=/dev/null bs=64 status=none; :'
sleep 10
got=$(($(bytes rng1) - given)) time=$((SECONDS - start))
echo "        $got bytes in $time s"
check "the limit holds" test "$got" -le $((4096 * (time / 2 + 2)))
check "and is used" test "$got" -ge $((4096 * ((time - 4) / 2)))
check_job "the guest's reader came to its end" "$job"
check "no request failed" no_errors

# Its limit is for an hour, in which a reader waits. (Nothing else is asked of this guest any more.)
guest g1 sync
check "it can choose one with a limit of an hour" use "${guests_name[rng2]}"
guest_job g1 'timeout -s KILL 30 dd if=/dev/hwrng of=/dev/null bs=64 status=none; :'
check "all of it is taken" wait_for 60 '[[ $(bytes rng2) == 4096 ]]'
sleep 2
counter() { viodctl --json show g1 | jq ".$1"; }
turns=$(counter turns) sleeps=$(counter sleeps)
sleep 5
turns=$(($(counter turns) - turns)) sleeps=$(($(counter sleeps) - sleeps))
echo "        in 5 s: $turns turns of the worker's loops, $sleeps sleeps"
# A loop that looked all the time would have turned millions of times; one with a timer of 10 ms, 500.
check "a reader that waits costs the host nothing" test "$turns" -le 20000 -a "$sleeps" -le 100
check "and not a byte more is given" test "$(bytes rng2)" -eq 4096
finish
