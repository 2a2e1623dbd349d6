"""Fine-tuning: weights of an earlier model, a frozen backbone, and what a checkpoint of such a run costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training_data import NAMES, quick_config, write_patterns

from leptonstore.dataset import Dataset, write_files
from leptonstore.errors import BadInput, RefMissing
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import ModelConfig, TrainConfig, with_values
from trainers.deploy import deploy
from trainers.initial import freeze, frozen_names, initialise, prepare_weights
from trainers.loop import Trainer
from trainers.models import resnet

RESNET: dict[str, Any] = {"reference": "trainers.models:resnet", "params": {"width": 8, "stages": 2}}
BACKBONE = ("network.stem", "network.blocks", "network.norm")


def config_of(epochs: int = 2, **model: Any) -> TrainConfig:
    base = quick_config(epochs=epochs)
    return with_values(TrainConfig(**{**vars(base), "model": ModelConfig()}), {"model": {**RESNET, **model}})


@pytest.fixture
def patterns(store: Store) -> Dataset:
    ds = write_patterns(store)
    Trainer(config_of(), store, ds, run="backbone").fit()
    return ds


def weights_of(store: Store, run: str) -> dict[str, torch.Tensor]:
    saved = checkpoints.load(store, run)
    return {path: saved.tensor(path) for path in saved.manifest["tensors"] if path.startswith("model/")}


def test_a_frozen_backbone_stays_and_the_head_learns(store: Store, patterns: Dataset) -> None:
    tuned = Trainer(config_of(init="backbone", freeze=BACKBONE), store, patterns, run="tuned")
    tuned.fit()
    before, after = weights_of(store, "backbone"), weights_of(store, "tuned")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model/network.head.weight", "model/network.head.bias"}
    init = checkpoints.load(store, "tuned").manifest["init"]
    assert init["source"] == "checkpoint/backbone@step-000000010"
    assert init["commit"] == checkpoints.load(store, "backbone").commit
    assert init["drawn"] == []


def test_a_fine_tuning_run_resumes_to_the_bit_and_keeps_its_origin(store: Store, patterns: Dataset) -> None:
    config = config_of(init="backbone", freeze=BACKBONE)
    whole = Trainer(config, store, patterns, run="whole").fit()
    Trainer(config, store, patterns, run="parts").fit(max_steps=3)
    resumed = Trainer(config, store, patterns, run="parts").fit(resume=True)
    assert resumed.history == whole.history
    assert checkpoints.load(store, "parts").manifest["init"] == checkpoints.load(store, "whole").manifest["init"]
    left, right = weights_of(store, "whole"), weights_of(store, "parts")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_frozen_weights_are_kept_once_in_the_store(store: Store, patterns: Dataset) -> None:
    """A checkpoint of a run with most weights frozen adds little: the head, its optimizer state, and the manifest."""
    Trainer(config_of(init="backbone", freeze=BACKBONE), store, patterns, run="tuned").fit(max_steps=1)
    saved = checkpoints.load(store, "tuned")
    weights = sum(saved.tensor(path).nbytes for path in saved.manifest["tensors"] if path.startswith("model/"))
    before = store.new_bytes
    Trainer(config_of(init="backbone", freeze=BACKBONE), store, patterns, run="tuned").fit(resume=True, max_steps=2)
    head = saved.tensor("model/network.head.weight").nbytes + saved.tensor("model/network.head.bias").nbytes
    added = store.new_bytes - before
    assert added < weights / 2 + 20_000, (added, weights, head)


def test_a_deployed_model_is_a_beginning_too_and_another_head_is_drawn_anew(store: Store, patterns: Dataset) -> None:
    deploy(store, "backbone", "model-of-patterns")
    model = nn.Module()
    model.network = resnet((6, 6), 5, width=8, stages=2)
    found = initialise(model, store, "model-of-patterns")
    assert found.source == "model/model-of-patterns"
    assert set(found.drawn) == {"network.head.weight", "network.head.bias"}
    expected = weights_of(store, "backbone")
    assert all(torch.equal(model.state_dict()[name], expected[f"model/{name}"]) for name in found.taken)
    assert "drawn anew: network.head.weight, network.head.bias" in found.told()


@pytest.mark.parametrize(
    ("init", "freeze", "said"),
    [
        ("backbon", (), "no run or model of that name; did you mean 'backbone'"),
        ("both", (), "'both' is a run and a model: write model.init as checkpoint/both or model/both"),
        ("backbone@first", (), "a checkpoint is RUN or RUN@step-N"),
        ("backbone", ("network.block",), "names no weight of this model: 'network.block'; did you mean 'network.blocks'"),
        ("backbone", ("network.head",), "would freeze network.head.weight, network.head.bias, which checkpoint/backbone"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_beginning_is_refused(
    store: Store, patterns: Dataset, init: str, freeze: tuple[str, ...], said: str
) -> None:
    for kind in ("checkpoint", "model"):
        write_files(store, kind, "both", [("a", b"b")], {})
    model = nn.Module()
    model.network = resnet((6, 6), len(NAMES) + 1, width=8, stages=2)
    with pytest.raises(BadInput, match=said):
        prepare_weights(model, ModelConfig(init=init, freeze=freeze), store)


def test_a_model_of_another_architecture_has_nothing_to_give(store: Store, patterns: Dataset) -> None:
    with pytest.raises(BadInput, match="of which no tensor fits this model"):
        initialise(nn.Linear(3, 2), store, "backbone")
    with pytest.raises(RefMissing, match="step-000000099"):
        initialise(nn.Linear(3, 2), store, "backbone@step-99")


def test_patterns_name_weights_by_their_beginning_or_by_stars() -> None:
    model = nn.ModuleDict({"conv": nn.Linear(2, 2), "conv1": nn.Linear(2, 2)})
    assert frozen_names(model, ("conv",)) == ["conv.weight", "conv.bias"]
    assert frozen_names(model, ("*.bias",)) == ["conv.bias", "conv1.bias"]
    assert frozen_names(model, ("conv1.weight", "conv")) == ["conv.weight", "conv.bias", "conv1.weight"]
    assert frozen_names(model, ()) == []


def test_what_is_frozen_rests_in_training() -> None:
    """The statistics of a frozen batch norm would move, and with them what the trained part sees."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    freeze(model, ["0.weight", "0.bias", "1.weight", "1.bias"])
    model.train()
    assert [part.training for part in model] == [False, False, True, True]
    before = model[1].running_mean.clone()
    model(torch.randn(8, 4))
    assert torch.equal(model[1].running_mean, before)
    assert not model.eval()[3].training and model.train()[3].training
