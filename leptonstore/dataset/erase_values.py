"""What erased rows hold, as bytes to search for; and which rows of versions that stay hold the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.erase_rows import Rows, split
from leptonstore.dataset.groups import read_column
from leptonstore.dataset.tree import Leaves
from leptonstore.dataset.values import resolve, take
from leptonstore.digest import Digest, parse_hex
from leptonstore.format.commit import Commit
from leptonstore.format.node import InternalNode, Part, parse_node
from leptonstore.format.page import REFERENCE, as_binary, canonical_values, decode_page, fixed_width, is_variable
from leptonstore.store import Store
from leptonstore.store.search import Needles, patterns_of
from leptonstore.store.versions import Version, all_versions


def bytes_of(array: pa.Array) -> Iterator[bytes]:
    """The bytes of each value as pages and chunks have them; of nested ones, those of the parts. Bits (booleans, nulls) are left out."""
    if isinstance(array, pa.ExtensionArray):
        yield from bytes_of(array.storage)
    elif is_variable(array.type):
        yield from (value for value in array.cast(as_binary(array.type)).to_pylist() if value is not None)
    elif (width := fixed_width(array.type)) is not None:
        data = bytes(canonical_values(array))
        yield from (data[at : at + width] for at in range(0, len(data), width))
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from bytes_of(child)
    elif pa.types.is_nested(array.type):
        for row in range(len(array)):
            within = array.slice(row, 1).flatten()
            if fixed_width(within.type) is not None:
                yield bytes(canonical_values(within))
            else:
                yield from bytes_of(within)


@dataclass
class Erased:
    """What is known of the values of erased rows. short: how many were too short, too plain or too many to be searched for."""

    patterns: set[bytes]
    large: set[Digest]  # values that are chunks of their own
    texts: set[str]
    short: int = 0
    size: int = 0  # bytes of `patterns`

    def take(self, value: bytes, piece_bytes_min: int) -> bool:
        """Search for this value, too: whether it is searched for as a whole."""
        parts = set(patterns_of(value, piece_bytes_min))
        new = parts - self.patterns
        size = sum(map(len, new))
        if self.size + size > limits.SEARCH_PATTERNS_BYTES_MAX:
            parts = set()
        else:
            self.patterns |= new
            self.size += size
        self.short += not parts
        return value in parts

    def add(self, other: Erased) -> None:
        """The values of others, too."""
        self.patterns |= other.patterns
        self.large |= other.large
        self.texts |= other.texts
        self.short += other.short
        self.size += other.size


def erased_values(
    store: Store,
    commits: Mapping[str, Commit],
    rows: Mapping[str, Rows],
    progress: Callable[[int], None] = lambda rows: None,
) -> Erased:
    """The values of `rows` (version -> row numbers), each row group once. Raises ChunkMissing, ChunkCorrupt."""
    found, seen, done = Erased(set(), set(), set()), set(), 0
    piece = store.config.chunks.min_size
    for commit, wanted in rows.items():
        version = commits[commit]
        for first, digest, group, within in split(Leaves(store, version.root, version.rows), wanted):
            key = (digest, within.tobytes(), tuple(version.schema.names))
            if key in seen:
                continue
            seen.add(key)
            for number, field in enumerate(version.schema):
                column = take(read_column(store, group.columns[number], field, first, commit[:12]), within)
                if column.references is not None:
                    binary = column.values.cast(as_binary(field.type))
                    chosen = np.flatnonzero(column.references).tolist()
                    found.large.update(REFERENCE.unpack(binary[at].as_py())[0] for at in chosen)
                for value in bytes_of(resolve(store, column, field.type)):
                    if found.take(value, piece) and pa.types.is_unicode(field.type):
                        found.texts.add(value.decode())
            done += len(within)
            progress(done)
    return found


@dataclass(frozen=True)
class Shared:
    """Where a version that stays holds a value of an erased row. what: "rows", "node" or "commit"."""

    version: str
    rows: tuple[int, ...]
    column: str
    what: str

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.version} ({self.what})"
        rows = ", ".join(map(str, self.rows[:10])) + (" …" if len(self.rows) > 10 else "")
        return f"{self.version} rows {rows} column {self.column!r}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"version": self.version, "rows": list(self.rows), "column": self.column, "what": self.what}


def holders(
    store: Store,
    digests: Mapping[Digest, set[int]],
    needles: Needles | None = None,
    erased: Mapping[str, Rows] | None = None,
    named: Callable[[Digest], Digest] = lambda digest: digest,
) -> list[Shared]:
    """Where the chunks `digests` stand in versions, each row group once a dataset.

    needles: of a page, only rows that hold one. erased: version -> rows that do not count. named: what `digests` calls a chunk.
    """
    found: list[Shared] = []
    seen: set[tuple[str, Digest]] = set()
    for version in all_versions(store):
        gone = {} if erased is None else dict.fromkeys(erased.get(version.commit, np.empty(0, np.int64)).tolist())
        for one in _Holder(store, version, digests, needles, named, seen).find():
            rows = tuple(row for row in one.rows if row not in gone)
            if rows or not one.rows:
                found.append(replace(one, rows=rows))
    return found


class _Holder:
    """`holders` of one version. seen: what was looked at in versions of the same name."""

    def __init__(
        self,
        store: Store,
        version: Version,
        digests: Mapping[Digest, set[int]],
        needles: Needles | None,
        named: Callable[[Digest], Digest],
        seen: set[tuple[str, Digest]],
    ) -> None:
        self._store, self._version, self._needles, self._seen = store, version, needles, seen
        self._wanted = lambda digest: named(digest) in digests

    def find(self) -> Iterator[Shared]:
        """Nothing of a version that cannot be read: check and repair tell of those."""
        version, commit = self._version, self._version.object
        if commit is None or not self._is_new(parse_hex(version.commit)):
            return
        if self._wanted(parse_hex(version.commit)):
            yield Shared(version.label, (), "", "commit")
        if commit.root is not None:
            yield from self._node(commit, commit.root, 0)

    def _is_new(self, digest: Digest) -> bool:
        key = (self._version.name, digest)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _node(self, commit: Commit, digest: Digest, first: int) -> Iterator[Shared]:
        if not self._is_new(digest):
            return
        if self._wanted(digest):
            yield Shared(self._version.label, (), "", "node")
        node = parse_node(self._store.get(digest))
        if isinstance(node, InternalNode):
            for child in node.children:
                yield from self._node(commit, child.digest, first)
                first += child.rows
            return
        for kind, parts in zip(commit.schema, node.columns, strict=True):
            at = first
            for part in parts:
                rows = self._rows(part, kind) if part.has_references or self._wanted(part.digest) else []
                if rows:
                    yield Shared(self._version.label, tuple(at + row for row in rows), kind.name, "rows")
                at += part.rows

    def _rows(self, part: Part, kind: pa.Field) -> list[int]:
        """Rows of a page that hold what is searched for, in the page or as a reference."""
        page = decode_page(self._store.get(part.digest), kind.type)
        rows = set()
        if self._wanted(part.digest):
            one_by_one = (page.values.slice(row, 1) for row in range(len(page.values)))
            rows = {
                row for row, value in enumerate(one_by_one) if self._needles is None or _holds(value, self._needles)
            }
        if page.references is not None:
            values = page.values.cast(as_binary(kind.type))
            for row in np.flatnonzero(page.references).tolist():
                value = REFERENCE.unpack(values[row].as_py())[0]
                pieces = self._store.pieces(value) or ()
                if self._wanted(value) or any(self._wanted(piece) for piece, _ in pieces):
                    rows.add(row)
        return sorted(rows)


def _holds(value: pa.Array, needles: Needles) -> bool:
    return any(needles.find(data) for data in bytes_of(value))


def redacted(value: Any, texts: Iterable[str]) -> Any:
    """A JSON value without these texts in any of its texts: what a commit says of itself may quote a row."""
    if isinstance(value, str):
        for text in texts:
            value = value.replace(text, "(erased)")
        return value
    if isinstance(value, dict):
        return {redacted(key, texts): redacted(one, texts) for key, one in value.items()}
    if isinstance(value, list):
        return [redacted(one, texts) for one in value]
    return value
