"""Transforms of images. Their parameters, defaults and distributions are those of torchvision, where it has them.

Between transforms an image is a uint8 array of shape (height, width, channels); a (height, width) one is taken as having one channel.
`ToFloat` and `Normalize` make it float32 of shape (channels, height, width), as torch's layers want it. A chain whose images come out in
one size, e.g. [DecodeImage(), RandomResizedCrop(224), RandomHorizontalFlip(), Normalize(mean, std)], becomes one fused program with the
same results (image_program.py).

Random ones draw, in this order, from the generator that they are given: RandomResizedCrop four uniform numbers for each try (area,
aspect, top, left), RandomCrop two (top, left), RandomHorizontalFlip one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from loaders.source import BadInput
from loaders.transforms import decode, resample
from loaders.transforms.base import Transform
from loaders.transforms.decode import CHANNELS, Mode, Pixels

Size = tuple[int, int]  # height, width
CROP_TRIES = 10  # of RandomResizedCrop, before it takes the middle; as torchvision
IMAGE_EDGE_MAX = 1 << 15  # of a size that is asked for; a larger one is a mistake


class Part(NamedTuple):
    """A rectangle of an image."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Pixels) -> Pixels:
        """A view; what lies outside the image is black, in a copy."""
        full = image.shape[:2]
        if self.top >= 0 and self.left >= 0 and self.top + self.height <= full[0] and self.left + self.width <= full[1]:
            return image[self.top : self.top + self.height, self.left : self.left + self.width]
        out = np.zeros((self.height, self.width, image.shape[2]), np.uint8)
        top, left = max(self.top, 0), max(self.left, 0)
        inside = image[top : max(self.top + self.height, 0), left : max(self.left + self.width, 0)]
        at = top - self.top, left - self.left
        out[at[0] : at[0] + inside.shape[0], at[1] : at[1] + inside.shape[1]] = inside
        return out

    def shrunk(self, full: Size, small: Size) -> Part:
        """The same rectangle of an image that was `full` and is `small` now; at least one pixel."""
        rows, columns = small[0] / full[0], small[1] / full[1]
        top, left = min(round(self.top * rows), small[0] - 1), min(round(self.left * columns), small[1] - 1)
        height, width = max(round(self.height * rows), 1), max(round(self.width * columns), 1)
        return Part(top, left, min(height, small[0] - top), min(width, small[1] - left))


def as_image(value: Any) -> Pixels:
    """A value as (height, width, channels). Raises BadInput for what is no image of 8 bits."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise BadInput("the value is bytes and no image yet: begin the chain with DecodeImage()")
    image = np.asarray(value)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise BadInput(
            f"an image is a uint8 array of shape (height, width, channels), not {image.dtype} of shape {image.shape}"
        )
    image = image if image.ndim == 3 else image[..., None]
    # torch and OpenCV take views, but none whose memory runs backwards.
    return image if min(image.strides) > 0 else np.ascontiguousarray(image)


class DecodeImage(Transform):
    """Encoded bytes -> an image (loaders/transforms/decode.py says what is decoded how).

    mode     "RGB": three channels; "L": one, the luma.
    upright  apply EXIF orientation, as viewers do (torchvision's ImageFolder does not).
    scaled   let the decoder shrink a JPEG by 2, 4 or 8 where the resize that follows at once leaves at least that: faster for
             large images, whose pixels then differ a little. Without effect unless a resize or a random-resized-crop follows.
    """

    threads = True

    def __init__(self, mode: Mode = "RGB", upright: bool = True, scaled: bool = False) -> None:
        if mode not in CHANNELS:
            raise BadInput(f"images are decoded to RGB or L, not to {mode!r}")
        self.mode, self.upright, self.scaled = mode, upright, scaled

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"mode": self.mode, "upright": self.upright, "scaled": self.scaled}

    def libraries(self) -> dict[str, str]:
        """See Transform."""
        return decode.decoders()

    def __call__(self, value: Any, rng: Any = None) -> Pixels:
        return decode.decode(value, self.mode, self.upright)


class Geometric(Transform):
    """Takes a part of an image and, where `size` says so, brings it to a size."""

    threads = True
    antialias: bool = True

    def output(self) -> Size | None:
        """(height, width) of every result, when it does not depend on the image."""
        raise NotImplementedError

    def plan(self, full: Size, rng: Generator | None) -> tuple[Part, Size]:
        """Which part of an image of that size, and the size to bring it to."""
        raise NotImplementedError

    def libraries(self) -> dict[str, str]:
        """See Transform."""
        return resample.libraries(self.antialias)

    def __call__(self, value: Any, rng: Any = None) -> Pixels:
        image = as_image(value)
        part, size = self.plan((image.shape[0], image.shape[1]), rng)
        return resample.resize(part.of(image), size, self.antialias)


class Resize(Geometric):
    """Bilinear. size: (height, width), or the length of the shorter edge, as torchvision counts the other one."""

    def __init__(self, size: int | Sequence[int], antialias: bool = True) -> None:
        self.size = _edge(size) if isinstance(size, int) else _size(size)
        self.antialias = antialias

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"size": self.size, "antialias": self.antialias}

    def output(self) -> Size | None:
        """See Geometric."""
        return None if isinstance(self.size, int) else self.size

    def plan(self, full: Size, rng: Generator | None) -> tuple[Part, Size]:
        """See Geometric."""
        whole = Part(0, 0, *full)
        if not isinstance(self.size, int):
            return whole, self.size
        short, long = min(full), max(full)
        other = int(self.size * long / short)
        return whole, ((self.size, other) if full[0] <= full[1] else (other, self.size))


class _Crop(Geometric):
    """A part of a given size: pixels are only copied."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _size(size)

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"size": self.size}

    def libraries(self) -> dict[str, str]:
        """None: pixels are only copied."""
        return {}

    def output(self) -> Size:
        """See Geometric."""
        return self.size


class CenterCrop(_Crop):
    """The middle; where the image is smaller, black around it."""

    def plan(self, full: Size, rng: Generator | None) -> tuple[Part, Size]:
        """See Geometric."""
        height, width = self.size
        return Part(_middle(full[0], height), _middle(full[1], width), height, width), self.size


class RandomCrop(_Crop):
    """Any part of that size, all equally likely; where the image is smaller, its middle with black around it."""

    deterministic = False
    cacheable = False

    def plan(self, full: Size, rng: Generator | None) -> tuple[Part, Size]:
        """See Geometric."""
        assert rng is not None
        drawn = rng.random(2)
        top, left = (
            int(drawn[axis] * (full[axis] - size + 1)) if full[axis] > size else _middle(full[axis], size)
            for axis, size in enumerate(self.size)
        )
        return Part(top, left, *self.size), self.size


class RandomResizedCrop(Geometric):
    """A part of random area and aspect, at a random place, brought to `size`.

    scale      share of the image's area, uniform between the two.
    ratio      width / height, uniform in its logarithm.
    antialias  as Resize; False is the fast mode.
    """

    deterministic = False
    cacheable = False

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        antialias: bool = True,
    ) -> None:
        self.size, self.antialias = _size(size), antialias
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high < math.inf:
                raise BadInput(
                    f"{name} of a random-resized-crop is (low, high) with 0 < low <= high, not {(low, high)}"
                )
        self.scale, self.ratio = (float(scale[0]), float(scale[1])), (float(ratio[0]), float(ratio[1]))

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"size": self.size, "scale": self.scale, "ratio": self.ratio, "antialias": self.antialias}

    def output(self) -> Size:
        """See Geometric."""
        return self.size

    def plan(self, full: Size, rng: Generator | None) -> tuple[Part, Size]:
        """See Geometric."""
        assert rng is not None
        height, width = full
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(CROP_TRIES):
            area, aspect, top, left = rng.random(4).tolist()
            area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + aspect * (high - low))
            wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < tall <= height:
                return Part(int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide), self.size
        tall, wide = height, width  # the middle, as much of it as the aspect allows
        if width / height < self.ratio[0]:
            tall = min(round(width / self.ratio[0]), height)
        elif width / height > self.ratio[1]:
            wide = min(round(height * self.ratio[1]), width)
        tall, wide = max(tall, 1), max(wide, 1)
        return Part((height - tall) // 2, (width - wide) // 2, tall, wide), self.size


class RandomHorizontalFlip(Transform):
    """Exchanges left and right with probability `p`; before or after the image became float."""

    deterministic = False
    cacheable = False
    threads = True

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise BadInput(f"a probability is between 0 and 1, not {p}")
        self.p = float(p)

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"p": self.p}

    def flips(self, rng: Generator) -> bool:
        """Whether this sample is flipped."""
        return bool(rng.random() < self.p)

    def __call__(self, value: Any, rng: Any = None) -> npt.NDArray[Any]:
        planar = isinstance(value, np.ndarray) and value.dtype == np.float32
        image: npt.NDArray[Any] = value if planar else as_image(value)
        if not self.flips(rng):
            return image
        return np.ascontiguousarray(image[..., ::-1]) if planar else resample.mirror(image)


class ToFloat(Transform):
    """uint8 (height, width, channels) -> float32 (channels, height, width) between 0 and 1: what torchvision's ToTensor makes."""

    threads = True
    cacheable = False  # four times the bytes, and quickly made again

    def __call__(self, value: Any, rng: Any = None) -> npt.NDArray[np.float32]:
        image = as_image(value).transpose(2, 0, 1)
        return np.divide(image, np.float32(255), dtype=np.float32, order="C")


class Normalize(Transform):
    """(pixel - mean) / std of each channel, float32; an image of 8 bits goes through ToFloat first."""

    threads = True
    cacheable = False  # four times the bytes, and quickly made again

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(float(one) for one in mean), tuple(float(one) for one in std)
        if not self.mean or len(self.mean) != len(self.std) or not all(one > 0 for one in self.std):
            raise BadInput(f"mean and std are one number for each channel, std above 0: not {mean} and {std}")

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {"mean": self.mean, "std": self.std}

    def __call__(self, value: Any, rng: Any = None) -> npt.NDArray[np.float32]:
        planar = isinstance(value, np.ndarray) and value.dtype == np.float32
        image: npt.NDArray[np.float32] = value if planar else ToFloat()(value)
        if len(image) != len(self.mean):
            raise BadInput(f"Normalize was given {len(self.mean)} means and an image of {len(image)} channels")
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


def _edge(size: int) -> int:
    if not 0 < size <= IMAGE_EDGE_MAX:
        raise BadInput(f"an edge of an image is between 1 and {IMAGE_EDGE_MAX}, not {size}")
    return size


def _size(size: int | Sequence[int]) -> Size:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise BadInput(f"a size is one number or (height, width), not {size}")
    return _edge(int(pair[0])), _edge(int(pair[1]))


def _middle(full: int, size: int) -> int:
    return round((full - size) / 2)
