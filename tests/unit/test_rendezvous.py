"""Ranks that are started again find each other, and nothing of those before them."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("torch")

from torch import distributed

from leptonstore.errors import RankLost
from trainers.rendezvous import of_this_start

RANKS = 4


def start(store: distributed.Store, ranks: int = RANKS) -> list[distributed.Store]:
    """What the ranks of one start get, each in a thread."""
    found: list[distributed.Store | None] = [None] * ranks

    def join(rank: int) -> None:
        found[rank] = of_this_start(store, rank, ranks, 30)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for one in found if one is not None]


def test_each_start_has_a_store_of_its_own() -> None:
    shared = distributed.HashStore()
    for number in range(3):
        stores = start(shared)
        assert len(stores) == RANKS
        assert not stores[0].check(["address"])  # nothing of the start before
        stores[1].set("address", str(number))
        assert {store.get("address") for store in stores} == {str(number).encode()}


def test_a_start_with_fewer_ranks_and_stale_words_goes_on() -> None:
    shared = distributed.HashStore()
    shared.set("hello/1", "of a dead process")
    assert len(start(shared)) == RANKS
    assert len(start(shared, ranks=2)) == 2
    assert len(start(shared, ranks=1)) == 1


def test_a_rank_that_does_not_come_is_named() -> None:
    shared = distributed.HashStore()
    shared.set("hello/1", "of a dead process")
    with pytest.raises(RankLost, match="rank 1 has not come"):
        of_this_start(shared, 0, 2, 0.05)
