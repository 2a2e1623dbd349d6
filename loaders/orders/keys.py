"""Keys of parts of an order, and random words by position. Nothing of it may change: golden vectors in tests/unit/test_orders.py pin it.

sub_seed(context, seed, ...)   the seed of a part: BLAKE3's key derivation under a context string of the part's own
Words(context, seed, ...)      a random 64-bit word for every position
"""

from __future__ import annotations

import operator
from typing import SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from loaders.order import SEED_MAX, Rows, sub_seed

Words64: TypeAlias = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


class Words:
    """A random word of 64 bits for each position: word(p) = mix(mix(key_1 + p * gamma) ^ key_2), modulo 2^64.

    `mix` and `gamma` are those of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", with
    D. Stafford's variant 13), a generator by counter that passes BigCrush; the second round unties streams whose keys are near.
    """

    def __init__(self, context: str, *numbers: int) -> None:
        self._keys = tuple(np.uint64(sub_seed(context, *numbers, turn)) for turn in range(2))

    def at(self, positions: Rows) -> Words64:
        """The words at the given positions, in fresh memory."""
        words = positions.astype(np.uint64)
        np.multiply(words, _GAMMA, out=words)
        np.add(words, self._keys[0], out=words)
        _mix(words)
        np.bitwise_xor(words, self._keys[1], out=words)
        _mix(words)
        return words

    def uniform(self, positions: Rows) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1), multiples of 2^-53."""
        return (self.at(positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: Words64) -> None:
    scratch = np.empty_like(words)
    for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2), (31, None)):
        np.right_shift(words, np.uint64(shift), out=scratch)
        np.bitwise_xor(words, scratch, out=words)
        if multiplier is not None:
            np.multiply(words, multiplier, out=words)


def whole(name: str, value: SupportsIndex, least: int, most: int) -> int:
    """`value` as an int of Python, which JSON knows. Raises ValueError, naming it, for what is no whole number in [least, most]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number between {least} and {most}, not {value!r}")
    return number


def require_seed(seed: int, epoch: int) -> None:
    """Raises ValueError for a seed or epoch that no order has."""
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value <= SEED_MAX:
            raise ValueError(f"{name} of an order must be between 0 and {SEED_MAX}, not {value}")
