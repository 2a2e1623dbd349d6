"""What tensors a state has, and which parts of them a process holds. Plain values and JSON; no torch, no store.

    {"<path>": {"dtype": "float32", "shape": [...]}}        tensors, as the layout file of a checkpoint has them
    {"<path>": [dtype, shape, null | [[offsets, sizes], …]]} what one process holds (null: all of it), as ranks tell each other

Bounds are checked before anything is multiplied, whether it came from a store or from another rank.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from leptonstore.errors import BadInput, FormatDamaged
from trainers.checkpoint.cells import Box, Extents, whole

# Bytes of an element. Names are those of numpy and torch; what numpy lacks (bfloat16, float8) is moved as bits.
ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
}
FLOATS = frozenset(name for name in ITEM_BYTES if "float" in name)
BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
DIMENSIONS_MAX = 64  # torch's own limit
TENSOR_BYTES_MAX = 1 << 44  # 16 TiB: far above one tensor, far below where 64-bit arithmetic wraps
PATH_CHARS_MAX = 1_024
TENSORS_MAX = 1 << 20  # of a checkpoint; the layout has about 100 bytes for each


class Described(NamedTuple):
    """A tensor, as a whole."""

    dtype: str
    shape: Extents

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """For the layout file."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Held(NamedTuple):
    """What one process holds of a tensor: boxes that do not overlap; none of an empty shard."""

    tensor: Described
    boxes: tuple[Box, ...]


def parse_tensor(found: Any, what: str) -> Described:
    """The inverse of `Described.to_json`. Raises FormatDamaged, which calls it `what`."""
    if not isinstance(found, dict):
        raise FormatDamaged(f"the layout entry of {what} is damaged: {found!r:.200}")
    return parse_described(found.get("dtype"), found.get("shape"), what)


def parse_described(dtype: Any, shape: Any, what: str) -> Described:
    """Within bounds. Raises FormatDamaged."""
    if (
        not isinstance(dtype, str)
        or dtype not in ITEM_BYTES
        or not isinstance(shape, list)
        or len(shape) > DIMENSIONS_MAX
    ):
        raise FormatDamaged(f"the layout entry of {what} is damaged: {dtype!r:.40} {shape!r:.200}")
    size = ITEM_BYTES[dtype]
    for length in shape:
        if type(length) is not int or length < 0:
            raise FormatDamaged(f"the layout entry of {what} is damaged: shape {shape!r:.200}")
        size *= max(1, length)
        if size > TENSOR_BYTES_MAX:
            raise FormatDamaged(f"the layout entry of {what} claims over {TENSOR_BYTES_MAX} bytes")
    return Described(dtype, tuple(shape))


def parse_layout(found: Any, what: str) -> dict[str, Described]:
    """path -> tensor. Raises FormatDamaged."""
    if not isinstance(found, dict) or len(found) > TENSORS_MAX:
        raise FormatDamaged(f"the tensors of {what} are damaged: {found!r:.100}")
    for path in found:
        check_path(path)
    return {path: parse_tensor(entry, f"{path!r} of {what}") for path, entry in found.items()}


def check_path(path: str) -> None:
    """Raises BadInput for what cannot name a tensor."""
    if not 0 < len(path) <= PATH_CHARS_MAX or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise BadInput(f"{path!r:.200} cannot name a tensor: parts between slashes, none of them empty, '.' or '..'")


def held_to_json(held: dict[str, Held]) -> dict[str, Any]:
    """What this process tells the others."""
    return {
        path: [
            tensor.dtype,
            list(tensor.shape),
            None if boxes == (whole(tensor.shape),) else [list(box) for box in boxes],
        ]
        for path, (tensor, boxes) in held.items()
    }


def held_from_json(found: Any, what: str) -> dict[str, Held]:
    """What another process told. Raises FormatDamaged."""
    if not isinstance(found, dict):
        raise FormatDamaged(f"what {what} holds is damaged")
    return {path: _held(entry, f"{path!r} of {what}") for path, entry in found.items()}


def _held(entry: Any, what: str) -> Held:
    try:
        dtype, shape, boxes = entry
        tensor = parse_described(dtype, shape, what)
        if boxes is None:
            return Held(tensor, (whole(tensor.shape),))
        made = tuple(Box(tuple(map(int, offsets)), tuple(map(int, sizes))) for offsets, sizes in boxes)
    except (TypeError, ValueError):
        raise FormatDamaged(f"what {what} holds is damaged: {entry!r:.200}") from None
    for box in made:
        if len(box.offsets) != len(tensor.shape) or len(box.sizes) != len(tensor.shape):
            raise FormatDamaged(f"what {what} holds has another number of dimensions")
        for offset, size, length in zip(box.offsets, box.sizes, tensor.shape, strict=True):
            if offset < 0 or size < 0 or offset + size > length:
                raise FormatDamaged(f"what {what} holds lies outside of the tensor: {entry!r:.200}")
    return Held(tensor, made)
