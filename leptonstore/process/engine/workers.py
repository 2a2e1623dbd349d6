"""Which store a worker uses: the caller's own object where it runs in the caller's process, else one that the worker opens and keeps.

A worker keeps its store for as long as it lives: what it flushed stays claimed (store/leases.py) until the next run begins, when the one
before is published or given up. At its beginning it looks at the log, so that it counts on nothing that garbage collection condemned
before the caller opened its store (as ranks of a checkpoint do).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from leptonstore.dataset import Dataset
from leptonstore.process.engine.ended import end
from leptonstore.process.engine.pieces import Step
from leptonstore.store import Store
from leptonstore.store.keys import SecretSource

_guard = threading.Lock()
_lent: dict[str, Caller] = {}  # by run: callers in this process
_opened: dict[str, Opened] = {}  # by URL
_steps: dict[str, Step] = {}  # by run: of the one that this worker is at


@dataclass
class Caller:
    """What a run is to the process that began it."""

    store: Store
    step: Step
    progress: Callable[[int], None]
    failure: Exception | None = None  # the first
    rows: int = 0  # that are done
    given: list[Any] = field(default_factory=list)  # results that need not travel

    def take(self) -> list[Any]:
        """The results that were given since the last call."""
        taken, self.given = self.given, []
        return taken


@dataclass
class Opened:
    """A store of a worker's own. run: that used it last. told: the packs claimed for it of which the caller was told."""

    run: str
    store: Store
    told: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Lent:
    """Names a run, its store and its step to workers. Pickles: it carries no secret, only where it can be read, and the step once for all
    tasks (what table operations decided of all rows is part of it): shared() gives it on a worker.
    """

    run: str
    url: str
    secret_source: SecretSource | None
    shared: Callable[[], Step] | None = None

    @property
    def here(self) -> bool:
        """Whether this is the caller's own process."""
        return self.run in _lent

    def store(self) -> Store:
        """The store to read from and to write to. Raises as Store.open does."""
        with _guard:
            if self.run in _lent:
                return _lent[self.run].store
            opened = _opened.get(self.url)
            if opened is None:
                opened = _opened[self.url] = Opened(self.run, Store.open(self.url, unlock=self.secret_source))
            elif opened.run != self.run:
                opened.store.hand_over()
                opened.store.refresh()
                _opened[self.url] = opened = Opened(self.run, opened.store)
            return opened.store

    def step(self) -> Step:
        """The step."""
        caller = _lent.get(self.run)
        if caller is not None:
            return caller.step
        with _guard:
            if self.run not in _steps:
                assert self.shared is not None
                _steps.clear()
                _steps[self.run] = self.shared()
            return _steps[self.run]

    def new_claims(self) -> tuple[str, ...]:
        """On a worker of another process: the packs claimed for this run that this did not give before."""
        with _guard:
            opened = _opened[self.url]
            claimed = opened.store.claimed
            new, opened.told = claimed - opened.told, claimed
            return tuple(sorted(new))

    def dataset(self, ds: Dataset) -> Dataset:
        """`ds`, read through that store."""
        return ds if self.here else Dataset(self.store(), ds.name, ds.ref, ds.commit, ds.selection, ds.cache)

    def fail(self, error: Exception) -> None:
        """Keep an error for the caller, where that is in this process."""
        caller = _lent.get(self.run)
        if caller is not None and caller.failure is None:
            caller.failure = error

    def give(self, result: Any) -> bool:
        """Hand a result to the caller; False where it is in another process."""
        caller = _lent.get(self.run)
        if caller is not None:
            caller.given.append(result)
        return caller is not None

    def done(self, rows: int) -> None:
        """Some rows are done; only what happens in the caller's process is counted here."""
        caller = _lent.get(self.run)
        if caller is not None:
            caller.rows += rows
            caller.progress(caller.rows)


@contextmanager
def lend(store: Store, step: Step, progress: Callable[[int], None]) -> Iterator[tuple[Lent, Caller]]:
    """Inside, a run may use `store` and `step`."""
    run = secrets.token_hex(16)
    caller = _lent[run] = Caller(store, step, progress)
    try:
        yield Lent(run, store.url, store.secret_source), caller
    finally:
        del _lent[run]
        end(run)
