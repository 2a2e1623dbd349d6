"""What a model takes and gives: name, dtype, shape of one row, and range of values of a tensor with any number of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leptonstore.errors import FormatDamaged

# Those that JSON, numpy and safetensors all have.
DTYPES = {
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
}
DIMENSIONS_MAX = 8
ROW_ELEMENTS_MAX = 1 << 28  # 1 GiB of float32: no single row is larger


@dataclass(frozen=True)
class TensorSpec:
    """[rows, *shape] of `dtype` (a key of DTYPES); every value lies in low..high when these are given. Immutable."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the tensor."""
        return DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        """Of one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Of one row, as raw numbers."""
        return self.elements * self.torch_dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(['rows', *map(str, self.shape)])}]"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        told: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": ["batch", *self.shape]}
        if self.low is not None and self.high is not None:
            told["range"] = [self.low, self.high]
        return told

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_dict`. Raises FormatDamaged."""
        try:
            batch, *shape = tree["shape"]
            low, high = tree.get("range", (None, None))
            spec = cls(str(tree["name"]), str(tree["dtype"]), tuple(shape), low, high)
            if batch != "batch" or spec.dtype not in DTYPES or len(shape) > DIMENSIONS_MAX:
                raise ValueError(f"{tree!r:.200}")
            if not all(type(size) is int and size >= 1 for size in shape) or spec.elements > ROW_ELEMENTS_MAX:
                raise ValueError(f"shape {shape!r:.200}")
            if low is not None and not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"range {low!r} to {high!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatDamaged(f"the schema of this model is damaged: {error}") from None
        return spec


def probe_rows(spec: TensorSpec, count: int) -> Tensor:
    """Made-up rows that the model takes: uniform over the range of its values, always the same."""
    source = torch.Generator().manual_seed(0)
    shape = (count, *spec.shape)
    if spec.torch_dtype.is_floating_point:
        low, high = (spec.low, spec.high) if spec.low is not None and spec.high is not None else (-1.0, 1.0)
        return torch.rand(shape, generator=source) * (high - low) + low
    low, high = int(spec.low or 0), int(spec.high or 0)
    return torch.randint(low, high + 1, shape, generator=source).to(spec.torch_dtype)
