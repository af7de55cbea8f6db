# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC1091  # variables to and from dom0.sh
# viod with settings of one's own: viod:KEY=VALUE[,KEY=VALUE…], keys as in viod.conf(5); those of the
# daemon are written to viod.conf, and viod is started anew. grants=yes is grant_usage=1.

start() {
    viod_settings
    printf '[xvda]\n%s' "$viod_device" >"/etc/viod/$bench_guest.conf"
    bench_guest_start \
        "disk=[\"phy:$bench_disk,xvda,w,backendtype=standalone,specification=virtio,grant_usage=$viod_grants\"]"
    guest_device=/dev/vda
}

stop() { bench_guest_stop; }

pids() { viod_pids; }

counters() { viodctl --json show "$bench_guest"; }
