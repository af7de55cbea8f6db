#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""report.py DIR: makes bench.json, bench.md and bench.svg of what a run left in DIR."""
import json
import os
import sys

import chart
from results import (COUNTS, INSTRUCTIONS, KINDS, count, difference, disturbance, measurement, median,
                     ratio, read_text, spread, strace_counts, worker_counts)

# Others may use this part of the host's CPUs before a run counts as disturbed.
QUIET = 0.05
# Fewer I/Os than this in all rounds of a job: what starting it costs shows in the counts.
ENOUGH = 500


def collect(folder):
    setup = dict(line.split(" ", 1) for line in read_text(folder, "setup").splitlines() if " " in line)
    order = setup["backends"].split()
    data = {"format": 1, "setup": setup, "backends": order, "results": [], "extra": {},
            "broken": [line.split(" ", 2)[2] for line in read_text(folder, "progress").splitlines()
                       if " BROKEN " in line]}
    kind = KINDS[setup.get("kind", "block")]
    data["reference"] = kind["reference"] if kind["reference"] in order else order[0]
    data["disturbance"] = disturbance(folder)

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), kind["jobs"])) as f:
        jobs = [line.split()[:2] for line in f if line.strip() and not line.startswith("#")]
    raw = os.path.join(folder, "raw")
    noise = {}
    try:
        with open(os.path.join(folder, "instructions.bin"), "rb") as f:
            plugin = f.read(), int(setup["dom0_vcpus"])
    except OSError:
        plugin = ()
    for label in order:
        one = measurement(os.path.join(raw, label, "noise"), *plugin)
        if one:
            # Only what Xen and the plugin count: viod's counters see this guest's disk alone.
            noise[label] = {key: one["counts"].get(key, 0) for key in (
                "traps", "hypercalls", "events", "dm_ops", *(key for key, _, _ in INSTRUCTIONS))}
        extra = {}
        before, after = (worker_counts(read_text(raw, label, "idle", f"counters.{when}"))
                         for when in ("before", "after"))
        if before and after:
            extra["idle_10s"] = difference(before, after)
        one = measurement(os.path.join(raw, label, "strace"))
        calls = strace_counts(read_text(raw, label, "strace", "strace"))
        if one and calls:
            extra["strace"] = {"ios": one["ios"], "calls": calls,
                               "per_io": {name: calls[name] / one["ios"] for name in calls},
                               "own_count_per_io": one["counts"].get("syscalls", 0) / one["ios"]}
        data["extra"][label] = extra

    for vcpus, name in jobs:
        for label in order:
            base = os.path.join(raw, label, vcpus, name)
            if not os.path.isdir(base):
                continue
            rounds = {}
            for number in sorted(os.listdir(base), key=int):
                one = measurement(os.path.join(base, number), *plugin)
                if one:
                    rounds[number] = one
            if rounds:
                data["results"].append(summary(int(vcpus), name, label, rounds, noise.get(label, {})))
    add_ratios(data)
    return data


def summary(vcpus, name, label, rounds, noise):
    per_io = {}
    for one in rounds.values():
        for key, value in one["counts"].items():
            per_io.setdefault(key, []).append(max(0, value - noise.get(key, 0)) / one["ios"])
    result = {"vcpus": vcpus, "job": name, "backend": label,
              "iops": {number: one["iops"] for number, one in rounds.items()},
              "ios": {number: one["ios"] for number, one in rounds.items()},
              "per_io": {key: spread(values) for key, values in per_io.items()}}
    private = [one["rss_anon_kib"] for one in rounds.values() if "rss_anon_kib" in one]
    if private:
        result["rss_anon_kib"] = spread(private)
    batches, requests = (median(per_io[key]) if key in per_io else 0
                         for key in ("worker_batches", "worker_requests"))
    if batches:
        result["requests_per_batch"] = requests / batches
    return result


def add_ratios(data):
    """Each result's speed to the reference's: round by round, because a disturbance of the host lasts
    longer than the two measurements lie apart."""
    reference = {(r["vcpus"], r["job"]): r["iops"] for r in data["results"]
                 if r["backend"] == data["reference"]}
    for r in data["results"]:
        other = reference.get((r["vcpus"], r["job"]), {})
        if r["backend"] == data["reference"]:
            middle = median(list(other.values()))
            ratios = [value / middle for value in other.values()]
        else:
            ratios = [value / other[number] for number, value in r["iops"].items() if number in other]
        if ratios:
            r["ratio"] = spread(ratios)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def words_of(data):
    return KINDS[data["setup"].get("kind", "block")]


def warnings(data):
    result = []
    words = words_of(data)
    host_cpus = int(data["setup"].get("host_cpus", 1))
    foreign = [block["foreign_cpus"] for block in data["disturbance"]]
    waiting = [block["waiting_cpus"] for block in data["disturbance"]]
    limit = QUIET * host_cpus
    if foreign and max(foreign) > limit:
        bad = sum(value > limit for value in foreign)
        result.append(f"**Warning: this machine was not quiet.** Others used {median(foreign):.2f} of its "
                      f"{host_cpus} CPUs (at worst {max(foreign):.2f}) in {bad} of {len(foreign)} blocks, and "
                      f"the emulator waited for {median(waiting):.2f} CPUs. Do not believe the speeds.")
    few = [f"{r['job']} ({r['backend']}: {sum(r['ios'].values())})" for r in data["results"]
           if sum(r["ios"].values()) < ENOUGH]
    if few:
        result.append("**Warning:** too few I/Os for exact counts: " + ", ".join(few) + ".")
    for line in data["broken"]:
        result.append(f"**Warning:** {line}")
    return result


def markdown(data):
    setup, reference, words = data["setup"], data["reference"], words_of(data)
    sizes = sorted({r["vcpus"] for r in data["results"]})
    by_key = {(r["vcpus"], r["job"], r["backend"]): r for r in data["results"]}
    jobs = list(dict.fromkeys((r["vcpus"], r["job"]) for r in data["results"]))
    text = [f"# Benchmark: {words['title']}", ""]
    for line in warnings(data):
        text += [line, ""]
    text += [
        f"viod {setup.get('revision', '')}, Xen {setup.get('xen', '')}, Linux {setup.get('kernel', '')} in dom0 "
        f"and guest; emulated by QEMU (TCG) with {setup['cpus']} CPUs.",
        f"dom0 has {setup['dom0_vcpus']} vCPU(s), pinned to the first CPU(s); all vCPUs of the guest run on "
        f"CPU {setup['guest_cpus']} (`{setup.get('xen_commandline', '')}`).",
        (f"Disk: {setup['disk']}" if "disk" in setup else f"Network: {setup.get('network', '?')}") +
        f", the same for all back ends, which take turns: {setup['rounds']} rounds of "
        f"{setup['runtime']} s for each job, each with a new guest, in one boot.",
        f"{words['reference']} as shipped: " + setup.get(words["reference"] + "_max_queues", "?") +
        " queue(s), the number of dom0's vCPUs; viod has one for each vCPU of the guest.",
        "",
        "Only ratios mean something: an emulator's absolute times do not, so there are none here.",
        "",
        f"## Speed, {reference} = 1",
        "",
        f"Median of the rounds (lowest–highest) of {words['speed']}, each divided by {reference}'s in the same "
        f"round; for {reference} itself, by its median.",
        "",
        "![chart](bench.svg)",
        "",
    ]
    rows = []
    for vcpus, job in jobs:
        row = [str(vcpus), job]
        for label in data["backends"]:
            r = by_key.get((vcpus, job, label))
            row.append("–" if not r or "ratio" not in r else
                       f"{ratio(r['ratio']['median'])} ({ratio(r['ratio']['min'])}–{ratio(r['ratio']['max'])})")
        rows.append(row)
    text += [table(["vCPUs", "job", *data["backends"]], rows), ""]

    text += [f"## Counts per {words['unit']}", "", f"Medians; {words['unit_is']}", ""]
    text += [f"- {name}: {meaning}" for _, name, meaning in COUNTS]
    for size in sizes:
        rows = []
        for vcpus, job in jobs:
            if vcpus != size:
                continue
            for label in data["backends"]:
                r = by_key.get((vcpus, job, label))
                if r:
                    values = [r["per_io"].get(key, {}).get("median") for key, _, _ in COUNTS]
                    rows.append([job, label, *map(count, values), count(r.get("requests_per_batch"))])
        text += ["", f"Guest with {size} vCPU(s):", "",
                 table(["job", "back end", *(name for _, name, _ in COUNTS), "requests per batch"], rows)]

    rows = []
    for vcpus, job in jobs:
        for label in data["backends"]:
            r = by_key.get((vcpus, job, label))
            if r and INSTRUCTIONS[0][0] in r["per_io"]:
                values = [r["per_io"][key]["median"] for key, _, _ in INSTRUCTIONS]
                rows.append([str(vcpus), job, label, *(f"{value:.0f}" for value in values), f"{sum(values):.0f}"])
    if rows:
        text += ["", f"## Instructions per {words['unit']}", "",
                 "Medians, without what starting a job costs. A CPU that polls or waits in a loop executes "
                 "instructions too. On dom0's CPUs the programs are viod (where it serves)" +
                 (" and the other end" if words["program"] != "fio" else "") +
                 f", on the guest's {words['program']}.",
                 "", table(["vCPUs", "job", "back end", *(
                     f"{'programs' if kind == 'program' else 'kernel' if kind == 'kernel' else 'Xen'}, "
                     f"{'dom0' if side == 'dom0' else 'guest'}" for _, kind, side in INSTRUCTIONS), "all"], rows)]

    rows = []
    for label in data["backends"]:
        private = [r["rss_anon_kib"]["max"] for r in data["results"]
                   if r["backend"] == label and "rss_anon_kib" in r]
        extra = data["extra"].get(label, {})
        if not private and not extra:
            continue
        strace, idle = extra.get("strace"), extra.get("idle_10s")
        rows.append([label, f"{max(private)} KiB" if private else "–",
                     str(idle["sleeps"]) if idle else "–",
                     f"{sum(strace['per_io'].values()):.1f}: " + ", ".join(
                         f"{name} {value:.2f}" for name, value in
                         sorted(strace["per_io"].items(), key=lambda item: -item[1]) if value >= 0.01)
                     if strace else "–",
                     f"{strace['own_count_per_io']:.2f}" if strace else "–"])
    if rows:
        first = data["results"][0]["job"]
        text += ["", "## The worker", "", table(
            ["back end", "private memory (RssAnon)", "wake-ups in 10 s idle",
             f"system calls per {words['unit']} under strace ({first})", "by its own count, meanwhile"], rows)]
    return "\n".join(text) + "\n"


def main():
    folder = sys.argv[1]
    data = collect(folder)
    if not data["results"]:
        raise SystemExit(f"{folder}: no measurement succeeded")
    with open(os.path.join(folder, "bench.json"), "w") as f:
        json.dump(data, f, indent=1)
        f.write("\n")
    with open(os.path.join(folder, "bench.md"), "w") as f:
        f.write(markdown(data))
    with open(os.path.join(folder, "bench.svg"), "w") as f:
        f.write(chart.svg(data))


if __name__ == "__main__":
    main()
