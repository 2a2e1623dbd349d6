"""One request, as bytes: the ticket of a Flight do_get, the command of a do_put, the body of an action, the body of an HTTP POST.

    magic "LWR1" | u32 little-endian: bytes of the header | header: a JSON object {"op": name, ...arguments} | payload

The payload is whatever the operation says: digests (32 bytes each), row numbers (int64 little-endian), or nothing. Nothing of a request is
trusted: lengths are bounded before anything is made of them, and a header that is no object of plain JSON is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import BadInput

MAGIC = b"LWR1"
PROTOCOL = 1  # told by `hello`; a client refuses a daemon of a later one
DIGEST_BYTES = 32
_HEAD = struct.Struct("<4sI")


@dataclass(frozen=True)
class Request:
    """What a client asks for. `arguments` are plain JSON values whose types the operation checks."""

    op: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    payload: Buffer = b""


def encode(op: str, arguments: Mapping[str, Any] | None = None, payload: Buffer = b"") -> bytes:
    """The bytes of a request. Raises BadInput when it is larger than a daemon takes."""
    header = json.dumps({**(arguments or {}), "op": op}, separators=(",", ":"), allow_nan=False).encode()
    payload = memoryview(payload).cast("B")
    if len(header) > limits.WIRE_HEADER_BYTES_MAX or len(payload) > limits.WIRE_PAYLOAD_BYTES_MAX:
        raise BadInput(
            f"a request of {len(header)} + {len(payload)} bytes: at most {limits.WIRE_HEADER_BYTES_MAX} + "
            f"{limits.WIRE_PAYLOAD_BYTES_MAX}; ask in smaller steps"
        )
    return b"".join((_HEAD.pack(MAGIC, len(header)), header, payload))


def parse(data: Buffer) -> Request:
    """The request that `data` is. Raises BadInput."""
    view = memoryview(data).cast("B")
    if len(view) > _HEAD.size + limits.WIRE_HEADER_BYTES_MAX + limits.WIRE_PAYLOAD_BYTES_MAX:
        raise BadInput(f"a request of {len(view)} bytes is larger than a daemon takes")
    if len(view) < _HEAD.size:
        raise BadInput("a request is cut short")
    magic, length = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise BadInput("this is no request of a LeptonStore client")
    if length > limits.WIRE_HEADER_BYTES_MAX or _HEAD.size + length > len(view):
        raise BadInput("the header of a request is too long, or cut short")
    try:
        header = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    except (ValueError, RecursionError):
        raise BadInput("the header of a request is no JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("op"), str):
        raise BadInput("the header of a request names no operation")
    op = header.pop("op")
    return Request(op, header, view[_HEAD.size + length :])


def digests_of(payload: Buffer) -> list[Digest]:
    """The digests that a payload lists. Raises BadInput."""
    data = bytes(payload)
    if len(data) % DIGEST_BYTES:
        raise BadInput(f"a list of digests has {len(data)} bytes: no multiple of {DIGEST_BYTES}")
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def payload_of(digests: Sequence[Digest]) -> bytes:
    """`digests` as a payload."""
    return b"".join(digests)
