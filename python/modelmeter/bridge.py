"""An inspector that stays in this Python while modelmeter, another process, asks it.

modelmeter can only run programs as inspectors. It runs `relay.py`, which passes its standard streams on to the socket that
is listened to here; each cell has a connection, a thread and an inspector of its own. So a class may be defined in a
notebook, and an instance may hold what could not be sent to another process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from .child import Child, Inspected, maker
from .error import invalid
from .place import home_of

_RELAY = Path(__file__).with_name("relay.py")
_MAX_NAME = 64


class Bridge:
    """Listens for modelmeter, as a context; `config` is the configuration file that names the inspector `name`."""

    def __init__(
        self,
        inspector: Inspected,
        timed_in: str,
        config: str | os.PathLike[str] | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        if timed_in not in ("modelmeter", "child"):
            raise invalid("timed_in", f"'{timed_in}' cannot time", "use 'modelmeter', or 'child' where infer() makes the call")
        kind = inspector if isinstance(inspector, type) else type(inspector)
        self.make = maker(inspector, {})
        self.name = re.sub(r"[^A-Za-z0-9._-]", "-", kind.__name__)[:_MAX_NAME]
        base, text = _configuration(config, home_of(home))
        if re.search(rf"""^\s*\[\s*inspectors\s*\.\s*["']?{re.escape(self.name)}["']?\s*\]""", text, re.MULTILINE):
            hint = f"rename the class, or use the configured one: inspector={self.name!r}"
            raise invalid("inspector", f"{base} has another inspector '{self.name}'", hint)
        self.folder = tempfile.mkdtemp(prefix="modelmeter-")
        path = os.path.join(self.folder, "socket")
        self.config = os.path.join(self.folder, "modelmeter.toml")
        command = [sys.executable, "-I", "-S", str(_RELAY), path]
        section = f"[inspectors.{self.name}]\ncommand = {_toml(command)}\ntimed_in = {_toml(timed_in)}\n"
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(f"{text}\n{section}")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()

    def __enter__(self) -> Bridge:
        threading.Thread(target=self._accept, name="modelmeter-inspector", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A thread that waits in accept() is not woken by close() alone.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="modelmeter-inspector", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                _, fds, _, _ = socket.recv_fds(connection, 1, 2)
            except OSError:
                return
            if len(fds) != 2:
                for fd in fds:
                    os.close(fd)
                return
            for fd in fds:
                os.set_inheritable(fd, False)
            with os.fdopen(fds[0], "rb") as commands:
                child = Child(self.make, commands, os.fdopen(fds[1], "wb"))
                # modelmeter ends the relay where a hook takes too long, and must see the replies end with it.
                threading.Thread(target=_close_with, args=(connection, child), daemon=True).start()
                try:
                    child.serve()
                finally:
                    child.close()


def _close_with(connection: socket.socket, child: Child) -> None:
    """Closes the replies when the other end of the connection is gone."""
    try:
        connection.recv(1)
    except OSError:
        pass
    child.close()


def _configuration(named: str | os.PathLike[str] | None, home: str) -> tuple[str, str]:
    """The configuration file that modelmeter would read, and its text: nothing where there is none."""
    given = os.fspath(named) if named else os.environ.get("MODELMETER_CONFIG")
    for path in [given] if given else ["modelmeter.toml", os.path.join(home, "modelmeter.toml")]:
        try:
            with open(path, encoding="utf-8") as file:
                return path, file.read()
        except (FileNotFoundError, NotADirectoryError) as error:
            if given:
                raise invalid("config", f"cannot read {path}: {error.strerror}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise invalid("config", f"cannot read {path}: {error}") from None
    return "", ""


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)
