"""The order: every row once, pinned for ever, and without a pattern that a learner could see."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3

from loaders.order import BLOCK_POSITIONS, ORDER_ROWS_MAX, SEED_MAX, Order

# (rows, seed, epoch) -> rows at the first and last positions. A change here is a change of every order ever trained on.
GOLDEN = {
    (1, 0, 0): ([0], [0]),
    (2, 0, 0): ([1, 0], [1, 0]),
    (3, 5, 1): ([1, 2, 0], [2, 0]),
    (10, 0, 0): ([3, 9, 2, 8, 5, 0, 4, 6], [1, 7]),
    (10, 0, 1): ([2, 0, 9, 4, 8, 7, 6, 5], [3, 1]),
    (10, 1, 0): ([4, 9, 6, 2, 3, 8, 0, 5], [1, 7]),
    (4095, 3, 2): ([745, 591, 2461, 2806, 2760, 2607, 3055, 3918], [2087, 612]),
    (4096, 3, 2): ([3152, 987, 3172, 3116, 3928, 2450, 4062, 530], [520, 4095]),
    (60000, 0, 0): ([36563, 557, 15943, 476, 52597, 28286, 44571, 58061], [2993, 41930]),
    (65537, 7, 9): ([17576, 29409, 57780, 32452, 20601, 49141, 27475, 11209], [38507, 28718]),
    (10**9, 42, 3): (
        [741587885, 72386534, 817482370, 924251559, 700342140, 131092438, 803563510, 45290282],
        [147223983, 903921757],
    ),
    (2**48, SEED_MAX, SEED_MAX): (
        [
            238585702027607,
            203189065528669,
            244584246157477,
            229946790723118,
            216648053857843,
            159226534031400,
            76560796760226,
            173895569507924,
        ],
        [261060196361764, 80697118220650],
    ),
}


def reference(rows: int, seed: int, epoch: int, position: int) -> int:
    """The order as its module's docstring says it, one position at a time, in Python's own integers."""
    low_bits = ((rows - 1).bit_length() + 1) // 2
    highs = math.ceil(rows / 2**low_bits)
    rounds = 24 if rows < 4096 else 6
    material = struct.pack("<QQQ", seed, epoch, rows)
    keys = struct.unpack(f"<{rounds}I", blake3(material, derive_key_context="lepton.order.v1").digest(4 * rounds))

    def mix(word: int, key: int) -> int:
        y = (word + key) * 0x7FEB352D % 2**32
        return (y ^ (y >> 15)) * 0x846CA68B % 2**32

    value = position
    while True:
        high, low = divmod(value, 2**low_bits)
        for turn, key in enumerate(keys):
            if turn % 2 == 0:
                high = (high + mix(low, key) * highs // 2**32) % highs
            else:
                low ^= mix(high, key) >> (32 - low_bits)
        value = high * 2**low_bits + low
        if value < rows:
            return value


@pytest.mark.parametrize(("key", "rows"), GOLDEN.items())
def test_the_order_never_changes(key: tuple[int, int, int], rows: tuple[list[int], list[int]]) -> None:
    order, count = Order(*key), key[0]
    assert order.rows_at(0, min(count, 8)).tolist() == rows[0]
    assert order.rows_at(max(count - 2, 0), count).tolist() == rows[1]


def test_a_whole_epoch_never_changes() -> None:
    rows = Order(60_000, 0, 0).rows_at(0, 60_000)
    assert blake3(rows.astype("<i8").tobytes()).hexdigest()[:32] == "5a90db4e3022e8f3e14e828b76eddcc6"


@pytest.mark.parametrize("rows", [2, 3, 17, 4095, 4097, 65_537, 10**6 + 3, 10**12, 2**46 + 1, ORDER_ROWS_MAX])
def test_it_is_what_its_documentation_says(rows: int) -> None:
    order = Order(rows, seed=11, epoch=3)
    positions = np.unique(np.linspace(0, rows - 1, 40).astype(np.int64))
    assert order.rows_of(positions).tolist() == [reference(rows, 11, 3, int(at)) for at in positions]


@pytest.mark.parametrize(
    "rows", [*range(70), 255, 256, 257, 1000, 4095, 4096, 4097, BLOCK_POSITIONS - 1, BLOCK_POSITIONS + 1, 65_537]
)
def test_every_row_once(rows: int) -> None:
    seen = Order(rows, seed=3, epoch=1).rows_at(0, rows)
    assert seen.dtype == np.int64 and seen.shape == (rows,)
    np.testing.assert_array_equal(np.sort(seen), np.arange(rows))


@pytest.mark.parametrize("rows", [1000, 100_003])
def test_any_slicing_gives_the_same_rows(rows: int) -> None:
    order = Order(rows, seed=9)
    whole = order.rows_at(0, rows)
    for size in (1, 7, 333, BLOCK_POSITIONS):
        starts = range(0, min(rows, 20 * size), size)
        parts = [order.rows_at(start, min(start + size, rows)) for start in starts]
        joined = np.concatenate(parts)
        np.testing.assert_array_equal(joined, whole[: len(joined)])
    some = np.random.default_rng(0).integers(0, rows, 500)
    np.testing.assert_array_equal(order.rows_of(some), whole[some])


def test_an_order_depends_on_seed_epoch_and_rows() -> None:
    base = Order(5000, 1, 1).rows_at(0, 100)
    for other in (Order(5000, 2, 1), Order(5000, 1, 2), Order(5001, 1, 1)):
        assert (other.rows_at(0, 100) != base).mean() > 0.9


def test_without_shuffle_the_row_is_the_position() -> None:
    order = Order(ORDER_ROWS_MAX, seed=4, epoch=2, shuffle=False)
    np.testing.assert_array_equal(order.rows_at(10**14, 10**14 + 3), 10**14 + np.arange(3))


def test_input_is_not_changed_and_output_is_fresh() -> None:
    order, positions = Order(100, 1), np.arange(100)
    order.rows_of(positions)[:] = -1
    np.testing.assert_array_equal(positions, np.arange(100))


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 1), (0, 11), (11, 11)])
def test_positions_outside_the_epoch_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="outside an epoch of 10 rows"):
        Order(10).rows_at(*bounds)


@pytest.mark.parametrize("position", [-1, 10])
def test_a_single_position_outside_the_epoch_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="outside an epoch of 10 rows"):
        Order(10).rows_of(np.array([0, position]))


@pytest.mark.parametrize(
    "arguments", [{"rows": -1}, {"rows": 2**48 + 1}, {"rows": 1, "seed": -1}, {"rows": 1, "epoch": 2**64}]
)
def test_bad_arguments_are_named(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{list(arguments)[-1]} of an order must be between"):
        Order(**arguments)


def test_small_datasets_see_all_their_orders_equally_often() -> None:
    """Chi-square of the 120 orders of 5 rows over 3,000 seeds: mean 119, standard deviation 15.4."""
    counts = Counter(tuple(Order(5, seed).rows_at(0, 5).tolist()) for seed in range(3_000))
    assert len(counts) == 120
    assert sum((count - 25) ** 2 / 25 for count in counts.values()) < 119 + 4 * 15.4


@pytest.mark.parametrize("rows", [5000, 60_000, 2**18 + 1])
def test_position_says_nothing_about_the_row(rows: int) -> None:
    """Over 20 epochs: position buckets against row buckets, differences of neighbours, and linear correlations."""
    buckets, epochs = 16, 20
    positions = np.arange(rows)
    table, steps = np.zeros((buckets, buckets)), np.zeros(64)
    with_position, with_neighbour = [], []
    for epoch in range(epochs):
        order = Order(rows, 7, epoch).rows_at(0, rows)
        table += np.histogram2d(positions * buckets // rows, order * buckets // rows, bins=np.arange(buckets + 1))[0]
        steps += np.bincount((order[1:] - order[:-1]) % rows * 64 // rows, minlength=64)
        with_position.append(np.corrcoef(positions, order)[0, 1])
        with_neighbour.append(np.corrcoef(order[1:], order[:-1])[0, 1])
    assert _chi_square_sigmas(table, (buckets - 1) ** 2) < 4
    assert _chi_square_sigmas(steps, 63) < 4
    # Each correlation has standard deviation rows^-0.5, so their mean has that over sqrt(epochs).
    for correlations in (with_position, with_neighbour):
        assert abs(np.mean(correlations)) < 4 / math.sqrt(rows * epochs)


def test_epochs_are_unrelated() -> None:
    """A random permutation has one fixed point against another, on average, with variance 1."""
    rows, pairs = 10_000, 200
    epochs = [Order(rows, 0, epoch).rows_at(0, rows) for epoch in range(pairs + 1)]
    equal = [int((first == second).sum()) for first, second in pairwise(epochs)]
    assert abs(np.mean(equal) - 1) < 4 / math.sqrt(pairs)


def test_the_order_needs_neither_torch_nor_leptonstore() -> None:
    code = (
        "import sys; from loaders import Order; Order(9).rows_at(0, 9); "
        "print([name for name in ('torch', 'leptonstore') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def _chi_square_sigmas(table: np.ndarray, freedom: int) -> float:
    """How many standard deviations the chi-square of a table against uniform cells lies above its mean."""
    expected = table.sum() / table.size
    return float((((table - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))
