"""What a pipeline is made of: operations, which look at some columns of a table of samples and say what becomes of its rows.

    RowOperation     says for each row alone: decode, resize, mask, filter. Works on batches, in any order, on any worker.
    TableOperation   has to know all rows: measures a few small features of each row (as a RowOperation would), then decides
                     in one place: duplicates, outliers, label errors.
    GroupOperation   makes other rows, one for each group of rows: counts, sums, means. Pieces are summed up wherever they are, and
                     what comes of them merges in any order.

An operation is a frozen dataclass; its fields are its parameters, plain enough for TOML and JSON. What it makes is a function of its
recipe and of the values that it reads alone: no clock, no global random generator, no row number. Results are kept under (recipe,
digests of the values) and found again (memo.py), whatever version or worker they come from.

Made is said row for row. Nothing is dropped silently: a row that a check leaves out has a finding that says why (findings.py), and of
rows that somebody asked to leave out (rows.select, rows.sample) the recipe says which: that is the lineage of the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Made:
    """What an operation made of n rows.

    columns:  values that it wrote, by column, n each; they replace a column of that name or come after the others.
    keep:     which rows go on; None: all.
    findings: what it has to say of rows (findings.SCHEMA); `row`, `other` and `group` count from 0 in these n rows. None: nothing.
    failed:   rows that it could not work on (0 to n - 1), with why; what stands in `columns` for them is of no meaning (null, zeros). The
              pipeline's policy decides what becomes of them: raise, or quarantine.
    """

    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    keep: Bits | None = None
    findings: pa.Table | None = None
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation(ABC):
    """Common to all. Instances pickle, and may be called from several threads at once."""

    name: ClassVar[str]  # as pipelines call it: "image.resize"
    version: ClassVar[int] = 1  # raised whenever the same values would give something else
    memoised: ClassVar[bool] = True  # False where computing costs less than looking up (comparing numbers)

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """Itself with what it has to know of the version that is read (an identity, another dataset's commit) among its parameters.

        Called once, before anything runs, and before anybody asks of what kind it is. schema: of the rows that will come to it. What is
        bound may hold more than its parameters (a dataset that it looks into); it pickles with that. Raises BadInput, NotFound.
        """
        return self

    @abstractmethod
    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns whose values it looks at. Raises SchemaError, naming column and fix, when it cannot work on rows like these."""

    def by_digest(self, schema: pa.Schema) -> tuple[str, ...]:
        """Those of `reads` whose digests it is content with (digests.py): large values of these columns stay unread.

        Its batch has digests in their place (`digests.digest_field`), or the values: it takes both (`digests.digests_in`).
        """
        return ()

    def output(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the rows that it leaves. Raises as `reads`."""
        self.reads(schema)
        return schema

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that it may write; others pass untouched. What it says of here and leaves out of `Made.columns` stays as it was."""
        after, reads = self.output(schema), self.reads(schema)
        changed = [field.name for field in after if _changed(schema, field)]
        return tuple(dict.fromkeys((*(name for name in reads if name in after.names), *changed)))

    def parameters(self) -> dict[str, Any]:
        """Its fields that can be given, as JSON keeps them: tuples are lists."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def libraries(self) -> dict[str, str]:
        """Versions of what else decides the result: {"pillow": "13.0.0"}. Code of the user's: {"code": its digest}."""
        return {}

    def recipe(self) -> dict[str, Any]:
        """What decides the result, for lineage and for looking up. JSON-able."""
        found = {"operation": self.name, "version": self.version, **self.parameters()}
        return found | ({"libraries": self.libraries()} if self.libraries() else {})


def _changed(before: pa.Schema, field: pa.Field) -> bool:
    at = before.get_field_index(field.name)
    return at < 0 or not before.field(at).equals(field, check_metadata=True)


class RowOperation(Operation):
    """Says for each row alone."""

    @abstractmethod
    def apply(self, batch: pa.RecordBatch) -> Made:
        """batch: the columns of `reads`, in that order, with plain values; its fields, metadata too, are those of the schema.

        An exception other than LeptonError is taken to be about one of the rows: the pipeline finds out which.
        """


class TableOperation(Operation):
    """Has to know all rows. `measure` runs wherever the rows are, `decide` once, with the features of all of them in memory."""

    @abstractmethod
    def features(self, schema: pa.Schema) -> pa.Schema:
        """The schema of what `measure` gives; some ten to some hundred bytes a row. Raises as `reads`."""

    def features_recipe(self) -> dict[str, Any]:
        """What decides the features alone: they are looked up by it. Parameters that only `decide` uses need not be in it."""
        return self.recipe()

    @abstractmethod
    def measure(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """One row of features for each row of `batch` (as in RowOperation.apply); nulls for a row that cannot be measured."""

    @abstractmethod
    def decide(self, features: pa.Table) -> Made:
        """Of all rows, in row order. A function of the features (and the recipe) alone."""


class GroupOperation(Operation):
    """Makes other rows: one for each group of rows. It is the last operation of a pipeline; another pipeline can go on with them.

    A partial is what a group is so far, in one row: the columns that name the group and whatever its values need. Partials merge in any
    order and any grouping, to the last bit: the same rows give the same result however they were cut into pieces.
    """

    @abstractmethod
    def identity(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that identify the new rows."""

    @abstractmethod
    def partials(self, schema: pa.Schema) -> pa.Schema:
        """The schema of what `partial` gives. Raises as `reads`."""

    @abstractmethod
    def partial(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The groups of the rows of `batch` (as in RowOperation.apply), each once; no more rows than it has."""

    @abstractmethod
    def merged(self, partials: pa.Table) -> pa.Table:
        """The same groups, each once; the schema stays. For keeping memory bounded while partials arrive."""

    @abstractmethod
    def result(self, partials: pa.Table) -> pa.Table:
        """The new rows, of schema `output`, in the order of their identity. A function of the partials (and the recipe) alone."""
