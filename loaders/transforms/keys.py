"""Randomness of augmentation: a pure function of (seed, epoch, global position, transform index), and of nothing else.

    key      (h, position), two words of 64 bits; h = the first 8 bytes, little-endian, of BLAKE3's key derivation: context
             "lepton.transforms.v1", material (seed, epoch, transform index), 64 bits each, little-endian
    stream   numpy's Philox (4 x 64 bits, 10 rounds; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
             with that key, its counter at 0

So a sample is augmented alike whatever the threads, processes, batch size and world size, and another order of the same rows (another
epoch or seed) augments anew. A generator costs 3 us: Philox has no state to warm up. That is little beside any work on an image, so
that the fused image programs draw from the same generators as any other transform, and give the same pixels.

Nothing of this may change without a new context string: golden values in tests/unit/test_sample_keys.py pin it.
This module imports neither torch nor leptonstore.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence

from loaders.order import sub_seed

CONTEXT = "lepton.transforms.v1"
GLOBAL_INDEX = (1 << 64) - 1  # stands for the transform index where the global generators of a process are seeded


class SampleKeys:
    """What the randomness of some samples hangs on. Immutable; any thread; pickles.

    seed, epoch:  of the order, 0 <= both < 2^64.
    positions:    global positions in the epoch, int64, one for each sample.
    """

    __slots__ = ("_words", "epoch", "positions", "seed")

    def __init__(self, seed: int, epoch: int, positions: npt.NDArray[np.int64]) -> None:
        self.seed, self.epoch, self.positions = seed, epoch, positions
        self._words: dict[int, int] = {}  # of each transform index, when it has been asked for

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleKeys, (self.seed, self.epoch, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, first: int, stop: int) -> SampleKeys:
        """Of samples [first, stop) of these."""
        made = SampleKeys(self.seed, self.epoch, self.positions[first:stop])
        made._words = self._words  # the same for all positions
        return made

    def rng(self, i: int, transform_index: int) -> Generator:
        """A new generator for the i-th of these samples and the transform at this place of its chain."""
        key = _Key(self._word(transform_index), int(self.positions[i]))
        return Generator(Philox(key))  # type: ignore[arg-type]  # numpy takes any ISeedSequence

    def global_seed(self, i: int) -> int:
        """64 bits to seed the global generators of a worker process with, before the i-th sample's transforms run."""
        return int(self.rng(i, GLOBAL_INDEX).bit_generator.random_raw())

    def _word(self, transform_index: int) -> int:
        word = self._words.get(transform_index)
        if word is None:
            word = self._words[transform_index] = sub_seed(CONTEXT, self.seed, self.epoch, transform_index)
        return word


class _Key(ISeedSequence):
    """Gives Philox its key. Its own parameter `key` would ask the operating system for a seed first: 13 us instead of 3."""

    __slots__ = ("_key",)

    def __init__(self, *key: int) -> None:
        self._key = np.array(key, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> npt.NDArray[np.uint64]:
        """What Philox asks for: two words of 64 bits."""
        assert n_words == 2 and dtype is np.uint64
        return self._key
