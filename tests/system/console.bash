# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154 # comes with common.bash
# What tests of consoles share: a terminal that a test types on, and the ports of a guest.

# terminal_open: a pty, $terminal; what is typed goes there by `type_keys`, what it shows is in $screen.
terminal=/tmp/terminal screen=/tmp/screen
terminal_open() {
    rm -f /tmp/keys "$screen"
    mkfifo /tmp/keys
    exec 7<>/tmp/keys
    : >"$screen"
    socat "PTY,link=$terminal,mode=600" 'OPEN:/tmp/keys,rdonly!!OPEN:/tmp/screen,append' &
    wait_for 60 "[[ -e $terminal ]]"
    sleep 100000 <>"$terminal" >/dev/null & # without anybody at it, socat would end
    stty -F "$terminal" rows 24 cols 80
    terminal_before=$(stty -F "$terminal" -g)
}
type_keys() { printf '%b' "$*" >&7; }
shows() { wait_for 120 "grep -qaE -- '$1' $screen" || { tail -c 600 "$screen"; return 1; }; }
# attach GUEST [PORT]: viodctl console on that terminal, with its process in $attached.
attach() {
    setsid --ctty viodctl console "$@" <"$terminal" >"$terminal" 2>&1 &
    attached=$!
    wait_for 60 "stty -F $terminal -a | grep -q -- -icanon"
}
terminal_is_back() { same "$(stty -F "$terminal" -g)" "$terminal_before"; }

# In a guest: `port NAME` is the path of the port of that name.
# shellcheck disable=SC2016
in_console_guest='port() { local p; for p in /sys/class/virtio-ports/*; do
    [[ $(<"$p/name") != "$1" ]] || { echo "/dev/${p##*/}"; return; }; done; echo "no port $1"; return 1; }
    '
# port_state GUEST PORT KEY
port_state() { viodctl --json show "$1" | jq -r ".devices[].ports // [] | .[] | select(.name == \"$2\") | .$3"; }
