"""The rows of several sources as those of one: row numbers of the second follow those of the first, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from loaders.order import ORDER_ROWS_MAX, Rows
from loaders.source import ColumnSpec, Keys, Source, Values, fingerprint_of, in_background


class PartRows:
    """The rows of named parts, one after another: row `offsets[i] + r` is row r of part i. Raises ValueError for more than 2^48."""

    def __init__(self, names: Sequence[str], parts: Sequence[Source]) -> None:
        self.names, self.parts = tuple(names), tuple(parts)
        ends = np.cumsum([0, *(part.rows for part in self.parts)], dtype=np.int64)
        self.offsets, self.rows = ends[:-1], int(ends[-1])
        if self.rows > ORDER_ROWS_MAX:
            raise ValueError(f"the sources have {self.rows} rows together, more than {ORDER_ROWS_MAX}")

    def part_of(self, rows: Rows) -> Rows:
        """The number of the part that each row stands in."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def peers(self, row: int) -> tuple[int, int]:
        """[start, stop) of the rows of the part that a row stands in."""
        number = int(self.part_of(np.array([row]))[0])
        return int(self.offsets[number]), int(self.offsets[number]) + self.parts[number].rows


class MixtureSource(PartRows):
    """A `loaders.source.Source` over named parts.

    source_column: name of an int64 column with the number of the part; None for none.
    columns:       the order of all columns; None for that of the first part, and `source_column` last.

    Raises ValueError, naming column and part, where columns differ in name, in being fixed
    or not, in dtype, shape, semantic type or class names. Each part decodes its own arena, reads through its own client of the hot cache,
    and has its own plan in it, in which only the requests of this part count. Threads: as `Source`.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[Source],
        source_column: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(names, parts)
        self.source_column = source_column
        self._stored = _same_columns(self.names, self.parts)
        self.columns = self._stored
        if source_column is not None:
            if source_column in [spec.name for spec in self._stored]:
                raise ValueError(f"the sources have a column {source_column!r}: choose another source_column")
            self.columns = (*self._stored, ColumnSpec(source_column, "", np.dtype(np.int64), ()))
        if columns is not None:
            self.columns = tuple(sorted(self.columns, key=lambda spec: columns.index(spec.name)))

    @property
    def name(self) -> str:
        """Says that it is a mixture, not of what: there can be many."""
        return "mixture"

    @property
    def commit(self) -> str:
        """BLAKE3 over the names and fingerprints of the parts: 64 hex digits."""
        return fingerprint_of([[name, part.fingerprint] for name, part in zip(self.names, self.parts, strict=True)])

    @property
    def fingerprint(self) -> str:
        """That of every part is in it already."""
        return self.commit

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """The columns that at least one part reads for each batch."""
        cold = {spec.name for part in self.parts for spec in part.cold}
        return tuple(spec for spec in self.columns if spec.name in cold)

    def fill_ahead(self) -> None:
        """`fill` in a thread."""
        in_background(self.fill)

    def fill(self) -> None:
        """Each part's, one after another."""
        for part in self.parts:
            part.fill()

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The columns of the given rows, in the order of `rows`: one gather per part. Fresh memory."""
        which = self.part_of(rows)
        found: dict[str, Values] = {
            spec.name: spec.empty(len(rows)) if spec.fixed else [None] * len(rows) for spec in self._stored
        }
        for number in np.unique(which).tolist():
            at = np.flatnonzero(which == number)
            values = self.parts[number].gather(rows[at] - self.offsets[number])
            if len(at) == len(rows):  # fresh memory already
                found = values
                break
            for name, column in values.items():
                _put(found[name], at, column)
        if self.source_column is not None:
            found[self.source_column] = which
        return {spec.name: found[spec.name] for spec in self.columns}

    # -- the hot cache -----------------------------------------------------------------------------------------------

    @property
    def plans(self) -> bool:
        """Whether a plan is of use to a part."""
        return any(part.plans for part in self.parts)

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """What batches will ask for, part by part: only `plan` and `len` can make use of it."""
        which, batch = self.part_of(rows), np.repeat(np.arange(len(sizes)), sizes)
        keys = []
        for number, part in enumerate(self.parts):
            at = np.flatnonzero(which == number)
            counts = np.bincount(batch[at], minlength=len(sizes))
            own = part.plans and len(at) > 0
            asked = part.future_keys(rows[at] - self.offsets[number], counts[counts > 0].tolist()) if own else None
            keys.append(np.empty((0, 32), np.uint8) if asked is None else asked)
        return cast("Keys", _KeysOfParts(keys))

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Tell each part's client what it reads next."""
        told = cast("Sequence[_KeysOfParts]", keys)
        for number, part in enumerate(self.parts):
            if part.plans:
                part.plan([some.parts[number] for some in told], restart)


class _KeysOfParts:
    """Keys of the hot cache, apart for each part."""

    def __init__(self, parts: list[Keys]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def _put(column: Values, at: Rows, values: Values) -> None:
    if isinstance(column, list):
        for place, value in zip(at.tolist(), values, strict=True):
            column[place] = value
    else:
        column[at] = values


def _same_columns(names: tuple[str, ...], parts: tuple[Source, ...]) -> tuple[ColumnSpec, ...]:
    columns = parts[0].columns
    first, labels = {spec.name: spec for spec in columns}, _labels(parts[0])
    for name, part in zip(names[1:], parts[1:], strict=True):
        other = {spec.name: spec for spec in part.columns}
        for column in [*first, *other]:
            if column not in other or column not in first:
                has, lacks = (names[0], name) if column in first else (name, names[0])
                shared = [spec for spec in first if spec in other]
                raise ValueError(f"source {has!r} has a column {column!r} and {lacks!r} has none: columns={shared}")
            one, two = _told(first[column]), _told(other[column])
            if one != two:
                raise ValueError(
                    f"column {column!r} is {one} in source {names[0]!r} and {two} in {name!r}: "
                    "rewrite one of them, or leave the column out with columns=[…]"
                )
        for column, own in _labels(part).items():
            if labels.get(column, own) != own:
                raise ValueError(
                    f"the classes of column {column!r} differ between sources {names[0]!r} and {name!r}: "
                    "the same number would mean two things"
                )
    return columns


def _told(spec: ColumnSpec) -> str:
    """What must be equal, in words."""
    return f"{spec.dtype} of shape {spec.shape}" if spec.fixed else f"{spec.semantic or 'data'} of variable width"


def _labels(part: Source) -> dict[str, Any]:
    """Names of classes by column, of a part that knows them."""
    return dict(getattr(part, "class_names", {}))
