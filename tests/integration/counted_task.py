"""A small task, and one that counts as tokens do: for tests of training steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from trainers.tasks import ImageClassification

SHAPE, CLASSES = (4, 4), ("a", "b", "c")
TASK = ImageClassification("image", "label", SHAPE, CLASSES)


class Counted:
    """A task whose loss is divided by what only the targets say, as that of tokens is: rows of class 0 count nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(TASK, name)

    def count(self, targets: Tensor) -> int:
        return int((targets != 0).sum())

    def count_of(self, rows: int) -> None:
        return None


def without_class_0(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="sum", ignore_index=0)
