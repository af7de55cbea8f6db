# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC1091  # variables to and from dom0.sh
# The kernel's back end for PV disks.

start() {
    bench_guest_start "disk=[\"phy:$bench_disk,xvda,w\"]"
    guest_device=/dev/xvda
}

stop() { bench_guest_stop; }
