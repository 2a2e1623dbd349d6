"""The ledger of a loader that runs: each batch that is handed out moves the chain on; a receipt is made of it at any moment.

    Ledger    of one loader: chain, segments and notes since it was made or restored
    Entries   of one pass: which batch is handed out next, and which rows all ranks together take at that step

What moves the chain is handing a batch out, not making it: batches that were made ahead and dropped are in no receipt, nor are their
notes. What is hashed of this rank's share are the very rows that its batch was made of. The shares of other ranks are computed from the
order, so every rank has the same chain without a word between them; a rank that handed out something else is found by `merged`.

What was handed out is counted a few steps at a time, in arrears, and whenever somebody looks: between two training steps each look into
code and data that the step has driven out of the processor's caches costs more than the work itself (10 to 20 us instead of 3).

Cost: about 3 us a step on one rank. With W ranks each computes the rows of all, some 20 ns for each of the others' rows under a full
shuffle: with 256 rows a rank 40 us a step at 8 ranks, 1.3 ms at 256.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loaders.chain import EMPTY, key_of, next_head
from loaders.order import EpochOrder
from loaders.receipt import MARK_DIGITS, MARKS_MAX, NOTES_MAX, REASON_CHARS_MAX, Note, Origin, Receipt, Segment
from loaders.share import Share, row_windows, steps_of
from loaders.skips import Skip, without
from loaders.step import Step

ARREARS_MAX = 16  # steps that are counted at a time: of 256 rows they are 32 KiB


@dataclass(eq=False)
class _Growing:
    """A segment that may go on. `marks`: (steps, head), one every `stride` steps."""

    origin: Origin
    epoch: int
    length: int
    global_batch: int
    start: int
    stop: int
    steps: int = 0
    stride: int = 1
    marks: list[tuple[int, bytes]] = field(default_factory=list)

    def ended(self, head: bytes) -> Segment:
        marks = tuple((steps, mark.hex()[:MARK_DIGITS]) for steps, mark in self.marks)
        return Segment(
            self.origin, self.epoch, self.length, self.start, self.stop, self.global_batch, self.steps, head, marks
        )


class Ledger:
    """The receipt of one loader as it grows. Used by the thread that takes the batches. Pickles."""

    def __init__(self, head: bytes = EMPTY, steps: int = 0) -> None:
        """head, steps: the chain of a state to go on from."""
        self._head, self._steps = head, steps
        self._base = head, steps
        self._handed_out: deque[tuple[Entries, Step]] = deque()  # and not counted yet
        self._ended: list[Segment] = []
        self._growing: _Growing | None = None
        self._notes: list[Note] = []
        self._notes_left_out = 0

    @property
    def head(self) -> bytes:
        """Of the chain, with all that was handed out."""
        self._settle()
        return self._head

    @property
    def steps(self) -> int:
        """Batches that were handed out."""
        self._settle()
        return self._steps

    def receipt(self, skips: Sequence[Skip] = ()) -> Receipt:
        """Of the steps so far. skips: what the loader leaves out."""
        self._settle()
        last = [] if self._growing is None else [self._growing.ended(self._head)]
        return Receipt(
            segments=(*self._ended, *last),
            base_head=self._base[0],
            base_steps=self._base[1],
            skips=tuple(skips),
            notes=tuple(sorted(self._notes)),
            notes_left_out=self._notes_left_out,
        )

    def enter(
        self, origin: Origin, epoch: int, order: EpochOrder, share: Share, gaps: Sequence[tuple[int, int]] = ()
    ) -> Entries:
        """A pass begins that leaves out the steps in `gaps`."""
        return Entries(self, origin, epoch, order, share, gaps)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return self.__dict__

    def _settle(self) -> None:
        """Count what was handed out. Ended anywhere (Ctrl-C), a step that is not counted yet is counted the next time."""
        while self._handed_out:
            entries, step = self._handed_out[0]
            self._add(entries, entries.whole(step))

    # -- called by Entries ---------------------------------------------------------------------------------------------

    def hand_out(self, entries: Entries, step: Step) -> None:
        """The batch of this step goes to the caller."""
        self._handed_out.append((entries, step))
        if len(self._handed_out) >= ARREARS_MAX:
            self._settle()

    # ------------------------------------------------------------------------------------------------------------------

    def _add(self, entries: Entries, step: Step) -> None:
        """The first step that waits. All that takes time comes first."""
        head = next_head(self._head, entries.key, step.start, step.rows)
        stop = step.start + len(step.rows)
        growing = self._growing
        if growing is None or growing is not entries.growing or growing.stop != step.start:
            share = entries.share
            new = _Growing(entries.origin, step.epoch, share.length, share.global_batch, step.start, step.start)
            if growing is not None:
                self._ended.append(growing.ended(self._head))
            growing = self._growing = entries.growing = new
        self._handed_out.popleft()
        self._head = head
        self._steps += 1
        growing.stop = stop
        growing.steps += 1
        if growing.steps % growing.stride == 0:
            growing.marks.append((growing.steps, head))
            if len(growing.marks) > MARKS_MAX:
                growing.marks = growing.marks[1::2]
                growing.stride *= 2
        self._keep(entries.notes_until(stop))

    def _keep(self, notes: list[Note]) -> None:
        room = max(NOTES_MAX - len(self._notes), 0)
        self._notes += notes[:room]
        self._notes_left_out += len(notes[room:])


class Entries:
    """The steps of one pass, as they are taken to be made into batches and, later, handed out."""

    def __init__(
        self,
        ledger: Ledger,
        origin: Origin,
        epoch: int,
        order: EpochOrder,
        share: Share,
        gaps: Sequence[tuple[int, int]],
    ) -> None:
        self.origin, self.epoch, self.share = origin, epoch, share
        self.key = key_of(epoch, origin.fingerprint)
        self.growing: _Growing | None = None
        self._ledger = ledger
        self._notes: list[Note] = []  # of batches that are not handed out yet: a device feed draws one ahead
        self._taken: deque[Step] = deque()
        self._everyone: Iterator[Step] | None = None
        self._drawn: tuple[Step, Step] | None = None  # a step, and the last one of `_everyone`, which was drawn for it
        if share.world_size > 1:
            whole = replace(share, rank=0, world_size=1)
            self._everyone = without(steps_of(epoch, whole, row_windows(order, whole)), gaps)

    def watch(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps of this rank, in order, of each of which one batch will be handed out, in the same order. Any thread may draw."""
        taken = self._taken.append
        for step in steps:
            taken(step)
            yield step

    def note(self, position: int, row: int, column: str, action: str, reason: str) -> None:
        """A row of a batch that is handed out later is not in it as it stands (see loaders.receipt.Note)."""
        self._notes.append(Note(self.epoch, position, row, column, action, reason[:REASON_CHARS_MAX]))

    def handed_out(self) -> None:
        """The next batch goes to the caller."""
        self._ledger.hand_out(self, self._taken.popleft())

    # -- called by Ledger, of each step in order -------------------------------------------------------------------------

    def whole(self, step: Step) -> Step:
        """What all ranks together took at a step. May be asked again for the same one."""
        if self._everyone is None:
            return step
        if self._drawn is None or self._drawn[0] is not step:
            self._drawn = step, next(self._everyone)
        whole = self._drawn[1]
        first = step.start - whole.start
        whole.rows[first : first + len(step.rows)] = step.rows
        return whole

    def notes_until(self, stop: int) -> list[Note]:
        """The notes of positions before `stop`, which are handed over."""
        if not self._notes:
            return []
        notes = [note for note in self._notes if note.position < stop]
        self._notes = [note for note in self._notes if note.position >= stop]
        return notes
