"""Columns of a dataset by name, as tasks ask for them."""

from __future__ import annotations

import difflib

import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput


def column_of(ds: Dataset, name: str, key: str) -> pa.Field:
    """The field of a column. Raises BadInput, naming the configuration's `key` and the nearest column, when there is none."""
    if name not in ds.schema.names:
        near = difflib.get_close_matches(name, ds.schema.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(ds.schema.names)}"
        raise BadInput(f"{ds.name} has no column {name!r}; {hint} (data.{key})")
    return ds.schema.field(name)
