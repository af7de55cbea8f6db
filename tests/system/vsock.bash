# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the system tests of vsock devices share.

VSOCK='virtio=["type=virtio,device13,transport=mmio"]'
vsock_dir() { printf '/run/viod/%s' "$1"; }

# serve GUEST PORT OPTIONS ADDRESS: socat waits in dom0 for calls of the guest to PORT.
serve() {
    local path
    path=$(vsock_dir "$1")/vsock_$2
    rm -f "$path"
    socat "$3:$path$4" "$5" &
    server=$!
    wait_for 30 "[[ -S $path ]]"
}
