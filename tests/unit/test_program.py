"""Stored programs: they compute what the model computes, and nothing in them can run code."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew
from leptonstore.format.framed import canonical_json
from trainers.config import ModelConfig
from trainers.models import ImageClassifier, Preprocess, build_model
from trainers.program import Program, export

SHAPE = (12, 12, 3)


class Everything(nn.Module):
    """In-place operators, buffers, constants, attention, sizes that depend on the batch, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.pool, self.drop = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(4), nn.Dropout(0.5)
        self.attention, self.layer_norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.output = nn.Linear(128, 5)
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(self.act(self.norm(self.conv(images))))
        rows = images.size(0)
        tokens = images.reshape(rows, 8, 16).transpose(1, 2)
        tokens = self.layer_norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        left, right = torch.split(tokens, [4, 4], dim=2)
        tokens = torch.cat([left * torch.tensor(2.0), functional.gelu(right) * self.scale], 2)
        logits: Tensor = self.output(self.drop(tokens.reshape(rows, -1)))
        return logits


def example(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros((2, *shape), dtype=torch.uint8)


@pytest.fixture(scope="module")
def cnn() -> tuple[ImageClassifier, dict[str, Any], dict[str, Tensor]]:
    model = build_model(ModelConfig(), (8, 8), 10, seed=0)
    return model, *export(model, example((8, 8)))


@pytest.mark.parametrize("rows", [0, 1, 3, 50])
def test_the_program_computes_the_same_bits(
    cnn: tuple[ImageClassifier, dict[str, Any], dict[str, Tensor]], rows: int
) -> None:
    model, program, weights = cnn
    images = torch.randint(0, 256, (rows, 8, 8), dtype=torch.uint8)
    assert torch.equal(Program(program, weights)(images), model(images))


def test_a_model_with_everything() -> None:
    model = ImageClassifier(Preprocess(SHAPE), Everything())
    model(torch.randint(0, 256, (16, *SHAPE), dtype=torch.uint8))  # moves the statistics of the batch norm
    program, weights = export(model, example(SHAPE))
    assert model.training
    model.eval()
    for rows in (1, 3, 20):
        images = torch.randint(0, 256, (rows, *SHAPE), dtype=torch.uint8)
        assert torch.allclose(Program(program, weights)(images), model(images), atol=1e-6)


def test_the_program_depends_on_neither_weights_nor_machine(
    cnn: tuple[ImageClassifier, dict[str, Any], dict[str, Tensor]],
) -> None:
    again, _ = export(build_model(ModelConfig(), (8, 8), 10, seed=7), example((8, 8)))
    text = canonical_json(cnn[1])
    assert canonical_json(again) == text
    assert str(Path(torch.__file__).parent.parent).encode() not in text
    assert b"models.py" not in text


def test_the_standard_archive_is_readable_by_torch(cnn: tuple[ImageClassifier, Any, Any]) -> None:
    model, archive = cnn[0], io.BytesIO()
    export(model, example((8, 8)), archive)
    archive.seek(0)
    images = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(torch.export.load(archive).module()(images), model(images), atol=1e-6)


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(BadInput, match=r"torch\.export cannot trace"):
        export(ImageClassifier(Preprocess(SHAPE), Branching()), example(SHAPE))


# -- programs that somebody else wrote --------------------------------------------------------------------------------


def first_node(program: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = program["program"]["graph_module"]["graph"]["nodes"][0]
    return node


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten._foobar.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.relu.default.__globals__",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.higher_order.cond",
        "_operator.attrgetter",
        "#ext:op",
        "",
    ],
)
def test_an_operator_that_could_do_more_than_compute_is_refused(cnn: tuple[Any, Any, Any], target: str) -> None:
    program = copy.deepcopy(cnn[1])
    first_node(program)["target"] = target
    with pytest.raises(FormatDamaged):
        Program(program, cnn[2])


def test_no_text_of_a_program_is_ever_evaluated(cnn: tuple[ImageClassifier, Any, Any], tmp_path: Path) -> None:
    """Shape expressions, names and guards are where torch's own loader evaluates text."""
    model, original, weights = cnn
    marker = tmp_path / "executed"
    bomb = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    images = torch.randint(0, 256, (2, 8, 8), dtype=torch.uint8)

    program = copy.deepcopy(original)
    for value in program["program"]["graph_module"]["graph"]["tensor_values"].values():
        value["sizes"] = [{"as_expr": {"expr_str": bomb, "hint": {"as_int": 2}}}]
    assert torch.equal(Program(program, weights)(images), model(images))

    text = canonical_json(original).decode().replace('"name":"conv2d"', f'"name":{canonical_json(bomb).decode()}')
    assert torch.equal(Program(json.loads(text), weights)(images), model(images))

    program = copy.deepcopy(original)
    program["program"]["guards_code"] = [bomb]
    with pytest.raises(FormatDamaged, match="guards_code"):
        Program(program, weights)
    assert not marker.exists()


def test_a_newer_schema_says_upgrade(cnn: tuple[Any, Any, Any]) -> None:
    for change in ({"version": 2}, {"program": {**cnn[1]["program"], "schema_version": {"major": 9, "minor": 0}}}):
        with pytest.raises(FormatTooNew, match="upgrade"):
            Program({**cnn[1], **change}, cnn[2])


@pytest.mark.parametrize("damaged", [None, [], {}, {"format": "lepton.program"}, {"format": "x", "version": 1}])
def test_what_is_no_program_is_refused(damaged: Any) -> None:
    with pytest.raises(FormatDamaged):
        Program(damaged, {})


def test_weights_that_do_not_fit_are_refused(cnn: tuple[Any, Any, Any]) -> None:
    images = torch.zeros((1, 8, 8), dtype=torch.uint8)
    with pytest.raises(FormatDamaged, match=r"network\.conv\.bias"):
        Program(cnn[1], {name: value for name, value in cnn[2].items() if name != "network.conv.bias"})
    wrong = {**cnn[2], "network.conv.weight": torch.zeros(7)}
    with pytest.raises(FormatDamaged, match="conv2d"):
        Program(cnn[1], wrong)(images)
