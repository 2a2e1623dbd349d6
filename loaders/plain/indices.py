"""Which indices a pass draws, and how a pass goes on from its middle without fetching anything.

    Indices    stands for a loader's index sampler: `iter()` begins a pass, as torch's iterators do it
    Cursor     one pass; each index batch comes with its place (`Draw`)

Indices and draws from random generators are torch's, in torch's order. A sampler with a state of its own (or an iterator with
one) is asked for it at each draw and given it back (`Pass` knows which). Any other sampler is iterated anew, from the states in
which the generators stood when the pass began, and what was drawn before is drawn again and dropped.

A sampler's own iterator is within reach when the sampler is the index sampler, or stands in a plain torch BatchSampler:
then the batches are made here, as BatchSampler makes them.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import _InfiniteConstantSampler

from loaders.plain import generators
from loaders.plain.state import PlainState
from loaders.plain.stateful import is_stateful, load, state_of
from loaders.state import LoaderStateError

# Samplers within samplers that are looked into: more than any framework stacks.
SAMPLERS_DEEP_MAX = 8

_DETERMINISTIC = (SequentialSampler, BatchSampler, DistributedSampler, _InfiniteConstantSampler, list, tuple, range)
_TORCH_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Draw(NamedTuple):
    """An index batch (an index, when batch_size is None). ordinal: its place in the pass; -1 for one that came late.

    before, after: what a sampler with a state of its own said around it; empty for any other.
    """

    ordinal: int
    index: Any
    before: dict[str, Any] = {}  # noqa: RUF012 (nobody writes into it)
    after: dict[str, Any] = {}  # noqa: RUF012


NOTHING_DRAWN = Draw(-1, None)


def check_of(index: Any) -> int:
    """A checksum of an index batch, the same in every process."""
    return zlib.crc32(repr(index).encode())


class Indices:
    """A loader's index sampler, as far as its passes must be repeated.

    globals_drawn: names of the global generators that its samplers may draw from.
    generators:    torch's generators that were given to the loader or its samplers, each once.
    of_ranks:      whether each rank draws others, by its number: a state is then one for all ranks.
    """

    def __init__(self, index_sampler: Any, generator: torch.Generator | None) -> None:
        self.index_sampler = index_sampler
        self.generator = generator
        self.samplers = _samplers_in(index_sampler)
        self.globals_drawn = _globals_drawn(self.samplers)
        given = [generator, *(getattr(sampler, "generator", None) for sampler in self.samplers)]
        own = {id(one): one for one in given if isinstance(one, torch.Generator)}
        self.generators = list(own.values())
        # Lightning saves the state of rank 0 and loads it into all: equal positions, other indices.
        self.of_ranks = any(isinstance(sampler, DistributedSampler) for sampler in self.samplers)
        self.batching = type(index_sampler) is BatchSampler
        self.stated = index_sampler.sampler if self.batching else index_sampler  # the sampler that may have a state

    @property
    def names(self) -> list[str]:
        """Of the samplers' classes, from the outside in."""
        return [type(sampler).__name__ for sampler in self.samplers]

    @property
    def epochs(self) -> list[int]:
        """Of the samplers that are told epochs."""
        return [sampler.epoch for sampler in self._with_epochs()]

    def set_epochs(self, epochs: list[int]) -> None:
        """Tell them. Raises LoaderStateError when there are more or fewer of them."""
        samplers = self._with_epochs()
        if len(samplers) != len(epochs):
            raise LoaderStateError(
                f"the loader state knows of {len(epochs)} samplers with a set_epoch, and this loader has {len(samplers)}"
            )
        for sampler, epoch in zip(samplers, epochs, strict=True):
            sampler.set_epoch(epoch)

    def _with_epochs(self) -> list[Any]:
        return [
            sampler
            for sampler in self.samplers
            if type(getattr(sampler, "epoch", None)) is int and callable(getattr(sampler, "set_epoch", None))
        ]

    def generator_states(self) -> list[bytes]:
        """Where the given generators stand."""
        return [generators.get_state(one) for one in self.generators]

    def require_generators(self, states: list[bytes]) -> None:
        """Raise LoaderStateError when there are more or fewer of them, or torch refuses one."""
        if len(states) != len(self.generators):
            raise LoaderStateError(
                f"the loader state has {len(states)} random generators of the loader and its samplers, and here are "
                f"{len(self.generators)}: make the loader with generators (generator=) as it was made then"
            )
        for generator, state in zip(self.generators, states, strict=True):
            try:
                generators.set_state(torch.Generator(generator.device), state)
            except ValueError as error:
                raise LoaderStateError(f"the loader state is damaged: a random generator's part: {error}") from error

    def put_generators(self, states: list[bytes]) -> None:
        """Set them. Raises LoaderStateError as `require_generators` does, and changes nothing."""
        self.require_generators(states)
        for generator, state in zip(self.generators, states, strict=True):
            generators.set_state(generator, state)

    def sampler_state(self) -> dict[str, Any]:
        """Of the sampler itself, before a pass; empty when it has none."""
        return {"sampler": state_of(self.stated)} if is_stateful(self.stated) else {}

    def open(self) -> Cursor:
        """A pass from its start."""
        began = generators.take(self.globals_drawn), self.generator_states()
        return Cursor(self, self._iterate(), *began)

    def reopen(self, state: PlainState) -> Cursor:
        """The rest of a pass. Global generators are left as they are. Raises LoaderStateError."""
        if (
            state.batches and not state.between
        ):  # one that had not begun takes them as they are: they were set when the state was loaded
            self.put_generators(state.generators)
        with generators.running_from(state.rng):
            self.renew(state)
            if state.between:  # of workers that live on
                cursor = Cursor(self, self._iterate(), state.rng, state.generators)
                cursor.peek()
                return cursor
            drained = bool(state.sampler.get("drain"))
            if not drained:
                self._load_sampler(state)
            iterator = self._iterate()
            if (
                state.workers == 0
            ):  # torch's single-process iterator draws the base seed between `iter` and the first draw
                torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            cursor = Cursor(self, iterator, state.rng, state.generators, state)
            if not drained:
                self._load_iterator(cursor, state)
            if state.sampler.get("redraw"):
                cursor.redraw(state)
            elif not state.sampler:
                cursor.skip(state)
            cursor.peek()
        return cursor

    def renew(self, state: PlainState) -> None:
        """Bring a sampler with a state of its own to where it stands between two passes: it comes to its end once more."""
        ends = state.sampler.get("drain", 0)
        if state.between or ends:
            self._load_sampler(state)
        for passed in range(ends):
            cursor = Cursor(self, self._iterate(), {}, [])
            if not passed:
                self._load_iterator(cursor, state)
            for _ in cursor:
                pass

    def _load_sampler(self, state: PlainState) -> None:
        if "sampler" in state.sampler:
            load(self.stated, state.sampler["sampler"])

    def _load_iterator(self, cursor: Cursor, state: PlainState) -> None:
        if "iterator" in state.sampler:
            cursor.begin()
            load(cursor.stated, state.sampler["iterator"])

    def _iterate(self) -> Iterator[Any]:
        if self.batching and (is_stateful(self.stated) or type(self.stated) not in _DETERMINISTIC + _TORCH_RANDOM):
            return _Batches(self.index_sampler)
        return iter(self.index_sampler)


class Cursor:
    """One pass over the index sampler: an iterator over indices; `last` says where the newest one stands.

    rng, generators: where the global generators and the given ones stood when the pass began.
    first:           what the sampler said of itself then.
    ordinal:         of `last`.
    """

    def __init__(
        self,
        indices: Indices,
        iterator: Iterator[Any],
        rng: dict[str, bytes],
        generators: list[bytes],
        state: PlainState | None = None,
    ) -> None:
        self.rng, self.generators = rng, generators
        self._indices = indices
        self._iterator = iterator
        self.first = self.sampler_state() if state is None or state.between else state.sampler
        self._now = self.first
        self._asks: bool | None = None  # whether the sampler or its iterator has a state; known at the first draw
        self._late: deque[Any] = deque(state.late if state else ())
        self._ahead: deque[Draw] = deque()
        self._drawn = state.batches if state else 0
        self._last: Draw | None = NOTHING_DRAWN
        self._index: Any = None
        self.ordinal = -1

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        if self._asks is False and not self._late and not self._ahead:  # nothing to note but the index and its place
            self._index = index = next(self._iterator)
            self.ordinal = self._drawn
            self._drawn += 1
            self._last = None
            return index
        if self._late:
            self._last = Draw(-1, self._late.popleft())
        else:
            self._last = self._ahead.popleft() if self._ahead else self._draw()
        self.ordinal = self._last.ordinal
        return self._last.index

    @property
    def last(self) -> Draw:
        """The newest draw."""
        return Draw(self.ordinal, self._index) if self._last is None else self._last

    @property
    def late(self) -> list[Any]:
        """Index batches that are still to come before the pass goes on."""
        return list(self._late)

    @property
    def stated(self) -> Any:
        """The sampler's iterator that may have a state; None as long as there is none."""
        return self._iterator.samples if isinstance(self._iterator, _Batches) else self._iterator

    def sampler_state(self) -> dict[str, Any]:
        """Of the sampler and its iterator, as far as they have one."""
        state: dict[str, Any] = {}
        if is_stateful(self._indices.stated):
            state["sampler"] = state_of(self._indices.stated)
        if self.stated is not self._indices.stated and is_stateful(self.stated):
            state["iterator"] = state_of(self.stated)
        return state

    def begin(self) -> None:
        """Have the sampler's iterator made now, and not with the first draw."""
        if isinstance(self._iterator, _Batches):
            self._iterator.begin()

    def peek(self) -> None:
        """Draw the first index now, so that generators drawn from at the first draw are those of now."""
        if not self._drawn and not self._ahead:
            for index in islice(self._iterator, 1):
                self._ahead.append(self._drawn_now(index))

    @property
    def asks(self) -> bool:
        """Whether the sampler or its iterator has a state of its own."""
        return bool(self._asks)

    def redraw(self, state: PlainState) -> None:
        """Draw once what a sampler with a state of its own gave last. Raises LoaderStateError as `skip` does."""
        self._drop(state, 1)
        self._asks, self._now = True, self.sampler_state()

    def skip(self, state: PlainState) -> None:
        """Draw what was drawn before. Raises LoaderStateError when it is found to be something else."""
        self._drop(state, state.batches)

    def _drop(self, state: PlainState, batches: int) -> None:
        count, newest = 0, None
        for newest in islice(self._iterator, batches):  # noqa: B007 (the last one counts)
            count += 1
        if count < batches or (state.check is not None and check_of(newest) != state.check):
            raise LoaderStateError(
                f"the samplers ({', '.join(self._indices.names)}) do not give again the order in which "
                f"{state.batches} batches came before: seed them as then, give the loader a generator, or give the sampler "
                "state_dict and load_state_dict"
            )

    def _draw(self) -> Draw:
        return self._drawn_now(next(self._iterator))

    def _drawn_now(self, index: Any) -> Draw:
        if self._asks is None:
            self._asks = is_stateful(self._indices.stated) or is_stateful(self.stated)
        before, self._now = self._now, self.sampler_state() if self._asks else {}
        self._drawn += 1
        return Draw(self._drawn - 1, index, before, self._now)


class _Batches:
    """torch's BatchSampler, over an iterator that can be asked for its state."""

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler = sampler
        self.samples: Iterator[Any] | None = None

    def __iter__(self) -> _Batches:
        return self

    def begin(self) -> None:
        if self.samples is None:
            self.samples = iter(self._sampler.sampler)

    def __next__(self) -> list[Any]:
        self.begin()
        assert self.samples is not None
        batch = [*islice(self.samples, self._sampler.batch_size)]
        if not batch or (self._sampler.drop_last and len(batch) < self._sampler.batch_size):
            raise StopIteration
        return batch


def _samplers_in(index_sampler: Any) -> list[Any]:
    found: list[Any] = []
    sampler = index_sampler
    while sampler is not None and len(found) < SAMPLERS_DEEP_MAX and all(sampler is not one for one in found):
        found.append(sampler)
        within = getattr(sampler, "sampler", None)
        sampler = getattr(sampler, "batch_sampler", None) if within is None else within
    return found


def _globals_drawn(samplers: list[Any]) -> tuple[str, ...]:
    drawn: tuple[str, ...] = ()
    for sampler in samplers:
        if type(sampler) in _TORCH_RANDOM:
            drawn = drawn or (() if sampler.generator is not None else (generators.TORCH,))
        elif type(sampler) not in _DETERMINISTIC:
            drawn = generators.ALL
    return drawn
