"""Mixing as the docstring of `loaders.mixing` says it, one position at a time, in Python's own integers."""

from __future__ import annotations

from functools import cache

BLOCK = 256


def reference_split(count: int, weights: list[int]) -> list[int]:
    """The part of each source in `count` positions."""
    if len(weights) == 1:
        return [count]
    half = 1 << ((len(weights) - 1).bit_length() - 1)
    left, both = sum(weights[:half]), sum(weights)
    part = (count * left + both // 2) // both if both else 0
    return reference_split(part, weights[:half]) + reference_split(count - part, weights[half:])


@cache
def reference_slots(start: int, key: int) -> list[int]:
    word = (start * 0x9E3779B97F4A7C15 + key) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    constants = (word ^ word >> 31).to_bytes(8, "little")
    out = []
    for x in range(BLOCK):
        for turn, shift in enumerate((5, 4, 3, 4)):
            x = (x * (constants[2 * turn] | 1) + constants[2 * turn + 1]) % BLOCK
            x ^= x >> shift
        out.append(x)
    return out


def reference(weights: list[tuple[int, ...]], starts: list[int], key: int, stop: int) -> list[tuple[int, int]]:
    """(source, draw) of the positions below `stop`, one by one."""
    drawn = [0] * len(weights[0])
    out = []
    for position in range(stop):
        at = sum(start <= position for start in starts) - 1
        block, slot = divmod(position - starts[at], BLOCK)
        first = reference_split(block * BLOCK, list(weights[at]))
        last = reference_split((block + 1) * BLOCK, list(weights[at]))
        in_order = [source for source in range(len(drawn)) for _ in range(last[source] - first[source])]
        source = in_order[reference_slots(starts[at] + block * BLOCK, key)[slot]]
        out.append((source, drawn[source]))
        drawn[source] += 1
    return out
