"""What modelmeter runs in place of an inspector that lives in another Python: `relay.py SOCKET`.

It hands its standard input and output over to that Python, which answers modelmeter by them directly, and ends when that
Python is done. A file of its own without imports of the package: it is run as a script.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as parent:
        try:
            parent.connect(sys.argv[1])
            socket.send_fds(parent, [b"\0"], [0, 1])
        except OSError as error:
            sys.exit(f"the Python that has the inspector is gone: {error}")
        # From here on only that Python has the streams: modelmeter sees them end when it closes them.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        parent.recv(1)


main()
