# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154,SC2034  # rig_…, DOMU_… come with tests/rig/dom0/lib.sh
# What tests with driver domains share, beside common.bash. The domains are those of configs/examples,
# by the very files: what those name is put where they look for it.

EXAMPLES=/usr/share/doc/viod/examples

# link NAME TARGET: NAME, a path that an example names, leads to TARGET.
link() { mkdir -p "${1%/*}" && ln -sfn "$2" "$1"; }

# copy_programs TREE PROGRAM…: with the libraries that they need (as ldd finds them), from dom0.
copy_programs() {
    local tree=$1 file
    shift
    for file in "$@"; do
        cp "$file" "$tree/usr/sbin/"
        LD_TRACE_LOADED_OBJECTS=1 "$file" | sed -nE 's,.* => (/[^ ]+) .*,\1,p'
    done | sort -u | while read -r file; do
        [[ -e $tree$file ]] || cp -L "$file" "$tree$file"
    done
}

# driver_domain_root DISK: makes a domU's root disk that of a driver domain.
driver_domain_root() {
    local viod
    viod=$(command -v viod)
    mount "$1" /mnt || return 1
    copy_programs /mnt "$viod" "$(command -v viodctl)"
    mkdir -p /mnt/etc/viod /mnt/var/lib/viod/two-backends /mnt/run
    cp /etc/viod/viod.conf /mnt/etc/viod/
    ln -sf ../../init /mnt/usr/sbin/init
    umount /mnt
}

# use_init DISK: a kernel's command line need not name the first process of this root disk.
use_init() { mount "$1" /mnt && ln -sf ../../init /mnt/usr/sbin/init && umount /mnt; }

# prepare_driver_domain: all that driver-domain.cfg names.
prepare_driver_domain() {
    driver_domain_root "$DOMU_ROOT3" || return 1
    link /boot/vmlinuz-domd "$KERNEL"
    link /dev/vg0/domd "$DOMU_ROOT3"
}
# prepare_two_backends: all that two-backends.cfg and its .conf name, but for what is in the driver domain.
prepare_two_backends() {
    use_init "$DOMU_ROOT1" || return 1
    link /boot/vmlinuz-guest "$KERNEL"
    link /dev/vg0/two-backends "$DOMU_ROOT1"
    mkdir -p /var/lib/viod/two-backends
    truncate -s 16M /var/lib/viod/two-backends/data.img
    cp "$EXAMPLES/two-backends.conf" /etc/viod/
}

# check_machine_devices DOMAIN: checks that the clock and the GPIO controller of the machine are its own.
check_machine_devices() {
    check "$1: its clock is the machine's" domu_run "$1" 'grep -q pl031 /sys/class/rtc/rtc0/name &&
        [[ $(</sys/class/rtc/rtc0/since_epoch) -gt 1700000000 ]]'
    check "$1: the clock's alarm interrupts it" domu_run "$1" \
        'count() { sed -nE "s/^ *[0-9]+: +([0-9]+) .*rtc-pl031/\1/p" /proc/interrupts; }
        before=$(count); echo +2 >/sys/class/rtc/rtc0/wakealarm
        for _ in {1..200}; do [[ $(count) -le $before ]] || exit 0; sleep 0.1; done; cat /proc/interrupts; exit 1'
    check "$1: it moves a GPIO line" domu_run "$1" 'for chip in /sys/class/gpio/gpiochip*; do
            [[ $(<"$chip/label") == *9030000* ]] || continue
            line=$(($(<"$chip/base") + 1)); echo $line >/sys/class/gpio/export; cd /sys/class/gpio/gpio$line
            for value in 1 0 1; do
                echo out >direction; echo $value >value; [[ $(<value) == "$value" ]] || exit 1
            done
            exit 0
        done; exit 1'
}
# domd_viod: starts viod in the driver domain and waits till it answers.
domd_viod() {
    domu_run domd 'setsid viod --config /etc/viod/viod.conf >>/var/log/viod.log 2>&1 </dev/null &
        for _ in {1..300}; do viodctl version >/dev/null 2>&1 && exit 0; sleep 0.1; done
        cat /var/log/viod.log; exit 1'
}
# plain_driver_domain CMDLINE [KEY=VALUE…]: one without devices of the machine, and viod in it.
plain_driver_domain() {
    local cmdline=$1
    shift
    domu_create domd root=/dev/xvda "disk=[\"$DOMU_ROOT3,raw,xvda,w\"]" driver_domain=1 \
        "cmdline=$cmdline" "$@" && domu_ready domd "$LONG" && domd_viod
}
# refused REGEX: the driver domain cannot serve a guest, which is never unpaused; REGEX is the reason in
# its log and what dom0's administrator sees.
refused() {
    local status=0
    domu_run domd 'mkdir -p /var/lib/viod/two-backends; truncate -s 16M /var/lib/viod/two-backends/log.img'
    xl create -p "$EXAMPLES/two-backends.cfg" >/dev/null || return 1
    ! viodctl wait two-backends 20 2>wait.out || status=1
    cat wait.out
    grep -qE -- "$1" wait.out || status=1
    domd_logged "$1" || status=1
    domu_destroy two-backends || status=1
    return $status
}
# domd_logged REGEX: the log of the driver domain's viod has such a line.
domd_logged() {
    domu_run domd "grep -qE -- $(printf %q "$1") /var/log/viod.log || { tail -n 15 /var/log/viod.log; exit 1; }"
}
# grants GUEST N: N of the driver domain's devices of this guest have grants (ACCESS_PLATFORM, bit 33).
grants() {
    local n=0 features
    for features in $(domu_run domd "viodctl --json show $1" | sed 's/"features"/\n&/g' |
        sed -nE 's/^"features":"(0x[0-9a-f]+)".*/\1/p'); do
        n=$((n + (features >> 33 & 1)))
    done
    [[ $n == "$2" ]] || { echo "$n have"; return 1; }
}
# domd_nodes GUEST-DOMID: the driver domain's nodes of this guest's devices.
domd_nodes() { xenstore-ls -f "/local/domain/$(domu_id domd)/backend" 2>/dev/null | grep -E "/virtio(_disk)?/$1/"; }
no_domd_node() { local left; left=$(domd_nodes "$1"); [[ -z $left ]] || { printf '%s\n' "$left"; return 1; }; }
# create_guest: a new instance of the guest of two-backends.cfg ($guest_cfg), and until it is up.
guest_cfg=$EXAMPLES/two-backends.cfg
create_guest() { xl create "$guest_cfg" >/dev/null && domu_ready two-backends "$LONG"; }
# For this guest: verified I/O on its disks from both domains at once.
# shellcheck disable=SC2016 # the guest's
both_disks="$(fio_verify_alone '$(disk FROM-DOM0)' 32 8) >/run/0 & dom0=\$!
    $(fio_verify_alone '$(disk FROM-DOMD)' 32 8) >/run/d && wait \$dom0"
# answers_instead N: dom0's viod answers for N devices whose driver domain is gone. An access before that
# waits for ever (viod(8), DRIVER DOMAINS).
answers_instead() { [[ $(grep -cE "slot [0-9]+: the domain that served it is gone" "$VIOD_LOG") == "$1" ]]; }
# takes_no_numbers GUEST: its kernel has no rng of a virtio device any more. Else Linux asks it again and again
# (each time after half of its uptime, at first), also in the moment in which a driver domain ends: an access
# then would never end.
takes_no_numbers() {
    guest "$1" 'cd /sys/bus/virtio/drivers/virtio_rng && for device in virtio*; do
        echo "$device" >unbind || exit 1; done; ! ls -d virtio*'
}
