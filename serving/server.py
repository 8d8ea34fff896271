#!/usr/bin/env python3
"""KServe v2 server for one TorchScript file, run by the user's own Python with torch and grpcio.

What belongs here: the TorchScript engine, whole, in one file that modelmeter carries inside its binary. From the top:
the wire codec (KServe v2 messages by hand, so that no generated code or protobuf package is needed), the model, the
service, and the two servers (gRPC; HTTP for health and metadata).

Source of names and field numbers: the Open Inference Protocol specification, "gRPC"; of the wire format: the Protocol
Buffers documentation, "Encoding".
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import struct
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# --- wire codec ---------------------------------------------------------------------------------------------------

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not the message that they should be."""


def varint(value):
    """Encodes an integer; a negative one takes ten bytes, as int64 does."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(view, at):
    """The integer at `at`, and where the next thing begins."""
    value = shift = 0
    try:
        while True:
            byte = view[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
            shift += 7
            if shift > 63:
                raise WireError("a number is longer than ten bytes")
    except IndexError:
        raise WireError("the message ends within a number") from None


def fields(view):
    """Each field of a message: number, wire type and value (an integer, or a slice that is not copied)."""
    at, end = 0, len(view)
    while at < end:
        key, at = read_varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = read_varint(view, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = read_varint(view, at)
        elif wire == FIXED32:
            size = 4
        elif wire == FIXED64:
            size = 8
        else:
            raise WireError(f"field {number} has the unknown wire type {wire}")
        if size > end - at:
            raise WireError(f"the message ends within field {number}")
        yield number, wire, view[at : at + size]
        at += size


def text(wire, value):
    if wire != BYTES:
        raise WireError("a text is not length-delimited")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a text is not UTF-8") from None


def numbers(wire, value):
    """A repeated integer field: packed, or one element."""
    if wire == VARINT:
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        found.append(number)
    return found


def signed(value):
    return value - (1 << 64) if value >> 63 else value


def delimited(number, payload):
    return varint(number << 3 | BYTES) + varint(len(payload)) + payload


def string(number, value):
    return delimited(number, value.encode()) if value else b""


def boolean(number, value):
    return varint(number << 3) + b"\x01" if value else b""


def tensor_header(name, datatype, shape):
    """TensorMetadata, InferInputTensor and InferOutputTensor all begin with name 1, datatype 2, shape 3."""
    packed = b"".join(map(varint, shape))
    return string(1, name) + string(2, datatype) + (delimited(3, packed) if packed else b"")


class Tensor:
    """An InferInputTensor."""

    __slots__ = ("name", "datatype", "shape", "contents")

    def __init__(self, name="", datatype="", shape=(), contents=None):
        self.name, self.datatype, self.shape, self.contents = name, datatype, list(shape), contents

    @classmethod
    def decode(cls, view):
        tensor = cls()
        for number, wire, value in fields(view):
            if number == 1:
                tensor.name = text(wire, value)
            elif number == 2:
                tensor.datatype = text(wire, value)
            elif number == 3:
                tensor.shape.extend(map(signed, numbers(wire, value)))
            elif number == 5:
                tensor.contents = value
        return tensor


class InferRequest:
    """A ModelInferRequest; its raw contents stay slices of the message."""

    __slots__ = ("model_name", "model_version", "id", "inputs", "outputs", "raw")

    def __init__(self):
        self.model_name = self.model_version = self.id = ""
        self.inputs, self.outputs, self.raw = [], [], []

    @classmethod
    def decode(cls, message):
        request = cls()
        for number, wire, value in fields(memoryview(message)):
            if number == 7:
                request.raw.append(value)
            elif number == 5:
                request.inputs.append(Tensor.decode(value))
            elif number == 1:
                request.model_name = text(wire, value)
            elif number == 2:
                request.model_version = text(wire, value)
            elif number == 3:
                request.id = text(wire, value)
            elif number == 6:
                request.outputs.append(Tensor.decode(value).name)
        return request


def encode_response(model_name, request_id, outputs):
    """A ModelInferResponse of (name, datatype, shape, buffer); each buffer is copied once, into the message."""
    parts = [string(1, model_name), string(3, request_id)]
    parts += [delimited(5, tensor_header(name, datatype, shape)) for name, datatype, shape, _ in outputs]
    for *_, buffer in outputs:
        parts += [varint(6 << 3 | BYTES), varint(len(buffer)), buffer]
    return b"".join(parts)


# KServe datatype: torch dtype, field of InferTensorContents (None: it has none), struct code of an element.
DATATYPES = {
    "BOOL": ("bool", 1, "B"),
    "UINT8": ("uint8", 4, "B"),
    "UINT16": ("uint16", 4, "H"),
    "UINT32": ("uint32", 4, "I"),
    "UINT64": ("uint64", 5, "Q"),
    "INT8": ("int8", 2, "b"),
    "INT16": ("int16", 2, "h"),
    "INT32": ("int32", 2, "i"),
    "INT64": ("int64", 3, "q"),
    "FP16": ("float16", None, "e"),
    "BF16": ("bfloat16", None, "H"),
    "FP32": ("float32", 6, "f"),
    "FP64": ("float64", 7, "d"),
}


def typed_contents(datatype, contents):
    """The little-endian bytes of an InferTensorContents."""
    _, wanted, code = DATATYPES[datatype]
    pieces = []
    for number, wire, value in fields(contents):
        if number != wanted:
            raise WireError(f"contents of {datatype} are in field {number}, not {wanted}")
        if code in "fd":
            pieces.append(bytes(value))
        else:
            found = map(signed, numbers(wire, value)) if code.islower() else numbers(wire, value)
            pieces.append(b"".join(struct.pack("<" + code, number) for number in found))
    return memoryview(b"".join(pieces))


# --- model --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A call that cannot be answered: the name of a gRPC status, and why."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def invalid(message):
    return Refused("INVALID_ARGUMENT", message)


class Model:
    """A loaded TorchScript module: bytes in, bytes out."""

    def __init__(self, torch, path, device, signature, instances):
        self.torch, self.device = torch, device
        self.on_cpu = device.type == "cpu"
        self.dtypes = {kserve: getattr(torch, name, None) for kserve, (name, _, _) in DATATYPES.items()}
        self.names = {dtype: kserve for kserve, dtype in self.dtypes.items() if dtype is not None}
        self.module = load(torch, path, device)
        self.positions, self.inputs = self.arguments(signature)
        self.given_outputs = bool(signature.get("outputs"))
        self.outputs = [dict(output) for output in signature.get("outputs", [])]
        # On one stream CUDA would run the instances one after another.
        self.streams = threading.local() if not self.on_cpu and instances > 1 else None

    def arguments(self, signature):
        """The position of each input in the call, and what metadata says of it.

        TorchScript knows the names of the arguments alone: type and shape are the signature's, or those first sent.
        """
        schema = [argument for argument in self.module.forward.schema.arguments if argument.name != "self"]
        takes = [argument.name for argument in schema if "Tensor" in str(argument.type)]
        needed = [argument.name for argument in schema if not argument.has_default_value()]
        given = [dict(tensor) for tensor in signature.get("inputs", [])]
        if not given:
            given = [{"name": name, "dtype": "", "shape": []} for name in takes if name in needed]
        names = [tensor["name"] for tensor in given]
        if not len(needed) <= len(given) <= len(schema):
            raise ValueError(f"the signature has inputs {names}, but forward takes {[a.name for a in schema]}")
        # A signature may use the module's own names, in any order, or names of its own in the order of the call.
        order = sorted(names, key=takes.index) if set(names) <= set(takes) else names
        if order != [tensor["name"] for tensor in given]:
            given.sort(key=lambda tensor: order.index(tensor["name"]))
        return {name: position for position, name in enumerate(order)}, given

    def infer(self, request):
        """Answers a decoded request; gives (name, datatype, shape, buffer) of each output."""
        torch = self.torch
        arguments = self.read(request)
        try:
            with torch.inference_mode(), self.stream():
                named = list(flatten("output", self.module(*arguments)))
                found = [(name, self.to_host(value)) for name, value in named]
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise Refused("RESOURCE_EXHAUSTED", str(error).splitlines()[0]) from None
            if "CUDA error" in str(error):
                raise Refused("INTERNAL", last_line(error)) from None
            raise invalid(f"the model cannot run on this input: {last_line(error)}") from None
        return self.select(self.name_outputs(request, found), request.outputs)

    def stream(self):
        if self.streams is None:
            return nullcontext()
        if not hasattr(self.streams, "own"):
            self.streams.own = self.torch.cuda.Stream(self.device)
        return self.torch.cuda.stream(self.streams.own)

    def read(self, request):
        """The arguments of the call, in its order."""
        if len(request.inputs) != len(self.positions):
            names = [tensor.name for tensor in request.inputs]
            raise invalid(f"the request has inputs {names}, the model takes {list(self.positions)}")
        if request.raw and len(request.raw) != len(request.inputs):
            raise invalid(f"the request has {len(request.inputs)} inputs and {len(request.raw)} raw contents")
        arguments = [None] * len(self.positions)
        for index, tensor in enumerate(request.inputs):
            position = self.positions.get(tensor.name)
            if position is None or arguments[position] is not None:
                raise invalid(f"input '{tensor.name}' is not one of {list(self.positions)}, each once")
            raw = request.raw[index] if request.raw else None
            arguments[position] = self.to_device(tensor, raw, self.inputs[position])
        return arguments

    def to_device(self, tensor, raw, expected):
        torch, name = self.torch, tensor.name
        dtype = self.dtypes.get(tensor.datatype)
        if dtype is None:
            known = [kserve for kserve, dtype in self.dtypes.items() if dtype is not None]
            raise invalid(f"input '{name}' has datatype '{tensor.datatype}', this torch takes {', '.join(known)}")
        check(tensor, expected)
        if raw is None:
            raw = typed_contents(tensor.datatype, tensor.contents or memoryview(b""))
        elements = 1
        for length in tensor.shape:
            if length < 0:
                raise invalid(f"input '{name}' has the shape {tensor.shape}")
            elements *= length
        size = struct.calcsize(DATATYPES[tensor.datatype][2])
        if len(raw) != elements * size:
            message = f"input '{name}' has {len(raw)} bytes, {tensor.datatype} of shape {tensor.shape} needs {elements * size}"
            raise invalid(message)
        if not elements:
            return torch.empty(tensor.shape, dtype=dtype, device=self.device)
        # Memory of the message itself: it lives as long as the tensor, and nothing is copied on the host.
        value = torch.frombuffer(raw, dtype=dtype).view(tensor.shape)
        if self.on_cpu:
            # Where a message puts an input off its natural alignment, kernels may not read it in place.
            return value if value.data_ptr() % size == 0 else value.clone()
        return value.to(self.device, non_blocking=True)

    def to_host(self, value):
        """A contiguous tensor on the host; waits for the device."""
        torch = self.torch
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, (bool, int, float)):
                raise Refused("INTERNAL", f"the model gives a {type(value).__name__}, which is no tensor")
            value = torch.tensor(value)
        if value.dtype not in self.names:
            raise Refused("INTERNAL", f"the model gives {value.dtype}, which KServe v2 cannot carry")
        return value.cpu().contiguous()

    def name_outputs(self, request, found):
        if self.given_outputs:
            if len(found) != len(self.outputs):
                raise Refused("INTERNAL", f"the model gives {len(found)} tensors, the signature has {len(self.outputs)}")
            found = [(output["name"], value) for output, (_, value) in zip(self.outputs, found)]
        else:
            self.learn(request, found)
        return [(name, self.names[value.dtype], list(value.shape), buffer_of(value)) for name, value in found]

    def learn(self, request, found):
        """What the first calls show of types and shapes, for metadata."""
        for tensor in request.inputs:
            known = self.inputs[self.positions[tensor.name]]
            if not known["dtype"]:
                known.update(dtype=tensor.datatype, shape=[-1] * len(tensor.shape))
        shape = request.inputs[0].shape if request.inputs else []
        # With a batch of one, an axis of one may be the batch or not.
        if self.outputs or not shape or shape[0] < 2:
            return
        self.outputs = [
            {
                "name": name,
                "dtype": self.names[value.dtype],
                # What the batch makes is open; the rest may depend on the input, which one call does not show.
                "shape": [value.shape[0] if value.shape[0] != shape[0] else -1] + [-1] * (value.dim() - 1)
                if value.dim()
                else [],
            }
            for name, value in found
        ]

    @staticmethod
    def select(outputs, wanted):
        if not wanted:
            return outputs
        by_name = {output[0]: output for output in outputs}
        for name in wanted:
            if name not in by_name:
                raise invalid(f"there is no output '{name}', the model gives {list(by_name)}")
        return [by_name[name] for name in wanted]


def check(tensor, expected):
    """The signature fixes type and rank; how long an axis may be is the model's to say."""
    if not expected["dtype"]:
        return
    if tensor.datatype != expected["dtype"]:
        raise invalid(f"input '{tensor.name}' is {tensor.datatype}, the model takes {expected['dtype']}")
    if len(tensor.shape) != len(expected["shape"]):
        raise invalid(f"input '{tensor.name}' has shape {tensor.shape}, the model takes {expected['shape']}")


def load(torch, path, device):
    module = torch.jit.load(path, map_location=device)
    if hasattr(module, "training"):
        module.eval()
    try:
        return torch.jit.freeze(module)
    except RuntimeError:
        # It is frozen already, or changes its own attributes: both can be served as they are.
        return module


def flatten(name, value):
    """The tensors of an output, each with a name: a dict's keys, else `output`, with the index where it is one of several."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(str(key), inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from flatten(name if len(value) == 1 else f"{name}_{index}", inner)
    else:
        yield name, value


def buffer_of(tensor):
    """The bytes of a contiguous tensor on the host, not copied; they live as long as the result."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return b""
    buffer = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    buffer.owner = tensor
    return buffer


def last_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


# --- service ------------------------------------------------------------------------------------------------------


class Service:
    """The calls of GRPCInferenceService, on bytes."""

    def __init__(self, model, name, version):
        self.model, self.name, self.version = model, name, version

    def check_name(self, message):
        asked = "".join(text(wire, value) for number, wire, value in fields(memoryview(message)) if number == 1)
        if asked != self.name:
            raise Refused("NOT_FOUND", f"there is no model '{asked}', this server has '{self.name}'")

    def live(self, _message):
        return boolean(1, True)

    def model_ready(self, message):
        self.check_name(message)
        return boolean(1, True)

    def server_metadata(self, _message):
        return string(1, "torchscript") + string(2, self.version)

    def model_metadata(self, message):
        self.check_name(message)
        return b"".join(
            [string(1, self.name), string(2, "1"), string(3, "pytorch_torchscript")]
            + [delimited(4, tensor_header(t["name"], t["dtype"], t["shape"])) for t in self.model.inputs]
            + [delimited(5, tensor_header(t["name"], t["dtype"], t["shape"])) for t in self.model.outputs]
        )

    def infer(self, message):
        request = InferRequest.decode(message)
        if request.model_name != self.name:
            raise Refused("NOT_FOUND", f"there is no model '{request.model_name}', this server has '{self.name}'")
        return encode_response(self.name, request.id, self.model.infer(request))


METHODS = {
    "ServerLive": Service.live,
    "ServerReady": Service.live,
    "ModelReady": Service.model_ready,
    "ServerMetadata": Service.server_metadata,
    "ModelMetadata": Service.model_metadata,
    "ModelInfer": Service.infer,
}


def answer(service, method, message):
    """Calls a method; whatever goes wrong is a `Refused`."""
    try:
        return method(service, message)
    except WireError as error:
        raise invalid(f"the request is not a valid message: {error}") from None
    except Refused:
        raise
    except Exception as error:
        raise Refused("INTERNAL", f"{type(error).__name__}: {last_line(error)}") from error


# --- servers ------------------------------------------------------------------------------------------------------


def handlers(grpc, service, pool):
    async def abort(context, refused):
        await context.abort(grpc.StatusCode[refused.status], str(refused))

    def inline(method):
        async def call(message, context):
            try:
                return answer(service, method, message)
            except Refused as refused:
                await abort(context, refused)

        return call

    def pooled(method):
        async def call(message, context):
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, answer, service, method, message)
            except Refused as refused:
                await abort(context, refused)

        return call

    def threaded(method):
        def call(message, context):
            try:
                return answer(service, method, message)
            except Refused as refused:
                context.abort(grpc.StatusCode[refused.status], str(refused))
        return call

    front = os.environ["FRONT"]
    made = {}
    for name, method in METHODS.items():
        how = threaded if front == "threads" else pooled if front == "pooled" and name == "ModelInfer" else inline
        made[name] = grpc.unary_unary_rpc_method_handler(how(method))
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", made)


OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A port that is taken must be an error, not shared.
    ("grpc.so_reuseport", 0),
]


class Rest(BaseHTTPRequestHandler):
    """Health and metadata of KServe v2 over HTTP; inference is gRPC's."""

    protocol_version = "HTTP/1.1"
    service = None

    def do_GET(self):
        service = self.service
        model = {
            "name": service.name,
            "versions": ["1"],
            "platform": "pytorch_torchscript",
            "inputs": [rest_tensor(tensor) for tensor in service.model.inputs],
            "outputs": [rest_tensor(tensor) for tensor in service.model.outputs],
        }
        answers = {
            "/v2": {"name": "torchscript", "version": service.version, "extensions": []},
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            f"/v2/models/{service.name}": model,
            f"/v2/models/{service.name}/ready": {"name": service.name, "ready": True},
        }
        path = self.path.split("?")[0]
        found = answers.get(path.rstrip("/"))
        body = json.dumps(found or {"error": f"there is nothing at {path}"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def rest_tensor(tensor):
    return {"name": tensor["name"], "datatype": tensor["dtype"], "shape": tensor["shape"]}


async def serve_aio(service, options):
    import grpc
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((handlers(grpc, service, ThreadPoolExecutor(options.settings["instances"])),))
    port = server.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    await server.start()
    print("port", port, file=sys.stderr, flush=True)
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await done.wait()
    os._exit(0)


def serve_threads(service, options):
    import grpc
    server = grpc.server(ThreadPoolExecutor(options.settings["instances"]), options=OPTIONS)
    server.add_generic_rpc_handlers((handlers(grpc, service, None),))
    port = server.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    server.start()
    print("port", port, file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.wait_for_termination()


class O: pass
if __name__ == "__main__":
    import torch
    warnings.filterwarnings("ignore", message=".*not writable.*")
    o = O(); o.settings={"instances":int(os.environ.get("INST","1"))}; o.grpc_port=int(sys.argv[2])
    sig={"inputs":[{"name":"x","dtype":"FP32","shape":[-1,16]}]}
    m = Model(torch, sys.argv[1], torch.device("cpu"), sig, 1)
    s = Service(m, "m", "v")
    if os.environ["FRONT"]=="threads": serve_threads(s,o)
    else: asyncio.run(serve_aio(s,o))
