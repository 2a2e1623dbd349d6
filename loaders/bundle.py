"""Bundle: several columns of a dataset as one value, for transforms that need them together.

    clips = Bundle(ds, clip=("audio", "start_s", "duration_s"))
    DataLoader(clips, 16, transforms={"clip": [DecodeAudio(16_000, start="start_s", duration="duration_s", data="audio")]})

A value of `clip` is a dict {"audio": ..., "start_s": ..., "duration_s": ...}; its columns are no columns of their own any more, unless
they are asked for by name. Rows are those of the dataset, so orders, states and receipts are too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loaders.order import Rows
from loaders.source import ColumnSpec, Source, Values, has_source, require_known, source_of
from loaders.wrapped import WrappedSource


class Bundle:
    """`dataset` (a dataset, view, or anything that a DataLoader has a fast path for) with some columns as one.

    bundles: name of the new column -> names of its columns. Raises ValueError where a name is taken, or no column is named.
    """

    def __init__(self, dataset: Any, **bundles: Sequence[str]) -> None:
        if not has_source(dataset):
            raise ValueError(f"a Bundle is made of a LeptonStore dataset, not of a {type(dataset).__name__}")
        self.dataset, self.bundles = dataset, {name: tuple(columns) for name, columns in bundles.items()}
        empty = [name for name, columns in self.bundles.items() if not columns]
        if not self.bundles or empty:
            raise ValueError(f"Bundle({', '.join(empty) or 'dataset'}): name the columns that are bundled")
        own_order = getattr(dataset, "__lepton_order__", None)
        if own_order is not None:
            self.__lepton_order__ = own_order

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._bundled(self.dataset[index])

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Several rows as dicts; torch's DataLoader calls this once a batch."""
        return [self._bundled(row) for row in self.dataset.__getitems__(rows)]

    def _bundled(self, row: dict[str, Any]) -> dict[str, Any]:
        parts = {name: {column: row[column] for column in columns} for name, columns in self.bundles.items()}
        used = {column for columns in self.bundles.values() for column in columns}
        return {name: value for name, value in row.items() if name not in used} | parts

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> BundleSource:
        everything = [spec.name for spec in source_of(self.dataset, None, 0).columns]
        for name, parts in self.bundles.items():
            if name in everything:
                raise ValueError(f"the dataset has a column {name!r} already: give the bundle another name")
            require_known(parts, everything, f"the columns for bundle {name!r}")
        used = {column for parts in self.bundles.values() for column in parts}
        if columns is None:
            columns = [*(name for name in everything if name not in used), *self.bundles]
        require_known(columns, [*everything, *self.bundles], "the dataset and its bundles")
        bundles = {name: self.bundles[name] for name in columns if name in self.bundles}
        needed = [name for name in columns if name not in bundles] + [
            name for parts in bundles.values() for name in parts
        ]
        inner = source_of(self.dataset, list(dict.fromkeys(needed)), arena_bytes_max)
        return BundleSource(inner, list(columns), bundles)


class BundleSource(WrappedSource[Source]):
    """The source (loaders.source.Source) of a Bundle."""

    def __init__(self, inner: Source, columns: Sequence[str], bundles: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(inner)
        self._bundles = bundles
        specs = {spec.name: spec for spec in inner.columns}
        self.columns = tuple(ColumnSpec(name, "", None, None) if name in bundles else specs[name] for name in columns)

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """Columns that are read for each batch, and bundles of such."""
        cold = {spec.name for spec in self._inner.cold}
        return tuple(spec for spec in self.columns if not cold.isdisjoint(self._bundles.get(spec.name, (spec.name,))))

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The columns of some rows; of a bundle, a list of dicts."""
        found = self._inner.gather(rows)
        for name, parts in self._bundles.items():
            found[name] = [
                dict(zip(parts, row, strict=True)) for row in zip(*(found[part] for part in parts), strict=True)
            ]
        return {spec.name: found[spec.name] for spec in self.columns}
