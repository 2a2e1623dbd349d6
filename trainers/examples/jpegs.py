"""Folders of pictures that come with scikit-learn: tiles of two photographs, and handwritten digits.

    FOLDER/<class>/0001.jpg                                          classes
    FOLDER/train/<class>/0001.jpg    FOLDER/val/<class>/0001.jpg     classes and splits

which is what `lepton import` takes.
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
CELL = 32  # pixels of a photograph in which one tile lies
COPIED, AGAIN = 10, 95  # every tenth tile is there twice, the second time in this quality
DIGIT = 32  # pixels that a digit of 8 is enlarged to
HELD_OUT = 5  # every fifth digit is for validation


def photograph_tiles(folder: Path, every: int = 1) -> int:
    """The two photographs, cut into cells that do not overlap: of every `every`-th one a tile of 24 to 32 pixels an edge, PNG and JPEG by
    turns, as FOLDER/<photograph>/<number>.<png|jpg>. As such things happen, every tenth tile is there twice, compressed again, and one file
    of each photograph is cut off. Returns the number of files. Raises MissingExtra without scikit-learn or Pillow."""
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtra("the photographs", "process", error.name or "sklearn") from None
    images = load_sample_images()
    rng = np.random.default_rng(0)
    written = 0
    for path, image in zip(images.filenames, images.images, strict=True):
        below = folder / Path(path).stem
        below.mkdir(parents=True, exist_ok=True)
        corners = [
            (top, left)
            for top in range(0, len(image) - CELL + 1, CELL)
            for left in range(0, len(image[0]) - CELL + 1, CELL)
        ]
        sizes = rng.integers(CELL * 3 // 4, CELL + 1, (len(corners), 2))
        for count, number in enumerate(range(0, len(corners), every)):
            (top, left), (height, width) = corners[number], sizes[number]
            tile = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
            tile.save(below / f"{number:04}.{'jpg' if count % 2 else 'png'}", quality=QUALITY)
            if count % COPIED == 0:
                tile.save(below / f"{number:04}_again.jpg", quality=AGAIN)
                written += 1
            written += 1
        (below / "cut-off.jpg").write_bytes(jpeg_bytes(image)[:5_000])
        written += 1
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
