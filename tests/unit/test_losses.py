"""Losses are sums: parts of a batch add up to the batch, and what counts nothing adds nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainers.losses import IGNORED, cross_entropy, mse


def test_parts_add_up_to_the_whole_and_an_empty_part_has_a_gradient() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(7, 5, 11, requires_grad=True)
    targets = torch.randint(0, 11, (7, 5))
    targets[2, 3:] = IGNORED
    whole = cross_entropy(outputs, targets, label_smoothing=0.1)
    parts = [cross_entropy(outputs[a:b], targets[a:b], label_smoothing=0.1) for a, b in ((0, 3), (3, 3), (3, 7))]
    assert torch.allclose(whole, sum(parts))
    (gradient,) = torch.autograd.grad(parts[1], outputs)
    assert gradient.abs().sum() == 0
    assert parts[1].item() == 0


def test_cross_entropy_is_the_sum_of_nats_of_what_counts() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 4), torch.tensor([0, 3, IGNORED, 1, 1, 2])
    expected = -sum(float(torch.log_softmax(outputs[at], 0)[label]) for at, label in enumerate(targets) if label >= 0)
    assert cross_entropy(outputs, targets).item() == pytest.approx(expected, rel=1e-6)
    smooth = functional.cross_entropy(outputs, targets, label_smoothing=0.2, reduction="none").sum()
    assert cross_entropy(outputs, targets, label_smoothing=0.2).item() == pytest.approx(float(smooth), rel=1e-6)


def test_mse_counts_a_row_once_whatever_it_holds() -> None:
    outputs, targets = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    assert mse(outputs, targets).item() == pytest.approx((1 + 9) / 2 + 4)
    assert mse(outputs[:, 0], targets[:, 0]).item() == pytest.approx(1 + 4)
    assert mse(outputs[:0], targets[:0]).item() == 0
