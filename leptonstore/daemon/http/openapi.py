"""The OpenAPI 3.1 document of the control plane, made of the tables of operations and routes."""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.http.table import BYTES, JSON, SCHEMAS, Described, Parameter, described, route_of
from leptonstore.daemon.operations import OPERATIONS, Of, Operation
from leptonstore.version import __version__

_ERRORS = {
    304: "You have it (If-None-Match).",
    400: "What was asked for makes no sense.",
    401: "No valid credential was given.",
    403: "The credential does not allow it.",
    404: "It is not there, or you may not see it.",
    408: "The body did not arrive in time.",
    409: "Somebody else was faster.",
    412: "It is not the version that If-Match names.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    416: "None of the bytes that Range names exists.",
    429: "Too much at once: come again after Retry-After.",
    431: "The headers are too large.",
    500: "A fault of the daemon, or damage of the store; its log has more under the request's id.",
    503: "The store does not answer, or the daemon is about to end.",
    507: "The store is full.",
}


def document(name: str) -> dict[str, Any]:
    """The document of a daemon that serves the store `name`."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS.values():
        method, path = route_of(operation)
        paths.setdefault(path, {})[method.lower()] = _operation(operation, described(operation))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"LeptonStore: {name}",
            "version": __version__,
            "description": "The control plane of a storage daemon: docs/http.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, told: Described) -> dict[str, Any]:
    open_to_all = operation.of is Of.NOTHING
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": told.summary,
        "security": [] if open_to_all else [{"token": []}],
        "responses": _responses(told, open_to_all),
    }
    if not open_to_all:
        made["description"] = f"Needs the scope {operation.scope.value!r} of {_of(operation)}."
    if told.parameters:
        made["parameters"] = [_parameter(each) for each in told.parameters]
    if told.body:
        made["requestBody"] = {
            "required": False,
            "content": {kind: _media(schema) for kind, schema in told.body.items()},
        }
    return made


def _of(operation: Operation) -> str:
    return {Of.ANY: "some dataset, or the store", Of.DATASET: "the dataset", Of.STORE: "the store"}[operation.of]


def _responses(told: Described, open_to_all: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "200": {"description": "It.", "content": {kind: _media(it) for kind, it in told.media.items()}}
    }
    errors = {*told.errors, 431} | (set() if open_to_all else {401, 429, 500, 503})
    if told.ranges:
        content = {kind: _media(schema) for kind, schema in told.media.items()}
        found["206"] = {"description": "Parts of it (Range).", "content": {**content, "multipart/byteranges": {}}}
        found["304"] = {"description": _ERRORS[304]}
        errors |= {412, 416}
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status in sorted(errors):
        found[str(status)] = {"description": _ERRORS[status], "content": error}
    return found


def _media(schema: Any) -> dict[str, Any]:
    return {} if schema is None else {"schema": schema}


def _parameter(each: Parameter) -> dict[str, Any]:
    where = "query" if each.query else "path"
    return {"name": each.name, "in": where, "required": not each.query, "description": each.help, "schema": each.schema}


__all__ = ["BYTES", "document"]
