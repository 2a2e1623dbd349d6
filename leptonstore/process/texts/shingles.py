"""The set of shingles of each text: its runs of `size` words, or of `size` characters, as 32-bit hashes. All numpy, no loop over texts.

    text     "A cat – sat\tDOWN."                         NFKC where it is not ASCII
    words    a | cat | sat | down                          case folded; what stands between words is not compared (characters.py)
    shingles (a cat sat) (cat sat down)                    size = 3; a text of fewer words is one shingle

Characters are taken from the words with one space between them. A word's hash is a polynomial of its characters modulo 2**64, read off a
running sum over the block (so that words of all lengths cost the same); a shingle's is one of its words' mixed hashes, mixed again; its
upper 32 bits are kept. Mixing is MurmurHash3's finaliser. The constants are part of what is kept in memos: changing one raises `version` of
the operations on top.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.process.texts.characters import ALONE, IGNORED, SEPARATOR, WORD, folded, kinds
from leptonstore.process.texts.column import Characters, blocks, characters

Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_BASE_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_NEXT = np.uint64(0xD1342543DE82EF95)
_SPACE = np.uint64(32)  # no character of a word


@dataclass(frozen=True)
class Sets:
    """Of n texts. values: uint32, ascending and each once within a text. offsets: int64, n + 1."""

    values: NDArray[np.uint32]
    offsets: NDArray[np.int64]


def mixed(values: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finaliser (a permutation), in place."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def shingle_sets(array: pa.Array, size: int, unit: str) -> Sets:
    """Of a column of strings. unit: "words" or "characters". Nulls and texts without a word have none.

    Memory: TEXT_BLOCK_BYTES at a time, some 60 bytes for each character of it.
    """
    values, counts = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
    for _, part in blocks(array, limits.TEXT_BLOCK_BYTES):
        found = _of_block(part, size, unit)
        values.append(found.values)
        counts.append(np.diff(found.offsets))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return Sets(np.concatenate(values), offsets)


def word_counts(array: pa.Array) -> NDArray[np.int64]:
    """Words of each text, as they are counted here; nulls have none."""
    counts = [np.zeros(0, np.int64)]
    for _, part in blocks(array, limits.TEXT_BLOCK_BYTES):
        seen = _seen(part)
        begins, _ = _borders(seen)
        counts.append(np.diff(np.searchsorted(begins, seen.text.offsets)))
    return np.concatenate(counts)


def _of_block(array: pa.Array, size: int, unit: str) -> Sets:
    seen = _seen(array)
    hashes, offsets = _words(seen) if unit == "words" else _characters(seen)
    return _shingles(hashes, offsets, size)


@dataclass(frozen=True)
class _Seen:
    """Characters of a block without those that are not seen: their case is folded. kind: of each."""

    text: Characters
    kind: NDArray[np.uint8]


@cache
def _ascii_tables() -> tuple[bytes, bytes]:
    """Folded characters, and kinds, for bytes.translate: several times faster than an index."""
    rest = bytes(128)
    return folded(True).astype(np.uint8).tobytes() + rest, kinds(True).tobytes() + rest


def _seen(array: pa.Array) -> _Seen:
    text = _composed(array)
    if text.codes.dtype == np.uint8:
        plain = text.codes.tobytes()
        codes, kind = (np.frombuffer(plain.translate(table), np.uint8) for table in _ascii_tables())
        return _Seen(Characters(codes, text.offsets), kind)
    kind = kinds()[text.codes]
    shown = kind != IGNORED
    if not shown.all():
        text = Characters(text.codes[shown], np.concatenate([np.zeros(1, np.int64), np.cumsum(text.count(shown))]))
        kind = kind[shown]
    return _Seen(Characters(folded()[text.codes], text.offsets), kind)


def _composed(array: pa.Array) -> Characters:
    text = characters(array)
    if text.codes.dtype == np.uint8:
        return text
    # Without compatibility forms: "ﬁ" is "fi", full-width letters are letters, e + accent is é.
    every = array.to_pylist()
    plain = [one if one is None else unicodedata.normalize("NFKC", one) for one in every]
    return text if plain == every else characters(pa.array(plain, pa.large_string()))


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse, `count` at least."""
    usual = limits.TEXT_BLOCK_BYTES + 1
    return _usual_powers(usual) if count <= usual else _usual_powers.__wrapped__(count)


@lru_cache(maxsize=1)
def _usual_powers(count: int) -> tuple[Hashes, Hashes]:
    each = np.full((2, count), [[_BASE], [_BASE_INVERSE]], np.uint64)
    each[:, :1] = 1
    powers, inverse = np.multiply.accumulate(each, axis=1)
    return powers, inverse


def _borders(seen: _Seen) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words begin, and where they end (exclusive)."""
    text, kind = seen.text, seen.kind
    joins = kind == WORD
    begins, ends = kind == ALONE, kind == ALONE
    begins[:1] |= joins[:1]
    begins[1:] |= joins[1:] & ~joins[:-1]
    ends[-1:] |= joins[-1:]
    ends[:-1] |= joins[:-1] & ~joins[1:]
    borders = text.offsets[1:-1][(text.offsets[1:-1] > 0) & (text.offsets[1:-1] < len(kind))]
    begins[borders] |= joins[borders]
    ends[borders - 1] |= joins[borders - 1]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _words(seen: _Seen) -> tuple[Hashes, NDArray[np.int64]]:
    """The hash of each word, and where those of each text begin."""
    begins, ends = _borders(seen)
    codes = seen.text.codes
    powers, inverse = _powers(len(codes) + 1)
    running = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=running[1:])
    hashes = (running[ends] - running[begins]) * inverse[begins]
    return mixed(hashes), np.searchsorted(begins, seen.text.offsets)


def _characters(seen: _Seen) -> tuple[Hashes, NDArray[np.int64]]:
    """The hash of each character of words, and of one space between two words."""
    begins, _ = _borders(seen)
    text, kept = seen.text, seen.kind != SEPARATOR
    # The space stands where the separators before a word end, unless that word is the first of its text.
    gaps = begins[(begins > 0) & ~kept[begins - 1]] - 1
    first = np.searchsorted(begins, text.offsets[:-1])
    opening = begins[first[first < len(begins)]]
    gaps = gaps[~np.isin(gaps + 1, opening)]
    codes = text.codes.astype(np.uint64)
    codes[gaps] = _SPACE
    kept[gaps] = True
    counts = text.count(kept)
    return mixed(codes[kept]), np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _shingles(hashes: Hashes, offsets: NDArray[np.int64], size: int) -> Sets:
    """The set of each text's runs of `size` hashes; the run of all of them where they are fewer."""
    counts = np.diff(offsets)
    rows = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    runs = hashes.copy()
    factor = np.uint64(1)
    # Runs that go beyond their text are cut off at its end: all but the first of a text are left out below.
    left = np.repeat(offsets[1:], counts) - np.arange(len(hashes))
    for step in range(1, size):
        factor = np.multiply(factor, _NEXT)
        runs[:-step] += np.where(left[:-step] > step, hashes[step:] * factor, np.uint64(0))
    whole = left >= size
    short = np.flatnonzero((counts > 0) & (counts < size))
    whole[offsets[short]] = True
    keys = mixed(runs[whole])
    keys >>= np.uint64(32)
    keys |= rows[whole] << np.uint64(32)
    keys.sort()
    first = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    keys = keys[first]
    borders = np.searchsorted(keys, np.arange(len(counts) + 1, dtype=np.uint64) << np.uint64(32))
    return Sets((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), borders)
