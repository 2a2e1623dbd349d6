"""Small operations of every shape, each with a model: what it does to one row, or to all rows, in plain Python.

A row of the model is a dict; `model` returns the rows that stay, (row number, check, detail) of what was said, and the numbers of rows that
it fails on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.schema import PART_BYTES
from leptonstore.process.findings import findings_table
from leptonstore.process.operation import Made, Operation, RowOperation, TableOperation

Row = dict[str, Any]
Said = list[tuple[int, str, str]]
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        # Pages of a few rows.
        pa.field("text", pa.string(), metadata={PART_BYTES: b"16"}),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("number", pa.float64()),
    ]
)
calls: list[tuple[str, int]] = []  # (operation, rows) of every batch that an operation was given


def texts(batch: pa.RecordBatch) -> list[str | None]:
    found: list[str | None] = batch.column("text").to_pylist()
    return found


@dataclass(frozen=True)
class Upper(RowOperation):
    """Writes the column that it reads."""

    name: ClassVar[str] = "test.upper"

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("text",)

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        return Made({"text": pc.utf8_upper(batch.column("text"))})

    def model(self, row: Row) -> None:
        row["text"] = None if row["text"] is None else row["text"].upper()


@dataclass(frozen=True)
class Length(RowOperation):
    """Makes a new column, of two that it reads."""

    name: ClassVar[str] = "test.length"

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("data", "text")

    def output(self, schema: pa.Schema) -> pa.Schema:
        if "length" in schema.names:
            return schema
        return schema.append(pa.field("length", pa.int32(), nullable=False))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("length",)

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        lengths = [len(a) + len(b or "") for a, b in zip(batch.column("data").to_pylist(), texts(batch), strict=True)]
        return Made({"length": pa.array(lengths, pa.int32())})

    def model(self, row: Row) -> None:
        row["length"] = len(row["data"]) + len(row["text"] or "")


@dataclass(frozen=True)
class Doubled(RowOperation):
    """Makes large values of large values."""

    name: ClassVar[str] = "test.doubled"

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("data",)

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        return Made({"data": pa.array([value * 2 for value in batch.column("data").to_pylist()], pa.large_binary())})

    def model(self, row: Row) -> None:
        row["data"] *= 2


@dataclass(frozen=True)
class Short(RowOperation):
    """Leaves rows out, and says so."""

    name: ClassVar[str] = "test.short"
    least: int = 2

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("text",)

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        keep = np.array([len(text or "") >= self.least for text in texts(batch)], np.bool_)
        gone = np.flatnonzero(~keep)
        return Made(
            keep=keep,
            findings=findings_table("short", "text", gone, [f"{batch.column('text')[int(at)]}" for at in gone]),
        )

    def model(self, row: Row) -> str | None:
        return f"{row['text']}" if len(row["text"] or "") < self.least else None


@dataclass(frozen=True)
class Raises(RowOperation):
    """Raises on a batch with a row that it does not like; not worth looking up."""

    name: ClassVar[str] = "test.raises"
    memoised: ClassVar[bool] = False

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("text", "number")

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        if any("x" in (text or "").lower() for text in texts(batch)):
            raise ValueError("there is an x")
        return Made({"number": pc.add(batch.column("number"), 1.0)})

    def model(self, row: Row) -> bool:
        if "x" in (row["text"] or "").lower():
            return True
        row["number"] = None if row["number"] is None else row["number"] + 1
        return False


@dataclass(frozen=True)
class Fails(RowOperation):
    """Says which rows it failed on, and writes its column only where there is something to correct."""

    name: ClassVar[str] = "test.fails"

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("number",)

    def apply(self, batch: pa.RecordBatch) -> Made:
        calls.append((self.name, batch.num_rows))
        values = batch.column("number").to_pylist()
        failed = {at: "it is null" for at, value in enumerate(values) if value is None}
        wrong = [value is not None and value < 0 for value in values]
        if not any(wrong):
            return Made(failed=failed)
        return Made({"number": pa.array([None if v is None else abs(v) for v in values], pa.float64())}, failed=failed)

    def model(self, row: Row) -> bool:
        if row["number"] is None:
            return True
        row["number"] = abs(row["number"])
        return False


@dataclass(frozen=True)
class First(TableOperation):
    """Leaves out rows whose text an earlier one has; a new column says how many there were."""

    name: ClassVar[str] = "test.first"

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("text",)

    def output(self, schema: pa.Schema) -> pa.Schema:
        return schema if "times" in schema.names else schema.append(pa.field("times", pa.int64()))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        return ("times",)

    def features(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([schema.field("text")])

    def measure(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        calls.append((self.name, batch.num_rows))
        return batch

    def decide(self, features: pa.Table) -> Made:
        values = features["text"].to_pylist()
        seen: dict[Any, int] = {}
        keep, again = np.ones(len(values), np.bool_), []
        for at, value in enumerate(values):
            if value in seen:
                keep[at] = False
                again.append(at)
            seen.setdefault(value, at)
        found = findings_table(
            "first", "text", again, ["again"] * len(again), others=[seen[values[at]] for at in again]
        )
        return Made({"times": pa.array([values.count(value) for value in values], pa.int64())}, keep, found)

    def model_all(self, rows: list[Row]) -> tuple[list[Row], Said]:
        values = [row["text"] for row in rows]
        out, said = [], []
        for at, row in enumerate(rows):
            if row["text"] in values[:at]:
                said.append((row["#"], "first", f"again {rows[values.index(row['text'])]['#']}"))
                continue
            out.append({**row, "times": values.count(row["text"])})
        return out, said


OPERATIONS: list[Operation] = [Upper(), Length(), Doubled(), Short(), Short(4), Raises(), Fails(), First()]


def expected(operations: list[Operation], rows: list[Row]) -> tuple[list[Row], Said]:
    """(the rows of the result, what is found), with rows that fail left out."""
    rows = [{**row, "#": at} for at, row in enumerate(rows)]
    said: Said = []
    for operation in operations:
        if isinstance(operation, First):
            rows, found = operation.model_all(rows)
            said += found
            continue
        left = []
        for row in rows:
            told: Any = operation.model(row)  # type: ignore[attr-defined]
            if isinstance(told, str):
                said.append((row["#"], "short", told))
            elif told:
                said.append((row["#"], "failed", operation.name))
            else:
                left.append(row)
        rows = left
    return [{name: value for name, value in row.items() if name != "#"} for row in rows], sorted(said)
