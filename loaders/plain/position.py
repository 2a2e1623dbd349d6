"""Where a loader on torch's path stands: `state_dict`, `load_state_dict` and `iter` of it.

    within a pass     after the batches that were handed out; `break` leaves it there
    between passes    before the first, and after the end of one (StopIteration): where the next would begin

A pass that was given no state, and before which none was asked for, is torch's, bit for bit. Asking for a state between
passes pins where the next pass begins: its shuffle is drawn from the global generators as they stood then, even if
somebody draws from them in between, here and in the process that goes on from the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from loaders.plain import generators
from loaders.plain.passes import Facts, Pass
from loaders.plain.state import PlainState
from loaders.state import LoaderStateError


class Position:
    """Used by the thread that iterates.

    snapshot_every: steps from one state of the workers' datasets to the next; None or 0: only at the start of each pass.
    """

    def __init__(self, snapshot_every: int | None) -> None:
        self._every = snapshot_every or 0
        self._pending: PlainState | None = None  # loaded, and not yet gone on from
        self._going_on: PlainState | None = None  # what `open` goes on from
        self._pass: Pass | None = None  # the newest
        self._ended: dict[str, Any] = {}  # `Pass.sampler_at_end` of the pass before the one that is opened
        self._pinned: dict[str, bytes] = {}  # the global generators where a state between passes was taken

    def iterate(self, loader: Any, iterate: Callable[[], Any]) -> Any:
        """`iterate` is torch's `DataLoader.__iter__`, which calls `open` or begins a pass of the workers that live on.

        Raises LoaderStateError when a loaded state cannot be gone on from.
        """
        state, pinned = self._pending, self._pinned
        self._ended = self._pass.sampler_at_end if self._pass is not None and self._pass.finished else {}
        if state is not None:
            self._ended = state.sampler if state.sampler.get("drain") else {}
            facts = Facts(loader)
            state = self._still_wanted(state, facts)
            if state is not None and state.between and state.base_seed is None:
                facts.indices.renew(state)
                facts.load_dataset(state.dataset)
                pinned, state = state.rng, None
        self._going_on = state
        try:
            if state is None and generators.take(pinned) != pinned:
                with generators.running_from(pinned):
                    iterator = iterate()
                    assert self._pass is not None
                    self._pass.draw_first()
            else:
                iterator = iterate()
        finally:
            self._going_on = None
        self._pending, self._pinned = None, {}
        return iterator

    def open(self, loader: Any) -> Any:
        """A new iterator of torch's, over the rest of a pass when a state was loaded."""
        self._pass = Pass(Facts(loader), self._every, self._going_on, self._ended)
        return self._pass.iterator(loader)

    def state(self, loader: Any) -> dict[str, Any]:
        """JSON-able where the user's states and indices are. Raises LoaderStateError for datapipes."""
        facts = Facts(loader)
        if facts.has_pipes:
            raise LoaderStateError("a loader over a datapipe has no state: make the datapipe an IterableDataset")
        state = self._state(facts)
        if state is None:
            state = self._between(facts)
            self._pinned = state.rng
        return deepcopy(state.to_dict())

    def load(self, loader: Any, state_dict: Mapping[str, Any]) -> None:
        """The next `iter()` goes on from there. An empty one stands for the start of a pass, as in torchdata.

        Raises LoaderStateError, and changes nothing, when the state is of something else.
        """
        facts = Facts(loader)
        state = None if state_dict == {} else PlainState.from_dict(deepcopy(state_dict))
        if state is not None:
            state.source.require_same(facts.source)
            if len(state.streams) not in (0, max(state.workers, 1)):
                raise LoaderStateError(
                    f"the loader state is damaged: it has {len(state.streams)} streams of {state.workers} workers"
                )
            if state.streams and not facts.has_streams:
                raise LoaderStateError(
                    f"the loader state has a state of the dataset, a {state.source.dataset}, and the "
                    f"{facts.source.dataset} here has no load_state_dict"
                )
            if state.streams and state.workers != facts.workers:
                raise LoaderStateError(
                    f"the loader state was taken with num_workers={state.workers} and this loader has {facts.workers}: each "
                    "worker of a stateful or iterable dataset has read a stream of its own; use as many to continue"
                )
            facts.indices.require_generators(state.generators)
            if state.batches and not state.between:
                facts.indices.set_epochs(state.epochs)
            else:
                facts.indices.put_generators(state.generators)
        if facts.persistent:
            loader._iterator = None  # its workers are elsewhere
        self._pending, self._pass, self._pinned = state, None, {}

    def _still_wanted(self, state: PlainState, facts: Facts) -> PlainState | None:
        """None when another epoch was set since the state was loaded: that one begins at its start."""
        within = state.batches and not state.between
        return None if within and state.epochs != facts.indices.epochs else state

    def _state(self, facts: Facts) -> PlainState | None:
        """None between passes."""
        if self._pending is not None:
            return self._pending
        return None if self._pass is None or self._pass.finished else self._pass.state()

    def _between(self, facts: Facts) -> PlainState:
        done = self._pass
        workers_live_on = done is not None and facts.persistent
        drawn = facts.indices.globals_drawn
        if facts.workers and not workers_live_on and generators.TORCH not in drawn:
            drawn = (generators.TORCH, *drawn)  # for the base seed of the workers
        sampler = facts.indices.sampler_state() if done is None else done.sampler_at_end
        return PlainState(
            source=facts.source,
            between=True,
            base_seed=done.base_seed if done is not None and workers_live_on else None,
            rng=generators.take(drawn),
            generators=facts.indices.generator_states(),
            sampler=sampler,
            dataset=facts.dataset_state(),
            workers=facts.workers,
            streams=done.streams_at_end() if done is not None else [],
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy stands where this one stands; iterators do not go with it."""
        pending = self._pending
        if pending is None and self._pass is not None and not self._pass.finished:
            pending = self._pass.state()
        return {
            "_every": self._every,
            "_pending": pending,
            "_going_on": None,
            "_pass": None,
            "_ended": {},
            "_pinned": {},
        }
