# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# checks: workers have a uid of their own, no capabilities, no new privileges, a seccomp filter, an empty root, and few descriptors
# files: common.bash
# timeout: 1500
. ./common.bash

for name in g1 g2; do
    new_image $name 8 >/dev/null
    configure $name <<END
[blk0]
path = $IMAGES/$name
serial = $name
END
    domu_create $name "virtio=$(blk_devices 1)" || give_up "xl create $name"
done
must "a guest comes up" up g1
must "another comes up" up g2
check "its disk is in use" guest g1 "$(fio_verify '$(disk g1)' 4 1)"

# all_threads PID KEY VALUE: every thread's status has it. The kernel's io_uring threads come and go: one
# that ends while it is looked at is no thread of the worker any more.
all_threads() {
    local task status seen=0
    for task in "/proc/$1/task"/*; do
        status=$(cat "$task/status" 2>/dev/null) && [[ -n $status ]] || continue
        seen=$((seen + 1))
        grep -qE "^$2:\s+$3\$" <<<"$status" || { grep -E "^(Name|$2):" <<<"$status"; return 1; }
    done
    [[ $seen -gt 0 ]]
}
for name in g1 g2; do
    pid=$(worker $name)
    uid=$((1996488704 + $(domu_id $name)))
    check "$name: uid $uid, real, effective, saved, file system" all_threads "$pid" Uid "$uid\s$uid\s$uid\s$uid"
    check "$name: gid the same" all_threads "$pid" Gid "$uid\s$uid\s$uid\s$uid"
    check "$name: no other groups" all_threads "$pid" Groups ' *'
    for set in CapInh CapPrm CapEff CapBnd CapAmb; do
        check "$name: no capability in $set" all_threads "$pid" $set 0000000000000000
    done
    check "$name: no new privileges" all_threads "$pid" NoNewPrivs 1
    check "$name: a seccomp filter" all_threads "$pid" Seccomp 2
    root=$(readlink "/proc/$pid/root")
    check "$name: its root is viod's empty folder" same "$root" /run/viod/empty
    check "$name: which is empty" same "$(ls -A "$root")" ""
    check "$name: and cannot be written" same "$(stat -c '%a %u' "$root")" "555 0"
    check "$name: it cannot dump core" grep -E '^Max core file size +0 +0 ' "/proc/$pid/limits"
    echo "        $name's descriptors:"
    for fd in "/proc/$pid/fd"/*; do
        printf '%s -> %s\n' "${fd##*/}" "$(readlink "$fd")"
    done | sort -n | tee fds | sed 's/^/        /'
    # The standard ones, Xen, its own rings and events, the supervisor's socket, and its image.
    other=$(grep -vE "^[012] -> |-> (/dev/xen/(privcmd|evtchn${RIG_GRANTS:+|gntdev})|/proc/xen/privcmd|anon_inode:\[(io_uring|eventfd)\]|socket:.*|$IMAGES/$name)( \(deleted\))?\$" fds)
    check "$name: nothing else" same "$other" ""
    check "$name: one socket" same "$(grep -c socket: fds)" 1
    check "$name: its image once" same "$(grep -c "$IMAGES/" fds)" 1
    # A mapping outlives its descriptor: no page of another file that could be written than of its
    # counters and of what it leaves to a successor.
    own=/run/viod/$(domu_id $name)
    writable=$(grep -E '^[^ ]+ .w.s .* /' "/proc/$pid/maps" | grep -vE "/dev/xen/|/proc/xen/|io_uring| $own/(state|worker.stats)\$" || true)
    check "$name: no other shared memory" same "$writable" ""
    check "$name: what it leaves is root's" same "$(stat -c '%a %u' "$own/state" "$own/worker.stats" | sort -u)" "600 0"
    check "$name: no memory that is writable and executable" rig_fails grep -E '^[^ ]+ .wx' "/proc/$pid/maps"
done
check "the two are different users" test "$(stat -c %u "/proc/$(worker g1)")" -ne "$(stat -c %u "/proc/$(worker g2)")"
check "the control socket is root's" same "$(stat -c '%a %u' /run/viod/viod.sock)" "600 0"
# It knows them, for the successor of a worker (O_PATH): that can neither be read nor written, and holds no lock.
supervisor_images=0 o_path=010000000
for fd in "/proc/$(supervisor)/fd"/*; do
    [[ $(readlink "$fd") == "$IMAGES"/* ]] || continue
    supervisor_images=$((supervisor_images + 1))
    flags=$(sed -n 's/^flags:\s*//p' "/proc/$(supervisor)/fdinfo/${fd##*/}")
    check "the supervisor has not opened $(readlink "$fd")" test $((flags & o_path)) -ne 0
done
check "but knows each, once" same "$supervisor_images" 2
finish
