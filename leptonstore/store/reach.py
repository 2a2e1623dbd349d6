"""What versions reach, each chunk once, in bounded memory: the mark of garbage collection and the check of a writer.

Breadth first: commits, then tree nodes by level from the top, then pages that hold references. Each step is a set of keys that is
sorted on disk (store/runs.py), so a node that many versions share is read once, and memory does not grow with the store. (One entry for
each commit stays in memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, Digest, parse_hex
from leptonstore.errors import FormatDamaged
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.format.node import InternalNode, parse_node
from leptonstore.format.page import REFERENCE, decode_page
from leptonstore.store.runs import Keys, SortedRuns, iter_keys, positions

_TAG_BYTES = 4  # which schema, or which type, a node or page has
_READ_KEYS = 1_024  # nodes or pages that are asked for at a time


class Source(Protocol):
    """Where plain bytes come from: a Store."""

    def get(self, digest: Digest) -> bytes:
        """Raises ChunkMissing or ChunkCorrupt."""

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """`get` of each, in order."""


class Reach:
    """One walk. `visit` sees the digest of every chunk that is reached, some of them several times; pieces of long values are not told.

    Raises ChunkMissing, ChunkCorrupt, FormatDamaged or FormatTooNew where something cannot be read to go further.
    """

    def __init__(self, source: Source, visit: Callable[[Digest], None], folder: Path | None = None) -> None:
        self._source, self._visit, self._folder = source, visit, folder
        self._schemas: list[pa.Schema] = []
        self._types: list[pa.DataType] = []
        self._levels = [self._runs() for _ in range(limits.NODE_LEVEL_MAX + 1)]
        self._known_levels = [self._runs() for _ in range(limits.NODE_LEVEL_MAX + 1)]
        self._known_parts = SortedRuns(DIGEST_BYTES, folder)
        self._pages = self._runs()
        self.stopped: set[str] = set()  # commits that were reached, and not entered because they were to stop the walk

    def _runs(self) -> SortedRuns:
        return SortedRuns(DIGEST_BYTES + _TAG_BYTES, self._folder)

    def walk(
        self,
        commits: Iterable[str],
        forgotten: Set[str] = frozenset(),
        stop: Set[str] = frozenset(),
        history: bool = True,
        known: Iterable[str] = (),
    ) -> set[str]:
        """Walk `commits` and, with `history`, what came before them; returns the commits that were met.

        forgotten: commits whose parents are not followed. stop: commits that are not entered. known: commits whose trees
        are left out as far as that costs no more than what differs from them.
        """
        met: set[str] = set()
        queue = list(commits)
        while queue:
            current = queue.pop()
            if current in stop:
                self.stopped.add(current)
            if current in met or current in stop:
                continue
            met.add(current)
            found = self._commit(current)
            if history and current not in forgotten:
                queue += [parent.hex() for parent in found.parents]
        for commit in known:
            self._root(parse_commit(self._source.get(parse_hex(commit))), self._known_levels)
        for level in range(limits.NODE_LEVEL_MAX, -1, -1):
            nodes, self._levels[level] = self._levels[level].finish(), self._runs()
            others, self._known_levels[level] = self._known_levels[level].finish(), self._runs()
            for key, data in self._read(others[~positions(nodes, others)[1]]):
                self._pass_by(key, data, level)
            parts, self._known_parts = self._known_parts.finish(), SortedRuns(DIGEST_BYTES, self._folder)
            for key, data in self._read(nodes[~positions(others, nodes)[1]] if len(others) else nodes):
                self._node(key[:-_TAG_BYTES], data, int.from_bytes(key[-_TAG_BYTES:], "little"), level, parts)
        pages, self._pages = self._pages.finish(), self._runs()
        for key, data in self._read(pages):
            self._page(data, self._types[int.from_bytes(key[-_TAG_BYTES:], "little")])
        return met

    def _read(self, keys: Keys) -> Iterator[tuple[bytes, bytes]]:
        """Each key with the bytes of its node or page. Where requests are dear, many are read together."""
        for first in range(0, len(keys), _READ_KEYS):
            batch = list(iter_keys(keys[first : first + _READ_KEYS]))
            yield from zip(batch, self._source.get_many([key[:-_TAG_BYTES] for key in batch]), strict=True)

    def _commit(self, name: str) -> Commit:
        digest = parse_hex(name)
        commit = parse_commit(self._source.get(digest))
        self._visit(digest)
        self._root(commit, self._levels)
        return commit

    def _root(self, commit: Commit, levels: list[SortedRuns]) -> None:
        if commit.root is not None:
            node = parse_node(self._source.get(commit.root))
            level = node.level if isinstance(node, InternalNode) else 0
            levels[level].add(commit.root + _tag(self._schemas, commit.schema))

    def _pass_by(self, key: bytes, data: bytes, level: int) -> None:
        """A node of a known tree that differs from those to be walked: what is below it may still be shared."""
        node = parse_node(data)
        if isinstance(node, InternalNode):
            self._known_levels[level - 1].add_all(child.digest + key[-_TAG_BYTES:] for child in node.children)
        else:
            self._known_parts.add_all(part.digest for parts in node.columns for part in parts)

    def _node(self, digest: Digest, data: bytes, schema: int, level: int, known_parts: Keys) -> None:
        node = parse_node(data)
        self._visit(digest)
        if (node.level if isinstance(node, InternalNode) else 0) != level:
            raise FormatDamaged(f"tree node {digest.hex()[:16]} is not on the level that its parent says")
        if isinstance(node, InternalNode):
            tag = schema.to_bytes(_TAG_BYTES, "little")
            self._levels[level - 1].add_all(child.digest + tag for child in node.children)
            return
        for field, parts in zip(self._schemas[schema], node.columns, strict=True):
            tagged = _tag(self._types, field.type) if any(part.has_references for part in parts) else b""
            for part in parts:
                if len(known_parts) and positions(known_parts, np.array([part.digest], known_parts.dtype))[1][0]:
                    continue
                self._visit(part.digest)
                if part.has_references:
                    self._pages.add(part.digest + tagged)

    def _page(self, data: bytes, data_type: pa.DataType) -> None:
        page = decode_page(data, data_type)
        if page.references is None:
            return
        for value in page.values.filter(pa.array(page.references)).cast(pa.large_binary()).to_pylist():
            self._visit(REFERENCE.unpack(value)[0])


def _tag(known: list[Any], value: object) -> bytes:
    """The number of `value` among the schemas or types that were met: a handful, so a search is enough."""
    if value not in known:
        known.append(value)
    return known.index(value).to_bytes(_TAG_BYTES, "little")


def protected(source: Source, heads: Iterable[str], forgotten: Set[str], wanted: Set[str]) -> set[str]:
    """Those of `wanted` that are a head, or came before one within the boundaries. Reads no further than it must."""
    found: set[str] = set()
    met: set[str] = set()
    queue = list(heads)
    found |= wanted & set(queue)
    while queue and found != wanted:
        current = queue.pop()
        if current in met:
            continue
        met.add(current)
        if current in wanted:
            found.add(current)
        if current not in forgotten:
            queue += [parent.hex() for parent in parse_commit(source.get(parse_hex(current))).parents]
    return found
