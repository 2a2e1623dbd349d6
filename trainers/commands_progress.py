"""How far a training is, for whoever watches: a bar on a terminal, a line now and then in a file or a CI's log.

    train mnist ━━━━━━━━╸━━━━━━ 1,210/2,345  epoch 3/5  loss 0.0412  lr 0.0021  61,200 rows/s  data 0.1 %  0:00:04

Drawn by the loop's own thread: one that draws by itself would stand in the way of a fork.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import click

if TYPE_CHECKING:
    from trainers.result import EpochEvent, StepEvent

OnStep: TypeAlias = "Callable[[StepEvent], None]"
OnEpoch: TypeAlias = "Callable[[EpochEvent], None]"

DRAW_EVERY_S = 0.2  # a bar that is redrawn more often is not read, only paid for: 2 ms each
LINE_EVERY_S = 30.0  # where there is no terminal; a run that is shorter says nothing before its end


class _Pace:
    """Rates since they were last told, and the time that is left."""

    def __init__(self) -> None:
        self._rows, self._wait_s, self._wall_s = 0, 0.0, 0.0
        self._since = self._began = time.monotonic()
        self._first_step: int | None = None

    def count(self, event: StepEvent) -> None:
        """A step has ended; called for each."""
        if self._first_step is None:
            # The first is as slow as the set-up of caches and kernels: it says nothing of the others.
            self._first_step, self._began = event.step, time.monotonic()
        self._rows += event.rows
        self._wait_s += event.time.data_wait
        self._wall_s += event.time.training

    def told(self, event: StepEvent) -> tuple[str, str]:
        """("loss …  lr …  rows/s …  data …", time left), and a new stretch begins."""
        now = time.monotonic()
        rows_s, wait = self._rows / max(now - self._since, 1e-9), self._wait_s / max(self._wall_s, 1e-9)
        self._rows, self._wait_s, self._wall_s, self._since = 0, 0.0, 0.0, now
        done, left = event.step - (self._first_step or 0), event.steps - event.step
        seconds = (now - self._began) / done * left if done else None
        text = f"loss {event.loss:.4f}  lr {event.lr:.3g}  {rows_s:,.0f} rows/s  data {wait:.1%}"
        return text, "" if seconds is None else _clock(seconds)


@contextlib.contextmanager
def training_progress(
    label: str, line_every_s: float = LINE_EVERY_S
) -> Iterator[tuple[tuple[OnStep, ...], tuple[OnEpoch, ...]]]:
    """Callbacks for `run_train`, of rank 0; none on the others."""
    if os.environ.get("RANK", "0") != "0":
        yield (), ()
    elif sys.stderr.isatty():
        with _bar(label) as callbacks:
            yield callbacks
    else:
        yield _lines(label, line_every_s)


@contextlib.contextmanager
def _bar(label: str) -> Iterator[tuple[tuple[OnStep, ...], tuple[OnEpoch, ...]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task, pace, drawn = bar.add_task(label, total=None, told=""), _Pace(), 0.0
        bar.refresh()

        def on_step(event: StepEvent) -> None:
            nonlocal drawn
            pace.count(event)
            now = time.monotonic()
            if now - drawn >= DRAW_EVERY_S or event.step == event.steps:
                drawn = now
                text, left = pace.told(event)
                told = f"epoch {event.epoch}/{event.epochs}  {text}  {left}"
                bar.update(task, completed=event.step, total=event.steps, told=told, refresh=True)

        def on_epoch(event: EpochEvent) -> None:
            bar.console.print(_epoch(event), highlight=False)

        yield (on_step,), (on_epoch,)


def _lines(label: str, every_s: float) -> tuple[tuple[OnStep, ...], tuple[OnEpoch, ...]]:
    pace, began = _Pace(), time.monotonic()
    told_at = began

    def on_step(event: StepEvent) -> None:
        nonlocal told_at
        pace.count(event)
        now = time.monotonic()
        if now - told_at >= every_s:
            told_at = now
            text, left = pace.told(event)
            rest = f"  {left} left" if left else ""
            click.echo(
                f"{label}: step {event.step:,}/{event.steps:,}  epoch {event.epoch}/{event.epochs}  {text}{rest}",
                err=True,
            )

    def on_epoch(event: EpochEvent) -> None:
        if time.monotonic() - began >= every_s:
            click.echo(f"{label}: {_epoch(event)}", err=True)

    return (on_step,), (on_epoch,)


def _epoch(event: EpochEvent) -> str:
    found = event.evaluation.metrics() if event.evaluation else {}
    told = "".join(f", {name} {value:.4f}" for name, value in found.items())
    return f"epoch {event.epoch}/{event.epochs}: train loss {event.train_loss:.4f}{told}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
