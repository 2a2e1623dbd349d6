"""Where the sources of a mixture stand: exact counts, no drift, every draw once, and pinned for ever."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing_model import reference, reference_split

from loaders.mixing import BLOCK, POSITION_MAX, SOURCES_MAX, WEIGHT_TOTAL, Mixing, apportioned, whole_weights

weights_of = st.integers(1, 9).flatmap(
    lambda sources: st.lists(
        st.one_of(st.just(0.0), st.floats(1e-6, 1), st.integers(1, 5).map(float)), min_size=sources, max_size=sources
    ).filter(any)
)


def whole(weights: list[float]) -> tuple[int, ...]:
    names = [f"s{at}" for at in range(len(weights))]
    return whole_weights(dict(zip(names, weights, strict=True)), names)


def mixing(weights: list[list[float]], starts: list[int], key: int) -> Mixing:
    return Mixing(np.array(starts, np.int64), np.array([whole(line) for line in weights], np.int64), key)


def test_it_is_what_its_documentation_says() -> None:
    starts, key = [0, 300, 301, 900], 2**64 - 5
    lines = [[0.5, 0.25, 0.25], [1.0, 0.0, 2.0], [3.0, 1.0, 0.001], [0.0, 0.0, 1.0]]
    mixed = mixing(lines, starts, key)
    labels, draws = mixed.draws(np.arange(1200))
    found = list(zip(labels.tolist(), draws.tolist(), strict=True))
    assert found == reference([whole(line) for line in lines], starts, key, 1200)


def test_it_never_changes() -> None:
    labels, draws = mixing([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], [0, 10_000], 7).draws(np.arange(20_000))
    assert labels[:16].tolist() == GOLDEN_LABELS and draws[-3:].tolist() == GOLDEN_DRAWS
    assert blake3(labels.tobytes() + draws.astype("<i8").tobytes()).hexdigest()[:32] == GOLDEN_DIGEST


GOLDEN_LABELS = [0, 0, 0, 0, 1, 0, 2, 1, 0, 1, 0, 0, 2, 1, 0, 0]
GOLDEN_DRAWS = [7998, 7999, 4002]
GOLDEN_DIGEST = "62f626c3bd113826f96cf2de2a7df62a"


@given(weights_of, st.integers(0, 2**64 - 1), st.data())
@settings(max_examples=60, deadline=None)
def test_counts_are_what_a_replay_counts_and_every_draw_comes_once(
    weights: list[float], key: int, data: st.DataObject
) -> None:
    changes = data.draw(st.lists(st.permutations(weights), max_size=4))
    starts = [0, *sorted(data.draw(st.sets(st.integers(1, 2_000), min_size=len(changes), max_size=len(changes))))]
    mixed = mixing([weights, *changes], starts, key)
    labels, draws = mixed.draws(np.arange(2_500))
    for source in range(len(weights)):
        at = np.flatnonzero(labels == source)
        np.testing.assert_array_equal(draws[at], np.arange(len(at)))  # in order, without a gap
    replayed = np.concatenate(
        (np.zeros((1, len(weights)), np.int64), np.cumsum(labels[:, None] == np.arange(len(weights)), axis=0))
    )
    np.testing.assert_array_equal(mixed.counts(np.arange(2_501)), replayed)
    for (one, other), line in zip(pairwise([*starts, 2_500]), [weights, *changes], strict=True):
        assert not (replayed[other] - replayed[one])[np.array(line) == 0].any()


@given(weights_of, st.integers(0, POSITION_MAX // BLOCK))
@settings(max_examples=200, deadline=None)
def test_shares_never_drift(weights: list[float], blocks: int) -> None:
    line = np.array([whole(weights)], np.int64)
    around = np.arange(max(blocks - 2, 0), min(blocks + 3, POSITION_MAX // BLOCK + 1)) * BLOCK
    counts = apportioned(around, line)
    assert counts.tolist() == [reference_split(int(count), line[0].tolist()) for count in around]
    np.testing.assert_array_equal(counts.sum(axis=1), around)
    assert (np.diff(counts, axis=0) >= 0).all()
    levels = (len(weights) - 1).bit_length()
    for count, found in zip(around.tolist(), counts.tolist(), strict=True):
        for share, exact in zip(found, line[0].tolist(), strict=True):
            assert abs(share * WEIGHT_TOTAL - count * exact) * 2 <= levels * WEIGHT_TOTAL


def test_any_order_of_asking_gives_the_same() -> None:
    mixed = mixing([[0.9, 0.1], [0.3, 0.7]], [0, 70_001], 3)
    labels, draws = mixed.draws(np.arange(200_000))
    some = np.random.default_rng(0).integers(0, 200_000, 4_000)
    found = mixed.draws(some)
    np.testing.assert_array_equal(found[0], labels[some])
    np.testing.assert_array_equal(found[1], draws[some])
    assert [len(part) for part in mixed.draws(np.empty(0, np.int64))] == [0, 0]


def test_a_late_position_is_as_quick_and_as_exact() -> None:
    mixed = mixing([[1.0, 2.0]] * 3, [0, 10**9, 10**15], 3)
    far = 10**18 + 77
    counts = mixed.counts(np.array([far]))[0]
    exact = far * whole([1.0, 2.0])[0] / WEIGHT_TOTAL
    assert counts.sum() == far and abs(int(counts[0]) - exact) < 2 * BLOCK
    label, draw = mixed.draws(np.array([far]))
    assert draw[0] == counts[label[0]]


def test_where_a_source_stands_in_a_block_says_nothing() -> None:
    """Two even sources over 4,000 blocks: each slot has either half of the time, and neighbours are independent."""
    labels = mixing([[0.5, 0.5]], [0], 11).draws(np.arange(4_000 * BLOCK))[0].reshape(-1, BLOCK).astype(float)
    z = (labels.mean(axis=0) - 0.5) * 2 * np.sqrt(len(labels))
    assert abs(z).max() < 5
    for distance in (1, 2, 4, 16, 64, 128):
        both = (labels[:, :-distance] - 0.5) * (labels[:, distance:] - 0.5) * 4
        assert abs(both.mean() + 1 / (BLOCK - 1)) < 5 / np.sqrt(both.size)


def test_as_many_sources_as_can_be() -> None:
    labels, draws = mixing([[1.0] * SOURCES_MAX], [0], 1).draws(np.arange(4 * BLOCK))
    np.testing.assert_array_equal(np.bincount(labels), 4)
    assert draws.max() == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "'b' has no weight"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "'c' is no source; there are a, b"),
        ({"a": -1.0, "b": 1.0}, "weight of 'a' must be a number of 0 or more"),
        ({"a": float("nan"), "b": 1.0}, "weight of 'a' must be"),
        ({"a": 0.0, "b": 0.0}, "all weights of the mixture are zero"),
        ({"a": 1e-12, "b": 1.0}, "weight of 'a' is below"),
    ],
)
def test_weights_that_are_none_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole_weights(weights, ("a", "b"))


def test_weights_have_any_scale() -> None:
    assert whole([7, 3]) == whole([70, 30]) and sum(whole([7, 3])) == WEIGHT_TOTAL
    assert whole([2, 2, 4]) == (WEIGHT_TOTAL // 4, WEIGHT_TOTAL // 4, WEIGHT_TOTAL // 2)
    assert sum(whole([1.0, 1.0, 1.0])) == WEIGHT_TOTAL
