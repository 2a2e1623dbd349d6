"""After training: models of the store judged on a page and used on every row, for each kind of task."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from task_data import chain, texts, write_jpegs, write_numbers, write_texts
from torch.nn import functional

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, RefMissing, SourceError
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.commands import evaluate as evaluate_command
from trainers.evaluate import evaluate
from trainers.opened import open_model
from trainers.predict import predict_dataset, predict_images, score_texts
from trainers.run import run_deploy, run_evaluate, run_predict_dataset, run_train
from trainers.tasks import LanguageModelling, split_dataset

QUICK: dict[str, Any] = {"device": "cpu", "threads": 1}
IMAGE: dict[str, Any] = {
    "model": {"reference": "trainers.models:resnet", "params": {"width": 8, "stages": 2}},
    "data.transforms.image": chain("DecodeImage", RandomResizedCrop={"size": 16, "scale": [0.5, 1]})
    + chain("RandomHorizontalFlip", Normalize={"mean": [0.5] * 3, "std": [0.25] * 3}),
    "data.global_batch_size": 16,
    "epochs": 1,
}
TEXT: dict[str, Any] = {
    "model.params": {"layers": 1, "width": 16, "heads": 2},
    "data.sequence_length": 32,
    "data.global_batch_size": 8,
    "epochs": 2,
}
NUMBERS: dict[str, Any] = {"data.inputs": "features", "data.labels": "value", "epochs": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a run of each kind, which tests only read (or add versions to)."""
    folder = tmp_path_factory.mktemp("after")
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        write_jpegs(store)
        write_texts(store)
        write_numbers(store)
        for name, values in {"jpegs": IMAGE, "texts": TEXT, "numbers": NUMBERS}.items():
            run_train(store, name, {**QUICK, **values}, run=f"{name}-run")
    yield folder


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.open(place / "store", cache_dir=place / "cache") as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "metrics", "shown"),
    [
        ("jpegs", ["accuracy", "loss", "per_class", "confusion"], ["Confusion", "Accuracy per class", "taken for"]),
        ("texts", ["loss", "perplexity", "bits_per_byte", "accuracy"], ["Perplexity", "Passages", "nats per token"]),
        ("numbers", ["loss", "mean_absolute_error", "r2"], ["Mean absolute error", "R²"]),
    ],
)
def test_evaluate_says_what_training_said_and_writes_one_page(
    store: Store, place: Path, name: str, metrics: list[str], shown: list[str]
) -> None:
    page = place / f"{name}.html"
    found = run_evaluate(store, f"checkpoint/{name}-run", name, report=page)
    (*_, last) = open_history(store, f"{name}-run")
    assert all(metric in found for metric in metrics)
    assert {key: found[key] for key in metrics if f"val_{key}" in last} == {
        key: last[f"val_{key}"] for key in metrics if f"val_{key}" in last
    }
    html = page.read_text()
    missing = [word for word in shown if word not in html and not (word == "taken for" and found["accuracy"] == 1)]
    assert not missing
    assert "http://" not in html.replace("http://www.w3.org", "") and "<script" not in html
    json.dumps(found, allow_nan=False)


def open_history(store: Store, run: str) -> list[dict[str, Any]]:
    return list(checkpoints.load(store, run).manifest["history"])


def test_a_deployed_model_of_encoded_images_takes_files_and_rows(store: Store, place: Path) -> None:
    made = run_deploy(store, "jpegs-run", "colours")
    rebuilt, deployed = run_evaluate(store, "checkpoint/jpegs-run", "jpegs"), run_evaluate(store, "colours", "jpegs")
    assert made["model"] == "colours"
    assert deployed["confusion"] == rebuilt["confusion"]
    assert deployed["loss"] == pytest.approx(rebuilt["loss"], rel=1e-5)
    predicted = run_predict_dataset(store, "colours", "jpegs")
    ds = Dataset.open(store, predicted["dataset"])
    assert ds.commit_object.lineage["model"]["name"] == "colours"
    _, held_out = split_dataset(ds, open_model(store, "colours").data)
    right = [row["predicted"] == row["label"] for row in (held_out[at] for at in range(len(held_out)))]
    assert float(np.mean(right)) == rebuilt["accuracy"]
    # The same picture as a file, and as pixels.
    file = place / "one.jpg"
    file.write_bytes(ds[3]["image"])
    pixels = np.asarray(Image.open(io.BytesIO(ds[3]["image"])))
    first, second = predict_images(open_model(store, "colours").model, [file, pixels])
    assert first.confidence == pytest.approx(second.confidence, abs=0.05)
    assert first.confidence == pytest.approx(ds[3]["confidence"], rel=1e-5)
    (place / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"broken\.jpg"):
        predict_images(open_model(store, "colours").model, [place / "broken.jpg"])


@pytest.mark.parametrize("name", ["texts", "numbers"])
def test_a_deployed_model_of_any_kind_is_judged_as_its_checkpoint(store: Store, name: str) -> None:
    run_deploy(store, f"{name}-run", f"{name}-model")
    built, deployed = (run_evaluate(store, model, name) for model in (f"checkpoint/{name}-run", f"{name}-model"))
    assert deployed["loss"] == pytest.approx(built["loss"], rel=1e-5)
    assert run_predict_dataset(store, f"{name}-model", name)["rows"] == len(Dataset.open(store, name))


def test_every_text_gets_its_own_perplexity(store: Store) -> None:
    found = run_predict_dataset(store, "checkpoint/texts-run", "texts")
    ds = Dataset.open(store, found["dataset"])
    opened = open_model(store, "checkpoint/texts-run").model
    documents = texts(60)
    for row in (0, 7, 31):
        tokens = torch.tensor(list(documents[row]))
        total = 0.0
        for start in range(0, len(tokens) - 1, 32):
            part = tokens[start : start + 33]
            total += float(functional.cross_entropy(opened(part[None, :-1])[0], part[1:], reduction="sum"))
        expected = total / (len(tokens) - 1)
        assert ds[row]["loss"] == pytest.approx(expected, rel=1e-4)
        assert ds[row]["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert found["rows"] == len(ds) == 60


def test_texts_of_a_token_or_none_have_no_loss(store: Store) -> None:
    opened = open_model(store, "checkpoint/texts-run").model
    assert isinstance(opened.task, LanguageModelling)
    scores = score_texts(opened, opened.task, [np.array([], np.uint8), np.array([65]), np.array([65, 66])])
    assert scores[:2] == [None, None] and scores[2] is not None
    with pytest.raises(BadInput, match="has a token 300; the model knows 0 to 255"):
        score_texts(opened, opened.task, [np.array([1, 300])])


def test_numbers_are_predicted_for_every_row(store: Store) -> None:
    found = run_predict_dataset(store, "checkpoint/numbers-run", "numbers")
    ds = Dataset.open(store, found["dataset"])
    table = ds.to_arrow(["value", "predicted"])
    apart = table.column("value").to_numpy() - table.column("predicted").to_numpy()
    judged = evaluate(open_model(store, "checkpoint/numbers-run").model, ds)
    assert judged.loss == pytest.approx(float((apart**2).mean()), rel=1e-5)
    again = predict_dataset(store, open_model(store, "checkpoint/numbers-run").model, ds)
    assert again.column_names == ds.column_names  # what was predicted is replaced


def test_the_command_line_tells_each_kind_in_its_words(store: Store, place: Path) -> None:
    for name, words in (("texts", "perplexity"), ("numbers", "mean absolute error"), ("jpegs", "recall")):
        arguments = [f"checkpoint/{name}-run", name, "--store", str(place / "store"), "--no-cache"]
        done = CliRunner().invoke(evaluate_command, [*arguments, "--report", str(place / "cli.html")])
        assert done.exit_code == 0, done.output
        assert words in done.output and "cli.html" in done.output


def test_what_cannot_be_opened_is_refused(store: Store) -> None:
    for name, error, said in (
        ("checkpoint/jpegs-run@last", BadInput, "names no checkpoint"),
        ("checkpoint/none", RefMissing, "no checkpoint of run 'none'"),
        ("none", RefMissing, "none"),
    ):
        with pytest.raises(error, match=said):
            open_model(store, name)
    with pytest.raises(BadInput, match="no column 'image'"):
        run_evaluate(store, "checkpoint/jpegs-run", "texts")
    with pytest.raises(BadInput, match="is of language-modelling: it labels no images"):
        predict_images(open_model(store, "checkpoint/texts-run").model, ["x.png"])
