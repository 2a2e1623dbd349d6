"""What rank 0 tells while it trains: to the log, to sinks of curves, to callbacks, and to the profiler.

The loop has one `Reporter` and calls it where something happens; on the other ranks it has one that says nothing.

    begin -> (step | evaluation | checkpoint | epoch)* -> end          leaving the context closes everything

Overhead of a step, nothing but the log asked for: 8 us. Sinks get every SINK_EVERY_STEPS-th step, evaluations and epochs, by
a thread of their own (trainers.sinks.background). Callbacks run in the loop, and what they raise ends the run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from leptonstore.errors import LeptonError, Stopped
from trainers.metrics import MetricLog
from trainers.progress import finite
from trainers.sinks import BackgroundSink, Sink, open_sink

if TYPE_CHECKING:
    from leptonstore.store import Store
    from trainers.clock import StepTime
    from trainers.profiling import Profile
    from trainers.result import CheckpointEvent, EpochEvent, EvaluateEvent, StepEvent

# Curves of a thousand points are as good to look at as curves of ten thousand, and ten times cheaper to keep.
SINK_EVERY_STEPS = 10


class Reporter:
    """See the module. Not safe for several threads; a context manager, whose end closes log and sinks.

    log: of metrics, None for none. sinks: called in the order of events. on_step, …: callbacks.
    profile: is told every step (trainers.profiling).
    """

    def __init__(
        self,
        log: MetricLog | None = None,
        sinks: Iterable[Sink] = (),
        on_step: Iterable[Callable[[StepEvent], None]] = (),
        on_epoch: Iterable[Callable[[EpochEvent], None]] = (),
        on_evaluate: Iterable[Callable[[EvaluateEvent], None]] = (),
        on_checkpoint: Iterable[Callable[[CheckpointEvent], None]] = (),
        profile: Profile | None = None,
    ) -> None:
        self._log = log or MetricLog(None)
        self._sinks = tuple(BackgroundSink(sink) for sink in sinks)
        self._on_step, self._on_epoch = tuple(on_step), tuple(on_epoch)
        self._on_evaluate, self._on_checkpoint = tuple(on_evaluate), tuple(on_checkpoint)
        self.profile = profile
        self._step = 0
        self._rows, self._since = 0, time.perf_counter()  # since sinks had values last
        self._status = "failed"

    @classmethod
    def of_run(
        cls,
        store: Store,
        run: str,
        *,
        metrics: str | Path | None = None,
        sinks: Iterable[str | Sink] = (),
        append: bool = False,
        **options: Any,
    ) -> Reporter:
        """The reporter of rank 0. metrics: path of the log, None for `trainers.metrics.default_path`; append: to what it has.

        sinks: or what `open_sink` makes them of. Raises SourceError (no such place for the log), BadInput, MissingExtra.
        """
        opened = [open_sink(sink) if isinstance(sink, str) else sink for sink in sinks]
        log = MetricLog.at_default(store, run, append) if metrics is None else MetricLog(metrics, append)
        return cls(log, opened, **options)

    @property
    def log_path(self) -> Path | None:
        """Where the log is."""
        return self._log.path

    def begin(
        self,
        run: str,
        config: Mapping[str, Any],
        data: Mapping[str, Any],
        environment: Mapping[str, Any],
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        """The run starts, or goes on: `resumed` has at least the "step" after which it does."""
        facts = {"config": config, "data": data, "environment": environment}
        self._log.write("config", run=run, **facts, time=time.time())
        if resumed is not None:
            self._log.write("resume", **resumed)
            self._step = int(resumed["step"])
        for sink in self._sinks:
            sink.begin(run, facts, self._step)
        self._since = time.perf_counter()

    def step(self, event: StepEvent) -> None:
        """A step has ended."""
        self._step = event.step
        self._log.step(event)
        if self._sinks:
            self._rows += event.rows
            if event.step % SINK_EVERY_STEPS == 0 or event.step in (1, event.steps):
                self._send(event)
        if self.profile is not None:
            self.profile.step(event)
        for callback in self._on_step:
            callback(event)

    def skipped(self, what: Mapping[str, Any]) -> None:
        """A step has changed nothing; `what` says which rows it was of (trainers.progress)."""
        self._log.write("skipped", **what)

    def evaluation(self, event: EvaluateEvent, seconds: float) -> None:
        """The model has been measured, in `seconds`."""
        found = {name: value if math.isfinite(value) else None for name, value in event.metrics.items()}
        self._log.write("evaluation", step=event.step, epoch=event.epoch, **found, evaluation_s=round(seconds, 6))
        self._scalars({name.replace("val_", "val/", 1): value for name, value in event.metrics.items()})
        for callback in self._on_evaluate:
            callback(event)

    def checkpoint(self, event: CheckpointEvent) -> None:
        """A checkpoint is durable; so is the log up to here, as far as a process can tell."""
        self._log.write("checkpoint", step=event.step, commit=event.commit)
        self._log.flush()
        for callback in self._on_checkpoint:
            callback(event)

    def flush(self) -> None:
        """What was told so far is with the operating system: it outlives this process."""
        self._log.flush()

    def epoch(self, event: EpochEvent, record: Mapping[str, Any], took: StepTime) -> None:
        """An epoch has ended. record: of the history; took: since its last step."""
        told = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self._log.write("epoch", step=self._step, **told, **took.rounded())
        self._log.flush()
        self._scalars({"train/epoch_loss": event.train_loss})
        for callback in self._on_epoch:
            callback(event)

    def end(self, finished: bool, **facts: Any) -> None:
        """The run has ended as it should: by its epochs, or where it was told to. facts: JSON-able."""
        self._status = "finished" if finished else "stopped"
        self._log.write("end", step=self._step, status=self._status, **facts, time=time.time())

    def profiled(self, loader: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the profiler found (`trainers.profiling.Profile.report`), with its "text"; None when nobody asked for it."""
        if self.profile is None:
            return None
        report = self.profile.report(loader, facts)
        return {**report.to_dict(), "text": report.text()}

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, Stopped):
            self._status = "stopped"
        if self.profile is not None and not self.profile.reported:  # a run that was stopped: what there is of it
            with contextlib.suppress(LeptonError):  # what ended the run says why
                self.profile.report({}, {})
        self._log.close()
        for sink in self._sinks:
            sink.end(self._status)

    def _send(self, event: StepEvent) -> None:
        now = time.perf_counter()
        rows_s = self._rows / max(now - self._since, 1e-9)
        self._rows, self._since = 0, now
        self._scalars(
            {
                "train/loss": event.loss,
                **({} if event.grad_norm is None else {"train/grad_norm": event.grad_norm}),
                "train/lr": event.lr,
                "train/epoch": float(event.epoch),
                "train/rows_per_s": rows_s,
                "time/step_s": event.time.wall,
                "time/data_wait_fraction": event.time.data_wait_fraction,
            }
        )

    def _scalars(self, values: Mapping[str, float]) -> None:
        told = finite(values)
        for sink in self._sinks:
            sink.scalars(self._step, told)
