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
# number GUEST FILTER: jq's FILTER on what viod knows of its net0.
number() { viodctl --json show "$1" net0 | jq -r ".devices[0]$2"; }
# iperf GUEST OPTIONS…: runs iperf3 from the guest to dom0 (10.0.0.1); prints its JSON.
iperf() {
    local name=$1
    shift
    nguest "$name" "iperf3 -J -c 10.0.0.1 $*"
}
# at_least N JSON FILTER: the number that jq finds is at least N.
at_least() {
    local found
    found=$(jq -r "$3 | floor" <<<"$2") || { head -c 600 <<<"$2"; return 1; }
    [[ $found -ge $1 ]] || { echo "$3 is $found"; jq -c '.error // empty' <<<"$2"; return 1; }
}
