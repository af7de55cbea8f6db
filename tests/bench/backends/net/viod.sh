# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154,SC1091  # variables to and from dom0.sh
# viod with a TAP device; viod:KEY=VALUE[,KEY=VALUE…] as in ../viod.sh, and what the guest says about its
# interrupts: tx-usecs, tx-frames, rx-usecs, rx-frames, as for ethtool -C.

start() {
    local pair said=()
    local IFS=,
    for pair in $bench_args; do
        [[ $pair != [rt]x-* ]] || said+=("${pair%%=*}" "${pair#*=}")
    done
    unset IFS
    bench_args=$(tr , '\n' <<<"$bench_args" | grep -v '^[rt]x-' | paste -sd,)
    viod_settings
    printf '[net0]\nbridge = %s\n%s' "$bench_bridge" "$viod_device" >"/etc/viod/$bench_guest.conf"
    bench_guest_start "virtio=[\"type=virtio,device1,transport=mmio,grant_usage=$viod_grants\"]" || return
    [[ ${#said[@]} -eq 0 ]] || domu_run "$bench_guest" "
        for d in /sys/class/net/*; do
            [[ \$(readlink -f \$d/device/driver) != */virtio_net ]] || ethtool -C \${d##*/} ${said[*]}
        done"
}

stop() { bench_guest_stop; }

pids() { viod_pids; }

counters() { viodctl --json show "$bench_guest"; }
