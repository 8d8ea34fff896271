"""The wire form of the KServe v2 messages, by hand, so that no generated code or protobuf package is needed.

Source of names and field numbers: the Open Inference Protocol specification, "gRPC"; of the encoding: the Protocol
Buffers documentation, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Union

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Buffer = Union[bytes, bytearray, memoryview]


class WireError(ValueError):
    """The bytes are not the message that they should be."""


def varint(value: int) -> bytes:
    """Encodes an integer; a negative one takes ten bytes, as int64 does."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(view: Buffer, at: int) -> tuple[int, int]:
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


def fields(view: memoryview) -> Iterator[tuple[int, int, Any]]:
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


def text(wire: int, value: Any) -> str:
    if wire != BYTES:
        raise WireError("a text is not length-delimited")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a text is not UTF-8") from None


def numbers(wire: int, value: Any) -> list[int]:
    """A repeated integer field: packed, or one element."""
    if wire == VARINT:
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        found.append(number)
    return found


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(payload)) + payload


def string(number: int, value: str) -> bytes:
    return delimited(number, value.encode()) if value else b""


def boolean(number: int, value: bool) -> bytes:
    return varint(number << 3) + b"\x01" if value else b""


def tensor_header(name: str, datatype: str, shape: Iterable[int]) -> bytes:
    """TensorMetadata, InferInputTensor and InferOutputTensor all begin with name 1, datatype 2, shape 3."""
    packed = b"".join(map(varint, shape))
    return string(1, name) + string(2, datatype) + (delimited(3, packed) if packed else b"")


class Tensor:
    """An InferInputTensor."""

    __slots__ = ("name", "datatype", "shape", "contents")

    def __init__(
        self, name: str = "", datatype: str = "", shape: Iterable[int] = (), contents: memoryview | None = None
    ) -> None:
        self.name, self.datatype, self.shape, self.contents = name, datatype, list(shape), contents

    @classmethod
    def decode(cls, view: memoryview) -> Tensor:
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

    def __init__(self) -> None:
        self.model_name = self.model_version = self.id = ""
        self.inputs: list[Tensor] = []
        self.outputs: list[str] = []
        self.raw: list[memoryview] = []

    @classmethod
    def decode(cls, message: Buffer) -> InferRequest:
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


def encode_response(model_name: str, request_id: str, outputs: Sequence[tuple[str, str, Sequence[int], Buffer]]) -> bytes:
    """A ModelInferResponse of (name, datatype, shape, buffer); each buffer is copied once, into the message."""
    parts: list[Buffer] = [string(1, model_name), string(3, request_id)]
    parts += [delimited(5, tensor_header(name, datatype, shape)) for name, datatype, shape, _ in outputs]
    for *_, buffer in outputs:
        parts += [varint(6 << 3 | BYTES), varint(len(buffer)), buffer]
    return b"".join(parts)


# KServe datatype: torch dtype, field of InferTensorContents (None: it has none), struct code of an element.
DATATYPES: dict[str, tuple[str, int | None, str]] = {
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


def typed_contents(datatype: str, contents: memoryview) -> memoryview:
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
            try:
                pieces.append(b"".join(struct.pack("<" + code, number) for number in found))
            except struct.error as error:
                raise WireError(f"contents of {datatype}: {error}") from None
    return memoryview(b"".join(pieces))
