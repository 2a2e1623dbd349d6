"""Rows that break validation rules (dataset/rules.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.dataset.rules import KINDS, RULES, Rule, check_fits, rules_of
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.columns import field_of
from leptonstore.process.findings import findings_table, joined

VALUE_CHARS_MAX = 60  # of a value in a detail


@dataclass(frozen=True)
class Rules(RowCheck):
    """Rows whose values are not what rules say; a finding for each row and rule.

    rules: by column, as they stand in a schema: {"score": [{"rule": "range", "min": 0, "max": 1}]}; to see what breaks a rule before it is
    added (`lepton rules add` refuses it while any row does), or after operations that changed values. default: the rules of the schema.
    score: none. `unique` compares rows: that is check.duplicates with `columns`; of the schema's own rules it is left out, for every commit
    is held against it.
    """

    name: ClassVar[str] = "check.rules"
    memoised: ClassVar[bool] = False
    rules: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def _rules(self, schema: pa.Schema) -> Iterator[tuple[pa.Field, list[Rule]]]:
        for column in schema if not self.rules else [field_of(self.name, schema, name) for name in self.rules]:
            found = self._parsed(column) if self.rules else [one for one in rules_of(column) if one.kind != "unique"]
            if found:
                yield column, found

    def _parsed(self, column: pa.Field) -> list[Rule]:
        given = self.rules[column.name]
        try:
            found = rules_of(column.with_metadata({RULES: json.dumps(list(map(dict, given)), default=str)}))
        except (SchemaError, TypeError, ValueError):
            raise BadInput(
                f"{self.name}: the rules of {column.name!r} cannot be read; each names one of: {', '.join(KINDS)}"
            ) from None
        if any(one.kind == "unique" for one in found):
            raise BadInput(
                f"{self.name} looks at each row alone; for a unique {column.name!r} use check.duplicates with columns = [{column.name!r}]"
            )
        for one in found:
            check_fits(column, one)
        return found

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns that have rules. Raises SchemaError when none has, BadInput for rules that do not fit."""
        found = tuple(column.name for column, _ in self._rules(schema))
        if not found:
            raise SchemaError(f"{self.name}: no column has a rule; give them in `rules`, or leave it out")
        return found

    def find(self, batch: pa.RecordBatch) -> Found:
        """As the class says."""
        return Found(
            joined(
                table
                for column, rules in self._rules(batch.schema)
                for table in self._broken(batch, column.name, rules)
            )
        )

    def _broken(self, batch: pa.RecordBatch, name: str, rules: Sequence[Rule]) -> Iterator[pa.Table]:
        column = batch.column(name)
        plain = column.storage if isinstance(column, pa.ExtensionArray) else column
        for rule in rules:
            rows = np.flatnonzero(rule.broken(plain).to_numpy(zero_copy_only=False))
            details = [f"{_shown(column[row].as_py())} breaks {str(rule)!r}" for row in rows.tolist()]
            yield findings_table(self.tag, name, rows, details)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"
