"""Rows as dicts, made into the batch that the fast path makes of the same rows.

Frameworks (Lightning, Accelerate, the Trainer of transformers) rebuild a loader around samplers of their own, from its
attributes: torch then fetches lists of row dicts (`Dataset.__getitems__`) and calls `loader.collate_fn`, which is a
`RowCollate`. So columns, dtypes, nulls, the tuple and the transform are those of the loader that was rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loaders.source import ColumnSpec, SchemaError
from loaders.stages import Transform


class RowCollate:
    """Called with the row dicts of a batch. Pickles when its stages do; worker processes may call it.

    columns: what stands in the batch, in this order.
    stages:  what is done with the dict of columns, one after the other.

    Raises SchemaError for a null where a tensor has no value for it, as the fast path does.
    """

    def __init__(self, columns: Sequence[ColumnSpec], stages: Sequence[Transform]) -> None:
        self._columns, self._stages = tuple(columns), tuple(stages)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        batch: Any = {spec.name: _column(spec, [row[spec.name] for row in rows]) for spec in self._columns}
        for stage in self._stages:
            batch = stage(batch)
        return batch


def _column(spec: ColumnSpec, values: list[Any]) -> torch.Tensor | list[Any]:
    if not spec.fixed:
        return values
    assert spec.dtype is not None
    if any(value is None for value in values):
        if spec.shape or not np.issubdtype(spec.dtype, np.floating):
            raise SchemaError(
                f"column {spec.name!r} has nulls, for which a tensor of {spec.dtype} has no value: "
                "fill them in a new version, or leave the column out with columns=[…]"
            )
        values = [np.nan if value is None else value for value in values]
    column = spec.empty(len(values))
    for at, value in enumerate(values):
        column[at] = value
    return torch.from_numpy(column)
