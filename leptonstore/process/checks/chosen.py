"""Which columns a check looks at: those that were asked for, or those that fit; and what stands on which side of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.errors import SchemaError, listed
from leptonstore.format.page import is_variable
from leptonstore.process import columns
from leptonstore.process.checks.check import TAGS

CONTENT = ("image", "text", "tokens")  # semantic types of what models look at


def chosen_columns(
    check: str, schema: pa.Schema, wanted: Sequence[str], fits: Callable[[pa.Field], bool], what: str
) -> tuple[str, ...]:
    """`wanted`, or without any all columns that fit. what: "numbers", for errors. Raises SchemaError, naming check, column and fix."""
    found = [field.name for field in schema if field.name != TAGS and fits(field)]
    if not wanted:
        if not found:
            raise SchemaError(
                f"{check} looks at {what} and no column has any; name the columns in `columns`, or leave it out"
            )
        return tuple(found)
    for name in wanted:
        if not fits(columns.field_of(check, schema, name)):
            raise SchemaError(
                f"{check} looks at {what}; column {name!r} is {schema.field(name).type}; these fit: {listed(found, 'none')}"
            )
    return tuple(dict.fromkeys(wanted))


def content_columns(check: str, schema: pa.Schema, wanted: Sequence[str]) -> tuple[str, ...]:
    """What makes two rows the same sample: `wanted`, or without any all images, texts and tokens.

    Two rows of a table of numbers may well be equal. Raises SchemaError.
    """
    if wanted:
        return chosen_columns(check, schema, wanted, lambda _: True, "anything")
    return chosen_columns(check, schema, (), lambda field: semantic_of(field) in CONTENT, "images, texts or tokens")


def is_measured(field: pa.Field) -> bool:
    """Whether a column has numbers that were measured or counted: no classes, no truth values."""
    return columns.is_number(field.type) and not pa.types.is_boolean(field.type) and class_names(field) is None


def class_column(check: str, schema: pa.Schema, wanted: str = "") -> str:
    """The column of classes: `wanted`, or the first class label. Raises SchemaError."""
    labels = columns.label_columns(schema)
    if not wanted:
        if not labels:
            raise SchemaError(
                f"{check} needs a column of class labels and there is none; `lepton column cast` makes one"
            )
        return next(iter(labels))
    field = columns.field_of(check, schema, wanted)
    if not (pa.types.is_integer(field.type) or is_text(field.type)):
        raise SchemaError(f"{check}: column {wanted!r} is {field.type}; classes are class labels, integers or strings")
    return wanted


def is_text(data_type: pa.DataType) -> bool:
    """Whether values are strings."""
    return is_variable(data_type) and not columns.is_binary(data_type)


def split_column(check: str, schema: pa.Schema, wanted: str) -> str | None:
    """The column that says to which side of a split a row belongs; None where there is none. Raises SchemaError."""
    if wanted not in schema.names:
        return None
    return class_column(check, schema, wanted)


def named_classes(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Classes by their names, as strings: of class labels the names (a number without one stays a number), of anything else the value."""
    column, names = batch.column(name), class_names(batch.schema.field(name))
    if names is None:
        return column.cast(pa.string())
    codes, missing = columns.indices(column), columns.null_mask(column)
    strange = np.flatnonzero(((codes < 0) | (codes >= len(names))) & ~missing)
    extra, which = np.unique(codes[strange], return_inverse=True)
    codes[strange] = len(names) + which
    known = pa.array([*names, *map(str, extra.tolist())], pa.string())
    return known.take(pa.array(codes, mask=missing))


def exposure(split: str) -> int:
    """How freely training looks at a side of a split: 0 test, 1 any other that is held out (or no side at all), 2 train."""
    return {"test": 0, "train": 2, "training": 2}.get(split.lower(), 1)
