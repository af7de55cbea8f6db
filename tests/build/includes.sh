#!/usr/bin/env bash
# checks: who includes whom: devices, core, backends and Xen know only what is below them
#
# One line per rule: the files it is about, and the only headers of the project that they may include
# (system headers have rules of their own below). Included by others is not included by oneself:
# what counts is what a file asks for.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

rules='
src/devices/*                  types|log|stats|iov|config|backend|event_loop|virtio_device|virtqueue|device_state|devices/[a-z_0-9]+
src/virtio_mmio.[ch]           types|log|event_loop|virtio_mmio|virtio_device
src/virtio_device*.[ch]        types|log|stats|config|event_loop|virtio_device|virtio_device_internal|virtqueue|device_state
src/virtio_queue.c             types|log|stats|event_loop|virtio_device_internal|virtqueue
src/virtio_state.c             types|log|virtio_device_internal|virtqueue|device_state
src/virtqueue*                 types|log|iov|virtqueue|virtqueue_internal|virtqueue_grants|guest_memory|grant_memory|device_state
src/grant_memory.[ch]          types|log|grant_memory|hypervisor
src/guest_memory.[ch]          types|log|guest_memory|hypervisor
src/hypervisor.h               types
src/device_state.[ch]          types|device_state
src/event_loop.[ch]            types|log|clock|stats|event_loop
src/clock.[ch]                 clock
src/iov.[ch]                   types|iov
src/log.[ch]                   types|log
src/stats.[ch]                 types|stats
src/types.h                    -
src/backend.h                  types|event_loop|iov
src/message.[ch]               types|log|message
src/sandbox.[ch]               types|log|sandbox|hypervisor_ioctls
src/hypervisor_ioctls.h        types
src/config*                    types|log|config|config_file|config_types|backend
backends/*                     types|log|stats|iov|event_loop|backend|[a-z_0-9]+_internal
xen/*                          types|log|hypervisor|hypervisor_ioctls|[a-z_0-9]*internal|xen|xenstore|xenstore_publish|backend_state|xl_config|grants|ioreq|foreign_memory
'
# These see everything: they put the parts together.
everything='src/(viod|viodctl|viodctl_[a-z_]+|supervisor|supervisor_[a-z]+|worker|worker_[a-z]+)\.[ch]'

xen_system='xen/.*|xenctrl|xendevicemodel|xenforeignmemory|xenevtchn|xengnttab|xenstore|xentoolcore|xentoollog|libxl.*'
virtio_system='linux/virtio_.*|linux/vhost.*'

# "project NAME" or "system NAME" for each include; NAME without .h, and without the way to it.
includes_of() {
    sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"(\.\.\/)*([^"]*)\.h".*/project \2/p
        s/^[[:space:]]*#[[:space:]]*include[[:space:]]*<([^>]*)\.h>.*/system \1/p' "$1"
}

# complaints PATH KIND NAME: one line if PATH must not include it.
complaints() {
    local path=$1 kind=$2 name=$3 pattern allowed
    if [[ $kind == system ]]; then
        if [[ $name =~ ^($xen_system)$ && $path != xen/* ]]; then
            echo "$path includes <$name.h>: Xen's headers are for xen/ only"
        elif [[ $name =~ ^($virtio_system)$ && ($path == backends/* || $path == xen/*) ]]; then
            echo "$path includes <$name.h>: backends and xen/ know no virtio"
        fi
        return
    fi
    [[ ! $path =~ ^$everything$ ]] || return
    while read -r pattern allowed; do
        # shellcheck disable=SC2053 # a glob on purpose
        [[ -n $pattern && $path == $pattern ]] || continue
        [[ $name =~ ^($allowed)$ ]] || echo "$path includes \"$name.h\": it may include only $allowed"
        return
    done <<<"$rules"
    echo "$path has no rule in tests/build/includes.sh: who is it, and whom may it know?"
}

failed=0
check() { # check FILE…
    local path kind name found
    for path in "$@"; do
        while read -r kind name; do
            found=$(complaints "$path" "$kind" "$name")
            [[ -z $found ]] || { echo "$found"; failed=1; }
        done < <(includes_of "$path")
    done
}

# The check itself: what must be refused is refused, what must be allowed is not.
refused() {
    [[ -n $(complaints "$@") ]] || { echo "not noticed: $*"; failed=1; }
}
allowed() {
    [[ -z $(complaints "$@") ]] || { echo "refused for nothing: $*"; failed=1; }
}
refused src/devices/blk.c project hypervisor
refused src/devices/blk.c project xen/xen
refused src/devices/blk.c project guest_memory
refused src/devices/blk.c project virtio_mmio
refused src/virtio_mmio.c project xen/xen
refused src/virtio_mmio.c project hypervisor
refused src/virtio_mmio.c system xen/xen
refused src/worker.c system xenctrl
refused backends/block_uring.c project virtio_device
refused backends/block_uring.c project config
refused backends/block_uring.c system linux/virtio_blk
refused backends/block_uring.c project xen/xen
refused xen/ioreq.c project virtio_mmio
refused xen/ioreq.c project config
refused src/virtqueue.c project virtio_device
refused src/virtqueue_split.c project hypervisor
refused src/event_loop.c project backend
refused src/new_thing.c project types
allowed src/devices/blk.c project backend
allowed src/worker.c project xen/xen
allowed xen/ioreq.c system xen/hvm/ioreq
allowed src/guest_memory.h project hypervisor
[[ $failed -ne 0 ]] || echo "ok the rules refuse what they should"

mapfile -t files < <(find src backends xen -name '*.[ch]' | sort)
[[ ${#files[@]} -gt 20 ]] || { echo "only ${#files[@]} files found"; exit 1; }
check "${files[@]}"
[[ $failed -eq 0 ]] && echo "ok ${#files[@]} files include only what they may know"
exit "$failed"
