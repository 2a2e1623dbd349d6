"""How the ranks of one start find each other, apart from those of earlier starts.

torchrun keeps one key-value store for all its restarts, and (up to torch 2.13 at least) nothing in it tells one start from the next: a
rank that is started again may read the address of a process that is dead, and waits for it in vain (pytorch/pytorch#135712).
TORCHELASTIC_RESTART_COUNT does not help, as each machine counts its own restarts. So rank 0 numbers the starts, and tells each rank
that asks with a word of its own:

    rank r     hello/<r> = word                     here/<number>/<r> = ""    then both go on below start-<number>/
    rank 0     number = starts + 1      start/<r>/<word> = number

A stale hello gets an answer that nobody reads; rank 0 goes on when every rank is here.
"""

from __future__ import annotations

import os
import secrets
import time

from torch import distributed

from leptonstore.errors import RankLost

PREFIX = "lepton"
POLL_S = 0.01


def agents_store(timeout_s: float) -> distributed.Store | None:
    """The part of torchrun's store that is for this start alone; None where the ranks are started by something else.

    Collective. Raises RankLost when ranks do not come within `timeout_s`.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(host, port, is_master=False)
    return of_this_start(distributed.PrefixStore(PREFIX, store), rank, ranks, timeout_s)


def of_this_start(store: distributed.Store, rank: int, ranks: int, timeout_s: float) -> distributed.Store:
    """The part of `store` for the ranks that call this now, as in the module's docstring. Errors as `agents_store`."""
    if rank == 0:
        number = store.add("starts", 1)
        _answer(store, number, ranks, time.monotonic() + timeout_s)
    else:
        word = secrets.token_hex(8)
        store.set(f"hello/{rank}", word)
        number = int(store.get(f"start/{rank}/{word}"))
        store.set(f"here/{number}/{rank}", "")
    return distributed.PrefixStore(f"start-{number}", store)


def _answer(store: distributed.Store, number: int, ranks: int, deadline: float) -> None:
    answered: dict[int, bytes] = {}
    missing = set(range(1, ranks))
    while missing:
        for rank in sorted(missing):
            if store.check([f"hello/{rank}"]):
                word = store.get(f"hello/{rank}")
                if answered.get(rank) != word:
                    store.set(f"start/{rank}/{word.decode()}", str(number))
                    answered[rank] = word
            if store.check([f"here/{number}/{rank}"]):
                missing.discard(rank)
        if time.monotonic() > deadline:
            raise RankLost(
                f"rank 0 ends, because rank {min(missing)} has not come: see what it said, and start all again"
            )
        time.sleep(POLL_S)
