"""Folders of JPEGs made of real pictures that come with scikit-learn: two photographs, and handwritten digits.

    FOLDER/train/<class>/0001.jpg    FOLDER/val/<class>/0001.jpg

which is what `lepton import` takes for images with classes and splits.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.errors import MissingExtra

QUALITY = 92
TILE = 64  # pixels of a tile of a photograph
DIGIT = 32  # pixels that a digit of 8 is enlarged to
HELD_OUT = 5  # every fifth digit, and the right fifth of a photograph, are for validation


def photograph_tiles(folder: Path, tiles: int) -> int:
    """Tiles at random places of the two photographs, `tiles` of each for training and a quarter as many for validation, which lie
    where no tile of training reaches. Returns the number of files. Raises MissingExtra without scikit-learn or Pillow."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise MissingExtra("the photographs", "process", "sklearn") from None
    images = load_sample_images()
    rng = np.random.default_rng(0)
    written = 0
    for path, image in zip(images.filenames, images.images, strict=True):
        border = image.shape[1] * (HELD_OUT - 1) // HELD_OUT
        for split, part, count in (
            ("train", image[:, :border], tiles),
            ("val", image[:, border:], max(1, tiles // 4)),
        ):
            corners = zip(
                rng.integers(0, part.shape[0] - TILE, count).tolist(),
                rng.integers(0, part.shape[1] - TILE, count).tolist(),
                strict=True,
            )
            cut = (part[top : top + TILE, left : left + TILE] for top, left in corners)
            written += _write(folder / split / Path(path).stem, cut)
    return written


def digit_pictures(folder: Path, digits: Sequence[int]) -> int:
    """The handwritten digits of these classes, enlarged and dark on light. Returns the number of files. Raises as above."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("the digits", "process", "sklearn") from None
    data: Any = load_digits()
    pixels = 255 - np.rint(data.images * (255 / 16)).astype(np.uint8)
    large = pixels.repeat(DIGIT // 8, axis=1).repeat(DIGIT // 8, axis=2)
    written = 0
    for digit in digits:
        chosen = large[data.target == digit]
        held_out = np.arange(len(chosen)) % HELD_OUT == 0
        for split, some in (("train", chosen[~held_out]), ("val", chosen[held_out])):
            written += _write(folder / split / str(digit), some)
    return written


def _write(folder: Path, images: Iterable[NDArray[np.uint8]]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, image in enumerate(images, start=1):
        (folder / f"{count:04}.jpg").write_bytes(jpeg_bytes(image))
    return count


def jpeg_bytes(image: NDArray[np.uint8]) -> bytes:
    """An image (height, width[, 3]) as a JPEG. Raises MissingExtra without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("writing JPEGs", "process", "PIL") from None
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
