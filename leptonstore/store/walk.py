"""What a commit reaches: every chunk, with the rows and the column that it belongs to.

Used by `check` (what is missing, and which rows does that cost) and by the statistics of a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged, FormatTooNew, TierUnavailable
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.format.node import Part, RowGroup, parse_node
from leptonstore.format.page import REFERENCE, decode_page
from leptonstore.store.store import Store
from leptonstore.store.stored import Stored

Unreadable = (ChunkCorrupt, ChunkMissing, FormatDamaged, FormatTooNew)
_Stops = (*Unreadable, TierUnavailable)  # of these, a walk goes on beside what cannot be read


class Reached(NamedTuple):
    """A chunk and what it holds. `rows` is [first, end); `error` is set when it could not be read to go further."""

    digest: Digest
    what: str  # "commit", "node", "page", "value" or "piece"
    rows: tuple[int, int]
    column: str = ""
    error: Exception | None = None
    fact: Stored | None = None  # None of what is not published

    def place(self, name: str) -> str:
        """For people: where in dataset `name` this is."""
        first, end = self.rows
        if self.what == "commit":
            return f"{name} (its commit: all rows)"
        rows = f"row {first}" if end - first == 1 else f"rows {first}-{max(first, end - 1)}"
        column = f" column {self.column!r}" if self.column else " (a tree node: all columns)"
        return f"{name} {rows}{column}"


def walk(store: Store, commit_digest: str, seen: set[Digest] | None = None) -> Iterator[Reached]:
    """Everything that one commit reaches (its parents are not followed), parents of the tree before their children.

    With `seen`, whatever is in it is passed over, and what is met is added. What a tier has that is away is told with the error
    TierUnavailable: it is neither missing nor damaged.
    """
    digest = parse_hex(commit_digest)
    try:
        commit = parse_commit(store.get(digest))
    except _Stops as error:
        yield Reached(digest, "commit", (0, 0), error=error)
        return
    yield from _with_pieces(store, Reached(digest, "commit", (0, commit.rows)))
    if commit.root is not None:
        yield from _walk_node(store, commit, commit.root, 0, commit.rows, seen if seen is not None else set())


def walk_group(store: Store, commit: Commit, digest: Digest) -> Iterator[Reached]:
    """A row group of `commit` and everything below it. Rows are counted from the group's first."""
    yield from _walk_node(store, commit, digest, 0, 0, set())


def walk_one(store: Store, digest: Digest) -> Iterator[Reached]:
    """One tree node without what is below it (with its pieces, where it is stored in several)."""
    yield from _with_pieces(store, Reached(digest, "node", (0, 0)))


def _walk_node(
    store: Store, commit: Commit, digest: Digest, first: int, rows: int, seen: set[Digest]
) -> Iterator[Reached]:
    if digest in seen:
        return
    seen.add(digest)
    here = Reached(digest, "node", (first, first + rows))
    try:
        node = parse_node(store.get(digest))
    except _Stops as error:
        yield here._replace(error=error)
        return
    yield from _with_pieces(store, here)
    if isinstance(node, RowGroup):
        every = [part.digest for parts in node.columns for part in parts]
        facts = dict(zip(every, store.stored_many(every), strict=True))
        for field, parts in zip(commit.schema, node.columns, strict=False):
            at = first
            for part in parts:
                yield from _walk_part(store, part, at, field, seen, facts[part.digest])
                at += part.rows
        return
    at = first
    for child in node.children:
        yield from _walk_node(store, commit, child.digest, at, child.rows, seen)
        at += child.rows


def _walk_part(
    store: Store, part: Part, first: int, field: pa.Field, seen: set[Digest], fact: Stored | None
) -> Iterator[Reached]:
    if part.digest in seen:
        return
    seen.add(part.digest)
    here = Reached(part.digest, "page", (first, first + part.rows), field.name, fact=fact)
    yield from _told(store, here)
    if not part.has_references:
        return
    try:
        page = decode_page(store.get(part.digest), field.type)
    except _Stops as error:
        yield here._replace(error=error)
        return
    if page.references is None:
        return
    values: dict[Digest, int] = {}
    for row in page.references.nonzero()[0].tolist():
        value, _ = REFERENCE.unpack(page.values[row].as_py())
        if value not in seen:
            seen.add(value)
            values[value] = first + row
    for (value, row), known in zip(values.items(), store.stored_many(list(values)), strict=True):
        yield from _told(store, Reached(value, "value", (row, row + 1), field.name, fact=known))


def _with_pieces(store: Store, here: Reached) -> Iterator[Reached]:
    return _told(store, here._replace(fact=store.stored_many([here.digest])[0]))


def _told(store: Store, here: Reached) -> Iterator[Reached]:
    """`here`, of which the fact is known, and its pieces when it is stored as a chunk list."""
    if here.fact is None:
        yield here if store.has(here.digest) else here._replace(error=store.why_absent(here.digest))
        return
    yield here
    if here.fact.kind == lpk.KIND_CHUNK_LIST:
        try:
            _, data = store.record(here.digest)
        except _Stops as error:
            yield here._replace(error=error)
            return
        pieces = [piece for piece, _ in lpk.parse_chunk_list(data).pieces]
        for piece, fact in zip(pieces, store.stored_many(pieces), strict=True):
            why = store.why_absent(piece, here.digest.hex()[:16]) if fact is None else None
            yield here._replace(digest=piece, what="piece", error=why, fact=fact)
