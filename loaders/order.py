"""The order: a pure function (rows, seed, epoch, position) -> row. Nothing else decides what training sees.

    EpochOrder      the order of one epoch: what a loader reads from. `Order`, the full shuffle, is one
    ByPosition      an EpochOrder by one function of positions: what the orders here and in loaders.orders are
    OrderStrategy   what DataLoader(order=...) takes: makes the order of any epoch (loaders/orders has more of them)
    FullOrder       the two strategies of `shuffle=True` and `shuffle=False`

A shuffled epoch is a keyed permutation of [0, rows) that is evaluated per position: no machine keeps an array of `rows`
indices, any rank computes its own share alone, and a restore is a number, not a replay.

    domain   pairs (hi, lo), row = hi * 2^h + lo, with lo in [0, 2^h), hi in [0, H): h = half of the bits of rows - 1,
             rounded up, H = ceil(rows / 2^h). So the domain is less than 2^h larger than [0, rows).
    network  Feistel rounds in turn, each a bijection whatever F is (Luby & Rackoff 1988, "How to construct pseudorandom
             permutations from pseudorandom functions"):
                 even rounds   hi = (hi + floor(F_k(lo) * H / 2^32)) mod H
                 odd rounds    lo = lo ^ floor(F_k(hi) / 2^(32 - h))
    F_k(x)   y = (x + k) * 0x7feb352d;  y = y ^ (y >> 15);  F = y * 0x846ca68b;  all modulo 2^32
             (the multipliers of C. Wellons' "lowbias32"; only the high bits are used, which depend on all of x)
    k        one word per round of BLAKE3's key derivation: context "lepton.order.v1", material (seed, epoch, rows)
    range    a result >= rows goes through the network again until it is < rows: "cycle walking", which keeps a
             bijection (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). Its chance is below 2^h / rows.

Four rounds are pseudorandom when F is. Ours is a fast mixer and no cipher: six leave a margin (three already pass the
tests of position against row that two fail). Halves of a few bits need more, as in format-preserving ciphers: at five
rows, six rounds make some of the 120 orders nine times as likely as others, 24 rounds make all equally likely. The
order looks random to a learner; it hides nothing.

Why not the textbook domain of 2^(2h)? It is up to four times too large, and walking back from it costs up to 8x: at
65,537 rows 8 million positions/s were measured against 62 million/s here, whatever the number of rows.

Nothing of this may change without a new context string: the golden vectors in tests/unit/test_order.py pin it.
This module imports neither torch nor leptonstore.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from blake3 import blake3

Rows: TypeAlias = npt.NDArray[np.int64]
Windows: TypeAlias = Callable[[int, int], Iterator[tuple[int, int]]]
Words: TypeAlias = npt.NDArray[np.uint32]

CONTEXT = "lepton.order.v1"
ROUNDS = 6
ROUNDS_SMALL = 24
SMALL_ROWS = 1 << 12  # below this many rows an epoch has ROUNDS_SMALL rounds: they cost nothing there
# With h <= 24 and H <= 2^24 every word of a round has 32 bits, the widest that numpy multiplies with SIMD.
ORDER_ROWS_MAX = 1 << 48
# Positions evaluated together: the buffers of a block stay in a core's second-level cache (best of 2^10..2^20 here).
BLOCK_POSITIONS = 1 << 15
SEED_MAX = (1 << 64) - 1

_MULTIPLIER_1 = np.uint32(0x7FEB352D)
_MULTIPLIER_2 = np.uint32(0x846CA68B)


class EpochOrder(Protocol):
    """The order of one epoch: `length` positions, each of which names a row. Immutable; any thread."""

    @property
    def length(self) -> int:
        """Positions of the epoch; 0 <= length <= ORDER_ROWS_MAX. May differ from the rows of the dataset."""
        ...

    def rows_at(self, start: int, stop: int) -> Rows:
        """The rows at positions [start, stop): int64, fresh memory. Raises ValueError unless 0 <= start <= stop <= length."""
        ...

    def rows_of(self, positions: Rows) -> Rows:
        """The rows at the given positions (int64, one dimension), in the order asked. Raises ValueError for one outside."""
        ...


class ByPosition:
    """An EpochOrder by one function of positions, `_evaluate`, which may trust them."""

    unit: ClassVar[str] = "positions"  # what an epoch has `length` of, for messages

    @property
    def length(self) -> int:
        """Positions of the epoch."""
        raise NotImplementedError

    def _evaluate(self, positions: Rows) -> Rows:
        raise NotImplementedError

    @property
    def windows(self) -> Windows | None:
        """A function (start, stop) that gives the windows [first, end) of positions which share what must be read; None without such."""
        return None

    def rows_at(self, start: int, stop: int) -> Rows:
        """The rows at positions [start, stop): int64, fresh memory. Raises ValueError unless 0 <= start <= stop <= length."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"positions {start} to {stop} are outside an epoch of {self.length} {self.unit}")
        return self._evaluate(np.arange(start, stop, dtype=np.int64))

    def rows_of(self, positions: Rows) -> Rows:
        """The rows at the given positions (int64, one dimension), in the order asked. Raises ValueError for one outside."""
        if positions.size and not (positions.min() >= 0 and positions.max() < self.length):
            raise ValueError(f"a position is outside an epoch of {self.length} {self.unit}")
        return self._evaluate(positions)


class BoundOrder(Protocol):
    """A strategy that knows its data."""

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        """The order of one epoch. Pure: the same for the same arguments, in any process. Raises ValueError for a bad seed."""
        ...


class OrderStrategy(Protocol):
    """A way to order a dataset. Immutable; pickles."""

    def bind(self, source: Any) -> BoundOrder:
        """For the rows of a source (loaders.source.Source), whose columns it may read. Raises ValueError when they do not fit."""
        ...

    def spec(self) -> dict[str, Any]:
        """What decides the order beside data, seed and epoch: name, version, parameters. JSON-able, at most a few hundred bytes.

        Stands in states and receipts: two strategies with the same spec give the same order.
        """
        ...


@dataclass(frozen=True)
class FullOrder:
    """All rows, each once: in a keyed permutation, or as they stand."""

    shuffle: bool

    def bind(self, source: Any) -> BoundOrder:
        """For `source.rows` rows."""
        return _FullOrderOf(source.rows, self.shuffle)

    def spec(self) -> dict[str, Any]:
        """Of the algorithm in this module."""
        return {"name": "shuffle", "version": 1} if self.shuffle else {"name": "sequential", "version": 1}


@dataclass(frozen=True)
class _FullOrderOf:
    rows: int
    shuffle: bool

    def epoch(self, seed: int, epoch: int) -> Order:
        return Order(self.rows, seed, epoch, self.shuffle)


@dataclass(frozen=True)
class Order(ByPosition):
    """The order of one epoch over `rows` rows. Immutable; safe from any thread.

    rows:    number of rows of the dataset (or view), 0 <= rows <= 2^48.
    seed:    0 <= seed < 2^64; the same on every rank.
    epoch:   0 <= epoch < 2^64.
    shuffle: False gives row = position, whatever the seed.
    """

    rows: int
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    _keys: tuple[np.uint32, ...] = field(init=False, repr=False, compare=False)

    unit = "rows"

    def __post_init__(self) -> None:
        bounds = (("rows", self.rows, ORDER_ROWS_MAX), ("seed", self.seed, SEED_MAX), ("epoch", self.epoch, SEED_MAX))
        for name, value, top in bounds:
            if not 0 <= value <= top:
                raise ValueError(f"{name} of an order must be between 0 and {top}, not {value}")
        object.__setattr__(self, "_keys", _round_keys(self.seed, self.epoch, self.rows))

    @property
    def length(self) -> int:
        """Every row has one position."""
        return self.rows

    def _evaluate(self, positions: Rows) -> Rows:
        if not self.shuffle or self.rows < 2:
            return positions
        out = self._network(positions)
        outside = np.flatnonzero(out >= self.rows)
        while outside.size:
            walked = self._network(out[outside])
            out[outside] = walked
            outside = outside[walked >= self.rows]
        return out

    def _network(self, values: Rows) -> Rows:
        """One pass of all rounds over the domain, block by block."""
        low_bits = ((self.rows - 1).bit_length() + 1) // 2
        highs = -(-self.rows >> low_bits)
        out = np.empty(values.shape, np.int64)
        for at in range(0, values.size, BLOCK_POSITIONS):
            block = slice(at, at + BLOCK_POSITIONS)
            _permute_block(values[block], out[block], low_bits, highs, self._keys)
        return out


def _permute_block(values: Rows, out: Rows, low_bits: int, highs: int, keys: tuple[np.uint32, ...]) -> None:
    high = (values >> low_bits).astype(np.uint32)
    low = values.astype(np.uint32) & np.uint32((1 << low_bits) - 1)
    mixed, scratch = np.empty_like(low), np.empty_like(low)
    product = np.empty(low.shape, "<u8")
    product_high = product.view("<u4")[1::2]  # floor(product / 2^32) without a pass over memory
    highs_wide, highs_word, shift = np.uint64(highs), np.uint32(highs), np.uint32(32 - low_bits)
    for turn, key in enumerate(keys):
        if turn % 2 == 0:
            _mix(low, key, mixed, scratch)
            np.multiply(mixed, highs_wide, out=product)
            np.add(high, product_high, out=high)
            np.subtract(high, highs_word, out=scratch)  # wraps above 2^31 when high is already below `highs`
            np.minimum(high, scratch, out=high)
        else:
            _mix(high, key, mixed, scratch)
            np.right_shift(mixed, shift, out=mixed)
            np.bitwise_xor(low, mixed, out=low)
    np.copyto(out, high)
    np.left_shift(out, low_bits, out=out)
    np.bitwise_or(out, low, out=out)


def rows_of_many(orders: Sequence[Order], which: Rows, positions: Rows) -> Rows:
    """orders[which[i]].rows_of(positions[i]) for every i, evaluated together: what costs numpy's calls for each of many small orders.

    orders: shuffled ones. which, positions: int64, of one shape; positions are not checked.
    """
    out = positions.copy()
    rows = np.array([order.rows for order in orders], np.int64)
    for rounds in (ROUNDS_SMALL, ROUNDS):
        chosen = (rows >= 2) & ((rows < SMALL_ROWS) == (rounds == ROUNDS_SMALL))
        # Columns of orders that have other rounds stay empty: nobody asks for them below.
        keys = np.zeros((rounds, len(orders)), np.uint32)
        for number in np.flatnonzero(chosen).tolist():
            keys[:, number] = orders[number]._keys
        low_bits = np.array([((order.rows - 1).bit_length() + 1) // 2 for order in orders], np.int64)
        highs = -(-rows >> low_bits)
        left = np.flatnonzero(chosen[which])
        while left.size:
            for at in range(0, left.size, BLOCK_POSITIONS):
                block = left[at : at + BLOCK_POSITIONS]
                of = which[block]
                out[block] = _permute_apart(out[block], low_bits[of], highs[of], keys[:, of])
            left = left[out[left] >= rows[which[left]]]
    return out


def _permute_apart(values: Rows, low_bits: Rows, highs: Rows, keys: Words) -> Rows:
    """`_permute_block` with a domain and keys (rounds, values) for every value."""
    high = (values >> low_bits).astype(np.uint32)
    low = (values & ((1 << low_bits) - 1)).astype(np.uint32)
    mixed, scratch = np.empty_like(low), np.empty_like(low)
    highs_word, shift = highs.astype(np.uint32), (32 - low_bits).astype(np.uint32)
    for turn, key in enumerate(keys):
        if turn % 2 == 0:
            _mix(low, key, mixed, scratch)
            np.add(high, ((mixed.astype(np.uint64) * highs_word) >> np.uint64(32)).astype(np.uint32), out=high)
            np.minimum(high, high - highs_word, out=high)
        else:
            _mix(high, key, mixed, scratch)
            np.bitwise_xor(low, mixed >> shift, out=low)
    return (high.astype(np.int64) << low_bits) | low


def _mix(words: Words, key: np.uint32 | Words, out: Words, scratch: Words) -> None:
    """F of the module's docstring; `out` and `scratch` are buffers of the same shape."""
    np.add(words, key, out=out)
    np.multiply(out, _MULTIPLIER_1, out=out)
    np.right_shift(out, 15, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, _MULTIPLIER_2, out=out)


def sub_seed(context: str, *numbers: int) -> int:
    """A seed of 64 bits that depends on the context and on every number (each 0 <= number < 2^64) and their count."""
    material = struct.pack(f"<{len(numbers)}Q", *numbers)
    return int.from_bytes(blake3(material, derive_key_context=context).digest(length=8), "little")


def _round_keys(seed: int, epoch: int, rows: int) -> tuple[np.uint32, ...]:
    material = struct.pack("<QQQ", seed, epoch, rows)
    rounds = ROUNDS_SMALL if rows < SMALL_ROWS else ROUNDS
    words = blake3(material, derive_key_context=CONTEXT).digest(length=4 * rounds)
    return tuple(np.frombuffer(words, "<u4").astype(np.uint32))
