"""Validation rules of a dataset: what its values must be. They stand in the schema, and every commit is held against them.

    not_null                no value is null                      min=0, max=1 (one or both)   numbers, dates: within, ends included
    one_of=["a", "b"]       a value of this list                  pattern="[a-z]+"             the whole text fits this RE2 pattern
    unique                  no value stands in two rows

A rule is JSON in the field's metadata ("lepton.rules": a list of {"rule": …}), so that it is versioned with the data and travels with it.
Null breaks only `not_null`. Rows that come in or change are checked; a rule that is added is held against all rows first. `unique` reads
its whole column at each commit that adds rows, by sorted runs of 16-byte digests in bounded memory, except where the key says it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.errors import BadInput, RuleBroken, SchemaError
from leptonstore.format.commit import Commit
from leptonstore.format.page import encode_page
from leptonstore.store import Store
from leptonstore.store.runs import SortedRuns

RULES = b"lepton.rules"
KINDS = ("not_null", "range", "one_of", "pattern", "unique")
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Rule:
    """One rule of one column. `kind` is one of not_null, range, one_of, pattern, unique; the other fields as it needs them."""

    kind: str
    least: Any = None
    most: Any = None
    values: tuple[Any, ...] = ()
    pattern: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the metadata."""
        out: dict[str, Any] = {"rule": self.kind}
        if self.kind == "range":
            out |= {name: value for name, value in (("min", self.least), ("max", self.most)) if value is not None}
        elif self.kind == "one_of":
            out["values"] = list(self.values)
        elif self.kind == "pattern":
            out["pattern"] = self.pattern
        return out

    def __str__(self) -> str:
        if self.kind == "range":
            ends = (f"min {self.least}" * (self.least is not None), f"max {self.most}" * (self.most is not None))
            return "range " + " ".join(end for end in ends if end)
        if self.kind == "one_of":
            return f"one of {', '.join(map(str, self.values))}"
        return f"pattern {self.pattern}" if self.kind == "pattern" else self.kind.replace("_", " ")

    def broken(self, array: pa.Array) -> pa.Array:
        """For each value whether it breaks the rule. Not for `unique`. Raises pa.ArrowException when the rule does not fit the type."""
        if self.kind == "not_null":
            return array.is_null()
        if self.kind == "range":
            out = pa.scalar(False)
            for end, outside in ((self.least, pc.less), (self.most, pc.greater)):
                if end is not None:
                    out = pc.or_(out, outside(array, _scalar(end, array.type)))
            if pa.types.is_floating(array.type):
                out = pc.or_(out, pc.is_nan(array))
        elif self.kind == "one_of":
            allowed = pa.array([_scalar(value, array.type) for value in self.values], array.type)
            out = pc.invert(pc.is_in(array, allowed))
        else:
            out = pc.invert(pc.match_substring_regex(array, f"^(?:{self.pattern})$"))
        return pc.and_(pc.fill_null(out, False), array.is_valid())


def _scalar(value: Any, data_type: pa.DataType) -> pa.Scalar:
    # Arrow takes an int for an int64, which not every value of a uint64 fits.
    large = type(value) is int and value >= 2**63
    return pa.scalar(value, pa.uint64() if large else None).cast(data_type)


def rules_of(field: pa.Field) -> list[Rule]:
    """The rules of a column. Raises SchemaError when the metadata are none."""
    text = (field.metadata or {}).get(RULES)
    if text is None:
        return []
    try:
        return [_parse(one) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SchemaError(f"column {field.name!r} has rules that cannot be read: {text[:80]!r}") from None


def _parse(one: dict[str, Any]) -> Rule:
    kind = one["rule"]
    if kind not in KINDS:
        raise ValueError(kind)
    return Rule(kind, one.get("min"), one.get("max"), tuple(one.get("values", ())), str(one.get("pattern", "")))


def with_rules(field: pa.Field, rules: list[Rule]) -> pa.Field:
    """The field with these rules instead of its own."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != RULES}
    if rules:
        metadata[RULES] = json.dumps([one.to_json() for one in rules], ensure_ascii=False, sort_keys=True).encode()
    return field.with_metadata(metadata or None)


def check_fits(field: pa.Field, rule: Rule) -> None:
    """Raise BadInput when such a column cannot have this rule."""
    if rule.kind == "range" and rule.least is None and rule.most is None:
        raise BadInput("a range needs a least or a greatest value")
    if rule.kind == "unique":
        return
    plain = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    try:
        # A pattern is looked at with the first value only.
        rule.broken(pa.array([""] if rule.kind == "pattern" else [], plain))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        why = str(error).splitlines()[0]
        raise BadInput(f"column {field.name!r} of type {field.type} cannot have the rule {rule}: {why}") from None


def check_kept(name: str, schema: pa.Schema) -> None:
    """Raise BadInput when a column has a rule from an older version that its type cannot have. name: of the dataset, with the branch."""
    for field in schema:
        for rule in rules_of(field):
            try:
                check_fits(field, rule)
            except BadInput as error:
                raise BadInput(f"{error}; first remove it: lepton rules rm {name} {field.name} {rule.kind}") from None


def check_rows(schema: pa.Schema, batch: pa.RecordBatch, first_row: int) -> None:
    """Hold rows against all rules but `unique`. first_row: of the batch, in what it came from. Raises RuleBroken."""
    for field, array in zip(schema, batch.columns, strict=True):
        for rule in rules_of(field):
            if rule.kind != "unique":
                _require(rule, field, array, first_row)


def _require(rule: Rule, field: pa.Field, array: pa.Array, first_row: int) -> None:
    plain = array.storage if isinstance(array, pa.ExtensionArray) else array
    broken = rule.broken(plain)
    if not pc.any(broken).as_py():
        return
    rows = np.flatnonzero(broken.to_numpy(zero_copy_only=False))
    found = array[int(rows[0])].as_py()
    raise _error(rule, field.name, (rows[: limits.PLACES_MAX] + first_row).tolist(), f"the first is {repr(found)[:80]}")


def _error(rule: Rule, column: str, rows: list[int], said: str) -> RuleBroken:
    shown = ", ".join(map(str, rows[:5]))
    return RuleBroken(
        f"column {column!r} breaks the rule {str(rule)!r} in row {shown} ({said}); correct the rows, or remove the rule",
        str(rule),
        column,
        rows,
    )


def keep_rules(schema: pa.Schema, old: pa.Schema) -> pa.Schema:
    """`schema` with the rules that `old` has for columns of the same names, where it has none of its own: an import drops no rule."""
    return pa.schema(
        [
            with_rules(field, rules_of(old.field(field.name)))
            if field.name in old.names and not rules_of(field)
            else field
            for field in schema
        ]
    )


def check_unique(store: Store, name: str, ref: str, commit: Commit) -> None:
    """Hold a version that is not published yet against its rules `unique`. Reads these columns; memory stays bounded. Raises RuleBroken."""
    version = Dataset(store, name, ref, "")
    version._commit_object = commit
    for field in commit.schema:
        for rule in rules_of(field):
            if rule.kind == "unique" and not (commit.keyed and commit.identity == (field.name,)):
                _require_unique(version, rule, field)


def check_column(head: Dataset, field: pa.Field, rule: Rule) -> None:
    """Hold all rows of a version against a rule. Raises RuleBroken."""
    if rule.kind == "unique":
        _require_unique(head, rule, field)
        return
    for first, batch in head.iter_batches([field.name]):
        _require(rule, field, batch.column(0), first)


def _require_unique(version: Dataset, rule: Rule, field: pa.Field) -> None:
    runs, count = SortedRuns(_DIGEST_BYTES, version.store.cache_path("sort")), 0
    for _, key in _digests(version, field.name):
        runs.add(key)
        count += 1
    if len(runs.finish()) == count:
        return
    seen: dict[bytes, int] = {}  # a second look, for the message: as far as the first repetition
    for row, key in _digests(version, field.name):
        if key in seen:
            raise _error(rule, field.name, [seen[key], row], "both have the same value")
        seen[key] = row


def _digests(version: Dataset, column: str) -> Iterator[tuple[int, bytes]]:
    """(row, digest of its value), nulls left out. Values that stand elsewhere count by their reference."""
    for first, (stored,) in version.iter_stored([column]):
        valid = stored.values.is_valid().to_pylist()
        for row, is_valid in enumerate(valid):
            if is_valid:
                one = stored.slice(row, row + 1)
                yield first + row, blake3(encode_page(one.values, one.references)).digest(length=_DIGEST_BYTES)
