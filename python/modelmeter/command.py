"""One run of the modelmeter program: its progress, its answer, its errors, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Callable

from .error import ModelmeterError

_LAUNCH = Path(__file__).with_name("launch.py")
# The program stops its engines within seconds; after this long it is ended.
_STOP_S = 30.0
_LAST_LINES = 10


def run(program: str, arguments: Sequence[str], say: Callable[[str], None] | None = None) -> Any:
    """Runs the program with arguments that ask for JSON, and gives what it prints, decoded.

    say: takes each line of progress; by default it goes to standard error.

    Raises ModelmeterError for what the program refuses. KeyboardInterrupt stops the program cleanly first.
    """
    script = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), program, *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    assert process.stdout and process.stderr
    out: list[bytes] = []
    reading = threading.Thread(target=_drain, args=(process.stdout, out), daemon=True)
    reading.start()
    told = _Told(say or _to_stderr)
    try:
        told.read(process.stderr)
        process.wait()
    except BaseException:
        _stop(process, told)
        raise
    finally:
        reading.join(timeout=_STOP_S)
    return _answer(process.returncode, b"".join(out), told)


def _drain(stream: IO[bytes], into: list[bytes]) -> None:
    with stream:
        into.append(stream.read())


class _Told:
    """What came on standard error: progress is passed on, and the error is kept."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.error: dict[str, Any] | None = None
        self.last: deque[str] = deque(maxlen=_LAST_LINES)

    def read(self, stream: IO[bytes]) -> None:
        """Reads to the end, and closes the stream there; after an interruption it can go on."""
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            error = _error_in(line)
            if error is not None:
                self.error = error
                continue
            self.last.append(line)
            self.say(line)
        stream.close()


def _error_in(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"error":'):
        return None
    try:
        error = json.loads(line)["error"]
    except ValueError:
        return None
    return error if isinstance(error, dict) else None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(process: subprocess.Popen[bytes], told: _Told) -> None:
    """Asks the program to stop its engines and waits for it; a second interruption ends it at once."""
    try:
        process.send_signal(signal.SIGINT)
        # It says what it does meanwhile, and must not wait for a reader.
        reading = threading.Thread(target=told.read, args=(process.stderr,), daemon=True)
        reading.start()
        process.wait(_STOP_S)
        reading.join(timeout=1.0)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _answer(status: int, out: bytes, told: _Told) -> Any:
    if told.error is not None:
        raise ModelmeterError.from_document(told.error)
    if status == 130:
        raise ModelmeterError("cancelled", "the program modelmeter was interrupted")
    try:
        return json.loads(out)
    except ValueError:
        last = "; ".join(told.last)
        raise ModelmeterError("internal", f"modelmeter ended with status {status} and no answer: {last}") from None
