"""A receipt: what a loader handed out, in a few hundred bytes an epoch, for whoever wants to check it or have a batch again.

    origin    a dataset version (or view, or mixture), a seed and an order: with an epoch, they say which row stands at which position
    segment   global batches of one epoch that followed each other without a gap, and the chain's head (loaders.chain) after the last
    base      the head and number of steps that the first segment follows: a loader that was restored starts there
    note      a row that was not handed out as it stands: left out or replaced because it could not be read
    skips     ranges of positions that were to be left out (loaders.skips)

The chain binds all rows and their order; the segments say how to compute it, and any batch, again (loaders.verify). Chain and segments
are the same on every rank, whatever their number and that of workers. Notes are met by the rank that has the row: `merged` joins
those of all.

As JSON, one segment, note and origin a line:

    {"format": "lepton.receipt", "version": 1, "head": 64 hex digits, "steps": n, "base": {"head": …, "steps": n},
     "origins": [{"dataset", "commit", "fingerprint", "rows", "seed", "order": the order's spec}],
     "segments": [{"origin": index, "epoch", "length": positions of the epoch, "start", "stop": positions, "global_batch", "steps",
                   "head", "marks": [[steps into the segment, first 16 digits of the head there], …]}],
     "skips": [[epoch, start, stop]], "notes": [{"epoch", "position", "row", "column", "action", "reason"}], "notes_left_out": n}

This module imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from loaders.chain import EMPTY, HEAD_BYTES
from loaders.order import ORDER_ROWS_MAX, SEED_MAX
from loaders.skips import Skip, joined
from loaders.source import BadInput, FormatDamaged, FormatTooNew, SourceError, write_file

FORMAT = "lepton.receipt"
VERSION = 1
RECEIPT_BYTES_MAX = 256 << 20  # of a file that is read: a million segments with all their marks
NOTES_MAX = 100_000  # of one loader: beyond them they are only counted. 100 bytes each
REASON_CHARS_MAX = 200
MARKS_MAX = 32  # heads within a segment, so that a difference is found to a 32nd of it
MARK_DIGITS = 16
ACTION = re.compile(r"skip|substitute:\d{1,15}")


@dataclass(frozen=True)
class Origin:
    """What decides the rows of an epoch. `rows`: of the dataset, view or mixture."""

    dataset: str
    commit: str
    fingerprint: str
    rows: int
    seed: int
    order: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """Equal for equal origins; can be hashed."""
        return self.dataset, self.fingerprint, self.rows, self.seed, json.dumps(self.order, sort_keys=True)

    def __str__(self) -> str:
        return f"dataset {self.dataset!r}, commit {self.commit[:12]}"


@dataclass(frozen=True)
class Segment:
    """Steps of one epoch, one after another: `global_batch` positions each, from `start` on; the last ends at `stop`."""

    origin: Origin
    epoch: int
    length: int
    start: int
    stop: int
    global_batch: int
    steps: int
    head: bytes
    marks: tuple[tuple[int, str], ...] = ()

    def positions(self, step: int) -> tuple[int, int]:
        """[start, stop) of a step of the segment, 0 <= step < steps."""
        start = self.start + step * self.global_batch
        return start, min(start + self.global_batch, self.stop)

    @property
    def first_step(self) -> int:
        """The number within its epoch of the first step, as `skip` and `batch_at` count: position / global batch."""
        return self.start // self.global_batch

    def __str__(self) -> str:
        return f"epoch {self.epoch}, steps {self.first_step}-{self.first_step + self.steps - 1} (positions {self.start}-{self.stop})"


@dataclass(frozen=True, order=True)
class Note:
    """A row at a position of an epoch that could not be made ("column": of what), what became of it, and why.

    action: "skip" (the batch has a row of weight zero) or "substitute:<row>", the row that stands in its place.
    """

    epoch: int
    position: int
    row: int
    column: str
    action: str
    reason: str


@dataclass(frozen=True)
class Receipt:
    """See the module's docstring. Immutable; comparable."""

    segments: tuple[Segment, ...] = ()
    base_head: bytes = EMPTY
    base_steps: int = 0
    skips: tuple[Skip, ...] = ()
    notes: tuple[Note, ...] = ()
    notes_left_out: int = 0
    origins: tuple[Origin, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        unique = {segment.origin.key: segment.origin for segment in self.segments}
        object.__setattr__(self, "origins", tuple(unique.values()))

    @property
    def head(self) -> bytes:
        """The chain after the last step."""
        return self.segments[-1].head if self.segments else self.base_head

    @property
    def steps(self) -> int:
        """Global batches in the chain, those of the base too."""
        return self.base_steps + sum(segment.steps for segment in self.segments)

    # -- as JSON ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as above."""
        numbers = {origin.key: number for number, origin in enumerate(self.origins)}
        return {
            "format": FORMAT,
            "version": VERSION,
            "head": self.head.hex(),
            "steps": self.steps,
            "base": {"head": self.base_head.hex(), "steps": self.base_steps},
            "origins": [asdict(origin) for origin in self.origins],
            "segments": [
                {
                    "origin": numbers[segment.origin.key],
                    "epoch": segment.epoch,
                    "length": segment.length,
                    "start": segment.start,
                    "stop": segment.stop,
                    "global_batch": segment.global_batch,
                    "steps": segment.steps,
                    "head": segment.head.hex(),
                    "marks": [list(mark) for mark in segment.marks],
                }
                for segment in self.segments
            ],
            "skips": [list(skip) for skip in self.skips],
            "notes": [asdict(note) for note in self.notes],
            "notes_left_out": self.notes_left_out,
        }

    def to_json(self) -> str:
        """The text of a receipt's file."""
        lines = []
        for name, value in self.to_dict().items():
            if isinstance(value, list) and value:
                told = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
            else:
                told = json.dumps(value, ensure_ascii=False)
            lines.append(f" {json.dumps(name)}: {told}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: str | Path, replace: bool = False) -> None:
        """Write it to a file, whole or not at all. Raises BadInput when there is one, unless it is to be replaced."""
        write_file(Path(path), self.to_json().encode(), replace)

    @classmethod
    def from_dict(cls, told: Any) -> Receipt:
        """The mirror image of `to_dict`. Raises BadInput (not a receipt), FormatTooNew, FormatDamaged."""
        if not isinstance(told, Mapping) or told.get("format") != FORMAT:
            named = told.get("format") if isinstance(told, Mapping) else type(told).__name__
            raise BadInput(f"this is no receipt of a loader: its format is {named!r}, not {FORMAT!r}")
        if told.get("version") != VERSION:
            raise FormatTooNew(
                f"the receipt has version {told.get('version')!r} and this code reads version {VERSION}: "
                "read it with the LeptonStore that wrote it"
            )
        return _parse(told)

    @classmethod
    def load(cls, path: str | Path) -> Receipt:
        """Of a file. Raises SourceError when it cannot be read, and what `from_dict` raises, naming the file."""
        path = Path(path)
        try:
            if path.stat().st_size > RECEIPT_BYTES_MAX:
                raise BadInput(f"{path} is larger than any receipt ({RECEIPT_BYTES_MAX >> 20} MiB)")
            text = path.read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read the receipt {path}: {error.strerror}; check the path", str(path)) from None
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            raise FormatDamaged(
                f"{path}: the receipt is damaged: it is no JSON (cut short?); take another copy"
            ) from None
        try:
            return cls.from_dict(told)
        except (BadInput, FormatDamaged, FormatTooNew) as error:
            raise type(error)(f"{path}: {error}") from None

    # -- more than one ---------------------------------------------------------------------------------------------

    def then(self, later: Receipt) -> Receipt:
        """One receipt of a run and its continuation from the state that was taken with this one. Raises BadInput when it is another's."""
        if (later.base_head, later.base_steps) != (self.head, self.steps):
            raise BadInput(
                f"the later receipt follows step {later.base_steps} with head {later.base_head.hex()[:16]}, and this one ends at "
                f"step {self.steps} with head {self.head.hex()[:16]}: give the receipt that was taken with the state"
            )
        return Receipt(
            segments=_run_together(self.segments, later.segments),
            base_head=self.base_head,
            base_steps=self.base_steps,
            skips=tuple(joined([*self.skips, *later.skips])),
            notes=tuple(sorted({*self.notes, *later.notes})),
            notes_left_out=self.notes_left_out + later.notes_left_out,
        )


def merged(receipts: Sequence[Receipt]) -> Receipt:
    """Of all ranks at one moment, in the order of the ranks: one receipt with the notes of all, by epoch and position.

    Raises BadInput, naming the first rank whose chain is another: it read other rows, or is at another step.
    """
    if not receipts:
        raise BadInput("merged takes the receipts of all ranks, and there is none")
    first = receipts[0]
    for rank, receipt in enumerate(receipts):
        if (receipt.head, receipt.steps, receipt.segments) != (first.head, first.steps, first.segments):
            raise BadInput(
                f"the receipts of ranks 0 and {rank} differ: {first.steps} steps with head {first.head.hex()[:16]}, and "
                f"{receipt.steps} with head {receipt.head.hex()[:16]}: the ranks did not read shares of the same batches"
            )
    notes = sorted({note for receipt in receipts for note in receipt.notes})
    return replace(first, notes=tuple(notes), notes_left_out=sum(receipt.notes_left_out for receipt in receipts))


def notes_of(told: list[Any]) -> tuple[Note, ...]:
    """Notes from JSON. Raises FormatDamaged."""
    return tuple(_note(item) for item in told)


def with_notes(receipt: Receipt, notes: Sequence[Note], left_out: int) -> Receipt:
    """The same steps with other notes."""
    return replace(receipt, notes=tuple(notes), notes_left_out=left_out)


def continues(earlier: Segment, later: Segment) -> bool:
    """Whether the two are one: the later goes on where the earlier ends, in batches of the same size."""
    same = (earlier.origin, earlier.epoch, earlier.length, earlier.global_batch)
    whole = (earlier.stop - earlier.start) % earlier.global_batch == 0
    return (
        whole and earlier.stop == later.start and same == (later.origin, later.epoch, later.length, later.global_batch)
    )


def thinned(marks: Sequence[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """At most MARKS_MAX of them: every second is left out until they fit."""
    kept = list(marks)
    while len(kept) > MARKS_MAX:
        kept = kept[1::2]
    return tuple(kept)


def _run_together(earlier: tuple[Segment, ...], later: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if not earlier or not later or not continues(earlier[-1], later[0]):
        return earlier + later
    last, first = earlier[-1], later[0]
    marks = [*last.marks, (last.steps, last.head.hex()[:MARK_DIGITS])]
    marks += [(last.steps + step, told) for step, told in first.marks]
    one = replace(first, start=last.start, steps=last.steps + first.steps, marks=thinned(marks))
    return (*earlier[:-1], one, *later[1:])


# -- parsing: bounds first, each field named -----------------------------------------------------------------------------


def _parse(told: Mapping[str, Any]) -> Receipt:
    base = _get(told, "base", dict)
    origins = [_origin(item) for item in _list(told, "origins")]
    segments = tuple(_segment(item, origins) for item in _list(told, "segments"))
    receipt = Receipt(
        segments=segments,
        base_head=_head(base, "head"),
        base_steps=_number(base, "steps", 0, SEED_MAX),
        skips=tuple(_skip(item) for item in _list(told, "skips")),
        notes=tuple(_note(item) for item in _list(told, "notes")),
        notes_left_out=_number(told, "notes_left_out", 0, SEED_MAX),
    )
    if receipt.steps != _number(told, "steps", 0, SEED_MAX):
        raise _damaged(f"its segments have {receipt.steps} steps together, not {told['steps']}")
    if receipt.head != _head(told, "head"):
        raise _damaged("its head is not that of its last segment")
    return receipt


def _origin(told: Any) -> Origin:
    try:
        json.dumps(told)
    except RecursionError:
        raise _damaged("the spec of an order is nested too deeply") from None
    return Origin(
        dataset=_get(told, "dataset", str),
        commit=_get(told, "commit", str),
        fingerprint=_get(told, "fingerprint", str),
        rows=_number(told, "rows", 0, ORDER_ROWS_MAX),
        seed=_number(told, "seed", 0, SEED_MAX),
        order=_get(told, "order", dict),
    )


def _segment(told: Any, origins: Sequence[Origin]) -> Segment:
    if not origins:
        raise _damaged("it has segments and no origins")
    length = _number(told, "length", 1, ORDER_ROWS_MAX)
    start = _number(told, "start", 0, length - 1)
    stop = _number(told, "stop", start + 1, length)
    global_batch = _number(told, "global_batch", 1, ORDER_ROWS_MAX)
    steps = -(-(stop - start) // global_batch)
    return Segment(
        origin=origins[_number(told, "origin", 0, len(origins) - 1)],
        epoch=_number(told, "epoch", 0, SEED_MAX),
        length=length,
        start=start,
        stop=stop,
        global_batch=global_batch,
        steps=_number(told, "steps", steps, steps),
        head=_head(told, "head"),
        marks=tuple(_mark(item, steps) for item in _list(told, "marks")[: MARKS_MAX + 1]),
    )


def _mark(told: Any, steps: int) -> tuple[int, str]:
    if not (isinstance(told, list) and len(told) == 2 and type(told[0]) is int and isinstance(told[1], str)):
        raise _damaged(f"{told!r:.60} is no mark")
    if not 0 < told[0] <= steps or len(told[1]) != MARK_DIGITS:
        raise _damaged(f"the mark {told!r:.60} is out of range")
    return told[0], told[1]


def _skip(told: Any) -> Skip:
    if not (isinstance(told, list) and len(told) == 3 and all(type(item) is int for item in told)):
        raise _damaged(f"{told!r:.60} is no range of positions")
    if not (0 <= told[0] <= SEED_MAX and 0 <= told[1] < told[2] <= ORDER_ROWS_MAX):
        raise _damaged(f"the range {told!r:.60} is out of range")
    return told[0], told[1], told[2]


def _note(told: Any) -> Note:
    note = Note(
        epoch=_number(told, "epoch", 0, SEED_MAX),
        position=_number(told, "position", 0, ORDER_ROWS_MAX),
        row=_number(told, "row", 0, ORDER_ROWS_MAX),
        column=_get(told, "column", str),
        action=_get(told, "action", str),
        reason=_get(told, "reason", str),
    )
    if not ACTION.fullmatch(note.action):
        raise _damaged(f"its note has the action {note.action!r:.40}")
    return note


def _get(told: Any, name: str, kind: type) -> Any:
    value = told.get(name) if isinstance(told, Mapping) else None
    if type(value) is not kind:
        raise _damaged(f"its field {name!r} is missing or no {kind.__name__}")
    return value


def _list(told: Mapping[str, Any], name: str) -> list[Any]:
    found: list[Any] = _get(told, name, list)
    return found


def _number(told: Any, name: str, low: int, high: int) -> int:
    value: int = _get(told, name, int)
    if not low <= value <= high:
        raise _damaged(f"its field {name!r} is {value}, not in [{low}, {high}]")
    return value


def _head(told: Any, name: str) -> bytes:
    text: str = _get(told, name, str)
    try:
        head = bytes.fromhex(text)
    except ValueError:
        head = b""
    if len(head) != HEAD_BYTES:
        raise _damaged(f"its field {name!r} is no {2 * HEAD_BYTES} hex digits")
    return head


def _damaged(why: str) -> FormatDamaged:
    return FormatDamaged(f"the receipt is damaged: {why}; take another copy")
