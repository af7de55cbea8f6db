# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # come with common.bash, or are the test's
# What the tests of successors share. After common.bash.
shopt -s extglob

# --- reads and writes that are checked ---------------------------------------------------------
# For disks of 32 MiB. The last MiB of each is written by two writers, block after block, each with a
# number; what is acknowledged goes into their logs.
LOG_SEEK=$((31 * 2048)) SLOTS=512
# shellcheck disable=SC2016 # the guest's shell expands
writer='disk=$(disk SERIAL) n=0; until [[ -e /tmp/stop ]]; do
    slot=$((n % '$SLOTS')) && n=$((n + 1))
    printf "%-512s" "SERIAL WRITER $n" | dd of=$disk bs=512 count=1 seek=$(('$LOG_SEEK' + WRITER * '$SLOTS' + slot)) oflag=direct \
        conv=notrunc status=none || exit 1
    echo "$slot $n" >>/tmp/log.SERIAL.WRITER; done'
# checked_io SERIAL…: a job for a guest. On each disk: one run of fio after the other (four jobs, depth 16,
# with fsync), and the writers, until they are told to stop.
checked_io() {
    local serial number
    for serial in "$@"; do
        printf '%s' "until [[ -e /tmp/stop ]]; do $(fio_verify "\$(disk $serial)" 16 4 --fsync=16 --time_based --runtime=4) >/dev/null || exit 1; done &"
        for number in 0 1; do
            printf '\n%s\n' "{ ${writer//SERIAL/$serial}; } &" | sed "s/WRITER/$number/g"
        done
    done
    # shellcheck disable=SC2016
    printf '%s\n' 'for pid in $(jobs -p); do wait $pid || exit 1; done'
}
# stop_checked_io GUEST JOB SERIAL…: tells it to stop, and checks all. IMAGES has the disks as GUEST.SERIAL.
stop_checked_io() {
    local name=$1 job=$2 serial number sum log
    shift 2
    guest "$name" 'touch /tmp/stop'
    check_job "$name: all that fio and the writers did was good" "$job"
    for serial in "$@"; do
        sum=$(guest "$name" "echo 3 >/proc/sys/vm/drop_caches; md5sum <\$(disk $serial)" | cut -d' ' -f1)
        check "$name, $serial: what the guest reads is what the image has" same "$(stored_sum "$IMAGES/$name.$serial")" "$sum"
        for number in 0 1; do
            log=$IMAGES/$name.$serial.log.$number
            guest "$name" "cat /tmp/log.$serial.$number" >"$log"
            check "$name, $serial: the image has all writes of the guest's log $number ($(wc -l <"$log"))" \
                nothing_lost "$IMAGES/$name.$serial" "$serial" "$number"
        done
    done
}
# lost IMAGE SERIAL WRITER: prints the acknowledged writes that the image does not have.
lost() {
    local slot n block blocks
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

# --- how long a guest had no worker ----------------------------------------------------------------
# normal_start: milliseconds, the median of all first workers so far: until the first device is served. (xl
# takes its time from one device to the next.)
normal_start() {
    local all
    mapfile -t all < <(sed -nE 's/.*: worker ([0-9]+) serves all devices, ([0-9]+) ms.*/\1 \2/p' "$VIOD_LOG" |
        sort -s -u -k1,1 | cut -d' ' -f2 | sort -n)
    printf '%s\n' "${all[${#all[@]} / 2]}"
}
# report WHAT MILLISECONDS…: as ratios to a normal start.
report() {
    local what=$1 sorted normal median most
    shift
    normal=$(normal_start)
    [[ $# -gt 0 && $normal -gt 0 ]] || { echo "$what: nothing to compare"; return; }
    mapfile -t sorted < <(printf '%s\n' "$@" | sort -n)
    median=${sorted[${#sorted[@]} / 2]} most=${sorted[(${#sorted[@]} * 99 + 99) / 100 - 1]}
    printf '%s: median %d.%02d, 99th percentile %d.%02d of a normal start (%s, %s, %s ms; %d times)\n' "$what" \
        $((median / normal)) $((100 * median / normal % 100)) $((most / normal)) $((100 * most / normal % 100)) \
        "$median" "$most" "$normal" $#
}
# report_takeovers: what viod's log says of them all.
report_takeovers() {
    local all
    mapfile -t all < <(sed -nE "s/.*has taken over all devices, ([0-9]+) ms after the other's end.*/\\1/p" "$VIOD_LOG")
    report "from the end of a worker to all devices served" "${all[@]}"
    mapfile -t all < <(sed -nE "s/.*has taken over all devices, .* ([0-9]+) ms after its start.*/\\1/p" "$VIOD_LOG")
    report "of that, from the start of the next one" "${all[@]}"
    mapfile -t all < <(sed -nE 's/.*its ports were free after ([0-9]+) ms.*/\1/p' "$VIOD_LOG")
    report "of that, until the dead one let go of its event channels" "${all[@]}"
}
