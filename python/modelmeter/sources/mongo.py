"""The hub in MongoDB, which is only read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..error import ModelmeterError, invalid

if TYPE_CHECKING:
    from ..hub import Filter

# As coordinators have it.
_DATABASE = "modelmeter"
_SELECTION_MS = 5000


def read(address: str, wanted: Filter, points: bool) -> list[Mapping[str, Any]]:
    """The profiles in the collection `profiles` of the database that the address names."""
    try:
        import pymongo
        from pymongo.errors import ConfigurationError, InvalidURI, PyMongoError
    except ImportError:
        hint = "pip install pymongo, or this package with it: pip install './python[mongodb]'"
        raise ModelmeterError("not_installed", "mongodb:// needs pymongo", field="source", hint=hint) from None
    hidden = {"keys": 0} if points else {"keys": 0, "points": 0, "unavailable": 0}
    options: dict[str, Any] = (
        {} if "serverselectiontimeoutms" in address.lower() else {"serverSelectionTimeoutMS": _SELECTION_MS}
    )
    try:
        with pymongo.MongoClient[Any](address, appname="modelmeter", tz_aware=True, **options) as client:
            profiles = client.get_default_database(_DATABASE)["profiles"]
            found = profiles.find(_query(wanted), hidden).sort([("created_at", -1), ("_id", -1)])
            return [_plain(document) for document in found]
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise invalid("source", f"the address cannot be used: {error}") from None
    except PyMongoError as error:
        # The driver's texts tell hosts and reasons, at length.
        reason = str(error).split(", Timeout:")[0]
        raise ModelmeterError("unreachable", f"MongoDB does not answer: {reason}", field="source") from None


def _query(wanted: Filter) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = []
    if wanted.model is not None:
        named: list[dict[str, Any]] = [{"model.name": wanted.model}]
        versioned = wanted.versioned()
        if versioned:
            named.append({"model.name": versioned[0], "model.version": versioned[1]})
        conditions.append(named[0] if len(named) == 1 else {"$or": named})
    fields = {"engine.name": wanted.engine, "device.class": wanted.device_class, "batch_size": wanted.batch_size}
    conditions += [{path: value} for path, value in fields.items() if value is not None]
    for name, value in wanted.labels.items():
        # A name may hold dots and dollars, which a path could not.
        label = {"$getField": {"field": {"$literal": name}, "input": "$labels"}}
        conditions.append({"$expr": {"$eq": [label, {"$literal": _stored(name, value)}]}})
    if wanted.since is not None:
        conditions.append({"created_at": {"$gte": wanted.since}})
    return {"$and": conditions} if conditions else {}


def _stored(name: str, value: str) -> str | datetime:
    """A label as the hub keeps it: a time under a name that ends in `_at` is a date there, exactly as in other fields."""
    if not name.endswith("_at") or not value.endswith("Z"):
        return value
    try:
        at = datetime.fromisoformat(value[:-1] + "+00:00")
    except ValueError:
        return value
    return at if _plain(at) == value else value


def _plain(value: Any) -> Any:
    """A value as JSON has it: the hub keeps times as dates, and what no 64-bit integer holds as a decimal."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if type(value).__name__ == "Decimal128":
        return int(value.to_decimal())
    # The driver's own integers are a subclass.
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
