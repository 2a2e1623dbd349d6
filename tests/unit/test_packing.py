"""Packing of documents: what every pack keeps to, against the simplest thing that says the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.packing import BLOCK_ROWS, Long, Packs, lay_out, pack_block, pack_documents, pieces_of

LENGTHS = st.lists(st.integers(0, 40), max_size=60).map(lambda items: np.array(items, np.int64))


def packs_of(packs: Packs) -> list[list[tuple[int, int]]]:
    """[start, end) of the pieces of each pack."""
    pieces = list(zip(packs.starts.tolist(), (packs.starts + packs.lengths).tolist(), strict=True))
    bounds = packs.offsets.tolist()
    return [pieces[start:end] for start, end in pairwise(bounds)]


@given(LENGTHS, st.integers(1, 24), st.sampled_from(["split", "truncate"]), st.integers(0, 1000))
def test_packs_hold_every_document_and_no_pack_more_than_its_length(
    lengths: np.ndarray, length: int, long: Long, first: int
) -> None:
    packs = packs_of(pack_block(lengths, first, length, long))
    wanted = []
    at = first
    for size in lengths.tolist():
        kept = size if long == "split" else min(size, length)
        wanted += [(start, min(start + length, at + kept)) for start in range(at, at + kept, length)]
        at += size
    assert sorted(piece for pack in packs for piece in pack) == wanted  # so nothing that fits is cut
    fills = [sum(end - start for start, end in pack) for pack in packs]
    assert all(0 < fill <= length for fill in fills)
    # Best fit opens a pack only for what fits into no other: no two of them could be one.
    assert len(fills) < 2 or sum(sorted(fills)[:2]) > length
    assert all(pack == sorted(pack) for pack in packs) and packs == sorted(packs)


def test_a_block_keeps_its_packs_when_documents_are_appended() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, BLOCK_ROWS + 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    long, short = (pack_documents(offsets[: rows + 1], 128, "split") for rows in (len(lengths), BLOCK_ROWS + 9))
    whole = len(pack_block(lengths[:BLOCK_ROWS], 0, 128, "split"))
    assert packs_of(long)[:whole] == packs_of(short)[:whole]
    assert packs_of(long)[whole - 1][-1][1] <= offsets[BLOCK_ROWS] <= packs_of(long)[whole][0][0]
    assert long.tokens == offsets[-1]
    assert len(pack_documents(np.zeros(1, np.int64), 128, "split")) == 0


def test_packs_are_pinned() -> None:
    """Another answer for the same lengths is another order of training: it needs another VERSION."""
    packs = pack_block(np.array([3, 9, 4, 0, 12, 5, 1, 2, 7, 6]), 100, 10, "split")
    assert packs_of(packs) == [
        [(100, 103), (136, 143)],
        [(103, 112)],
        [(112, 116), (143, 149)],
        [(116, 126)],
        [(126, 128), (128, 133), (133, 134), (134, 136)],
    ]


def test_little_is_wasted_on_documents_like_those_of_web_text() -> None:
    lengths = np.maximum(np.random.default_rng(1).lognormal(np.log(500), 1.0, 3 * BLOCK_ROWS), 1).astype(np.int64)
    packs = pack_documents(np.concatenate([[0], np.cumsum(lengths)]), 2049, "split")
    assert packs.waste(2049) < 0.002


@given(LENGTHS.filter(lambda lengths: lengths.sum() > 0), st.integers(1, 24), st.data())
def test_rows_of_packs_are_their_documents_and_then_fill(lengths: np.ndarray, length: int, data: st.DataObject) -> None:
    packs = pack_block(lengths, 0, length, "split")
    values = np.arange(1, lengths.sum() + 1, dtype=np.uint16)
    rows = np.array(data.draw(st.lists(st.integers(0, len(packs) - 1), max_size=8)), np.int64)
    numbers, counts = pieces_of(packs, rows)
    laid = lay_out(values, packs.starts[numbers], packs.lengths[numbers], counts, length, fill=9999)
    for at, row in enumerate(rows.tolist()):
        tokens: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        for number, (start, end) in enumerate(packs_of(packs)[row], 1):
            tokens += values[start:end].tolist()
            segments += [number] * (end - start)
            positions += range(end - start)
        filling = length - len(tokens)
        assert laid.tokens[at].tolist() == tokens + [9999] * filling
        assert laid.segment_ids[at].tolist() == segments + [0] * filling
        assert laid.position_ids[at].tolist() == positions + [0] * filling
    assert laid.tokens.dtype == np.uint16 and laid.tokens.shape == (len(rows), length)


@pytest.mark.parametrize("row", [-9, 5])
def test_a_pack_that_is_not_there_is_refused(row: int) -> None:
    packs = pack_block(np.array([3, 3, 3]), 0, 3, "split")
    with pytest.raises(IndexError):
        pieces_of(packs, np.array([row]))
