"""Where modelmeter keeps its files."""

from __future__ import annotations

import os


def home_of(named: str | os.PathLike[str] | None = None) -> str:
    """The folder of cache and hub: the one named, else MODELMETER_HOME, else the one in the user's data directory."""
    if named:
        return os.fspath(named)
    if os.environ.get("MODELMETER_HOME"):
        return os.environ["MODELMETER_HOME"]
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "modelmeter")
