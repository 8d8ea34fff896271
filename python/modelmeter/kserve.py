"""The KServe v2 messages that a client needs: a ModelInferRequest to send, a ModelInferResponse to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Union

from . import wire

Buffer = Union[bytes, bytearray, memoryview]

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"


def infer_request(model: str, inputs: Iterable[tuple[str, str, Sequence[int], Buffer]], version: str = "") -> bytes:
    """Encodes a request; `inputs`: (name, datatype, shape, little-endian bytes) of each."""
    inputs = list(inputs)
    parts = [wire.string(1, model), wire.string(2, version)]
    parts += [wire.delimited(5, wire.tensor_header(name, datatype, shape)) for name, datatype, shape, _ in inputs]
    parts += [wire.delimited(7, bytes(raw)) for *_, raw in inputs]
    return b"".join(parts)


def infer_response(message: Buffer) -> dict[str, tuple[str, list[int], memoryview]]:
    """Decodes a response: (datatype, shape, little-endian bytes) of each output, by name.

    The bytes are a view of the message. Raises wire.WireError for what is no ModelInferResponse.
    """
    headers: list[wire.Tensor] = []
    raw: list[memoryview] = []
    for number, kind, value in wire.fields(memoryview(message)):
        if number == 5:
            headers.append(wire.Tensor.decode(value))
        elif number == 6:
            raw.append(value)
    if not raw:
        raw = [wire.typed_contents(header.datatype, header.contents or memoryview(b"")) for header in headers]
    if len(headers) != len(raw):
        raise wire.WireError(f"{len(headers)} outputs with {len(raw)} contents")
    return {header.name: (header.datatype, header.shape, data) for header, data in zip(headers, raw)}
