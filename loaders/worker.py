"""What a worker process of a loader does: whole batches of the steps that it is given, one after another.

    parent -- task (64 bytes: which slab has the rows) --> worker -- answer (40 bytes: where the batch stands in the slab) --> parent

It ends when its parent closes the socket or dies. SIGINT is its parent's business. `get_worker_info()` answers as in torch's workers, and
the global generators of random, numpy and torch are seeded: for each sample before its plain functions run, and for each batch before
collate and transform, from the position and not from the worker, so that it does not matter who makes a batch.
"""

from __future__ import annotations

import functools
import os
import pickle
import random
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from loaders.pipeline import Made, Tell
from loaders.slab import AT_COLUMN, AT_PLACE, AT_SINCE, CANCELLED, REQUEST_AT, Slab, pack
from loaders.source import Source
from loaders.stall import StageClock
from loaders.step import Step
from loaders.transforms.keys import GLOBAL_INDEX, SampleKeys

TASK = struct.Struct("<qqqqqqqq")  # number, slab, its size, epoch, start, rows, those of padding, samples to leave out
# Number (-1: it is ready, or why it is not, in `length` bytes that follow), kind, size of the slab, place and length of the tree.
ANSWER = struct.Struct("<qqqqq")
READY, MADE, FAILED, DROPPED = range(4)
_PARENT_POLL_S = 5.0  # a parent that is gone is noticed by its socket; this is for descriptors that others inherited
# Stand for the transform index where a worker is seeded once for each batch, and when it starts; GLOBAL_INDEX: for each sample.
_BATCH_INDEX, _WORKER_INDEX = GLOBAL_INDEX - 1, GLOBAL_INDEX - 2

HANGS, DIES = 1, 2  # why a sample is left out
REASONS = {HANGS: "took longer than the loader's timeout", DIES: "ended its worker process again and again"}


class Maker(Protocol):
    """What a worker runs: a Recipe, or the rows and the collate_fn of a loader."""

    @property
    def source(self) -> Source:
        """What is read; names samples, too."""
        ...

    @property
    def seed(self) -> int:
        """Of the order and of all randomness."""
        ...

    @property
    def clock(self) -> StageClock:
        """What its stages take."""
        ...

    def prepare(self) -> None:
        """Once in each worker."""
        ...

    def seeded_columns(self) -> frozenset[str]:
        """Columns whose samples may draw from the global generators."""
        ...

    def make(self, step: Step, tell: Tell | None = None, left_out: dict[int, Exception] | None = None) -> Made:
        """A step's batch."""
        ...


class SampleLeftOut(RuntimeError):
    """A sample that hangs, or that ends its worker process."""


class WorkerFailed(RuntimeError):
    """A worker process raised something that does not pass between processes, or ended where it should not."""


@dataclass(frozen=True)
class Work:
    """What a worker is started with; passes to it by fork or by pickle."""

    maker: Maker
    number: int
    workers: int
    init: Callable[[int], None] | None
    dataset: Any


class _Task(NamedTuple):
    number: int
    slab: int
    size: int
    epoch: int
    start: int
    rows: int
    padding: int
    left_out: int


def main(work: Work, channel: socket.socket, slabs: list[Slab], before: Callable[[], None] | None) -> None:
    """The life of a worker. `before`: closes, in a forked child, what belongs to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler that a parent has for itself
    if before is not None:
        before()
    torch.set_num_threads(1)
    parent = os.getppid()
    try:
        _introduce(work)
        work.maker.prepare()
        hello = ANSWER.pack(-1, READY, 0, 0, 0)
    except Exception as error:  # its slabs are its parent's, until it is given a task
        text = _portable(error, work.number)
        hello = ANSWER.pack(-1, FAILED, 0, 0, len(text)) + text
    try:
        channel.sendall(hello)
        while True:
            found = _received(channel, parent)
            if found is None:
                return
            task = _Task(*TASK.unpack(found))
            channel.sendall(ANSWER.pack(task.number, *_answered(work, task, slabs[task.slab])))
    except (BrokenPipeError, ConnectionResetError):  # the parent is gone
        return


def _introduce(work: Work) -> None:
    """torch's get_worker_info(), first seeds, and the user's function."""
    from torch.utils.data._utils import worker as torchs

    seed = sample_seeds(_word(work.maker.seed, 0, _WORKER_INDEX), work.number, 1)[0]
    seed_globals(seed)
    torchs._worker_info = torchs.WorkerInfo(id=work.number, num_workers=work.workers, seed=seed, dataset=work.dataset)
    if work.init is not None:
        work.init(work.number)


def seed_globals(seed: int) -> None:
    """The generators of random, numpy and torch, from 64 bits. 10 us, most of them Python's.

    All three are Mersenne twisters: numpy's is given the low word and torch's the high one (of more it takes 32 bits too), as the
    same word would make the same stream. A list of both words would take numpy 30 us, and be the stream of `random`.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed >> 32)


def sample_seeds(word: int, first: int, count: int) -> list[int]:
    """64 bits for each of `count` positions from `first` on: SplitMix64's output function (Steele et al. 2014) of word + position x golden
    ratio. `word` is that of the epoch. For all samples of a step at once: a generator for each would take 10 us.
    """
    states = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(word)
    states = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: list[int] = (states ^ (states >> np.uint64(31))).tolist()
    return found


@functools.lru_cache(maxsize=8)
def _word(seed: int, epoch: int, index: int) -> int:
    """64 bits of (seed, epoch), for one kind of use."""
    return int(SampleKeys(seed, epoch, np.zeros(1, np.int64)).rng(0, index).bit_generator.random_raw())


def _received(channel: socket.socket, parent: int) -> bytes | None:
    """The next task; None when there will be none."""
    found = b""
    waiting = select.poll()  # select() knows no descriptors beyond 1,023, and whoever forked us may have had more
    waiting.register(channel, select.POLLIN)
    while len(found) < TASK.size:
        while not waiting.poll(_PARENT_POLL_S * 1_000):
            if os.getppid() != parent:
                return None
        more = channel.recv(TASK.size - len(found))
        if not more:
            return None
        found += more
    return found


def _answered(work: Work, task: _Task, slab: Slab) -> tuple[int, int, int, int]:
    """(kind, size of the slab, place, length)."""
    slab.remap(task.size)
    words = slab.words
    first = REQUEST_AT + 8 * task.rows + 16 * task.left_out
    if words[CANCELLED]:
        return DROPPED, slab.size, first, 0
    request = slab.bytes[REQUEST_AT:first].view(np.int64).copy()
    step = Step(task.epoch, task.start, request[: task.rows], task.padding)
    pairs = request[task.rows :].reshape(-1, 2).tolist()
    left_out: dict[int, Exception] = {place: SampleLeftOut(REASONS[why]) for place, why in pairs}
    maker = work.maker
    columns = [spec.name for spec in maker.source.columns]
    seeded = maker.seeded_columns()
    # The batch's own seed is that of the position of its first sample, with another word.
    of_samples, of_batches = (_word(maker.seed, step.epoch, index) for index in (GLOBAL_INDEX, _BATCH_INDEX))
    seeds = sample_seeds(of_samples, step.start, task.rows) if seeded else []

    def tell(place: int, column: str) -> None:
        words[AT_SINCE] = monotonic_ns()
        words[AT_COLUMN] = columns.index(column) if column else -1
        words[AT_PLACE] = place
        if place < 0:
            seed_globals(sample_seeds(of_batches, step.start, 1)[0])
        elif column in seeded:
            seed_globals(seeds[place])

    before = maker.clock.seconds
    try:
        made = maker.make(step, tell, left_out)
        seconds = {stage: total - before.get(stage, 0.0) for stage, total in maker.clock.seconds.items()}
        return MADE, *_written((made.batch, [tuple(fault) for fault in made.faults], seconds), slab, first)
    except Exception as error:
        return FAILED, *_written(_portable(error, work.number), slab, first)
    finally:
        slab.words[AT_PLACE] = -1


def _written(value: Any, slab: Slab, first: int) -> tuple[int, int, int]:
    place, length = pack(value, slab, first)
    return slab.size, place, length


def _portable(error: Exception, number: int) -> bytes:
    """The error with its traceback as a note, as bytes: by pickle, as between any two processes of one program."""
    lines = "".join(traceback.format_exception(error)).rstrip()
    error.add_note(f"in DataLoader worker process {number} (pid {os.getpid()}):\n{lines}")
    try:
        found = pickle.dumps((error, getattr(error, "sample", None), error.__notes__))
        pickle.loads(found)  # noqa: S301  # whether it can be made again: it was made here
    except Exception:
        failed = WorkerFailed(f"{type(error).__name__}: {error}")
        return pickle.dumps((failed, None, error.__notes__))
    return found


def restored(portable: bytes) -> Exception:
    """The error that a worker sent."""
    error, sample, notes = pickle.loads(portable)  # noqa: S301  # of our own worker, through memory that only it can reach
    made: Exception = error
    made.__notes__ = notes
    if sample is not None:
        made.sample = sample  # type: ignore[attr-defined]
    return made
