"""Images: how often each pixel value occurs in each channel, and which sizes there are. All else follows from counts, and counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import FormatDamaged, SourceError
from leptonstore.process import columns, images
from leptonstore.process.statistics.numbers import NumberSketch, bit_counts
from leptonstore.process.statistics.record import Arrays, take
from leptonstore.process.statistics.results import ImageStats, SizeCount

Counts = NDArray[np.int64]
Size = tuple[int, int, int]  # height, width, channels


@dataclass
class ImageSketch:
    """sizes: images of each size. grey (256) and colour (3, 256): pixels of each value. undecodable images count nowhere else."""

    sizes: Counter[Size] = field(default_factory=Counter)
    grey: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    colour: Counts = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    undecodable: int = 0

    def add_decoded(self, array: pa.Array, shape: tuple[int, ...]) -> None:
        """Take in the non-null rows of a tensor column of uint8."""
        values = columns.tensor_values(array)
        values = values[~columns.null_mask(array)] if array.null_count else values
        height, width, channels = (*shape, 1)[:3]
        self._count(_channel_counts(values), (height, width, channels), len(values))

    def add_encoded(self, array: pa.Array, name: str) -> None:
        """Take in the non-null values of a column of image files; decoded in a few threads. Raises MissingExtra without Pillow."""
        present = [value for value in columns.byte_values(array) if value is not None]
        for result in images.map_decoded(_size_and_counts, present, name):
            if isinstance(result, SourceError):
                self.undecodable += 1
            else:
                self._count(result[1], result[0], 1)

    def _count(self, counts: Counts, size: Size, rows: int) -> None:
        if rows:
            self.sizes[size] += rows
        if len(counts) == 3:
            self.colour += counts
        else:
            self.grey += counts.sum(axis=0)

    @classmethod
    def merged(cls, parts: Iterable[ImageSketch]) -> ImageSketch:
        """Of all images of all parts."""
        whole = cls()
        for part in parts:
            whole.sizes += part.sizes
            whole.grey += part.grey
            whole.colour += part.colour
            whole.undecodable += part.undecodable
        return whole

    def pixels(self) -> NumberSketch:
        """All values of all channels."""
        return NumberSketch.of_counts(self.grey + self.colour.sum(axis=0))

    def stats(self) -> ImageStats:
        """For people."""
        coloured = bool(self.colour.any())
        channels = [self.grey + one for one in self.colour] if coloured else [self.grey]
        moments = [NumberSketch.of_counts(channel).moments for channel in channels]
        ordered = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        return ImageStats(
            sizes=tuple(SizeCount(*size, rows) for size, rows in ordered),
            channel_means=tuple(one.average for one in moments if one.average is not None),
            channel_stds=tuple(one.deviation for one in moments if one.deviation is not None),
            undecodable=self.undecodable,
        )

    def arrays(self) -> Arrays:
        """To be kept."""
        sizes = [[*size, rows] for size, rows in sorted(self.sizes.items())]
        return {
            "sizes": np.array(sizes, np.int64).reshape(-1),
            "pixels": np.concatenate((self.grey, self.colour.reshape(-1))),
            "undecodable": np.array([self.undecodable], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ImageSketch:
        """What was kept. Raises FormatDamaged."""
        sizes, pixels = take(arrays, "sizes", "<i8"), take(arrays, "pixels", "<i8", 4 * 256)
        undecodable = int(take(arrays, "undecodable", "<i8", 1)[0])
        if len(sizes) % 4 or bool((sizes < 0).any()) or bool((pixels < 0).any()) or undecodable < 0:
            raise FormatDamaged("sketch of images counts less than nothing")
        found: Counter[Size] = Counter()
        for height, width, channels, rows in sizes.reshape(-1, 4).tolist():
            found[height, width, channels] = rows
        return cls(found, pixels[:256].copy(), pixels[256:].reshape(3, 256).copy(), undecodable)


def _channel_counts(pixels: images.Pixels) -> Counts:
    """How often each value 0 to 255 occurs: (1, 256) for grey (and for channel counts that are not 3), (3, 256) for colour.

    `pixels` is (n, H, W) or (n, H, W, C).
    """
    if pixels.ndim == 4 and pixels.shape[-1] == 3:
        return np.stack([bit_counts(pixels[..., channel]) for channel in range(3)])
    return bit_counts(pixels)[None]


def _size_and_counts(image: images.Pixels) -> tuple[Size, Counts]:
    """Size and pixel counts of one decoded image; runs in a decoding thread."""
    height, width, channels = (*image.shape, 1)[:3]
    return (height, width, channels), _channel_counts(image[None])
