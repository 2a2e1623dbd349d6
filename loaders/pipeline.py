"""From a step to its batch: read, the programs of the columns sample by sample, then everything that is done once a batch.

    read      the rows' values, of several steps at once where that joins what they miss
    sample    the program of a column over some of a step's samples: any part in any thread
    finish    policy, the programs' batch stage, collate, mask, context slice, as_tuple, transform, pin

A `Recipe` says how; a `Work` is one step on its way. `make` does all of it in the calling thread. Threads (loaders/threads.py) and
worker processes (loaders/workers.py) call the same three functions, so that a batch does not depend on who made it. Hot columns without
any of this never come here: a gatherer and `loaders.stages` and nothing else. Knows no framework: `tensor` makes its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from loaders.batched import column_batched, naming_rows
from loaders.faults import (
    SUBSTITUTES_MAX,
    Fault,
    FaultCount,
    OnFault,
    Policy,
    is_of_a_stored_sample,
    is_of_a_transform,
    name_of,
    named,
    reason_of,
    substitute_row,
)
from loaders.order import BoundOrder, Rows
from loaders.pad import VALID, valid_rows
from loaders.source import ColumnSource, Source, Values
from loaders.stages import Transform
from loaders.stall import StageClock
from loaders.step import Step
from loaders.transforms.base import SampleFailed
from loaders.transforms.keys import SampleKeys
from loaders.transforms.program import Buffer, Program

Collate: TypeAlias = Callable[[list[Any]], Any]
# Told before each sample that a program works on: (place in the step, column).
Tell: TypeAlias = Callable[[int, str], None]


class Made(NamedTuple):
    """A batch, and the samples that are not in it as they should be."""

    batch: Any
    faults: list[Fault]


@dataclass(eq=False)
class Work:
    """One step on its way. `values` are what was read, `outs` the buffers of the programs.

    failed: places of samples that cannot be made -> (column, error). Filled from any thread.
    """

    step: Step
    keys: SampleKeys
    values: dict[str, Values]
    outs: dict[str, Buffer]
    failed: dict[int, tuple[str, Exception]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How the steps of a loader become batches. Immutable; any thread, once the source is filled; pickles when its parts do.

    programs: of the columns that have a chain of transforms.
    collate:  of columns without one (a program does its own): list of values -> what stands in the batch.
    order:    where substitutes come from.
    tensor:   makes what stands in a batch of a numpy array.
    padded:   whether the batch has the column "_valid" for rows of padding (loaders.pad); policy "skip" has it too.
    context:  the slice of a context-parallel rank (loaders.mesh).
    pin:      the last stage; None for none.
    clock:    what the stages take is added to.
    """

    source: Source
    order: BoundOrder
    seed: int
    programs: Mapping[str, Program] = field(default_factory=dict)
    collate: Mapping[str, Collate] = field(default_factory=dict)
    as_tuple: tuple[str, ...] | None = None
    transform: Transform | None = None
    tensor: Transform = np.asarray
    padded: bool = False
    context: Transform | None = None
    pin: Transform | None = None
    policy: Policy = "raise"
    clock: StageClock = field(default_factory=StageClock)

    def prepare(self) -> None:
        """Make ready what every batch needs, once in each process."""
        self.source.fill()

    def seeded_columns(self) -> frozenset[str]:
        """Those with transforms of which nothing is known: they may draw from the global generators."""
        return frozenset(name for name, program in self.programs.items() if not program.threads)

    def make(self, step: Step, tell: Tell | None = None, left_out: dict[int, Exception] | None = None) -> Made:
        """A step's batch, in this thread.

        tell:     called before each sample, and with -1 before what is done once.
        left_out: samples that are not to be made, and why: the policy is not "raise".
        """
        work = self.read([step])[0]
        for place, error in (left_out or {}).items():
            work.failed[place] = "", error
        for name in self.programs:
            self.sample(work, name, 0, len(step.rows), tell)
        if tell is not None:
            tell(-1, "")
        return self.finish(work)

    # -- read ------------------------------------------------------------------------------------------------------

    def read(self, steps: Sequence[Step]) -> list[Work]:
        """What the steps need, each with memory of its own. What they lack in common is read once.

        Under "raise" an error of one of them is raised: the caller asks for each alone to see whose it is.
        """
        try:
            with self.clock.stage("fetch" if self.source.cold else "gather"):
                values = self._joined(steps)
        except Exception as error:
            if self.policy == "raise" or not is_of_a_stored_sample(error):
                if len(steps) == 1 and len(steps[0].rows) == 1:
                    named(error, name_of(self.source, steps[0], 0, ""))
                raise
            if len(steps) > 1:
                return [work for step in steps for work in self.read([step])]
            return [self._salvaged(steps[0], error)]
        return [self._work(step, found) for step, found in zip(steps, values, strict=True)]

    def _work(self, step: Step, values: dict[str, Values]) -> Work:
        count = len(step.rows)
        keys = SampleKeys(self.seed, step.epoch, np.arange(step.start, step.start + count, dtype=np.int64))
        return Work(step, keys, values, {name: program.buffer(count) for name, program in self.programs.items()})

    def _joined(self, steps: Sequence[Step]) -> list[dict[str, Values]]:
        source = self.source
        if len(steps) == 1:
            return [source.gather(steps[0].rows)]
        rows = np.concatenate([step.rows for step in steps])
        if not isinstance(source, ColumnSource):
            return _parts(source.gather(rows), steps)
        cold = _parts(source.read(rows), steps)
        return [
            {
                spec.name: source.arena[spec.name].take(step.rows, 0)
                if spec.name in source.arena
                else values[spec.name]
                for spec in source.columns
            }
            for step, values in zip(steps, cold, strict=True)
        ]

    def _salvaged(self, step: Step, error: Exception) -> Work:
        """A step that cannot be read as a whole: halves of halves, until what fails is single rows."""
        count = len(step.rows)
        values: dict[str, Values] = {
            spec.name: np.zeros((count, *(spec.shape or ())), spec.dtype) if spec.fixed else [None] * count
            for spec in self.source.columns
        }
        work = self._work(step, values)

        def salvage(first: int, stop: int, error: Exception | None) -> None:
            if error is None:
                try:
                    found = self.source.gather(step.rows[first:stop])
                except Exception as failure:
                    if not is_of_a_stored_sample(failure):
                        raise
                    error = failure
                else:
                    for name, part in found.items():
                        values[name][first:stop] = part
                    return
            if stop - first == 1:
                work.failed[first] = _column_of(error), error
                return
            middle = (first + stop) // 2
            salvage(first, middle, None)
            salvage(middle, stop, None)

        salvage(0, count, error)
        return work

    # -- sample ----------------------------------------------------------------------------------------------------

    def sample(self, work: Work, name: str, first: int, stop: int, tell: Tell | None = None) -> None:
        """The program of column `name` over samples [first, stop) of a step, one by one: what hangs or fails has a name."""
        program, values, out = self.programs[name], work.values[name], work.outs[name]
        with self.clock.stage("transform"):
            self._sample(program, values, out, work, name, first, stop, tell)

    def _sample(
        self,
        program: Program,
        values: Values,
        out: Buffer,
        work: Work,
        name: str,
        first: int,
        stop: int,
        tell: Tell | None,
    ) -> None:
        for index in range(first, stop):
            if index in work.failed:
                continue
            if tell is not None:
                tell(index, name)
            try:
                program.sample(values[index : index + 1], work.keys.part(index, index + 1), out, index)
            except Exception as failure:
                error = _cause(failure)
                if self.policy == "raise" or not is_of_a_transform(error):
                    raise named(error, name_of(self.source, work.step, index, name)) from error.__cause__
                work.failed[index] = name, error

    # -- finish ----------------------------------------------------------------------------------------------------

    def finish(self, work: Work) -> Made:
        """What is done once for a step whose samples all stand in `work.outs`."""
        faults = self._settle(work) if work.failed else []
        batch: Any = {}
        since = perf_counter()
        for spec in self.source.columns:
            batch[spec.name] = self._column(spec.name, work)
        if self.policy == "skip" or self.padded:
            valid = valid_rows(work.step)
            if self.policy == "skip":
                valid[list(work.failed)] = False
            batch[VALID] = self.tensor(valid)
        if self.context is not None:
            batch = self.context(batch)
        if self.as_tuple is not None:
            batch = tuple([batch[name] for name in self.as_tuple])
        since = self.clock.lap("collate", since)
        if self.transform is not None:
            batch = self.transform(batch)
            since = self.clock.lap("transform", since)
        if self.pin is not None:
            batch = self.pin(batch)
            self.clock.lap("pin", since)
        return Made(batch, faults)

    def _column(self, name: str, work: Work) -> Any:
        values, program, collate = work.values[name], self.programs.get(name), self.collate.get(name)
        with naming_rows(self.source.name, work.step.rows, name):
            if program is not None:
                made = program.batch(work.outs[name], work.keys)
                return self.tensor(made) if isinstance(made, np.ndarray) else made
            if collate is not None:
                return collate(list(values))
        return column_batched(values, self.tensor, self.source.name, work.step.rows, name)

    def _settle(self, work: Work) -> list[Fault]:
        """Do what the policy says with the samples that failed; in the order of positions."""
        faults = []
        for index, (column, error) in sorted(work.failed.items()):
            if self.policy == "skip":
                self._blank(work, index)
                action = "skip"
            else:
                action = f"substitute:{self._substitute(work, index, error)}"
            if index >= len(work.step.rows) - work.step.padding:
                continue  # a row of padding stands for nothing: nothing was lost
            position, row = work.step.start + index, int(work.step.rows[index])
            faults.append(Fault(index, position, row, column, action, reason_of(error)))
        return faults

    def _blank(self, work: Work, index: int) -> None:
        valid = next((at for at in range(len(work.step.rows)) if at not in work.failed), None)
        for column in (*work.values.values(), *work.outs.values()):
            if not isinstance(column, list):
                column[index] = 0
            else:
                column[index] = None if valid is None else column[valid]

    def _substitute(self, work: Work, index: int, error: Exception) -> int:
        order = self.order.epoch(self.seed, work.step.epoch)
        keys = work.keys.part(index, index + 1)
        for attempt in range(SUBSTITUTES_MAX):
            row = substitute_row(order, self.source, self.seed, work.step, index, attempt)
            try:
                found = self.source.gather(np.array([row], np.int64))
                for name, program in self.programs.items():
                    program.sample(found[name], keys, work.outs[name], index)
            except Exception as failure:
                cause = _cause(failure)
                if not (is_of_a_stored_sample(cause) or (cause is not failure and is_of_a_transform(cause))):
                    raise
                continue
            for name, values in found.items():
                work.values[name][index] = values[0]
            return row
        sample = name_of(self.source, work.step, index, work.failed[index][0])
        raise named(error, sample) from RuntimeError(f"and none of {SUBSTITUTES_MAX} substitutes can be made either")


def made_here(recipe: Recipe, steps: Iterator[Step], on_fault: OnFault | None) -> Iterator[Any]:
    """The batches of `steps`, each made when it is asked for, by the thread that asks: tracebacks and pdb as usual."""
    counted = FaultCount()
    for step in steps:
        batch, faults = recipe.make(step)
        counted.add(len(step.rows), faults, on_fault)
        yield batch


def _parts(joined: dict[str, Values], steps: Sequence[Step]) -> list[dict[str, Values]]:
    """The values of each step. Arrays are copied: a view would keep the memory of all of them, and be saved with all of it."""
    parts, first = [], 0
    for step in steps:
        stop = first + len(step.rows)
        part = slice(first, stop)
        parts.append(
            {name: values[part] if isinstance(values, list) else values[part].copy() for name, values in joined.items()}
        )
        first = stop
    return parts


def _cause(error: Exception) -> Exception:
    """What a transform raised."""
    return error.__cause__ if isinstance(error, SampleFailed) and isinstance(error.__cause__, Exception) else error


def _column_of(error: Exception) -> str:
    """The column that a store's error names, "" when it names none."""
    where = str(getattr(error, "where", ""))
    return where.partition("column '")[2].partition("'")[0]


def rows_bytes(values: Mapping[str, Values], rows: Rows) -> float:
    """About how many bytes a row has, from the first values of each column."""
    total = 0.0
    for column in values.values():
        if not isinstance(column, list):
            total += column.nbytes / max(len(rows), 1)
        elif column:
            some = column[:_LOOKED_AT]
            total += sum(_value_bytes(value) for value in some) / len(some)
    return total


def _value_bytes(value: Any) -> int:
    return len(value) if isinstance(value, bytes | str) else getattr(value, "nbytes", _OBJECT_BYTES)


_LOOKED_AT = 16  # values of a variable column
_OBJECT_BYTES = 256  # of a value that is neither text nor bytes nor an array: a guess
