"""What the search for label errors sees of a row: a few hundred bytes, a function of the row's values alone.

images   histograms of gradients (4 x 4 cells of 7 pixels, 8 directions, in blocks of 2 x 2 cells) and mean colours (4 x 4), a byte each.
         Dalal and Triggs, Histograms of Oriented Gradients for Human Detection (CVPR 2005); a gradient counts for a direction by the
         fourth power of the cosine between them, which needs no angle
texts    which words and pairs of neighbours there are, by 32-bit hashes
numbers  themselves
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import SourceError
from leptonstore.process import columns, images
from leptonstore.process.columns import ImageColumn

EDGE, CELLS, DIRECTIONS = 28, 4, 8
CELL = EDGE // CELLS
IMAGE_FEATURES = (CELLS - 1) ** 2 * 4 * DIRECTIONS + CELLS * CELLS * 3
WORDS_MAX = 256  # different words and pairs of a text that count, the first ones: 1 KiB
IMAGES_AT_A_TIME = 64  # so that what is made of them stays in the processor's cache
_DARK = np.float32(1e-2)  # keeps noise in an empty block from looking like a shape
# A word; of writing without spaces each sign.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")

IMAGE_TYPE = pa.list_(pa.uint8(), IMAGE_FEATURES)
TEXT_TYPE = pa.list_(pa.uint32())


def image_features(array: pa.Array, image: ImageColumn) -> pa.Array:
    """IMAGE_TYPE; null where there is no image, or one that does not decode."""
    missing = columns.null_mask(array)
    made = np.zeros((len(array), IMAGE_FEATURES), np.uint8)
    if image.shape is not None and image.shape[:2] == (EDGE, EDGE) and image.shape[2:] in ((), (1,), (3,)):
        pixels = columns.tensor_values(array)
        for low in range(0, len(array), IMAGES_AT_A_TIME):
            made[low : low + IMAGES_AT_A_TIME] = _described(pixels[low : low + IMAGES_AT_A_TIME])
    else:
        for row, one in enumerate(_fitted(array, image)):
            if one is None:
                missing[row] = True
            else:
                made[row] = _described(one[None])[0]
    values = pa.array(made.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, IMAGE_FEATURES, mask=pa.array(missing))


def _fitted(array: pa.Array, image: ImageColumn) -> list[images.Pixels | None]:
    """Images in colour and EDGE pixels large."""

    def fit(pixels: images.Pixels) -> images.Pixels:
        return images.fit(pixels, (EDGE, EDGE, 3))

    if image.shape is not None:
        missing = columns.null_mask(array).tolist()
        values = columns.tensor_values(array)
        return [None if gone else fit(pixels) for pixels, gone in zip(values, missing, strict=True)]
    files = columns.byte_values(array)
    decoded = iter(images.map_decoded(fit, [one for one in files if one is not None]))
    made = [None if one is None else next(decoded) for one in files]
    return [None if isinstance(one, SourceError) else one for one in made]


def _described(pixels: images.Pixels) -> NDArray[np.uint8]:
    """(n, EDGE, EDGE), with 1 or 3 channels or none -> (n, IMAGE_FEATURES)."""
    count = len(pixels)
    colours = pixels.reshape(count, EDGE, EDGE, -1)
    grey = images.to_grey(pixels) if pixels.ndim == 4 else pixels
    light = np.sqrt(grey.astype(np.float32) / np.float32(255))
    across, down = np.zeros_like(light), np.zeros_like(light)
    np.subtract(light[:, :, 2:], light[:, :, :-2], out=across[:, :, 1:-1])
    np.subtract(light[:, 2:], light[:, :-2], out=down[:, 1:-1])
    square = across * across + down * down
    cube = square * np.sqrt(square) + np.float32(1e-12)
    cells = np.empty((count, CELLS, CELLS, DIRECTIONS), np.float32)
    half = DIRECTIONS // 2
    for at in range(half):  # a direction, and the one opposite to it
        angle = np.pi * at / half
        along = across * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))
        strength = along * along
        strength *= strength
        strength /= cube
        forth = strength * (along > 0)
        cells[..., at], cells[..., at + half] = _summed(forth), _summed(strength - forth)
    corners = [(y, x) for y in (0, 1) for x in (0, 1)]
    blocks = np.concatenate([cells[:, y : CELLS - 1 + y, x : CELLS - 1 + x] for y, x in corners], axis=3)
    blocks /= np.sqrt((blocks * blocks).sum(axis=3, keepdims=True) + _DARK)
    sums = [_summed(colours[..., at].astype(np.int32)) for at in range(colours.shape[-1])]
    means = np.stack([sums[at % len(sums)] for at in range(3)], axis=-1) / np.float32(CELL * CELL)
    shape = np.rint(blocks.reshape(count, -1) * 255).astype(np.uint8)
    return np.concatenate([shape, np.rint(means.reshape(count, -1)).astype(np.uint8)], axis=1)


def _summed(values: NDArray[Any]) -> NDArray[Any]:
    """(n, EDGE, EDGE) -> (n, CELLS, CELLS), rows first: numpy sums along long runs."""
    count = len(values)
    return values.reshape(count, CELLS, CELL, EDGE).sum(axis=2).reshape(count, CELLS, CELLS, CELL).sum(axis=3)


def text_features(array: pa.Array) -> pa.Array:
    """TEXT_TYPE: hashes in the order in which they come first; null where there is no text."""
    return pa.array([None if text is None else _hashes(text) for text in array.to_pylist()], TEXT_TYPE)


def _hashes(text: str) -> list[int]:
    words = _WORD.findall(text.lower())[:WORDS_MAX]
    spans = [*words, *(f"{left} {right}" for left, right in pairwise(words))]
    return list(dict.fromkeys(crc32(span.encode("utf-8", "replace")) for span in spans))[:WORDS_MAX]
