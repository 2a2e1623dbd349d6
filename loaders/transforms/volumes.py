"""Transforms of volumes: arrays of any shape that belong together, as the voxels of a CT scan and the organ that each is of.

    scans = Bundle(ds, scan=("voxels", "organ", "shape"))
    chain = [DecodeArrays({"voxels": "int16", "organ": "uint8"}), RandomPatch((8, 32, 32)), Window(40, 400, of="voxels")]
    DataLoader(scans, 16, transforms={"scan": chain}, collate={"scan": struct(voxels=stack(), organ=stack())})

A value is a dict of arrays of one shape, so that what is cut out of one is cut out of all at the same place. Fields that a transform is
not told of stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from loaders.source import BadInput, SourceError
from loaders.transforms.base import Transform

Array = npt.NDArray[Any]
DIMENSIONS_MAX = 8  # of an array; numpy's own bound is 64, and nobody trains on that


class DecodeArrays(Transform):
    """Bytes of numbers (little-endian, C order: columns of `array_field`) -> read-only arrays over the same memory.

    types  name of a field -> what its numbers are ("int16", "uint8", "float32").
    shape  name of the field that has the shape, a list of integers; it is left out of the result.

    Raises SourceError for bytes that are not as many as shape and type say.
    """

    def __init__(self, types: Mapping[str, str], shape: str = "shape") -> None:
        if not types or shape in types:
            raise BadInput(f"DecodeArrays takes fields and their numbers, and another field {shape!r} for the shape")
        self.types, self.shape = dict(types), shape
        self._types = {name: _number(name, text) for name, text in self.types.items()}

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"types": self.types, "shape": self.shape}

    def __call__(self, value: Mapping[str, Any], rng: Any = None) -> dict[str, Any]:
        shape = _shape(value[self.shape])
        decoded = {name: _array(value[name], dtype, shape, name) for name, dtype in self._types.items()}
        return {name: one for name, one in value.items() if name != self.shape} | decoded


class RandomPatch(Transform):
    """A part of `size` at a random place, the same in all arrays; all places are equally likely.

    fill  name of an array -> what stands around it where it is smaller than `size` (it comes into the middle); else 0.

    Draws one uniform number for each dimension. The results are arrays of their own.
    """

    deterministic = False
    cacheable = False

    def __init__(self, size: Sequence[int], fill: Mapping[str, float] | None = None) -> None:
        self.size = _size(size)
        self.fill = dict(fill or {})

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"size": self.size, "fill": self.fill}

    def __call__(self, value: Mapping[str, Any], rng: Generator | None = None) -> dict[str, Any]:
        assert rng is not None
        arrays = {name: one for name, one in value.items() if isinstance(one, np.ndarray)}
        shapes = {one.shape for one in arrays.values()}
        if len(shapes) != 1 or len(shape := shapes.pop()) != len(self.size):
            told = ", ".join(f"{name} {one.shape}" for name, one in arrays.items()) or "none"
            raise BadInput(
                f"a patch of {self.size} is cut out of arrays of one shape and as many dimensions, not: {told}"
            )
        free = [full - size for full, size in zip(shape, self.size, strict=True)]
        starts = [
            int(drawn * (room + 1)) if room > 0 else -room // 2
            for drawn, room in zip(rng.random(len(free)).tolist(), free, strict=True)
        ]
        return dict(value) | {name: self._cut(name, one, starts) for name, one in arrays.items()}

    def _cut(self, name: str, array: Array, starts: list[int]) -> Array:
        inside, places = [], []
        for start, full, size in zip(starts, array.shape, self.size, strict=True):
            room = full >= size
            inside.append(slice(start, start + size) if room else slice(0, full))
            places.append(slice(0, size) if room else slice(start, start + full))
        out = np.full(self.size, self.fill.get(name, 0), array.dtype)
        out[tuple(places)] = array[tuple(inside)]
        return out


class Window(Transform):
    """Window and level, as radiologists look at CT: float32, 0 at and below level - width / 2, 1 at and above level + width / 2.

    of  name of the array, where values are dicts.
    """

    def __init__(self, level: float, width: float, of: str = "") -> None:
        if not (math.isfinite(level) and 0 < width < math.inf):
            raise BadInput(f"a window has a level and a width above 0, not {level} and {width}")
        self.level, self.width, self.of = float(level), float(width), of

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"level": self.level, "width": self.width, "of": self.of}

    def __call__(self, value: Any, rng: Any = None) -> Any:
        if self.of:
            return dict(value) | {self.of: self._windowed(value[self.of])}
        return self._windowed(value)

    def _windowed(self, array: Any) -> npt.NDArray[np.float32]:
        shades = np.asarray(array).astype(np.float32)
        shades -= np.float32(self.level - self.width / 2)
        shades /= np.float32(self.width)
        return shades.clip(0, 1, out=shades)


def _number(name: str, text: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(text)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iufb":
        raise BadInput(f"field {name!r} has numbers of type {text!r}: say int16, uint8, float32, …")
    return dtype.newbyteorder("<")


def _size(size: Sequence[int]) -> tuple[int, ...]:
    edges = tuple(int(edge) for edge in size)
    if not 1 <= len(edges) <= DIMENSIONS_MAX or min(edges) < 1:
        raise BadInput(f"the size of a patch is 1 to {DIMENSIONS_MAX} edges of at least 1, not {size!r}")
    return edges


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(int(edge) for edge in value)
    if not 1 <= len(shape) <= DIMENSIONS_MAX or min(shape) < 0:
        raise SourceError(f"shape {shape} is none of an array")
    return shape


def _array(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    size, wanted = memoryview(data).nbytes, math.prod(shape) * dtype.itemsize
    if size != wanted:
        edges = " x ".join(map(str, shape))
        raise SourceError(f"{name!r} has {size} bytes where {edges} of {dtype.name} take {wanted}")
    array = np.frombuffer(data, dtype).reshape(shape)
    array.flags.writeable = False
    return array
