# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the system tests of vsock devices share.

sockets=/run/viod/g1
# Linux gives a connection up after two seconds, which may be what a guest needs to start a program: here after
# 60 (SO_VM_SOCKETS_CONNECT_TIMEOUT of AF_VSOCK, a struct timeval). For calls that have to succeed.
patient=setsockopt-socket=40:6:x3c000000000000000000000000000000

start_vsock_guest() {
    domu_create g1 root=/dev/vda "disk=[$(virtio_disk "$DOMU_ROOT1" xvda)]" \
        'virtio=["type=virtio,device13,transport=mmio"]' || give_up "xl create"
    must "the guest comes up" up g1
    must "vsock0 is served" served g1 vsock0
}

# dom0_serves PORT OPTIONS ADDRESS [SOCAT-OPTION…]: socat waits for the guest's calls; sets $server. With
# -t 300 where it starts a program that answers: half a second after its input, else, socat ends it.
dom0_serves() {
    local path=$sockets/vsock_$1 options=$2 address=$3
    shift 3
    rm -f "$path"
    socat "$@" "UNIX-LISTEN:$path,$options" "$address" &
    server=$!
    wait_for 60 "ss -xl | grep -qF '$path '"
}
# guest_serves PORT OPTIONS ADDRESS [SOCAT-OPTION…]: the same in the guest ($serving or g1), until it ends.
guest_serves() {
    local port=$1 options=$2 address=$3
    shift 3
    guest "${serving:-g1}" "setsid socat $* 'VSOCK-LISTEN:$port,$options' '$address' </dev/null >/tmp/serve.$port 2>&1 &
        for i in {1..100}; do sleep 0.1; ss -l --vsock 2>/dev/null | grep -q ':$port ' && exit; done
        sleep 2"
}
counters() { device g1 vsock0 "$1"; }
none_open() {
    wait_for 60 '[[ $(counters connections) == 0 ]]' || {
        viodctl show g1 vsock0
        ls -l "/proc/$(worker g1)/fd"
        ss -xp | grep -F "$sockets"
        return 1
    }
}

# Programs that socat starts, in dom0 and in the guest. One answers when it has read all; one reads
# when it is told to.
helpers='cat >/tmp/question <<"END"
#!/bin/bash
sum=$(md5sum)
echo "answer to $sum"
END
cat >/tmp/sleeper <<"END"
#!/bin/bash
until [[ -e /tmp/wake ]]; do sleep 1; done
md5sum >/tmp/sum
END
chmod +x /tmp/question /tmp/sleeper'
# messages FILE: the lengths of what socat -v saw go from left to right.
messages='messages() { grep -ao "> 20[0-9/]* [0-9:.]* *length=[0-9]*" "$1" | sed "s/.*=//" | tr "\n" " "; }'
eval "$messages"
