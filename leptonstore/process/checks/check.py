"""What all checks have in common: they say what they found, and the user's action decides what becomes of those rows.

A check that looks at each row alone is a RowCheck, one that has to compare rows a TableCheck. Both say `find`; what is written follows
from the findings and from `action`, in one place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.errors import BadInput, SchemaError, listed
from leptonstore.process.findings import Action
from leptonstore.process.operation import Bits, Made, Operation, RowOperation, TableOperation

TAGS = "findings"  # the column of tags: list<string>, the checks that found the row, in the order of the pipeline


@dataclass(frozen=True)
class Found:
    """What a check found in n rows.

    findings: `row`, `other` and `group` count from 0 in them. fixed: columns with what the check holds to be right, n values each (rows
    without a finding as they were).
    """

    findings: pa.Table
    fixed: Mapping[str, pa.Array] | None = None


@dataclass(frozen=True)
class Check(Operation):
    """action: "keep" | "drop" | "tag" | "fix" (checks that know what is right)."""

    can_fix: ClassVar[bool] = False
    action: str = "keep"

    def __post_init__(self) -> None:
        if self.action not in self.actions():
            raise BadInput(f"{self.name} has no action {self.action!r}; it has: {listed(self.actions())}")

    @classmethod
    def actions(cls) -> tuple[str, ...]:
        """Those that it has."""
        return tuple(one.value for one in Action if one is not Action.FIX or cls.can_fix)

    @abstractmethod
    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that it is given. Raises SchemaError, naming column and fix, when it cannot work on rows like these."""

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """What it looks at, and the tags to which it adds."""
        return tuple(dict.fromkeys((*self.looks_at(schema), *self.tagging_reads(schema))))

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the column of tags when rows are tagged."""
        self.reads(schema)
        if self.action != Action.TAG or TAGS in schema.names:
            return schema
        return schema.append(pa.field(TAGS, pa.list_(pa.string())))

    def fixes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that the action "fix" may write (checks that can)."""
        return self.reads(schema)

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """What its action writes: nothing, the tags, or what is fixed."""
        if self.action == Action.FIX:
            return self.fixes(schema)
        return (TAGS,) if self.action == Action.TAG else ()

    def tagging_reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The column of tags, where there is one to which tags are added; part of `reads` of every check."""
        if self.action != Action.TAG or TAGS not in schema.names:
            return ()
        if schema.field(TAGS).type != pa.list_(pa.string()):
            raise SchemaError(f"{self.name} cannot tag: column {TAGS!r} is {schema.field(TAGS).type}; rename it first")
        return (TAGS,)

    def made(self, found: Found, rows: int, tags: pa.Array | None) -> Made:
        """What becomes of `rows` rows. tags: as they were, None without."""
        action = Action(self.action)
        findings = found.findings
        if len(findings):
            at = findings.schema.get_field_index("action")
            findings = findings.set_column(at, findings.schema.field(at), pa.array([action.value] * len(findings)))
        marked = _marked(findings, rows)
        if action is Action.DROP:
            return Made(keep=~marked, findings=findings)
        if action is Action.FIX:
            return Made(columns=dict(found.fixed or {}), findings=findings)
        if action is Action.TAG:
            return Made(columns={TAGS: _tagged(tags, marked, self.tag)}, findings=findings)
        return Made(findings=findings)

    @property
    def tag(self) -> str:
        """What findings and tags call it: its name without "check."."""
        return self.name.removeprefix("check.")


def _marked(findings: pa.Table, rows: int) -> Bits:
    marked = np.zeros(rows, np.bool_)
    marked[findings["row"].to_numpy()] = True
    return marked


def _tagged(tags: pa.Array | None, marked: Bits, tag: str) -> pa.Array:
    before = [[] for _ in marked] if tags is None else pc.fill_null(tags, []).to_pylist()
    after = [[*old, tag] if new and tag not in old else old for old, new in zip(before, marked.tolist(), strict=True)]
    return pa.array(after, pa.list_(pa.string()))


class RowCheck(Check, RowOperation):
    """Looks at each row alone."""

    @abstractmethod
    def find(self, batch: pa.RecordBatch) -> Found:
        """batch: the columns of `looks_at`."""

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Find, and do what the action says."""
        tags = batch.column(TAGS) if self.action == Action.TAG and TAGS in batch.schema.names else None
        return self.made(self.find(batch), batch.num_rows, tags)


class TableCheck(Check, TableOperation):
    """Has to compare rows. Its features go to `find_in`; the tags of rows are features, too."""

    @abstractmethod
    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Features of each row of `batch`; schema as `measures` says."""

    @abstractmethod
    def measures(self, schema: pa.Schema) -> pa.Schema:
        """Schema of the features."""

    @abstractmethod
    def find_in(self, features: pa.Table) -> Found:
        """Of all rows, in row order."""

    def features(self, schema: pa.Schema) -> pa.Schema:
        """What it measures, and the tags to which it adds."""
        found = self.measures(schema)
        return found.append(schema.field(TAGS)) if self.tagging_reads(schema) else found

    def features_recipe(self) -> dict[str, Any]:
        """Without the action, unless it adds tags to features: what was measured for a report is there when rows are dropped."""
        found = self.recipe()
        return (
            found if self.action == Action.TAG else {name: value for name, value in found.items() if name != "action"}
        )

    def measure(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What it measures, and the tags to which it adds."""
        found = self.measured(batch)
        if self.action != Action.TAG or TAGS not in batch.schema.names or TAGS in found.schema.names:
            return found
        return found.append_column(TAGS, batch.column(TAGS))

    def decide(self, features: pa.Table) -> Made:
        """Find, and do what the action says."""
        tags = None
        if self.action == Action.TAG and TAGS in features.schema.names:
            tags = features[TAGS].combine_chunks()
        return self.made(self.find_in(features), len(features), tags)
