"""`python -m modelmeter …`, and the command `modelmeter` of a wheel that carries the program: runs that program."""

from __future__ import annotations

import os
import sys

from . import binary
from .error import ModelmeterError


def main() -> None:
    """Replaces this process by the program, with the same arguments."""
    try:
        program = binary.find()
    except ModelmeterError as error:
        sys.exit(f"error: {error}")
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
