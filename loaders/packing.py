"""Packing: documents of tokens into packs of at most `length`, by best fit, and what a batch of packs looks like. Pure arrays.

    pack_block   lengths of the documents of one block -> Packs            a pure function; a block knows nothing of the others
    lay_out      some packs of it -> where each token comes from and goes to, its document and its position in it

A document that is longer than `length` is cut into pieces (the last is shorter), or only its first piece is taken. Pieces are placed in
the order of their length, longest first, each into the fullest pack that has room (best fit decreasing: at most 11/9 of the fewest packs
possible, plus 6/9; Dósa 2007). No document is cut that fits into a pack: fewer truncations than concatenating and cutting, at nearly the
same waste (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

Which packs there are is decided block by block: BLOCK_ROWS documents that stand next to each other in the dataset. So the packs are a
function of (commit, length), documents appended at the end leave all whole blocks' packs as they were, and what one pack needs stands
close together. The price is what the last packs of a block waste: with documents as long as those of web text (lognormal, mean 800 tokens)
and length 2,049 it is 0.03 % of the places.

This module imports numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Longs: TypeAlias = npt.NDArray[np.int64]
Long: TypeAlias = Literal["split", "truncate"]

VERSION = "lepton.packs.1"  # of the packs that this code makes; nothing of it may change without a new word
# Documents that are packed together. More of them waste less (their last packs are fewer), and are read from further apart.
BLOCK_ROWS = 1 << 13


@dataclass(frozen=True, eq=False)
class Packs:
    """starts, lengths: of the pieces, in tokens of the concatenated documents; int64, pack after pack.
    offsets:         pack i has pieces [offsets[i], offsets[i + 1]); int64.
    """

    starts: Longs
    lengths: Longs
    offsets: Longs

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """In all packs, without what fills them up."""
        return int(self.lengths.sum())

    def waste(self, length: int) -> float:
        """The share of places in packs of `length` in which no token stands."""
        return 1 - self.tokens / (len(self) * length) if len(self) else 0.0


def pack_block(lengths: Longs, first: int, length: int, long: Long) -> Packs:
    """The packs of documents of the given lengths, the first of which begins at token `first` of the concatenation.

    Deterministic, whatever the platform. Empty documents are in no pack. Pieces of a pack stand in the order of the documents, and packs
    in the order of their first pieces. Time: about 1 us a piece.
    """
    starts, sizes = _pieces(lengths, first, length, long)
    by_size = np.argsort(-sizes, kind="stable")
    homes = np.empty(len(sizes), np.int64)
    homes[by_size] = _best_fit(sizes[by_size].tolist(), length)
    # Number the packs by their first piece: `homes` was numbered by when a pack was opened.
    _, first_piece, numbers = np.unique(homes, return_index=True, return_inverse=True)
    rank = np.empty(len(first_piece), np.int64)
    rank[np.argsort(first_piece)] = np.arange(len(first_piece))
    homes = rank[numbers]
    order = np.argsort(homes, kind="stable")
    offsets = np.zeros(len(first_piece) + 1, np.int64)
    np.cumsum(np.bincount(homes, minlength=len(first_piece)), out=offsets[1:])
    return Packs(starts[order], sizes[order], offsets)


def pack_documents(offsets: Longs, length: int, long: Long) -> Packs:
    """The packs of all blocks: document i has tokens [offsets[i], offsets[i + 1]) of the concatenation."""
    blocks = [
        pack_block(np.diff(offsets[at : at + BLOCK_ROWS + 1]), int(offsets[at]), length, long)
        for at in range(0, len(offsets) - 1, BLOCK_ROWS)
    ]
    if not blocks:
        return Packs(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(1, np.int64))
    pieces = np.cumsum([0, *(len(block.starts) for block in blocks)])
    shifted = [block.offsets[1:] + before for block, before in zip(blocks, pieces, strict=False)]
    return Packs(
        np.concatenate([block.starts for block in blocks]),
        np.concatenate([block.lengths for block in blocks]),
        np.concatenate([np.zeros(1, np.int64), *shifted]),
    )


def _pieces(lengths: Longs, first: int, length: int, long: Long) -> tuple[Longs, Longs]:
    """(starts, sizes) of the pieces of documents, in their order."""
    begins = np.cumsum(lengths) - lengths + first
    if long == "truncate":
        there = lengths > 0
        return begins[there], np.minimum(lengths[there], length)
    counts = -(-lengths // length)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + number * length
    return starts, np.minimum(np.repeat(begins + lengths, counts) - starts, length)


def _best_fit(sizes: list[int], length: int) -> list[int]:
    """The pack of each piece; pieces come longest first. Of packs that are equally full, the one that became so last."""
    room: list[list[int]] = [[] for _ in range(length + 1)]  # packs by what is free in them
    free = 0  # bit r is set where room[r] is not empty: the least r >= size is one shift and one bit away
    homes, opened = [], 0
    for size in sizes:
        fitting = free >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            packs = room[left]
            home = packs.pop()
            if not packs:
                free ^= 1 << left
        else:
            left, home, opened = length, opened, opened + 1
        left -= size
        if left:
            if not room[left]:
                free |= 1 << left
            room[left].append(home)
        homes.append(home)
    return homes


def pieces_of(packs: Packs, rows: Longs) -> tuple[Longs, Longs]:
    """(numbers of the pieces of some packs, one pack after the other; how many each has)."""
    first = packs.offsets[rows]
    counts = packs.offsets[rows + 1] - first
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(first - before, counts), counts


class Laid(NamedTuple):
    """Some packs, one a row; all of shape (packs, length).

    tokens:       with `fill` where no token stands.
    segment_ids:  int32, which document of its pack a token belongs to, from 1; 0 where no token stands.
    position_ids: int32, the place of a token in its piece of a document, from 0; 0 where no token stands.
    """

    tokens: npt.NDArray[Any]
    segment_ids: npt.NDArray[np.int32]
    position_ids: npt.NDArray[np.int32]


def lay_out(values: npt.NDArray[Any], starts: Longs, lengths: Longs, counts: Longs, length: int, fill: int) -> Laid:
    """Packs as rows. starts, lengths: of their pieces, in `values`; counts: pieces of each pack.

    Some copies for each piece: 0.2 ms for 64 packs of 2,049 tokens with three documents each. One gather with an index for each
    token took seven times as long.
    """
    shape = len(counts), length
    out = Laid(np.full(shape, fill, values.dtype), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    tokens, segments, positions = (array.reshape(-1) for array in out)
    ramp = np.arange(length, dtype=np.int32)
    ends = np.cumsum(lengths)
    begins = ends - lengths  # of the pieces, were there no filling
    first = np.cumsum(counts) - counts  # piece of each pack, of which there is one at least
    shift = np.repeat(np.arange(len(counts)) * length - begins[first], counts) if len(counts) else begins
    numbers = np.arange(len(starts)) - np.repeat(first, counts) + 1
    places = zip((begins + shift).tolist(), starts.tolist(), lengths.tolist(), numbers.tolist(), strict=True)
    for at, start, size, number in places:
        tokens[at : at + size] = values[start : start + size]
        segments[at : at + size] = number
        positions[at : at + size] = ramp[:size]
    return out
