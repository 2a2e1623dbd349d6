"""What `find` answers of a digest: a daemon packs it, a client reads it. docs/WIRE.md is the specification.

kind u8 (0 absent, 1 chunk, 2 chunk list, 3 reference) | flags u8: 1 stored as it is, 2 metadata, 12 plane width (0, 2, 4 or 8: 0 to 3)
| plain u64: bytes of the value | stored u64: what it takes in its pack
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from leptonstore.digest import DIGEST_BYTES
from leptonstore.format import pack as lpk
from leptonstore.store.stored import Stored

FOUND = np.dtype([("kind", "u1"), ("flags", "u1"), ("plain", "<u8"), ("stored", "<u8")])
KINDS = {lpk.KIND_CHUNK: 1, lpk.KIND_CHUNK_LIST: 2, lpk.KIND_REFERENCE: 3}
_KINDS_BACK = {number: kind for kind, number in KINDS.items()}
_RAW, _META, _WIDTH_SHIFT = 1, 2, 2
PLANE_WIDTHS = (0, 2, 4, 8)  # of floats; 0: of other bytes
# What `put` sends: records, in an order in which pieces come before their list.
PUT_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
        pa.field("kind", pa.uint8(), nullable=False),
        pa.field("content", pa.uint8(), nullable=False),
        pa.field("plane_width", pa.uint8(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)


def pack_found(one: Stored, plain: int) -> tuple[int, int, int, int]:
    """A row of FOUND. plain: bytes of the value, of one in pieces too."""
    width = PLANE_WIDTHS.index(one.plane_width) if one.plane_width in PLANE_WIDTHS else 0
    flags = _RAW * one.raw | _META * (one.content == lpk.CONTENT_META) | width << _WIDTH_SHIFT
    return KINDS[one.kind], flags, plain, one.stored


def parse_found(kind: int, flags: int, plain: int, stored: int) -> Stored | None:
    """What a row of FOUND says; None of an absent one. Raises ValueError."""
    if not kind:
        return None
    if kind not in _KINDS_BACK:
        raise ValueError(f"there is no kind {kind}")
    content = lpk.CONTENT_META if flags & _META else lpk.CONTENT_DATA
    width = PLANE_WIDTHS[flags >> _WIDTH_SHIFT & 3]
    whole = None if _KINDS_BACK[kind] == lpk.KIND_CHUNK_LIST else plain
    return Stored(_KINDS_BACK[kind], whole, stored, content, width, bool(flags & _RAW))
