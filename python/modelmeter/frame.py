"""Profiles as a pandas data frame: one flat set of columns, the same wherever the documents come from.

Units are in the names; NAME_lo and NAME_hi are the ends of the 95 % interval of NAME, missing where the run does not
support one. docs/python.md lists the columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .error import ModelmeterError

if TYPE_CHECKING:
    import pandas as pd

# The kinds of columns, as pandas calls them. An integer, a text or a truth value may be missing.
TEXT, INTEGER, REAL, TRUTH, TIME = "string", "Int64", "float64", "boolean", "datetime64[ns, UTC]"


class Column(NamedTuple):
    """A column: where its value lies in the document, by its path; for an end of an interval also which one."""

    name: str
    kind: str
    path: str
    end: int | None = None


def _with_interval(name: str, path: str, interval: str) -> Iterator[Column]:
    yield Column(name, REAL, path)
    yield Column(f"{name}_lo", REAL, interval, 0)
    yield Column(f"{name}_hi", REAL, interval, 1)


def _load(prefix: str, path: str) -> Iterator[Column]:
    yield Column(f"{prefix}concurrency", INTEGER, f"{path}.concurrency")
    yield Column(f"{prefix}rate_per_s", REAL, f"{path}.rate_per_s")


def _summary(of: str) -> Iterator[Column]:
    yield from _load(f"{of}_", f"{of}.load")
    what = "throughput_inferences_per_s"
    yield from _with_interval(f"{of}_{what}", f"{of}.{what}", f"{of}.throughput_ci95_inferences_per_s")
    for p in ("p50", "p95", "p99"):
        yield from _with_interval(f"{of}_{p}_latency_ms", f"{of}.{p}_latency_ms", f"{of}.{p}_latency_ci95_ms")


_CELL = (
    Column("profile_id", TEXT, "_id"),
    Column("request_id", TEXT, "request_id"),
    Column("created_at", TIME, "created_at"),
    Column("state", TEXT, "state"),
    Column("model", TEXT, "model.name"),
    Column("model_version", TEXT, "model.version"),
    Column("engine", TEXT, "engine.name"),
    Column("engine_version", TEXT, "engine.version"),
    Column("engine_settings", TEXT, "engine.settings"),
    Column("device_class", TEXT, "device.class"),
    Column("device_name", TEXT, "device.name"),
    Column("batch_size", INTEGER, "batch_size"),
)

# One row for each profile, that is for each cell of a request.
PROFILE_COLUMNS: tuple[Column, ...] = (
    *_CELL,
    *_summary("peak"),
    Column("peak_gpu_utilization_ratio", REAL, "peak.gpu_utilization_ratio"),
    Column("peak_gpu_memory_used_bytes", INTEGER, "peak.gpu_memory_used_bytes"),
    Column("peak_gpu_memory_used_ratio", REAL, "peak.gpu_memory_used_ratio"),
    Column("peak_gpu_memory_delta_bytes", INTEGER, "peak.gpu_memory_delta_bytes"),
    *_summary("reference"),
    Column("sla_percentile", REAL, "sla.percentile"),
    Column("sla_latency_ms", REAL, "sla.latency_ms"),
    Column("sla_met", TRUTH, "sla.met"),
    Column("deploy_ms", REAL, "deploy_ms"),
    Column("first_inference_ms", REAL, "first_inference_ms"),
    Column("artifact_format", TEXT, "artifact.format"),
    Column("inspector", TEXT, "inspector"),
    Column("repeats", INTEGER, "repeats"),
    Column("labels", TEXT, "labels"),
    Column("error_code", TEXT, "error.code"),
    Column("error_message", TEXT, "error.message"),
    Column("modelmeter_version", TEXT, "modelmeter_version"),
    Column("schema_version", INTEGER, "schema_version"),
)


def _percentiles() -> Iterator[Column]:
    for p in ("p50", "p90", "p95", "p99", "p99_9"):
        path = f"point.latency_ms.{p}"
        yield from _with_interval(f"{p}_latency_ms", f"{path}.value", f"{path}.ci95")


_THROUGHPUT = "throughput_inferences_per_s"
# One row for each load point of each profile.
POINT_COLUMNS: tuple[Column, ...] = (
    *_CELL,
    *_load("", "point.load"),
    Column("valid", TRUTH, "point.valid"),
    Column("converged", TRUTH, "point.converged"),
    Column("duration_s", REAL, "point.duration_s"),
    Column("requests", INTEGER, "point.requests"),
    Column("errors", INTEGER, "point.errors"),
    *_with_interval(_THROUGHPUT, f"point.{_THROUGHPUT}.value", f"point.{_THROUGHPUT}.ci95"),
    Column("mean_latency_ms", REAL, "point.latency_ms.mean"),
    *_percentiles(),
    Column("max_latency_ms", REAL, "point.latency_ms.max"),
    Column("gpu_utilization_ratio", REAL, "point.gpu.utilization_ratio"),
    Column("gpu_memory_used_bytes", INTEGER, "point.gpu.memory_used_bytes"),
    Column("energy_per_inference_j", REAL, "point.energy_per_inference_j"),
    Column("engine_cpu_cores", REAL, "point.engine_cpu.cores"),
    Column("engine_rss_bytes", INTEGER, "point.engine_cpu.rss_bytes"),
)


def _value(document: Mapping[str, Any], column: Column, path: list[str]) -> Any:
    """The value of a column, whose path this is; None where the document has none."""
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    if found is None:
        return None
    if column.end is not None:
        return found[column.end]
    if column.kind == INTEGER and isinstance(found, list):
        return len(found)
    if isinstance(found, Mapping):
        return json.dumps(found, sort_keys=True, ensure_ascii=False)
    return found


def frame(documents: Iterable[Mapping[str, Any]], points: bool = False) -> pd.DataFrame:
    """The documents as a data frame: a row for each profile, or for each of their load points."""
    module = pandas()
    columns = POINT_COLUMNS if points else PROFILE_COLUMNS
    rows: Iterable[Mapping[str, Any]] = documents
    if points:
        rows = [{**document, "point": point} for document in documents for point in document["points"]]
    rows = list(rows)
    series = {}
    for column in columns:
        path = column.path.split(".")
        series[column.name] = _series(module, [_value(row, column, path) for row in rows], column.kind)
    made: pd.DataFrame = module.DataFrame(series)
    return made


def _series(pd: Any, values: list[Any], kind: str) -> Any:
    if kind == TIME:
        return pd.to_datetime(pd.Series(values, dtype="object"), utc=True).astype(kind)
    return pd.Series(values, dtype=kind)


def pandas() -> Any:
    """The module pandas.

    Raises ModelmeterError where it is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        hint = "pip install pandas, or this package with it: pip install './python[pandas]'"
        raise ModelmeterError("not_installed", "a data frame needs pandas", hint=hint) from None
    return pd
