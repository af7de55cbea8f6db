#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""hostload.py PID FILE: notes once a second how many CPUs others than PID's descendants use.

Each line of FILE: the time, CPUs used by others (including what a hypervisor steals), CPUs used by
PID and its descendants, and the share of time that their threads wait for a CPU, in CPUs.
"""
import os
import sys
import time


def host_busy():
    with open("/proc/stat") as f:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, f.readline().split()[1:9])
    return user + nice + system + irq + softirq + steal


def processes():
    """(pid, parent, ticks) of all processes."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as f:
                fields = f.read().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(name), int(fields[1]), sum(map(int, fields[11:13]))


def descendants(root):
    everyone = {pid: (parent, ticks) for pid, parent, ticks in processes()}
    result = {}
    for pid, (_, ticks) in everyone.items():
        ancestor = pid
        while ancestor in everyone and ancestor != root:
            ancestor = everyone[ancestor][0]
        if ancestor == root:
            result[pid] = ticks
    return result


def waited(pids):
    """Nanoseconds that threads of pids were ready to run and did not."""
    result = {}
    for pid in pids:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/schedstat") as f:
                    result[thread] = int(f.read().split()[1])
        except (OSError, IndexError):
            continue
    return result


def growth(before, after):
    return sum(max(0, value - before.get(key, 0)) for key, value in after.items())


def main():
    root, path = int(sys.argv[1]), sys.argv[2]
    tick = os.sysconf("SC_CLK_TCK")
    before = None
    with open(path, "w") as out:
        while True:
            ours = descendants(root)
            now = (time.time(), host_busy(), ours, waited(ours))
            if before:
                seconds = now[0] - before[0]
                own = growth(before[2], now[2]) / tick / seconds
                busy = (now[1] - before[1]) / tick / seconds
                wait = growth(before[3], now[3]) / 1e9 / seconds
                print(f"{now[0]:.1f} {max(0, busy - own):.3f} {own:.3f} {wait:.3f}", file=out, flush=True)
            before = now
            time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
