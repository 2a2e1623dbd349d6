"""An evaluation as one HTML page (leptonstore.process.report): figures, confusion matrix, classes, and the worst rows to look at.

What is worst is collected while the evaluation runs (`Worst` is a Watch of trainers.evaluate): of images the mistakes with the greatest
loss, of texts the windows with the greatest loss per token. Memory: the worst so far, a few dozen rows.
"""

from __future__ import annotations

import codecs
import dataclasses
import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leptonstore.dataset import Dataset
from leptonstore.process.charts import as_percent, short, whole
from leptonstore.process.gallery import Sample, sample_rows
from leptonstore.process.passages import Passage
from leptonstore.process.report import EvaluationSection, Report, write_report
from trainers.evaluation import ClassEvaluation, Evaluation, NumberEvaluation, TextEvaluation
from trainers.losses import IGNORED
from trainers.opened import StoredModel
from trainers.tasks import ImageClassification, LanguageModelling, Task

WORST_MAX = 24  # rows that are kept: as many as a gallery of the report shows
# Nats of one token from which on it has the strongest colour: one in 1,000.
SURPRISE_MAX = 7.0


@dataclass(order=True, frozen=True)
class _Row:
    """What is kept of a row. Ordered by loss, then by number (the earlier is the worse one)."""

    loss: float
    earlier: int  # minus the row's number
    kept: Any = None

    @property
    def row(self) -> int:
        return -self.earlier


class Worst:
    """A Watch: keeps the rows with the greatest losses. One thread, one rank."""

    def __init__(self, task: Task, most: int = WORST_MAX) -> None:
        self._task, self._most = task, most
        self._heap: list[_Row] = []

    def __call__(self, first: int, inputs: Tensor, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        """See trainers.evaluate.Watch."""
        if isinstance(self._task, LanguageModelling):
            counted = (targets != IGNORED).sum(1).clamp_min(1)
            means = (losses.sum(1) / counted).tolist()
            for at in np.argsort(means)[-self._most :].tolist():
                self._keep(means[at], first + at, lambda at=at: _window(inputs, targets, losses, at))
        elif isinstance(self._task, ImageClassification):
            shares = torch.softmax(outputs.to(torch.float32), 1)
            best, values = outputs.argmax(1), losses.tolist()
            for at in torch.nonzero(best != targets).flatten().tolist():
                told = int(targets[at]), int(best[at]), float(shares[at, best[at]])
                self._keep(values[at], first + at, lambda told=told: told)

    def _keep(self, loss: float, row: int, make: Any) -> None:
        one = _Row(loss, -row)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, _Row(loss, -row, make()))
        elif one > self._heap[0]:
            heapq.heapreplace(self._heap, _Row(loss, -row, make()))

    def rows(self) -> list[_Row]:
        """The worst first."""
        return sorted(self._heap, reverse=True)


def write_evaluation(
    path: str | os.PathLike[str], model: StoredModel, ds: Dataset, found: Evaluation, worst: Worst, which: str
) -> Path:
    """Write the page of an evaluation of `model` on the rows `ds` and return its path. which: rows these are ("held out").

    Raises as leptonstore.process.report.write_report does.
    """
    task = model.task
    report = Report(
        title=f"{model.name} on {ds.name}",
        subtitle=f"{task.describe()}. Rows: {which}. Model commit {model.commit[:12]}.",
        facts=facts(found),
        dataset=_whole(ds),
    )
    if isinstance(task, ImageClassification):
        report = dataclasses.replace(report, evaluation=section(ds, task, found, worst, which))
    if isinstance(task, LanguageModelling):
        report = dataclasses.replace(report, passages=passages(task, worst))
    return write_report(path, report)


def section(ds: Dataset, task: ImageClassification, found: Evaluation, worst: Worst, which: str) -> EvaluationSection:
    """How a classifier did on `ds`, as a report shows it."""
    assert isinstance(found, ClassEvaluation)  # of this task's meter
    return EvaluationSection(
        accuracy=found.accuracy,
        confusion=found.confusion,
        class_names=found.classes,
        wrong=pictures(ds, task, worst),
        split=which,
        loss=found.loss,
        counts=np.array([[one.rows for one in found.per_class], [one.correct for one in found.per_class]]),
    )


def facts(found: Evaluation) -> list[tuple[str, str]]:
    """Key figures; those that the page's other parts show are left to them."""
    shown = [("Rows", whole(found.rows)), ("Loss", short(found.loss))]
    if isinstance(found, TextEvaluation):
        shown = [("Tokens", whole(found.tokens)), ("Loss per token", short(found.loss))]
        shown.append(("Perplexity", short(found.perplexity)))
        if found.bits_per_byte is not None:
            shown.append(("Bits per byte", short(found.bits_per_byte)))
        shown.append(("Next token right", as_percent(found.accuracy)))
    if isinstance(found, NumberEvaluation):
        shown += [("Mean absolute error", short(found.mean_absolute_error)), ("R²", short(found.r2))]
    if isinstance(found, ClassEvaluation) and found.top5_accuracy is not None:
        shown.append(("Among the first five", as_percent(found.top5_accuracy)))
    return shown


def pictures(ds: Dataset, task: ImageClassification, worst: Worst) -> list[Sample]:
    """The worst mistakes, as images of the dataset."""
    rows = worst.rows()
    found = sample_rows(ds, [one.row for one in rows])
    return [
        Sample(sample.row, sample.image, task.classes[truth], f"taken for {task.classes[guess]}, {share:.0%}", True)
        for sample, (truth, guess, share) in zip(found, (one.kept for one in rows), strict=True)
    ]


def passages(task: LanguageModelling, worst: Worst) -> list[Passage]:
    """The worst windows, as text where tokens are bytes, else as numbers."""
    return [
        Passage(_pieces(task, *one.kept), f"window {one.row:,}", f"{one.loss:.3f} nats per token")
        for one in worst.rows()
    ]


def _window(inputs: Tensor, targets: Tensor, losses: Tensor, at: int) -> tuple[list[int], list[float]]:
    """(tokens of a window, losses of all but the first)."""
    counted = targets[at] != IGNORED
    tokens = [int(inputs[at].flatten()[0]), *targets[at][counted].tolist()]
    return tokens, losses[at][counted].tolist()


def _pieces(task: LanguageModelling, tokens: Sequence[int], losses: Sequence[float]) -> list[tuple[str, float]]:
    strengths = [0.0, *(min(loss / SURPRISE_MAX, 1.0) for loss in losses)]
    if task.bytes_per_token != 1:
        return [(f"{token} ", strength) for token, strength in zip(tokens, strengths, strict=True)]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found: list[tuple[str, float]] = []
    strongest = 0.0
    for place, (token, strength) in enumerate(zip(tokens, strengths, strict=True)):
        strongest = max(strongest, strength)  # of the bytes of a character
        text = decoder.decode(bytes([token]), final=place == len(tokens) - 1)
        if text:
            found.append((text, strongest))
            strongest = 0.0
    return found


def _whole(ds: Dataset) -> Dataset:
    """The version that a view shows, whose identity and history stand on the page."""
    return ds if ds.selection is None else Dataset.open(ds.store, f"{ds.name}@{ds.commit}")
