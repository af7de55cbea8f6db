#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""profile.py PROFILE CPU [MAP…]: the functions in which CPU spent most instructions, of a file that
the plugin wrote with profile=. A MAP is a System.map or the output of nm; OFFSET:MAP moves it."""
import bisect
import sys


def main():
    symbols = []
    for name in sys.argv[3:]:
        offset, _, path = name.rpartition(":")
        offset = int(offset or "0", 0)
        with open(path) as f:
            for line in f:
                words = line.split()
                if len(words) >= 3 and words[1] in "tTwW":
                    symbols.append((int(words[0], 16) + offset, words[2]))
    symbols.sort()
    starts = [start for start, _ in symbols]
    cpu = int(sys.argv[2])
    total, by_name = 0, {}
    with open(sys.argv[1]) as f:
        for line in f:
            words = line.split()
            address, n = int(words[0], 16), int(words[1 + cpu])
            at = bisect.bisect_right(starts, address) - 1
            name = symbols[at][1] if at >= 0 and address - starts[at] < 0x4000 else f"{address >> 12:x}000"
            by_name[name] = by_name.get(name, 0) + n
            total += n
    for name, n in sorted(by_name.items(), key=lambda item: -item[1])[:60]:
        print(f"{100 * n / total:6.2f} % {n:12d} {name}")


if __name__ == "__main__":
    main()
