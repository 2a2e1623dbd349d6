"""The sample policy: what becomes of a sample that cannot be read, decoded or transformed.

    raise        the error comes at its batch, with a note that names the sample (and `error.sample`, a SampleName)
    skip         the row stays in its batch with weight zero: its tensors are zeros, its list entries those of the first valid row,
                 and the batch's column `_valid` (bool, one for each row) is False there
    substitute   another row stands in its place, drawn by a key of (seed, epoch, position, attempt) from the rows of the same epoch

A policy is for samples: damaged or missing bytes, and errors of transforms. What concerns every sample (a tier that is away, a
column that has no tensor, no memory, a batch transform that raises) is raised under every policy; and so is too much of it
(`FaultCount`): a loader that skips everything trains on nothing and says nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from loaders.order import EpochOrder, Rows, sub_seed
from loaders.source import ChunkMissing, Damaged, MissingExtra, Source
from loaders.step import Step

Policy: TypeAlias = Literal["raise", "skip", "substitute"]
POLICIES = ("raise", "skip", "substitute")
# Called in the thread that iterates, for each fault of a batch that is handed out, in the order of positions:
# (position, row, column, action, reason); action is "skip" or "substitute:<row that was taken>".
OnFault: TypeAlias = Callable[[int, int, str, str, str], None]

SUBSTITUTE_CONTEXT = "lepton.substitute.v1"
SUBSTITUTES_MAX = 8  # rows that are tried in a row's place: with one in ten damaged, all fail once in 10^8
FAULTS_FREE = 32  # of a pass, before their share is looked at: a small dataset may have a handful of bad samples
FAULT_SHARE_MAX = 0.25  # of the rows handed out in a pass: above it something is wrong with more than samples
REASON_CHARS_MAX = 400  # of an error's text, in receipts and notes


class SampleName(NamedTuple):
    """Which sample: the dataset, its version, the row in it, the column ("" for all), the position in the epoch."""

    dataset: str
    commit: str
    row: int
    column: str
    epoch: int
    position: int

    def __str__(self) -> str:
        column = f" column {self.column!r}" if self.column else ""
        return (
            f"dataset {self.dataset!r} commit {self.commit[:12]} row {self.row}{column} "
            f"(position {self.position} of epoch {self.epoch})"
        )


class Fault(NamedTuple):
    """One sample that was not made. `place`: of it in the step's share."""

    place: int
    position: int
    row: int
    column: str
    action: str
    reason: str


class TooManyFaults(RuntimeError):
    """More samples of a pass fail than a policy for samples is for."""


def step_named(source: Source, step: Step) -> str:
    """A step with rows, for messages: where it begins."""
    return f"rows {int(step.rows[0])} … of dataset {source.name!r} (position {step.start})"


def name_of(source: Source, step: Step, index: int, column: str) -> SampleName:
    """The name of a step's sample."""
    row, position = int(step.rows[index]), step.start + index
    return SampleName(source.name, source.commit, row, column, step.epoch, position)


def named(error: BaseException, sample: SampleName) -> BaseException:
    """The same error, with a note that names the sample and the field `sample`."""
    if not hasattr(error, "sample"):
        error.add_note(f"at {sample}")
        with contextlib.suppress(AttributeError):  # of a class with slots
            error.sample = sample  # type: ignore[attr-defined]
    return error


def reason_of(error: BaseException) -> str:
    """One line for a receipt: the type and the text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS_MAX]


def is_of_a_stored_sample(error: BaseException) -> bool:
    """Whether reading failed because of what is stored for some rows, and may succeed for others."""
    return isinstance(error, Damaged | ChunkMissing)


def is_of_a_transform(error: BaseException) -> bool:
    """Whether an error of a transform may be the sample's fault."""
    return isinstance(error, Exception) and not isinstance(error, MemoryError | MissingExtra)


def substitute_row(order: EpochOrder, source: Source, seed: int, step: Step, index: int, attempt: int) -> int:
    """The row that is tried in the place of a step's sample. A pure function of its position; of the same epoch's rows.

    A source that is made of several (a mixture) has `peers(row) -> (start, stop)`, the rows of the source that a row is
    of: the substitute is one of those.
    """
    row = int(step.rows[index])
    peers: Callable[[int], tuple[int, int]] | None = getattr(source, "peers", None)
    low, high = (0, source.rows) if peers is None else peers(row)
    for draw in range(_DRAWS_MAX):
        word = sub_seed(SUBSTITUTE_CONTEXT, seed, step.epoch, step.start + index, attempt, draw)
        found = int(order.rows_of(_one(word % order.length))[0])
        if found != row and low <= found < high:
            return found
    return row


_DRAWS_MAX = 1024  # to meet a source with one row in a hundred of an epoch: all of them fail once in 29,000 times


def _one(position: int) -> Rows:
    import numpy as np

    return np.array([position], np.int64)


class FaultCount:
    """The faults of a pass, counted as its batches are handed out."""

    def __init__(self) -> None:
        self.rows = self.faults = 0

    def add(self, rows: int, faults: list[Fault], on_fault: OnFault | None) -> None:
        """A batch is handed out. Raises TooManyFaults."""
        self.rows += rows
        self.faults += len(faults)
        if on_fault is not None:
            for fault in faults:
                on_fault(fault.position, fault.row, fault.column, fault.action, fault.reason)
        if faults and self.faults > FAULTS_FREE and self.faults > FAULT_SHARE_MAX * self.rows:
            last = faults[-1]
            raise TooManyFaults(
                f"{self.faults} of {self.rows} samples of this pass cannot be made, the last at row {last.row} column "
                f"{last.column!r}: {last.reason}; a policy is for single samples: look for the cause, or read without that column"
            )
