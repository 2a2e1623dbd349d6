"""A run that stops at any step and goes on is, bit for bit, the run that never stopped; what does not fit is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_data import quick_config, write_patterns

from leptonstore.dataset import Dataset, FileTable, StoredValue, list_refs, write_files
from leptonstore.dataset.branches import create_ref
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    FormatDamaged,
    FormatTooNew,
    LeptonWarning,
    RefMissing,
    Stopped,
)
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import TrainConfig
from trainers.loop import Trainer
from trainers.metrics import read_metrics
from trainers.result import StepEvent, TrainResult


class WithDropout(nn.Module):
    """Draws random numbers at every step, and has buffers that move."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(pixels),
            nn.Linear(pixels, 16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


def with_dropout(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    return WithDropout(sample_shape[0] * sample_shape[1], classes)


DROPOUT = {"model.reference": f"{__name__}:with_dropout", "model.params": {}}


def train(
    store: Store, ds: Dataset, config: TrainConfig, log: Path | None = None, run: str = "run", **fit: Any
) -> tuple[Trainer, TrainResult]:
    trainer = Trainer(config, store, ds, run=run, metrics=log)
    return trainer, trainer.fit(**fit)


def steps(log: Path) -> list[tuple[int, float, float]]:
    return [(event["step"], event["loss"], event["lr"]) for event in read_metrics(log) if event["event"] == "step"]


def same_weights(left: Trainer, right: Trainer) -> bool:
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("values", [{}, DROPOUT, {"optimizer.name": "sgd"}], ids=["cnn", "dropout", "sgd"])
def test_resume_at_every_kind_of_step_is_bit_exact(
    store: Store, patterns: Dataset, tmp_path: Path, values: dict[str, Any]
) -> None:
    """Steps of three epochs of five: the first, in mid-epoch, the last of an epoch, the first of one, the very last."""
    config = quick_config(**values)
    whole, expected = train(store, patterns, config, tmp_path / "whole.jsonl", run="whole")
    for at in (1, 3, 5, 6, 14, 15):
        log, run = tmp_path / f"{at}.jsonl", f"stopped-{at}"
        _, first = train(store, patterns, config, log, run=run, max_steps=at)
        assert (first.steps, first.finished) == (at, at == 15)
        resumed, result = train(store, patterns, config, log, run=run, resume=True)
        assert steps(log) == steps(tmp_path / "whole.jsonl")
        assert same_weights(resumed, whole)
        assert result.history == expected.history
        assert (result.val_accuracy, result.val_loss) == (expected.val_accuracy, expected.val_loss)
        assert result.warnings == []


def test_training_learns_and_the_same_training_is_the_same_commit(store: Store, patterns: Dataset) -> None:
    config = quick_config(epochs=12)
    _, first = train(store, patterns, config)
    again = Trainer(config, store, patterns, run="run").fit()
    assert first.val_accuracy > 0.9
    assert again.checkpoint == first.checkpoint
    assert first.data_wait_fraction <= 1
    assert first.time.wall > 0
    assert (first.train_samples, first.val_samples, first.steps) == (50, 21, 60)


def test_sigterm_finishes_the_step_saves_and_stops(store: Store, patterns: Dataset, tmp_path: Path) -> None:
    config = quick_config()
    whole, _ = train(store, patterns, config, tmp_path / "whole.jsonl", run="whole")

    def stop(event: StepEvent) -> None:
        if event.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    log = tmp_path / "log.jsonl"
    with pytest.raises(Stopped, match="--run-name run --resume"):
        Trainer(config, store, patterns, run="run", metrics=log, on_step=[stop]).fit()
    assert signal.getsignal(signal.SIGTERM) is handler
    resumed, _ = train(store, patterns, config, log, resume=True)
    assert steps(log) == steps(tmp_path / "whole.jsonl")
    assert same_weights(resumed, whole)


def test_checkpoints_come_as_often_as_asked_and_old_ones_go(store: Store, patterns: Dataset) -> None:
    train(store, patterns, quick_config(checkpoint__every_steps=2, checkpoint__keep_last=4))
    kept = [ref.branch for ref in list_refs(store, "checkpoint", "run")]
    assert kept == [checkpoints.branch_of(step) for step in (10, 12, 14, 15)]
    opened = checkpoints.load(store, "run", step=12)
    assert (opened.manifest["epoch"], opened.manifest["step_in_epoch"]) == (2, 2)
    with pytest.raises(RefMissing, match="step-000000010"):
        checkpoints.load(store, "run", step=11)
    with pytest.raises(RefMissing, match="run 'other'"):
        checkpoints.load(store, "other")


def test_a_tag_of_a_checkpoint_is_kept_and_is_not_the_newest_one(store: Store, patterns: Dataset) -> None:
    config = quick_config(checkpoint__every_steps=2, checkpoint__keep_last=2)
    train(store, patterns, config)
    first = checkpoints.load(store, "run", step=14)
    create_ref(store, "checkpoint", "run", "best", first.commit, tag=True)
    assert checkpoints.load(store, "run").branch == checkpoints.branch_of(15)
    saved = checkpoints.load(store, "run").files
    write_files(store, "checkpoint", "run", [("a", b"b")], {}, branch=checkpoints.branch_of(99))
    assert [ref.branch for ref in checkpoints.by_age(store, "run")][-1] == checkpoints.branch_of(99)
    assert saved.commit != first.commit and "best" in [ref.branch for ref in list_refs(store, "checkpoint", "run")]


def test_a_checkpoint_names_the_data_and_the_configuration_that_made_it(store: Store, patterns: Dataset) -> None:
    _, result = train(store, patterns, quick_config(), max_steps=7)
    lineage = FileTable.open(store, "checkpoint", "run@step-000000007").lineage
    assert lineage["data"]["training"]["commit"] == patterns.commit
    assert lineage["data"]["training"]["rows"] == 50
    assert lineage["config"]["optimizer"]["lr"] == 0.003
    assert result.checkpoint == checkpoints.load(store, "run").commit


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer.lr": 0.5}, "optimizer.lr is 0.003 in the checkpoint and 0.5 here"),
        ({"seed": 1}, "seed is 0"),
        ({"epochs": 4}, "epochs is 3"),
        ({"model.params.hidden": 17}, "model.params.hidden"),
        ({"data.global_batch_size": 5}, "data.global_batch_size"),
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_another_training_neither_resumes_nor_replaces(
    store: Store, patterns: Dataset, values: dict[str, Any], said: str, resume: bool
) -> None:
    train(store, patterns, quick_config(), max_steps=2)
    with pytest.raises(BadInput, match=said):
        train(store, patterns, quick_config(**values), resume=resume)


def test_another_version_of_the_data_is_refused_by_name(store: Store, patterns: Dataset) -> None:
    train(store, patterns, quick_config(), max_steps=2)
    changed = write_patterns(store, train=60)
    with pytest.raises(BadInput, match=r"data\.training\.commit"):
        train(store, changed, quick_config(), resume=True)


def test_other_threads_are_reported_and_the_run_goes_on(store: Store, patterns: Dataset) -> None:
    train(store, patterns, quick_config(), max_steps=2)
    _, result = train(store, patterns, quick_config(threads=2), resume=True)
    assert result.finished
    assert [warning.split()[0] for warning in result.warnings] == ["threads"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(store: Store, patterns: Dataset) -> None:
    config = quick_config(optimizer__name="sgd", optimizer__lr=1e30, checkpoint__every_steps=1)
    with pytest.raises(BadInput, match=r"the loss is (nan|inf) at step \d+ of 15 .*, of rows \d+, .* of patterns"):
        train(store, patterns, config)
    kept = checkpoints.load(store, "run")
    assert kept.manifest["step"] >= 1


# -- checkpoints that somebody else wrote ------------------------------------------------------------------------------


LAYOUT_KEYS = ("format", "version", "cell_bytes", "tensors")


def rewrite(store: Store, **changes: Any) -> None:
    """Replace keys of the layout or of the manifest, or cells (keys with a slash; None removes)."""
    table = FileTable.open(store, "checkpoint", "run@step-000000002")
    files = {path: table.read(path) for path in table.paths()}
    layout, lineage = json.loads(files["layout.json"]), dict(table.lineage)
    for key, value in changes.items():
        if "/" in key:
            files[f"{key}/000000.cell"] = value
        else:
            (layout if key in LAYOUT_KEYS else lineage)[key] = value
    files["layout.json"] = json.dumps(layout).encode()
    kept = [(path, data) for path, data in files.items() if data is not None]
    write_files(store, "checkpoint", "run", kept, lineage, branch="step-000000002", apart=True)


def as_version_1(store: Store) -> None:
    """Write the checkpoint anew as LeptonStore did until it had cells: a file for each tensor, everything else in one manifest."""
    saved = checkpoints.load(store, "run", 2)
    manifest = {**saved.manifest, "format": "lepton.checkpoint", "version": 1, "optimizer_scalars": {}}
    del manifest["scalars"]
    files = [("manifest.json", json.dumps(manifest).encode())]
    files += [(path, saved.bits(path).tobytes()) for path in saved.paths]
    write_files(store, "checkpoint", "run", files, {"operation": "train"}, branch="step-000000002")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "else"}, FormatDamaged),
        ({"version": 3}, FormatTooNew),
        ({"version": 1}, FormatDamaged),
        ({"cell_bytes": 0}, FormatDamaged),
        ({"cell_bytes": 1 << 40}, FormatDamaged),
        ({"scalars": []}, FormatDamaged),
        ({"version": "1"}, FormatDamaged),
        ({"step": -1}, FormatDamaged),
        ({"tensors": []}, FormatDamaged),
        ({"tensors": {}}, BadInput),
        ({"model/network.conv.bias": b"\0\0"}, FormatDamaged),
        ({"model/network.conv.bias": None}, FormatDamaged),
        ({"rng/rank-0/cpu": b"\0" * 5056}, FormatDamaged),
        ({"config": {"epoch": 3}}, BadInput),
        ({"task": {}}, (FormatDamaged, BadInput)),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    store: Store, patterns: Dataset, changes: dict[str, Any], error: type[Exception]
) -> None:
    train(store, patterns, quick_config(), max_steps=2)
    rewrite(store, **changes)
    with pytest.raises(error):
        train(store, patterns, quick_config(), resume=True)


def test_a_checkpoint_of_version_1_resumes_as_before(store: Store, patterns: Dataset) -> None:
    _, whole = train(store, patterns, quick_config(), run="whole")
    train(store, patterns, quick_config(), max_steps=2)
    as_version_1(store)
    assert checkpoints.load(store, "run").opened.version == 1
    train(store, patterns, quick_config(), resume=True)
    left, right = checkpoints.load(store, "whole"), checkpoints.load(store, "run")
    assert left.paths == right.paths and all(left.cells(path) == right.cells(path) for path in left.paths)
    assert whole.finished


def test_a_damaged_newest_checkpoint_is_passed_over_on_request(store: Store, patterns: Dataset) -> None:
    whole, _ = train(store, patterns, quick_config(), run="whole")
    train(store, patterns, quick_config(checkpoint__every_steps=2, checkpoint__keep_last=4), max_steps=4)
    newest = checkpoints.load(store, "run")
    cell = newest.cell("model/network.conv.weight", 0)
    assert isinstance(cell, StoredValue)
    place = store.locate(cell.digest)
    assert place is not None
    pack = Path(store.url) / "packs" / place.pack[:2] / f"{place.pack}.pack"
    data = bytearray(pack.read_bytes())
    data[(place.row.offset + place.row.end) // 2] ^= 1
    pack.write_bytes(data)
    with pytest.raises(
        ChunkCorrupt, match=r"checkpoint step-000000004 of run 'run', tensor 'model/network\.conv\.weight'"
    ):
        train(store, patterns, quick_config(), resume=True)
    with pytest.warns(LeptonWarning, match="step-000000004 of run 'run' is damaged"):
        resumed, result = train(store, patterns, quick_config(), resume=True, fallback=True)
    assert result.finished and same_weights(whole, resumed)


def test_saving_in_the_background_changes_nothing_but_the_time(store: Store, patterns: Dataset) -> None:
    whole, _ = train(store, patterns, quick_config(checkpoint__every_steps=2), run="whole")
    config = quick_config(checkpoint__every_steps=2, checkpoint__asynchronous=True)
    train(store, patterns, config, max_steps=7)
    resumed, result = train(store, patterns, config, resume=True)
    assert same_weights(whole, resumed) and result.checkpoint == checkpoints.load(store, "run").commit
    left, right = checkpoints.load(store, "whole"), checkpoints.load(store, "run")
    assert all(left.cells(path) == right.cells(path) for path in {*left.paths, *right.paths})


def test_a_stored_model_reference_is_not_followed_unasked(store: Store, patterns: Dataset, tmp_path: Path) -> None:
    """A checkpoint that says "os:system" must not run anything, and neither must one with a pickle in it."""
    train(store, patterns, quick_config(), max_steps=2)
    marker = tmp_path / "executed"
    manifest = checkpoints.load(store, "run").manifest
    config = {**manifest["config"], "model": {"reference": "os:system", "params": {"command": f"touch {marker}"}}}
    rewrite(store, config=config)
    with pytest.raises(BadInput, match="os:system"):
        checkpoints.build_stored_model(checkpoints.load(store, "run"))
    with pytest.raises(BadInput, match="another training: model"):
        train(store, patterns, quick_config(), resume=True)
    bomb = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    rewrite(store, config=manifest["config"], **{"model/network.conv.weight": bomb})
    with pytest.raises(FormatDamaged):
        checkpoints.build_stored_model(checkpoints.load(store, "run"))
    assert not marker.exists()
