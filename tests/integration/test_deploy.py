"""A deployed model gives the outputs of the trained one, names its data, and cannot run anybody's code."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import NAMES, SHAPE, patterns, quick_config, write_patterns

from leptonstore.dataset import Dataset, FileTable, write_files
from leptonstore.dataset.schema import class_names
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, RefMissing, SourceError
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.bundle import VERSION
from trainers.deploy import deploy, load_bundle
from trainers.evaluate import evaluate
from trainers.loop import Trainer
from trainers.predict import predict_dataset, predict_images
from trainers.result import TrainResult
from trainers.run import run_deploy, run_evaluate, run_predict_dataset, run_predict_images


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    place = tmp_path_factory.mktemp("deploy")
    with Store.create(place / "store", cache_dir=place / "cache") as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(store: Store) -> Dataset:
    return write_patterns(store)


@pytest.fixture(scope="module")
def trained(store: Store, dataset: Dataset) -> tuple[Trainer, TrainResult]:
    trainer = Trainer(quick_config(epochs=12), store, dataset, run="run")
    return trainer, trainer.fit()


@pytest.fixture(autouse=True, scope="module")
def deployed(store: Store, trained: tuple[Trainer, TrainResult]) -> None:
    deploy(store, "run", "model")


def test_a_bundle_gives_the_outputs_of_the_model(store: Store, trained: tuple[Trainer, TrainResult]) -> None:
    model = trained[0].model.eval()
    bundle = load_bundle(store, "model")
    for rows in (0, 1, 7, 500):
        images = torch.randint(0, 256, (rows, *SHAPE), dtype=torch.uint8)
        assert torch.equal(bundle(images), model(images))
        assert torch.equal(bundle(images.numpy()), bundle(images))
    assert bundle.classes == tuple(NAMES)


def test_deploying_again_is_the_same_commit_and_adds_nothing(store: Store) -> None:
    again = deploy(store, "run", "model")
    assert again.commit == load_bundle(store, "model").commit


def test_a_model_names_the_data_that_made_it(
    store: Store, dataset: Dataset, trained: tuple[Trainer, TrainResult]
) -> None:
    result = trained[1]
    told = run_deploy(store, "run", "model")
    assert told["data"]["training"]["commit"] == dataset.commit
    assert told["checkpoint"]["commit"] == result.checkpoint
    assert told["metrics"]["val_accuracy"] == result.val_accuracy


def test_evaluation_agrees_with_training(store: Store, dataset: Dataset, trained: tuple[Trainer, TrainResult]) -> None:
    result, bundle = trained[1], load_bundle(store, "model")
    evaluation = evaluate(bundle, dataset.split("test"))
    assert evaluation.accuracy == result.val_accuracy
    assert evaluation.loss == pytest.approx(result.val_loss, abs=1e-6)
    assert evaluation.confusion.sum() == evaluation.rows == 21
    images, labels = patterns(71)
    predicted = bundle(images[50:]).argmax(1).numpy()
    expected = np.zeros((3, 3), np.int64)
    np.add.at(expected, (labels[50:], predicted), 1)
    assert (evaluation.confusion == expected).all()
    assert [score.rows for score in evaluation.per_class] == np.bincount(labels[50:]).tolist()
    assert run_evaluate(store, "model", "patterns")["accuracy"] == result.val_accuracy
    assert run_evaluate(store, "model", "patterns", "all")["rows"] == 71
    with pytest.raises(BadInput, match="no split"):
        run_evaluate(store, "model", "patterns", "tset")


def test_predictions_of_a_dataset_are_a_new_version(store: Store, dataset: Dataset) -> None:
    bundle = load_bundle(store, "model")
    made = predict_dataset(store, bundle, dataset)
    assert [parent.hex() for parent in made.commit_object.parents] == [dataset.commit]
    assert made.commit_object.lineage["model"]["commit"] == bundle.commit
    assert made.schema.names == [*dataset.schema.names, "predicted", "confidence"]
    assert class_names(made.schema.field("predicted")) == NAMES
    table = made.to_arrow()
    assert table.select(dataset.schema.names).equals(dataset.to_arrow())
    predicted, confidence = table["predicted"].to_numpy(), table["confidence"].to_numpy()
    shares = torch.softmax(bundle(patterns(71)[0]), 1)
    assert (predicted == shares.argmax(1).numpy()).all()
    assert np.allclose(confidence, shares.max(1).values.numpy(), atol=1e-6)
    told = run_predict_dataset(store, "model", "patterns")
    assert (told["commit"], told["dataset"], told["rows"]) == (made.commit, "patterns@predictions", 71)
    assert predict_dataset(store, bundle, made).schema.names == made.schema.names


def test_new_images_of_any_size_and_colour_get_labels(store: Store, tmp_path: Path) -> None:
    images, labels = patterns(12, seed=9)
    paths = []
    for at, image in enumerate(images):
        large = Image.fromarray(image).resize((24, 24), Image.Resampling.NEAREST).convert("RGB" if at % 2 else "L")
        paths.append(tmp_path / f"{at}.png")
        large.save(paths[-1])
    told = run_predict_images(store, "model", paths)["predictions"]
    right = sum(one["label"] == NAMES[label] for one, label in zip(told, labels, strict=True))
    assert right >= 10
    assert all(1 / 3 <= one["confidence"] <= 1 for one in told)
    bundle = load_bundle(store, "model")
    assert predict_images(bundle, [images[0]])[0].label == NAMES[int(bundle(images[:1]).argmax())]
    assert predict_images(bundle, []) == []
    (tmp_path / "broken.png").write_bytes(b"no image")
    for path in ("broken.png", "absent.png"):
        with pytest.raises(SourceError, match=path):
            predict_images(bundle, [tmp_path / path])


def test_the_standard_archive_runs_without_leptonstore(store: Store, tmp_path: Path) -> None:
    bundle = deploy(store, "run", "model", pt2=tmp_path / "model.pt2")
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(program(images), bundle(images), atol=1e-6)


def test_what_a_model_does_not_take_is_said(store: Store) -> None:
    bundle = load_bundle(store, "model")
    for images in (torch.zeros((1, 6, 6)), torch.zeros((1, 6, 7), dtype=torch.uint8), np.zeros((6, 6), np.uint8)):
        with pytest.raises(BadInput, match=r"takes uint8 \[b, 6, 6\]"):
            bundle(images)
    other = write_patterns(store, "narrow")
    with pytest.raises(RefMissing, match="no-model"):
        load_bundle(store, "no-model")
    with pytest.raises(RefMissing, match="no-run"):
        deploy(store, "no-run")
    assert len(predict_dataset(store, bundle, other)) == 71


# -- bundles that somebody else wrote ----------------------------------------------------------------------------------


def forge(store: Store, changes: dict[str, bytes | None]) -> None:
    table = FileTable.open(store, "model", "model")
    files: dict[str, Any] = {path: table.read(path) for path in table.paths()} | changes
    kept = [(path, data) for path, data in files.items() if data is not None]
    write_files(store, "model", "forged", kept, lineage=table.lineage)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_bomb_is_not_executed(store: Store, tmp_path: Path) -> None:
    """In every file of a bundle, as a plain pickle and as torch.save writes it."""
    marker = tmp_path / "executed"
    saved = io.BytesIO()
    torch.save({"w": Bomb(marker)}, saved)
    for bomb in (pickle.dumps(Bomb(marker)), saved.getvalue()):
        for path in FileTable.open(store, "model", "model").paths():
            forge(store, {path: bomb})
            if path in ("preprocessing.json", "report.html"):  # for people; the program holds the preprocessing
                load_bundle(store, "forged")
                continue
            with pytest.raises(FormatDamaged):
                load_bundle(store, "forged")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # noqa: S301 - the bomb works
    assert marker.exists()


def test_a_bundle_that_computes_something_else_is_refused(store: Store) -> None:
    from safetensors.torch import load, save

    weights = load(FileTable.open(store, "model", "model").read("model.safetensors"))
    weights["network.output.bias"] = weights["network.output.bias"] + 0.5
    forge(store, {"model.safetensors": save(weights)})
    with pytest.raises(FormatDamaged, match="does not compute what was deployed"):
        load_bundle(store, "forged")
    weights["network.output.bias"] = torch.full((3,), torch.nan)
    forge(store, {"model.safetensors": save(weights)})
    with pytest.raises(FormatDamaged, match="does not compute what was deployed"):
        load_bundle(store, "forged")


@pytest.mark.parametrize("path", ["bundle.json", "program.json", "model.safetensors", "parity.safetensors"])
def test_a_missing_file_is_named(store: Store, path: str) -> None:
    forge(store, {path: None})
    with pytest.raises(FormatDamaged, match=path):
        load_bundle(store, "forged")


def test_a_newer_bundle_says_upgrade(store: Store) -> None:
    about = json.loads(FileTable.open(store, "model", "model").read("bundle.json"))
    forge(store, {"bundle.json": json.dumps({**about, "version": VERSION + 1}).encode()})
    with pytest.raises(FormatTooNew, match="upgrade"):
        load_bundle(store, "forged")


def test_a_model_of_the_users_own_must_be_confirmed(store: Store, dataset: Dataset) -> None:
    reference = "training_data:own_model"
    Trainer(quick_config(**{"model.reference": reference, "model.params": {}}), store, dataset, run="own").fit(
        max_steps=1
    )
    with pytest.raises(BadInput, match="confirm it with --model"):
        deploy(store, "own")
    assert deploy(store, "own", reference=reference).classes == tuple(NAMES)
    assert checkpoints.load(store, "own").config.model.reference == reference
