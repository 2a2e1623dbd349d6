"""Blocks of an evaluation: at any number of ranks the same blocks, each once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.tasks.blocks import BLOCK_BYTES, BLOCK_ROWS_MAX, RankBlocks, block_rows


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 6))
def test_ranks_share_out_whole_blocks(rows: int, block: int, size: int) -> None:
    found: list[list[int]] = []
    for rank in range(size):
        order = RankBlocks(block, rank, size).bind(SimpleNamespace(rows=rows)).epoch(0, 0)
        batches = [order.rows_at(at, min(at + block, order.length)).tolist() for at in range(0, order.length, block)]
        # The first row of each batch is what blocks_of counts.
        assert [batch[0] for batch in batches] == [(rank + n * size) * block for n in range(len(batches))]
        found += batches
    expected = [list(range(at, min(at + block, rows))) for at in range(0, rows, block)]
    assert sorted(found) == expected


def test_a_block_is_bounded_in_rows_and_bytes() -> None:
    assert block_rows(1) == BLOCK_ROWS_MAX
    assert block_rows(10 * BLOCK_BYTES) == 1
    assert block_rows(4 * 224 * 224 * 3) * 4 * 224 * 224 * 3 <= BLOCK_BYTES
    assert np.all([block_rows(n) >= 1 for n in range(0, 1 << 20, 9999)])
