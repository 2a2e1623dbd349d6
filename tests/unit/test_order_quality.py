"""Shuffle quality: a full shuffle passes, what is none is told from it, and each number says what its documentation says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loaders.order import ByPosition, FullOrder, Order, Rows
from loaders.orders import BlockOrder, Bucketed, padding_share, shuffle_quality
from tests.integration.order_checks import Synthetic, SyntheticSource

ROWS = 60_000


class Listed(ByPosition):
    """An epoch that is an array."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @property
    def length(self) -> int:
        return len(self.rows)

    def _evaluate(self, positions: Rows) -> Rows:
        return self.rows[positions]


def buffered(rows: int, buffer: int) -> Rows:
    """What a shuffle buffer, as of tf.data or webdataset, makes of rows in their order."""
    rng, held, out = np.random.default_rng(0), list(range(buffer)), []
    for row in range(buffer, rows):
        at = int(rng.integers(buffer))
        out.append(held[at])
        held[at] = row
    return np.array(out + [held[at] for at in rng.permutation(buffer)])


@pytest.mark.parametrize("rows", [5_000, ROWS, 10**7])
def test_a_full_shuffle_cannot_be_told_from_one(rows: int) -> None:
    for seed in range(5):
        quality = shuffle_quality(Order(rows, seed, epoch=seed + 1), batches_max=1_000)
        assert quality.full, quality
        assert 0.8 < quality.imbalance < 1.2


def permutation(rows: int) -> Rows:
    return np.random.default_rng(0).permutation(rows)


BAD = {
    "as it stands": Order(ROWS, shuffle=False),
    "backwards": Listed(np.arange(ROWS)[::-1].copy()),
    "a buffer of 1,000": Listed(buffered(ROWS, 1_000)),
    "blocks whose rows are not shuffled": Listed((permutation(ROWS // 50)[:, None] * 50 + np.arange(50)).reshape(-1)),
    "small windows": BlockOrder(ROWS, 100, 10),
    "odd rows, then even ones": Listed(np.concatenate([permutation(ROWS // 2) * 2 + odd for odd in (1, 0)])),
    "each row twice": Listed(np.repeat(permutation(ROWS // 2) * 2, 2)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_full_shuffle_is_told_from_one(name: str) -> None:
    assert not shuffle_quality(BAD[name]).full


def test_a_shuffle_within_classes_is_told_by_their_labels() -> None:
    """Rows in random places, but class after class: only the labels say so."""
    labels = np.random.default_rng(0).integers(0, 4, ROWS)
    rng = np.random.default_rng(1)
    order = Listed(np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in range(4)]))
    assert shuffle_quality(order, labels=labels).sigmas["imbalance"] > 100
    assert abs(shuffle_quality(order).sigmas["imbalance"]) < 4, "the rows themselves are mixed"
    assert shuffle_quality(Order(ROWS, 3), labels=labels).full


def test_the_numbers_of_a_dataset_in_its_order() -> None:
    quality = shuffle_quality(Order(ROWS, shuffle=False), batch_rows=100)
    assert quality.row_correlation == pytest.approx(1)
    assert quality.neighbour_distance == pytest.approx(1, abs=1e-3)
    assert quality.together == pytest.approx(ROWS / 100, rel=0.01), "99 of 99 pairs, where 0.165 are expected"


@pytest.mark.parametrize("window_blocks", [16, 64, 256])
def test_windows_of_blocks_mix_as_the_documentation_says(window_blocks: int) -> None:
    rows, block_rows, batch_rows = 4_000_000, 1_000, 256
    quality = shuffle_quality(BlockOrder(rows, block_rows, window_blocks, seed=1), batch_rows)
    assert quality.neighbour_distance == pytest.approx(1 / window_blocks, rel=0.15)
    assert quality.together == pytest.approx(rows / (window_blocks * block_rows), rel=0.2)
    assert quality.imbalance == pytest.approx(math.sqrt(1 + batch_rows / window_blocks), rel=0.1)


def test_what_cannot_be_measured_is_named() -> None:
    for rows, batch_rows in ((100, 64), (100, 1), (0, 5)):
        with pytest.raises(ValueError, match="two batches of two rows are needed"):
            shuffle_quality(Order(rows), batch_rows)


def test_bucketing_saves_the_padding_that_is_measured() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(np.int64) + 1
    source = SyntheticSource(Synthetic(len(lengths), size=lengths))
    batches = [FullOrder(True).bind(source).epoch(0, 0)]
    batches += [Bucketed("size", 32, 32 * groups).bind(source).epoch(0, 0) for groups in (4, 64)]
    padding = [padding_share(order, lengths, 32) for order in batches]
    rows = batches[0].rows_at(0, 20_000)
    by_hand = sum(32 * lengths[rows[at : at + 32]].max() for at in range(0, 20_000, 32))
    assert padding[0] == pytest.approx(1 - lengths.sum() / by_hand)
    assert padding[0] > 0.7 and padding[1] < 0.55 and padding[2] < 0.12, padding
    assert padding_share(Order(0), lengths, 32) == 0
