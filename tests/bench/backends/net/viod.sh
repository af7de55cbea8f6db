# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154,SC1091  # variables to and from dom0.sh
# viod with a TAP device; viod:KEY=VALUE[,KEY=VALUE…] as in ../viod.sh.

start() {
    viod_settings
    printf '[net0]\nbridge = %s\n%s' "$bench_bridge" "$viod_device" >"/etc/viod/$bench_guest.conf"
    bench_guest_start "virtio=[\"type=virtio,device1,transport=mmio,grant_usage=$viod_grants\"]"
}

stop() { bench_guest_stop; }

pids() { viod_pids; }

counters() { viodctl --json show "$bench_guest"; }
