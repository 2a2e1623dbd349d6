"""Packs of documents: rows of at most `length` tokens made of whole documents (loaders.packing), with the boundaries between them.

    loader = DataLoader(TokenPacks(ds, length=2048), 16, shuffle=True)
    batch["tokens"], batch["segment_ids"], batch["position_ids"]        each (16, 2048)

A pack is a row: orders, shares, states and receipts treat it as any other. Which packs there are is a function of (version and view,
column, length, how long documents are treated); it is found once, from the lengths alone, and kept in the host's hot cache when the
dataset is read through it. What models do with the boundaries (masks, cumulative lengths, targets) is in loaders.boundaries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loaders.flat import FlatColumn, FlatColumns, FlatSource
from loaders.order import Rows
from loaders.packing import VERSION, Long, Packs, lay_out, pack_documents, pieces_of
from loaders.source import ColumnSpec, Keys, Values, cached_bytes, fingerprint_of, require_known

if TYPE_CHECKING:
    from loaders.source import Dataset

SEGMENTS, POSITIONS = "segment_ids", "position_ids"
# About how many bytes the packs of a corpus take for each document: a piece and a share of a pack.
_BYTES_PER_ROW = 24


class TokenPacks:
    """Packs of the documents in the column `column` of a dataset or view. For DataLoader; also a map-style dataset of its own.

    A row has `column`, the tokens, and "segment_ids" and "position_ids", int32 (loaders.packing.Laid); all of shape (length,).

    long:  what happens to a document of more than `length` tokens: "split": it becomes several pieces, the last of which is packed with
           others; "truncate": its first `length` tokens are kept.
    fill:  token where a pack has none (its segment is 0).
    dtype: of the tokens of a batch: losses of torch want "int64"; None: as they are stored.
    arena_bytes_max: of the tokens that are kept decoded, where a loader does not say (default: limits.ARENA_BYTES_MAX).

    Raises ValueError for a column that does not exist or is no list of numbers, for a length below 1, and for another `long`.
    Packing takes about 1 us a document, once; 10^6 documents take 24 MB. Any thread; pickles, without what is decoded.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str = "tokens",
        *,
        length: int,
        long: Long = "split",
        fill: int = 0,
        dtype: npt.DTypeLike | None = None,
        arena_bytes_max: int | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length of packs must be at least 1 token, not {length}")
        if long not in ("split", "truncate"):
            raise ValueError(f"long={long!r}: 'split' or 'truncate' documents that are longer than a pack")
        self.dataset, self.column = dataset, column
        self.length, self.long, self.fill = length, long, fill
        self.dtype = None if dtype is None else np.dtype(dtype)
        self._flats = FlatColumns(dataset, column, arena_bytes_max)
        self._packs = _Packed(self._flats, length, long)

    @property
    def waste(self) -> float:
        """The share of places in which no token stands."""
        return self._packs.found.waste(self.length)

    def __len__(self) -> int:
        return len(self._packs.found)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        rows = len(self)
        if not -rows <= index < rows:
            raise IndexError(f"pack {index}: there are {rows}")
        return self.__getitems__([index % rows])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, npt.NDArray[Any]]]:
        """Several packs as dicts; torch's DataLoader calls this once a batch."""
        batch = self._source(None, None).gather(np.asarray(rows, np.int64))
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]

    def __repr__(self) -> str:
        return f"TokenPacks({self.dataset!r}, {self.column!r}, length={self.length}, long={self.long!r})"

    def _source(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> PackSource:
        there = [self.column, SEGMENTS, POSITIONS]
        require_known(columns, there, "packs of tokens")
        wanted = there if columns is None else list(columns)
        return PackSource(self._flats.within(arena_bytes_max), self._packs, wanted, self.fill, self.dtype)

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> PackSource:
        return self._source(columns, arena_bytes_max)


class PackSource(FlatSource):
    """The source (loaders.source.Source) of packs."""

    def __init__(
        self, flat: FlatColumn, packs: _Packed, columns: Sequence[str], fill: int, dtype: np.dtype[Any] | None
    ) -> None:
        self._flat, self._packs, self._fill = flat, packs, fill
        self._dtype = flat.dtype if dtype is None else dtype
        dtypes = {flat.name: self._dtype, SEGMENTS: np.dtype(np.int32), POSITIONS: np.dtype(np.int32)}
        self.columns = tuple(
            ColumnSpec(name, "tokens" if name == flat.name else "", dtypes[name], (packs.length,)) for name in columns
        )
        self.rows = len(packs.found)

    @property
    def fingerprint(self) -> str:
        """Of the tokens, and of how they are packed."""
        return self._packs.fingerprint

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """All columns, when documents are read for each batch."""
        return self.columns if self._flat.values is None else ()

    def fill(self) -> None:
        """Decode the tokens and find the packs, in a process that has only a pickle of this."""
        _ = self._flat.values, self._packs.found

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The packs, each column (len(rows), length). Fresh memory. Raises IndexError for rows that there are not."""
        starts, lengths, counts = self._pieces(rows)
        values, places = self._flat.runs(starts, lengths)
        laid = lay_out(values, places, lengths, counts, self._packs.length, self._fill)
        found = {
            self._flat.name: laid.tokens.astype(self._dtype, copy=False),
            SEGMENTS: laid.segment_ids,
            POSITIONS: laid.position_ids,
        }
        return {spec.name: found[spec.name] for spec in self.columns}

    def _pieces(self, rows: Rows) -> tuple[Rows, Rows, Rows]:
        """(starts and lengths of the pieces of some packs, how many each has)."""
        packs = self._packs.found
        numbers, counts = pieces_of(packs, rows)
        return packs.starts[numbers], packs.lengths[numbers], counts

    @property
    def plans(self) -> bool:
        """Whether documents are read through the hot cache."""
        return self._flat.plans

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """Of the documents that the packs are made of."""
        starts, lengths, counts = self._pieces(rows)
        ends = np.cumsum(counts)[np.cumsum(sizes) - 1]
        return self._flat.future_keys(starts, lengths, np.diff(ends, prepend=0).tolist())


class _Packed:
    """The packs of a column, found when they are first asked for. Any thread; pickles, without them."""

    def __init__(self, flats: FlatColumns, length: int, long: Long) -> None:
        self._flats, self.length, self._long = flats, length, long
        self._found: Packs | None = None
        self._lock = threading.Lock()

    @property
    def _identity(self) -> list[Any]:
        return [VERSION, self._flats.first.fingerprint, self.length, self._long]

    @property
    def fingerprint(self) -> str:
        """Identifies the packs and what is in them."""
        return fingerprint_of(self._identity)

    @property
    def found(self) -> Packs:
        """All packs."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
            return self._found

    def _find(self) -> Packs:
        flat = self._flats.first
        offsets = flat.offsets

        def make() -> memoryview:
            packs = pack_documents(offsets, self.length, self._long)
            head = np.array([len(packs.starts)], np.int64)
            return np.concatenate([head, packs.starts, packs.lengths, packs.offsets]).view(np.uint8).data

        made = cached_bytes(flat.dataset, self._identity, _BYTES_PER_ROW * len(offsets), make)
        words = np.frombuffer(make() if made is None else made, np.int64)
        pieces = int(words[0])
        return Packs(words[1 : 1 + pieces], words[1 + pieces : 1 + 2 * pieces], words[1 + 2 * pieces :])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
