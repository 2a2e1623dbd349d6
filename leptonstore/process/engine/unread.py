"""A column of which a pass mostly needs digests: by them it looks up what became of a row, and only values that nobody met before are read.

    page that this recipe met before     digests of its values from the memo; the page is not read
    any other page                       read and digested, which the memo keeps for the next time; the values travel along

So running a pipeline again reads the pages that changed. Rows of an unread page whose outcomes were evicted are read when the step finds
that out. Threads: any, several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset import values as column_values
from leptonstore.dataset.pages import Stretch
from leptonstore.dataset.tree import Rows
from leptonstore.dataset.values import Column, concat
from leptonstore.digest import digest_of
from leptonstore.format.node import Part
from leptonstore.format.page import is_variable
from leptonstore.process.columns import null_mask
from leptonstore.process.digests import DIGEST_BYTES, DIGEST_TYPE, as_numbers, digest_array, stored_digests
from leptonstore.process.memo import Memo

Bits = NDArray[np.bool_]
_KEY = b"digests of a page's values\0"


@dataclass(frozen=True)
class Unread:
    """n rows of a column.

    values: as pages keep them; null in rows that are not `there`, which read(numbers) gives, in any order. digests: of the values,
    binary(16); null where the value is null, and where it is there and was not digested. numbers: of the rows in the version.
    """

    values: Column
    there: Bits
    digests: pa.Array
    numbers: Rows
    read: Callable[[Rows], Column]

    def __len__(self) -> int:
        return len(self.numbers)

    def slice(self, start: int, stop: int) -> Unread:
        """Rows [start, stop)."""
        digests = self.digests.slice(start, stop - start)
        some = slice(start, stop)
        return replace(
            self,
            values=self.values.slice(start, stop),
            there=self.there[some],
            digests=digests,
            numbers=self.numbers[some],
        )

    def take(self, rows: Rows) -> Unread:
        """Some of the rows, in that order."""
        values, digests = column_values.take(self.values, rows), self.digests.take(pa.array(rows))
        return replace(self, values=values, there=self.there[rows], digests=digests, numbers=self.numbers[rows])

    def stored_digests(self) -> pa.Array:
        """Of all values, as `digests.stored_digests`. Nothing is read."""
        lacking = self.there & np.asarray(pc.is_null(self.digests))
        if not lacking.any():
            return self.digests
        at = np.flatnonzero(lacking)
        found = stored_digests(column_values.take(self.values, at))
        if len(at) == len(self):
            return found
        places = np.arange(len(self))
        places[at] = len(self) + np.arange(len(at))
        return pa.concat_arrays([self.digests, found]).take(pa.array(places))

    def with_rows(self, rows: Rows) -> Column:
        """All rows, of which at least `rows` have their values. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        absent = rows[~self.there[rows]]
        if not len(absent):
            return self.values
        if len(absent) == len(self):
            return self.read(self.numbers)
        places = np.arange(len(self))
        places[absent] = len(self) + np.arange(len(absent))
        return column_values.take(concat([self.values, self.read(self.numbers[absent])]), places)

    def whole(self) -> Column:
        """All values. Raises as `with_rows`."""
        return self.with_rows(np.arange(len(self)))


Held = Column | Unread  # a column on its way through a step


def whole(column: Held) -> Column:
    """All values of a column."""
    return column.whole() if isinstance(column, Unread) else column


def may_stay_unread(field: pa.Field) -> bool:
    """Whether values of a type are worth it: those without a length of their own."""
    kinds = pa.types
    return is_variable(field.type) or kinds.is_list(field.type) or kinds.is_large_list(field.type)


def travelling(unread: Mapping[str, bytes]) -> list[pa.Field]:
    """What goes with the values of such columns through Daft: for each, which rows are `there`, and `digests`."""
    return [
        field
        for at in range(len(unread))
        for field in (pa.field(f"there{at}", pa.bool_()), pa.field(f"digest{at}", DIGEST_TYPE))
    ]


# -- looking up ------------------------------------------------------------------------------------------------------


def looked_up(
    ds: Dataset, fields: Mapping[str, bytes], first: int, end: int, memo: Memo | None
) -> list[tuple[Column, Bits, pa.Array]]:
    """(values, there, digests), as Unread has them, of rows [first, end) of each of some columns: name -> recipe of who looks at it.

    What has to be read is read together. Raises ChunkMissing, ChunkCorrupt or FormatDamaged.
    """
    pages = {
        name: _Pages(list(ds.pages.parts(first, end, ds.schema.field(name))), memo, fields[name]) for name in fields
    }
    read = ds.pages.read([one for some in pages.values() for one in some.lacking])
    out, keeping = [], dict[bytes, bytes]()
    for some in pages.values():
        values = [next(read) for _ in some.lacking]
        if memo is not None:
            keeping.update(some.learn(values))
        out.append(some.rows(first, end, values))
    if memo is not None and keeping:
        memo.put_many(keeping)
    return out


class _Pages:
    """Pages of one column that follow each other, and what the memo knows of their values: in arrays for all, as pages are many."""

    def __init__(self, stretches: Sequence[Stretch], memo: Memo | None, recipe: bytes) -> None:
        self._stretches, self._recipe = stretches, recipe
        self._type = stretches[0].field.type
        parts = [one.parts[0] for one in stretches]
        self._ends = np.cumsum([part.rows for part in parts]).tolist()  # of each page, among the rows of all
        self._starts = [0, *self._ends[:-1]]
        self._digests = np.zeros((self._ends[-1], DIGEST_BYTES), np.uint8)
        self._valid = np.zeros(self._ends[-1], np.bool_)  # of which rows there is a digest
        self._asked = [] if memo is None else [at for at, part in enumerate(parts) if _worth(part)]
        known = set() if memo is None else self._find(memo)
        self._missing = [at for at in range(len(parts)) if at not in known]

    @property
    def lacking(self) -> list[Stretch]:
        """Those that have to be read."""
        return [self._stretches[at] for at in self._missing]

    def _find(self, memo: Memo) -> set[int]:
        keys = {at: _keys(self._recipe, self._stretches[at].parts[0]) for at in self._asked}
        told = iter(memo.get_many([key for some in keys.values() for key in some]))
        found = set()
        for at, some in keys.items():
            entries = [next(told) for _ in some]
            start, end = self._starts[at], self._ends[at]
            if all(
                self._enter(entry, start + number * limits.UNREAD_ROWS, end) for number, entry in enumerate(entries)
            ):
                found.add(at)
        return found

    def _enter(self, entry: bytes | None, start: int, end: int) -> bool:
        """Take the digests of rows from `start` on from the memo's value; False when it is not one of them."""
        end = min(end, start + limits.UNREAD_ROWS)
        bits = -(-(end - start) // 8)
        if entry is None or len(entry) != bits + (end - start) * DIGEST_BYTES:
            return False
        self._digests[start:end] = np.frombuffer(entry, np.uint8, offset=bits).reshape(-1, DIGEST_BYTES)
        self._valid[start:end] = np.unpackbits(np.frombuffer(entry, np.uint8, bits), count=end - start)
        return True

    def learn(self, values: Sequence[Column]) -> dict[bytes, bytes]:
        """Digest the values of the pages that were lacking; returns what the memo is to keep of them."""
        asked = set(self._asked)
        mine = [(at, column) for at, column in zip(self._missing, values, strict=True) if at in asked]
        if not mine:
            return {}
        made = stored_digests(concat([column for _, column in mine]))
        digests, valid = as_numbers(made).view(np.uint8).reshape(-1, DIGEST_BYTES), ~null_mask(made)
        keeping, done = {}, 0
        for at, column in mine:
            part, stop = self._stretches[at].parts[0], done + len(column.values)
            rows = slice(self._starts[at], self._ends[at])
            self._digests[rows], self._valid[rows] = digests[done:stop], valid[done:stop]
            for number, key in enumerate(_keys(self._recipe, part)):
                some = slice(done + number * limits.UNREAD_ROWS, min(stop, done + (number + 1) * limits.UNREAD_ROWS))
                keeping[key] = np.packbits(valid[some]).tobytes() + digests[some].tobytes()
            done = stop
        return keeping

    def rows(self, first: int, end: int, values: Sequence[Column]) -> tuple[Column, Bits, pa.Array]:
        """(values, there, digests) of rows [first, end) of the version."""
        there, pieces, at = np.zeros(self._ends[-1], np.bool_), [], 0
        for page, column in zip(self._missing, values, strict=True):
            start, stop = self._starts[page], self._ends[page]
            there[start:stop] = True
            if start > at:
                pieces.append(Column(pa.nulls(start - at, self._type)))
            pieces.append(column)
            at = stop
        if self._ends[-1] > at:
            pieces.append(Column(pa.nulls(self._ends[-1] - at, self._type)))
        low = first - self._stretches[0].first
        high = low + end - first
        digests = digest_array(self._digests[low:high].tobytes(), ~self._valid[low:high])
        return concat(pieces).slice(low, high), there[low:high], digests


def _worth(part: Part) -> bool:
    """Whether not reading a page saves more than a look into the memo costs: one of references is one of digests already."""
    return not part.has_references and part.page_bytes >= limits.UNREAD_VALUE_BYTES_MIN * part.rows


def _keys(recipe: bytes, part: Part) -> list[bytes]:
    """Of the memo's values for a page: of each UNREAD_ROWS rows a bit for each that is not null, then 16 bytes for each."""
    blocks = -(-part.rows // limits.UNREAD_ROWS)
    return [digest_of(b"".join((_KEY, recipe, part.digest, at.to_bytes(4, "little")))) for at in range(blocks)]
