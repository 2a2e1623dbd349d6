"""Every kind of task: found in the schema, trained, resumed to the bit, evaluated the same by any number of ranks; refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranks import run_ranks
from task_data import STATISTICS, chain, image_data, text_data, texts, write_jpegs, write_numbers, write_texts
from training_data import train_command, write_patterns

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import DataConfig, ModelConfig, TrainConfig, with_values
from trainers.evaluate import evaluate
from trainers.loop import Trainer
from trainers.opened import open_model
from trainers.parallel import World
from trainers.predict import score_texts
from trainers.run import run_train
from trainers.tasks import LanguageModelling, Regression, blocks, split_dataset, task_from_dict, task_of

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": "cpu", "threads": 1, "epochs": 2}
IMAGE: dict[str, Any] = {
    "model": {"reference": "trainers.models:resnet", "params": {"width": 8}},
    "data.transforms.image": chain("DecodeImage", RandomResizedCrop={"size": 16}, RandomHorizontalFlip={}),
    "data.global_batch_size": 16,
}
TEXT: dict[str, Any] = {
    "model": {"reference": "trainers.models:transformer", "params": {"layers": 1, "width": 16, "heads": 2}},
    "data.sequence_length": 32,
    "data.global_batch_size": 8,
}
NUMBERS: dict[str, Any] = {"data.inputs": "features", "data.labels": "value"}
CROPPED = {"data.transforms.image": chain("DecodeImage", RandomCrop={"size": 16})}
KINDS = {"jpegs": IMAGE, "texts": TEXT, "numbers": NUMBERS}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as opened:
        write_jpegs(opened)
        write_texts(opened)
        write_numbers(opened)
        yield opened


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_learns_and_resumes_to_the_bit(store: Store, name: str) -> None:
    values = {**QUICK, "epochs": 3, **KINDS[name]}
    whole = run_train(store, name, values, run="whole")
    run_train(store, name, values, run="parts", max_steps=4)
    resumed = run_train(store, name, {}, run="parts", resume=True)
    assert resumed["history"] == whole["history"]
    losses = [record["val_loss"] for record in whole["history"]]
    assert losses[-1] < losses[0]


def test_packs_of_documents_learn_and_resume_to_the_bit(store: Store) -> None:
    values = {**QUICK, **TEXT, "data.packs": True, "epochs": 3}
    whole = run_train(store, "texts", values, run="whole")
    assert "packed" in whole["task"]
    run_train(store, "texts", values, run="parts", max_steps=4)
    resumed = run_train(store, "texts", {}, run="parts", resume=True)
    assert resumed["history"] == whole["history"]
    assert whole["history"][-1]["val_loss"] < whole["history"][0]["val_loss"]
    task = checkpoints.load(store, "parts").task
    assert isinstance(task, LanguageModelling) and task.packs and task_from_dict(task.to_dict()) == task
    assert "packs" not in dataclasses.replace(task, packs=False).to_dict()  # as before there were packs
    with pytest.raises(BadInput, match="stride"):
        task_of(Dataset.open(store, "texts"), DataConfig(inputs="tokens", packs=True, stride=8))


def test_a_document_in_a_pack_is_measured_as_if_it_were_alone(store: Store) -> None:
    """Documents of up to a pack's length: what `evaluate` finds is the mean over what `score_texts` finds of each."""
    values = {**QUICK, **TEXT, "data.packs": True, "data.sequence_length": 256, "epochs": 1}
    run_train(store, "texts", values, run="packs")
    model = open_model(store, "checkpoint/packs").model
    ds = Dataset.open(store, "texts")
    documents = [np.array(one, np.uint8) for one in ds.to_arrow(["tokens"])["tokens"].to_pylist()]
    assert max(map(len, documents)) <= 256
    assert isinstance(model.task, LanguageModelling)
    alone = score_texts(model, model.task, documents)
    targets = [len(one) - 1 for one in documents]
    found = evaluate(model, ds).loss
    assert found == pytest.approx(np.average(alone, weights=targets), rel=1e-5)


@pytest.mark.parametrize("packs", [False, True])
def test_three_ranks_train_on_a_text_as_one_does(store: Store, tmp_path: Path, packs: bool) -> None:
    """Windows in batches of 7: shares of 2, 2 and 3, and a last batch of fewer. Losses are divided by tokens, whoever has them."""
    values = {**QUICK, **TEXT, "data.global_batch_size": 7, "data.packs": packs}
    alone = run_train(store, "texts", values, run="alone")["history"]
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    arguments = ["--run-name", "three", *(part for setting in settings for part in ("--set", setting))]
    train_command(3, tmp_path / "store", arguments, {"XDG_CACHE_HOME": str(tmp_path)}, dataset="texts")
    store.refresh()
    together = checkpoints.load(store, "three").manifest["history"]
    for one, three in zip(alone, together, strict=True):
        assert three == pytest.approx(one, rel=1e-5)


def test_evaluation_is_the_same_to_the_bit_for_any_number_of_ranks(store: Store, tmp_path: Path) -> None:
    """JPEGs through a normalising ResNet and a text through a transformer, by 1, 2 and 3 ranks, whole and sharded."""
    told = []
    for ranks in (1, 2, 3):
        (tmp_path / str(ranks)).mkdir()
        told += run_ranks("evaluate_run.py", tmp_path / str(ranks), ranks)
    # The mlp of two tensor ranks adds up in another order; both ranks see every row, and it counts once.
    for parted in [one.pop("tensor ranks") for one in told if "tensor ranks" in one]:
        assert (parted["rows"], parted["tokens"]) == (told[0]["texts"]["rows"], told[0]["texts"]["tokens"])
        assert parted["loss"] == pytest.approx(told[0]["texts"]["loss"], abs=1e-6)
    assert told == [told[0]] * 6
    assert told[0]["jpegs"] == told[0]["jpegs, sharded"] and told[0]["texts"] == told[0]["texts, sharded"]
    assert told[0]["texts"]["tokens"] == sum(map(len, texts(60))) - 1  # every one that has one before it


def test_a_block_and_not_the_ranks_decides_the_bits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes: the blocks of three ranks, one rank after another, add up to those of one."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS_MAX", 11)
    ds, data = Dataset.open(store, "jpegs"), image_data()
    task = task_of(ds, data)
    model = task.build(ModelConfig("trainers.models:resnet", {"width": 8}), 0).eval()
    meters = []
    for world in [World(), *(World(rank, 3) for rank in range(3))]:
        meters.append(task.meter())
        for batch in task.loader(ds, data, 0, world, train=False):
            inputs, targets = task.split_batch(batch, CPU)
            with torch.no_grad():
                meters[-1].add(model(inputs), targets)
    alone, *shared = [meter.sums() for meter in meters]
    added = [sum(parts[1:], parts[0]) for parts in zip(*shared, strict=True)]
    assert task.meter().result(alone).to_dict() == task.meter().result(added).to_dict()


# -- what is found -----------------------------------------------------------------------------------------------------


def test_the_schema_says_the_task_and_the_task_says_what_it_found(store: Store) -> None:
    write_patterns(store)
    found = {
        name: task_of(Dataset.open(store, name), data).describe()
        for name, data in {
            "patterns": DataConfig(),
            "jpegs": image_data(),
            "texts": DataConfig(),
            "numbers": DataConfig(inputs="features", labels="value"),
        }.items()
    }
    assert found == {
        "patterns": "image classification: column 'image', uint8 6 x 6, 3 classes of column 'label'",
        "jpegs": "image classification: column 'image', uint8 16 x 16 x 3 after 3 transforms, 3 classes of column 'label'",
        "texts": "language modelling: column 'tokens', bytes, 128 at a time",
        "numbers": "regression: 1 of column 'value' from 5 of column 'features'",
    }


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("jpegs", image_data()),
        ("texts", text_data()),
        ("numbers", DataConfig(inputs="features", labels="value")),
        ("patterns", DataConfig()),
    ],
)
def test_a_description_brings_the_task_back(store: Store, name: str, data: DataConfig) -> None:
    write_patterns(store)
    ds = Dataset.open(store, name)
    task = task_of(ds, data)
    again = task_from_dict(task.to_dict())
    assert again == task
    again.require_fits(ds)
    example = task.example(3, CPU)
    inputs, targets = task.split_batch(next(iter(task.loader(ds, data, 0, World(), train=True))), CPU)
    assert (example.shape[0], example.shape[1:], example.dtype) == (3, inputs.shape[1:], inputs.dtype)
    assert task.count_of(len(inputs)) == task.count(targets)


def test_tokens_that_are_no_bytes_have_the_vocabulary_of_the_whole_version(store: Store) -> None:
    ds = write_texts(store, "wide", kind=pa.uint16())
    train, _ = split_dataset(ds, DataConfig())
    task = task_of(train, text_data())
    assert isinstance(task, LanguageModelling)
    assert task.vocabulary == max(max(text) for text in texts(60)) + 1
    assert task.bytes_per_token is None
    batch = next(iter(task.loader(train, text_data(), 0, World(), train=True)))
    inputs, targets = task.split_batch(batch, CPU)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    with pytest.raises(
        BadInput, match=f"has a token {task.vocabulary - 1}; the model knows 0 to {task.vocabulary - 2}"
    ):
        dataclasses.replace(task, vocabulary=task.vocabulary - 1).require_fits(ds)


def test_images_travel_as_bytes_and_the_model_normalises(store: Store) -> None:
    """The model's outputs are those of normalised floats, which a chain that ends otherwise brings as they are."""
    ds = Dataset.open(store, "jpegs")
    steps = [*chain("DecodeImage", Resize={"size": [16, 16]}), *chain(Normalize=STATISTICS)]
    config = with_values(TrainConfig(), {"data.transforms.image": steps}).data
    doubled = with_values(TrainConfig(), {"data.transforms.image": [*steps, *chain("RandomHorizontalFlip")]}).data
    inside, outside = task_of(ds, config), task_of(ds, doubled)
    assert (inside.dtype, outside.dtype) == ("uint8", "float32")  # type: ignore[attr-defined]
    outputs = []
    for task, data in ((inside, config), (outside, doubled)):
        model = task.build(ModelConfig("trainers.models:resnet", {"width": 8}), 0).eval()
        inputs, _ = task.split_batch(next(iter(task.loader(ds, data, 0, World(), train=False))), CPU)
        outputs.append(model(inputs))
    assert torch.allclose(*outputs, atol=1e-5)


def test_rows_as_they_are_stored_become_what_the_model_takes(store: Store) -> None:
    ds, data = Dataset.open(store, "jpegs"), image_data()
    task = task_from_dict(task_of(ds, data).to_dict())
    batch, _ = next(iter(task.loader(ds, data, 0, World(), train=False)))
    prepared = task.prepared([ds[row]["image"] for row in range(len(ds))])  # type: ignore[attr-defined]
    assert torch.equal(prepared[: len(batch)], batch)


def test_a_model_of_another_task_is_refused(store: Store) -> None:
    task = task_of(Dataset.open(store, "texts"), text_data())
    with pytest.raises(BadInput, match=r"trainers.models:cnn. does not take these parameters \(256, 32\)"):
        task.build(ModelConfig(), 0)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("jpegs", {}, r"column 'image' of jpegs holds encoded images.*DecodeImage"),
        ("jpegs", {"data.inputs": "imge"}, "no column 'imge'; did you mean 'image'"),
        ("jpegs", {"data.labels": "path"}, "column 'path' of jpegs is no class label"),
        ("jpegs", {"data.task": "text"}, "data.task is 'text'; it must be one of auto, image-classification"),
        ("jpegs", {"data.task": "language-modelling"}, "column 'image' of jpegs holds large_binary; a language model"),
        ("texts", {"data.task": "image-classification"}, "no class label|no column 'label'"),
        ("texts", {"data.inputs": "path", "data.task": "language-modelling"}, "column 'path' of texts holds string"),
        ("texts", {"data.sequence_length": 1_000_000}, "fewer than 1000001 tokens.*lower data.sequence_length"),
        ("numbers", {}, "numbers has no column of images or tokens; it has features"),
        (
            "jpegs",
            {**CROPPED, "data.validation_transforms.image": chain("DecodeImage", Resize={"size": [8, 8]})},
            r"make uint8 \(16, 16, 3\) of an image in training and uint8 \(8, 8, 3\) in validation",
        ),
        (
            "jpegs",
            {"data.validation_transforms.image": chain("DecodeImage", RandomCrop={"size": 16})},
            "RandomCrop, which is random: evaluation is not",
        ),
        ("jpegs", {"data.transforms.label": chain("ToFloat")}, "names the column 'label'; only 'image'"),
        (
            "jpegs",
            {"data.transforms.image": chain("DecodeImage", Resize={"size": [8, 8]}, Normalize={"mean": [0.5], "std": [1]})},
            "1 means, and images have 3 channels",
        ),
    ],
)  # fmt: skip
def test_what_fits_no_task_is_refused_by_column_and_fix(
    store: Store, name: str, values: dict[str, Any], said: str
) -> None:
    config = with_values(TrainConfig(), values)
    with pytest.raises(BadInput, match=said):
        ds = Dataset.open(store, name)
        Trainer(config, store, ds).task.loader(ds, config.data, 0, World(), train=True)


def test_two_columns_that_fit_are_a_question(store: Store) -> None:
    ds = Dataset.open(store, "texts")
    table = ds.to_arrow()
    twice = table.append_column(table.schema.field("tokens").with_name("more"), table.column("tokens"))
    from task_data import write_table

    made = write_table(store, "twice", twice.schema, [column.combine_chunks() for column in twice.columns], "path")
    with pytest.raises(BadInput, match=r"columns tokens, more: choose one with data\.inputs"):
        task_of(made, DataConfig())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "else"},
        {"shape": [16]},
        {"shape": [1 << 20, 1 << 20, 3]},
        {"shape": "abc"},
        {"classes": ["one"]},
        {"dtype": "int64"},
        {"mean": [0.5]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [float("nan"), 1.0, 1.0]},
        {"transforms": 3},
        {"labels": None, "shape": None},
    ],
)
def test_a_damaged_description_is_refused(store: Store, changes: dict[str, Any]) -> None:
    tree = {**task_of(Dataset.open(store, "jpegs"), image_data()).to_dict(), **changes}
    with pytest.raises(FormatDamaged):
        task_from_dict(tree)


@pytest.mark.parametrize(
    "step",
    [
        {"reference": "os:system"},
        {"reference": "loaders.transforms:FunctionTransform", "params": {"function": "os.system"}},
        {"reference": "loaders.transforms:compile_chain"},
        {"reference": "loaders.transforms:Resize", "params": {"size": -1}},
        {"reference": "loaders.transforms:Resize", "params": {"other": 1}},
        {"reference": "loaders.transforms:Resize", "params": 3},
        "DecodeImage",
    ],
)
def test_a_stored_description_runs_only_this_projects_transforms(store: Store, step: Any) -> None:
    tree = task_of(Dataset.open(store, "jpegs"), image_data()).to_dict()
    with pytest.raises(FormatDamaged):
        task_from_dict({**tree, "transforms": [step]}).prepared([b""])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes", [{"vocabulary": 0}, {"length": 0}, {"stride": 0}, {"bytes_per_token": 3}, {"length": None}]
)
def test_a_damaged_description_of_text_is_refused(store: Store, changes: dict[str, Any]) -> None:
    with pytest.raises(FormatDamaged):
        task_from_dict({**task_of(Dataset.open(store, "texts"), text_data()).to_dict(), **changes})


def test_a_damaged_description_of_numbers_is_refused() -> None:
    tree = Regression("a", "b", 5, 1).to_dict()
    for changes in ({"features": 0}, {"targets": 1 << 40}, {"features": "x"}):
        with pytest.raises(FormatDamaged):
            task_from_dict({**tree, **changes})


def test_evaluation_of_other_data_is_refused_by_name(store: Store) -> None:
    task = task_of(Dataset.open(store, "jpegs"), image_data())
    model = task.build(ModelConfig("trainers.models:resnet", {"width": 8}), 0)
    with pytest.raises(BadInput, match="no column 'image'"):
        evaluate(model, Dataset.open(store, "texts"), task=task)
    fewer = write_jpegs(store, "fewer", train=6, val=3)
    evaluate(model, fewer, task=task)
    assert np.isfinite(evaluate(model, fewer, task=task).loss)
