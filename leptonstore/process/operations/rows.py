"""Which rows: rows.split gives each a side, rows.sample keeps some of them, rows.select those that a condition holds for.

Split and sample look at a row's identity alone (identity.py). So a row never changes side, and never leaves a sample that is a fraction,
when the dataset grows; the price is that sizes are only about right. With `by`, other columns stand for the identity: all rows of a patient
are on the same side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.schema import class_label_field
from leptonstore.errors import BadInput, SchemaError
from leptonstore.limits import CLASSES_MAX
from leptonstore.process import columns
from leptonstore.process.columns import field_of
from leptonstore.process.identity import SAMPLE, SPLIT, identity_numbers
from leptonstore.process.operation import Made, Operation, RowOperation, TableOperation
from leptonstore.process.operations.parameters import numbers, texts, whole_numbers

_WHOLE = 2**64
_SUM_ERROR = 1e-6  # of fractions such as 0.1, which no float is


@dataclass(frozen=True, kw_only=True)
class _ByIdentity(Operation):
    """What rows.split and rows.sample have in common."""

    seed: int = 0
    by: Sequence[str] = ()

    memoised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not -(2**63) <= self.seed < 2**63:
            raise BadInput(f"{self.name}: seed is a whole number of 64 bits, not {self.seed!r}")
        object.__setattr__(self, "by", texts(self.name, "by", self.by))

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the columns that identify a row of the version, where none were named."""
        return self if self.by else replace(self, by=source.identity)

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """`by`, in the order given: it is the order in which they are hashed."""
        if not self.by:
            raise SchemaError(f"{self.name}: it is not known what identifies a row; name columns in `by`")
        return tuple(field_of(self.name, schema, column).name for column in self.by)

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def numbers_of(self, batch: pa.RecordBatch, purpose: bytes) -> NDArray[np.uint64]:
        """The number of each row."""
        return identity_numbers([batch.column(name) for name in self.by], self.seed, purpose)


@dataclass(frozen=True)
class Split(_ByIdentity, RowOperation):
    """Gives every row a side, in a new column of class labels.

    names and fractions: of the sides; fractions are above 0 and sum up to 1. column: what the new one is called.
    by: columns that stand for a row: rows that are equal in them are on one side; none: the identity of the dataset.
    seed: another number draws another split.

    The last name takes the lowest numbers, the one before it the next, and so on: raising the fraction of the last one only moves rows
    to it.
    """

    name: ClassVar[str] = "rows.split"
    names: Sequence[str] = ("train", "val")
    fractions: Sequence[float] = (0.8, 0.2)
    column: str = columns.SPLIT

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", texts(self.name, "names", self.names))
        object.__setattr__(self, "fractions", numbers(self.name, "fractions", self.fractions))
        count = len(self.names)
        if count != len(self.fractions) or not 2 <= count <= CLASSES_MAX:
            raise BadInput(
                f"{self.name}: {count} names and {len(self.fractions)} fractions; give a fraction for each name"
            )
        if not all(0 < one < 1 for one in self.fractions) or abs(math.fsum(self.fractions) - 1) > _SUM_ERROR:
            raise BadInput(
                f"{self.name}: the fractions {list(self.fractions)} must lie between 0 and 1, and sum up to 1 "
                f"(not {math.fsum(self.fractions):g})"
            )

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the column of sides."""
        self.reads(schema)
        if self.column in schema.names:
            raise SchemaError(f"{self.name}: there is a column {self.column!r} already; give `column` another name")
        return schema.append(class_label_field(self.column, list(self.names)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The sides."""
        return (self.column,)

    def apply(self, batch: pa.RecordBatch) -> Made:
        """The side of each row."""
        return Made({self.column: self._labels(self.numbers_of(batch, SPLIT))})

    def _labels(self, found: NDArray[np.uint64]) -> pa.Array:
        # From the last name on: the numbers below its fraction are its, those below both of the last two the other's …
        shares = [math.fsum(self.fractions[at:]) for at in range(len(self.fractions) - 1, 0, -1)]
        ends = [min(int(share * _WHOLE), _WHOLE - 1) for share in shares]
        below = np.searchsorted(np.array(ends, np.uint64), found, side="right")
        kind = class_label_field(self.column, list(self.names)).type
        return pa.array(len(self.names) - 1 - below, kind)


@dataclass(frozen=True)
class Sample(_ByIdentity):
    """Keeps a fraction of the rows, or a number of them: give one of the two.

    fraction: above 0 and below 1. A row that is kept stays in every larger fraction, and whatever other rows there are.
    rows:     exactly so many (all, where there are no more), those with the lowest numbers; that takes a pass over the identities.
    by:       columns that stand for a row: rows that are equal in them have the same number; none: the identity of the dataset.
    seed:     another number draws another sample.
    """

    name: ClassVar[str] = "rows.sample"
    fraction: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.fraction is None) == (self.rows is None):
            raise BadInput(f"{self.name}: give either `fraction` or `rows`")
        if self.fraction is not None and not 0 < numbers(self.name, "fraction", self.fraction)[0] < 1:
            raise BadInput(f"{self.name}: fraction is {self.fraction}; it must lie between 0 and 1")
        if self.rows is not None:
            whole_numbers(self.name, "rows", self.rows, (1,))

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """As the kind of operation that its parameters make it."""
        values = self.parameters() | {"by": self.by or source.identity}
        return SampleFraction(**values) if self.fraction is not None else SampleRows(**values)


@dataclass(frozen=True)
class SampleFraction(Sample, RowOperation):
    """rows.sample of a fraction."""

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """It is bound."""
        return self

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Rows whose numbers are low enough."""
        assert self.fraction is not None
        return Made(keep=self.numbers_of(batch, SAMPLE) < np.uint64(int(self.fraction * _WHOLE)))


@dataclass(frozen=True)
class SampleRows(Sample, TableOperation):
    """rows.sample of a number of rows."""

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """It is bound."""
        return self

    def features(self, schema: pa.Schema) -> pa.Schema:
        """The number of a row: 8 bytes."""
        self.reads(schema)
        return pa.schema([pa.field("number", pa.uint64(), nullable=False)])

    def measure(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The number of each row."""
        numbers_ = pa.array(self.numbers_of(batch, SAMPLE))
        return pa.RecordBatch.from_arrays([numbers_], schema=self.features(batch.schema))

    def decide(self, features: pa.Table) -> Made:
        """The lowest are kept; of rows with the same identity the first."""
        keep = np.zeros(len(features), np.bool_)
        keep[np.argsort(features["number"].to_numpy(), kind="stable")[: self.rows]] = True
        return Made(keep=keep)


@dataclass(frozen=True)
class Select(RowOperation):
    """Keeps the rows that a condition holds for. where: as in SQL (dataset/where.py); a comparison with null does not hold."""

    name: ClassVar[str] = "rows.select"
    memoised: ClassVar[bool] = False
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.where, str) or not self.where.strip():
            raise BadInput(
                f"{self.name}: where is a condition such as \"score > 0.5 and label = 'cat'\", not {self.where!r}"
            )

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that the condition names. Raises BadInput, MissingExtra without sqlglot."""
        return tuple(_predicate(self.where, schema).columns)

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Rows that it holds for."""
        return Made(keep=_predicate(self.where, batch.schema).mask(batch))


def _predicate(where: str, schema: pa.Schema) -> Predicate:
    return _parsed(where, schema.serialize().to_pybytes())


@functools.lru_cache(maxsize=64)
def _parsed(where: str, schema: bytes) -> Predicate:
    """Parsing takes a millisecond, which every batch would pay. By bytes, for schemas that differ in class names are equal."""
    return Predicate(where, pa.ipc.read_schema(pa.py_buffer(schema)))
