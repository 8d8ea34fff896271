"""The HTTP port of a coordinator."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..error import ModelmeterError

if TYPE_CHECKING:
    from ..hub import Filter

_TIMEOUT_S = 60.0
# As many as there are.
_LIMIT = 2**32 - 1


def read(address: str, wanted: Filter) -> list[Mapping[str, Any]]:
    """Asks for the profiles of the model, and takes those that fit the rest."""
    asked: dict[str, Any] = {"limit": _LIMIT}
    if wanted.model is not None:
        asked["model"] = wanted.model
    url = f"{address.rstrip('/')}/v1/profiles?{urllib.parse.urlencode(asked)}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise _refused(address, error) from None
    except (OSError, ValueError) as error:
        hint = "give the coordinator's HTTP port (modelmeter coordinator --http, by default 7601)"
        reason = getattr(error, "reason", error)
        raise ModelmeterError(
            "unreachable", f"no coordinator answers at {address}: {reason}", field="source", hint=hint
        ) from None
    return [document for document in found if _fits(document, wanted)]


def _refused(address: str, error: urllib.error.HTTPError) -> ModelmeterError:
    try:
        with error:
            return ModelmeterError.from_document(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return ModelmeterError("unreachable", f"{address} answered {error.code} {error.reason}", field="source")


def _fits(document: Mapping[str, Any], wanted: Filter) -> bool:
    exact = (
        (wanted.engine, document["engine"]["name"]),
        (wanted.device_class, document["device"]["class"]),
        (wanted.batch_size, document["batch_size"]),
    )
    if any(asked is not None and asked != found for asked, found in exact):
        return False
    if any(document["labels"].get(name) != value for name, value in wanted.labels.items()):
        return False
    created = datetime.fromisoformat(document["created_at"].replace("Z", "+00:00"))
    return wanted.since is None or created >= wanted.since
