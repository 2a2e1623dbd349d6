"""numbers.normalise: a column of numbers or tensors becomes floats around 0 with deviation 1, or between 0 and 1.

    standard   (x - mean) / std          range   (x - low) / (high - low)

The constants are given, or they are looked up in the version that is read before anything runs: over all rows, or over those of one
split, so that nothing is learnt from rows that are held out. Either way they are parameters of what runs, and stand in the lineage.
Sums are exact until they are rounded once (exact.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_shape
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process import columns, exact
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.looked_up import looked_up
from leptonstore.process.operations.parameters import FLOATS, made_of, number_field, numbers, one_of, require_stored

_KINDS = {"standard": ("mean", "std"), "range": ("low", "high")}


@dataclass(frozen=True)
class Normalise(RowOperation):
    """Makes floats of a column. Nulls stay null, NaN and infinities what they are.

    kind: "standard" or "range". mean and std, or low and high: the constants, a number, or one for each channel (the last dimension of
    tensors). Without them: split names the rows that they are taken from ("": all), per says whether channels have their own ("column" or
    "channel"). Values that are not finite have no say; where all are equal, what is divided by is 1.
    type: of the result, "float16", "float32" or "float64". into: name of the new column; by default it takes the place of the old one.
    """

    name: ClassVar[str] = "numbers.normalise"
    memoised: ClassVar[bool] = False
    column: str
    kind: str = "standard"
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    split: str = ""
    per: str = "column"
    type: str = "float32"
    into: str = ""

    def __post_init__(self) -> None:
        one_of(self.name, "kind", self.kind, _KINDS)
        one_of(self.name, "per", self.per, ("column", "channel"))
        one_of(self.name, "type", self.type, FLOATS)
        for name in ("mean", "std", "low", "high"):
            object.__setattr__(self, name, numbers(self.name, name, getattr(self, name)))
        wanted = _KINDS[self.kind]
        others = [name for kind in _KINDS.values() if kind != wanted for name in kind if getattr(self, name)]
        if others:
            raise BadInput(
                f"{self.name}: {others[0]!r} is of another kind than {self.kind!r}, which takes {' and '.join(wanted)}"
            )
        first, second = self._constants()
        if len(first) != len(second) or not all(map(math.isfinite, (*first, *second))):
            raise BadInput(
                f"{self.name}: give both {' and '.join(wanted)}, finite, and as many of the one as of the other, or neither"
            )
        if any(one <= 0 for one in self._divisors()):
            raise BadInput(f"{self.name}: {'std must be above 0' if wanted[1] == 'std' else 'high must be above low'}")
        if first and self.split:
            raise BadInput(
                f"{self.name}: {' and '.join(wanted)} are given, so nothing is taken from split {self.split!r}; leave one out"
            )

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the constants, where none were given. Raises BadInput when there are no values to take them from."""
        if self._constants()[0]:
            return self
        field = number_field(self.name, schema, self.column)
        require_stored(self.name, source, schema, self.column, f"give {' and '.join(_KINDS[self.kind])}")
        channels = self._channels(field) if self.per == "channel" else 1
        words = {"constants": self.column, "split": self.split, "channels": channels, "kind": self.kind}

        def look() -> list[tuple[float, float]]:
            rows = source.split(self.split) if self.split else source
            return _constants(rows, self.column, channels, self.kind)

        found = looked_up(source, words, look)
        if not found:
            where = f"split {self.split!r} of {source.label}" if self.split else source.label
            raise BadInput(f"{self.name}: column {self.column!r} has no finite value in {where}")
        constants: dict[str, Any] = dict(zip(_KINDS[self.kind], zip(*found, strict=True), strict=True))
        return replace(self, **constants, split="")

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The column of numbers."""
        field = number_field(self.name, schema, self.column)
        count = len(self._constants()[0])
        if count > 1 and count != self._channels(field):
            raise SchemaError(
                f"{self.name}: {count} constants for the {self._channels(field)} channels of column {self.column!r}"
            )
        return (self.column,)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the floats."""
        self.reads(schema)
        return made_of(self.name, schema, self.column, self._made(schema.field(self.column)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The floats."""
        return (self.into or self.column,)

    def apply(self, batch: pa.RecordBatch) -> Made:
        """The floats of all rows."""
        column, made = batch.column(0), self._made(batch.schema.field(0))
        first = np.array(self._constants()[0])
        if not len(first):
            raise BadInput(f"{self.name}: the constants are not known; give them, or call `bound` first")
        divisors = np.array(self._divisors())
        kind = FLOATS[self.type]
        shape = tensor_shape(batch.schema.field(0))
        values = columns.row_values(column)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # beyond the type's range is infinite; infinities stay what they are
            floats = ((values.astype(np.float64) - first) / divisors).astype(self.type)
        missing = columns.null_mask(column)
        if shape is None:
            return Made({made.name: pa.array(floats, kind, mask=missing, from_pandas=False)})
        floats[missing] = 0
        return Made({made.name: tensor_column(made, floats, missing)})

    def _constants(self) -> tuple[Sequence[float], Sequence[float]]:
        first, second = _KINDS[self.kind]
        return getattr(self, first), getattr(self, second)

    def _divisors(self) -> list[float]:
        first, second = self._constants()
        return (
            list(second) if self.kind == "standard" else [high - low for low, high in zip(first, second, strict=True)]
        )

    def _channels(self, field: pa.Field) -> int:
        shape = tensor_shape(field)
        return shape[-1] if shape else 1

    def _made(self, field: pa.Field) -> pa.Field:
        kind, shape = FLOATS[self.type], tensor_shape(field)
        data_type = kind if shape is None else pa.fixed_shape_tensor(kind, list(shape))
        return pa.field(self.into or self.column, data_type, nullable=field.nullable)


def _constants(ds: Dataset, column: str, channels: int, kind: str) -> list[tuple[float, float]]:
    """(mean, std) or (low, high) of each channel; none where a channel has no finite value."""
    gathered = [_Gathered() for _ in range(channels)]
    for _, batch in ds.iter_batches([column]):
        values = columns.numbers(batch.column(0)).reshape(-1, channels)
        for channel, one in enumerate(gathered):
            one.add(np.ascontiguousarray(values[:, channel]), kind)
    if not all(one.count for one in gathered):
        return []
    return [one.standard() if kind == "standard" else one.range() for one in gathered]


class _Gathered:
    """What the constants of one channel are made of."""

    def __init__(self) -> None:
        self.count = 0
        self._low, self._high = math.inf, -math.inf
        self._total, self._squares = Fraction(), Fraction()

    def add(self, values: NDArray[Any], kind: str) -> None:
        """Take in an array."""
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if not len(values):
            return
        self.count += len(values)
        if kind == "range":
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
            return
        self._total += Fraction(exact.sums(values).of(1)[0])
        self._squares += Fraction(exact.square_sums(values).of(1)[0])

    def standard(self) -> tuple[float, float]:
        """(mean, std)."""
        return exact.mean_of(self._total, self.count), exact.deviation_of(self._total, self._squares, self.count) or 1.0

    def range(self) -> tuple[float, float]:
        """(low, high)."""
        return self._low, self._high if self._high > self._low else max(
            self._low + 1.0, math.nextafter(self._low, math.inf)
        )
