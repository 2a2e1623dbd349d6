"""Rows as dicts of Python and numpy values, without a table in between: what `ds[i]` and torch's DataLoader ask for.

row -> row group (the tree) -> page of each column -> value; then the values that stand elsewhere, read together
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from leptonstore.dataset.groups import told, told_at
from leptonstore.dataset.pages import Pages
from leptonstore.dataset.tree import Leaf, Leaves, Rows
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from leptonstore.format.page import REFERENCE
from leptonstore.tiers.chunks import ChunkReader


class RowReader:
    """Reads single rows of a version. Any thread."""

    def __init__(self, chunks: ChunkReader, schema: pa.Schema, leaves: Leaves, pages: Pages, label: str) -> None:
        self._chunks, self._leaves, self._pages, self._label = chunks, leaves, pages, label
        self._fields = list(schema)
        self._columns = [(index, field.name) for index, field in enumerate(schema)]

    def one(self, row: int) -> dict[str, Any]:
        """A row of the version. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        return self.many([row])[0]

    def many(self, rows: Sequence[int] | Rows, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of the version, in the order given; of all columns, or of those that are named, in that order."""
        columns = self._columns
        if names is not None:
            columns = [(index, name) for wanted in names for index, name in self._columns if name == wanted]
        out: list[dict[str, Any]] = []
        elsewhere: list[tuple[int, int, Digest]] = []  # (which of `rows`, column, chunk that holds the value)
        at, fields, leaf, layout = self._pages.at, self._fields, None, None
        for row in rows if isinstance(rows, list) else [int(row) for row in rows]:
            if leaf is None or layout is None or not leaf.first <= row < leaf.end:
                leaf = self._find(row)
                layout = self._pages.layout(leaf)
            values: dict[str, Any] = {}
            for index, name in columns:
                page, place = at(layout, index, fields[index], row)
                if page.references is not None and page.references[place]:
                    elsewhere.append((len(out), index, REFERENCE.unpack(page.values[place].as_py())[0]))
                    values[name] = None  # keeps its place among the columns
                elif page.references is not None:  # such a page holds bytes, whatever the column's type is
                    inline = page.values[place].as_py()
                    values[name] = None if inline is None else self._typed(inline, row, fields[index])
                else:
                    values[name] = _value(page, place)
            out.append(values)
        if elsewhere:
            for (which, index, _), data in zip(elsewhere, self._read(rows, elsewhere), strict=True):
                out[which][self._fields[index].name] = self._typed(data, int(rows[which]), self._fields[index])
        return out

    def _find(self, row: int) -> Leaf:
        try:
            return self._leaves.find(row)
        except (ChunkCorrupt, ChunkMissing) as error:
            raise told(error, f"{self._label} rows 0-{self._leaves.rows - 1} (a tree node)") from None

    def _read(self, rows: Sequence[int] | Rows, elsewhere: list[tuple[int, int, Digest]]) -> Iterator[Buffer]:
        stream = self._chunks.get_many([digest for _, _, digest in elsewhere])
        for which, index, _ in elsewhere:
            with told_at(f"{self._label} row {rows[which]} column {self._fields[index].name!r}"):
                value = next(stream)
            yield value

    def _typed(self, data: Buffer, row: int, field: pa.Field) -> str | bytes:
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            return bytes(data)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise FormatDamaged(
                f"{self._label} row {row} column {field.name!r}: text that is not UTF-8 ({error})"
            ) from None


def _value(page: Column, at: int) -> Any:
    tensors = page.tensors
    if tensors is None:
        return page.values[at].as_py()
    # A row of its own: one that points into the page would keep all of it in memory, and be read-only.
    return tensors[at].copy() if page.values.null_count == 0 or page.values[at].is_valid else None
