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
from loaders.transforms.stacking import as_tensor

_GEOMETRIC = (Resize, CenterCrop, RandomCrop, RandomResizedCrop)


def fuse(steps: list[Transform], spec: ColumnSpec, first_index: int) -> ImageProgram | None:
    """The program of a chain that can be fused, else None."""
    kinds = [type(step) for step in steps]  # exactly these: a subclass may compute something else
    decodes = 1 if kinds[:1] == [DecodeImage] else 0
    geometry = decodes
    while geometry < len(steps) and isinstance(steps[geometry], Geometric) and kinds[geometry] in _GEOMETRIC:
        geometry += 1
    tail = kinds[geometry:]
    if geometry == decodes or not all(kind in (RandomHorizontalFlip, ToFloat, Normalize) for kind in tail):
        return None
    last = steps[geometry - 1]
    assert isinstance(last, Geometric)
    channels = CHANNELS[steps[0].mode] if isinstance(steps[0], DecodeImage) else _channels(spec)
    if last.output() is None or channels is None:
        return None
    try:
        table = _table([step for step in steps[geometry:] if type(step) is not RandomHorizontalFlip], channels)
    except Exception:  # they do not fit together: step by step, the error names the sample
        return None
    return ImageProgram(steps, decodes, geometry, channels, table, first_index)


class ImageProgram:
    """See Program and the module. `steps[:decodes]` decode, `steps[decodes:geometry]` take parts and sizes."""

    threads = True

    def __init__(
        self,
        steps: list[Transform],
        decodes: int,
        geometry: int,
        channels: int,
        table: npt.NDArray[np.float32] | None,
        first_index: int,
    ) -> None:
        self.steps, self.channels, self.table = steps, channels, table
        self.fingerprint = described(steps)
        first = steps[0]
        self._decode = first if decodes and isinstance(first, DecodeImage) else None
        self._geometry = [
            (step, first_index + at)
            for at, step in enumerate(steps[decodes:geometry], decodes)
            if isinstance(step, Geometric)
        ]
        self._flips = [
            (step, first_index + at) for at, step in enumerate(steps) if isinstance(step, RandomHorizontalFlip)
        ]
        size = self._geometry[-1][0].output()
        assert size is not None
        self._size: Size = size

    def buffer(self, rows: int) -> Pixels:
        """Pixels, planar when floats are made of them."""
        height, width = self._size
        # numpy asks the system for large pages, torch does not: first touches cost half.
        shape = (self.channels, height, width) if self.table is not None else (height, width, self.channels)
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
        *before, (last, index) = self._geometry
        for step, at in before:
            part, size = planned or self._plan(step, at, image, i, keys)
            image, planned = resample.resize(part.of(image), size, step.antialias), None
        part, _ = planned or self._plan(last, index, image, i, keys)
        mirrored = sum(flip.flips(keys.rng(i, at)) for flip, at in self._flips) % 2 == 1
        if image.shape[2] != self.channels:
            raise SourceError(f"an image of {image.shape[2]} channels in a column of images of {self.channels}")
        if self.table is not None:
            resample.resize_into(out, part.of(image), last.antialias, mirrored)
        else:
            made = resample.resize(part.of(image), self._size, last.antialias)
            np.copyto(out, resample.mirror(made) if mirrored else made)

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

    def _plan(self, step: Geometric, at: int, image: Pixels, i: int, keys: SampleKeys) -> tuple[Part, Size]:
        return step.plan((image.shape[0], image.shape[1]), self._rng(step, at, i, keys))

    def _rng(self, step: Geometric, at: int, i: int, keys: SampleKeys) -> np.random.Generator | None:
        return None if step.deterministic else keys.rng(i, at)

    def batch(self, out: Any, keys: SampleKeys) -> Any:
        """See Program."""
        if self.table is None:
            return as_tensor(out)
        made = np.empty(out.shape, np.float32)
        resample.look_up(out, self.table, made)
        return as_tensor(made)


def _table(steps: list[Transform], channels: int) -> npt.NDArray[np.float32] | None:
    """What the steps make of each pixel of each channel, shape (channels, 256); None without steps."""
    if not steps:
        return None
    every: Any = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, axis=2)
    for step in steps:
        every = step(every)
    table: npt.NDArray[np.float32] = np.ascontiguousarray(every.reshape(channels, 256))
    return table


def _channels(spec: ColumnSpec) -> int | None:
    """Of a column of pixels; None when it is none."""
    if spec.dtype != np.uint8 or spec.shape is None or len(spec.shape) not in (2, 3):
        return None
    return 1 if len(spec.shape) == 2 else spec.shape[2]
