"""The table that a notebook shows: the headline of each profile, what is not supported by an interval marked with `~`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_HEAD = (
    "<tr><th colspan=4></th><th colspan=2>best throughput</th><th colspan=3>latency of a single call, ms</th></tr>"
    "<tr><th>model</th><th>engine</th><th>device</th><th>batch</th><th>inf/s</th><th>at</th>"
    "<th>p50</th><th>p95</th><th>p99</th></tr>"
)
_FOOT = "± half of the 95 % interval · ~ seen, not supported by one"


def number(value: float) -> str:
    """A figure with three significant digits or all before the point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" if abs(value) >= 1 else f"{value:.3g}"


def html(documents: Iterable[Mapping[str, Any]]) -> str:
    """The profiles as an HTML table."""
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(each))}</tr>" for each in documents)
    return f"<table><thead>{_HEAD}</thead><tbody>{rows}</tbody></table><small>{_FOOT}</small>"


def _cells(document: Mapping[str, Any]) -> list[str]:
    engine, settings = document["engine"]["name"], document["engine"]["settings"]
    what = " ".join([engine, *(f"{name}={value}" for name, value in settings.items())])
    cells = [document["model"]["name"], what, document["device"]["class"], str(document["batch_size"])]
    cells = [escape(str(cell)) for cell in cells]
    peak, reference = document["peak"], document["reference"]
    if peak is None:
        error = document["error"] or {"message": "no load point is valid"}
        return [*cells, f"<em>{escape(document['state'])}</em>", escape(error["message"]), "", "", ""]
    cells += [_figure(peak, "throughput_inferences_per_s", "throughput_ci95_inferences_per_s"), _load(peak["load"])]
    for p in ("p50", "p95", "p99"):
        cells.append(_figure(reference or {}, f"{p}_latency_ms", f"{p}_latency_ci95_ms"))
    return cells


def _load(load: Mapping[str, Any]) -> str:
    return f"{load['concurrency']} in flight" if "concurrency" in load else f"{number(load['rate_per_s'])} a second"


def _figure(summary: Mapping[str, Any], name: str, interval: str) -> str:
    value, ends = summary.get(name), summary.get(interval)
    if value is None:
        return "–"
    if ends is None:
        return f"~{number(value)}"
    half = (ends[1] - ends[0]) / 2
    return f"{number(value)} ±{number(half)}" if half <= value else f"{number(value)} ±&gt;100 %"
