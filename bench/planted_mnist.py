"""MNIST with planted faults, and the truth about them: what searches for faults are measured by (issue 8, "It holds when", line 2).

All 70,000 digits (train and test); to them come copies of some of them, exact ones and near ones (shifted by one pixel, or with noise),
and constant images; some of the digits get a wrong label. The rows are then shuffled, so that a copy may stand before what it is a copy of.
No row serves two purposes. MNIST has no two equal images of its own. A function of its arguments alone.

    id int64 | image uint8 28 x 28 | label, one of 10 | split, train or test (a copy stands in the split of its original)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import class_label_field, tensor_field

Rows = NDArray[np.int64]
EDGE = 28
CLASSES = 10
NOISE_STD = 8.0  # of 256 levels: seen by a machine, hardly by a person
_SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


@dataclass(frozen=True)
class Truth:
    """Row numbers of the table. exact, shifted, noisy: (n, 2), a row and the row that it is a copy of; wrong_true: the labels that `wrong`
    had before."""

    exact: Rows
    shifted: Rows
    noisy: Rows
    constant: Rows
    wrong: Rows
    wrong_true: NDArray[np.uint8]

    @property
    def near(self) -> Rows:
        """All near copies."""
        return np.concatenate([self.shifted, self.noisy])


def planted_mnist(
    data: Path,
    digits: int | None = None,
    exact: int = 500,
    near: int = 500,
    constant: int = 100,
    wrong: int = 100,
    seed: int = 0,
) -> tuple[pa.Table, Truth]:
    """The table and the truth. data: the directory of the IDX files. digits: how many of them are used, chosen by `seed` (None: all).

    Half of `near` is shifted, half has noise. constant: at most 256, each of another grey, so that none is a copy of another.
    """
    rng = np.random.default_rng(seed)
    images, labels, splits = _mnist(data, digits, rng)
    before = len(images)
    originals = rng.choice(before, exact + near + wrong, replace=False)
    of_exact, of_near, mislabelled = np.split(originals, [exact, exact + near])
    of_shifted, of_noisy = np.split(of_near, [near // 2])
    of_constant = rng.choice(before, constant, replace=False)  # only for their labels and splits
    labels = labels.copy()
    wrong_true = labels[mislabelled]
    labels[mislabelled] = (wrong_true + rng.integers(1, CLASSES, wrong)) % CLASSES
    grey = np.broadcast_to(
        rng.choice(256, constant, replace=False).astype(np.uint8)[:, None, None], (constant, EDGE, EDGE)
    )
    new = [images[of_exact], _shifted(images[of_shifted], rng), _noisy(images[of_noisy], rng), grey]
    source = np.concatenate([np.arange(before), of_exact, of_shifted, of_noisy, of_constant])
    order = rng.permutation(len(source))
    place = np.empty(len(source), np.int64)
    place[order] = np.arange(len(source))  # where each row has gone
    borders = np.cumsum([before, exact, len(of_shifted), len(of_noisy), constant])
    copies = [place[low:high] for low, high in pairwise(borders)]
    pixels = np.concatenate([images, *new])[order]
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            tensor_field("image", pa.uint8(), (EDGE, EDGE), "image"),
            class_label_field("label", [str(digit) for digit in range(CLASSES)]),
            class_label_field("split", ["train", "test"]),
        ]
    )
    columns = [
        pa.array(np.arange(len(order))),
        pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        pa.array(labels[source[order]]),
        pa.array(splits[source[order]]),
    ]
    truth = Truth(
        np.stack([copies[0], place[of_exact]], axis=1),
        np.stack([copies[1], place[of_shifted]], axis=1),
        np.stack([copies[2], place[of_noisy]], axis=1),
        copies[3],
        place[mislabelled],
        wrong_true,
    )
    return pa.Table.from_arrays(columns, schema=schema), truth


def _mnist(
    data: Path, digits: int | None, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Images, labels and splits (0 train, 1 test), in the order of the files."""
    table = pa.Table.from_batches(open_source(data).batches())
    images = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["image"].chunks])
    labels, splits = table["label"].to_numpy(), table["split"].to_numpy()
    if digits is None:
        return images, labels, splits
    chosen = np.sort(rng.choice(len(images), digits, replace=False))
    return images[chosen], labels[chosen], splits[chosen]


def _shifted(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """By one pixel, in one of eight directions each; what comes in is 0."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    moves = rng.integers(0, len(_SHIFTS), len(images))
    found = [
        wide[at, 1 + y : 1 + y + EDGE, 1 + x : 1 + x + EDGE] for at, (y, x) in enumerate(_SHIFTS[m] for m in moves)
    ]
    return np.array(found, np.uint8).reshape(-1, EDGE, EDGE)


def _noisy(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """With normal noise on every pixel."""
    loud = images + rng.normal(0, NOISE_STD, images.shape)
    return np.clip(np.rint(loud), 0, 255).astype(np.uint8)
