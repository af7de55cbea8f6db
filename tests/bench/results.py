# SPDX-License-Identifier: Apache-2.0
"""Reads what a run of the benchmark left, and the bench.json made of it."""
import json
import os
import re
import statistics
import struct

# Counts per I/O that the tables show. For `traps` see xen_counts().
COUNTS = [
    ("traps", "traps", "accesses of the guest to device registers, each of them a stop of its vCPU"),
    ("interrupts", "guest interrupts", "device interrupts that the guest took"),
    ("hypercalls", "hypercalls", "of guest and dom0 together"),
    ("events", "event channel calls", "the part of them for event channels"),
    ("dm_ops", "dm_op calls", "the part that raises interrupts of virtio devices"),
    ("mappings", "mapping calls", "of viod, for the guest's memory"),
    ("grant_maps", "grant mappings", "calls of viod that map what the guest grants, or give it back"),
    ("grant_copies", "grant copies", "calls of viod that copy it"),
    ("kicks", "kicks", "QueueNotify writes"),
    ("sleeps", "sleeps", "how often a thread of the worker went to sleep"),
    ("syscalls", "system calls", "of the worker, by its own count"),
]


# What runs differ in, by kind of device: the reference back end, and words. A unit is what counts are
# divided by, speed is in units per second.
STREAM_UNIT = 64 << 10
KINDS = {
    "block": {
        "title": "block devices", "reference": "blkback", "jobs": "jobs", "unit": "I/O",
        "units": "I/Os", "speed": "I/Os per second", "program": "fio",
        "unit_is": "an I/O is what fio asks for (a write with its fdatasync is one).",
    },
    "net": {
        "title": "network devices", "reference": "netback", "jobs": "jobs.net", "unit": "unit",
        "units": "units", "speed": "what arrived per second", "program": "iperf3 or net-rr",
        "unit_is": "a unit is 64 KiB of a TCP stream, a UDP packet that arrived, or a request with its "
                   "response; `out` is from the guest to dom0.",
    },
}


# Instructions per I/O, as the plugin in instructions/ counts them: who, where.
INSTRUCTIONS = [(f"{kind}_{side}", kind, side) for side in ("dom0", "guest")
                for kind in ("program", "kernel", "xen")]
PLUGIN_CPUS, PLUGIN_KINDS = 8, ("xen", "kernel", "program")


def read_text(*path):
    try:
        with open(os.path.join(*path), errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def read_json(text):
    """The first JSON object in text, which may have other things around it."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except ValueError:
        return None


def xen_counts(text):
    """What xenperf -p printed: totals by name."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"(.+?)\s+T=\s*(\d+)", line) or re.match(r"(\w+)\s+(\d+)\s*$", line)
        if match:
            found[match.group(1)] = int(match.group(2))
    if not found:
        return {}
    # Data aborts that Xen handles itself are accesses to its interrupt controller; all others go to
    # whoever serves a device.
    own = sum(found.get(f"vgic{part}: {access}", 0) for part in "dr" for access in ("read", "write"))
    return {
        "traps": found.get("trap: guest data abort", 0) - own,
        "hypercalls": found.get("hypercalls", 0),
        "events": found.get("event_channel_op", 0),
        "dm_ops": found.get("dm_op", 0),
        "memory_ops": found.get("memory_op", 0),
        "grant_ops": found.get("grant_table_op", 0),
    }


def worker_counts(text):
    """What viod tells of its worker, in the names used here."""
    guest = read_json(text)
    if guest is None:
        return {}
    names = {"map_calls": "mappings", "notifies": "kicks", "sleeps": "sleeps", "syscalls": "syscalls",
             "turns": "turns", "poll_hits": "poll_hits", "poll_misses": "poll_misses"}
    counts = {mine: guest[its] for its, mine in names.items() if its in guest}
    if guest.get("grant_copies"):
        counts["grant_maps"] = guest["grant_maps"] + guest["grant_unmaps"]
        counts["grant_copies"] = guest["grant_copies"]
    if "mmio_reads" in guest:
        counts["worker_traps"] = guest["mmio_reads"] + guest["mmio_writes"]
    for key in ("requests", "batches", "interrupts", "errors"):
        if any(key in device for device in guest.get("devices", [])):
            counts["worker_" + key] = sum(device.get(key, 0) for device in guest["devices"])
    return counts


def instruction_counts(folder, when, records, dom0_cpus):
    """What the plugin had counted at a mark, by kind and by whose CPU it was."""
    number = read_text(folder, f"mark.{when}")
    size = PLUGIN_CPUS * len(PLUGIN_KINDS)
    if not number or len(records) < (int(number) + 1) * size * 8:
        return {}
    values = struct.unpack_from(f"={size}Q", records, int(number) * size * 8)
    counts = dict.fromkeys((key for key, _, _ in INSTRUCTIONS), 0)
    for cpu in range(PLUGIN_CPUS):
        for i, kind in enumerate(PLUGIN_KINDS):
            side = "dom0" if cpu < dom0_cpus else "guest"
            counts[f"{kind}_{side}"] += values[cpu * len(PLUGIN_KINDS) + i]
    return counts


def difference(before, after):
    return {key: after[key] - before[key] for key in after if key in before}


def speed(sections):
    """What the program in the guest measured: units, and units per second; None if it failed."""
    if fio := read_json(sections.get("fio", "")):
        job = fio["jobs"][0]
        if job.get("error"):
            return None
        return (job["read"]["total_ios"] + job["write"]["total_ios"],
                job["read"]["iops"] + job["write"]["iops"])
    if rr := read_json(sections.get("rr", "")):
        return rr["transactions"], rr["transactions"] / rr["seconds"]
    iperf = read_json(sections.get("iperf3", ""))
    if not iperf or iperf.get("error"):
        return None
    end = iperf["end"]
    if "packets" in end["sum_received"]:
        units = end["sum"]["packets"] - end["sum"]["lost_packets"]
        return units, units / end["sum"]["seconds"]
    units = end["sum_received"]["bytes"] / STREAM_UNIT
    return units, units / end["sum_received"]["seconds"]


def measurement(folder, records=b"", dom0_cpus=1):
    """One measurement: {"iops", "ios", "per_io": {…}, …}, or None if it failed."""
    sections = dict(re.findall(r"^==> (\S+) <==\n(.*?)(?=^==> |\Z)", read_text(folder, "guest"), re.M | re.S))
    units = speed(sections)
    if not units or units[0] <= 0:
        return None
    result = {"iops": units[1], "ios": round(units[0])}

    counts = difference(xen_counts(read_text(folder, "xenperf.before")),
                        xen_counts(read_text(folder, "xenperf.after")))
    counts.update(difference(worker_counts(read_text(folder, "counters.before")),
                             worker_counts(read_text(folder, "counters.after"))))
    counts["interrupts"] = interrupts(sections.get("irq.after", "")) - interrupts(
        sections.get("irq.before", ""))
    counts.update(difference(*(instruction_counts(folder, when, records, dom0_cpus)
                               for when in ("before", "after"))))
    result["counts"] = counts
    private = re.search(r"^RssAnon:\s+(\d+) kB", read_text(folder, "status"), re.M)
    if private:
        result["rss_anon_kib"] = int(private.group(1))
    return result


def interrupts(text):
    """The sum over CPUs of all lines of /proc/interrupts in text."""
    total = 0
    for line in text.splitlines():
        for word in line.split()[1:]:
            if not word.isdigit():
                break
            total += int(word)
    return total


def strace_counts(text):
    """What strace -c printed: calls by name."""
    calls = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 5 and re.fullmatch(r"[\d.]+", words[0]) and words[3].isdigit() and words[-1] != "total":
            calls[words[-1]] = int(words[3])
    return calls


def median(values):
    return statistics.median(values)


def spread(values):
    return {"median": median(values), "min": min(values), "max": max(values)}


def disturbance(folder):
    """By round and back end: CPUs of the host that others used meanwhile; and the mean of it all."""
    samples = [tuple(map(float, line.split())) for line in read_text(folder, "load").splitlines()
               if len(line.split()) == 4]
    begin, blocks = {}, []
    for line in read_text(folder, "progress").splitlines():
        words = line.split()
        if len(words) == 5 and words[1] in ("BEGIN", "END"):
            if words[1] == "BEGIN":
                begin[tuple(words[2:])] = float(words[0])
            elif tuple(words[2:]) in begin:
                blocks.append((words[2:], begin[tuple(words[2:])], float(words[0])))
    result = []
    for (number, vcpus, label), start, end in blocks:
        inside = [sample for sample in samples if start <= sample[0] <= end]
        if inside:
            result.append({"round": number, "vcpus": int(vcpus), "backend": label,
                           "foreign_cpus": round(sum(s[1] for s in inside) / len(inside), 3),
                           "waiting_cpus": round(sum(s[3] for s in inside) / len(inside), 3)})
    return result


def load(path):
    with open(path) as f:
        data = json.load(f)
    if data.get("format") != 1:
        raise SystemExit(f"{path}: not a bench.json of this version")
    return data


def ratio(value):
    """A ratio as people read it."""
    return f"{value:.2f}" if value < 9.95 else f"{value:.1f}"


def count(value):
    if value is None:
        return "–"
    if value < 0.0005:
        return "0"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 9.95 else f"{value:.1f}"
