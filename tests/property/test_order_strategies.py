"""Every strategy, over any sizes: pure functions of the position that cover what they promise."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.order import FullOrder, Order, OrderStrategy, rows_of_many
from loaders.orders import BlockOrder, BlockShuffle, Bucketed, ClassBalanced, Curriculum, Subset, Weighted
from loaders.orders.limits import Prefix
from tests.integration.order_checks import Synthetic, SyntheticSource, assert_pure

SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
FEW = settings(max_examples=60, deadline=None)


def bound(strategy: OrderStrategy, rows: int, **columns: np.ndarray) -> Any:
    return strategy.bind(SyntheticSource(Synthetic(rows, **columns)))


def epoch_of(strategy: OrderStrategy, seed: int, epoch: int, rows: int, **columns: np.ndarray) -> list[int]:
    """The rows of an epoch, of an order that was found pure, in this object and in one from another process."""
    made = bound(strategy, rows, **columns)
    twin = pickle.loads(pickle.dumps(made))  # noqa: S301
    return assert_pure(made.epoch(seed, epoch), twin.epoch(seed, epoch))


@FEW
@given(st.integers(0, 150), st.integers(1, 40), st.integers(1, 20), SEEDS, EPOCHS)
def test_a_block_shuffle_has_every_row_once_in_windows_of_whole_blocks(
    rows: int, block_rows: int, window_blocks: int, seed: int, epoch: int
) -> None:
    seen = epoch_of(BlockShuffle(block_rows, window_blocks), seed, epoch, rows)
    assert sorted(seen) == list(range(rows))
    order, at, blocks_left = BlockOrder(rows, block_rows, window_blocks, seed, epoch), 0, -(-rows // block_rows)
    for first, end in order.windows(0, rows):
        assert first == at < end
        blocks = {row // block_rows for row in seen[first:end]}
        assert len(blocks) == min(window_blocks, blocks_left)
        whole = [row for row in range(rows) if row // block_rows in blocks]
        assert sorted(seen[first:end]) == whole, "every row of its blocks"
        at, blocks_left = end, blocks_left - len(blocks)
    assert at == rows
    start, stop = sorted((seed % (rows + 1), epoch % (rows + 1)))
    assert list(order.windows(start, stop)) == [
        (first, end) for first, end in order.windows(0, rows) if first < stop and end > start and start < stop
    ]


@FEW
@given(st.data(), st.integers(1, 120), SEEDS, EPOCHS)
def test_weights_without_replacement_give_a_row_once_and_never_one_of_weight_zero(
    data: st.DataObject, rows: int, seed: int, epoch: int
) -> None:
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1e-300, 0.5, 3.0, 1e300]), min_size=rows, max_size=rows))
    )
    positive = np.flatnonzero(weights).tolist()
    if not positive:
        with pytest.raises(ValueError, match="no weight above zero: there is nothing to draw"):
            bound(Weighted(weights), rows)
        return
    samples = data.draw(st.integers(0, len(positive)))
    every = epoch_of(Weighted(weights, replacement=False), seed, epoch, rows)
    some = epoch_of(Weighted(weights, replacement=False, samples=samples), seed, epoch, rows)
    assert sorted(every) == positive and some == every[:samples]
    with pytest.raises(ValueError, match=f"only {len(positive)} rows have a weight above zero"):
        bound(Weighted(weights, replacement=False, samples=len(positive) + 1), rows)


@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=100), st.integers(0, 300), SEEDS, EPOCHS)
def test_weighted_draws_are_as_many_as_asked_for(weights: list[int], samples: int, seed: int, epoch: int) -> None:
    if not any(weights):
        weights[-1] = 1
    seen = epoch_of(Weighted(weights, samples=samples), seed, epoch, len(weights))
    assert len(seen) == samples and all(weights[row] for row in seen)


@FEW
@given(
    st.lists(st.integers(-2, 3), max_size=80),
    st.one_of(st.none(), st.integers(1, 50)),
    SEEDS,
    st.one_of(st.integers(0, 50), st.integers(2**64 - 4, 2**64 - 4)),
)
def test_classes_come_equally_often_and_their_rows_in_turn(
    labels: list[int], per_class: int | None, seed: int, epoch: int
) -> None:
    rows, column = len(labels), np.array(labels, np.int64)
    counts = Counter(labels)
    expected = per_class or (rows // len(counts) if counts else 0)
    strategy = ClassBalanced("label", per_class)
    epochs = [epoch_of(strategy, seed, epoch, rows, label=column)]
    epochs += [
        bound(strategy, rows, label=column).epoch(seed, epoch + more).rows_at(0, len(epochs[0])).tolist()
        for more in (1, 2)
    ]
    for seen in epochs:
        assert Counter(labels[row] for row in seen) == dict.fromkeys(counts, expected)
    if epoch == 0:  # from the start on, each row of a class has come as often as any other, or once more
        together = Counter(row for seen in epochs for row in seen)
        for label in counts:
            often = [together[row] for row in range(rows) if labels[row] == label]
            assert max(often) - min(often) <= 1


@FEW
@given(st.integers(1, 200), st.data(), SEEDS, EPOCHS)
def test_a_subset_is_its_rows_in_the_order_of_another(rows: int, data: st.DataObject, seed: int, epoch: int) -> None:
    chosen = data.draw(
        st.one_of(
            st.lists(st.integers(0, rows - 1), max_size=50),
            st.builds(range, st.integers(0, rows), st.integers(0, rows), st.integers(1, 5)),
        )
    )
    for inner in (FullOrder(True), FullOrder(False), BlockShuffle(3, 2)):
        seen = epoch_of(Subset(chosen, inner), seed, epoch, rows)
        of_inner = bound(inner, len(chosen)).epoch(seed, epoch).rows_at(0, len(chosen))
        assert seen == [chosen[at] for at in of_inner.tolist()]
    backwards = range(rows - 1, -1, -1)
    assert epoch_of(Subset(backwards, FullOrder(False)), seed, epoch, rows) == list(backwards)


def test_a_subset_of_columns_reads_those_of_its_rows() -> None:
    labels, chosen = np.arange(100) % 7, [3, 50, 51, 10, 17, 99]
    seen = epoch_of(Subset(chosen, ClassBalanced("label", 4)), 1, 0, 100, label=labels)
    assert set(seen) <= set(chosen)
    assert Counter(labels[row] for row in seen) == dict.fromkeys({labels[row] for row in chosen}, 4)
    nested = epoch_of(Subset(range(0, 100, 2), Subset(range(10), FullOrder(False))), 0, 0, 100)
    assert nested == list(range(0, 20, 2))


@FEW
@given(
    st.lists(st.sampled_from([-1.5, 0.0, 0.25, 7.0, np.inf]), max_size=90),
    st.floats(0.01, 1),
    st.integers(1, 6),
    st.floats(0, 1),
    SEEDS,
)
def test_a_curriculum_takes_the_easiest_rows_and_more_each_epoch(
    scores: list[float], start: float, epochs: int, noise: float, seed: int
) -> None:
    rows, strategy, taken = len(scores), Curriculum("score", start, epochs, noise), []
    ranked = np.argsort(np.array(scores), kind="stable").tolist()
    for epoch in range(epochs + 2):
        seen = epoch_of(strategy, seed, epoch, rows, score=np.array(scores, np.float64))
        assert sorted(seen) == sorted(ranked[: len(seen)])
        window = max(1, int(np.ceil(noise * len(seen))))
        assert all(abs(ranked.index(row) - at) < window for at, row in enumerate(seen))
        taken.append(len(seen))
    assert taken == sorted(taken) and taken[epochs:] == [rows, rows]
    assert taken[0] == min(rows, int(np.ceil(start * rows)))


@FEW
@given(st.lists(st.integers(0, 300), max_size=200), st.integers(1, 9), st.integers(1, 8), SEEDS, EPOCHS)
def test_buckets_hold_every_row_once_and_groups_of_near_lengths(
    lengths: list[int], batch_rows: int, groups: int, seed: int, epoch: int
) -> None:
    rows = len(lengths)
    for inner in (FullOrder(True), FullOrder(False)):
        seen = epoch_of(
            Bucketed("size", batch_rows, groups * batch_rows, inner),
            seed,
            epoch,
            rows,
            size=np.array(lengths, np.int64),
        )
        assert sorted(seen) == list(range(rows))
        of_inner = bound(inner, rows).epoch(seed, epoch).rows_at(0, rows).tolist()
        for first in range(0, rows, groups * batch_rows):
            pool = seen[first : first + groups * batch_rows]
            assert sorted(pool) == sorted(of_inner[first : first + groups * batch_rows])
            spans = [[lengths[row] for row in pool[at : at + batch_rows]] for at in range(0, len(pool), batch_rows)]
            spans.sort(key=lambda span: (min(span), max(span)))
            assert all(max(one) <= min(other) for one, other in pairwise(spans)), (
                "no length of a group inside another's"
            )


@FEW
@given(st.integers(0, 50), st.integers(0, 80))
def test_a_prefix_is_the_first_positions(rows: int, positions: int) -> None:
    order = Order(rows, 1)
    seen = assert_pure(Prefix(order, positions), Prefix(order, positions))
    assert seen == order.rows_at(0, min(rows, positions)).tolist()


@FEW
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(1, 20), st.integers(4_000, 5_000), st.integers(1, 2**48)), SEEDS, SEEDS),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_many_orders_together_are_each_of_them(sizes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    orders = [Order(*size) for size in sizes]
    which = np.array(data.draw(st.lists(st.integers(0, len(orders) - 1), max_size=60)), np.int64)
    positions = np.array([data.draw(st.integers(0, orders[at].rows - 1)) for at in which], np.int64)
    before = positions.copy()
    together = rows_of_many(orders, which, positions)
    assert together.tolist() == [orders[at].rows_of(positions[[number]])[0] for number, at in enumerate(which)]
    assert (positions == before).all()
