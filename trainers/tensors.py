"""Tensors as raw bytes: little-endian, C order, nothing else in the file. Dtype and shape stand in a JSON manifest.

Reading trusts nothing: dtype by a closed table, sizes bounded before they are multiplied, the product held to the bytes
that are there, and only then a tensor over a copy of them. Nothing is unpickled.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged

DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DIMENSIONS_MAX = 64  # torch's own limit
TENSOR_BYTES_MAX = 1 << 40  # 1 TiB: far above one tensor, far below where 64-bit arithmetic wraps

if sys.byteorder != "little":  # the format is little-endian, and nothing here would swap
    raise ImportError("leptonstore trainers need a little-endian machine")


def describe(tensor: Tensor) -> dict[str, Any]:
    """{"dtype": …, "shape": […]} for the manifest. Raises BadInput for a dtype that has no raw form here."""
    name = DTYPE_NAMES.get(tensor.dtype)
    if name is None or tensor.layout is not torch.strided:
        raise BadInput(f"a tensor of {tensor.dtype}, {tensor.layout} cannot be stored; known are {', '.join(DTYPES)}")
    return {"dtype": name, "shape": list(tensor.shape)}


def to_buffer(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order; zero-copy for a contiguous one on the CPU (do not change it while in use)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def from_buffer(data: Buffer, described: Any, name: str) -> Tensor:
    """A tensor that owns its memory. `name` is how errors call it. Raises FormatDamaged when anything does not fit."""
    dtype, shape = parse_description(described, name)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise FormatDamaged(f"{name} has {len(data)} bytes where its manifest says {expected}")
    if expected == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool and any(byte > 1 for byte in bytes(data)):
        raise FormatDamaged(f"{name} holds bytes that are no booleans")
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def parse_description(described: Any, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """The inverse of `describe`, within bounds. Raises FormatDamaged."""
    dtype = DTYPES.get(str(described.get("dtype"))) if isinstance(described, dict) else None
    shape = described.get("shape") if isinstance(described, dict) else None
    if dtype is None or not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise FormatDamaged(f"the manifest entry of {name} is damaged: {described!r:.200}")
    size = dtype.itemsize
    for length in shape:
        if type(length) is not int or length < 0:
            raise FormatDamaged(f"the manifest entry of {name} is damaged: shape {shape!r:.200}")
        size *= max(1, length)
        if size > TENSOR_BYTES_MAX:
            raise FormatDamaged(f"the manifest entry of {name} claims over {TENSOR_BYTES_MAX} bytes")
    return dtype, tuple(shape)
