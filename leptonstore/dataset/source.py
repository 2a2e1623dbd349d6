"""What an importer hands to a dataset: a schema, the columns that identify a row, and a stream of record batches.

A `Source` is cheap to make: opening one reads headers and listings only, so that a wrong path, magic or schema is
reported before anything is stored. `batches()` may be called more than once and must yield the same rows in the same
order each time: the import of equal bytes is the same commit on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Source:
    """A table that can be streamed into a dataset.

    schema:   Arrow schema with the semantic types of `leptonstore.dataset.schema` in its field metadata.
    identity: names of the columns whose values cut row groups (the key in a keyed table); at least one.
    batches:  callable that starts a fresh stream of `pa.RecordBatch` with exactly `schema`; memory stays bounded.
    rows:     number of rows when it is known before reading, else None (used for progress only).
    lineage:  JSON-able and deterministic: format, file names (never absolute paths), sizes, digests. Part of the commit.
    """

    schema: pa.Schema
    identity: tuple[str, ...]
    batches: Callable[[], Iterator[pa.RecordBatch]]
    rows: int | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
