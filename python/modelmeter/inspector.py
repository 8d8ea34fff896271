"""What a custom inspector derives from."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import kserve


class GrpcRequest(NamedTuple):
    """The bytes of a gRPC message, and the full name of the method that they are for."""

    method: str
    message: bytes


class Tensor(NamedTuple):
    """A tensor of the model; its shape has the batch in it, and -1 where it is open."""

    name: str
    datatype: str
    shape: list[int]


class Server(NamedTuple):
    """What is measured: host:port of its gRPC port (or https://host:port, unix:/path), the model there, its tensors, the seed,
    and whether `infer` is timed."""

    endpoint: str
    model: str
    version: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    seed: int
    timed: bool


class BaseModelInspector:
    """Turns test data into requests, and checks the responses.

    Derive from it, override what differs, and call `modelmeter.run` with the class. The hooks are called before anything
    is timed; only `infer` may be what is timed, where the worker's configuration says `timed_in = "child"`.

    repeat_data: a list of raw items that are used over and over; anything else is one such item. None: modelmeter's
        own test data, random or from `--data`.
    batch_num: how many different requests are made at most; None: as many as modelmeter asks for.
    batch_size: items in a request; modelmeter sets it.
    asynchronous: whether `infer` may be called from several threads at once, where it is timed.
    sla, percentile: a latency in seconds and its percentile, for hooks that want to know; a request's own SLA is
        `--sla`.
    """

    # Set before any hook is called.
    server: Server

    def __init__(
        self,
        repeat_data: Any = None,
        batch_num: int | None = None,
        batch_size: int = 1,
        asynchronous: bool | None = False,
        sla: float = 1.0,
        percentile: float = 95,
    ) -> None:
        self.repeat_data = repeat_data
        self.batch_num = batch_num
        self.batch_size = batch_size
        self.asynchronous = asynchronous
        self.sla = sla
        self.percentile = percentile
        self._processed: list[Any] | None = None
        self._requests: list[Any] = []

    def data_preprocess(self, x: Any) -> Any:
        """A raw item of `repeat_data` as `make_request` wants it. By default as it is."""
        return x

    def make_request(self, input_batch: Any) -> Any:
        """A GrpcRequest of `batch_size` items.

        input_batch: a list of what `data_preprocess` gave; without `repeat_data`, a dict of each input's bytes for
        the whole batch. By default a KServe v2 request: an item is the little-endian bytes of the model's one input,
        or a dict of those of each. Where `infer` is timed, any object that it understands will do.
        """
        if isinstance(input_batch, dict):
            contents = input_batch
        else:
            names = [tensor.name for tensor in self.server.inputs]
            items = [item if isinstance(item, dict) else {names[0]: item} for item in input_batch]
            contents = {name: b"".join(bytes(item[name]) for item in items) for name in names}
        inputs = [(*tensor, contents[tensor.name]) for tensor in self.server.inputs]
        message = kserve.infer_request(self.server.model, inputs, self.server.version)
        return GrpcRequest(kserve.INFER_METHOD, message)

    def infer(self, request: Any, response: bytes | None = None) -> None:
        """Raises an exception where something is wrong.

        With a response, the bytes of a message that answered one of the requests: checks it (`request` is None). By
        default, that it is a KServe v2 response with outputs. Without one, where it is timed: sends the request and
        waits for the answer.
        """
        if response is None:
            raise NotImplementedError('with timed_in = "child", infer(request) makes the call: override it')
        if not kserve.infer_response(response):
            raise ValueError("the response has no outputs")

    def next_request(self, contents: dict[str, Any]) -> Any:
        """The next distinct request, remembered."""
        made = len(self._requests)
        if self.batch_num and made >= self.batch_num:
            request = self._requests[made % self.batch_num]
        elif self.repeat_data is None:
            request = self.make_request(contents)
        else:
            request = self.make_request(self._batch(made))
        self._requests.append(request)
        return request

    def request(self, nth: int) -> Any:
        """The nth request to send; they are sent in turn."""
        return self._requests[nth % len(self._requests)]

    def _batch(self, nth: int) -> list[Any]:
        if self._processed is None:
            raw = self.repeat_data if isinstance(self.repeat_data, list) else [self.repeat_data]
            if not raw:
                raise ValueError("repeat_data is an empty list")
            self._processed = [self.data_preprocess(x) for x in raw]
        first = nth * self.batch_size
        return [self._processed[i % len(self._processed)] for i in range(first, first + self.batch_size)]
