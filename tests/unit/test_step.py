"""One optimizer step: however a batch is split and computed, what changes the weights is the gradient of the whole batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.errors import BadInput, FormatDamaged
from tests.integration.counted_task import CLASSES, SHAPE, TASK, Counted, without_class_0
from trainers.clock import StepClock
from trainers.config import TrainConfig, with_values
from trainers.optimizer import build_optimizer
from trainers.parallel import World
from trainers.recompute import recompute_blocks
from trainers.step import StepOutcome, TrainStep

SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.lr": 1.0}


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


class Network(nn.Module):
    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 8)
        body = [nn.Linear(8, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
        self.blocks = nn.ModuleList([nn.Sequential(*body), nn.Sequential(nn.Linear(8, 8), nn.Tanh())])
        self.leave = nn.Linear(8, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.enter(images.flatten(1).to(torch.float32) / 255)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.leave(hidden)
        return logits


def network(**arguments: Any) -> Network:
    torch.manual_seed(0)
    return Network(**arguments)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, *SHAPE), dtype=torch.uint8, generator=drawn)
    return images, torch.randint(0, len(CLASSES), (rows,), generator=drawn)


def stepped(model: nn.Module, *batches: Any, task: Any = TASK, **values: Any) -> tuple[TrainStep, list[StepOutcome]]:
    config = with_values(TrainConfig(), {**SGD, **{key.replace("__", "."): value for key, value in values.items()}})
    step = TrainStep(model, task, build_optimizer(config.optimizer, model), config, World(), StepClock())
    return step, [step(one, len(one[1]), 1.0, lambda: False) for one in batches]


def weights(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def apart(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    accumulate=st.integers(1, 24),
    clip=st.sampled_from([None, 1e-3, 1e3]),
    counted=st.booleans(),
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    rows: int, accumulate: int, clip: float | None, counted: bool
) -> None:
    """With plain SGD of rate 1, weights move by exactly the gradient."""
    task: Any = Counted() if counted else TASK
    loss = {"loss__reference": without_class_0} if counted else {}
    images, targets = batch(rows, seed=rows)
    expected, model = network(), network()
    sums: Any = without_class_0 if counted else functional.cross_entropy
    total = sums(expected(images), targets, **({} if counted else {"reduction": "sum"}))
    count = max(1, task.count(targets))
    (total / count).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(expected.parameters(), clip)
    with torch.no_grad():
        for weight in expected.parameters():
            weight -= weight.grad
    _, (outcome,) = stepped(model, (images, targets), task=task, accumulate=accumulate, clip_norm=clip, **loss)
    assert outcome.counted == task.count(targets)
    assert outcome.loss == pytest.approx(float(total.detach()) / count, abs=1e-6)
    assert apart(model, expected) < 1e-6
    assert all(weight.grad is None for weight in model.parameters())


def test_a_batch_of_nothing_moves_nothing_not_even_running_statistics() -> None:
    model = network(norm=True)
    before = [value.clone() for value in model.state_dict().values()]
    _, (outcome,) = stepped(model, batch(0), accumulate=3)
    assert (outcome.loss, outcome.counted, outcome.taken) == (0.0, 0, True)
    assert all(torch.equal(one, other) for one, other in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_recomputed_blocks_give_the_same_bits(precision: str) -> None:
    """Dropout draws the same numbers again, running statistics move once."""
    models = [network(dropout=0.5, norm=True) for _ in range(2)]
    recompute_blocks(models[1])
    for model in models:
        torch.manual_seed(1)
        stepped(model.train(), batch(10), batch(7), accumulate=2, precision=precision)
    for (name, one), (other_name, other) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name


def test_recompute_without_blocks_says_what_is_missing() -> None:
    with pytest.raises(BadInput, match=r"Linear has none: .*ModuleList"):
        recompute_blocks(nn.Linear(2, 2))


def test_bf16_computes_in_16_bits_and_keeps_32() -> None:
    seen: list[torch.dtype] = []
    models = [network() for _ in range(2)]
    models[1].leave.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    stepped(models[0], batch(16))
    stepped(models[1], batch(16), precision="bf16")
    assert seen == [torch.bfloat16]
    assert {weight.dtype for weight in models[1].parameters()} == {torch.float32}
    assert 0 < apart(*models) < 0.05


def test_the_scaler_is_part_of_the_state_and_leaves_out_what_overflows() -> None:
    step, _ = stepped(network(), batch(8), precision="fp16", clip_norm=1.0)
    state = step.state_dict()
    again, _ = stepped(network(), precision="fp16")
    again.load_state_dict(state)
    assert again.state_dict() == state
    for damaged in ({}, {**state, "scale": "large"}, {**state, "more": 1}):
        with pytest.raises(FormatDamaged, match="gradient scaler"):
            again.load_state_dict(damaged)
    model = network()
    before = weights(model)
    step, outcomes = stepped(model, batch(8), precision="fp16", loss__reference=overflowing)
    assert outcomes[0].taken  # the loss is finite: this is how a scale is found
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert step.state_dict()["scale"] < state["scale"]


def overflowing(outputs: Tensor, targets: Tensor) -> Tensor:
    """A finite loss whose gradients leave the range of 16 bits once they are scaled."""
    return functional.cross_entropy(outputs, targets, reduction="sum") * 1e6


class Bad:
    """A loss that is not finite, or whose gradient is not, in the steps that are named."""

    def __init__(self, *steps: int, gradient: bool = False) -> None:
        self.step, self.steps, self.gradient = -1, steps, gradient

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.step += 1
        loss = functional.cross_entropy(outputs, targets, reduction="sum")
        if self.step not in self.steps:
            return loss
        return loss + (outputs.sum() * 0).abs().sqrt() if self.gradient else loss * math.inf


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_left_out_changes_nothing_at_all(gradient: bool) -> None:
    """Weights, optimizer state and buffers are those of a run that never met the batch."""
    values = {"on_bad_loss": "skip", "optimizer__name": "adam", "optimizer__lr": 0.1}
    left, right = network(norm=True), network(norm=True)
    step, outcomes = stepped(
        left, batch(9), batch(9, 1), batch(9, 2), loss__reference=Bad(1, gradient=gradient), **values
    )
    other, _ = stepped(right, batch(9), batch(9, 2), **values)
    assert [outcome.taken for outcome in outcomes] == [True, False, True]
    assert math.isfinite(outcomes[1].loss) is gradient
    for one, two in zip(left.state_dict().values(), right.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    states = zip(step._optimizer.state.values(), other._optimizer.state.values(), strict=True)
    assert all(torch.equal(one[key], two[key]) for one, two in states for key in one)


def test_a_loss_that_is_no_sum_is_refused() -> None:
    with pytest.raises(BadInput, match=r"shape \(5,\); it must give the sum"):
        stepped(network(), batch(5), loss__reference=mean)


def test_parameter_groups_keep_their_own_rates() -> None:
    model = network()
    groups = [{"params": [model.leave.weight]}, {"params": [model.leave.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=2.0)
    config = with_values(TrainConfig(), {"optimizer.reference": optimizer})
    step = TrainStep(model, TASK, build_optimizer(config.optimizer, model), config, World(), StepClock())
    step(batch(5), 5, 0.25, lambda: False)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.125]
    with pytest.raises(BadInput, match="weights of another model"):
        build_optimizer(config.optimizer, network())
