"""Where the time of a step goes, and the JSONL log of a run.

Accounting works by laps: every `lap(phase)` books the time since the previous lap on that phase, so that the phases of
a step add up to its wall time by construction, and nothing can be forgotten or counted twice.

    data_wait   waiting for the loader        sync        waiting for other ranks
    h2d         moving a batch to the device  checkpoint  saving
    compute     forward, backward, optimizer  other       callbacks, logging, the loop itself

The log has one JSON object per line. Floats are written as `repr` writes them, so that reading gives the same bits. A
run that was killed may have logged steps after its last checkpoint; it logs them again when it resumes, behind a line
{"event": "resume", "step": n}. `read_metrics` gives each step once.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from leptonstore.errors import BadInput, FormatDamaged, SourceError

PHASES = ("data_wait", "h2d", "compute", "sync", "checkpoint", "other")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step (or of several, added up) by phase."""

    data_wait: float = 0.0
    h2d: float = 0.0
    compute: float = 0.0
    sync: float = 0.0
    checkpoint: float = 0.0
    other: float = 0.0

    @property
    def wall(self) -> float:
        """All phases together."""
        return self.data_wait + self.h2d + self.compute + self.sync + self.checkpoint + self.other

    @property
    def data_wait_fraction(self) -> float:
        """Share of the wall time, checkpoints left out, that was spent waiting for data; 0 before the first step."""
        training = self.wall - self.checkpoint
        return self.data_wait / training if training > 0 else 0.0

    def seconds(self) -> dict[str, float]:
        """{"data_wait_s": …, "wall_s": …}, for logs."""
        return {**{f"{phase}_s": value for phase, value in asdict(self).items()}, "wall_s": self.wall}


class StepClock:
    """Books time on phases; one thread. `step()` returns what was booked since the previous `step()`."""

    def __init__(self) -> None:
        self._step = dict.fromkeys(PHASES, 0.0)
        self._total = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def restart(self) -> None:
        """Forget the time since the last lap: it belongs to no step (evaluation, set-up)."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap on `phase`."""
        now = time.perf_counter()
        self._step[phase] += now - self._last
        self._last = now

    def step(self) -> StepTime:
        """End the step: what is left goes to `other`."""
        self.lap("other")
        ended = StepTime(**self._step)
        for phase, seconds in self._step.items():
            self._total[phase] += seconds
            self._step[phase] = 0.0
        return ended

    @property
    def total(self) -> StepTime:
        """All ended steps together."""
        return StepTime(**self._total)


class MetricLog:
    """Appends events to a JSONL file; with path None it takes them and does nothing. Not safe for several threads."""

    def __init__(self, path: str | Path | None, append: bool = False) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            self._file = Path(path).open("a" if append else "w", encoding="utf-8")  # noqa: SIM115 (see close)
        except OSError as error:
            raise SourceError(f"cannot write metrics to {path}: {error.strerror}", str(path)) from None

    def write(self, event: str, **values: Any) -> None:
        """One line. Raises BadInput when a value is not JSON (NaN and infinities are not)."""
        if self._file is None:
            return
        try:
            line = json.dumps({"event": event, **values}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"metric event {event!r} cannot be written: {error}") from None
        self._file.write(line + "\n")

    def flush(self) -> None:
        """Hand everything to the operating system; called at checkpoints and epochs, not at every step."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close; later events are ignored."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The events of a log, each step once: what a resume repeated replaces what was logged before it.

    A last line that was cut off by a crash is dropped. Raises SourceError (no such file), FormatDamaged (any other
    line that is not an event).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise SourceError(f"cannot read metrics of {path}: {error.strerror}", str(path)) from None
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            event = json.loads(line)
            kind, step = event["event"], event.get("step", 0)
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise FormatDamaged(f"{path} line {number} is not a metric event") from None
        if kind == "resume":
            events = [earlier for earlier in events if earlier.get("step", 0) <= step]
        events.append(event)
    return events
