"""A commit: an immutable dataset version, as canonical JSON.

    {"format": "lepton.commit", "version": 1, "kind": "dataset" | "checkpoint" | "model",
     "schema": [field, …], "identity": [column, …], "root": digest or "" (no rows), "rows": n, "plain_bytes": n,
     "parents": [digest, …], "message": text, "lineage": {…}, "keyed"?: true}

keyed: the identity columns are a key: rows stand in its order (format/keys.py), each key once. Left out when it is false.

Its name is the digest of these bytes. Time, author, host and metrics stand in the log entry that published it, so that the
same rows, schema, parents, message and lineage are the same commit wherever and whenever they are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import FormatDamaged, FormatTooNew, SchemaError
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.format.schema import schema_from_json, schema_to_json

VERSION = 1
KINDS = ("dataset", "checkpoint", "model")


@dataclass(frozen=True)
class Commit:
    """`root` is None when there are no rows. `lineage` is JSON-able and deterministic. `keyed`: the identity columns are a key."""

    kind: str
    schema: pa.Schema
    identity: tuple[str, ...]
    root: Digest | None
    rows: int
    plain_bytes: int
    parents: tuple[Digest, ...] = ()
    message: str = ""
    lineage: dict[str, Any] = field(default_factory=dict)
    keyed: bool = False


def encode_commit(commit: Commit) -> bytes:
    """Canonical JSON. Raises SchemaError (types, lineage that is not JSON, over COMMIT_BYTES_MAX)."""
    body = {
        "format": "lepton.commit",
        "version": VERSION,
        "kind": commit.kind,
        "schema": schema_to_json(commit.schema),
        "identity": list(commit.identity),
        "root": commit.root.hex() if commit.root else "",
        "rows": commit.rows,
        "plain_bytes": commit.plain_bytes,
        "parents": [parent.hex() for parent in commit.parents],
        "message": commit.message,
        "lineage": commit.lineage,
        **({"keyed": True} if commit.keyed else {}),
    }
    try:
        data = canonical_json(body)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"lineage must be JSON: {error}") from None
    if len(data) > limits.COMMIT_BYTES_MAX:
        raise SchemaError(f"a commit of {len(data)} bytes is over the limit of {limits.COMMIT_BYTES_MAX}")
    return data


def parse_commit(data: bytes) -> Commit:
    """Bytes -> commit. Raises FormatDamaged or FormatTooNew."""
    if len(data) > limits.COMMIT_BYTES_MAX:
        raise FormatDamaged(f"commit has {len(data)} bytes, over the limit of {limits.COMMIT_BYTES_MAX}")
    body = parse_json(data, "commit")
    if not isinstance(body, dict) or body.get("format") != "lepton.commit":
        raise FormatDamaged("commit is damaged: it does not say that it is one")
    if not isinstance(body.get("version"), int) or body["version"] > VERSION:
        raise FormatTooNew(f"commit has version {body.get('version')!r}: upgrade LeptonStore")
    try:
        commit = Commit(
            kind=str(body["kind"]),
            schema=schema_from_json(body["schema"]),
            identity=tuple(str(name) for name in body["identity"]),
            root=parse_hex(body["root"]) if body["root"] else None,
            rows=int(body["rows"]),
            plain_bytes=int(body["plain_bytes"]),
            parents=tuple(parse_hex(parent) for parent in body["parents"]),
            message=str(body["message"]),
            lineage=dict(body["lineage"]),
            keyed=bool(body.get("keyed", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatDamaged(f"commit is damaged: {error!r}") from None
    if commit.kind not in KINDS or commit.rows < 0 or commit.plain_bytes < 0:
        raise FormatDamaged(f"commit is damaged: kind {commit.kind!r}, {commit.rows} rows")
    if not commit.identity or not set(commit.identity) <= set(commit.schema.names):
        raise FormatDamaged("commit is damaged: identity columns that the schema lacks")
    return commit
