# SPDX-License-Identifier: Apache-2.0
"""The chart: a group of bars for each job, one bar for each back end but the reference, whose 1 is a line."""
from xml.sax.saxutils import escape

from results import KINDS, ratio

# Told apart by people with any colour vision (Okabe and Ito).
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]
ROW, GAP, LEFT, RIGHT, WIDTH = 15, 14, 190, 120, 860


def svg(data):
    reference = data["reference"]
    speed = KINDS[data["setup"].get("kind", "block")]["speed"]
    labels = [label for label in data["backends"] if label != reference] or [reference]
    results = {(r["vcpus"], r["job"], r["backend"]): r["ratio"] for r in data["results"] if "ratio" in r}
    jobs = list(dict.fromkeys(key[:2] for key in results))
    top = 64 + 18 * ((len(labels) + 2) // 3)
    plot = WIDTH - LEFT - RIGHT
    height = top + len(jobs) * (len(labels) * ROW + GAP) + 46
    highest = max([1.1] + [value["max"] for value in results.values()]) * 1.02

    def x(value):
        return LEFT + plot * value / highest

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
           f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
           f'<text x="16" y="24" font-size="15" font-weight="bold">{speed[0].upper() + speed[1:]}, {escape(reference)} = 1</text>',
           f'<text x="16" y="42" fill="#555">median of {escape(data["setup"]["rounds"])} rounds; the thin line is '
           f'lowest to highest; grey: {escape(reference)}’s own spread</text>']
    for i, label in enumerate(labels):
        left, line = 16 + 260 * (i % 3), 52 + 18 * (i // 3)
        out.append(f'<rect x="{left}" y="{line}" width="11" height="11" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   f'<text x="{left + 17}" y="{line + 10}">{escape(label)}</text>')

    bottom = height - 34
    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if highest / s <= 9)
    for i in range(int(highest / step) + 1):
        value = i * step
        out.append(f'<line x1="{x(value):.1f}" y1="{top}" x2="{x(value):.1f}" y2="{bottom}" stroke="#ddd"/>'
                   f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{value:g}</text>')
    y = top + GAP / 2
    for vcpus, job in jobs:
        tall = len(labels) * ROW
        name = f"{job}, {vcpus} vCPU{'s' if vcpus > 1 else ''}"
        out.append(f'<text x="{LEFT - 8}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        own = results.get((vcpus, job, reference))
        if own:
            out.append(f'<rect x="{x(own["min"]):.1f}" y="{y - 3}" width="{x(own["max"]) - x(own["min"]):.1f}" '
                       f'height="{tall + 6}" fill="#bbb" fill-opacity="0.5"/>')
        for i, label in enumerate(labels):
            value = results.get((vcpus, job, label))
            if not value:
                continue
            line, middle = y + i * ROW, y + i * ROW + ROW / 2
            out.append(f'<rect x="{LEFT}" y="{line + 1:.1f}" width="{x(value["median"]) - LEFT:.1f}" '
                       f'height="{ROW - 2}" fill="{COLOURS[i % len(COLOURS)]}"/>')
            out.append(f'<path d="M{x(value["min"]):.1f} {middle:.1f}H{x(value["max"]):.1f}'
                       f'M{x(value["min"]):.1f} {middle - 4:.1f}v8M{x(value["max"]):.1f} {middle - 4:.1f}v8" '
                       f'stroke="#222" stroke-width="1.2"/>')
            out.append(f'<text x="{x(max(value["median"], value["max"])) + 6:.1f}" y="{middle + 4:.1f}">'
                       f'{ratio(value["median"])}</text>')
        y += tall + GAP
    out.append(f'<line x1="{x(1):.1f}" y1="{top}" x2="{x(1):.1f}" y2="{bottom}" stroke="#222" stroke-dasharray="5 3"/>')
    out.append(f'<text x="{x(1):.1f}" y="{bottom + 30}" text-anchor="middle" font-weight="bold">'
               f'{escape(reference)}</text></svg>\n')
    return "\n".join(out)
