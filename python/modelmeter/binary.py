"""Where the modelmeter program is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .error import ModelmeterError

VARIABLE = "MODELMETER_BINARY"
# A wheel that was built with MODELMETER_BUNDLE has it here.
BUNDLED = Path(__file__).with_name("bin") / "modelmeter"


def find(given: str | os.PathLike[str] | None = None) -> str:
    """The path of the program: the one given, else the variable MODELMETER_BINARY, the wheel's own, or the one on PATH.

    Raises ModelmeterError where there is none.
    """
    for named, what in ((given, "binary"), (os.environ.get(VARIABLE), VARIABLE)):
        if named:
            path = Path(named).expanduser().resolve()
            if not (path.is_file() and os.access(path, os.X_OK)):
                raise ModelmeterError("not_installed", f"{path} is no program that can be run", field=what)
            return str(path)
    if BUNDLED.is_file():
        return str(BUNDLED)
    on_path = shutil.which("modelmeter")
    if on_path:
        return on_path
    hint = (
        "install a wheel that carries it (MODELMETER_BUNDLE=target/release/modelmeter pip install ./python), "
        f"put it on PATH (cargo install --path cli), or set {VARIABLE} to its path"
    )
    raise ModelmeterError("not_installed", "the program modelmeter was not found", hint=hint)
