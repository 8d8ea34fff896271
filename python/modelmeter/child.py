"""The child's side of proto/inspector.proto: frames on standard input and output."""

import itertools
import os
import struct
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

from . import wire
from .inspector import GrpcRequest, Server, Tensor

OPEN, MAKE_REQUEST, INFER = 2, 3, 4
OPENED, REQUEST, INFERRED, FAILURE = 2, 3, 4, 5
MAX_THREADS = 256


def run(inspector, **arguments):
    """Serves modelmeter until it closes standard input.

    inspector: a class derived from BaseModelInspector; `arguments` and the batch size of the cell go to its constructor.
    What it prints goes to the log.
    """
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever else writes to standard output must not break the frames.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Child(inspector, arguments, sys.stdin.buffer, replies).serve()


class Child:
    def __init__(self, inspector, arguments, commands, replies):
        self.make, self.arguments = inspector, arguments
        self.commands, self.replies = commands, replies
        self.writing = threading.Lock()
        self.inspector = self.threads = None
        self.calls = itertools.count()

    def serve(self):
        while True:
            prefix = self.commands.read(4)
            if len(prefix) < 4:
                break
            (size,) = struct.unpack(">I", prefix)
            command = self.commands.read(size)
            if len(command) < size:
                break
            self.handle(memoryview(command))
        # A call that never ends must not keep the program alive.
        os._exit(0)

    def handle(self, command):
        number, what, body = 0, None, b""
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

    def answer(self, number, hook, body):
        try:
            if hook is None:
                raise ValueError("the command is of a newer version of modelmeter")
            field, payload = hook(body)
        except BaseException as error:  # whatever a hook raises, exits included, is for the user to read
            traceback.print_exc()
            field, payload = FAILURE, wire.string(1, f"{type(error).__name__}: {error}")
        reply = wire.varint(1 << 3) + wire.varint(number) + wire.delimited(field, payload)
        with self.writing:
            self.replies.write(struct.pack(">I", len(reply)) + reply)
            self.replies.flush()

    def open(self, body):
        texts, numbers, tensors = {}, {}, {4: [], 5: []}
        for field, kind, value in wire.fields(body):
            if field in tensors:
                found = wire.Tensor.decode(value)
                tensors[field].append(Tensor(found.name, found.datatype, found.shape))
            elif kind == wire.BYTES:
                texts[field] = wire.text(kind, value)
            else:
                numbers[field] = value
        self.inspector = self.make(batch_size=numbers.get(6, 1), **self.arguments)
        self.inspector.server = Server(
            texts.get(1, ""), texts.get(2, ""), texts.get(3, ""), tensors[4], tensors[5], numbers.get(7, 0), bool(numbers.get(8))
        )
        if self.inspector.server.timed and self.inspector.asynchronous:
            self.threads = ThreadPoolExecutor(MAX_THREADS)
        return OPENED, wire.boolean(1, self.inspector.repeat_data is None)

    def make_request(self, body):
        contents = [value for field, _, value in wire.fields(body) if field == 1]
        names = [each.name for each in self.inspector.server.inputs]
        request = self.inspector.next_request(dict(zip(names, contents)))
        if self.inspector.server.timed:
            return REQUEST, b""
        method, message = GrpcRequest(*request)
        return REQUEST, wire.string(1, method) + wire.delimited(2, bytes(message))

    def infer(self, body):
        responses = [value for field, _, value in wire.fields(body) if field == 1]
        if responses:
            self.inspector.infer(None, bytes(responses[0]))
        else:
            self.inspector.infer(self.inspector.request(next(self.calls)))
        return INFERRED, b""
