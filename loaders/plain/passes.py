"""One pass of a loader on torch's path: torch's own iterators, which keep count of what they hand out.

    Pass    which batches were drawn, sent to which worker, and handed out

torch's two iterators are subclassed, under their own names (profiles and errors show them), to report to a Pass. Nothing here
draws from a random generator, fetches, batches or collates: torch does.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch.utils.data import IterDataPipe, MapDataPipe
from torch.utils.data import dataloader as torchs

from loaders.plain.indices import NOTHING_DRAWN, Cursor, Draw, Indices, check_of
from loaders.plain.state import PlainState, Source
from loaders.plain.stateful import is_stateful, load, state_of
from loaders.plain.streams import Carried, DatasetSide

# Index batches of one worker that are kept, and fetched again by a worker that goes on, since a stateful map-style dataset was
# asked for its state: 256,000 indices at batches of 256.
BATCHES_KEPT_MAX = 1_000


class Facts:
    """What a state needs to know of a loader: not the loader itself, whose workers end when nobody holds it."""

    def __init__(self, loader: Any) -> None:
        self.dataset = loader.dataset
        self.indices = Indices(loader._index_sampler, loader.generator)
        self.workers: int = loader.num_workers
        self.persistent: bool = loader.persistent_workers
        self.iterable: bool = loader._dataset_kind == torchs._DatasetKind.Iterable
        self.batched: bool = loader._auto_collation
        self.batch_size: int | None = loader.batch_size
        self.drop_last: bool = loader.drop_last
        self.has_pipes = isinstance(self.dataset, IterDataPipe | MapDataPipe)
        self.stateful = not self.has_pipes and is_stateful(self.dataset)

    @property
    def has_streams(self) -> bool:
        """Whether what was read depends on who read it: every worker has a stream of its own."""
        return not self.has_pipes and (self.iterable or self.stateful)

    @property
    def source(self) -> Source:
        rows = None
        if not self.iterable:
            try:
                rows = len(self.dataset)
            except (TypeError, AttributeError, NotImplementedError):  # it has none, and its sampler knows why
                rows = None
        fingerprint = getattr(self.dataset, "fingerprint", None)
        return Source(
            kind="iterable" if self.iterable else "map",
            dataset=type(self.dataset).__name__,
            rows=rows,
            fingerprint=fingerprint if isinstance(fingerprint, str) else None,
            samplers=self.indices.names,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
        )

    def dataset_state(self) -> Any:
        """Of the dataset in this process; None when it has none."""
        return state_of(self.dataset) if self.stateful else None

    def load_dataset(self, state: Any) -> None:
        """Give it back. Raises LoaderStateError when the dataset takes none."""
        if state is not None:
            load(self.dataset, state)


class Pass:
    """Stands for the loader's index sampler in torch's iterator: `iter()` of it begins a pass (persistent workers: the next).

    state: what to go on from; None for a pass from its start.
    every: steps from one state of the workers' datasets to the next; 0 for the first batch of each pass only.
    ended: `sampler_at_end` of the pass before.
    """

    def __init__(self, facts: Facts, every: int, state: PlainState | None, ended: dict[str, Any]) -> None:
        self.facts = facts
        self._ended = ended
        self.base_seed: int | None = None if state is None else state.base_seed
        self.finished = False
        self._streams: list[dict[str, Any]] = [{} for _ in range(facts.workers)]
        self._prepared: Cursor | None = None
        self._resumed = state
        if state is not None:
            facts.load_dataset(state.dataset)
            self._prepared = facts.indices.reopen(state)
            self._streams = [dict(stream) for stream in state.streams] or self._streams
        self._side = self._make_side(every)
        self._cursor = self._prepared
        self._reset()

    def _make_side(self, every: int) -> DatasetSide | None:
        facts = self.facts
        if not facts.has_streams:
            return None
        own_every = max(1, every // max(facts.workers, 1)) if every else 0
        if not facts.iterable:  # whose index batches since then stand in the state
            own_every = min(own_every or BATCHES_KEPT_MAX, BATCHES_KEPT_MAX)
        return DatasetSide(facts.dataset, facts.iterable, facts.batched, facts.batch_size, own_every, self._streams)

    # -- what torch asks -----------------------------------------------------------------------------------------

    def iterator(self, loader: Any) -> torchs._BaseDataLoaderIter:
        """torch's iterator over the pass."""
        instead: dict[str, Any] = {"_index_sampler": self, "lepton_pass": self}
        if self._prepared is not None:  # its base seed is known: what torch draws for one is not used
            instead["generator"] = torch.Generator()
        side = self._side
        if side is not None:
            side.collate_fn, side.worker_init_fn = loader.collate_fn, loader.worker_init_fn
            if self.facts.iterable:
                instead["dataset"] = side
            if self.facts.workers:
                instead |= {"collate_fn": side.collate, "worker_init_fn": side.begin_worker}
            else:
                side.begin(0)
        kind = _MultiProcessingDataLoaderIter if self.facts.workers else _SingleProcessDataLoaderIter
        iterator = kind(_View(loader, instead))
        iterator._dataset = loader.dataset
        iterator._num_yielded = self._handed.ordinal + 1
        self._prepared = None
        return iterator

    def __iter__(self) -> Cursor:
        if self._prepared is None:
            self._reset()
            self._cursor = self.facts.indices.open()
        assert self._cursor is not None
        return self._cursor

    def __len__(self) -> int:
        return len(self.facts.indices.index_sampler)

    def _reset(self) -> None:
        """A pass begins: the one that a state goes on with, or a new one."""
        state = self._resumed
        self._resumed = None
        if self.finished:
            self._ended = self.sampler_at_end
        self.finished = False
        self._sent: list[deque[Draw]] = [deque() for _ in range(self.facts.workers)]
        self._handed = NOTHING_DRAWN
        self._here = -1
        self._check: int | None = None
        self._last_worker = -1
        self.turns = 0
        if state is None:
            self._began_with = self.facts.dataset_state() if self.facts.workers else None
            self._streams = [self._between(stream) for stream in self._streams]
            return
        self._began_with = state.dataset
        if not state.between:
            self._handed = Draw(state.batches - 1, None, state.sampler)
            self._check = state.check
            if state.workers == self.facts.workers:
                self._last_worker = state.last_worker
                self.turns = state.last_worker + 1

    def _between(self, stream: dict[str, Any]) -> dict[str, Any]:
        """What is left of a worker's stream when its pass is over: nothing, unless its dataset lives on with it."""
        if not (self.facts.persistent and self.facts.stateful and stream):
            return {}
        return {**stream, "drain": True} if self.facts.iterable else stream

    # -- what torch's iterators report -------------------------------------------------------------------------

    def sent(self, worker: int) -> None:
        """The newest draw went to a worker."""
        assert self._cursor is not None
        self._sent[worker].append(self._cursor.last)

    def received(self, worker: int) -> Draw:
        """A worker answered: each does so in the order in which it was sent to."""
        return self._sent[worker].popleft()

    def handed_out(self, draw: Draw, worker: int, batch: Any) -> Any:
        """A worker's answer is handed out. Returns the batch in it."""
        if self._side is not None:
            stream = self._streams[worker]
            if isinstance(batch, Carried):
                self._streams[worker], batch = batch.state, batch.batch
            else:
                stream["batches"] = stream.get("batches", 0) + 1
                if not self.facts.iterable:
                    stream.setdefault("indices", []).append(draw.index)
        self._last_worker = worker
        self._move(draw)
        return batch

    def end(self) -> None:
        """The last batch was handed out; what a stream holds (files, connections) is let go."""
        self.finished = True
        if self._side is not None:
            self._side.stream = None

    def draw_first(self) -> None:
        """Draw the pass's first index now, if torch has not: the generators stand here where they should."""
        assert self._cursor is not None
        self._cursor.peek()

    def handed_out_here(self) -> None:
        """The newest draw's batch is handed out, in a loader without workers."""
        cursor = self._cursor
        assert cursor is not None
        self._here = cursor.ordinal
        if cursor.asks:
            self._move(cursor.last)

    def _move(self, draw: Draw) -> None:
        if self.facts.iterable:  # draws of workers that have come to their end are never answered
            self._handed = Draw(self._handed.ordinal + 1, None)
        elif draw.ordinal > self._handed.ordinal:
            self._handed = draw

    @property
    def _newest(self) -> Draw:
        """The draw of the newest batch that was handed out."""
        cursor = self._cursor
        assert cursor is not None
        if self.facts.workers or self._here < 0 or cursor.asks:
            return self._handed
        return cursor.last if self._here == cursor.ordinal else Draw(self._here, None)  # the newest draw's batch failed

    # -- state -------------------------------------------------------------------------------------------------

    def state(self) -> PlainState:
        """Within the pass."""
        facts, cursor, handed = self.facts, self._cursor, self._newest
        assert cursor is not None and self.base_seed is not None
        check = check_of(handed.index) if handed.index is not None else self._check if handed is self._handed else None
        return PlainState(
            source=facts.source,
            between=False,
            batches=handed.ordinal + 1,
            late=[] if facts.iterable else cursor.late + self._late(),
            check=None if facts.iterable or facts.indices.of_ranks else check,
            base_seed=self.base_seed,
            rng=cursor.rng,
            generators=cursor.generators,
            epochs=facts.indices.epochs,
            sampler=self._sampler_of(handed) if handed.ordinal >= 0 else self._ended or cursor.first,
            dataset=self._began_with,
            workers=facts.workers,
            streams=self._streams_now(),
            last_worker=self._last_worker,
        )

    def _sampler_of(self, draw: Draw) -> dict[str, Any]:
        """What brings a sampler with a state of its own to where it stood after a draw; empty for any other sampler.

        Many samplers come to their end while they give the last index batch, and what they say then means, when loaded, "go on
        from the end". So they are loaded as they were before the draw, and draw again; before the first draw of a pass they
        are still at the end of the pass before, and come there once more.
        """
        if draw.index is None or not draw.after:  # as it was loaded, or a sampler without a state
            return draw.before
        if draw.ordinal:
            return {**draw.before, "redraw": True}
        return {**self._ended, "redraw": True} if self._ended else draw.after

    @property
    def sampler_at_end(self) -> dict[str, Any]:
        """What brings it to the end of this pass."""
        newest = self._newest
        state = dict(newest.before if newest.ordinal == 0 and not self._ended else self._sampler_of(newest))
        state.pop("redraw", None)
        return {**state, "drain": state.get("drain", 0) + 1} if state else {}

    def streams_at_end(self) -> list[dict[str, Any]]:
        """Of workers that live on."""
        streams = [self._between(stream) for stream in self._streams]
        return streams if any(streams) else []

    def _late(self) -> list[Any]:
        """Index batches that a worker has still at hand although later ones were handed out."""
        sent = [draw for draws in self._sent for draw in draws if draw.ordinal < self._handed.ordinal]
        return [draw.index for draw in sorted(sent, key=lambda draw: draw.ordinal)]

    def _streams_now(self) -> list[dict[str, Any]]:
        facts, side = self.facts, self._side
        if side is None:
            return []
        if facts.workers:
            return [{"batches": 0, **stream} for stream in self._streams]
        if not facts.iterable:
            return [{"batches": 0, "dataset": facts.dataset_state()}]
        assert side.stream is not None
        return [side.stream.state() if side.stream.stateful else {"batches": self._newest.ordinal + 1}]


class _View:
    """A loader as torch's iterator sees it, with some attributes of it replaced."""

    def __init__(self, loader: Any, instead: dict[str, Any]) -> None:
        self.__dict__.update(instead)
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Reporting(torchs._BaseDataLoaderIter):
    """What the two have in common: the base seed of a pass that goes on, and its end."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._pass: Pass = loader.lepton_pass
        if self._pass.base_seed is None:
            self._pass.base_seed = self._base_seed
        self._base_seed = self._pass.base_seed

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            self._pass.end()
            raise


class _SingleProcessDataLoaderIter(torchs._SingleProcessDataLoaderIter, _Reporting):
    def _next_data(self) -> Any:
        batch = super()._next_data()
        self._pass.handed_out_here()
        return batch


class _MultiProcessingDataLoaderIter(torchs._MultiProcessingDataLoaderIter, _Reporting):
    def _try_put_index(self) -> None:
        for _ in range(self._pass.turns):  # the worker whose turn it is, is the one after the last that had one
            next(self._worker_queue_idx_cycle)
        self._pass.turns = 0
        index = self._send_idx
        super()._try_put_index()
        if self._send_idx > index:
            self._pass.sent(self._task_info[index][0])

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        draw = self._pass.received(worker_idx)
        try:
            batch = super()._process_data(data, worker_idx)
        except Exception as error:
            # torch raises a worker's error from a frame that holds it: a cycle, which keeps this iterator and its workers
            # until the garbage collector comes, and workers that are forked meanwhile inherit them. So without that frame.
            raise error.with_traceback(None)  # noqa: B904 (it is the same error)
        return self._pass.handed_out(draw, worker_idx, batch)
