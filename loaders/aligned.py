"""What datasets that are made of matched rows (Timeline, AsOf, RowWindows) have in common: rows are found once, and read when asked for.

`Aligned` is the dataset: map-style for torch's DataLoader, with a fast path for ours. `AlignedSource` is what it reads through. Windows
are k rows of a source for each sample: fixed columns get a dimension of k in front, of all others a sample has a list of k values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from loaders.order import Rows
from loaders.source import ColumnSpec, Keys, Source, Values, in_background

Found = TypeVar("Found")


class Aligned(Generic[Found]):
    """A dataset whose rows are found, once, when they are first needed. Any thread; pickles."""

    def __init__(self) -> None:
        self._once: Found | None = None
        self._lock = threading.Lock()

    def _find(self) -> Found:
        raise NotImplementedError

    @property
    def _found(self) -> Found:
        with self._lock:
            if self._once is None:
                self._once = self._find()
            return self._once

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = len(self)
        if not -rows <= index < rows:
            raise IndexError(f"sample {index}: there are {rows}")
        return self.__getitems__([index % rows])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples as dicts; torch's DataLoader calls this once a batch."""
        batch = self.__lepton_source__(None, 0).gather(np.asarray(rows, np.int64))
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> Source:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class AlignedSource:
    """The part of a source (loaders.source.Source) that is the same however rows were matched.

    main:    the dataset that gives name and commit; those of the others are in the fingerprint.
    sources: of what is read, by the prefix of its columns' names ("" or "track.").
    """

    def __init__(
        self, main: Any, fingerprint: str, sources: dict[str, Source], columns: tuple[ColumnSpec, ...]
    ) -> None:
        self._main, self._fingerprint, self._sources, self.columns = main, fingerprint, sources, columns

    @property
    def name(self) -> str:
        """The main dataset's."""
        return str(self._main.name)

    @property
    def commit(self) -> str:
        """The main dataset's."""
        return str(self._main.commit)

    @property
    def fingerprint(self) -> str:
        """Of all versions, and of how they are matched."""
        return self._fingerprint

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """Of all that is read."""
        cold = {f"{prefix}{spec.name}" for prefix, source in self._sources.items() for spec in source.cold}
        return tuple(spec for spec in self.columns if spec.name in cold)

    def fill_ahead(self) -> None:
        """`fill` in a thread."""
        in_background(self.fill)

    def fill(self) -> None:
        """Of all that is read."""
        for source in self._sources.values():
            source.fill()

    @property
    def plans(self) -> bool:
        """No: the hot cache goes by last use."""
        return False

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """Nothing."""
        return np.empty((0, 32), np.uint8)

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Nothing."""


def window_spec(spec: ColumnSpec, length: int, prefix: str = "") -> ColumnSpec:
    """Of a column of windows of `length` rows."""
    shape = None if spec.shape is None else (length, *spec.shape)
    return replace(spec, name=f"{prefix}{spec.name}", shape=shape, semantic=spec.semantic if shape else "")


def gather_windows(source: Source, rows: Rows) -> dict[str, Values]:
    """The columns of windows: `rows` is (samples, length). Fresh memory."""
    samples, length = rows.shape
    return {name: _in_windows(values, samples, length) for name, values in source.gather(rows.ravel()).items()}


def _in_windows(values: Values, samples: int, length: int) -> Values:
    if isinstance(values, np.ndarray):
        return values.reshape(samples, length, *values.shape[1:])
    return [values[at * length : (at + 1) * length] for at in range(samples)]
