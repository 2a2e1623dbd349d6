"""A chain of image transforms as one program: decode, crop and resize straight into the batch; flip on the way; floats once for the batch.

    value -> [decode] -> parts and sizes ... -> the last of them, mirrored or not, into its place   (bytes, by sample, without the GIL)
    batch -> a table of 256 floats for each channel, looked up                                      (ToFloat, Normalize: once)

What is fused gives the values that the steps give one after another: the table is what the steps make of every possible pixel. The one
exception is DecodeImage(scaled=True), which acts only here, where it is known what will be kept of an image.

A chain is fused when it is an optional DecodeImage, then transforms of parts and sizes of which the last has one size, then flips,
ToFloat and Normalize in any order. The output is float32 (rows, channels, height, width); without ToFloat and Normalize it is uint8
(rows, height, width, channels).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.source import ColumnSpec, SourceError
from loaders.transforms import decode, resample
from loaders.transforms.base import SampleFailed, Transform, Values, described
from loaders.transforms.decode import CHANNELS, SCALES, Pixels
from loaders.transforms.images import (
    CenterCrop,
    DecodeImage,
    Geometric,
    Normalize,
    Part,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    Size,
    ToFloat,
    as_image,
)
from loaders.transforms.keys import SampleKeys

_GEOMETRIC = (Resize, CenterCrop, RandomCrop, RandomResizedCrop)


def fuse(steps: list[Transform], spec: ColumnSpec, first_index: int) -> ImageProgram | None:
    """The program of a chain that can be fused, else None."""
    kinds = [type(step) for step in steps]  # exactly these: a subclass may compute something else
    decodes = 1 if kinds[:1] == [DecodeImage] else 0
    geometry = decodes
    while geometry < len(steps) and isinstance(steps[geometry], Geometric) and kinds[geometry] in _GEOMETRIC:
        geometry += 1
    tail = kinds[geometry:]
    if not steps or not all(kind in (RandomHorizontalFlip, ToFloat, Normalize) for kind in tail):
        return None
    shape = _shape(steps[:geometry], spec)
    if shape is None or 0 in shape:
        return None
    channels = shape[2]
    try:
        table = _table([step for step in steps[geometry:] if type(step) is not RandomHorizontalFlip], channels)
    except Exception:  # they do not fit together: step by step, the error names the sample
        return None
    return ImageProgram(steps, geometry, shape, table, first_index)


def output_spec(steps: list[Transform], spec: ColumnSpec) -> ColumnSpec:
    """What a column is after some steps, as far as `fuse` wants to know it: images of a size that is not known have height and width 0."""
    shape = _shape(steps, spec)
    return ColumnSpec(spec.name, spec.semantic, None if shape is None else np.dtype(np.uint8), shape)


class ImageProgram:
    """See Program and the module."""

    threads = True

    def __init__(
        self,
        steps: list[Transform],
        geometry: int,
        shape: tuple[int, int, int],
        table: npt.NDArray[np.float32] | None,
        first_index: int,
    ) -> None:
        """geometry: how many steps decode, or take parts and sizes. shape: of each image then."""
        self.steps, self.table = steps, table
        self.fingerprint = described(steps)
        self._decode = steps[0] if isinstance(steps[0], DecodeImage) else None
        numbered = list(enumerate(steps, first_index))
        self._geometry = [(step, at) for at, step in numbered[:geometry] if isinstance(step, Geometric)]
        self._flips = [(step, at) for at, step in numbered if isinstance(step, RandomHorizontalFlip)]
        self._size, self._channels = (shape[0], shape[1]), shape[2]

    def buffer(self, rows: int) -> Pixels:
        """Pixels, planar when floats are made of them."""
        height, width = self._size
        # numpy asks the system for large pages, torch does not: first touches cost half.
        shape = (self._channels, height, width) if self.table is not None else (height, width, self._channels)
        return np.empty((rows, *shape), np.uint8)

    def sample(self, values: Values, keys: SampleKeys, out: Any, first: int) -> None:
        """See Program."""
        for i, value in enumerate(values):
            try:
                self._one(value, i, keys, out[first + i])
            except Exception as error:
                raise SampleFailed(i, self.steps[0].name) from error

    def _one(self, value: Any, i: int, keys: SampleKeys, out: Pixels) -> None:
        image, planned = self._opened(value, i, keys)
        antialias = True
        for number, (step, at) in enumerate(self._geometry, 1):
            part, size = planned or step.plan((image.shape[0], image.shape[1]), self._rng(step, at, i, keys))
            image, planned, antialias = part.of(image), None, step.antialias
            if number < len(self._geometry):
                image = resample.resize(image, size, antialias)
        if image.shape[2] != self._channels or not (self._geometry or image.shape[:2] == self._size):
            raise SourceError(f"an image of shape {image.shape} in a column of {(*self._size, self._channels)}")
        mirrored = sum(flip.flips(keys.rng(i, at)) for flip, at in self._flips) % 2 == 1
        place = resample.resize_into if self.table is None else resample.resize_into_planes
        place(out, image, antialias, mirrored)

    def _opened(self, value: Any, i: int, keys: SampleKeys) -> tuple[Pixels, tuple[Part, Size] | None]:
        """The image, and the first step's plan where it had to be made before decoding."""
        how = self._decode
        if how is None:
            return as_image(value), None
        step, at = self._geometry[0]
        full = decode.plain_size(value, how.upright) if how.scaled else None
        if full is None:
            return decode.decode(value, how.mode, how.upright), None
        part, size = step.plan(full, self._rng(step, at, i, keys))
        # Only a part that lies in the image and is shrunk: what crops alone keep is not to be shrunk.
        scale = next((scale for scale in SCALES if part.height >= scale * size[0] and part.width >= scale * size[1]), 1)
        small = decode.decode_smaller(value, scale, how.mode) if scale > 1 else None
        if small is None:
            return decode.decode(value, how.mode, how.upright), (part, size)
        return small, (part.shrunk(full, (small.shape[0], small.shape[1])), size)

    def _rng(self, step: Geometric, at: int, i: int, keys: SampleKeys) -> np.random.Generator | None:
        return None if step.deterministic else keys.rng(i, at)

    def batch(self, out: Any, keys: SampleKeys) -> npt.NDArray[Any]:
        """See Program."""
        pixels: Pixels = out
        if self.table is None:
            return pixels
        made = np.empty(pixels.shape, np.float32)
        resample.look_up(pixels, self.table, made)
        return made


def _table(steps: list[Transform], channels: int) -> npt.NDArray[np.float32] | None:
    """What the steps make of each pixel of each channel, shape (channels, 256); None without steps."""
    if not steps:
        return None
    every: Any = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, axis=2)
    for step in steps:
        every = step(every)
    table: npt.NDArray[np.float32] = np.ascontiguousarray(every.reshape(channels, 256))
    return table


def _shape(steps: list[Transform], spec: ColumnSpec) -> tuple[int, int, int] | None:
    """(height, width, channels) after an optional DecodeImage and geometric steps; 0 for what is not known. None: no image is."""
    kinds = [type(step) for step in steps]
    shape: tuple[int, int, int]
    if steps and isinstance(steps[0], DecodeImage):
        shape, kinds = (0, 0, CHANNELS[steps[0].mode]), kinds[1:]
    elif spec.dtype == np.uint8 and spec.shape is not None and len(spec.shape) in (2, 3):
        shape = (spec.shape[0], spec.shape[1], spec.shape[2] if len(spec.shape) == 3 else 1)
    else:
        return None
    if not all(kind in _GEOMETRIC for kind in kinds):
        return None
    last = steps[-1] if steps else None
    return (*(last.output() or (0, 0)), shape[2]) if isinstance(last, Geometric) else shape
