"""What a merge does to one of its sides, the target, with rows of the other, the source: gathered in any order, carried out by `splice`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.align import Positions
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.keyed import said_key
from leptonstore.dataset.rules import check_rows, rules_of
from leptonstore.dataset.schema import array_planes, inline_bytes
from leptonstore.dataset.splice import Splice
from leptonstore.dataset.values import Column
from leptonstore.errors import MergeConflict, RuleBroken


class Operations:
    """Rows that are taken out of the target, put in, or rewritten. Memory: about 200 bytes each, and 1,024 rows of values.

    links: the column of the source for each of the target that both have.
    """

    def __init__(self, target: Dataset, source: Dataset, links: dict[str, str]) -> None:
        self._target, self._source, self._links = target, source, links
        self.added = self.removed = self.changed = 0
        # Of each: the row of the target that it stands in front of, or that it is; whether that row goes; the row of the source that is
        # put in (-1: none); the row of the target that its other columns come from (-1: none, so null); which columns come from the
        # source, as a number in `_masks` (-1: all that it has).
        self._done: list[tuple[int, bool, int, int, int]] = []
        self._masks: list[frozenset[str]] = []

    def __bool__(self) -> bool:
        return bool(self._done)

    def remove(self, at: int) -> None:
        """Take row `at` out."""
        self._done.append((at, True, -1, -1, -1))
        self.removed += 1

    def insert(self, at: int, source: int) -> None:
        """Put a row of the source in front of row `at`; several come in the order of the source."""
        self._done.append((at, False, source, -1, -1))
        self.added += 1

    def rewrite(self, at: int, source: int, mask: int = -1) -> None:
        """Columns of row `at` from a row of the source: those of `mask`, or all."""
        self._done.append((at, True, source, at, mask))
        self.changed += 1

    def mask(self, names: frozenset[str]) -> int:
        """A number for some columns of the target."""
        self._masks.append(names)
        return len(self._masks) - 1

    def splices(self) -> Iterator[Splice]:
        """The operations in the order of the target's rows, neighbours together."""
        at, delete, source, target, mask = np.array(self._done, np.int64).reshape(-1, 5).T
        order = np.lexsort((source, delete, at))
        at, delete, source, target, mask = (one[order] for one in (at, delete, source, target, mask))
        together = at[1:] == at[:-1] + delete[:-1]
        for first in range(0, len(at), limits.DIFF_BATCH_ROWS):
            end = min(first + limits.DIFF_BATCH_ROWS, len(at))
            puts = np.flatnonzero(source[first:end] >= 0) + first
            columns = self._columns(source[puts], target[puts], mask[puts])
            self._check_rules(columns)
            cuts = [first, *(np.flatnonzero(~together[first : end - 1]) + first + 1).tolist(), end]
            for start, stop in itertools.pairwise(cuts):
                low, high = np.searchsorted(puts, (start, stop)).tolist()
                rows = [[column.slice(low, high) for column in columns]] if high > low else None
                yield Splice(int(at[start]), int(delete[start:stop].sum()), rows)

    def _columns(self, source: Positions, target: Positions, mask: Positions) -> list[Column]:
        """Rows that are put in, with the columns of the target's schema."""
        out = []
        for one in self._target.schema:
            masks = [number for number, names in enumerate(self._masks) if one.name in names]
            from_source = ((mask == -1) | np.isin(mask, masks)) & (one.name in self._links)
            from_target = ~from_source & (target >= 0)
            nowhere = ~from_source & ~from_target
            pieces, rows = [], []
            if from_source.any():
                pieces.append(self._from_source(one, source[from_source]))
                rows.append(np.flatnonzero(from_source))
            if from_target.any():
                pieces.append(self._target.take_stored(target[from_target], one.name))
                rows.append(np.flatnonzero(from_target))
            if nowhere.any():
                pieces.append(Column(pa.nulls(int(nowhere.sum()), one.type)))
                rows.append(np.flatnonzero(nowhere))
            if not pieces:
                continue
            whole = column_values.concat(pieces)
            out.append(whole if len(pieces) == 1 else column_values.take(whole, np.argsort(np.concatenate(rows))))
        return out

    def _check_rules(self, columns: list[Column]) -> None:
        """Rows that are new to the target keep its rules, which the source may not have, or broke by neither side alone."""
        schema = self._target.schema
        ruled = [at for at, one in enumerate(schema) if rules_of(one)] if columns else []
        if not ruled:
            return
        store, fields = self._target.store, pa.schema([schema.field(at) for at in ruled])
        arrays = [column_values.resolve(store, columns[at], schema.field(at).type) for at in ruled]
        try:
            check_rows(fields, pa.RecordBatch.from_arrays(arrays, schema=fields), 0)
        except RuleBroken as error:
            key = said_key(columns, schema, self._target.identity, error.rows[0])
            raise RuleBroken(
                f"the row with {key} would break the rule {error.rule!r} of column {error.column!r}: nothing was merged; correct it on "
                "one of the sides, or remove the rule",
                error.rule,
                error.column,
                error.rows,
            ) from None

    def _from_source(self, one: pa.Field, rows: Positions) -> Column:
        name = self._links[one.name]
        column = self._source.take_stored(rows, name)
        if not one.nullable and column.values.null_count:
            raise MergeConflict(
                f"column {one.name!r} may not be null in {self._target.ref}, and {self._source.ref} put nulls into it"
            )
        if inline_bytes(one) == inline_bytes(self._source.schema.field(name)):
            return column
        store = self._target.store
        values = column_values.resolve(store, column, one.type)
        return column_values.intern(store, values, inline_bytes(one), plane_width=array_planes(one) or 0)
