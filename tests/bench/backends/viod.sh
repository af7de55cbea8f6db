# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154,SC1091  # variables to and from dom0.sh
# viod with settings of one's own: viod:KEY=VALUE[,KEY=VALUE…], keys as in viod.conf(5); those of the
# daemon are written to viod.conf, and viod is started anew. grants=yes is grant_usage=1.

start() {
    local pair device='' daemon='' grants=0
    local IFS=,
    for pair in $bench_args; do
        case ${pair%%=*} in
            grants) grants=1 ;;
            iothreads | poll-max-us | log-level) daemon+=$pair$'\n' ;;
            *) device+=$pair$'\n' ;;
        esac
    done
    unset IFS
    viod_daemon_settings "$daemon"
    printf '[xvda]\n%s' "$device" >"/etc/viod/$bench_guest.conf"
    bench_guest_start \
        "disk=[\"phy:$bench_disk,xvda,w,backendtype=standalone,specification=virtio,grant_usage=$grants\"]"
    guest_device=/dev/vda
}

stop() { bench_guest_stop; }

pids() { viodctl --json show "$bench_guest" | jq .pid; }

counters() { viodctl --json show "$bench_guest"; }

# viod_daemon_settings LINES: starts viod anew if it does not run with these.
viod_daemon_settings() {
    local main=/etc/viod/viod.conf wanted
    [[ -e /etc/viod/viod.conf.installed ]] || cp "$main" /etc/viod/viod.conf.installed
    wanted=$(cat /etc/viod/viod.conf.installed && printf '%s' "$1")
    [[ $wanted != "$(<"$main")" ]] || return 0
    printf '%s\n' "$wanted" >"$main"
    kill "$(</run/viod-rig.pid)"
    wait_for 10 '! viodctl version >/dev/null 2>&1'
    setsid viod --config "$main" >>/var/log/viod.log 2>&1 </dev/null &
    echo $! >/run/viod-rig.pid
    wait_for 20 'viodctl version >/dev/null 2>&1'
}
