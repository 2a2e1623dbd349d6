"""Small documents of the store: one header line, then canonical JSON.

    lepton-<kind> <major>.<minor> <required features, 8 hex> <body bytes> <BLAKE3-256 of the body, 64 hex>\\n
    {"…": …}

The header can be read with `head -1`, the body with any JSON tool. Canonical JSON: UTF-8, keys sorted, no spaces, no
NaN or infinity. A reader refuses a larger major version or a required feature that it does not know. Required features: 1 the body is
sealed (leptonstore/crypto.py: a salt and a ciphertext stand in place of the JSON), 2 the store is encrypted (its config says so).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from leptonstore.digest import digest_of
from leptonstore.errors import FormatDamaged, FormatTooNew
from leptonstore.version import __version__

MAJOR, MINOR = 1, 0
FEATURE_SEALED, FEATURE_ENCRYPTED_STORE = 1, 2
# Features that documents require by name, beside the bits of the header line: name -> what a program without it would break.
NAMED_FEATURES = {
    "references": "a reader would take chunks whose bytes stand in objects outside of the store for damage",
    "tiers": "a reader that knows only the home would take packs in other tiers for lost",
    "quotas": "a writer that does not know quotas of datasets would publish beyond them",
    "epochs": "a writer that does not know epochs could publish what it had put before an erasure",
    "fences": "a writer that does not heed the fences of garbage collection could rely on a pack that is being deleted",
}
FEATURES_KNOWN = FEATURE_SEALED | FEATURE_ENCRYPTED_STORE  # bits that this version implements

_HEADER = re.compile(rb"lepton-([a-z]{1,16}) (\d{1,5})\.(\d{1,5}) ([0-9a-f]{8}) (\d{1,12}) ([0-9a-f]{64})\n")
HEADER_BYTES_MAX = 16 + 7 + 1 + 11 + 1 + 8 + 1 + 12 + 1 + 64 + 1


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding of `value`. Raises TypeError or ValueError when it has none (NaN, sets, …)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_json(data: bytes, what: str) -> Any:
    """JSON -> value; FormatDamaged when it is not JSON (NaN and infinities included, also 1e999)."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise FormatDamaged(f"{what} is damaged: not valid JSON ({error})") from None


class Frame(NamedTuple):
    """A document whose header line was checked against its body; the body is not parsed yet."""

    kind: str
    major: int
    minor: int
    features: int
    body: bytes

    @property
    def prefix(self) -> bytes:
        """The header line up to the features: what a seal of the body is bound to."""
        return prefix(self.kind, self.major, self.minor, self.features)


def prefix(kind: str, major: int, minor: int, features: int) -> bytes:
    """The beginning of a header line."""
    return f"lepton-{kind} {major}.{minor} {features:08x}".encode("ascii")


def frame(kind: str, body: bytes, features: int = 0) -> bytes:
    """A document of `kind` (a-z, at most 16 letters) around any bytes."""
    return prefix(kind, MAJOR, MINOR, features) + f" {len(body)} {digest_of(body).hex()}\n".encode("ascii") + body


def unframe(data: bytes, kind: str, what: str) -> Frame:
    """A document of `kind`, taken apart; `what` names it in errors.

    Raises FormatDamaged (not this kind, truncated, trailing bytes, wrong check) or FormatTooNew.
    """
    match = _HEADER.match(data[:HEADER_BYTES_MAX])
    if match is None or match[1].decode() != kind:
        raise FormatDamaged(f"{what} is damaged: it does not begin as a lepton-{kind} document")
    major, minor, features, length = int(match[2]), int(match[3]), int(match[4], 16), int(match[5])
    if major > MAJOR:
        raise FormatTooNew(
            f"{what} has format {major}.{minor}{_maker(data)}; this LeptonStore ({__version__}) reads up to {MAJOR}.x: "
            "upgrade LeptonStore"
        )
    if features & ~FEATURES_KNOWN:
        raise FormatTooNew(
            f"{what} needs features {features & ~FEATURES_KNOWN:#x}{_maker(data)}, which this LeptonStore ({__version__}) "
            "lacks: upgrade LeptonStore"
        )
    body = data[match.end() :]
    if len(body) != length:
        raise FormatDamaged(f"{what} is damaged: {len(body)} bytes of body where its header says {length}")
    if digest_of(body).hex() != match[6].decode():
        raise FormatDamaged(f"{what} is damaged: its body does not match the check in its header")
    return Frame(kind, major, minor, features, body)


def _maker(data: bytes) -> str:
    """Who made a document that we cannot read, as far as it says so in the way that 1.0 does."""
    match = re.search(rb'"made_by":"([\w.+ -]{1,60})"', data[: 1 << 16])
    return f" (made by {match[1].decode()})" if match else ""


def parse_body(body: bytes, what: str) -> dict[str, Any]:
    """The object that a body is. Raises FormatDamaged."""
    value = parse_json(body, what)
    if not isinstance(value, dict):
        raise FormatDamaged(f"{what} is damaged: its body is not an object")
    _refuse_unknown(value, what)
    return value


def _refuse_unknown(value: dict[str, Any], what: str) -> None:
    """Any document may list in `requires` the features that its reader must know, and in `made_by` who wrote it."""
    required = value.get("requires", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise FormatDamaged(f"{what} is damaged: its required features are not a list of names")
    unknown = sorted(set(required) - set(NAMED_FEATURES))
    if unknown:
        maker = value.get("made_by") or "a newer version"
        raise FormatTooNew(
            f"{what} was made by {maker} and needs the feature {', '.join(map(repr, unknown))}, which this LeptonStore "
            f"({__version__}) lacks: upgrade LeptonStore"
        )


def encode(kind: str, body: dict[str, Any], features: int = 0) -> bytes:
    """A framed document of `kind`."""
    return frame(kind, canonical_json(body), features)


def parse(data: bytes, kind: str, what: str) -> dict[str, Any]:
    """The body of a framed document of `kind`. Raises FormatDamaged (sealed ones included) or FormatTooNew."""
    found = unframe(data, kind, what)
    if found.features & FEATURE_SEALED:
        raise FormatDamaged(f"{what} is sealed, but its store is not encrypted: the config was altered, restore it")
    return parse_body(found.body, what)
