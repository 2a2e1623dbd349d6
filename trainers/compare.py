"""Two checkpoints compared: configuration, metrics, and each tensor. Tensors with equal bytes are found without being read twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leptonstore.store import Store
from leptonstore.store.usage import placed_once
from trainers.checkpoint import Checkpoint

# What of a manifest is told by a line of its own, or by nothing: it is as long as a checkpoint has tensors or the run has steps.
_APART = ("tensors", "scalars", "optimizer_scalars", "history", "receipt", "loader", "progress")


@dataclass(frozen=True)
class TensorDiff:
    """A path in both or one of two checkpoints. kind: "changed", "added", "removed", "reshaped".

    max_difference, mean_difference: of the values as float64, NaN where they cannot be compared; elements: how many differ.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    elements: int = 0
    max_difference: float = math.nan
    mean_difference: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        body = {**vars(self), "shape": list(self.shape)}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in body.items()
        }


@dataclass(frozen=True)
class CheckpointDiff:
    """What differs from `left` to `right`. keys: dotted keys of config and manifest -> (left, right). Bytes are stored ones."""

    left: str
    right: str
    keys: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[Any, Any]]
    tensors: list[TensorDiff]
    unchanged: int
    shared_bytes: int
    left_bytes: int
    right_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        body = dict(vars(self))
        for name in ("keys", "metrics"):
            body[name] = {key: list(pair) for key, pair in body[name].items()}
        return {**body, "tensors": [tensor.to_dict() for tensor in self.tensors]}


def compare(store: Store, left: Checkpoint, right: Checkpoint, values: bool = True) -> CheckpointDiff:
    """Compare two checkpoints, of one run or of two. values: read the tensors that differ, to say by how much.

    Memory: two tensors at a time. Raises FormatDamaged, ChunkMissing or ChunkCorrupt.
    """
    one, other = left.manifest["tensors"], right.manifest["tensors"]
    tensors = [diff for path in sorted({*one, *other}) if (diff := _tensor(left, right, path, values)) is not None]
    sizes = [
        {found.reached.digest: found.stored for found in placed_once(store, [side.commit])} for side in (left, right)
    ]
    return CheckpointDiff(
        left=f"{left.run}@{left.branch}",
        right=f"{right.run}@{right.branch}",
        keys=_pairs(_told(left.manifest), _told(right.manifest)),
        metrics=_pairs(_metrics(left), _metrics(right)),
        tensors=tensors,
        unchanged=len({*one, *other}) - len(tensors),
        shared_bytes=sum(size for digest, size in sizes[0].items() if digest in sizes[1]),
        left_bytes=sum(sizes[0].values()),
        right_bytes=sum(sizes[1].values()),
    )


def _tensor(left: Checkpoint, right: Checkpoint, path: str, values: bool) -> TensorDiff | None:
    one, other = left.manifest["tensors"].get(path), right.manifest["tensors"].get(path)
    told = other or one
    shape, dtype = tuple(told["shape"]), str(told["dtype"])
    if one is None or other is None:
        return TensorDiff(path, "added" if one is None else "removed", shape, dtype)
    if one != other:
        return TensorDiff(path, "reshaped", shape, dtype)
    if left.cells(path) == right.cells(path):
        return None
    if not values:
        return TensorDiff(path, "changed", shape, dtype)
    a, b = left.tensor(path), right.tensor(path)
    differ = bits_differ(a, b)
    apart = (_wide(a) - _wide(b)).abs() if a.numel() else torch.zeros(1)
    apart = torch.where(torch.isnan(apart) & ~differ.reshape(apart.shape), torch.zeros_like(apart), apart)
    return TensorDiff(path, "changed", shape, dtype, int(differ.sum()), float(apart.max()), float(apart.mean()))


def bits_differ(left: Tensor, right: Tensor) -> Tensor:
    """bool, in the shape of both (equal dtypes and shapes): which elements differ in any bit. NaN equals itself, zero is not minus zero."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return left.contiguous().view(width) != right.contiguous().view(width)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    history = checkpoint.manifest.get("history")
    return dict(history[-1]) if isinstance(history, list) and history and isinstance(history[-1], Mapping) else {}


def _told(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_flat({key: value for key, value in manifest.items() if key not in _APART}, ""))


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def _pairs(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)}
