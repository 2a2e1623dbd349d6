"""Rows as dicts, made into the batch that the fast path makes of the same rows.

Frameworks (Lightning, Accelerate, the Trainer of transformers) rebuild a loader around samplers of their own, from its
attributes: torch then fetches lists of row dicts (`Dataset.__getitems__`) and calls `loader.collate_fn`, which is a
`RowCollate`. So columns, dtypes, nulls, the tuple and the transform are those of the loader that was rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from loaders.batched import batched
from loaders.pipeline import Collate
from loaders.source import ColumnSpec, null_error
from loaders.stages import Transform
from loaders.transforms.keys import SampleKeys
from loaders.transforms.program import Program


class RowCollate:
    """Called with the row dicts of a batch. Pickles when its stages do; worker processes may call it.

    columns:  what stands in the batch, in this order.
    programs: of the columns that have a chain of transforms. Positions are the framework's secret, so a random transform is keyed
              by torch's generator, as torch's own are: seeded alike, a run repeats, at the same number of workers.
    collate:  of the columns that have one.
    stages:   what is done with the dict of columns, one after the other.

    Raises SchemaError for a null where a tensor has no value for it, as the fast path does.
    """

    def __init__(
        self,
        columns: Sequence[ColumnSpec],
        programs: Mapping[str, Program],
        collate: Mapping[str, Collate],
        stages: Sequence[Transform],
    ) -> None:
        self._columns, self._stages = tuple(columns), tuple(stages)
        self._programs, self._collate = dict(programs), dict(collate)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        keys = None
        if self._programs:
            seed = int(torch.randint(1 << 62, ()).item())
            keys = SampleKeys(seed, 0, np.arange(len(rows), dtype=np.int64))
        batch: Any = {}
        for spec in self._columns:
            values = [row[spec.name] for row in rows]
            program, collate = self._programs.get(spec.name), self._collate.get(spec.name)
            if program is not None and keys is not None:
                out = program.buffer(len(values))
                program.sample(values, keys, out, 0)
                made = program.batch(out, keys)
                batch[spec.name] = torch.from_numpy(made) if isinstance(made, np.ndarray) else made
            else:
                batch[spec.name] = _column(spec, values) if collate is None else collate(values)
        for stage in self._stages:
            batch = stage(batch)
        return batch


def _column(spec: ColumnSpec, values: list[Any]) -> Any:
    if not spec.fixed:
        return batched(values, torch.from_numpy)
    assert spec.dtype is not None
    if any(value is None for value in values):
        if spec.shape or not np.issubdtype(spec.dtype, np.floating):
            raise null_error(spec)
        values = [np.nan if value is None else value for value in values]
    column = spec.empty(len(values))
    for at, value in enumerate(values):
        column[at] = value
    return torch.from_numpy(column)
