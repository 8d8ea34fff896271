"""`results`: the profiles of a hub as a data frame, from the API, an SQLite file or MongoDB."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from . import frame
from .error import ModelmeterError, invalid
from .place import home_of
from .sources import api, mongo, sqlite

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import TypeAlias

# The newest documents that this package reads: SCHEMA_VERSION of common/src/lib.rs.
SCHEMA_VERSION = 2

Since: TypeAlias = Union[datetime, date, timedelta, str]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Filter(NamedTuple):
    """Which profiles are asked for; what is None is not asked for."""

    model: str | None = None
    engine: str | None = None
    device_class: str | None = None
    batch_size: int | None = None
    labels: Mapping[str, str] = {}
    since: datetime | None = None

    def versioned(self) -> tuple[str, str] | None:
        """Name and version, where the model is named by both."""
        name, colon, version = (self.model or "").rpartition(":")
        return (name, version) if colon else None


def results(
    source: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    engine: str | None = None,
    device_class: str | None = None,
    batch_size: int | None = None,
    label: str | Iterable[str] | Mapping[str, str] | None = None,
    since: Since | None = None,
    points: bool = False,
) -> pd.DataFrame:
    """The profiles of a hub, newest first, failed ones included; docs/python.md lists the columns.

    source: `http://host:7601`, the HTTP port of a coordinator; `mongodb://…`, its hub, which needs pymongo; the path of an
        SQLite hub or of the home that it is in; None: the home of this user.
    model: NAME or NAME:VERSION.
    label: `KEY=VALUE`, several of them, or a mapping; a profile must have each.
    since: a time (UTC where it says no zone), an ISO 8601 text, or how long ago: a timedelta, or text such as `7d`.
    points: a row for each load point instead of each profile.

    The hub is only read. Raises ModelmeterError where it cannot be.
    """
    wanted = Filter(model, engine, device_class, batch_size, _labels(label), None if since is None else moment(since))
    frame.pandas()
    return frame.frame(documents(source, wanted, points), points)


def documents(source: str | os.PathLike[str] | None, wanted: Filter, points: bool) -> list[Mapping[str, Any]]:
    """The documents themselves, as JSON has them; without their load points unless those are asked for."""
    address = os.fspath(source) if source is not None else home_of()
    if re.match(r"https?://", address):
        found = api.read(address, wanted)
    elif re.match(r"mongodb(\+srv)?://", address):
        found = mongo.read(address, wanted, points)
    elif re.match(r"(?!sqlite:)[a-z][a-z+]*://", address):
        hint = "a hub is http://host:port, mongodb://host:port/database, or the path of an SQLite hub or a home"
        raise invalid("source", f"no hub is at {address.split('://')[0]}://…", hint)
    else:
        found = sqlite.read(re.sub(r"^sqlite:(//)?", "", address), wanted, points, SCHEMA_VERSION)
    newer = max((document["schema_version"] for document in found), default=0)
    if newer > SCHEMA_VERSION:
        message = f"the hub was written by a newer modelmeter (schema {newer}, here {SCHEMA_VERSION})"
        raise ModelmeterError("storage", message, field="source", hint="install this package in that version")
    return found


def moment(since: Since) -> datetime:
    """A point in time, in UTC; hubs have milliseconds, so that one between two of them is the next."""
    if isinstance(since, str):
        ago = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", since)
        if ago:
            since = timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        else:
            try:
                since = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", since.strip()))
            except ValueError:
                hint = "use ISO 8601, as 2026-03-20 or 2026-03-20T14:30:00Z, or how long ago, as 7d or 12h"
                raise invalid("since", f"'{since}' is no time", hint) from None
    if isinstance(since, timedelta):
        since = datetime.now(timezone.utc) - since
    if not isinstance(since, datetime):
        since = datetime(since.year, since.month, since.day)
    at = (since if since.tzinfo else since.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    return at + timedelta(microseconds=-at.microsecond % 1000)


def _labels(label: str | Iterable[str] | Mapping[str, str] | None) -> dict[str, str]:
    if label is None:
        return {}
    if isinstance(label, Mapping):
        return dict(label)
    labels = {}
    for text in [label] if isinstance(label, str) else label:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise invalid("label", f"'{text}' is no label", "use KEY=VALUE, for example team=vision")
        labels[name] = value
    return labels
