# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154,SC1091  # variables to and from dom0.sh
# The kernel's back end for PV network devices.

start() {
    # Only the bridge and "connected", without all the tools that Xen's own script wants.
    cat >/etc/xen/scripts/vif-bench <<'END'
#!/bin/bash
if [[ $1 == online ]]; then
    ip link set "$vif" master "$(xenstore-read "$XENBUS_PATH/bridge")" up
    xenstore-write "$XENBUS_PATH/hotplug-status" connected
fi
END
    chmod 755 /etc/xen/scripts/vif-bench
    bench_guest_start "vif=[\"bridge=$bench_bridge,script=/etc/xen/scripts/vif-bench\"]"
}

stop() { bench_guest_stop; }
