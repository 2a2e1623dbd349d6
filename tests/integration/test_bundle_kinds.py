"""Bundles of every kind of task: the outputs of the trained model, from values as they are stored, in process and over HTTP."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving_client import get, post
from task_data import chain, texts, write_jpegs, write_numbers, write_texts
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.dataset import Dataset, FileTable, write_files
from leptonstore.errors import BadInput, FormatDamaged, SourceError
from leptonstore.format.framed import canonical_json
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.bundle import Bundle, load_bundle
from trainers.deploy import bundle_files, deploy
from trainers.parallel import World
from trainers.program import export
from trainers.run import run_train
from trainers.serving.limits import ServeLimits
from trainers.serving.model import Served
from trainers.serving.server import ModelServer
from trainers.serving.steady import Steady
from trainers.tasks import LanguageModelling, Task, task_from_dict

RAW, CPU = "application/octet-stream", torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "jpegs": {
        "model": {"reference": "trainers.models:resnet", "params": {"width": 8, "stages": 2}},
        "data.transforms.image": [
            *chain("DecodeImage", RandomResizedCrop={"size": 16}, RandomHorizontalFlip={}),
            *chain(Normalize={"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}),
        ],
    },
    "texts": {
        "model": {"reference": "trainers.models:transformer", "params": {"layers": 1, "width": 16, "heads": 2}},
        "data.sequence_length": 32,
    },
    "numbers": {"data.inputs": "features", "data.labels": "value"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with a deployed model of each kind, named as its dataset."""
    folder = tmp_path_factory.mktemp("kinds")
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        for write in (write_jpegs, write_texts, write_numbers):
            write(store)
        common = {"device": "cpu", "threads": 1, "epochs": 1, "data.global_batch_size": 16}
        for name, values in SETTINGS.items():
            run_train(store, name, common | values, run=name, max_steps=2)
            deploy(store, name)
    yield folder


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.open(place / "store", cache_dir=place / "cache") as opened:
        yield opened


def trained(store: Store, name: str) -> nn.Module:
    return checkpoints.build_stored_model(checkpoints.load(store, name), None).eval()


def batch_of(store: Store, bundle: Bundle) -> Tensor:
    """Rows of the dataset as the trained model sees them, through its own loader."""
    ds = Dataset.open(store, bundle.name)
    task: Task = bundle.task
    data = checkpoints.load(store, bundle.name).config.data
    (first, *_) = task.loader(ds, data, 0, World(), train=False)
    return task.split_batch(first, CPU)[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bundle_computes_the_bits_of_the_trained_model(store: Store, name: str) -> None:
    bundle, model = load_bundle(store, name), trained(store, name)
    inputs = batch_of(store, bundle)
    for count in (0, 1, 3, len(inputs)):
        with torch.no_grad():
            assert torch.equal(bundle(inputs[:count]), model(inputs[:count]))
    assert bundle.input.shape == tuple(inputs.shape[1:]) and bundle.input.torch_dtype == inputs.dtype
    assert deploy(store, name).commit == bundle.commit  # the report and all


def test_an_encoded_image_passes_the_transforms_of_validation(store: Store) -> None:
    bundle = load_bundle(store, "jpegs")
    files = first_values(store, "jpegs", "image", 5)
    inputs = batch_of(store, bundle)[:5]
    assert all((bundle.decode(data) == row.numpy()).all() for data, row in zip(files, inputs, strict=True))
    preprocessing = json.loads(FileTable.open(store, "model", "jpegs").read("preprocessing.json"))
    assert next(step["reference"] for step in preprocessing["transforms"]) == "loaders.transforms:DecodeImage"
    assert preprocessing["normalize"]["mean"] == [0.5, 0.4, 0.3]
    with ModelServer(Served.of(bundle), ServeLimits(batch_rows=8), threads=1) as server:
        expected = steady(bundle, 8)(inputs)
        body = json.dumps({"images": [base64.b64encode(data).decode() for data in files]}).encode()
        assert torch.equal(torch.tensor(post(server.url, body).json()["logits"]), expected)
        reply = post(server.url, files[0], "image/jpeg")
        assert torch.equal(torch.tensor(reply.json()["logits"]), expected[:1])
        assert reply.json()["predictions"][0]["label"] in bundle.classes


def test_a_file_passes_transforms_that_were_meant_for_pixels(store: Store) -> None:
    """Of a dataset of decoded images, whose chain does not begin with decoding: a grey file becomes what was stored, then is cropped."""
    made = load_bundle(store, "jpegs")
    told = made.task.to_dict() | {
        "transforms": [{"reference": "loaders.transforms:CenterCrop", "params": {"size": [16, 16]}}]
    }
    bundle = dataclasses.replace(made, task=task_from_dict(told))
    pixels = np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    assert (bundle.decode(out.getvalue()) == pixels[2:18, 4:20, None]).all()
    with pytest.raises(SourceError, match="mine"):
        bundle.decode(out.getvalue()[:60], "mine")


def first_values(store: Store, name: str, column: str, count: int) -> list[bytes]:
    ds = Dataset.open(store, name)
    return [ds[row][column] for row in range(count)]


def steady(bundle: Bundle, rows: int) -> Steady:
    return Steady(bundle.program, bundle.input, rows)


def test_a_language_model_is_asked_what_comes_next(store: Store) -> None:
    """Of any length, alone and together, as text and as tokens: the outputs of the last token, to the bit."""
    bundle = load_bundle(store, "texts")
    assert isinstance(bundle.task, LanguageModelling)
    length = bundle.task.length
    said = ["a", "the first", texts(3)[0].decode("latin-1")[:length], "\u00e9" * 40, "x" * 100]
    rows = [list(text.encode()[-length:]) for text in said]
    with ModelServer(Served.of(bundle), ServeLimits(batch_rows=8), threads=1) as server:
        by_text = post(server.url, json.dumps({"texts": said}).encode()).json()
        by_token = post(server.url, json.dumps({"inputs": rows}).encode()).json()
        assert by_text["logits"] == by_token["logits"]
        for row, logits, prediction in zip(rows, by_text["logits"], by_text["predictions"], strict=True):
            filled = torch.tensor([row + [0] * (length - len(row))])
            expected = bundle(filled)[0, len(row) - 1]
            assert torch.allclose(torch.tensor(logits), expected, rtol=0, atol=1e-6)
            assert prediction["token"] == int(expected.argmax())
            alone = post(server.url, json.dumps({"inputs": [row]}).encode()).json()
            assert alone["logits"] == [logits]
        whole = np.array([row for row in rows if len(row) == length])
        assert post(server.url, whole.astype("<i8").tobytes(), RAW).status == 200
        told = get(server.url, "/schema").json()
        assert told["json"] == ["inputs", "texts"] and told["shorter_rows"] is True
        for bad in (
            {"inputs": [[]]},
            {"inputs": [[256]]},
            {"inputs": [[-1]]},
            {"inputs": [[1] * (length + 1)]},
            {"inputs": [[1, -1]]},
        ):
            assert post(server.url, json.dumps(bad).encode()).status == 422
        for bad in ({"texts": [""]}, {"texts": [5]}, {"inputs": ["a"]}):
            assert post(server.url, json.dumps(bad).encode()).status == 422
        assert post(server.url, b'{"texts": ["\\ud800"]}').status == 400
        assert post(server.url, np.full((1, length), -1, "<i8").tobytes(), RAW).status == 422
        assert post(server.url, b"GIF89a", "image/gif").status == 415


def test_numbers_are_served(store: Store) -> None:
    bundle = load_bundle(store, "numbers")
    inputs = batch_of(store, bundle)[:20]
    with ModelServer(Served.of(bundle), ServeLimits(batch_rows=8), threads=1) as server:
        reply = post(server.url, inputs.numpy().tobytes(), RAW).json()
        assert torch.equal(torch.tensor(reply["outputs"]), steady(bundle, 8)(inputs))
        assert "predictions" not in reply


def test_a_bundle_reports_what_it_is(store: Store) -> None:
    for name in SETTINGS:
        page = FileTable.open(store, "model", name).read("report.html").decode()
        bundle = load_bundle(store, name)
        for told in (name, bundle.task.describe(), bundle.lineage["data"]["training"]["commit"][:12]):
            assert told.replace("'", "&#x27;") in page
        assert "<script" not in page and "src=" not in page and "href=" not in page


# -- what cannot be stored, and what somebody else stored -----------------------------------------------------------------


def test_an_operator_that_a_program_may_not_hold_is_named() -> None:
    @torch.library.custom_op("lepton_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return twice(x)

    with pytest.raises(BadInput, match=r"lepton_test\.twice"):
        export(Odd(), torch.zeros(2, 3))


def test_transforms_of_others_are_no_part_of_a_bundle(store: Store) -> None:
    task = load_bundle(store, "jpegs").task
    foreign = {**task.to_dict(), "transforms": [{"reference": "os:system", "params": {"command": "true"}}]}
    with pytest.raises(BadInput, match="os:system"):
        bundle_files(trained(store, "jpegs"), task_from_dict(foreign))


def test_a_transform_that_somebody_wrote_into_a_bundle_is_not_run(store: Store, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    table = FileTable.open(store, "model", "jpegs")
    about = json.loads(table.read("bundle.json"))
    for reference, params in (
        ("pathlib:Path.touch", {}),
        ("os:system", {"command": f"touch {marker}"}),
        ("loaders.transforms:as_transform", {}),
    ):
        about["task"]["transforms"] = [{"reference": reference, "params": params}]
        files = [(path, canonical_json(about) if path == "bundle.json" else table.read(path)) for path in table.paths()]
        write_files(store, "model", "forged", files, lineage=table.lineage)
        bundle = load_bundle(store, "forged")
        with pytest.raises(FormatDamaged, match=r"none of loaders\.transforms"):
            bundle.decode(first_values(store, "jpegs", "image", 1)[0])
    assert not marker.exists()


def test_a_schema_that_is_not_the_tasks_is_refused(store: Store) -> None:
    table = FileTable.open(store, "model", "texts")
    about = json.loads(table.read("bundle.json"))
    for change in (
        {"shape": ["batch", 31]},
        {"dtype": "int32"},
        {"shape": ["batch", -1]},
        {"shape": [2, 32]},
        {"range": [0, 1e400]},
    ):
        broken = {**about, "input": {**about["input"], **change}}
        data = json.dumps(broken).encode()
        files = [(path, data if path == "bundle.json" else table.read(path)) for path in table.paths()]
        write_files(store, "model", "forged", files, lineage=table.lineage)
        with pytest.raises(FormatDamaged):
            load_bundle(store, "forged")


def test_a_model_whose_rows_are_not_those_that_it_was_given_is_refused(store: Store) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(x).mean(0, keepdim=True)

    with pytest.raises(BadInput, match="gives 1 row for 4"):
        bundle_files(Mean(), load_bundle(store, "numbers").task)
