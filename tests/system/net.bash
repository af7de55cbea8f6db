# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the tests of network devices share. After common.bash.

# net_devices N: the value of virtio= for N network devices.
net_devices() {
    local list='' number
    for ((number = 0; number < $1; number++)); do
        list+='"type=virtio,device1,transport=mmio",'
    done
    printf '[%s]' "${list%,}"
}
# new_bridge NAME ADDRESS/BITS [MTU]
new_bridge() {
    ip link add "$1" type bridge && ip link set "$1" mtu "${3:-1500}" up && ip addr add "$2" dev "$1"
}
# In the guest: its first network interface of virtio, and what it has for address.
# shellcheck disable=SC2016
net_guest='nic() { local d; for d in /sys/class/net/*; do
    [[ $(readlink -f "$d/device/driver") == */virtio_net ]] && { echo "${d##*/}"; return; }; done; return 1; }
    '
# nguest GUEST SCRIPT: as guest, with the above.
nguest() { guest "$1" "$net_guest$2"; }
nguest_job() { guest_job "$1" "$net_guest$2"; }
