# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154
# checks: viod is killed and started again in dom0 and in a driver domain, while a guest uses disks of both
# boot: --flask --passthrough
# files: common.bash arch.bash
# settings: KILLS
# timeout: 2400
. ./common.bash
. ./arch.bash
KILLS=${KILLS:-4}

must "the driver domain's disk is made" prepare_driver_domain
must "the guest's, too" prepare_two_backends
must "xl creates the driver domain" xl create "$EXAMPLES/driver-domain.cfg"
must "it comes up" domu_ready domd "$LONG"
domu_run domd 'truncate -s 16M /var/lib/viod/two-backends/log.img'
must "viod starts in it" domd_viod
must "a guest with disks of both comes up" create_guest

job_of() { until_enough "$(fio_verify_alone "\$(disk $1)" 32 8)"; }
guest_job two-backends "($(job_of FROM-DOM0)) & dom0=\$!; ($(job_of FROM-DOMD)) && wait \$dom0"
io=$job
# The devices' requests so far, of both domains.
requests_dom0() { show two-backends '[.devices[].requests // 0] | add'; }
requests_domd() { domu_run domd 'viodctl --json show two-backends | grep -oE "\"requests\":[0-9]+" | tr -dc "0-9\n" | sort -n | tail -1'; }
must "it reads and writes" wait_for "$LONG" '[[ $(requests_dom0) -gt 100 && $(requests_domd) -gt 100 ]]'
for ((n = 1; n <= KILLS; n++)); do
    signal=KILL
    ((n % 2 > 0)) || signal=TERM
    domu_run domd "pid=\$(pgrep -of '^viod --config') && kill -$signal \$pid
        for _ in {1..100}; do [[ ! -e /proc/\$pid ]] && break; sleep 0.1; done; pgrep -f '^viod --worker'" ||
        give_up "end $n in the driver domain: no worker goes on"
    domd_viod || give_up "end $n: viod does not start again in the driver domain"
    end_viod $signal || give_up "end $n: viod does not end in dom0"
    start_viod || give_up "end $n: viod does not start again in dom0"
    viodctl wait two-backends "$LONG" || give_up "end $n: not all devices are ready again"
    dom0=$(requests_dom0) domd=$(requests_domd)
    wait_for 60 "[[ \$(requests_dom0) -gt $dom0 && \$(requests_domd) -gt $domd ]]" ||
        give_up "end $n: the guest stands still"
done
check "it is told to come to an end" enough two-backends
check_job "the guest's verified I/O goes on to its end" "$io"
check "the driver domain's log says who took over" domd_logged 'two-backends\): taken over from worker [0-9]+, with [1-9]'
check "no request failed, no ring was broken" no_errors

# --- a guest ends while no viod runs in the driver domain --------------------------------------------
id=$(domu_id two-backends)
domu_run domd "kill -9 \$(pgrep -of '^viod --config')"
# xl waits in vain for the last state of its device there, and says so.
domu_destroy two-backends
must "viod starts again in the driver domain" domd_viod
check "its worker there has ended" domu_run domd "for _ in {1..100}; do pgrep -f '^viod --worker' >/dev/null || exit 0; sleep 0.1; done; exit 1"
check "no node is left there" wait_for 60 "no_domd_node $id"
check "the guest is gone" wait_for "$LONG" 'domu_gone two-backends'
must "a new one comes up" create_guest
check "with disks of both" guest two-backends "$both_disks"
finish
