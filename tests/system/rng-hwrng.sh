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
END
domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
    'virtio=["type=virtio,device4,transport=mmio","type=virtio,device4,transport=mmio"]' ||
    give_up "xl create"
must "the guest comes up" up g1
check "rng0 is served" served g1 rng0
check "what it is: its limit" test "$(device g1 rng1 backing)" = "random numbers, at most 4096 bytes in 2000 ms"
misc=/sys/class/misc/hw_random
check "the guest sees both" guest g1 "grep -q 'virtio_rng.0.*virtio_rng.1\|virtio_rng.1.*virtio_rng.0' $misc/rng_available"
check "its current one is one of them" guest g1 "grep -q '^virtio_rng\.[01]$' $misc/rng_current"

# Which of them is rng1? The one whose use shows there.
use() { guest g1 "echo $1 >$misc/rng_current && grep -qx $1 $misc/rng_current"; }
bytes() { device g1 "$1" read_bytes; }
fast=virtio_rng.0 slow=virtio_rng.1
check "it can choose $fast" use "$fast"
before=$(bytes rng0)
guest g1 'dd if=/dev/hwrng of=/dev/null bs=64 count=16 status=none'
[[ $(bytes rng0) -gt $before ]] || { fast=virtio_rng.1 slow=virtio_rng.0; use "$fast"; }

check "dd from /dev/hwrng" guest g1 \
    'dd if=/dev/hwrng of=/tmp/x bs=4096 count=16 iflag=fullblock status=none && [[ $(stat -c %s /tmp/x) == 65536 ]]'
check "no two of its bytes in a row are the same for long" guest g1 \
    '[[ $(od -An -v -tx8 -w8 /tmp/x | sort | uniq -d | wc -l) == 0 ]]'
# One block in a thousand fails by the laws of chance.
check "rngtest: of 40 blocks at most 2 fail" guest g1 \
    'rngtest -c 40 </dev/hwrng 2>&1 | tee /tmp/r; failures=$(sed -n "s/.*FIPS 140-2 failures: //p" /tmp/r)
     [[ -n $failures && $failures -le 2 ]] && grep -q "FIPS 140-2 successes: [34]" /tmp/r'

check "it can choose $slow" use "$slow"
start=$SECONDS before=$(bytes rng1)
guest_job g1 'timeout 13 dd if=/dev/hwrng of=/dev/null bs=64 status=none; :'
sleep 1
pid=$(worker g1)
cpu() {
    local fields
    read -ra fields <<<"$(sed 's/.*) //' "/proc/$pid/stat")"
    echo $((fields[11] + fields[12]))
}
cpu_before=$(cpu)
sleep 9
cpu_used=$(($(cpu) - cpu_before))
got=$(($(bytes rng1) - before)) time=$((SECONDS - start))
echo "        $got bytes in $time s, $cpu_used ticks of CPU time"
check "the limit holds" test "$got" -le $((4096 * (time / 2 + 2)))
check "and is used" test "$got" -ge $((4096 * ((time - 4) / 2)))
check "waiting costs the host next to nothing" test "$cpu_used" -le 90
check_job "the guest's reader came to its end" "$job"
check "no request failed" no_errors
finish
