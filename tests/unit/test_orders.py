"""Strategies: pinned for ever, their laws of chance, and what they refuse."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from loaders.order import ORDER_ROWS_MAX, SEED_MAX, FullOrder, Order, OrderStrategy
from loaders.orders import BlockOrder, BlockShuffle, Bucketed, ClassBalanced, Curriculum, Subset, Weighted
from loaders.orders import weighted as weighted_module
from loaders.orders.keys import Words, sub_seed
from loaders.orders.weighted import minus_log
from tests.integration.order_checks import Synthetic, SyntheticSource

ROWS = 10_007
AT = np.arange(ROWS)
COLUMNS = {
    "label": (AT * AT) % 5,
    "weight": (AT * 37 % 101).astype(np.float32),
    "score": ((AT * 7919) % ROWS) / 8 - 100,
    "size": (AT * 31 % 211),
}


def bound(strategy: OrderStrategy, rows: int = ROWS, **columns: Any) -> Any:
    return strategy.bind(SyntheticSource(Synthetic(rows, **(columns or COLUMNS))))


# strategy -> BLAKE3 of seed 5's epochs 0 and 3. A change here is a change of every such order ever trained on.
GOLDEN: dict[str, tuple[OrderStrategy, str]] = {
    "block": (BlockShuffle(100, 7), "4a0480f7767060d3"),
    "block, one window": (BlockShuffle(1000, 1000), "a4a50659a6104094"),
    "block, small": (BlockShuffle(1, 13), "f2588511634c8b20"),
    "weighted": (Weighted("weight"), "3dccc81a5b09a540"),
    "weighted without replacement": (Weighted("weight", replacement=False, samples=5_000), "00247f4601c945b7"),
    "balanced": (ClassBalanced("label"), "b125d6301aa1eab2"),
    "balanced, few": (ClassBalanced("label", per_class=3), "6e20c92846ab5c7b"),
    "subset": (Subset(range(7, ROWS, 3)), "68d81d7219f06127"),
    "curriculum": (Curriculum("score", start=0.1, epochs=6, noise=0.05), "95d98804c0ec3a65"),
    "curriculum, all noise": (Curriculum("score"), "9c2bea8bce803aa4"),
    "bucketed": (Bucketed("size", 32), "e7a627acd29af234"),
    "bucketed blocks": (Bucketed("size", 64, 256, inner=BlockShuffle(50, 9)), "6fe1e9bde0c7caec"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_an_order_never_changes(name: str) -> None:
    strategy, expected = GOLDEN[name]
    orders = [bound(strategy).epoch(5, epoch) for epoch in (0, 3)]
    rows = np.concatenate([order.rows_at(0, order.length) for order in orders])
    assert blake3(rows.astype("<i8").tobytes()).hexdigest()[:16] == expected


def test_a_block_order_of_a_billion_rows_never_changes() -> None:
    order = BlockOrder(10**9 + 7, 4096, 128, seed=42, epoch=3)
    assert order.rows_at(0, 4).tolist() == [918422758, 468272791, 622619257, 455829001]
    assert order.rows_at(10**9 + 3, 10**9 + 7).tolist() == [903556346, 178149029, 704987498, 497245201]


def test_the_sizes_of_a_block_shuffle_are_written_down() -> None:
    assert BlockShuffle().spec() == {"name": "block-shuffle", "version": 1, "block_rows": 4096, "window_blocks": 128}
    assert BlockShuffle.of_bytes(100_000, 4 << 30) == BlockShuffle(83, 517)
    assert BlockShuffle.of_bytes(784, 1 << 30) == BlockShuffle(4096, 334)
    assert BlockShuffle.of_bytes(0, 0) == BlockShuffle(4096, 1)
    assert BlockShuffle.of_bytes(10**9, 1) == BlockShuffle(1, 1)


def test_a_block_order_is_what_its_documentation_says() -> None:
    """Position by position, from lists."""
    for rows, block_rows, window_blocks in ((1003, 10, 7), (1000, 10, 7), (95, 100, 3), (100, 9, 4)):
        order = BlockOrder(rows, block_rows, window_blocks, seed=6, epoch=2)
        full, short = divmod(rows, block_rows)
        blocks = order._full.rows_at(0, full).tolist()
        if short:
            blocks.insert(order._short_slot, full)
        expected: list[int] = []
        for window, first in enumerate(range(0, len(blocks), window_blocks)):
            data = [
                row
                for block in blocks[first : first + window_blocks]
                for row in range(block * block_rows, min((block + 1) * block_rows, rows))
            ]
            key = sub_seed("lepton.orders.block.v1 window", order._key, window)
            expected += [data[at] for at in Order(len(data), key, 2).rows_at(0, len(data)).tolist()]
        assert order.rows_at(0, rows).tolist() == expected


def test_the_short_block_stands_anywhere() -> None:
    """Chi-square of its slot of 11 over 2,200 epochs: mean 10, standard deviation 4.5."""
    counts = Counter(BlockOrder(105, 10, 3, 1, epoch)._short_slot for epoch in range(2_200))
    assert len(counts) == 11 and sum((count - 200) ** 2 / 200 for count in counts.values()) < 10 + 4 * 4.5


def test_small_block_orders_are_equally_likely() -> None:
    """4 rows in blocks of 3, in one window: chi-square of the 24 orders over 1,200 seeds: mean 23, standard deviation 6.8."""
    counts = Counter(tuple(BlockOrder(4, 3, 2, seed).rows_at(0, 4).tolist()) for seed in range(1_200))
    assert len(counts) == 24
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 23 + 4 * 6.8


# -- chance ------------------------------------------------------------------------------------------------------------


def test_words_are_splitmix_twice() -> None:
    """One position at a time, in Python's own integers."""

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    def seed(*numbers: int) -> int:
        material = struct.pack(f"<{len(numbers)}Q", *numbers)
        return int.from_bytes(blake3(material, derive_key_context="context").digest(8), "little")

    keys = [seed(3, 9, turn) for turn in range(2)]
    positions = [0, 1, 2, 10**12, ORDER_ROWS_MAX]
    expected = [mix(mix((keys[0] + at * 0x9E3779B97F4A7C15) % 2**64) ^ keys[1]) for at in positions]
    words = Words("context", 3, 9)
    assert words.at(np.array(positions)).tolist() == expected
    assert words.uniform(np.array(positions)).tolist() == [word // 2**11 / 2**53 for word in expected]


def test_words_are_uniform_and_positions_independent() -> None:
    words, count = Words("test"), 400_000
    uniform = words.uniform(np.arange(count))
    cells = np.bincount((uniform * 64).astype(int) * 64 + (np.roll(uniform, 1) * 64).astype(int), minlength=4096)
    expected = count / 4096
    assert abs(((cells - expected) ** 2 / expected).sum() - 4095) < 4 * math.sqrt(2 * 4095)
    bits = np.unpackbits(words.at(np.arange(10_000)).view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert (np.abs(bits - 0.5) < 5 * 0.5 / 100).all()


def test_rows_are_drawn_as_often_as_their_weights_say() -> None:
    weights, samples = np.array([0, 1, 2, 0, 3, 0.5, 0]), 200_000
    rows = bound(Weighted(weights, samples=samples), 7).epoch(1, 0).rows_at(0, samples)
    expected = samples * weights / weights.sum()
    counts, drawn = np.bincount(rows, minlength=7), weights > 0
    assert counts[~drawn].sum() == 0
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 3 + 4 * math.sqrt(6)


def test_draws_at_the_ends_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the greatest random number, with sums whose product rounds: never a row of weight 0, never beyond the last."""
    order = bound(Weighted(np.array([0.0, 0.1, 0.7, 0.0])), 4).epoch(0, 0)
    for number in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(weighted_module.Words, "uniform", lambda self, at, number=number: np.full(at.shape, number))
        assert order.rows_at(0, 1).tolist() == [1 if number == 0 else 2]


def test_without_replacement_rows_come_by_the_law_of_successive_draws() -> None:
    """Chi-square of the six orders of three rows of weights 1, 2 and 3 over 10,000 epochs."""
    weights, epochs = [1, 2, 3], 10_000
    made = bound(Weighted(weights, replacement=False), 3)
    counts = Counter(tuple(made.epoch(4, epoch).rows_at(0, 3).tolist()) for epoch in range(epochs))
    statistic = 0.0
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            third = 3 - first - second
            chance = weights[first] / 6 * weights[second] / (6 - weights[first])
            statistic += (counts[first, second, third] - epochs * chance) ** 2 / (epochs * chance)
    assert statistic < 5 + 4 * math.sqrt(10)


def test_the_logarithm_is_that_of_libm_and_made_of_exact_steps() -> None:
    values = np.concatenate(
        [np.random.default_rng(0).random(100_000), 2.0 ** -np.arange(1, 53), 1 - 2.0 ** -np.arange(2, 53)]
    )
    np.testing.assert_allclose(minus_log(values), -np.log(values), rtol=1e-15, atol=4e-16)
    assert (minus_log(values) > 0).all()


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"balanced, few"}))
def test_epochs_and_seeds_differ(name: str) -> None:
    made = bound(GOLDEN[name][0])
    base = made.epoch(1, 1).rows_at(0, 500)
    for other in (made.epoch(2, 1), made.epoch(1, 2)):
        assert (other.rows_at(0, 500) != base).mean() > 0.9


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockShuffle(0), "block_rows must be a whole number between 1 and 281474976710656, not 0"),
        (lambda: BlockShuffle(5, -1), "window_blocks must be a whole number between 1 and"),
        (lambda: Weighted("w", samples=-1), "samples must be a whole number between 0"),
        (lambda: Weighted([[1.0]]), "numbers for rows must be one-dimensional, not 2-dimensional float64"),
        (lambda: Weighted([1j]), "numbers for rows must be one-dimensional"),
        (lambda: ClassBalanced("label", per_class=0), "per_class must be a whole number between 1"),
        (lambda: Subset([[1]]), "takes row numbers: whole numbers, in one dimension"),
        (lambda: Subset([1.5]), "takes row numbers"),
        (lambda: Curriculum("score", start=0), "start in .0, 1. and noise in .0, 1., not start=0"),
        (lambda: Curriculum("score", noise=1.1), "noise=1.1"),
        (lambda: Curriculum("score", epochs=0), "epochs must be a whole number between 1 and"),
        (lambda: Bucketed("size", 0), "batch_rows must be a whole number between 1"),
        (lambda: Bucketed("size", 10, 25), "pool_rows must be a multiple of batch_rows=10, not 25"),
        (lambda: Bucketed("size", 1 << 25), "batch_rows must be a whole number between 1 and 16777216"),
        (lambda: BlockShuffle(2.5), "block_rows must be a whole number .* not 2.5"),
        (lambda: bound(Weighted("nothing")), "reads no column 'nothing'; it reads id, label, weight, score, size"),
        (lambda: bound(Weighted([1, 2])), "the array has 2 numbers and 'synthetic' has 10007 rows"),
        (lambda: bound(Weighted([1, -2, 3]), 3), "the array has weights that are negative: row 1 has -2"),
        (lambda: bound(Weighted([1, np.nan]), 2), "weights that are not finite: row 1 has nan"),
        (lambda: bound(Weighted("w"), 2, w=np.array([1, np.inf])), "column 'w' has weights that are not finite: row 1"),
        (lambda: bound(Weighted([0, 0]), 2), "no weight above zero: there is nothing to draw"),
        (lambda: bound(Weighted([1e308, 1e308]), 2), "sum of the weights of the array is not finite"),
        (lambda: bound(Weighted([], samples=3), 0), "there is nothing to draw"),
        (lambda: bound(ClassBalanced("score")), "column 'score' has float64 values, and classes are whole numbers"),
        (lambda: bound(ClassBalanced("label", ORDER_ROWS_MAX)), "an epoch of 3 classes x .* is longer than"),
        (lambda: bound(Subset([3, ROWS])), "a Subset has row 10007, and 'synthetic' has 10007 rows"),
        (lambda: bound(Subset(range(5, -2, -1))), "a Subset has row -1"),
        (lambda: bound(Subset("label = 1")), "'synthetic' finds no rows by a condition"),
        (lambda: bound(Curriculum("s"), 3, s=np.array([1, np.nan, 2])), "column 's' has no score at row 1: it is NaN"),
        (lambda: bound(Bucketed("score", 4)), "column 'score' has float64 values, and lengths are whole numbers"),
        (lambda: bound(Bucketed([5, -1], 4), 2), "the array has a negative length at row 1: -1"),
        (lambda: bound(BlockShuffle()).epoch(-1, 0), "seed of an order must be between"),
        (lambda: bound(Weighted("weight")).epoch(0, SEED_MAX + 1), "epoch of an order must be between"),
        (lambda: bound(ClassBalanced("label")).epoch(0, -1), "epoch of an order must be between"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_weights_to_sort_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_module, "SORT_ROWS_MAX", 2)
    with pytest.raises(ValueError, match="3 weights are too many to draw without replacement, at most 2"):
        bound(Weighted([1, 2, 3], replacement=False), 3)
    bound(Weighted([1, 2, 3]), 3)


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"weighted without replacement", "subset"}))  # those ask for rows
def test_no_rows_are_an_empty_epoch(name: str) -> None:
    empty = bound(GOLDEN[name][0], 0, **{column: values[:0] for column, values in COLUMNS.items()}).epoch(1, 1)
    assert empty.length == 0 and empty.rows_at(0, 0).tolist() == []


def test_specs_are_small_and_tell_orders_apart() -> None:
    strategies = [strategy for strategy, _ in GOLDEN.values()]
    strategies += [Weighted([1, 2, 3]), Weighted([1, 2, 4]), Weighted(np.array([1, 2, 3], np.float32)), Subset([1, 2])]
    strategies += [
        Subset([1, 3]),
        Subset("label = 1"),
        Subset("label in (" + "1, " * 500 + "1)"),
        Subset(range(5), BlockShuffle()),
    ]
    specs = [json.dumps(strategy.spec()) for strategy in strategies]
    assert len(set(specs)) == len(specs) and max(len(spec) for spec in specs) < 300
    assert Weighted([1, 2, 3]).spec() == Weighted(np.array([1, 2, 3])).spec()
    sizes = np.int64(4)
    numpys = [
        BlockShuffle(sizes, sizes),
        Bucketed("size", sizes),
        ClassBalanced("label", sizes),
        Weighted("w", samples=sizes),
    ]
    assert json.dumps([strategy.spec() for strategy in numpys]), "numbers of numpy are numbers"


def test_arrays_that_are_given_are_copied() -> None:
    weights, rows = np.ones(5), np.arange(5)
    strategy, subset = Weighted(weights), Subset(rows, FullOrder(False))
    spec = strategy.spec(), subset.spec()
    weights[:] = rows[:] = 0
    assert (strategy.spec(), subset.spec()) == spec
    assert set(bound(strategy, 5).epoch(0, 0).rows_at(0, 5).tolist()) != {0}
    assert bound(subset, 5).epoch(0, 0).rows_at(0, 5).tolist() == [0, 1, 2, 3, 4]


def test_orders_need_neither_torch_nor_leptonstore() -> None:
    code = "import sys, loaders.orders; print([name for name in ('torch', 'leptonstore') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
