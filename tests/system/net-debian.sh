# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154  # the guest's shell expands; variables of the files below
# checks: an unmodified Debian, all of its devices by viod: login on its console, DHCP, apt's download, entropy
# boot: --debian
# files: common.bash net.bash console.bash
# timeout: 3000
. ./common.bash
. ./net.bash
. ./console.bash

new_bridge xenbr0 10.0.0.1/24
dnsmasq --conf-file=/dev/null --interface=xenbr0 --bind-interfaces --port=0 --user=root \
    --dhcp-range=10.0.0.100,10.0.0.200,1h --dhcp-leasefile=/tmp/leases --pid-file=/tmp/dnsmasq.pid
mkdir -p /tmp/www
head -c 8M /dev/urandom >/tmp/www/package.deb
sum=$(sha256sum </tmp/www/package.deb | cut -d' ' -f1)
busybox httpd -p 10.0.0.1:80 -h /tmp/www
configure debian <<END
[net0]
bridge = xenbr0
END
# The login is on hvc1, because hvc0 is taken: xl gives every domU on Arm a PV console, without a word to
# leave it out, and Linux on Xen makes that one hvc0 before any driver of virtio is there. So Debian finds
# its kernel's console there, and gets its login on virtio's by the unit that it has for such cases.
domu_create debian "kernel=$DEBIAN_KERNEL" "ramdisk=$DEBIAN_INITRD" memory=1024 vcpus=2 \
    "extra=console=hvc0 root=/dev/vda rw systemd.wants=serial-getty@hvc1.service" "disk=[$(virtio_disk "$DEBIAN_ROOT" xvda)]" \
    'virtio=["type=virtio,device1,transport=mmio","type=virtio,device3,transport=mmio","type=virtio,device4,transport=mmio"]' ||
    give_up "xl create"
terminal_open
attach debian
# Emulated, it takes a minute or more.
later() { wait_for 1200 "grep -qaE -- '$1' $screen" || { tail -c 1000 "$screen"; return 1; }; }
must "it comes to a login prompt on viod's console" later ' login: '
type_keys 'root\r'
must "login" later 'root@debian:'
# What is typed is echoed: a result must not look like its question.
type_keys 'systemctl is-system-running --wait; echo up-$((6 * 7))\r'
check "systemd has started everything" later 'up-42'
type_keys 'printf "[Match]\\\\nName=e*\\\\n[Network]\\\\nDHCP=ipv4\\\\n" >/etc/systemd/network/80-e.network; systemctl start systemd-networkd; until ip -4 addr | grep -o "10[.]0[.]0[.]1[0-9][0-9]/24"; do sleep 1; done; echo address-$((6 * 7))\r'
check "an address by DHCP" later 'address-42'
check "from dom0's server" test -s /tmp/leases
type_keys "/usr/lib/apt/apt-helper download-file http://10.0.0.1/package.deb /tmp/p SHA256:$sum && echo got-\$((6 * 7))\r"
check "apt downloads 8 MiB and finds their checksum right" later 'got-42'
type_keys 'cat /sys/class/misc/hw_random/rng_current; head -c 64 /dev/hwrng | wc -c | sed s/^/bytes-/\r'
check "random bytes" later 'bytes-64'
check "of virtio" grep -qa 'virtio_rng' "$screen"
viodctl stats debian
check "statistics of each device, as JSON too" same "$(viodctl --json stats debian |
    jq -r '.devices[] | select(.requests > 0 and .interrupts > 0) | .name' | sort | tr '\n' ' ')" "console0 net0 rng0 xvda "
for name in xvda net0 console0 rng0; do
    check "viod serves $name" same "$(device debian "$name" driver)" running
done
check "no request failed" no_errors
check "it shuts down on xl's word" domu_shutdown debian 1200
check "no worker is left" wait_for 60 no_workers
finish
