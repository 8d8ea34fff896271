"""`Profiler`: measures a model by the modelmeter program, in the shape that users of MLModelCI know."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Callable

from . import binary, command
from .bridge import Bridge
from .error import invalid
from .inspector import BaseModelInspector
from .options import Options, flags
from .profiles import Profiles

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Profiler:
    """Profiles one model.

    model: a built-in model (`mlp`, `resnet50`, …), the path of a model file, or `NAME[:VERSION]` in the hub.
    server_name: the engine that serves it, such as `onnx`, `rten`, `triton`, or several; None: as `modelmeter profile`
        chooses.
    inspector: makes the calls and checks the answers: a subclass of BaseModelInspector or an instance of one, both of which
        stay in this process, or the name of an inspector of the configuration. None: the engine's own.
    timed_in: `child` where the inspector's `infer` makes the calls that are timed; closed loads only.
    coordinator: `http://host:port` of a cluster's coordinator; None: measures in a process on this machine.
    home: the folder of cache and hub; None: MODELMETER_HOME, or the one in the user's data directory.
    config: a modelmeter.toml; None: the one that `modelmeter` finds.
    program: the path of the modelmeter program; None: see `modelmeter.binary.find`.
    say: takes each line of progress; None: they go to standard error.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        server_name: str | Iterable[str] | None = None,
        inspector: type[BaseModelInspector] | BaseModelInspector | str | None = None,
        *,
        timed_in: str = "modelmeter",
        coordinator: str | Iterable[str] | None = None,
        home: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        program: str | os.PathLike[str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model = os.fspath(model)
        self.server_name = _words(server_name)
        self.inspector = inspector
        self.timed_in = timed_in
        self.coordinator = _words(coordinator)
        self.home = home
        self.config = config
        self.program = program
        self.say = say
        is_class = isinstance(inspector, type) and issubclass(inspector, BaseModelInspector)
        if not (inspector is None or is_class or isinstance(inspector, (str, BaseModelInspector))):
            raise invalid(
                "inspector",
                f"{inspector!r} is no inspector",
                "give a subclass of BaseModelInspector, an instance of one, or the name of one in modelmeter.toml",
            )

    def diagnose(
        self,
        batch_sizes: int | Iterable[int] | None = None,
        device: str | None = None,
        *,
        devices: str | Iterable[str] | None = None,
        **options: Unpack[Options],
    ) -> Profiles:
        """Measures each batch size on each device, and gives one profile for each engine, device and batch size.

        batch_sizes: items in a call; None: 1, 2, 4 and 8.
        device: `cpu`, `cuda:0`, `gpu`, `all`, or a device class such as `nvidia-a10`; None: `cpu`.
        devices: several of them.
        options: the rest of the request, as the flags of `modelmeter profile` are called: `budget=20`,
            `concurrency=[1, 4]`, `sla={"p95": "50ms"}`; durations are in seconds unless text says otherwise.

        Cells that failed are among the profiles, with an error. Raises ModelmeterError where nothing could be measured,
        before anything starts where the input is wrong. Ctrl-C stops the engines first; what was measured by then is in
        the hub.
        """
        arguments = ["profile", "--json"]
        arguments += [f"--engines={','.join(self.server_name)}"] if self.server_name else []
        arguments += [f"--batch-sizes={','.join(map(str, _counts(batch_sizes)))}"] if batch_sizes is not None else []
        if device is not None and devices is not None:
            raise invalid("devices", "device and devices cannot be used together", "name them all in devices")
        named = _words(devices if device is None else device)
        arguments += [f"--devices={','.join(map(_device, named))}"] if named else []
        arguments += flags(options)
        arguments += [f"--coordinator={url}" for url in self.coordinator]
        arguments += [f"--home={os.fspath(self.home)}"] if self.home is not None else []
        program = binary.find(self.program)
        with ExitStack() as stack:
            config = self.config
            if isinstance(self.inspector, str):
                arguments.append(f"--inspector={self.inspector}")
            elif self.inspector is not None:
                if self.coordinator:
                    hint = "name it in the workers' modelmeter.toml, and give that name: inspector='NAME'"
                    raise invalid("inspector", "a cluster's workers cannot run an inspector of this Python", hint)
                bridge = stack.enter_context(Bridge(self.inspector, self.timed_in, config, self.home))
                arguments.append(f"--inspector={bridge.name}")
                config = bridge.config
            arguments += [f"--config={os.fspath(config)}"] if config is not None else []
            documents = command.run(program, [*arguments, "--", self.model], self.say)
        return Profiles(sorted(documents, key=_order))


def _order(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Engines, their settings and devices as they are called; batch sizes rising."""
    engine = document["engine"]
    return engine["name"], str(engine["settings"]), document["device"]["class"], document["batch_size"]


def _words(given: str | Iterable[str] | None) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else [str(word) for word in given]


def _counts(given: int | Iterable[int]) -> list[int]:
    if isinstance(given, str):
        hint = "batch sizes come first, as diagnose([1, 8], device='cuda:0'); a device alone is diagnose(device='cuda:0')"
        raise invalid("batch_sizes", f"{given!r} is no batch size", hint)
    counts = [given] if isinstance(given, int) else list(given)
    # NumPy's integers are numbers, too.
    if not counts or not all(hasattr(count, "__index__") and not isinstance(count, bool) for count in counts):
        raise invalid("batch_sizes", f"{given!r} are no batch sizes", "give whole numbers, such as [1, 2, 4, 8]")
    return [count.__index__() for count in counts]


def _device(name: str) -> str:
    """PyTorch's and MLModelCI's name of a GPU in modelmeter's words."""
    return re.sub(r"^cuda(?=:\d+$|$)", "gpu", name)
