"""What the tests share: the package in this checkout, the real program, and homes of their own."""

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "python"
DEADLINE_S = 60

if str(PACKAGE) not in sys.path:
    sys.path.insert(0, str(PACKAGE))


def binary():
    """The program that was built: MODELMETER_BINARY, or the one in target/release."""
    path = Path(os.environ.get("MODELMETER_BINARY") or CHECKOUT / "target/release/modelmeter")
    assert path.is_file(), f"{path} is missing: build it first (cargo build --release), or run scripts/test"
    return str(path)


def wheels():
    """The folder that scripts/setup puts wheels into."""
    folder = Path(os.environ.get("MODELMETER_TEST_PACKAGE") or CHECKOUT / ".deps/package") / "wheels"
    assert folder.is_dir(), f"{folder} is missing: scripts/setup makes it"
    return str(folder)


def environment(home):
    """This process's, with a home, locks and ports of its own, and nothing of the user's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELMETER_")}
    own = {
        "MODELMETER_HOME": home,
        "MODELMETER_WORKER_LOCK_DIR": os.path.join(home, "locks"),
        "MODELMETER_WORKER_PORTS": "auto",
    }
    return {**kept, **own}


@contextmanager
def own_home():
    """A temporary home in the environment of this process, in which the program is found; also the current folder."""
    before, folder = dict(os.environ), os.getcwd()
    with tempfile.TemporaryDirectory() as home:
        changed = {**environment(home), "MODELMETER_BINARY": binary()}
        os.environ.clear()
        os.environ.update(changed)
        os.chdir(home)
        try:
            yield Path(home)
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)


def eventually(what, holds):
    """Waits until it holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
