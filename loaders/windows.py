"""Windows of a stream of tokens: fixed stretches of the documents of a version, one after another, as if they were one text.

    TokenWindows   window i has the tokens [i * stride, i * stride + length) of all documents, concatenated in row order
    RandomOffset   an order: windows that begin at other tokens in every epoch

    loader = DataLoader(TokenWindows(ds, length=2049), 64, shuffle=True)                                    # batch["tokens"]: (64, 2049)
    loader = DataLoader(TokenWindows(ds, length=2049, stride=1), 64, order=RandomOffset(every=2049))

A window is a row: orders, shares, states and receipts treat it as any other. Windows run across documents; tokens that end or begin one
are the documents' own. What is left at the end of the text, shorter than a window, is in none, or with `fill` in one that is filled up:
that is for measuring a whole text (stride = length - 1 and fill = -100 are the inputs and targets of a language model, each token once).

Where the tokens fit into memory (loaders.flat) a batch is one gather of numpy over a view in which row i is window i, and nothing is
done for a window by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from loaders.flat import FlatColumn, FlatColumns, FlatSource
from loaders.order import BoundOrder, EpochOrder, FullOrder, OrderStrategy, Rows
from loaders.source import ColumnSpec, Keys, Values, fingerprint_of, require_known

if TYPE_CHECKING:
    from loaders.source import Dataset

WINDOWS_VERSION = "lepton.windows.1"
OFFSET_CONTEXT = "lepton.window-offset.v1"


class TokenWindows:
    """Windows of `length` tokens of the column `column` of a dataset or view. For DataLoader; also a map-style dataset of its own.

    stride: tokens from the beginning of one window to that of the next; None: `length`, so that each token is in one window at most.
    fill:   token where the last window has none; None: tokens at the end that fill no window are left out.
    dtype:  of the tokens of a batch: losses of torch want "int64", embeddings take it too; None: as they are stored.
    arena_bytes_max: of the tokens that are kept decoded, where a loader does not say (default: limits.ARENA_BYTES_MAX).

    Raises ValueError for a column that does not exist or is no list of numbers, and for lengths and strides below 1.
    The column is decoded when it is first used; making a DataLoader uses it. Any thread; pickles, without what is decoded.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str = "tokens",
        *,
        length: int,
        stride: int | None = None,
        fill: int | None = None,
        dtype: npt.DTypeLike | None = None,
        arena_bytes_max: int | None = None,
    ) -> None:
        for name, value in (("length", length), ("stride", stride)):
            if value is not None and value < 1:
                raise ValueError(f"{name} of windows must be at least 1 token, not {value}")
        self.dataset, self.column = dataset, column
        self.length, self.stride, self.fill = length, length if stride is None else stride, fill
        self.dtype = None if dtype is None else np.dtype(dtype)
        self._flats = FlatColumns(dataset, column, arena_bytes_max)

    def __len__(self) -> int:
        whole, rest = windows_in(self._flats.first.total, self.length, self.stride)
        return whole + (self.fill is not None and rest > 0)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        rows = len(self)
        if not -rows <= index < rows:
            raise IndexError(f"window {index}: there are {rows}")
        return self.__getitems__([index % rows])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, npt.NDArray[Any]]]:
        """Several windows as dicts; torch's DataLoader calls this once a batch."""
        batch = self._source().gather(np.asarray(rows, np.int64))
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]

    def __repr__(self) -> str:
        return f"TokenWindows({self.dataset!r}, {self.column!r}, length={self.length}, stride={self.stride})"

    def _source(self, arena_bytes_max: int | None = None) -> WindowSource:
        return WindowSource(self._flats.within(arena_bytes_max), self.length, self.stride, self.dtype, self.fill)

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> WindowSource:
        require_known(columns, [self.column], "windows of tokens")
        return self._source(arena_bytes_max)


class WindowSource(FlatSource):
    """The source (loaders.source.Source) of windows: one column, `rows` windows."""

    def __init__(
        self, flat: FlatColumn, length: int, stride: int, dtype: np.dtype[Any] | None, fill: int | None = None
    ) -> None:
        self._flat, self.length, self.stride = flat, length, stride
        self._dtype = flat.dtype if dtype is None else dtype
        self.columns = (ColumnSpec(flat.name, "tokens", self._dtype, (length,)),)
        self._whole, rest = windows_in(flat.total, length, stride)
        self._rest, self._fill = (0, 0) if fill is None else (rest, fill)
        self.rows = self._whole + (self._rest > 0)
        self._view: npt.NDArray[Any] | None = None
        self._make_view()

    def _make_view(self) -> None:
        """The view in which row i is window i, when the tokens are in memory."""
        values = self._flat.values
        if values is not None and self._whole:
            self._view = _windows_over(values, self.length, self.stride, self._whole)

    @property
    def fingerprint(self) -> str:
        """Of the tokens, and of how windows are cut from them."""
        filled = [self._fill] if self._rest else []
        return fingerprint_of([WINDOWS_VERSION, self._flat.fingerprint, self.length, self.stride, *filled])

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """The column, when documents are read for each batch."""
        cold = self._view is None and (self._whole or self._flat.values is None)
        return self.columns if cold and self.rows else ()

    def fill(self) -> None:
        """Make the view again in a process that has only a pickle of this."""
        if self._view is None:
            self._make_view()

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The windows, (len(rows), length). Fresh memory. Raises IndexError for rows that there are not."""
        if self._rest and len(rows) and int(rows.max()) == self._whole:
            return {self._flat.name: self._with_last(rows)}
        if not len(rows):
            tokens = np.empty((0, self.length), self._dtype)
        else:
            view = self._view
            if view is None:
                values, places = self._flat.runs(rows * self.stride, np.full(len(rows), self.length))
                # Of each place that a window could begin at. numpy checks the places that it is asked for.
                view, rows = _windows_over(values, self.length, 1, len(values) - self.length + 1), places
            tokens = view[rows].view(self._flat.dtype).reshape(len(rows), self.length)
        return {self._flat.name: tokens.astype(self._dtype, copy=False)}

    def _with_last(self, rows: Rows) -> npt.NDArray[Any]:
        """As `gather`, where the window that is filled up is among the rows."""
        tokens = np.empty((len(rows), self.length), self._dtype)
        last = rows == self._whole
        tokens[~last] = self.gather(rows[~last])[self._flat.name]
        values, (place,) = self._flat.runs(np.array([self._whole * self.stride]), np.array([self._rest]))
        tokens[last, : self._rest] = values[place : place + self._rest]
        tokens[last, self._rest :] = self._fill
        return tokens

    @property
    def plans(self) -> bool:
        """Whether documents are read through the hot cache."""
        return bool(self.cold) and self._flat.plans

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """Of the documents that the windows touch."""
        lengths = np.where(rows < self._whole, self.length, self._rest)
        return self._flat.future_keys(rows * self.stride, lengths, sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_view": None}


def windows_in(total: int, length: int, stride: int) -> tuple[int, int]:
    """(whole windows of `total` tokens, tokens of the one after them when it has any that no window before it has, else 0)."""
    whole = max((total - length) // stride + 1, 0)
    covered = (whole - 1) * stride + length if whole else 0
    return whole, max(total - whole * stride, 0) if total > covered else 0


def _windows_over(values: npt.NDArray[Any], length: int, stride: int, count: int) -> npt.NDArray[Any]:
    """(count,) of opaque values of `length` items, which overlap: numpy then copies each window in one piece.

    A sixth faster than the fancy index of a two-dimensional view, and twice as fast as a loop of slices.
    """
    size = values.itemsize
    return np.ndarray((count,), np.dtype((np.void, length * size)), values, 0, (stride * size,))


# -- windows that begin elsewhere in every epoch -----------------------------------------------------------------------


@dataclass(frozen=True)
class RandomOffset:
    """An order: of windows at every token (stride=1), those `every` tokens apart, from an offset that each epoch draws anew.

    every: tokens from one window to the next, usually the windows' length; the offset is in [0, every).
    inner: the order of these windows; any strategy that needs no more than their number.

    An epoch has as many windows as fit behind the largest offset, so that epochs are equally long; the offset is a pure function of
    (seed, epoch): BLAKE3's key derivation over them. A row number is the token at which a window begins.
    """

    every: int
    inner: OrderStrategy = field(default_factory=lambda: FullOrder(True))

    def bind(self, source: Any) -> BoundOrder:
        """For windows at every token. Raises ValueError for anything else."""
        if not isinstance(source, WindowSource) or source.stride != 1:
            raise ValueError("RandomOffset orders TokenWindows(..., stride=1): windows that may begin at every token")
        if self.every < 1:
            raise ValueError(f"RandomOffset(every={self.every}): windows must be at least 1 token apart")
        count = max((source.rows - self.every) // self.every + 1, 0)
        return _BoundOffset(self.every, self.inner.bind(_Windows(count, source.fingerprint)))

    def spec(self) -> dict[str, Any]:
        """With that of `inner`."""
        return {"name": "random-offset", "version": 1, "every": self.every, "inner": self.inner.spec()}


@dataclass(frozen=True)
class _Windows:
    """What `inner` knows of the windows of an epoch."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class _BoundOffset:
    every: int
    inner: BoundOrder

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        order = self.inner.epoch(seed, epoch)  # refuses a bad seed or epoch
        material = np.array([seed, epoch, self.every], "<u8").tobytes()
        drawn = int.from_bytes(blake3(material, derive_key_context=OFFSET_CONTEXT).digest(length=16), "little")
        return _OffsetOrder(order, self.every, drawn % self.every)


@dataclass(frozen=True)
class _OffsetOrder:
    inner: EpochOrder
    every: int
    offset: int

    @property
    def length(self) -> int:
        return self.inner.length

    def rows_at(self, start: int, stop: int) -> Rows:
        return self.inner.rows_at(start, stop) * self.every + self.offset

    def rows_of(self, positions: Rows) -> Rows:
        return self.inner.rows_of(positions) * self.every + self.offset
