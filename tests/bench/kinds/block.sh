# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # variables to and from dom0.sh
# Disks: the same RAM disk of dom0 for all back ends, and fio in the guest. A back end sets guest_device.

bench_disk=/dev/ram0
export bench_disk
noise_options='--rw=randread --bs=4k --size=1m --ioengine=null --thinktime=900ms'

bench_prepare() {
    # Every page of the disk is there before anyone reads or writes it.
    dd if=/dev/zero of="$bench_disk" bs=1M oflag=direct status=none 2>/dev/null
    echo "disk $bench_disk, a RAM disk of $(($(<"/sys/block/${bench_disk##*/}/size") / 2048)) MiB"
    echo "blkback_max_queues $(cat /sys/module/xen_blkback/parameters/max_queues)"
}

# Nothing that another back end left in the page cache.
bench_clean() {
    guest_device='' guest_irq='virtio|blkif'
    blockdev --flushbufs "$bench_disk"
}

# A back end maps the guest's memory when it first meets it: large enough buffers make it meet most of
# what fio is given later.
warm_up() {
    [[ -n $guest_device ]] &&
        domu_run -t 120 "$bench_guest" "fio --name=warm --filename=$guest_device --ioengine=io_uring \
            --direct=1 --rw=read --bs=1m --iodepth=64 --size=64m --output=/dev/null"
}

# A second pass through the guest's page cache would not reach the device: with --loops=1 there is none.
load() {
    local length="--time_based --runtime=$runtime"
    [[ $* != *--loops=1* ]] || length=''
    echo "fio --name=bench --filename=$guest_device --ioengine=io_uring --direct=1 $length \
        --norandommap --thread --group_reporting --output=/tmp/fio \
        --output-format=json $*"
}

load_result() { echo fio; }
