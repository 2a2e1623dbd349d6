"""The log of a run: a JSONL file, one event a line, that every run has.

    {"event": "config", "run", "config", "data", "environment", "time"}      once for each start
    {"event": "resume", "step", "epoch", "warnings"}                         before the steps of a resumed run
    {"event": "step", "step", "epoch", "loss", "lr", "rows", ("grad_norm",) "data_wait_s", …, "wall_s"}
    {"event": "skipped", "step", …}                                          before the line of a step that changed nothing
    {"event": "evaluation", "step", …metrics, "evaluation_s"}     {"event": "checkpoint", "step", "commit"}
    {"event": "epoch", "step", "epoch", "train_loss", …metrics, "data_wait_s", …, "wall_s"}   the seconds since its last step
    {"event": "end", "step", "status", "time", …}

`loss` and `lr` are written as `repr` writes them, so that reading gives the same bits; a loss that is not finite is
null. Seconds are written to the microsecond. A run that was killed may have logged steps after its last checkpoint; it
logs them again when it resumes, behind a "resume" line. `read_metrics` gives each step once.

Without a path of its own a log lies beside no data but in the user's state directory, which the XDG specification has
for logs (`default_path`): a store may be a bucket, and what a run took differs from run to run, where commits must not.
A disk that is full ends the log, not the training.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from leptonstore.errors import BadInput, FormatDamaged, LeptonWarning, SourceError

if TYPE_CHECKING:
    from leptonstore.store import Store
    from trainers.result import StepEvent

# Lines wait in memory for so long at most, so that one can watch the file of a run with slow steps; never a flush per step.
FLUSH_S = 5.0
TAIL_BYTES = 1 << 16  # read at a time when the end of the last whole line is looked for

_encode = json.JSONEncoder(allow_nan=False).encode


def default_path(store: Store, run: str) -> Path:
    """$XDG_STATE_HOME/lepton/<store id>/runs/<run>.jsonl (XDG_STATE_HOME: ~/.local/state); on this host, of this user."""
    value = os.environ.get("XDG_STATE_HOME", "")
    home = Path(value) if value.startswith("/") else Path.home() / ".local" / "state"
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run)  # a name, never a path
    return home / "lepton" / store.config.store_id.hex() / "runs" / f"{name}.jsonl"


class MetricLog:
    """Appends events to a file; with path None it takes them and does nothing. Not safe for several threads.

    Raises SourceError when the file cannot be opened. When it cannot be written later, it warns once and is silent.
    """

    def __init__(self, path: str | Path | None, append: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._file: TextIO | None = None
        self._flushed = time.monotonic()
        if self.path is None:
            return
        try:
            if append:
                _drop_torn_line(self.path)
            self._file = self.path.open("a" if append else "w", encoding="utf-8")
        except OSError as error:
            raise SourceError(f"cannot write metrics to {path}: {error.strerror}", str(path)) from None

    @classmethod
    def at_default(cls, store: Store, run: str, append: bool = False) -> MetricLog:
        """The log at `default_path`. Where that cannot be written, warns and logs nothing: nobody asked for this file."""
        path = default_path(store, run)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(path, append)
        except (OSError, SourceError) as error:
            _warn(f"no metrics of run {run!r} are logged: {error}; choose a file with --metrics")
            return cls(None)

    def write(self, event: str, **values: Any) -> None:
        """One line. Raises BadInput when a value is not JSON (NaN and infinities are not)."""
        if self._file is None:
            return
        try:
            line = _encode({"event": event, **values})
        except (TypeError, ValueError) as error:
            raise BadInput(f"metric event {event!r} cannot be written: {error}") from None
        self._append(line + "\n")

    def step(self, event: StepEvent) -> None:
        """The line of a step: 5 us, half of what `write` takes for it."""
        if self._file is None:
            return
        loss, lr, norm, took = event.loss, event.lr, event.grad_norm, event.time
        norm_too = "" if norm is None or not math.isfinite(norm) else f'"grad_norm": {norm}, '
        self._append(
            f'{{"event": "step", "step": {event.step}, "epoch": {event.epoch}, '
            f'"loss": {loss if math.isfinite(loss) else "null"}, "lr": {lr!r}, "rows": {event.rows}, {norm_too}'
            f'"data_wait_s": {took.data_wait:.6f}, "h2d_s": {took.h2d:.6f}, "compute_s": {took.compute:.6f}, '
            f'"sync_s": {took.sync:.6f}, "checkpoint_s": {took.checkpoint:.6f}, "other_s": {took.other:.6f}, '
            f'"wall_s": {took.wall:.6f}}}\n'
        )

    def flush(self) -> None:
        """Hand everything to the operating system; called at checkpoints and epochs, not at every step."""
        self._flushed = time.monotonic()
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Flush and close; later events are ignored."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: str) -> None:
        assert self._file is not None
        try:
            self._file.write(line)
        except OSError as error:
            self._give_up(error)
            return
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        _warn(f"metrics are logged no more to {self.path}: {error.strerror or error}; the training goes on")
        try:
            if file is not None:
                file.close()  # tries to write what is left, and fails again
        except OSError:
            pass


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


def _drop_torn_line(path: Path) -> None:
    """What a killed process had begun to write: the next line must not become the end of it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = at = file.seek(0, os.SEEK_END)
        while at:
            start = max(0, at - TAIL_BYTES)
            file.seek(start)
            end = file.read(at - start).rfind(b"\n") + 1
            if end:
                at = start + end
                break
            at = start
        if at < size:
            file.truncate(at)


def _warn(message: str) -> None:
    warnings.warn(message, LeptonWarning, stacklevel=3)
