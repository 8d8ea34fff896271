"""The hub in an SQLite file, which is only read."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..error import ModelmeterError, invalid

if TYPE_CHECKING:
    from ..hub import Filter

_FILE = "hub.sqlite"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def read(path: str, wanted: Filter, points: bool, newest: int) -> list[Mapping[str, Any]]:
    """The profiles in the file, or in the home's file; `newest`: the newest schema that is read."""
    file = Path(path).expanduser()
    file = file / _FILE if file.is_dir() else file
    if not file.is_file():
        hint = "give the home of a profile run (--home, MODELMETER_HOME) or the hub file in it, or profile a model first"
        raise ModelmeterError("not_found", f"there is no hub at {file}", field="source", hint=hint)
    try:
        with closing(_open(file)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > newest:
                message = f"{file} was written by a newer modelmeter (schema {version}, here {newest})"
                raise ModelmeterError("storage", message, field="source", hint="install this package in that version")
            sql, values = _query(wanted, points, _has_keys(connection))
            return [json.loads(text) for (text,) in connection.execute(sql, values)]
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise invalid("source", f"{file} is not a hub: {error}") from None
        raise ModelmeterError("storage", f"{file} cannot be read: {error}", field="source") from None
    except sqlite3.DatabaseError as error:
        raise invalid("source", f"{file} is not a hub, or is damaged: {error}") from None


def _open(file: Path) -> sqlite3.Connection:
    uri = file.resolve().as_uri() + "?mode=ro"
    # In a folder that cannot be written to, the log of a hub that nobody has open need not be looked for.
    alone = not os.access(file.parent, os.W_OK) and not file.with_name(file.name + "-wal").exists()
    return sqlite3.connect(uri + "&immutable=1" if alone else uri, uri=True)


def _has_keys(connection: sqlite3.Connection) -> bool:
    """Whether the file has what newer programs find profiles by."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'profile_keys'").fetchone() is not None


def _query(wanted: Filter, points: bool, has_keys: bool) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []

    def require(condition: str, *of: Any) -> None:
        conditions.append(condition)
        values.extend(of)

    def field(name: str, path: str) -> str:
        return f"k.{name}" if has_keys else f"json_extract(p.doc, '{path}')"

    if wanted.model is not None:
        versioned = wanted.versioned()
        if versioned:
            require("(p.model = ? OR p.model = ? AND p.version = ?)", wanted.model, *versioned)
        else:
            require("p.model = ?", wanted.model)
    if wanted.engine is not None:
        require(f"{field('engine', '$.engine.name')} = ?", wanted.engine)
    if wanted.device_class is not None:
        require(f"{field('device_class', '$.device.class')} = ?", wanted.device_class)
    if wanted.batch_size is not None:
        require(f"{field('batch_size', '$.batch_size')} = ?", int(wanted.batch_size))
    for name, value in wanted.labels.items():
        # json_each takes any name as it is; a path would need quoting.
        require("EXISTS (SELECT 1 FROM json_each(p.doc, '$.labels') l WHERE l.key = ? AND l.value = ?)", name, value)
    if wanted.since is not None:
        require("p.created_at >= ?", (wanted.since - _EPOCH) // timedelta(milliseconds=1))
    keys = " JOIN profile_keys k ON k.id = p.id" if has_keys else ""
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    document = "p.doc" if points else "json_remove(p.doc, '$.points', '$.unavailable')"
    return f"SELECT {document} FROM profiles p{keys}{where} ORDER BY p.created_at DESC, p.id DESC", values
