"""A TorchScript module as a server needs it: bytes in, bytes out, and nothing copied that need not be."""

import ctypes
import struct
import threading
from contextlib import nullcontext

from wire import DATATYPES, typed_contents


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
        own = set(names) <= set(takes)
        order = sorted(names, key=takes.index) if own else names
        # By name where arguments between them are left out.
        self.by_name = own and order != takes[: len(order)]
        if order != [tensor["name"] for tensor in given]:
            given.sort(key=lambda tensor: order.index(tensor["name"]))
        return {name: position for position, name in enumerate(order)}, given

    def infer(self, request):
        """Answers a decoded request; gives (name, datatype, shape, buffer) of each output."""
        torch = self.torch
        arguments = self.read(request)
        try:
            with torch.inference_mode(), self.stream():
                if self.by_name:
                    answer = self.module(**dict(zip(self.positions, arguments)))
                else:
                    answer = self.module(*arguments)
                named = list(flatten("output", answer))
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
    try:
        module = torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"it does not load as TorchScript: {last_line(error)}") from None
    if not hasattr(module, "training"):
        # Frozen before it was saved.
        return module
    try:
        return torch.jit.freeze(module.eval())
    except RuntimeError:
        # What freezing does not support can be served as it is.
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
