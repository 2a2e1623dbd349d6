"""A pipeline's pass that is killed, driver and all, and run again: the same commit as without, and garbage collection leaves nothing of it.

    python tests/crash/engine_kill.py STORE RUNNER ROW DELAY

Runs a pass over dataset `texts` and publishes what it wrote as `made`. ROW: kills itself (kill -9) DELAY seconds after this row went
through the step, on whatever worker that was; -1: does not. Prints the commit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from engine_steps import Sieve

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import parse_hex
from leptonstore.format.commit import Commit
from leptonstore.process.engine import Runner, write_rows
from leptonstore.process.engine.pieces import Piece
from leptonstore.store import Store

TASK_ROWS = 2_000


@dataclass(frozen=True)
class DriverDies(Sieve):
    """A Sieve at whose row `row` the process `driver` is killed."""

    driver: int = 0
    row: int = -1
    delay_s: float = 0.0

    def __call__(self, piece: Piece, store: Store) -> Piece:
        if self.row in piece.rows:
            threading.Timer(self.delay_s, os.kill, (self.driver, signal.SIGKILL)).start()
        return super().__call__(piece, store)


def make(url: str, runner: Runner, row: int, delay_s: float) -> str:
    """The commit (hex)."""
    limits.ENGINE_TASK_ROWS = TASK_ROWS
    with Store.open(url) as store:
        ds = Dataset.open(store, "texts")
        step = DriverDies(ds.schema, by=3, driver=os.getpid(), row=row, delay_s=delay_s)
        tree = write_rows(ds, step, ("id",), runner).tree
        if row >= 0:
            signal.pause()  # the blow comes before the commit, however quick this was
        parents = (parse_hex(ds.commit),)
        commit = Commit("dataset", ds.schema, ("id",), tree.root, tree.rows, tree.plain_bytes, parents)
        return publish_commit(store, commit, "dataset/made/main", None)


if __name__ == "__main__":
    place, kind, row, delay = sys.argv[1:]
    print(make(place, Runner(kind, workers=2 if kind == "ray" else None), int(row), float(delay)))
