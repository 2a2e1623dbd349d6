"""Keyed randomness: golden values pin the function, and nothing but the four numbers enters it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from loaders.transforms.keys import SampleKeys

# (seed, epoch, position, transform index) -> the first three numbers of Generator.random
GOLDEN = {
    (0, 0, 0, 0): [0.7418512245375896, 0.5567474756634401, 0.49446564174044305],
    (1, 2, 10, 0): [0.8671119892712459, 0.5933054172569268, 0.544956120019466],
    (1, 2, 10, 3): [0.8012571920424386, 0.07176822623941592, 0.29171030523741215],
    (2**64 - 1, 2**64 - 1, 2**63 - 1, 7): [0.9327844511418604, 0.47217440284837653, 0.39708577138856604],
}


@pytest.mark.parametrize("key", GOLDEN)
def test_the_streams_never_change(key: tuple[int, int, int, int]) -> None:
    seed, epoch, position, index = key
    rng = SampleKeys(seed, epoch, np.array([5, position])).rng(1, index)
    assert rng.random(3).tolist() == GOLDEN[key]


def test_the_seed_of_global_generators_never_changes() -> None:
    assert SampleKeys(1, 2, np.array([10])).global_seed(0) == 14505758930341497695


def test_a_part_and_a_pickle_have_the_same_streams() -> None:
    keys = SampleKeys(3, 4, np.arange(100, 110))
    for other in (keys.part(4, 8), pickle.loads(pickle.dumps(keys)).part(4, 8)):  # noqa: S301
        assert len(other) == 4
        assert other.rng(1, 2).random(4).tolist() == keys.rng(5, 2).random(4).tolist()


def test_every_number_of_the_key_matters() -> None:
    base = (1, 2, 3, 4)
    streams = set()
    for at in range(4):
        for value in (base[at], base[at] + 1, base[at] + 2):
            seed, epoch, position, index = (*base[:at], value, *base[at + 1 :])
            streams.add(SampleKeys(seed, epoch, np.array([position])).rng(0, index).random(2).tobytes())
    assert len(streams) == 1 + 4 * 2  # the base, and two others for each number


def test_neighbours_are_uniform_and_independent() -> None:
    """First draws of consecutive positions: mean, variance and serial correlation of 20,000 within five sigma."""
    keys = SampleKeys(0, 0, np.arange(20_000))
    drawn = np.array([keys.rng(i, 0).random() for i in range(len(keys))])
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / len(drawn)) ** 0.5
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / len(drawn) ** 0.5
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 19 + 5 * (2 * 19) ** 0.5
