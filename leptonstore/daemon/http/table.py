"""Every route of the control plane: where it is, what it takes, and what it answers. The router and the OpenAPI document are made of it.

That a route is there, and what a credential must allow for it, stands in operations.py; here is how it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leptonstore.daemon.http.bounds import JSON_ROWS_MAX
from leptonstore.daemon.http.sending import ARROW_STREAM
from leptonstore.daemon.operations import OPERATIONS, Operation
from leptonstore.format.commit import KINDS

Schema = Mapping[str, Any]
JSON, BYTES = "application/json", "application/octet-stream"
ROW_MAX = 10**18 - 1  # of the digits that a number of a row may have

_REF = {
    "type": "object",
    "required": ["name", "commit", "tag", "time_s"],
    "properties": {
        "name": {"type": "string"},
        "commit": {"$ref": "#/components/schemas/Digest"},
        "tag": {"type": "boolean"},
        "time_s": {"type": "number"},
    },
}
SCHEMAS: dict[str, Schema] = {
    "Digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "Error": {
        "type": "object",
        "required": ["error", "message"],
        "properties": {
            "error": {"type": "string", "description": "A class of leptonstore.errors"},
            "message": {"type": "string"},
            "fields": {"type": "object"},
            "request_id": {"type": "string"},
        },
    },
    "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    "Names": {
        "type": "object",
        "required": ["store", "names"],
        "properties": {
            "store": {"type": "string"},
            "names": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["kind", "name", "refs"],
                    "properties": {
                        "kind": {"enum": list(KINDS)},
                        "name": {"type": "string"},
                        "refs": {"type": "array", "items": _REF},
                    },
                },
            },
        },
    },
    "Version": {
        "type": "object",
        "required": ["kind", "name", "ref", "commit", "rows", "plain_bytes", "columns"],
        "properties": {
            "kind": {"enum": list(KINDS)},
            "name": {"type": "string"},
            "ref": {"type": "string"},
            "commit": {"$ref": "#/components/schemas/Digest"},
            "rows": {"type": "integer", "minimum": 0},
            "plain_bytes": {"type": "integer", "minimum": 0},
            "message": {"type": "string"},
            "parents": {"type": "array", "items": {"$ref": "#/components/schemas/Digest"}},
            "keyed": {"type": "boolean"},
            "identity": {"type": "array", "items": {"type": "string"}},
            "columns": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "type", "nullable"],
                    "properties": {
                        "name": {"type": "string"},
                        "type": {"type": "string"},
                        "nullable": {"type": "boolean"},
                        "semantic": {"type": "string"},
                        "classes": {"type": "array", "items": {"type": "string"}},
                    },
                },
            },
        },
    },
    "Rows": {
        "type": "object",
        "required": ["start", "stop", "of", "next", "rows"],
        "properties": {
            "start": {"type": "integer", "minimum": 0},
            "stop": {"type": "integer", "minimum": 0},
            "of": {"type": "integer", "minimum": 0},
            "next": {"type": ["integer", "null"], "description": "Where to go on; null at the end"},
            "rows": {"type": "array", "items": {"type": "object"}},
        },
    },
    "Folder": {
        "type": "object",
        "required": ["path", "entries", "more"],
        "properties": {
            "path": {"type": "string"},
            "entries": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "type", "size", "href"],
                    "properties": {
                        "name": {"type": "string"},
                        "type": {"enum": ["file", "folder"]},
                        "size": {"type": "integer", "minimum": 0},
                        "href": {"type": "string"},
                    },
                },
            },
            "more": {"type": "integer", "minimum": 0, "description": "Entries that are left out"},
        },
    },
}


@dataclass(frozen=True)
class Parameter:
    """Of a path or a query."""

    name: str
    schema: Schema
    help: str
    query: bool = False


@dataclass(frozen=True)
class Described:
    """How an operation looks over HTTP. media: what a 200 may be, with its schema (None: bytes). ranges: parts of it may be asked for."""

    summary: str
    media: Mapping[str, Schema | None]
    parameters: tuple[Parameter, ...] = ()
    ranges: bool = False
    errors: tuple[int, ...] = ()
    body: Mapping[str, Schema | None] = field(default_factory=dict)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_KIND = Parameter("kind", {"enum": list(KINDS)}, "What it is a version of.")
_VERSION = Parameter(
    "version",
    {"type": "string", "examples": ["mnist@main"]},
    "NAME@REF: a branch, a tag, a date, or the digest of a commit (all 64 digits: then it never changes).",
)
_ANY_MEDIA: Mapping[str, Schema | None] = {"*/*": None}
_WHERE = (400, 403, 404)

DESCRIBED: dict[str, Described] = {
    "healthz": Described("Whether the process answers.", {JSON: _ref("Status")}),
    "readyz": Described("Whether requests should be sent here.", {JSON: _ref("Status")}, errors=(503,)),
    "openapi": Described("This document.", {JSON: {"type": "object"}}, errors=(400, 403)),
    "metrics": Described("Figures for Prometheus.", {"text/plain": {"type": "string"}}, errors=(403,)),
    "content": Described(
        "Every name that you may read, with its branches and tags.", {JSON: _ref("Names")}, errors=(400, 403)
    ),
    "content.kind": Described("The same, of one kind.", {JSON: _ref("Names")}, (_KIND,), errors=_WHERE),
    "content.chunk": Described(
        "The value of a digest. It never changes.",
        {BYTES: None},
        (Parameter("digest", _ref("Digest"), "BLAKE3-256 of the value."),),
        ranges=True,
        errors=_WHERE,
    ),
    "content.version": Described(
        "What a version is: its commit, schema, rows.", {JSON: _ref("Version")}, (_KIND, _VERSION), True, _WHERE
    ),
    "content.rows": Described(
        "Rows of a version: a page as JSON, or all of them as an Arrow stream.",
        {JSON: _ref("Rows"), ARROW_STREAM: None},
        (
            _KIND,
            _VERSION,
            Parameter("start", {"type": "integer", "minimum": 0}, "The first row (0).", query=True),
            Parameter(
                "stop",
                {"type": "integer", "minimum": 0},
                f"The row after the last; JSON has at most {JSON_ROWS_MAX}.",
                query=True,
            ),
            Parameter(
                "columns",
                {"type": "string", "maxLength": 400},
                "Names, with commas between (all).",
                query=True,
            ),
        ),
        True,
        _WHERE,
    ),
    "content.value": Described(
        "One value, with its media type: bytes and text as they are, tensors as .npy, anything else as JSON.",
        _ANY_MEDIA,
        (
            _KIND,
            _VERSION,
            Parameter("row", {"type": "integer", "minimum": 0, "maximum": ROW_MAX}, "Its number, from 0."),
            Parameter("column", {"type": "string", "minLength": 1}, "Its column."),
        ),
        True,
        _WHERE,
    ),
    "content.files": Described(
        "A file of a version, or what is in a folder of it. A table has its rows as Parquet files there.",
        _ANY_MEDIA,
        (_KIND, _VERSION, Parameter("path", {"type": "string", "minLength": 1}, "Below the version.")),
        True,
        _WHERE,
    ),
}
_LWR1: Mapping[str, Schema | None] = {JSON: {"type": "object"}, BYTES: None}


def described(operation: Operation) -> Described:
    """How an operation of the table looks over HTTP."""
    if operation.name in DESCRIBED:
        return DESCRIBED[operation.name]
    errors = (400, 403, 404, 408, 409, 413, 415, 507)
    if operation.call == "put":
        session = Parameter("session", {"type": "string"}, "As `open` has told it.", query=True)
        return Described(
            "Put records into a write session.",
            {JSON: {"type": "object"}},
            (session,),
            False,
            errors,
            {ARROW_STREAM: None},
        )
    if operation.call == "get":
        return Described(
            f"Operation {operation.name!r} of the data plane.", {ARROW_STREAM: None}, (), False, errors, _LWR1
        )
    media: Mapping[str, Schema | None] = {JSON: {"type": "object"}, BYTES: None}
    return Described(f"Operation {operation.name!r} of the data plane.", media, (), False, errors, _LWR1)


def route_of(operation: Operation) -> tuple[str, str]:
    """(method, path) of an operation."""
    method, _, path = operation.call.partition(" ")
    return (method, path) if path else ("POST", f"/v1/{operation.name}")


def paths_of(operation: Operation) -> list[str]:
    """The paths as Starlette's router takes them: the last part of some may have slashes, or be absent."""
    _, path = route_of(operation)
    if operation.name == "content.files":
        return [path.replace("{path}", "{path:path}"), path.removesuffix("/{path}")]
    return [path.replace("{column}", "{column:path}")]


__all__ = ["DESCRIBED", "OPERATIONS", "SCHEMAS", "Described", "Parameter", "described", "paths_of", "route_of"]
