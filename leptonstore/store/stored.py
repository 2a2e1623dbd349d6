"""What a store can say of a chunk without reading it: the same of one that lies here and of one behind a daemon."""

from __future__ import annotations

from typing import NamedTuple


class Stored(NamedTuple):
    """A published chunk. Sizes are bytes."""

    kind: int  # format.pack.KIND_*
    plain: int | None  # of its value; None of one that is kept in pieces
    stored: int  # what it takes in its pack
    content: int  # format.pack.CONTENT_*
    plane_width: int  # of a value of floats; 0
    raw: bool  # stored as it is
