"""Shares: the ranks' parts of each global batch are the global batch, for every world size."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from loaders.order import Order
from loaders.share import WINDOW_POSITIONS, Share, find_rank, row_windows


def batches_of(order: Order, share: Share) -> list[list[int]]:
    """The rows of each step."""
    return [
        part.tolist()
        for rows, sizes in row_windows(order, share)
        for part in np.split(rows, np.cumsum(sizes)[:-1])
        if sizes
    ]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("rows", "global_batch"), [(1000, 96), (1000, 100), (13, 4), (6, 7), (3, 1), (0, 4), (100, 5)])
def test_shares_make_up_the_global_batch(rows: int, global_batch: int, drop_last: bool, world_size: int) -> None:
    order = Order(rows, seed=1)
    alone = batches_of(order, Share(rows, global_batch, drop_last=drop_last))
    ranks = [batches_of(order, Share(rows, global_batch, rank, world_size, drop_last)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)}  # equal steps
    for step, batch in enumerate(alone):
        assert joined(batches[step] for batches in ranks) == batch
        sizes = [len(batches[step]) for batches in ranks]
        assert max(sizes) - min(sizes) <= 1
    seen = joined(alone)
    kept = rows // global_batch * global_batch if drop_last else rows
    assert seen == order.rows_at(0, kept).tolist()


def test_a_late_start_gives_the_rest() -> None:
    order = Order(1000, seed=2)
    for start in (0, 1, 96, 500, 999, 1000):
        share = Share(1000, 96, start=start)
        rest = batches_of(order, share)
        assert len(rest) == share.steps == -(-(1000 - start) // 96)
        assert joined(rest) == order.rows_at(start, 1000).tolist()


def test_windows_do_not_show() -> None:
    rows = 3 * WINDOW_POSITIONS + 5
    order = Order(rows, seed=3)
    for global_batch in (WINDOW_POSITIONS // 2 + 1, 2 * WINDOW_POSITIONS, 2 * rows):
        for world_size in (1, 3):
            shares = [Share(rows, global_batch, rank, world_size) for rank in range(world_size)]
            steps = zip(*(batches_of(order, share) for share in shares), strict=True)
            assert joined(joined(step) for step in steps) == order.rows_at(0, rows).tolist()


def test_positions_of_a_step() -> None:
    share = Share(length=10, global_batch=4, rank=1, world_size=3)
    assert [share.positions(step) for step in range(share.steps)] == [(1, 2), (5, 6), (8, 9)]
    assert Share(length=10, global_batch=4, rank=0, world_size=3).positions(2) == (8, 8)  # an empty share


def test_given_rank_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_rank() == (1, 4)
    assert find_rank(rank=3) == (3, 4)
    assert find_rank(rank=0, world_size=1) == (0, 1)


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # half a launcher is none
    assert find_rank() == (0, 1)


def test_torch_distributed_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    group = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 2, get_world_size=lambda: 3)
    for name, answer in vars(group).items():
        monkeypatch.setattr(dist, name, answer)
    assert find_rank() == (2, 3)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not in"):
        find_rank(rank, world_size)


def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK='first'"):
        find_rank()
