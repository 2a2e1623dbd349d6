"""Small documents of the store: one header line, then canonical JSON.

    lepton-<kind> <major>.<minor> <required features, 8 hex> <body bytes> <BLAKE3-256 of the body, 64 hex>\\n
    {"…": …}

The header can be read with `head -1`, the body with any JSON tool. Canonical JSON: UTF-8, keys sorted, no spaces, no
NaN or infinity. A reader refuses a larger major version or a required feature that it does not know.
"""

from __future__ import annotations

import json
import re
from typing import Any

from leptonstore.digest import digest_of
from leptonstore.errors import FormatDamaged, FormatTooNew

MAJOR, MINOR = 1, 0
FEATURES_KNOWN = 0  # bit set of the required features that this version implements: none yet

_HEADER = re.compile(rb"lepton-([a-z]{1,16}) (\d{1,5})\.(\d{1,5}) ([0-9a-f]{8}) (\d{1,12}) ([0-9a-f]{64})\n")
HEADER_BYTES_MAX = 16 + 7 + 1 + 11 + 1 + 8 + 1 + 12 + 1 + 64 + 1


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding of `value`. Raises TypeError or ValueError when it has none (NaN, sets, …)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_json(data: bytes, what: str) -> Any:
    """JSON -> value; FormatDamaged when it is not JSON (NaN and infinities included)."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FormatDamaged(f"{what} is damaged: not valid JSON ({error})") from None


def encode(kind: str, body: dict[str, Any], features: int = 0) -> bytes:
    """A framed document of `kind` (a-z, at most 16 letters)."""
    payload = canonical_json(body)
    header = f"lepton-{kind} {MAJOR}.{MINOR} {features:08x} {len(payload)} {digest_of(payload).hex()}\n"
    return header.encode("ascii") + payload


def parse(data: bytes, kind: str, what: str) -> dict[str, Any]:
    """The body of a framed document of `kind`; `what` names it in errors.

    Raises FormatDamaged (not this kind, truncated, trailing bytes, wrong check) or FormatTooNew.
    """
    match = _HEADER.match(data[:HEADER_BYTES_MAX])
    if match is None or match[1].decode() != kind:
        raise FormatDamaged(f"{what} is damaged: it does not begin as a lepton-{kind} document")
    major, minor, features, length = int(match[2]), int(match[3]), int(match[4], 16), int(match[5])
    if major > MAJOR:
        raise FormatTooNew(
            f"{what} has format {major}.{minor}; this LeptonStore reads up to {MAJOR}.x: upgrade LeptonStore"
        )
    if features & ~FEATURES_KNOWN:
        raise FormatTooNew(
            f"{what} needs features {features & ~FEATURES_KNOWN:#x}, which this LeptonStore lacks: upgrade LeptonStore"
        )
    body = data[match.end() :]
    if len(body) != length:
        raise FormatDamaged(f"{what} is damaged: {len(body)} bytes of body where its header says {length}")
    if digest_of(body).hex() != match[6].decode():
        raise FormatDamaged(f"{what} is damaged: its body does not match the check in its header")
    value = parse_json(body, what)
    if not isinstance(value, dict):
        raise FormatDamaged(f"{what} is damaged: its body is not an object")
    return value
