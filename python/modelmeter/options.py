"""The rest of a request as keyword arguments: each is the flag of `modelmeter profile` of the same name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, Union

from .error import invalid

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

# Seconds, a timedelta, or text such as "500ms".
Duration: TypeAlias = Union[float, timedelta, str]
Text: TypeAlias = Union[str, "os.PathLike[str]"]
Numbers: TypeAlias = Union[int, float, str, "Iterable[Union[int, float, str]]"]


class Options(TypedDict, total=False):
    """What `diagnose` takes besides batch sizes and devices. `modelmeter profile --help` says what each means."""

    # The model and how it is served
    onnx: Text
    torchscript: Text
    savedmodel: Text
    triton: Text
    input: Sequence[str]
    shape: Mapping[str, Sequence[int]]
    batch_axis: Mapping[str, int | str]
    data: Mapping[str, object] | Text
    set: Mapping[str, object]
    endpoint: str
    protocol: str
    device_class: str
    ca: Text
    cert: Text
    key: Text
    insecure: bool
    ports: str
    client_cpus: str
    engine_cpus: str
    shared_cpu: bool
    # The load
    load: str
    concurrency: Numbers
    rate: Numbers
    arrivals: str
    sla: Mapping[str, Duration] | str
    # When to stop
    batches: int
    precision: float | str
    min_duration: Duration
    max_duration: Duration
    certified: bool
    timeout: Duration
    max_in_flight: int
    budget: Duration
    repeats: int
    # The request
    seed: int
    priority: int
    deadline: Duration
    no_wait: bool
    labels: Mapping[str, str]


_DURATIONS = {"min_duration", "max_duration", "timeout", "budget", "deadline"}
# Given once for each value; the others take a list with commas.
_REPEATED = {"input", "shape", "batch_axis", "data", "set", "labels"}


def flags(options: Mapping[str, Any]) -> list[str]:
    """The options as arguments of `modelmeter profile`.

    Raises ModelmeterError for an option that there is not.
    """
    known = list(Options.__annotations__)
    arguments: list[str] = []
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean '{near[0]}'? " if near else ""
            raise invalid(name, f"there is no option '{name}'", f"{meant}the options are {', '.join(known)}")
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if name == "labels" and any("," in f"{key}{each}" for key, each in dict(value).items()):
            raise invalid(name, f"{value!r} has a comma in it", "the program takes commas for the end of a label")
        if value is True:
            arguments.append(flag)
        else:
            arguments += [f"{flag}={text}" for text in _texts(name, value)]
    return arguments


def _texts(name: str, value: Any) -> list[str]:
    """The values of one flag; each becomes one occurrence of it."""
    if name in _DURATIONS:
        return [duration(value)]
    if isinstance(value, Mapping):
        inner = duration if name == "sla" else _joined
        return [f"{key}={inner(each)}" for key, each in value.items()]
    if name in _REPEATED and not isinstance(value, (str, os.PathLike)):
        return [_joined(each) for each in value]
    return [_joined(value)]


def _joined(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, Iterable):
        return ",".join(_joined(each) for each in value)
    return str(value)


def duration(value: Duration) -> str:
    """A duration as the command line has it: seconds, unless text says otherwise."""
    if isinstance(value, str):
        return value
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    return f"{round(seconds * 1000)}ms"
