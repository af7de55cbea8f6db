# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables to and from dom0.sh
# Network devices: on a bridge of dom0, which also has the other end of each connection. The guest's root
# is a PV disk, whatever the back end of its network, so that viod serves nothing but that.

bench_bridge=xenbr0
export bench_bridge
bench_guest_keys=(root=/dev/xvda "disk=[\"phy:$DOMU_ROOT1,xvda,w\"]")
noise_options=none

bench_prepare() {
    mount "$DOMU_ROOT1" /mnt
    cp more/net-rr /mnt/usr/bin/net-rr
    umount /mnt
    {
        ip link add "$bench_bridge" type bridge
        ip link set "$bench_bridge" up
        ip addr add 10.0.0.1/24 dev "$bench_bridge"
        iperf3 -s -D
        setsid more/net-rr serve </dev/null &
    } >&2
    echo "network bridge $bench_bridge of dom0, MTU $(<"/sys/class/net/$bench_bridge/mtu")"
    echo "netback_max_queues $(cat /sys/module/xen_netback/parameters/max_queues)"
}

# Of netfront: vif0-q0-tx and vif0-q0-rx.
bench_clean() { guest_irq='virtio|vif'; }

# A back end maps the guest's memory when it first meets it.
warm_up() {
    # shellcheck disable=SC2016  # the guest's shell expands
    domu_run -t 120 "$bench_guest" '
        for d in /sys/class/net/*; do
            case $(readlink -f "$d/device/driver") in */virtio_net | */vif) nic=${d##*/} ;; esac
        done
        ip link set "$nic" up && ip addr add 10.0.0.2/24 dev "$nic" || exit
        for i in {1..60}; do ping -c 1 -W 1 10.0.0.1 >/dev/null && break; done
        { iperf3 -c 10.0.0.1 -t 1 -P 4 && iperf3 -c 10.0.0.1 -t 1 -P 4 -R; } >/dev/null'
}

load() {
    case $1 in
        none) echo "sleep 1; echo '{\"transactions\": 1, \"seconds\": 1}' >/tmp/rr" ;;
        rr) echo "net-rr 10.0.0.1 $runtime >/tmp/rr" ;;
        *)
            shift
            echo "iperf3 -J -i 0 -t $runtime -c 10.0.0.1 $* >/tmp/iperf3"
            ;;
    esac
}

load_result() { [[ $1 == iperf3 ]] && echo iperf3 || echo rr; }
