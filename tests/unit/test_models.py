"""Models: deterministic weights, any batch size, stored images in, logits out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from leptonstore.errors import BadInput
from trainers import models
from trainers.config import ModelConfig
from trainers.models import FACTORIES, Preprocess, build_model, generate, mlp, resnet, transformer


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


# -- the others ----------------------------------------------------------------------------------------------------------


def test_every_factory_of_the_package_is_a_function_of_it() -> None:
    assert all(callable(getattr(models, name)) for name in FACTORIES)


def test_normalising_is_a_part_of_the_model() -> None:
    images = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8)
    found = Preprocess((4, 6, 3), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])(images)
    plain = images.permute(0, 3, 1, 2).float() / 255
    expected = (plain - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "rows"), [((16, 16, 3), 4), ((9, 21), 3), ((150, 130, 3), 2), ((16, 16, 3), 0)])
def test_a_resnet_takes_images_of_any_size_and_a_row_depends_on_itself(shape: tuple[int, ...], rows: int) -> None:
    config = ModelConfig("trainers.models:resnet", {"width": 8, "depth": 1})
    model = build_model(config, shape, 5, seed=0)
    images = torch.randint(0, 256, (rows, *shape), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (rows, 5)
    for at in range(rows):
        assert torch.allclose(model(images[at : at + 1]), logits[at : at + 1], atol=1e-5)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_depth_three_is_the_papers_resnet_20() -> None:
    """He et al. 2015, table 6: 0.27 million weights (theirs has no convolutions in its shortcuts)."""
    net = resnet((32, 32, 3), 10, depth=3, norm="batch")
    convolutions = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 20
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(0.27e6, rel=0.03)


def test_a_transformer_sees_only_what_came_before() -> None:
    model = transformer(50, 16, layers=2, width=32, heads=4).eval()
    tokens = torch.randint(0, 50, (3, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    first, second = model(tokens), model(changed)
    assert first.shape == (3, 16, 50)
    assert torch.equal(first[:, :9], second[:, :9]) and not torch.allclose(first[:, 9:], second[:, 9:])
    assert torch.allclose(model(tokens[:, :5]), first[:, :5], atol=1e-5)


def test_a_document_in_a_pack_is_told_as_if_it_were_alone() -> None:
    model = transformer(50, 16, layers=2, width=32, heads=4).eval()
    documents = [torch.randint(50, (size,), generator=torch.Generator().manual_seed(size)) for size in (7, 1, 5)]
    tokens = torch.cat([*documents, torch.zeros(3, dtype=torch.int64)])
    numbers = torch.tensor([1] * 7 + [2] + [3] * 5 + [0] * 3)
    places = torch.cat([*(torch.arange(len(one)) for one in documents), torch.zeros(3, dtype=torch.int64)])
    packed = model(torch.stack([tokens, numbers, places], -1)[None])[0]
    assert torch.isfinite(packed).all()
    alone = torch.cat([model(one[None])[0] for one in documents])
    torch.testing.assert_close(packed[:13], alone, rtol=1e-4, atol=1e-5)


def test_a_transformer_has_one_matrix_for_tokens_and_starts_undecided() -> None:
    torch.manual_seed(0)
    model = transformer(200, 16, layers=3, width=64, heads=4)
    assert not any("logits" in name or "head" in name for name in model.state_dict())
    loss = torch.nn.functional.cross_entropy(
        model(torch.randint(0, 200, (8, 16))).flatten(0, 1), torch.randint(0, 200, (128,))
    )
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(200.0)).item(), abs=0.3)


def test_writing_is_decided_by_the_seed_and_the_likeliest_is_always_the_same() -> None:
    model = transformer(30, 8, layers=1, width=16, heads=2, dropout=0.5)
    start = torch.tensor([3, 4])
    first = generate(model, start, 20, 8, seed=1)
    assert torch.equal(first, generate(model, start, 20, 8, seed=1)) and torch.equal(first[:2], start)
    assert not torch.equal(first, generate(model, start, 20, 8, seed=2))
    greedy = [generate(model, start, 20, 8, temperature=0, seed=seed) for seed in (1, 2)]
    assert torch.equal(*greedy) and len(greedy[0]) == 22
    assert model.training  # as it was


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: resnet((4, 40), 3), "at least 8 pixels, not 4"),
        (lambda: resnet((32, 32), 3, depth=0), r"depth of a resnet is 0"),
        (lambda: resnet((32, 32), 3, norm="layer"), "norm of a resnet is 'layer'"),
        (lambda: transformer(10, 8, width=30, heads=4), "no multiple of its 4 heads"),
        (lambda: transformer(10, 8, layers=0), "layers of a transformer is 0"),
        (lambda: transformer(10, 8, dropout=1.0), "dropout"),
        (lambda: mlp(3, 1, layers=-1), "layers=-1"),
    ],
)
def test_parameters_out_of_range_are_named(make: Callable[[], torch.nn.Module], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
