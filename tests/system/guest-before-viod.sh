# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: viod serves devices whose nodes were there before it started; stopped, it ends all workers and leaves nothing
# boot: --no-viod
# files: common.bash
# timeout: 2400
. ./common.bash
allow_guest_panic
touch "$VIOD_LOG"

for name in g1 g2; do
    new_image $name 16 >/dev/null
    configure $name <<END
[blk0]
path = $IMAGES/$name
serial = $name
END
    domu_config $name "virtio=$(blk_devices 1)" >$name.cfg
done
check "viodctl says that viod is not running" eval '! viodctl list 2>list.log && grep "not running" list.log'
xl create -p g1.cfg >/dev/null || give_up "xl create"
must "viod starts" start_viod
check "the device that was there is served" wait_for 60 'served g1 blk0'
xl unpause g1
must "the guest comes up" up g1
check "with its disk" guest g1 "$(fio_verify '$(disk g1)' 4 1)"

check "a second viod refuses to start" eval '! timeout 60 viod 2>second.log && grep "another viod is running" second.log'
check "and harms nobody" guest g1 'dd if=$(disk g1) of=/dev/null bs=1M iflag=direct count=4'

guest_job g1 "fio --name=a --filename=\$(disk g1) --rw=randrw --size=16m --direct=1 --time_based --runtime=1000 --ioengine=io_uring --iodepth=8"
requests=$(device g1 blk0 requests)
must "the guest reads and writes" wait_for "$LONG" "[[ \$(device g1 blk0 requests) -gt $((requests + 100)) ]]"
id=$(domu_id g1)
check "viodctl stop ends viod under load" stop_viod
check "no worker is left" no_workers
check "the socket is gone" test ! -e /run/viod/viod.sock
check "xenstore says that nobody serves the device" same "$(xenstore-read "/local/domain/0/backend/virtio/$id/0/state")" 6
check "its guest can be destroyed" domu_destroy g1
check "and is gone" wait_for "$LONG" domu_gone g1
domu_wait "$job" >/dev/null

must "viod starts again" start_viod
domu_create g2 "virtio=$(blk_devices 1)" || give_up "xl create"
must "a new guest comes up" up g2
check "with its disk" guest g2 "$(fio_verify '$(disk g2)' 4 1)"
check "and shuts down" domu_shutdown g2 "$LONG"
check "no worker is left" wait_for 60 no_workers
finish
