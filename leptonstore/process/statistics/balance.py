"""Class balance: rows by split and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import FormatDamaged
from leptonstore.process import columns
from leptonstore.process.statistics.record import pack, take, unpack
from leptonstore.process.statistics.results import ClassBalance

Table = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """A column of class labels, the names of its classes, and those of the splits (none: there is no column of splits)."""

    column: str
    names: tuple[str, ...]
    splits: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, chosen: Sequence[str]) -> list[Classes]:
        """The chosen label columns of a schema."""
        splits = tuple(columns.split_names(schema))
        labels = columns.label_columns(schema)
        return [cls(name, tuple(labels[name]), splits) for name in chosen if name in labels]

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that it looks at."""
        return (self.column, columns.SPLIT) if self.splits else (self.column,)

    @property
    def recipe(self) -> str:
        """What decides the table, beside the pages."""
        return f"balance 1 {len(self.names)} {len(self.splits)}"

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table. Its last row and column count rows without a (valid) split or class."""
        return len(self.splits) + 1, len(self.names) + 1

    def count(self, arrays: Sequence[pa.Array]) -> Table:
        """Rows by split and class; `arrays` are those of `reads`."""
        label = columns.indices(arrays[0])
        classes = len(self.names)
        label = np.where((label >= 0) & (label < classes), label, classes)
        side = columns.indices(arrays[1]) if self.splits else np.zeros_like(label)
        side = np.where((side >= 0) & (side < len(self.splits)), side, len(self.splits))
        table: Table = np.bincount(side * (classes + 1) + label, minlength=(len(self.splits) + 1) * (classes + 1))
        return table.reshape(self.shape)

    def encode(self, table: Table) -> bytes:
        """To be kept: what is not 0."""
        flat = table.reshape(-1)
        places = np.flatnonzero(flat)
        return pack({"places": places.astype(np.int64), "rows": flat[places]})

    def decode(self, data: bytes, rows: int) -> Table:
        """What was kept of `rows` rows. Raises FormatDamaged."""
        arrays: dict[str, NDArray[Any]] = unpack(data)
        places = take(arrays, "places", "<i8")
        table = np.zeros(self.shape, np.int64)
        if len(places) and (int(places.min()) < 0 or int(places.max()) >= table.size):
            raise FormatDamaged("table of classes has one that there is not")
        table.reshape(-1)[places] = take(arrays, "rows", "<i8", len(places))
        if bool((table < 0).any()) or int(table.sum()) != rows:
            raise FormatDamaged("table of classes does not add up")
        return table

    def result(self, tables: Sequence[Table]) -> ClassBalance:
        """Of all tables."""
        table = np.sum(tables, axis=0) if tables else np.zeros(self.shape, np.int64)
        named = table[:, :-1]
        return ClassBalance(
            column=self.column,
            names=self.names,
            rows=tuple(named.sum(axis=0).tolist()),
            splits={name: tuple(named[index].tolist()) for index, name in enumerate(self.splits)},
            unnamed=int(table[:, -1].sum()),
        )
