"""Profiles as objects: thin typed views of the hub's documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from . import frame, table
from .error import ModelmeterError

if TYPE_CHECKING:
    import pandas as pd


class Summary:
    """The headline of one load point: what was seen, each with its 95 % interval where the run supports one."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def _interval(self, name: str) -> tuple[float, float] | None:
        ends = self.document.get(name)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    @property
    def concurrency(self) -> int | None:
        """Calls in flight; None at a rate."""
        concurrency: int | None = self.document["load"].get("concurrency")
        return concurrency

    @property
    def rate_per_s(self) -> float | None:
        """Calls a second; None where their number in flight was fixed."""
        rate: float | None = self.document["load"].get("rate_per_s")
        return rate

    @property
    def throughput(self) -> float | None:
        """Inferences, that is items of a batch, a second; successes only."""
        return self.document.get("throughput_inferences_per_s")

    @property
    def throughput_ci95(self) -> tuple[float, float] | None:
        """The 95 % interval of the throughput, in inferences a second."""
        return self._interval("throughput_ci95_inferences_per_s")

    @property
    def p50_latency_ms(self) -> float | None:
        """The median latency of a call."""
        return self.document.get("p50_latency_ms")

    @property
    def p50_latency_ci95_ms(self) -> tuple[float, float] | None:
        """The 95 % interval of the median."""
        return self._interval("p50_latency_ci95_ms")

    @property
    def p95_latency_ms(self) -> float | None:
        """The 95th percentile of the latency of a call."""
        return self.document.get("p95_latency_ms")

    @property
    def p95_latency_ci95_ms(self) -> tuple[float, float] | None:
        """The 95 % interval of the 95th percentile."""
        return self._interval("p95_latency_ci95_ms")

    @property
    def p99_latency_ms(self) -> float | None:
        """The 99th percentile of the latency of a call."""
        return self.document.get("p99_latency_ms")

    @property
    def p99_latency_ci95_ms(self) -> tuple[float, float] | None:
        """The 95 % interval of the 99th percentile."""
        return self._interval("p99_latency_ci95_ms")

    @property
    def gpu_memory_used_bytes(self) -> int | None:
        """Memory in use on the GPU; None without one, and in a reference."""
        return self.document.get("gpu_memory_used_bytes")

    @property
    def gpu_utilization_ratio(self) -> float | None:
        """Share of the time in which the GPU was busy, 0 to 1; None without one, and in a reference."""
        return self.document.get("gpu_utilization_ratio")


class Profile:
    """One cell of a request: an engine, device and batch size, measured or failed.

    document: the hub's own, with everything; its fields are in docs/hub.md.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    @property
    def id(self) -> str:
        """The profile's id in the hub."""
        return str(self.document["_id"])

    @property
    def request_id(self) -> str:
        """The request that it is of."""
        return str(self.document["request_id"])

    @property
    def created_at(self) -> datetime:
        """When the cell's last repeat ended."""
        return datetime.fromisoformat(str(self.document["created_at"]).replace("Z", "+00:00"))

    @property
    def state(self) -> str:
        """`done`, `partial`, `invalid` or `failed`."""
        return str(self.document["state"])

    @property
    def error(self) -> ModelmeterError | None:
        """Why the cell failed."""
        error = self.document["error"]
        return None if error is None else ModelmeterError.from_document(error)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.document["model"]["name"])

    @property
    def model_version(self) -> str:
        """The model's version."""
        return str(self.document["model"]["version"])

    @property
    def engine(self) -> str:
        """The engine's name, such as `onnx`."""
        return str(self.document["engine"]["name"])

    @property
    def engine_settings(self) -> Mapping[str, Any]:
        """The engine's settings that the request named."""
        settings: Mapping[str, Any] = self.document["engine"]["settings"]
        return settings

    @property
    def device_class(self) -> str:
        """`cpu`, or the class of the GPU."""
        return str(self.document["device"]["class"])

    @property
    def batch_size(self) -> int:
        """Items in a call."""
        return int(self.document["batch_size"])

    @property
    def labels(self) -> Mapping[str, str]:
        """The request's labels."""
        labels: Mapping[str, str] = self.document["labels"]
        return labels

    @property
    def sla_met(self) -> bool | None:
        """Whether the latency agreement is shown to be met; None without one, and where neither is shown."""
        sla = self.document["sla"]
        return None if sla is None else sla["met"]

    @property
    def peak(self) -> Summary | None:
        """The load with the best throughput; None where no load point is valid."""
        found = self.document["peak"]
        return None if found is None else Summary(found)

    @property
    def reference(self) -> Summary | None:
        """The lowest load: as a rule one call in flight, so that its latency is that of a single call."""
        found = self.document["reference"]
        return None if found is None else Summary(found)

    @property
    def throughput(self) -> float | None:
        """The best throughput, in inferences a second."""
        return None if self.peak is None else self.peak.throughput

    @property
    def p50_latency_ms(self) -> float | None:
        """The median latency at the best throughput."""
        return None if self.peak is None else self.peak.p50_latency_ms

    @property
    def p95_latency_ms(self) -> float | None:
        """The 95th percentile of latency at the best throughput."""
        return None if self.peak is None else self.peak.p95_latency_ms

    @property
    def p99_latency_ms(self) -> float | None:
        """The 99th percentile of latency at the best throughput."""
        return None if self.peak is None else self.peak.p99_latency_ms

    @property
    def points(self) -> Sequence[Mapping[str, Any]]:
        """Every load point, as the document has it."""
        points: Sequence[Mapping[str, Any]] = self.document["points"]
        return points

    def __repr__(self) -> str:
        what = f"{self.model} on {self.engine}, {self.device_class}, batch size {self.batch_size}"
        if self.throughput is None:
            return f"<Profile {what}: {self.state}>"
        return f"<Profile {what}: {table.number(self.throughput)} inf/s>"


class Profiles(Sequence[Profile]):
    """The profiles of a request, one for each cell. A notebook shows them as a table."""

    def __init__(self, documents: Iterable[Mapping[str, Any]]) -> None:
        self._profiles = [Profile(document) for document in documents]

    @overload
    def __getitem__(self, at: int) -> Profile: ...
    @overload
    def __getitem__(self, at: slice) -> Profiles: ...
    def __getitem__(self, at: int | slice) -> Profile | Profiles:
        if isinstance(at, slice):
            return Profiles(profile.document for profile in self._profiles[at])
        return self._profiles[at]

    def __len__(self) -> int:
        return len(self._profiles)

    @property
    def request_id(self) -> str | None:
        """The request under which the hub keeps them; None of no profiles."""
        return self._profiles[0].request_id if self._profiles else None

    def to_frame(self, points: bool = False) -> pd.DataFrame:
        """A pandas data frame with the columns of `modelmeter.results`: a row for each profile, or for each load point."""
        return frame.frame([profile.document for profile in self._profiles], points)

    def __repr__(self) -> str:
        return "\n".join(["Profiles:", *(f"  {profile!r}" for profile in self._profiles)])

    def _repr_html_(self) -> str:
        return table.html([profile.document for profile in self._profiles])
