"""Runs a program that must not outlive the Python that started it: `launch.py PARENT PROGRAM ARGUMENTS…`.

A file of its own without imports of the package: it is run as a script. Linux only, as modelmeter is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2]
    # A group of its own: Ctrl-C in a terminal reaches Python alone, which passes it on once.
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(130)
    os.execv(program, sys.argv[2:])


main()
