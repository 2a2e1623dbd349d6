"""Datasets, functions and scenarios for the conformance suite: at module level, so that spawned workers find them."""

from __future__ import annotations

import os
import random
import re
import signal
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

Point = namedtuple("Point", ["x", "y"])


class Squares(Dataset):
    """Map-style, with a length."""

    def __init__(self, rows: int = 10) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(index * index)


class InBatches(Squares):
    """`__getitems__` says that it was asked."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [torch.tensor([index, len(indices)]) for index in indices]


class NotInBatches(Squares):
    __getitems__ = None


class Structured(Squares):
    """Everything that the documentation of default_collate names."""

    def __getitem__(self, index: int) -> Any:
        return {
            "int": index,
            "float": index / 2,
            "bool": index % 2 == 0,
            "text": f"row {index}",
            "bytes": b"%d" % index,
            "array": np.full((2, 3), index, np.int16),
            "scalar": np.float32(index),
            "tensor": torch.full((2,), index),
            "tuple": (index, str(index)),
            "named": Point(index, float(index)),
            "list": [index, index + 1],
            "nested": {"deep": [{"a": torch.tensor(index)}]},
        }


class Ragged(Squares):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index)


class Unknown(Squares):
    def __getitem__(self, index: int) -> Any:
        return object()


class Failing(Squares):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise KeyError("no item five")
        return index


class OwnError(Exception):
    """An exception that wants two arguments: torch cannot make it again, and says so."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class FailingOddly(Squares):
    def __getitem__(self, index: int) -> Any:
        raise OwnError(1, 2)


class Dying(Squares):
    def __getitem__(self, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Hanging(Squares):
    """Waits for an event that nobody sets."""

    def __init__(self, event: Any) -> None:
        super().__init__()
        self.event = event

    def __getitem__(self, index: int) -> Any:
        self.event.wait()


class Introspective(Squares):
    """Each item is what its worker knows of itself, and what its generators give."""

    tag = "as made"

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        drawn = [torch.rand(1).item(), random.random(), float(np.random.rand())]
        if info is None:
            return drawn
        return [info.id, info.num_workers, info.seed, type(info.dataset).__name__, info.dataset.tag, *drawn]


class Counted(IterableDataset):
    """`length` is what it says, `rows` what it gives; each worker gives its share."""

    tag = "as made"

    def __init__(self, rows: int, length: int | None = None) -> None:
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("a stream without a length")
        return self.length

    def __repr__(self) -> str:
        return "Counted"

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return iter(range(self.rows) if info is None else range(info.id, self.rows, info.num_workers))


class IntrospectiveStream(IterableDataset):
    tag = "as made"

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        for _ in range(2):
            yield [] if info is None else [info.id, info.num_workers, type(info.dataset).__name__, info.dataset.tag]


class Unsized(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(7))


class FailingStream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield 0
        raise ValueError("the stream broke")


def tag_dataset(worker: int) -> None:
    """A worker_init_fn: after seeding, before the dataset is read."""
    info = get_worker_info()
    assert info is not None and info.id == worker
    info.dataset.tag = f"tagged by {worker} after {torch.initial_seed() - info.seed}"  # type: ignore[attr-defined]


def failing_init(worker: int) -> None:
    raise OSError(f"worker {worker} has no disk")


def as_lists(samples: list[Any]) -> list[Any]:
    return [sample.tolist() if isinstance(sample, torch.Tensor) else sample for sample in samples]


def process_of(samples: list[Any]) -> int:
    return os.getpid()


def plain(value: Any) -> Any:
    """Tensors as (dtype, values), so that outcomes compare with ==."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (type(value).__name__, *[plain(one) for one in value])
    if isinstance(value, list | tuple):
        return type(value)(plain(one) for one in value)
    return value


def outcome(run: Callable[[], Any]) -> dict[str, Any]:
    """What a scenario gave or raised, what it warned of, and where it left the global generators."""
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    result: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result["value"] = plain(run())
        except Exception as error:
            result["error"] = (type(error).__name__, _normal(str(error)))
            forget(error)
    result["warned"] = [(one.category.__name__, _normal(str(one.message))) for one in warned]
    result["after"] = (torch.rand(1).item(), random.random(), float(np.random.rand()))
    return result


def forget(error: BaseException) -> None:
    """End the cycle in which torch keeps its iterator with the error of a worker: the collector takes ten seconds to end it."""
    error.with_traceback(None)


def _normal(text: str) -> str:
    """Without process numbers, addresses, and the frames of tracebacks."""
    text = re.sub(r"pid\(s\) [\d, ]+", "pid(s) N", text)
    text = re.sub(r"0x[0-9a-f]+", "0xN", text)
    return re.sub(r"\n  File .*?(?=\n\w)", "", text, flags=re.DOTALL)
