# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154
# checks: xl and viodctl check accept every example; a guest of virtio devices alone, and one with a device of the machine, run by theirs
# boot: --passthrough
# files: common.bash arch.bash
# timeout: 2400
. ./common.bash
. ./arch.bash

# --- what the examples name ----------------------------------------------------------------------
link /boot/vmlinuz-guest "$KERNEL"
link /boot/vmlinuz-domd "$KERNEL"
cp "$EXAMPLES"/*.conf /etc/viod/
sed -nE 's,.*(/dev/vg0/[a-z0-9-]+).*,\1,p' "$EXAMPLES"/*.cfg | sort -u | while read -r path; do
    link "$path" "$DOMU_ROOT3"
done
sed -nE 's,^path = (/var/lib/viod/.*),\1,p' "$EXAMPLES"/*.conf | while read -r path; do
    mkdir -p "${path%/*}" && truncate -s 16M "$path"
done
link /dev/ttyUSB0 /dev/null
# A driver domain, as far as anybody can see who only reads xenstore.
xenstore-write /local/domain/99/name domd /local/domain/99/data/viod 0

accepted() { xl create -n "$1" >/dev/null && viodctl check "$1"; }
count=0
for cfg in "$EXAMPLES"/*.cfg; do
    name=${cfg##*/}
    check "$name: xl and viodctl accept it" accepted "$cfg"
    check "$name: it has its file's name" grep -q "^name = \"${name%.cfg}\"\|^name = \"domd\"" "$cfg"
    count=$((count + 1))
done
check "there are several" test $count -ge 8
for cfg in driver-domain pass-through; do
    check "$cfg.cfg names its part of the device tree" eval "grep -q '^device_tree = \"/etc/xen/$cfg.dtb\"' $EXAMPLES/$cfg.cfg && test -s /etc/xen/$cfg.dtb"
done
xenstore-rm /local/domain/99

# --- a guest with virtio devices alone -------------------------------------------------------------
use_init "$DOMU_ROOT1"
link /dev/vg0/one-image "$DOMU_ROOT1"
ip link add xenbr0 type bridge && ip addr add 192.168.77.1/24 dev xenbr0 && ip link set xenbr0 up
must "xl creates the guest of one-image.cfg" xl create "$EXAMPLES/one-image.cfg"
check "all of its devices become ready" viodctl wait one-image "$LONG"
must "it comes up" up one-image
check "it has no device of the machine" guest one-image '! ls -d /proc/device-tree/passthrough'
check "its disk is verified" guest one-image "$(fio_verify /verify 4 2)"
check "its network works" guest one-image 'ip addr add 192.168.77.2/24 dev eth0 && ip link set eth0 up &&
    ping -c 3 -W 20 192.168.77.1'
check "its console has its ports" guest one-image '[[ -e /dev/virtio-ports/gnss || -e /dev/vport0p1 || -n $(ls /dev/vport*p1) ]] &&
    ls /dev/hvc1'
check "its entropy source gives" guest one-image '[[ $(head -c 32 /dev/hwrng | wc -c) == 32 ]]'
check "its sockets have a number" guest one-image 'ls /dev/vsock && grep -q . /sys/class/misc/vsock/dev'
domu_destroy one-image

# --- a guest with a device of the machine --------------------------------------------------------------
use_init "$DOMU_ROOT2"
link /dev/vg0/pass-through "$DOMU_ROOT2"
must "xl creates the guest of pass-through.cfg" xl create "$EXAMPLES/pass-through.cfg"
must "it comes up" up pass-through
check "its clock is the machine's" guest pass-through 'grep -q pl031 /sys/class/rtc/rtc0/name &&
    [[ $(</sys/class/rtc/rtc0/since_epoch) -gt 1700000000 ]]'
check "its disk is viod's" guest pass-through "$(fio_verify /verify 4 2)"
check "it reboots" domu_reboot pass-through "$LONG"
check "and still has both" guest pass-through 'grep -q pl031 /sys/class/rtc/rtc0/name && ls /dev/vda'
domu_destroy pass-through

# --- and what they warn of -------------------------------------------------------------------------------
sed 's/^disk = \[ /&"\/dev\/vg0\/b,raw,xvdb,w,backendtype=standalone,specification=virtio", /' \
    "$EXAMPLES/pass-through.cfg" >clash.cfg
link /dev/vg0/b "$DOMU_ROOT3"
check "viodctl check explains a clash of interrupts" eval \
    '! viodctl check clash.cfg >clash.out && grep -q "passes interrupt 34 through, which slot 1 uses" clash.out'
check "which xl refuses indeed" rig_fails xl create clash.cfg
finish
