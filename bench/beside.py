#!/usr/bin/env python3
"""Two builds of modelmeter in turn: closed loops on the null server, cells a second over a cluster, embedded cells.

bench/beside.py BEFORE [--repeats N] [ROW...] takes the binary of an earlier build and compares it with target/release.
Alone on the machine it takes about ten minutes. What it printed last is in bench/beside.txt.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent / "speed"))

import setup  # noqa: E402
import tools  # noqa: E402
from rows import line  # noqa: E402
from tools import Responder, modelmeter, sums  # noqa: E402

NOW = setup.ROOT / "target" / "release" / "modelmeter"


def closed(before, repeats, in_flight):
    """Client CPU a call by the kernel's clock, and the median latency that each says."""
    print(f"closed loop, {in_flight} in flight, null server")
    runs, floor = {"before": [], "now": []}, []
    load = ["--concurrency", in_flight, "--min-duration", "3s", "--max-duration", "3s"]
    for _ in range(repeats):
        with Responder("null") as responder:
            for name, binary in (("before", before), ("now", NOW)):
                run = modelmeter(responder, *load, binary=binary)
                p50 = run.points[0]["latency_ms"]["p50"]["value"] * 1e3
                runs[name].append(sums(run.steady()) | {"p50": p50})
            floor.append(tools.floor(responder, in_flight, 2))
    cpu = {name: line(f"{name}, µs of client CPU a call", [r["cpu_us"] for r in of], digits=2)
           for name, of in runs.items()}
    for name, of in runs.items():
        line(f"{name}, calls/s at the server", [r["rate"] for r in of], digits=0)
        line(f"{name}, p50", [r["p50"] for r in of], " µs")
    bare = line("a bare loop on one socket, µs of client CPU", [f["cpu_us"] for f in floor], digits=2)
    paired = median(now["cpu_us"] / then["cpu_us"] for then, now in zip(runs["before"], runs["now"]))
    print(f"  client CPU: {paired:.3f} × before, {cpu['now'] / bare:.2f} × the bare loop")


def example(before, repeats, name, *args, pattern, unit):
    """One figure that an example of the tests prints, with the binary of each build."""
    print(f"{name} {' '.join(args)}")
    seen = {"before": [], "now": []}
    for _ in range(repeats):
        for build, binary in (("before", before), ("now", NOW)):
            env = dict(os.environ, MODELMETER_TEST_BINARY=str(binary))
            out = subprocess.run([tools.EXAMPLES / name, *args, "1"], check=True, capture_output=True, text=True, env=env)
            seen[build].append(float(re.search(pattern, out.stdout)[1]))
    for build, values in seen.items():
        line(build, values, f" {unit}")
    paired = median(now / then for then, now in zip(seen["before"], seen["now"]))
    print(f"  {paired:.3f} × before")


ROWS = {
    "closed_1": lambda before, repeats: closed(before, repeats, 1),
    "closed_32": lambda before, repeats: closed(before, repeats, 32),
    "embedded": lambda before, repeats: example(
        before, repeats, "bench-embedded", "64", pattern=r"stop; ([\d.]+) ms a cell", unit="ms a cell"),
    "cells": lambda before, repeats: example(
        before, repeats, "bench-cells", "1000", pattern=r"median ([\d.]+) cells/s", unit="cells/s"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the binary of the earlier build")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]}: {', '.join(ROWS)}")
    before = args.before.resolve(strict=True)
    for row in args.rows or ROWS:
        print()
        sys.stdout.flush()
        ROWS[row](before, args.repeats)


if __name__ == "__main__":
    main()
