"""Meters: what they find is what counting by hand finds, however rows come in."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from leptonstore.errors import BadInput
from trainers import evaluation
from trainers.evaluation import ClassMeter, NumberMeter, TokenMeter
from trainers.losses import IGNORED

NAMES = tuple(f"class {at}" for at in range(7))


def summed(meters: list) -> list[torch.Tensor]:
    """As ranks add them up."""
    return [sum(parts[1:], parts[0]) for parts in zip(*(meter.sums() for meter in meters), strict=True)]


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(50, len(NAMES)), torch.randint(0, len(NAMES), (50,))


def test_classes_are_counted_as_by_hand(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    outputs, labels = logits
    meters = [ClassMeter(NAMES) for _ in range(3)]
    for rank, meter in enumerate(meters[:2]):  # the third rank has no row
        meter.add(outputs[rank::2], labels[rank::2])
    found = meters[0].result(summed(meters))
    best = outputs.argmax(1)
    assert (found.rows, found.accuracy) == (50, int((best == labels).sum()) / 50)
    assert found.confusion is not None
    assert all(found.confusion[t, p] == int(((labels == t) & (best == p)).sum()) for t in range(7) for p in range(7))
    ranks = (outputs > outputs.gather(1, labels[:, None])).sum(1)
    assert found.top5_accuracy == float((ranks < 5).sum()) / 50
    expected = torch.nn.functional.cross_entropy(outputs.double(), labels).item()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    score = found.per_class[2]
    assert score.rows == int((labels == 2).sum()) and score.predicted == int((best == 2).sum())
    json.dumps(found.to_dict(), allow_nan=False)


def test_many_classes_are_counted_without_their_pairs(
    logits: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, labels = logits
    small = ClassMeter(NAMES)
    monkeypatch.setattr(evaluation, "CONFUSION_CLASSES_MAX", 5)
    large = ClassMeter(NAMES)
    for meter in (small, large):
        meter.add(outputs, labels)
    whole, counts = small.result(small.sums()), large.result(large.sums())
    assert counts.confusion is None and counts.to_dict()["confusion"] is None
    assert counts.per_class == whole.per_class and counts.metrics() == whole.metrics()


def test_tokens_that_count_nothing_are_left_out() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    targets[3, 2:] = IGNORED
    meter = TokenMeter(9, 1)
    losses = meter.add(outputs, targets)
    found = meter.result(meter.sums())
    expected = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert (found.rows, found.tokens) == (4, 20)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))
    assert losses.shape == (4, 6) and float(losses[3, 2:].abs().sum()) == 0
    assert "bits_per_byte" not in TokenMeter(9, None).result(meter.sums()).metrics()


def test_numbers_are_judged_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    targets, outputs = rng.normal(5, 2, (30, 2)), rng.normal(5, 2, (30, 2))
    meter = NumberMeter()
    meter.add(torch.tensor(outputs), torch.tensor(targets))
    found = meter.result(meter.sums())
    assert found.loss == pytest.approx(((outputs - targets) ** 2).mean())
    assert found.mean_absolute_error == pytest.approx(np.abs(outputs - targets).mean())
    assert found.r2 == pytest.approx(1 - ((outputs - targets) ** 2).mean() / targets.var())


def test_a_loss_that_is_no_number_is_null_in_json(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    outputs, labels = logits
    outputs[7] = math.nan
    meter = ClassMeter(NAMES)
    meter.add(outputs, labels)
    found = meter.result(meter.sums())
    assert math.isnan(found.loss) and found.to_dict()["loss"] is None


@pytest.mark.parametrize(
    ("meter", "outputs", "targets", "said"),
    [
        (ClassMeter(NAMES), torch.zeros(3, 6), torch.zeros(3, dtype=torch.int64), r"outputs of shape \(3, 6\)"),
        (ClassMeter(NAMES), torch.zeros(3, 7), torch.tensor([0, 7, 1]), "labels go from 0 to 7"),
        (TokenMeter(9, 1), torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.int64), "outputs of shape"),
        (TokenMeter(9, 1), torch.zeros(2, 3, 9), torch.full((2, 3), 9), "there is a token 9"),
        (NumberMeter(), torch.zeros(3, 1), torch.zeros(3, 2), "outputs of shape"),
    ],
)
def test_what_does_not_fit_is_refused(
    meter: ClassMeter, outputs: torch.Tensor, targets: torch.Tensor, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        meter.add(outputs, targets)


@pytest.mark.parametrize("meter", [ClassMeter(NAMES), TokenMeter(9, 1), NumberMeter()])
def test_nothing_cannot_be_judged(meter: ClassMeter) -> None:
    with pytest.raises(BadInput, match="there are no"):
        meter.result(meter.sums())
