"""Tests of the package: `python3 -m unittest discover -s python/tests`. The child is a real one, talked to by its pipes."""

import os
import re
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, PACKAGE)

import modelmeter
from modelmeter import kserve, wire

DEADLINE_S = 30


def tensor(name, datatype, shape):
    return wire.tensor_header(name, datatype, shape)


def open_command(batch_size=2, timed=False):
    inputs = wire.delimited(4, tensor("x", "FP32", [batch_size, 1]))
    head = wire.string(1, "127.0.0.1:1") + wire.string(2, "m")
    return wire.delimited(2, head + inputs + wire.varint(6 << 3) + wire.varint(batch_size) + wire.boolean(8, timed))


class Conversation:
    """A program that calls `run`, spoken to as modelmeter does."""

    def __init__(self, program):
        program = "from modelmeter import *\n" + textwrap.dedent(program)
        self.log = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": PACKAGE},
        )
        self.last = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        try:
            self.status = self.child.wait(DEADLINE_S)
        finally:
            self.child.kill()
            self.child.stdout.close()
        self.log.seek(0)
        self.said = self.log.read().decode()
        self.log.close()

    def send(self, command):
        self.last += 1
        message = wire.varint(1 << 3) + wire.varint(self.last) + command
        self.child.stdin.write(struct.pack(">I", len(message)) + message)
        self.child.stdin.flush()
        return self.last

    def receive(self):
        """(id, field of the reply, {field: value} of its message)"""
        size = self.child.stdout.read(4)
        assert len(size) == 4, "the child has ended"
        message = self.child.stdout.read(struct.unpack(">I", size)[0])
        number, field, body = 0, None, b""
        for key, _, value in wire.fields(memoryview(message)):
            if key == 1:
                number = value
            else:
                field, body = key, value
        values = {key: bytes(value) if kind == wire.BYTES else value for key, kind, value in wire.fields(body)}
        return number, field, values

    def ask(self, command):
        asked = self.send(command)
        number, field, values = self.receive()
        assert number == asked, (number, asked)
        return field, values


def make_request(*contents):
    return wire.delimited(3, b"".join(wire.delimited(1, each) for each in contents))


def check(response):
    return wire.delimited(4, wire.delimited(1, response))


CALL = wire.delimited(4, b"")
ONE, TWO, THREE = (struct.pack("<f", value) for value in (1, 2, 3))


def read_request(message):
    raw = [bytes(value) for number, _, value in wire.fields(memoryview(message)) if number == 7]
    inputs = [wire.Tensor.decode(value) for number, _, value in wire.fields(memoryview(message)) if number == 5]
    return [(each.name, each.datatype, each.shape) for each in inputs], raw


class Inspectors(unittest.TestCase):
    def test_items_are_preprocessed_once_and_used_in_turn(self):
        program = """
            import struct
            class Mine(BaseModelInspector):
                def data_preprocess(self, x):
                    print("preprocessing", x)
                    return struct.pack("<f", x)
            run(Mine, repeat_data=[1, 2, 3])
        """
        with Conversation(program) as child:
            self.assertEqual(child.ask(open_command()), (2, {}))
            for expected in ([ONE + TWO], [THREE + ONE]):
                field, values = child.ask(make_request())
                self.assertEqual((field, values[1]), (3, kserve.INFER_METHOD.encode()))
                self.assertEqual(read_request(values[2]), ([("x", "FP32", [2, 1])], expected))
        self.assertEqual(child.status, 0)
        self.assertEqual(child.said.count("preprocessing"), 3, "what is printed goes to the log, and each item is made once")

    def test_without_data_of_its_own_it_takes_modelmeters(self):
        with Conversation("run(BaseModelInspector)") as child:
            self.assertEqual(child.ask(open_command()), (2, {1: 1}))
            _, values = child.ask(make_request(ONE + THREE))
            self.assertEqual(read_request(values[2])[1], [ONE + THREE])

    def test_responses_are_checked_and_what_a_hook_raises_is_told(self):
        program = """
            class Mine(BaseModelInspector):
                def infer(self, request, response=None):
                    super().infer(request, response)
                    if response.endswith(b"!"):
                        raise ValueError("no such class")
            run(Mine, repeat_data=b"1234")
        """
        output = wire.delimited(5, tensor("y", "BYTES", [1]))
        with Conversation(program) as child:
            child.ask(open_command())
            self.assertEqual(child.ask(check(output + wire.delimited(6, b"fine"))), (4, {}))
            self.assertEqual(child.ask(check(output + wire.delimited(6, b"bad!"))), (5, {1: b"ValueError: no such class"}))
            self.assertEqual(child.ask(check(b""))[0], 5, "an empty response has no outputs")
            field, values = child.ask(check(b"\xff\xff"))
            self.assertIn(b"WireError", values[1])
        self.assertIn("no such class", child.said)
        self.assertIn("Traceback", child.said)

    def test_timed_calls_run_side_by_side_where_they_may(self):
        # Each call waits for the other: one after the other they would never end.
        program = """
            import threading
            together = threading.Barrier(2, timeout=20)
            class Mine(BaseModelInspector):
                def make_request(self, input_batch):
                    return input_batch
                def infer(self, request, response=None):
                    assert request == [b"1234", b"1234"], request
                    together.wait()
            run(Mine, repeat_data=b"1234", asynchronous=True)
        """
        with Conversation(program) as child:
            child.ask(open_command(timed=True))
            self.assertEqual(child.ask(make_request()), (3, {}))
            asked = {child.send(CALL), child.send(CALL)}
            ended = [child.receive(), child.receive()]
            self.assertEqual({number for number, _, _ in ended}, asked)
            self.assertEqual([field for _, field, _ in ended], [4, 4])

    def test_a_timed_inspector_must_make_the_call(self):
        with Conversation("run(BaseModelInspector, repeat_data=b'1234')") as child:
            child.ask(open_command(timed=True))
            child.ask(make_request())
            field, values = child.ask(CALL)
            self.assertEqual(field, 5)
            self.assertIn(b"override it", values[1])

    def test_commands_it_does_not_know_are_answered(self):
        with Conversation("run(BaseModelInspector)") as child:
            field, values = child.ask(wire.delimited(9, b""))
            self.assertEqual(field, 5)
            self.assertIn(b"newer version", values[1])


class Ports(unittest.TestCase):
    def test_they_are_those_of_the_table_of_engines(self):
        with open(os.path.join(PACKAGE, "../common/src/engine.rs")) as file:
            table = re.findall(r"pub const (\w+_PORT): u16 = (\d+);", file.read())
        self.assertGreater(len(table), 10)
        self.assertEqual({name: getattr(modelmeter, name) for name, _ in table}, {name: int(port) for name, port in table})


if __name__ == "__main__":
    unittest.main()
