"""How many different values: HyperLogLog (Flajolet, Fusy, Gandouet, Meunier 2007), dense, of hashes of 64 bits.

A register is the greatest rank (place of the first one bit) of the hashes that fall to it, so sketches merge by the maximum, in any
order and number. Standard error 1.04 / sqrt(registers) = 1.6 %, for any number: the estimate is Ertl's (New cardinality estimation
algorithms for HyperLogLog sketches, 2017), which needs no tables of corrections.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.limits import STATISTICS_REGISTERS_LOG2 as BITS

U64 = NDArray[np.uint64]
Registers = NDArray[np.uint8]
REGISTERS = 1 << BITS
RANK_MAX = 53  # of the lower 52 bits, which a float64 holds exactly: its exponent is their logarithm
ERROR = 1.04 / math.sqrt(REGISTERS)
_GOLDEN = np.uint64(
    0x9E3779B97F4A7C15
)  # splitmix64 (Steele, Lea, Flood 2014): a bijection, so different values never have equal hashes
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(values: U64) -> U64:
    """The hash of each 64-bit value."""
    values = values + _GOLDEN
    values ^= values >> np.uint64(30)
    values *= _MIX1
    values ^= values >> np.uint64(27)
    values *= _MIX2
    values ^= values >> np.uint64(31)
    return values


def number_hashes(values: NDArray[Any]) -> U64:
    """Of float64 (0.0 for -0.0), int64 or uint64."""
    return mixed(np.ascontiguousarray(values).view(np.uint64))


def registers_of(hashes: U64) -> Registers:
    """The sketch of some hashes."""
    found = np.zeros(REGISTERS, np.uint8)
    if len(hashes):
        low = (hashes & np.uint64((1 << 52) - 1)).view(np.int64).astype(np.float64)
        # 1 + the number of leading zeros of 52 bits; 0.0 has the exponent field 0, and becomes the greatest rank.
        rank = np.minimum(1023 + 52 - (low.view(np.int64) >> 52), RANK_MAX)
        keys = ((hashes >> np.uint64(52)).astype(np.uint32) << np.uint32(6)) | rank.astype(np.uint32)
        keys.sort()
        found[keys >> np.uint32(6)] = (keys & np.uint32(63)).astype(
            np.uint8
        )  # of equal places the last one stays: the greatest
    return found


def estimate(registers: Registers) -> float:
    """How many different hashes were seen."""
    counts = np.bincount(registers, minlength=RANK_MAX + 1).tolist()
    z = REGISTERS * _tau(1 - counts[RANK_MAX] / REGISTERS)
    for rank in range(RANK_MAX - 1, 0, -1):
        z = 0.5 * (z + counts[rank])
    z += REGISTERS * _sigma(counts[0] / REGISTERS)
    return 0.0 if math.isinf(z) else REGISTERS * REGISTERS / (2 * math.log(2) * z)


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3
