"""One batch: the rows of every column, gathered. A batch owns its memory: nothing done to it reaches a later one.

Columns of the arena cost one gather each and no Python per sample. Cold columns come from the source: fixed
ones as tensors too, variable ones as loaders.batched says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from loaders.batched import column_batched
from loaders.order import Rows
from loaders.source import ColumnSource, Source
from loaders.stages import Batch, map_tree

# Up to this many bytes a column's gather stays in the calling thread. torch's `index_select` splits larger ones over its
# OpenMP threads; with other work on both cores, waking those took 7 ms for 128 rows of 784 bytes between steps of a small
# network, and a gather in one thread 0.1 ms.
ONE_THREAD_BYTES_MAX = 1 << 20

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def gatherer(source: Source) -> Callable[[Rows], Batch]:
    """A function from row numbers (int64 array) to {column: Tensor | list}, in the order of `source.columns`.

    The source must have been filled. The function is safe from any thread.
    """
    index_select, from_numpy = torch.index_select, torch.from_numpy
    if not isinstance(source, ColumnSource):
        return lambda rows: {
            name: column_batched(values, from_numpy, source.name, rows, name)
            for name, values in source.gather(rows).items()
        }
    columns = {name: _tensor_over(values) for name, values in source.arena.items()}
    # torch cannot select from these; the bytes of their signed counterparts are the same.
    unsigned = [(name, values.dtype) for name, values in columns.items() if values.dtype in _SIGNED]
    arena = [(name, values.view(_SIGNED.get(values.dtype, values.dtype))) for name, values in columns.items()]
    small = [(name, values.take) for name, values in source.arena.items()]
    # Rows up to which every column's gather is small.
    rows_small = ONE_THREAD_BYTES_MAX // max((max(spec.row_bytes, 1) for spec in source.hot), default=1)

    def gather_hot(rows: Rows) -> Batch:
        if len(rows) <= rows_small:
            return {name: from_numpy(take(rows, 0)) for name, take in small}
        chosen = from_numpy(rows)
        batch: Batch = {name: index_select(values, 0, chosen) for name, values in arena}
        for name, dtype in unsigned:
            batch[name] = batch[name].view(dtype)
        return batch

    def gather(rows: Rows) -> Batch:
        batch = gather_hot(rows)
        for name, values in source.read(rows).items():
            batch[name] = column_batched(values, from_numpy, source.name, rows, name)
        return {spec.name: batch[spec.name] for spec in source.columns}

    return gather if len(source.hot) < len(source.columns) else gather_hot


def _tensor_over(values: npt.NDArray[Any]) -> Tensor:
    """A tensor over the same memory. An arena of the hot cache is read-only, which torch warns of: nobody writes there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(values)


def pinned(batch: Any) -> Any:
    """The same batch with its tensors in page-locked memory: a tensor, or a dict, tuple or list of them, nested."""
    return map_tree(lambda leaf: leaf.pin_memory() if isinstance(leaf, Tensor) else leaf, batch)
