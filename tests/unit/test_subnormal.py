"""Running averages that died out are zero, everything else keeps its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainers.subnormal import AVERAGES, flush, flush_subnormals

TINY = torch.finfo(torch.float32).tiny


def subnormal(values: Tensor) -> Tensor:
    return (values != 0) & (values.abs() < TINY)


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


@given(st.lists(st.floats(width=32), min_size=1))
def test_what_is_not_subnormal_keeps_its_bits(numbers: list[float]) -> None:
    before = torch.tensor(numbers, dtype=torch.float32)
    after = before.clone()
    flush(after)
    small = before.abs() <= TINY
    assert torch.equal(bits(after)[~small], bits(before)[~small])
    assert (bits(after)[small] == 0).all()


@pytest.mark.parametrize("values", [torch.full((4,), 1e-310, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)])
def test_other_dtypes_are_left_alone(values: Tensor) -> None:
    before = values.clone()
    flush(values)
    assert torch.equal(values, before)


def test_tensors_that_are_not_contiguous() -> None:
    values = torch.full((4, 6, 5, 5), 1e-39).to(memory_format=torch.channels_last)[:, ::2]
    flush(values)
    assert not subnormal(values).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.Adam(weights, fused=True),
        lambda weights: torch.optim.AdamW(weights, foreach=False),
        lambda weights: torch.optim.SGD(weights, lr=1e-3, momentum=0.9, fused=True),
        lambda weights: torch.optim.RMSprop(weights, alpha=0.9, centered=True, momentum=0.9),
    ],
)
def test_the_averages_of_a_weight_without_gradient_end_at_zero(make: Callable[..., Any]) -> None:
    """Ours are all zero in the end; torch's are stuck at the smallest number there is, which is why this exists."""
    ours, torchs = (_without_gradients(make, flushed) for flushed in (True, False))
    assert torchs and all(subnormal(values).all() for values in torchs)
    assert all(bool((values == 0).all()) for values in ours)


def _without_gradients(make: Callable[..., Any], flushed: bool) -> list[Tensor]:
    """The averages after one gradient, and 1,500 steps in which there is none."""
    weight = nn.Parameter(torch.ones(8))
    optimizer = make([weight])
    for step in range(1_500):
        weight.grad = torch.full((8,), 0.1 if step == 0 else 0.0)
        optimizer.step()
        if flushed and step % 100 == 0:
            flush_subnormals(optimizer)
    state = optimizer.state[weight]
    return [state[name] for name in AVERAGES if name in state and name != "exp_avg_sq"]  # 0.999: 87,000 steps
