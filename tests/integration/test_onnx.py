"""A bundle as an ONNX file: onnxruntime computes what the bundle computes, for any batch, and the file names no machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from training_data import NAMES, SHAPE, quick_config, write_patterns

from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers.bundle import PARITY_TOLERANCE, Bundle, input_of, load_bundle
from trainers.commands_deploy import deploy as command
from trainers.deploy import deploy
from trainers.loop import Trainer
from trainers.models import ImageClassifier, Preprocess, resnet, transformer
from trainers.onnx_file import write_onnx
from trainers.program import Program, export
from trainers.signature import TensorSpec
from trainers.tasks import ImageClassification, LanguageModelling, Task

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PICTURE = (16, 16, 3)


def bundle_of(model: nn.Module, task: Task) -> Bundle:
    """As deployment makes it, without a store."""
    inputs = task.example(4, torch.device("cpu"))
    program, weights = export(model.eval(), inputs)
    made = Program(program, weights)
    outputs = made(inputs)
    gives = TensorSpec("logits", "float32", tuple(outputs.shape[1:]))
    return Bundle("made", "0" * 64, task, {}, made, weights, input_of(task), gives, (inputs, outputs))


def picture_model() -> Bundle:
    torch.manual_seed(0)
    task = ImageClassification("image", "label", PICTURE, ("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3)
    network = resnet(PICTURE, 3, width=8, stages=2).to(memory_format=torch.channels_last)
    return bundle_of(ImageClassifier(Preprocess(PICTURE, task.mean, task.std), network), task)


def text_model() -> Bundle:
    torch.manual_seed(0)
    return bundle_of(transformer(64, 16, layers=1, width=16, heads=2), LanguageModelling("tokens", 64, 16, 16, None))


@pytest.mark.parametrize("make", [picture_model, text_model])
def test_onnxruntime_computes_the_same_for_any_batch(make: Callable[[], Bundle], tmp_path: Path) -> None:
    bundle = make()
    told = write_onnx(bundle, tmp_path / "made.onnx")
    assert told["relative_difference"] <= PARITY_TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "made.onnx", providers=["CPUExecutionProvider"])
    source = torch.Generator().manual_seed(5)
    for rows in (1, 5, 64):
        high = int(bundle.input.high or 0)
        given = torch.randint(0, high + 1, (rows, *bundle.input.shape), generator=source).to(bundle.input.torch_dtype)
        (found,) = session.run(None, {bundle.input.name: given.numpy()})
        assert np.allclose(found, bundle(given).numpy(), atol=1e-5)


def test_the_command_writes_a_file_that_names_model_and_classes_and_no_machine(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        Trainer(quick_config(), store, write_patterns(store), run="run").fit(max_steps=1)
        deploy(store, "run", "model")
        bundle = load_bundle(store, "model")
    path = tmp_path / "model.onnx"
    options = ["export", "model", "--store", str(tmp_path / "store"), "--onnx", str(path), "--json"]
    done = CliRunner().invoke(command, options, catch_exceptions=False)
    told = json.loads(done.stdout.splitlines()[-1])
    data = path.read_bytes()
    assert told["bytes"] == len(data) and told["commit"] == bundle.commit
    for inside in (b".py", b"site-packages", str(Path.cwd()).encode(), str(tmp_path).encode()):
        assert inside not in data
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    assert (known["lepton.model"], known["lepton.commit"]) == ("model", bundle.commit)
    assert known["lepton.classes"].split("\n") == NAMES
    (takes,) = session.get_inputs()
    assert (takes.name, takes.type, takes.shape[1:]) == ("images", "tensor(uint8)", list(SHAPE))
    assert isinstance(takes.shape[0], str)  # any batch


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an exporter's bug would have it: what is checked is what was written."""
    bundle = text_model()
    path = tmp_path / "made.onnx"
    path.write_bytes(b"what was there")

    class Other(nn.Module):
        def __init__(self, program: Program) -> None:
            super().__init__()
            self.program = program

        def forward(self, rows: Tensor) -> Tensor:
            return self.program(rows) * 1.01

    monkeypatch.setattr("trainers.onnx_file._Traced", Other)
    with pytest.raises(BadInput, match="computes something else"):
        write_onnx(bundle, path)
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from trainers.onnx_file import write_onnx\n"
        "from types import SimpleNamespace\n"
        "write_onnx(SimpleNamespace(name='x', weights={}), 'x.onnx')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "leptonstore[onnx]"' in done.stderr
