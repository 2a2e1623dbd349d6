"""How much two thumbnails differ when one is laid over the other as well as it can be.

What may differ: position (up to SHIFT_MAX), size (up to SCALE_MAX, each axis on its own: a crop that was stretched back), brightness and
contrast. Found by the iteration of Lucas and Kanade ("An Iterative Image Registration Technique", 1981; Baker and Matthews,
"Lucas-Kanade 20 Years On", 2004): in each step the differences are explained by the gradients as well as linear least squares can. The
best step counts, so that the distance is never larger than without moving anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonstore.process.checks.image_thumbnails import EDGE, Thumbnails

STEPS = 4
SHIFT_MAX = 2.0  # of EDGE pixels
SCALE_MAX = 0.15  # by which a side may be longer or shorter
HOPELESS = 16.0  # times what is allowed: no alignment makes that good, and most pairs end there
_RIDGE = 1e-3  # of the squares of the gradients: stripes can be moved along themselves, and must not be moved far
_PAIRS_CHUNK = 1_024  # 6 arrays of 2 KiB a pair

Figures = NDArray[np.float64]
Rows = NDArray[np.int64]

_AT = np.arange(EDGE) - (EDGE - 1) / 2  # from the middle
_INNER = (np.abs(_AT) < EDGE / 2 - 1).astype(
    np.float64
)  # the outermost values are not compared: what a shift brings in spoils them


def distances(found: Thumbnails, first: Rows, second: Rows, allowed: Figures) -> Figures:
    """Of pairs of thumbnails: the share of the variance that is left unexplained, 0 (the same) to 1; the better one of the two ways.

    allowed: what will be good enough; pairs that are HOPELESS times as far from it are not aligned.
    """
    out = np.empty(len(first))
    for low in range(0, len(first), _PAIRS_CHUNK):
        some = slice(low, low + _PAIRS_CHUNK)
        one, other = (found[at[some]].astype(np.float64) for at in (first, second))
        left = _unexplained(one, other, np.broadcast_to(_INNER[:, None] * _INNER, one.shape))
        near = np.flatnonzero((left > 0) & (left <= HOPELESS * allowed[some]))
        if len(near):
            one, other = one[near], other[near]
            left[near] = np.minimum(left[near], np.minimum(_aligned(one, other), _aligned(other, one)))
        out[some] = left
    return out


def _aligned(still: Figures, moved: Figures) -> Figures:
    """The best of STEPS steps."""
    count = len(still)
    best, seen, inside = np.ones(count), moved, np.broadcast_to(_INNER[:, None] * _INNER, moved.shape)
    scale, shift = np.ones((2, count)), np.zeros((2, count))
    for _ in range(STEPS):
        moves = _moves(still, seen, inside)
        shift = np.clip(shift + moves[:2], -SHIFT_MAX, SHIFT_MAX)
        scale = np.clip(scale + moves[2:], 1 - SCALE_MAX, 1 + SCALE_MAX)
        down, in_down = _sampling(scale[0], shift[0])
        across, in_across = _sampling(scale[1], shift[1])
        seen = np.matmul(np.matmul(down, moved), across.transpose(0, 2, 1))
        inside = in_down[:, :, None] * in_across[:, None, :]
        best = np.minimum(best, _unexplained(still, seen, inside))
    return best


def _sampling(scale: Figures, shift: Figures) -> tuple[Figures, Figures]:
    """(n, EDGE, EDGE): weights that read one axis at scale * place + shift (cubic convolution, Keys 1981), and (n, EDGE): which places
    lie inside."""
    places = scale[:, None] * _AT + shift[:, None] + (EDGE - 1) / 2
    inside = (places > -0.5) & (places < EDGE - 0.5)
    distance = np.abs(np.clip(places, 0, EDGE - 1)[:, :, None] - np.arange(EDGE))
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=2, keepdims=True), inside * _INNER


def _unexplained(still: Figures, seen: Figures, inside: Figures) -> Figures:
    """1 - r^2 of the places inside; 1 where they run against each other."""
    x, y = _centred(still, inside), _centred(seen, inside)
    both = (x * y).sum(axis=(1, 2))
    power = (x * x).sum(axis=(1, 2)) * (y * y).sum(axis=(1, 2))
    return np.where(both > 0, 1 - both * both / np.maximum(power, 1e-9), 1.0)


def _centred(values: Figures, inside: Figures) -> Figures:
    mean = (values * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
    return (values - mean[:, None, None]) * inside


def _moves(still: Figures, seen: Figures, inside: Figures) -> Figures:
    """(4, n): by how much to shift down and across, and to scale down and across."""
    down, across = np.gradient(seen, axis=1), np.gradient(seen, axis=2)
    fields = [down, across, down * _AT[:, None], across * _AT]
    basis = np.stack([inside, seen * inside, *(field * inside for field in fields)], axis=1).reshape(len(seen), 6, -1)
    gram = np.matmul(basis, basis.transpose(0, 2, 1))
    at = np.arange(6)
    gram[:, at[2:], at[2:]] *= 1 + _RIDGE
    gram[:, at, at] += 1e-6
    target = np.matmul(basis, (still * inside).reshape(len(seen), -1, 1))
    found = np.linalg.solve(gram, target)[:, :, 0]
    gain = np.where(np.abs(found[:, 1]) > 0.1, found[:, 1], np.inf)  # what does not resemble is not moved
    return found[:, 2:].T / gain
