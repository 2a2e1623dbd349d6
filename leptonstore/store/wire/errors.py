"""Errors over the wire: a LeptonError as JSON, in FlightError.extra_info and in the body of an HTTP answer.

    {"error": class, "message": text, "fields": {name: value}}

Class and fields are those of the table below, which is also all that a client believes: a class that it does not know becomes a plain
LeptonError, a field that is none of the class's, or of another type, is left out. Nothing is ever unpickled. docs/WIRE.md.
"""

from __future__ import annotations

import json
import os
from typing import Any

from leptonstore import errors, limits
from leptonstore.digest import Buffer
from leptonstore.errors import LeptonError

# Fields that pass, with what they are when an answer lacks them. A list holds integers.
_FIELDS: dict[type[LeptonError], dict[str, Any]] = {
    errors.SourceError: {"path": ""},
    errors.RuleBroken: {"rule": "", "column": "", "rows": []},
    errors.OperationFailed: {"operation": "", "row": None, "reason": ""},
    errors.LossNotFinite: {"step": 0, "rows": []},
    errors.StoreMissing: {"url": ""},
    errors.ChunkMissing: {"digest": "", "where": ""},
    errors.PackDamaged: {"pack": "", "why": "", "missing": False},
    errors.ChunkCorrupt: {"digest": "", "pack": "", "why": "", "where": "", "tier": ""},
    errors.ReferenceBroken: {"object": ""},
    errors.MergeConflict: {"conflicts": (), "count": 0},
    errors.TierUnavailable: {"tier": ""},
    errors.TooBusy: {"retry_after_s": 1.0},
    errors.MissingExtra: {"extra": "", "module": ""},
}

# What HTTP calls them; the first that fits.
_STATUS: tuple[tuple[type[LeptonError], int], ...] = (
    (errors.BadInput, 400),
    (errors.NotAuthenticated, 401),
    (errors.NotPermitted, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.TooBusy, 429),
    (errors.TierUnavailable, 503),
    (errors.Stopped, 503),
    (errors.StoreFull, 507),
)


def _classes() -> dict[str, type[LeptonError]]:
    named = (value for value in vars(errors).values() if isinstance(value, type))
    return {kind.__name__: kind for kind in named if issubclass(kind, LeptonError)}


CLASSES = _classes()


def fields_of(kind: type[LeptonError]) -> dict[str, Any]:
    """The fields of a class that pass, its parents' included, with what they are when nothing is said."""
    out: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        out.update(
            {name: list(usual) if isinstance(usual, list) else usual for name, usual in _FIELDS.get(one, {}).items()}
        )
    return out


def known_class(error: LeptonError) -> type[LeptonError]:
    """The class of the tree that `error` is told as: its own, or the nearest above it (OverQuota is a StoreFull)."""
    return next(CLASSES[one.__name__] for one in type(error).__mro__ if CLASSES.get(one.__name__) is one)


def to_json(error: LeptonError) -> dict[str, Any]:
    """What is said of `error`; texts and lists in fields are bounded."""
    kind = known_class(error)
    fields = {}
    for name, usual in fields_of(kind).items():
        value = getattr(error, name, usual)
        if isinstance(usual, list):
            value = [int(one) for one in value[: limits.WIRE_ROWS_MAX]]
        elif isinstance(usual, tuple):
            continue  # objects: they stay here
        elif isinstance(value, str):
            value = value[: limits.WIRE_FIELD_CHARS_MAX]
        elif value is not None and not isinstance(value, int | float):
            continue
        fields[name] = value
    return {"error": kind.__name__, "message": str(error), "fields": fields}


def encode(error: LeptonError) -> bytes:
    """`to_json` as bytes, at most WIRE_ERROR_BYTES_MAX: of a longer message the beginning, of one that is still too long no fields."""
    body = to_json(error)
    body["message"] = body["message"][: limits.WIRE_ERROR_BYTES_MAX]
    while len(data := _dump(body)) > limits.WIRE_ERROR_BYTES_MAX:
        if len(body["message"]) > limits.WIRE_FIELD_CHARS_MAX:
            body["message"] = body["message"][: len(body["message"]) * 3 // 4]
        else:
            body["fields"] = {}
    return data


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def decode(data: Buffer) -> LeptonError | None:
    """The error that `data` tells; None when it is none of ours. Never raises: what is wrong with it is left out."""
    if len(data) > limits.WIRE_ERROR_BYTES_MAX:
        return None
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("error"), str) or not isinstance(body.get("message"), str):
        return None
    kind = CLASSES.get(body["error"], LeptonError)
    told = body.get("fields")
    fields = fields_of(kind)
    for name, usual in fields.items():
        value = told.get(name) if isinstance(told, dict) else None
        if _fits(value, usual):
            fields[name] = value
    return errors.restored(kind, (body["message"],), fields)


def _fits(value: Any, usual: Any) -> bool:
    if isinstance(usual, bool):
        return isinstance(value, bool)
    if isinstance(usual, list):
        return isinstance(value, list) and all(_is_number(one) and isinstance(one, int) for one in value)
    if isinstance(usual, str):
        return isinstance(value, str)
    if isinstance(usual, float):
        return _is_number(value)
    return _is_number(value) and isinstance(value, int) if not isinstance(usual, tuple) else False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def status_of(error: LeptonError) -> int:
    """The HTTP status that says so."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def internal(identity: str) -> LeptonError:
    """What a client is told of a bug: nothing but where the log has it."""
    return LeptonError(f"internal error {identity}: the daemon's log says more under this id")


def new_identity() -> str:
    """An id for a line in the log."""
    return os.urandom(6).hex()
