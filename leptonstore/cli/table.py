"""Rows as an aligned table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_names
from leptonstore.dataset.shown import one_line, shown


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines: names, a rule, rows. right: of each column, whether it is aligned to the right (numbers)."""
    heads = [one_line(name) for name in names]
    widths = [max(len(head), *(len(row[at]) for row in rows), 0) for at, head in enumerate(heads)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(heads), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def table_lines(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Rows (values in the order of the schema) under the names of their columns."""
    numbers = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in schema]
    cells = [[shown(value, field) for value, field in zip(row, schema, strict=True)] for row in rows]
    right = [number and class_names(field) is None for number, field in zip(numbers, schema, strict=True)]
    return aligned(schema.names, cells, right)


def json_value(value: Any) -> Any:
    """A value as JSON can have it: bytes in hexadecimal digits, arrays as lists, "nan", "inf" and "-inf" for numbers that JSON lacks.

    What every command prints with --json goes through this (runtime.emit); times and decimals become text there.
    """
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        # Whole numbers, of which images have millions, need no second look.
        return value.tolist() if value.dtype.kind in "biu" else json_value(value.tolist())
    if isinstance(value, np.floating):
        value = float(value)
    if isinstance(value, dict):
        return {key: json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
