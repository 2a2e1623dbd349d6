"""What is measured of the pixels of images, many of one size at a time: arrays (n, H, W) of grey levels, (n, H, W, C) where colour
matters.

Pure functions; integers and float64 in a fixed order of sums, so that the same pixels give the same figures everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonstore.process import images
from leptonstore.process.images import Pixels
from leptonstore.process.operation import Bits

Figures = NDArray[np.float64]


def constant(pixels: Pixels) -> Bits:
    """Whether all pixels of an image are equal, in each channel. An image of no pixel or one is not called so."""
    count, height, width = pixels.shape[:3]
    if height * width <= 1:
        return np.zeros(count, np.bool_)
    corners = pixels[:, 0, 0] == pixels[:, -1, -1]
    corners = corners if corners.ndim == 1 else corners.all(axis=1)
    found = np.zeros(count, np.bool_)
    left = np.flatnonzero(corners)  # most images differ already there
    flat = pixels[left].reshape(len(left), height * width, int(np.prod(pixels.shape[3:])))
    found[left] = (flat == flat[:, :1]).all(axis=(1, 2))
    return found


def grey(pixels: Pixels) -> Pixels:
    """(n, H, W) of any: of more than three channels the first three are colours, of two the first is grey."""
    if pixels.ndim == 3 or pixels.shape[-1] == 3:
        return pixels if pixels.ndim == 3 else images.to_grey(pixels)
    return images.to_grey(pixels[..., :3]) if pixels.shape[-1] > 3 else pixels[..., 0]


def brightness(grey: Pixels) -> Figures:
    """Mean grey level, 0 to 255."""
    count, height, width = grey.shape
    return grey.reshape(count, -1).sum(axis=1, dtype=np.int64) / max(1, height * width)


def sharpness(grey: Pixels) -> Figures:
    """Variance of the Laplacian (4 neighbours) of the inner pixels: small where an image is blurred. 0 for images below 3 x 3.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (ICPR 2000).
    """
    count, height, width = grey.shape
    if height < 3 or width < 3:
        return np.zeros(count)
    return _variances(_laplacian(grey))


def _laplacian(grey: Pixels) -> NDArray[np.int16]:
    wide = grey.astype(np.int16)
    edges = wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    edges += wide[:, :-2, 1:-1]
    edges += wide[:, 2:, 1:-1]
    edges -= wide[:, 1:-1, 1:-1] << 2
    return edges.reshape(len(grey), -1)


def _variances(values: NDArray[np.int16]) -> Figures:
    flat = values.astype(np.float64)  # sums of squares below 2^53: exact, in any order
    mean = flat.sum(axis=1) / flat.shape[1]
    squares = np.einsum("ij,ij->i", flat, flat)  # BLAS would wake threads of its own in each of ours
    return np.maximum(squares / flat.shape[1] - mean * mean, 0.0)


def shrunk(grey: Pixels, edge_max: int) -> Pixels:
    """(n, H, W) with sides of at most `edge_max`, each on its own: proportions are not kept. Pillow averages, first by whole factors."""
    count, height, width = grey.shape
    size = min(height, edge_max), min(width, edge_max)
    if (height, width) == size:
        return grey
    return np.stack([images.resize(one, size, gap=1.0) for one in grey]) if count else np.zeros((0, *size), np.uint8)
