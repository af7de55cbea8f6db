# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: an unmodified Debian (its kernel, initramfs and root image) boots to login with systemd on a viod disk
# boot: --debian
# files: common.bash
# timeout: 3000
. ./common.bash

# Debian's kernel is built without XEN_VIRTIO, so it knows no grants for virtio.
domu_create debian "kernel=$DEBIAN_KERNEL" "ramdisk=$DEBIAN_INITRD" memory=1024 vcpus=2 \
    "extra=console=hvc0 root=/dev/vda rw" "disk=[$(virtio_disk "$DEBIAN_ROOT" xvda w grant_usage=0)]" || give_up "xl create"
must "its kernel finds the disk" wait_console debian 'virtio_blk virtio[0-9]+: .*\[vda\]' 1200
check "its root is mounted" wait_console debian 'EXT4-fs \(vda[0-9]*\): mounted' 1200
check "systemd is its first process" wait_console debian 'systemd\[1\]: .*running in system mode' 1200
must "it comes to a login prompt" wait_console debian ' login: ' 2400
grep -aE 'Welcome to|Linux version' "$(domu_console debian)" | head -n 2
viodctl show debian
check "viod serves its disk" same "$(device debian xvda driver)" running
check "no request failed" no_errors
check "it shuts down on xl's word" domu_shutdown debian 1200
check "no worker is left" wait_for 60 no_workers
finish
