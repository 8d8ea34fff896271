"""The child's side of proto/inspector.proto: frames on standard input and output."""

from __future__ import annotations

import copy
import itertools
import os
import struct
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Callable, Union

from . import wire
from .inspector import BaseModelInspector, GrpcRequest, Server, Tensor

OPEN, MAKE_REQUEST, INFER = 2, 3, 4
OPENED, REQUEST, INFERRED, FAILURE = 2, 3, 4, 5
MAX_THREADS = 256

Inspected = Union["type[BaseModelInspector]", BaseModelInspector]


def run(inspector: Inspected, **arguments: Any) -> None:
    """Serves modelmeter until it closes standard input.

    inspector: a class derived from BaseModelInspector; `arguments` and the batch size of the cell go to its constructor.
        Or an instance of one; then there are no arguments.
    What it prints goes to the log.
    """
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever else writes to standard output must not break the frames.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Child(maker(inspector, arguments), sys.stdin.buffer, replies).serve()
    # A call that never ends must not keep the program alive.
    os._exit(0)


def maker(inspector: Inspected, arguments: dict[str, Any]) -> Callable[[int], BaseModelInspector]:
    """What makes the inspector of a cell from its batch size: of an instance it is a copy."""
    if isinstance(inspector, type):
        return lambda batch_size: inspector(batch_size=batch_size, **arguments)
    if arguments:
        raise TypeError("an inspector that is there already takes no arguments")

    def copied(batch_size: int) -> BaseModelInspector:
        made = copy.copy(inspector)
        made.batch_size = batch_size
        made._requests = []
        return made

    return copied


class Child:
    """One conversation with modelmeter, with an inspector of its own."""

    def __init__(self, make: Callable[[int], BaseModelInspector], commands: IO[bytes], replies: IO[bytes]) -> None:
        self.make, self.commands, self.replies = make, commands, replies
        self.writing = threading.Lock()
        self.inspector: BaseModelInspector | None = None
        self.threads: ThreadPoolExecutor | None = None
        self.calls = itertools.count()

    def serve(self) -> None:
        """Answers until the commands end."""
        while True:
            prefix = self.commands.read(4)
            if len(prefix) < 4:
                break
            (size,) = struct.unpack(">I", prefix)
            command = self.commands.read(size)
            if len(command) < size:
                break
            self.handle(memoryview(command))

    def close(self) -> None:
        """Closes the replies: modelmeter sees the conversation end."""
        with self.writing:
            try:
                self.replies.close()
            except OSError:
                pass
        if self.threads:
            self.threads.shutdown(wait=False)

    def handle(self, command: memoryview) -> None:
        number, what, body = 0, 0, memoryview(b"")
        for field, _, value in wire.fields(command):
            if field == 1:
                number = value
            else:
                what, body = field, value
        hook = {OPEN: self.open, MAKE_REQUEST: self.make_request, INFER: self.infer}.get(what)
        if what == INFER and self.threads:
            self.threads.submit(self.answer, number, hook, body)
        else:
            self.answer(number, hook, body)

    def answer(self, number: int, hook: Callable[[memoryview], tuple[int, bytes]] | None, body: memoryview) -> None:
        try:
            if hook is None:
                raise ValueError("the command is of a newer version of modelmeter")
            field, payload = hook(body)
        except BaseException as error:  # whatever a hook raises, exits included, is for the user to read
            traceback.print_exc()
            field, payload = FAILURE, wire.string(1, f"{type(error).__name__}: {error}")
        reply = wire.varint(1 << 3) + wire.varint(number) + wire.delimited(field, payload)
        with self.writing:
            if self.replies.closed:
                return
            try:
                self.replies.write(struct.pack(">I", len(reply)) + reply)
                self.replies.flush()
            except BrokenPipeError:
                pass  # modelmeter has given this call up

    def open(self, body: memoryview) -> tuple[int, bytes]:
        texts: dict[int, str] = {}
        numbers: dict[int, int] = {}
        tensors: dict[int, list[Tensor]] = {4: [], 5: []}
        for field, kind, value in wire.fields(body):
            if field in tensors:
                found = wire.Tensor.decode(value)
                tensors[field].append(Tensor(found.name, found.datatype, found.shape))
            elif kind == wire.BYTES:
                texts[field] = wire.text(kind, value)
            else:
                numbers[field] = value
        inspector = self.make(numbers.get(6, 1))
        inspector.server = Server(
            texts.get(1, ""),
            texts.get(2, ""),
            texts.get(3, ""),
            tensors[4],
            tensors[5],
            numbers.get(7, 0),
            bool(numbers.get(8)),
        )
        if inspector.server.timed and inspector.asynchronous:
            self.threads = ThreadPoolExecutor(MAX_THREADS)
        self.inspector = inspector
        return OPENED, wire.boolean(1, inspector.repeat_data is None)

    def opened(self) -> BaseModelInspector:
        if self.inspector is None:
            raise ValueError("modelmeter has not said yet what is to be measured")
        return self.inspector

    def make_request(self, body: memoryview) -> tuple[int, bytes]:
        inspector = self.opened()
        contents = [value for field, _, value in wire.fields(body) if field == 1]
        names = [each.name for each in inspector.server.inputs]
        request = inspector.next_request(dict(zip(names, contents)))
        if inspector.server.timed:
            return REQUEST, b""
        method, message = GrpcRequest(*request)
        return REQUEST, wire.string(1, method) + wire.delimited(2, bytes(message))

    def infer(self, body: memoryview) -> tuple[int, bytes]:
        inspector = self.opened()
        responses = [value for field, _, value in wire.fields(body) if field == 1]
        if responses:
            inspector.infer(None, bytes(responses[0]))
        else:
            inspector.infer(inspector.request(next(self.calls)))
        return INFERRED, b""
