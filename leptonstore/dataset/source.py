"""What an importer hands to a dataset: a schema, the columns that identify a row, and a stream of record batches.

A `Source` is cheap to make: opening one reads headers and listings only, so that a wrong path, magic or schema is
reported before anything is stored. `batches()` may be called more than once and must yield the same rows in the same
order each time: the import of equal bytes is the same commit on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset
    from leptonstore.dataset.values import Column
    from leptonstore.store import Store
    from leptonstore.store.references import Spot


@dataclass(frozen=True)
class Referred:
    """A table whose large values stand byte for byte in objects, so that a store can keep where they stand instead of them.

    root:    URL of the folder that the objects lie in, as leptonstore.tiers.external.root_of writes it.
    batches: like those of the source, each with what is known of columns: for each row where its value stands, or None.
    """

    root: str
    batches: Callable[[], Iterator[tuple[pa.RecordBatch, dict[str, list[Spot | None]]]]]


@dataclass(frozen=True)
class Source:
    """A table that can be streamed into a dataset.

    schema:   Arrow schema with the semantic types of `leptonstore.dataset.schema` in its field metadata.
    identity: names of the columns whose values cut row groups (the key in a keyed table); at least one.
    batches:  callable that starts a fresh stream of `pa.RecordBatch` with exactly `schema`; memory stays bounded.
    rows:     number of rows when it is known before reading, else None (used for progress only).
    stored:   for sources that put large values themselves, on threads of their own: (store, head version or None) ->
              lists of columns as pages keep them. Used instead of `batches` where it is given.
    unchanged: (store, ref, head version) -> whether an import would change nothing, found out without reading content.
    published: called with (store, ref, commit) when the version is published, or found to be there already.
    notes:    what people should know, in lines; may grow while rows are read.
    referred: for an import by reference: used instead of `batches` where it is given; the rows are the same.
    keyed:    the identity columns are a key: rows are sorted by it, and two rows of one key are refused.
    lineage:  JSON-able and deterministic: format, file names (never absolute paths), sizes, digests. Part of the commit.
    """

    schema: pa.Schema
    identity: tuple[str, ...]
    batches: Callable[[], Iterator[pa.RecordBatch]]
    rows: int | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    stored: Callable[[Store, Dataset | None], Iterator[list[Column]]] | None = None
    unchanged: Callable[[Store, str, Dataset], bool] | None = None
    published: Callable[[Store, str, str], None] | None = None
    notes: list[str] = field(default_factory=list)
    keyed: bool = False
    referred: Referred | None = None
