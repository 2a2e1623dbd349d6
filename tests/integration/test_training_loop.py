"""What a run does around its steps: events, evaluation, early stop, objects in a configuration, first weights, and bad input."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
import torch
from torch import nn
from training_data import quick_config, write_patterns

from leptonstore.cli.runtime import run
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, LossNotFinite, Stopped
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.commands import train as train_command
from trainers.config import EarlyStopConfig, LossConfig, ModelConfig, OptimizerConfig, from_dict
from trainers.early_stop import EarlyStop
from trainers.loop import Trainer
from trainers.metrics import read_metrics
from trainers.result import CheckpointEvent, EpochEvent, EvaluateEvent, StepEvent

COMMANDS = click.Group(commands={"train": train_command})


# -- events and evaluation -----------------------------------------------------------------------------------------


def test_events_come_in_order_with_what_happened(store: Store, patterns: Dataset, tmp_path: Path) -> None:
    """Epochs of five steps; evaluated every third step and after each epoch, saved every fourth and after each epoch."""
    told: list[Any] = []
    config = quick_config(epochs=2, evaluate_every_steps=3, checkpoint__every_steps=4, early_stop__patience=100)
    log = tmp_path / "log.jsonl"
    result = Trainer(
        config,
        store,
        patterns,
        run="run",
        metrics=log,
        on_step=[told.append],
        on_epoch=[told.append],
        on_evaluate=[told.append],
        on_checkpoint=[told.append],
    ).fit()
    kinds = {StepEvent: "step", EpochEvent: "epoch", EvaluateEvent: "evaluate", CheckpointEvent: "checkpoint"}
    order = [(kinds[type(event)], getattr(event, "step", None)) for event in told]
    expected: list[tuple[str, int | None]] = []
    for step in range(1, 11):
        expected.append(("step", step))
        if step % 5 == 0 or step % 3 == 0:
            expected.append(("evaluate", step))
        if step % 5 == 0:
            expected.append(("epoch", None))
        if step % 5 == 0 or step % 4 == 0:
            expected.append(("checkpoint", step))
    assert order == expected
    evaluations = [event for event in told if isinstance(event, EvaluateEvent)]
    assert [event.epoch for event in evaluations] == [1, 1, 2, 2, 2]
    assert evaluations[-1].metrics["val_loss"] == result.val_loss == evaluations[-1].evaluation.loss
    losses = [event.metrics["val_loss"] for event in evaluations]
    assert [event.best for event in evaluations] == [loss < min([*losses[:at], 1e9]) for at, loss in enumerate(losses)]
    saved = [event for event in told if isinstance(event, CheckpointEvent)]
    assert saved[-1].commit == result.checkpoint == checkpoints.load(store, "run").commit
    assert saved[-1].ref == checkpoints.branch_of(10)
    logged = [(event["step"], event["val_loss"]) for event in read_metrics(log) if event["event"] == "evaluation"]
    assert logged == list(zip([3, 5, 6, 9, 10], losses, strict=True))
    assert [record["step"] for record in checkpoints.load(store, "run").manifest["evaluations"]] == [3, 6, 9]


def test_a_stop_that_is_asked_for_during_an_evaluation_saves_and_stops(store: Store, patterns: Dataset) -> None:
    def stop(event: EvaluateEvent) -> None:
        trainer.stop.request()

    trainer = Trainer(quick_config(), store, patterns, run="run", on_evaluate=[stop])
    with pytest.raises(Stopped, match="stopped after step 5"):
        trainer.fit()
    manifest = checkpoints.load(store, "run").manifest
    assert (manifest["epoch"], manifest["step_in_epoch"], len(manifest["history"])) == (1, 0, 1)


def test_early_stop_waits_counts_and_knows_which_way_is_better() -> None:
    loss = EarlyStop(EarlyStopConfig("val_loss", patience=2, min_delta=0.1))
    assert [loss.see({"val_loss": value}) for value in (1.0, 0.95, 0.8, float("nan"), 0.75)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert loss.due and loss.best == 0.8
    accuracy = EarlyStop(EarlyStopConfig("val_accuracy", patience=1))
    assert [accuracy.see({"val_accuracy": value}) for value in (0.5, 0.6, 0.6)] == [True, True, False]
    assert accuracy.due
    cost = EarlyStop(EarlyStopConfig("-cost"))
    assert [cost.see({"cost": value}) for value in (2.0, 3.0, 1.0)] == [True, False, True]


def test_a_metric_that_no_evaluation_has_is_named(store: Store, patterns: Dataset) -> None:
    with pytest.raises(BadInput, match=r"early_stop.metric is 'val_f1'; .* val_accuracy, val_loss"):
        Trainer(quick_config(early_stop__metric="val_f1"), store, patterns, run="run").fit()


# -- objects -------------------------------------------------------------------------------------------------------


def test_objects_train_and_the_checkpoint_says_that_the_run_cannot_be_made_again(
    store: Store, patterns: Dataset
) -> None:
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def trainer(run: str) -> Trainer:
        module = network()
        config = replace(
            quick_config(epochs=2),
            model=ModelConfig(module),
            loss=LossConfig(lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="sum")),
            optimizer=OptimizerConfig(reference=torch.optim.SGD(module.parameters(), lr=0.1)),
        )
        return Trainer(config, store, patterns, run=run)

    whole = trainer("whole").fit()
    assert whole.not_reproducible == ["model", "loss", "optimizer"]
    manifest = checkpoints.load(store, "whole").manifest
    assert manifest["provenance"]["not_reproducible"] == ["loss", "model", "optimizer"]
    assert from_dict(manifest["config"]).not_reproducible == ["model", "loss", "optimizer"]
    trainer("parts").fit(max_steps=7)
    assert trainer("parts").fit(resume=True).val_loss == whole.val_loss


def test_a_named_run_is_reproducible(store: Store, patterns: Dataset) -> None:
    assert Trainer(quick_config(epochs=1), store, patterns, run="run").fit().not_reproducible == []
    assert checkpoints.load(store, "run").manifest["provenance"]["not_reproducible"] == []


# -- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model__freeze": ["network.convv"]}, "did you mean 'network.conv'"),
        ({"model__freeze": ["*"]}, "no weight of the model is trained"),
        ({"recompute": True}, "recompute needs blocks"),
        (
            {"optimizer__reference": "torch.optim:RMSprop", "optimizer__params": {"beta": 1}},
            "unexpected keyword",
        ),
        ({"optimizer__reference": "json:detect_encoding"}, "does not take these"),
        ({"loss__params": {"smooth": 1}}, "loss .*smooth"),
        ({"schedule__reference": "json:dumps"}, "schedule json:dumps"),
        ({"device": "mps"}, "there is no mps device"),
    ],
)
def test_what_does_not_fit_is_named_before_the_first_step(
    store: Store, patterns: Dataset, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        Trainer(quick_config(**values), store, patterns, run="run").fit()
    assert not checkpoints.exists(store, "run")


# -- steps that fail -----------------------------------------------------------------------------------------------


def always_nan(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum() * float("nan")


def test_a_bad_loss_names_the_rows_of_the_dataset(store: Store) -> None:
    """Of a dataset whose training rows are no prefix of it: row numbers are those that Dataset.take understands."""
    ds = write_patterns(store, name="unsplit", split=False)
    trainer = Trainer(quick_config(loss__reference=always_nan), store, ds, run="run")
    seen: list[torch.Tensor] = []
    trainer.task = Watched(trainer.task, seen)
    with pytest.raises(
        LossNotFinite, match=r"the loss is nan at step 1 of 18 of run 'run' \(epoch 1\), of rows \d+, "
    ) as caught:
        trainer.fit()
    assert caught.value.step == 1
    assert len(caught.value.rows) == 10
    stored = ds.take(caught.value.rows, ["image"]).column(0).to_pylist()
    assert torch.equal(torch.tensor(stored, dtype=torch.uint8).reshape(seen[0].shape), seen[0])


class Watched:
    def __init__(self, task: Any, seen: list[torch.Tensor]) -> None:
        self._task, self._seen = task, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def split_batch(self, batch: Any, device: torch.device) -> Any:
        self._seen.append(batch[0])
        return self._task.split_batch(batch, device)


def test_a_run_that_leaves_out_every_step_gives_up(store: Store, patterns: Dataset) -> None:
    config = quick_config(loss__reference=always_nan, on_bad_loss="skip", checkpoint__every_steps=1)
    with pytest.raises(LossNotFinite, match="of patterns; 10 steps in a row were left out: lower"):
        Trainer(config, store, patterns, run="run").fit()
    assert len(checkpoints.load(store, "run").manifest["skipped"]) == 9


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(store: Store, patterns: Dataset, error: Exception) -> None:
    class Grows(nn.Module):
        """Fails in the fourth step, as an allocator does."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(36, 3), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 4:
                raise error
            logits: torch.Tensor = self.layer(images.flatten(1))
            return logits

    config = replace(quick_config(checkpoint__every_steps=2), model=ModelConfig(Grows()))
    with pytest.raises(BadInput) as caught:
        Trainer(config, store, patterns, run="run").fit()
    told = str(caught.value)
    assert told.startswith("out of memory at step 4 of 15 of run 'run' (epoch 1): raise accumulate (now 1: ")
    for way in ("recompute = true", 'precision = "bf16"', "data.global_batch_size (now 10", "--resume"):
        assert way in told
    assert "\n" not in told
    assert checkpoints.load(store, "run").manifest["step"] == 2
    # On the way back, what was advised is no other training.
    lighter = replace(config, accumulate=5, model=ModelConfig(Grows()))
    result = Trainer(lighter, store, patterns, run="run").fit(resume=True, max_steps=2)
    assert [warning.split()[0] for warning in result.warnings] == ["accumulate"]


def test_out_of_memory_in_an_evaluation_says_so(store: Store, patterns: Dataset) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise MemoryError
            logits: torch.Tensor = self.layer(images.flatten(1))
            return logits

    config = replace(quick_config(), model=ModelConfig(Grows()))
    with pytest.raises(BadInput, match=r"out of memory at the evaluation after step 5 of run 'run': its batches"):
        Trainer(config, store, patterns, run="run").fit()


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_takes_a_toml_file_and_options_over_it(
    store: Store, patterns: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        epochs = 9
        threads = 1
        device = "cpu"
        clip_norm = 1.0
        [model]
        reference = "trainers.models:cnn"
        params = {hidden = 16}
        [data]
        global_batch_size = 10
        """
    )
    arguments = ["train", "patterns", "--store", str(store.url), "--config", str(path), "--run-name", "run", "--json"]
    assert run(COMMANDS, [*arguments, "--epochs", "1", "--set", "optimizer.lr=0.01"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    config = checkpoints.load(store, "run").config
    assert (config.epochs, config.optimizer.lr, config.clip_norm, config.model.params) == (1, 0.01, 1.0, {"hidden": 16})
    path.write_text("[optimiser]\nlr = 1")
    assert run(COMMANDS, arguments) == 2
    assert "has no key 'optimiser'; did you mean 'optimizer'?" in capsys.readouterr().err


class Preempted(nn.Module):
    """The machine is taken away in the seventh step, once."""

    left: ClassVar = [7]

    def __init__(self, sample_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(sample_shape[0] * sample_shape[1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left[0] -= 1
            if self.left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


def test_a_preempted_command_saves_ends_with_130_and_goes_on(
    store: Store, patterns: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "train",
        "patterns",
        "--store",
        str(store.url),
        "--json",
        "--threads",
        "1",
        "--model",
        f"{__name__}:Preempted",
    ]
    begin = [*options, "--epochs", "3", "--batch-size", "10", "--device", "cpu"]
    assert run(COMMANDS, [*begin, "--run-name", "parts"]) == 130
    said = capsys.readouterr().err
    assert "stopped after step 7 of 15 (epoch 2)" in said and "resume with --run-name parts --resume" in said
    assert run(COMMANDS, [*options, "--run-name", "parts", "--resume"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert run(COMMANDS, [*begin, "--run-name", "whole"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (resumed["history"], resumed["val_loss"]) == (whole["history"], whole["val_loss"])
