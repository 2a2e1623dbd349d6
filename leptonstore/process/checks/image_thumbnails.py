"""The fingerprint by which near duplicates of images are told: a thumbnail of 16 x 16 grey levels, centred and normalised.

    size      images are stretched to a square: a resized copy has the same thumbnail
    position  an object on a plain ground is centred by its contrast, to a 64th of a pixel, so that a copy that was shifted has the same
    one;
              a picture that fills its frame stays where it is
    light     the mean becomes 0 and the largest deviation 127: brightness and contrast do not matter
    noise     each value is a weighted mean of its surroundings (a triangle filter, as Pillow's BILINEAR shrinks): noise and artefacts of
    JPEG
              cancel each other

All sums are of integers and exact, so that a thumbnail depends on nothing but the pixels of its image (not on the batch, nor on threads).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.process.images import Pixels
from leptonstore.process.operation import Bits

EDGE = 16
SOURCE_EDGE_MAX = 64  # of images that thumbnails are made of; larger ones are shrunk before
CONTRAST_MIN = 2.0  # grey levels (standard deviation): below it there is nothing to compare but noise
# A ground is plain when this share of the border is like its median: within so many standard deviations of all pixels.
_PLAIN_SHARE, _PLAIN_SPREAD = 0.75, 0.5
_POSITIONS = 64  # steps of a pixel in which an image is centred
_ROWS_CHUNK = 1_024
_WEIGHT = 1 << 14  # the sum of the weights of one value

Thumbnails = NDArray[np.int8]


def thumbnails(grey: Pixels) -> tuple[Thumbnails, Bits, Bits]:
    """(n, H, W) grey levels -> (n, EDGE, EDGE); which images have enough contrast to be compared (the others: zeros); which have a plain
    ground.

    H, W: 1 to SOURCE_EDGE_MAX.
    """
    count, height, width = grey.shape
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1).astype(np.int64)
    ground = np.partition(border, border.shape[1] // 2, axis=1)[:, border.shape[1] // 2]
    # Whole numbers below 2^53 in float64 from here on: sums are exact, and BLAS may add in any order.
    raised = grey - ground[:, None, None].astype(np.float64)
    energy = raised * raised
    down, across = energy.sum(axis=2), energy.sum(axis=1)
    whole, size = down.sum(axis=1), height * width
    contrast = np.sqrt(whole * size - np.square(raised.reshape(count, size).sum(axis=1))) / size
    known = contrast >= CONTRAST_MIN
    like = np.abs(border - ground[:, None]) <= _PLAIN_SPREAD * contrast[:, None]
    plain = like.mean(axis=1) >= _PLAIN_SHARE
    weights = []
    for profile, length in ((down, height), (across, width)):
        moment = (profile * (2.0 * np.arange(length) - (length - 1))).sum(axis=1)  # twice the distance from the middle
        steps = np.floor(moment * (_POSITIONS / 2) / np.maximum(whole, 1) + 0.5)
        offsets, which = np.unique(np.where(plain, steps, np.nan), return_inverse=True)
        weights.append(_weights(length, offsets / _POSITIONS)[which])
    small = np.matmul(np.matmul(weights[0], raised), weights[1].transpose(0, 2, 1))
    return _normalised(small, known), known, plain


def roughness(found: Thumbnails) -> NDArray[np.float64]:
    """Mean square of the gradient in units of the variance: how much of a picture no longer agrees when it moves by a pixel. 0 where all
    is one grey."""
    out = np.empty(len(found))
    size = EDGE * EDGE
    for low in range(0, len(found), _ROWS_CHUNK):
        values = found[low : low + _ROWS_CHUNK].astype(np.int32)
        flat = values.reshape(-1, size)
        down, across = (np.diff(values, axis=axis).reshape(-1, size - EDGE) for axis in (1, 2))
        change = np.einsum("ij,ij->i", down, down) + np.einsum("ij,ij->i", across, across)  # below 2^31
        variance = np.einsum("ij,ij->i", flat, flat) - np.square(flat.sum(axis=1, dtype=np.float64)) / size
        out[low : low + len(flat)] = np.where(variance > 0, change * (EDGE / (EDGE - 1)) / np.maximum(variance, 1), 0.0)
    return out


def _weights(length: int, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, EDGE, length): the weights of the pixels in each value along one axis, whole numbers; the image is moved by -offset pixels.

    Beyond its edges is more of the ground; where an image has none (offset: not a number) it is not moved, and ends at its edges.
    """
    scale = EDGE / length
    reach = max(1.0, 1 / scale)
    filled = np.isnan(offsets)
    centres = (np.arange(EDGE) + 0.5) / scale + np.where(filled, 0, offsets)[:, None]
    distance = np.abs(np.arange(length) + 0.5 - centres[:, :, None])
    weights = np.maximum(0.0, 1 - distance / reach)
    sums = np.where(filled[:, None], weights.sum(axis=2), reach)
    return np.rint(weights * (_WEIGHT / sums[:, :, None]))


def _normalised(small: NDArray[np.float64], known: Bits) -> Thumbnails:
    flat = small.reshape(len(small), EDGE * EDGE)
    flat = flat * (EDGE * EDGE) - flat.sum(axis=1, keepdims=True)  # exact: 2^8 * 2^28 * 255 * 2^8
    most = np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1)
    out: NDArray[Any] = np.rint(flat * (127 / most)).astype(np.int8)
    out[~known] = 0
    return out.reshape(-1, EDGE, EDGE)
