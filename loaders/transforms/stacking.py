"""Values of a batch's samples -> what stands in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.source import BadInput


def stacked(values: list[Any], column: str) -> Any:
    """Arrays, tensors and numbers as one tensor (as torch's default_collate makes it); anything else stays a list.

    Raises BadInput, naming the column, when arrays differ in shape or dtype.
    """
    if not values:
        return values
    kind = type(values[0])
    if kind is np.ndarray and all(type(value) is np.ndarray for value in values):
        _require_alike(values, column)
        return as_tensor(np.stack(values)) if values[0].dtype.kind in "biuf" else values
    if all(isinstance(value, (bool, int, float, np.number, np.bool_)) for value in values):
        return as_tensor(np.array(values))
    if kind.__module__.partition(".")[0] == "torch" and all(hasattr(value, "dtype") for value in values):
        import torch

        _require_alike(values, column)
        return torch.stack(values)
    return values


def as_tensor(array: npt.NDArray[Any]) -> Any:
    """A tensor over the same memory; the array itself where torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return array
    return torch.from_numpy(array)


def _require_alike(values: list[Any], column: str) -> None:
    first = tuple(values[0].shape), values[0].dtype
    for at, value in enumerate(values):
        if (tuple(value.shape), value.dtype) != first:
            raise BadInput(
                f"column {column!r} cannot be stacked: sample 0 of the batch has shape {first[0]} and dtype {first[1]}, "
                f"sample {at} {tuple(value.shape)} and {value.dtype}: end its chain with a transform that gives all one size, "
                f"or give the column a collate"
            )
