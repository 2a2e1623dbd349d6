"""Everything that a run can switch on, stopped at every step: what comes out is, bit for bit, the run that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_data import quick_config

from leptonstore.dataset import Dataset
from leptonstore.errors import Stopped
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.loop import Trainer
from trainers.metrics import read_metrics
from trainers.stop import StopRequest


class Blocks(nn.Module):
    """Dropout draws at every step, normalisation has buffers that move, and its blocks can be recomputed."""

    def __init__(self, pixels: int, classes: int, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3)) for _ in range(2)
        )
        self.leave = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: torch.Tensor = self.leave(hidden)
        return logits


def blocks(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Blocks(sample_shape[0] * sample_shape[1], classes)


def poisoned(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that is not a number wherever the first image of a batch is of class 1: a pure function of the batch."""
    loss = nn.functional.cross_entropy(outputs, targets, reduction="sum")
    return loss * float("nan") if len(targets) and int(targets[0]) == 1 else loss


STEPS_PER_EPOCH = 5
MODEL = {"model.reference": f"{__name__}:blocks", "model.params": {}}
EVERYTHING: dict[str, Any] = {
    **MODEL,
    "accumulate": 3,
    "clip_norm": 0.5,
    "precision": "bf16",
    "recompute": True,
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.1,
    "evaluate_every_steps": 2,
    "early_stop": {"metric": "val_loss", "patience": 5, "min_delta": 0.01},
}
CASES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "ends early": {**EVERYTHING, "early_stop": {"metric": "val_accuracy", "patience": 3, "min_delta": 1.0}},
    "scaled": {**MODEL, "precision": "fp16", "clip_norm": 1.0, "schedule.name": "linear", "schedule.warmup": 0.2},
    "left out": {**MODEL, "on_bad_loss": "skip", "loss.reference": f"{__name__}:poisoned", "evaluate_every_steps": 5},
    "of torch": {**MODEL, "optimizer.reference": "torch.optim:RMSprop", "schedule.name": "cosine"},
}


def steps(log: Path) -> list[tuple[Any, ...]]:
    kept = [event for event in read_metrics(log) if event["event"] in ("step", "evaluation", "skipped")]
    return [
        tuple((key, event[key]) for key in sorted(event) if not key.endswith("_s") and key != "time") for event in kept
    ]


def same_end(store: Store, left: str, right: str) -> None:
    one, other = checkpoints.load(store, left), checkpoints.load(store, right)
    for key in (
        "step",
        "epoch",
        "step_in_epoch",
        "progress",
        "history",
        "evaluations",
        "skipped",
        "early_stop",
        "scaler",
    ):
        assert one.manifest[key] == other.manifest[key], key
    assert one.manifest["loader"] == other.manifest["loader"]
    assert sorted(one.paths) == sorted(other.paths)
    for path in one.paths:
        assert torch.equal(one.tensor(path), other.tensor(path)), path


def by_max_steps(trainer: Trainer, resume: bool, at: int) -> None:
    trainer.fit(resume=resume, max_steps=at)


class DuringStep(StopRequest):
    """As SIGTERM that arrives while step `at` is computed."""

    def __init__(self, trainer: Trainer, at: int) -> None:
        self._trainer, self._at = trainer, at

    @property
    def requested(self) -> bool:  # type: ignore[override]
        progress = self._trainer.progress
        return progress.step == self._at - 1 and progress.step_in_epoch < STEPS_PER_EPOCH


def by_request(trainer: Trainer, resume: bool, at: int) -> None:
    trainer.stop = DuringStep(trainer, at)
    with pytest.raises(Stopped, match=f"stopped after step {at} "):
        trainer.fit(resume=resume)


@pytest.mark.parametrize("stopped", [by_max_steps, by_request])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_run_that_is_stopped_at_every_step_is_the_run_that_was_never_stopped(
    store: Store,
    patterns: Dataset,
    tmp_path: Path,
    values: dict[str, Any],
    stopped: Callable[[Trainer, bool, int], None],
) -> None:
    config = quick_config(**values)
    expected = Trainer(config, store, patterns, run="whole", metrics=tmp_path / "whole.jsonl").fit()
    log = tmp_path / "parts.jsonl"
    for at in range(1, expected.steps):
        stopped(Trainer(config, store, patterns, run="parts", metrics=log), at > 1, at)
        assert checkpoints.load(store, "parts").manifest["step"] == at
    result = Trainer(config, store, patterns, run="parts", metrics=log).fit(resume=True)
    assert steps(log) == steps(tmp_path / "whole.jsonl")
    same_end(store, "whole", "parts")
    assert (result.history, result.skipped) == (expected.history, expected.skipped)
    assert (result.val_loss, result.stopped_early) == (expected.val_loss, expected.stopped_early)
    assert result.warnings == []


def test_the_cases_do_what_they_are_called(store: Store, patterns: Dataset, tmp_path: Path) -> None:
    """Else the property above would say less than it seems to."""
    results, logs = {}, {}
    for name, values in CASES.items():
        log = tmp_path / f"{name}.jsonl"
        results[name] = Trainer(quick_config(**values), store, patterns, run=name.replace(" ", "-"), metrics=log).fit()
        logs[name] = [event for event in read_metrics(log) if event["event"] == "step"]
    assert results["everything"].steps == 15 and not results["everything"].stopped_early
    assert results["ends early"].stopped_early and results["ends early"].steps == 6
    assert max(event["grad_norm"] for event in logs["everything"]) > 0.5
    assert checkpoints.load(store, "scaled").manifest["scaler"]["scale"] > 1
    assert 0 < len(results["left out"].skipped) < 15
    rows = results["left out"].skipped[0]["rows"]
    labels = patterns.take(rows, ["label"]).column(0).to_pylist()
    assert labels[0] == 1
    assert [event["loss"] for event in logs["left out"]].count(None) == len(results["left out"].skipped)


def test_an_early_stop_that_is_resumed_stays_stopped(store: Store, patterns: Dataset) -> None:
    config = quick_config(**CASES["ends early"])
    first = Trainer(config, store, patterns, run="run").fit()
    again = Trainer(config, store, patterns, run="run").fit(resume=True)
    assert (again.steps, again.stopped_early, again.finished, again.val_loss) == (6, True, True, first.val_loss)
