"""Values of a batch's samples -> what stands in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from loaders.batched import RaggedError


def stacked(values: list[Any], column: str) -> Any:
    """Arrays and numbers as one array, torch's tensors as one tensor (dtypes as of torch's default_collate); the rest stays a list.

    Raises RaggedError, naming the column, when arrays differ in shape or dtype.
    """
    if not values:
        return values
    kind = type(values[0])
    if kind is np.ndarray and all(type(value) is np.ndarray for value in values):
        _require_alike(values, column)
        return np.stack(values) if values[0].dtype.kind in "biuf" else values
    if all(isinstance(value, (bool, int, float, np.number, np.bool_)) for value in values):
        return np.array(values)
    if kind.__module__.partition(".")[0] == "torch" and all(hasattr(value, "dtype") for value in values):
        import torch

        _require_alike(values, column)
        return torch.stack(values)
    return values


def _require_alike(values: list[Any], column: str) -> None:
    first = tuple(values[0].shape), values[0].dtype
    for at, value in enumerate(values):
        if (tuple(value.shape), value.dtype) != first:
            raise RaggedError(
                f"column {column!r} cannot be stacked: sample 0 of the batch has shape {first[0]} and dtype {first[1]}, "
                f"sample {at} {tuple(value.shape)} and {value.dtype}: end its chain with a transform that gives all one size, "
                "or give the column a collate (loaders.collate: pad, ragged, keep)",
                at,
            )
