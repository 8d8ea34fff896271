#!/usr/bin/env python3
"""modelmeter beside perf_analyzer 2.41.1: the two in turn against the same servers, medians and ratios.

bench/speed.py [--repeats N] [ROW...] fetches perf_analyzer (pip and apt-get download, into .deps/bench), builds, and
measures; alone on the machine it takes about 25 minutes. What it printed last is in bench/speed.txt.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent / "speed"))

import rows  # noqa: E402
import setup  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-build", action="store_true", help="the binaries are there and up to date")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(rows.ROWS))
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in rows.ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]}: {', '.join(rows.ROWS)}")
    setup.perf_analyzer()
    if not args.no_build:
        setup.build()
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {args.repeats} repeats of each")
    for row in args.rows or rows.ROWS:
        print()
        sys.stdout.flush()
        rows.ROWS[row](args.repeats)


if __name__ == "__main__":
    main()
