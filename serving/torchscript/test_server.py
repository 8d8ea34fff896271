"""Tests of the TorchScript server: `python -m unittest discover -s serving/torchscript`, by a Python with torch and grpcio.

The codec is checked against bytes written by hand from the encoding's rules; the server is a real one on loopback.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from typing import Dict

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../python/modelmeter")]

import grpc
import server
import torch
import wire as it
from model import Model

DEADLINE_S = 60


def tensor(name, datatype, shape, parameters=b""):
    return it.tensor_header(name, datatype, shape) + parameters


def infer_request(inputs, raw=(), model="m", request_id="", outputs=()):
    """A ModelInferRequest; `inputs`: encoded InferInputTensors."""
    parts = [it.string(1, model), it.string(3, request_id)]
    parts += [it.delimited(5, each) for each in inputs]
    parts += [it.delimited(6, it.string(1, name)) for name in outputs]
    parts += [it.delimited(7, each) for each in raw]
    return b"".join(parts)


def read_response(message):
    """id, and {output name: (datatype, shape, bytes)}."""
    request_id, headers, raw = "", [], []
    for number, wire, value in it.fields(memoryview(message)):
        if number == 3:
            request_id = it.text(wire, value)
        elif number == 5:
            headers.append(it.Tensor.decode(value))
        elif number == 6:
            raw.append(bytes(value))
    assert len(headers) == len(raw), (len(headers), len(raw))
    return request_id, {t.name: (t.datatype, t.shape, data) for t, data in zip(headers, raw)}


class Codec(unittest.TestCase):
    def test_numbers_go_there_and_back(self):
        for value in [0, 1, 127, 128, 300, 2**32, 2**63 - 1, -1, -(2**63)]:
            encoded = it.varint(value)
            got, end = it.read_varint(encoded, 0)
            self.assertEqual((it.signed(got), end), (value, len(encoded)))
        # The documentation's own examples.
        self.assertEqual(it.varint(150), b"\x96\x01")
        self.assertEqual(it.varint(-2), b"\xfe" + b"\xff" * 8 + b"\x01")

    def test_a_request_by_hand(self):
        message = (
            b"\x0a\x01m\x1a\x027!\x22\x05\x0a\x01k\x12\x00"
            b"\x2a\x0d\x0a\x01x\x12\x04FP32\x1a\x02\x01\x02"
            b"\x2a\x0d\x0a\x01y\x12\x04INT8\x18\x03\x18\x04"  # shape not packed
            b"\x32\x03\x0a\x01o"
            b"\x3a\x08abcdefgh"
        )
        request = it.InferRequest.decode(message)
        self.assertEqual((request.model_name, request.id, request.outputs), ("m", "7!", ["o"]))
        shown = [(t.name, t.datatype, t.shape) for t in request.inputs]
        self.assertEqual(shown, [("x", "FP32", [1, 2]), ("y", "INT8", [3, 4])])
        self.assertEqual([bytes(raw) for raw in request.raw], [b"abcdefgh"])
        self.assertIs(request.raw[0].obj, message, "raw contents are not copied")

    def test_every_cut_is_noticed_or_a_shorter_message(self):
        message = infer_request([tensor("x", "FP32", [1, 4])], [bytes(16)])
        refused = 0
        for end in range(len(message)):
            try:
                self.assertFalse(it.InferRequest.decode(message[:end]).raw)
            except it.WireError:
                refused += 1
        self.assertGreater(refused, len(message) // 2)
        for wrong in [b"\x0b", b"\x0a", b"\x0a\x05ab", b"\xff" * 11, b"\x0a\x01\xff"]:
            with self.assertRaises(it.WireError):
                it.InferRequest.decode(wrong)

    def test_a_response_goes_there_and_back(self):
        outputs = [("a", "INT64", [2], struct.pack("<2q", 1, -1)), ("b", "FP32", [0, 3], b""), ("c", "BOOL", [], b"\x01")]
        request_id, got = read_response(it.encode_response("m", "id", outputs))
        self.assertEqual(request_id, "id")
        self.assertEqual(got, {name: (datatype, shape, data) for name, datatype, shape, data in outputs})

    def test_typed_contents_give_the_raw_bytes(self):
        packed = lambda number, values: it.delimited(number, b"".join(map(it.varint, values)))
        cases = [
            ("BOOL", packed(1, [1, 0]), b"\x01\x00"),
            ("INT8", packed(2, [-1, 5]), b"\xff\x05"),
            ("INT32", packed(2, [-2]), struct.pack("<i", -2)),
            ("INT64", it.varint(3 << 3) + it.varint(-3), struct.pack("<q", -3)),
            ("UINT64", packed(5, [2**64 - 1]), b"\xff" * 8),
            ("FP32", it.delimited(6, struct.pack("<2f", 1, 2)), struct.pack("<2f", 1, 2)),
            ("FP64", it.varint(7 << 3 | it.FIXED64) + struct.pack("<d", 0.5), struct.pack("<d", 0.5)),
        ]
        for datatype, contents, raw in cases:
            self.assertEqual(bytes(it.typed_contents(datatype, memoryview(contents))), raw, datatype)
        with self.assertRaises(it.WireError):
            it.typed_contents("FP32", memoryview(packed(2, [1])))
        with self.assertRaises(it.WireError):
            it.typed_contents("INT8", memoryview(packed(2, [300])))


class Options(unittest.TestCase):
    def test_settings_and_signatures_are_checked(self):
        self.assertEqual(server.read_settings('{"threads": 2, "instances": 1}'), {"threads": 2, "instances": 1})
        for wrong, word in [('{"thread": 1}', "threads, instances"), ('{"threads": 0}', "from 1"), ("[]", "object"),
                            ('{"threads": true}', "from 1"), ("{", "object")]:
            with self.assertRaisesRegex(ValueError, word):
                server.read_settings(wrong)
        for wrong in ['{"inputs": [{"name": "x", "dtype": "float", "shape": []}]}', '{"inputs": [{"dtype": "FP32", "shape": []}]}']:
            with self.assertRaisesRegex(ValueError, "name, dtype"):
                server.read_signature(wrong)


class Identity(torch.nn.Module):
    def forward(self, x):
        return x


class Several(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Dict[str, torch.Tensor]:
        return {"sum": a + b, "half": b[:, :1]}


class Nested(torch.nn.Module):
    def forward(self, x):
        return x, [x * 2, x + 1]


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.linear(x))


class Server:
    """server.py in a process of its own."""

    def __init__(self, model, *more, signature=None):
        words = [sys.executable, server.__file__, "--model", model, "--model-name", "m", "--grpc-port", "0", "--http-port", "0"]
        words += ["--signature", json.dumps(signature)] if signature else []
        self.process = subprocess.Popen([*words, *more], stderr=subprocess.PIPE, text=True)
        line = self.first_line()
        if "serves m" not in line:
            self.stop()
            raise AssertionError(f"not ready: {line!r}")
        self.http = int(line.rsplit(":", 1)[1])
        self.channel = grpc.insecure_channel("127.0.0.1:" + line.split("gRPC 127.0.0.1:")[1].split(",")[0], [("grpc.max_receive_message_length", -1)])

    def first_line(self):
        ready, _, _ = select.select([self.process.stderr], [], [], DEADLINE_S)
        return self.process.stderr.readline() if ready else ""

    def call(self, method, message=b""):
        path = f"/inference.GRPCInferenceService/{method}"
        return self.channel.unary_unary(path)(message, timeout=DEADLINE_S)

    def infer(self, *words, **more):
        return read_response(self.call("ModelInfer", infer_request(*words, **more)))

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=DEADLINE_S) as response:
            return json.load(response)

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        self.process.stderr.close()


class Live(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def save(self, module, *example, script=False):
        path = os.path.join(self.folder.name, f"{type(module).__name__}.pt")
        made = torch.jit.script(module) if script else torch.jit.trace(module.eval(), example, strict=False)
        made.save(path)
        return path

    def start(self, *words, **more):
        running = Server(*words, **more)
        self.addCleanup(running.stop)
        self.addCleanup(running.channel.close)
        return running

    def refused(self, running, *words, **more):
        with self.assertRaises(grpc.RpcError) as caught:
            running.infer(*words, **more)
        return caught.exception.code(), caught.exception.details()

    def test_health_and_metadata(self):
        signature = {"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}],
                     "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 3]}]}
        running = self.start(self.save(Scale(), torch.zeros(1, 4)), signature=signature)
        self.assertEqual(running.call("ServerLive"), b"\x08\x01")
        self.assertEqual(running.call("ServerReady"), b"\x08\x01")
        self.assertEqual(running.call("ModelReady", it.string(1, "m")), b"\x08\x01")
        with self.assertRaises(grpc.RpcError) as caught:
            running.call("ModelReady", it.string(1, "other"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        said = {n: bytes(v).decode() for n, _, v in it.fields(memoryview(running.call("ServerMetadata")))}
        self.assertEqual(said[1], "torchscript")
        self.assertTrue(said[2].startswith(f"torch {torch.__version__}"), said)
        found = {4: [], 5: []}
        for number, _, value in it.fields(memoryview(running.call("ModelMetadata", it.string(1, "m")))):
            if number in found:
                made = it.Tensor.decode(value)
                found[number].append((made.name, made.datatype, made.shape))
        self.assertEqual(found, {4: [("x", "FP32", [-1, 4])], 5: [("y", "FP32", [-1, 3])]})
        self.assertEqual(running.get("/v2/health/ready"), {"ready": True})
        self.assertEqual(running.get("/v2/models/m")["outputs"], [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}])
        with self.assertRaises(urllib.error.HTTPError) as caught:
            running.get("/v2/models/other")
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()

    def test_an_inference_is_torchs_own(self):
        torch.manual_seed(3)
        module = Scale()
        signature = {"inputs": [{"name": "given", "dtype": "FP32", "shape": [-1, 4]}]}
        running = self.start(self.save(module, torch.zeros(1, 4)), signature=signature)
        for batch in (1, 5):
            x = torch.randn(batch, 4)
            # Names of other lengths move the contents off their alignment.
            for request_id in ("", "i", "id", "idd"):
                got_id, got = running.infer([tensor("given", "FP32", [batch, 4])], [x.numpy().tobytes()], request_id=request_id)
                datatype, shape, data = got["output"]
                self.assertEqual((got_id, datatype, shape), (request_id, "FP32", [batch, 3]))
                y = torch.frombuffer(bytearray(data), dtype=torch.float32).view(shape)
                torch.testing.assert_close(y, module(x).detach())

    def test_without_a_signature_the_first_calls_show_it(self):
        running = self.start(self.save(Identity(), script=True))
        metadata = running.get("/v2/models/m")
        self.assertEqual(metadata["inputs"], [{"name": "x", "datatype": "", "shape": []}])
        running.infer([tensor("x", "FP32", [2, 3])], [bytes(24)])
        metadata = running.get("/v2/models/m")
        self.assertEqual(metadata["inputs"], [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}])
        self.assertEqual(metadata["outputs"], [{"name": "output", "datatype": "FP32", "shape": [-1, -1]}])

    def test_each_datatype(self):
        path = self.save(Identity(), torch.zeros(1))
        for name, (dtype, _, code) in it.DATATYPES.items():
            with self.subTest(name):
                if not hasattr(torch, dtype):
                    continue
                model = Model(torch, path, torch.device("cpu"), {}, 1)
                raw = struct.pack("<6" + code, *([1, 0, 1, 1, 0, 1]))
                message = infer_request([tensor("x", name, [2, 3])], [raw])
                _, got = read_response(server.Service(model, "m", "v").infer(message))
                self.assertEqual(got["output"], (name, [2, 3], raw))
                empty = infer_request([tensor("x", name, [0, 3])], [b""])
                _, got = read_response(server.Service(model, "m", "v").infer(empty))
                self.assertEqual(got["output"], (name, [0, 3], b""))

    def test_several_inputs_by_name_and_outputs_of_a_dict(self):
        a, b = torch.arange(4.0).view(2, 2), torch.ones(2, 2)
        signature = {"inputs": [{"name": n, "dtype": "FP32", "shape": [-1, 2]} for n in ("b", "a")]}
        running = self.start(self.save(Several(), script=True), signature=signature)
        inputs = [tensor("b", "FP32", [2, 2]), tensor("a", "FP32", [2, 2])]
        raw = [b.numpy().tobytes(), a.numpy().tobytes()]
        _, got = running.infer(inputs, raw)
        self.assertEqual(got["sum"], ("FP32", [2, 2], (a + b).numpy().tobytes()))
        self.assertEqual(got["half"], ("FP32", [2, 1], b[:, :1].numpy().tobytes()))
        _, got = running.infer(inputs, raw, outputs=["sum"])
        self.assertEqual(list(got), ["sum"])
        code, why = self.refused(running, inputs, raw, outputs=["other"])
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("no output 'other'", why)

    def test_outputs_in_tuples_are_numbered(self):
        running = self.start(self.save(Nested(), torch.ones(1)))
        _, got = running.infer([tensor("x", "FP32", [1])], [struct.pack("<f", 3)])
        values = {name: struct.unpack("<f", data)[0] for name, (_, _, data) in got.items()}
        self.assertEqual(values, {"output_0": 3, "output_1_0": 6, "output_1_1": 4})

    def test_what_is_wrong_is_said(self):
        signature = {"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}]}
        running = self.start(self.save(Scale(), torch.zeros(1, 4)), signature=signature)
        good = tensor("x", "FP32", [1, 4])
        for inputs, raw, why in [
            ([tensor("y", "FP32", [1, 4])], [bytes(16)], "input 'y' is not one of ['x']"),
            ([tensor("x", "INT32", [1, 4])], [bytes(16)], "input 'x' is INT32, the model takes FP32"),
            ([tensor("x", "BYTES", [1, 4])], [bytes(16)], "datatype 'BYTES'"),
            ([tensor("x", "FP32", [4])], [bytes(16)], "the model takes [-1, 4]"),
            ([good], [bytes(15)], "has 15 bytes, FP32 of shape [1, 4] needs 16"),
            ([tensor("x", "FP32", [-1, 4])], [bytes(16)], "shape [-1, 4]"),
            ([good, good], [bytes(16)] * 2, "the model takes ['x']"),
            ([good], [bytes(16)] * 2, "2 raw contents"),
            ([tensor("x", "FP32", [1, 5])], [bytes(20)], "the model cannot run on this input"),
        ]:
            code, said = self.refused(running, inputs, raw)
            self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT, said)
            self.assertIn(why, said)
        self.assertEqual(self.refused(running, [good], [bytes(16)], model="n")[0], grpc.StatusCode.NOT_FOUND)
        with self.assertRaises(grpc.RpcError) as caught:
            running.call("ModelInfer", b"\x0a\x05m")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        running.infer([good], [bytes(16)])

    def test_a_frozen_module_is_served_as_it_is(self):
        path = os.path.join(self.folder.name, "frozen.pt")
        module = Scale().eval()
        torch.jit.freeze(torch.jit.script(module)).save(path)
        running = self.start(path)
        _, got = running.infer([tensor("x", "FP32", [1, 4])], [struct.pack("<4f", 1, 2, 3, 4)])
        y = torch.frombuffer(bytearray(got["output"][2]), dtype=torch.float32).view(1, 3)
        torch.testing.assert_close(y, module(torch.tensor([[1.0, 2, 3, 4]])).detach())

    def test_messages_beyond_the_usual_limit_pass(self):
        running = self.start(self.save(Identity(), torch.zeros(1)))
        data = os.urandom(20 << 20)
        _, got = running.infer([tensor("x", "UINT8", [len(data)])], [data])
        self.assertEqual(got["output"][2], data)

    def test_instances_answer_side_by_side(self):
        running = self.start(self.save(Scale(), torch.zeros(1, 4)), "--settings", '{"threads": 1, "instances": 3}')
        answers = []
        call = lambda: answers.append(running.infer([tensor("x", "FP32", [2, 4])], [bytes(32)])[1]["output"])
        threads = [threading.Thread(target=call) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(len(answers), 8)
        self.assertEqual(len(set(map(str, answers))), 1)

    def test_sigterm_ends_it_at_once(self):
        running = self.start(self.save(Identity(), torch.zeros(1)))
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(DEADLINE_S)
        self.assertLess(time.monotonic() - began, 2)

    def test_what_cannot_be_served_is_one_line_and_a_model_that_never_loads_has_its_own_status(self):
        good = self.save(Scale(), torch.zeros(1, 4))
        bad = os.path.join(self.folder.name, "bad.pt")
        with open(bad, "wb") as file:
            file.write(b"not a model")
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        port = str(taken.getsockname()[1])
        two = json.dumps({"inputs": [{"name": n, "dtype": "FP32", "shape": [-1]} for n in "ab"]})
        for model, more, why, status in [
            (bad, [], "does not load", server.EXIT_REFUSED),
            (good + ".none", [], "does not load", server.EXIT_REFUSED),
            (good, ["--settings", '{"batching": 1}'], "has no setting 'batching'", 1),
            (good, ["--device", "tpu"], "device", 1),
            (good, ["--signature", two], "forward takes", server.EXIT_REFUSED),
            (good, ["--grpc-port", port], f"gRPC port {port}", 1),
            (good, ["--http-port", port], f"HTTP port {port}", 1),
        ]:
            words = [sys.executable, server.__file__, "--model", model, "--model-name", "m", "--grpc-port", "0", "--http-port", "0"]
            ended = subprocess.run([*words, *more], capture_output=True, text=True, timeout=DEADLINE_S)
            self.assertEqual(ended.returncode, status, ended.stderr)
            last = ended.stderr.strip().splitlines()[-1]
            self.assertTrue(last.startswith("torchscript: cannot serve") and why in last, ended.stderr)
            self.assertNotIn("Traceback", ended.stderr)
        if not torch.cuda.is_available():
            ended = subprocess.run([*words[:3], good, *words[4:], "--device", "cuda:0"], capture_output=True, text=True)
            self.assertIn("sees no GPU", ended.stderr)


if __name__ == "__main__":
    unittest.main()
