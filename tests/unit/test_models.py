"""Models: deterministic weights, any batch size, stored images in, logits out."""

from __future__ import annotations

import pytest
import torch

from leptonstore.errors import BadInput
from trainers.config import ModelConfig
from trainers.models import Preprocess, build_model


@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 10), ((8, 8), 10), ((9, 12, 3), 4), ((6, 6, 1), 2)])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_logits_for_every_shape_of_image(shape: tuple[int, ...], classes: int, rows: int) -> None:
    model = build_model(ModelConfig(), shape, classes, seed=0)
    images = torch.randint(0, 256, (rows, *shape), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (rows, classes)
    assert logits.dtype == torch.float32


def test_the_seed_decides_the_weights_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(ModelConfig(), (8, 8), 10, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = build_model(ModelConfig(), (8, 8), 10, seed=1)
    other = build_model(ModelConfig(), (8, 8), 10, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.network.conv.weight, other.network.conv.weight)


def test_preprocessing_scales_to_one_and_puts_channels_first() -> None:
    grey = Preprocess((2, 2))(torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8))
    assert grey.shape == (1, 1, 2, 2)
    assert torch.allclose(grey[0, 0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    colour = Preprocess((4, 5, 3))(torch.zeros((7, 4, 5, 3), dtype=torch.uint8))
    assert colour.shape == (7, 3, 4, 5)


def test_the_main_jobs_model_has_the_architecture_it_says() -> None:
    model = build_model(ModelConfig(), (28, 28), 10, seed=0)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes["network.conv.weight"] == (32, 1, 3, 3)
    assert shapes["network.hidden.weight"] == (128, 32 * 13 * 13)
    assert shapes["network.output.weight"] == (10, 128)


@pytest.mark.parametrize(
    ("config", "shape", "classes", "said"),
    [
        (ModelConfig(params={"width": 3}), (8, 8), 10, "does not take these parameters"),
        (ModelConfig("json:dumps"), (8, 8), 10, "json:dumps"),
        (ModelConfig(), (3, 8), 10, "at least 4 x 4"),
        (ModelConfig(), (8,), 10, "H, W"),
        (ModelConfig(), (8, 8), 1, "2 to"),
    ],
)
def test_what_does_not_fit_is_named(config: ModelConfig, shape: tuple[int, ...], classes: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build_model(config, shape, classes, seed=0)
