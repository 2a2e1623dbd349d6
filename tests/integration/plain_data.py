"""Torch datasets and samplers of every kind: for the tests of a loader over datasets that are not LeptonStore's.

They stand in a module, so that workers that are spawned find them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler, get_worker_info


def share() -> tuple[int, int]:
    """(number, count) of the workers."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class Numbers:
    """Map-style: item i is i."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


class Counting(Numbers):
    """Map-style and stateful: an item says how many items this copy of the dataset gave before it."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.given = 0

    def __getitem__(self, index: int) -> Any:
        self.given += 1
        return torch.tensor([index, self.given])

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


class Stream(IterableDataset):
    """Iterable without a state: numbers, shared out over the workers; the first worker has fewer."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[int]:
        worker, workers = share()
        return iter(range(worker, self.rows + 3 * worker, workers))


class StatefulStream(Stream):
    """The dataset knows where its one iterator stands, and begins anew after its end; `passes` counts the ends."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.at = self.passes = 0

    def __iter__(self) -> Iterator[int]:
        worker, workers = share()
        while worker + self.at * workers < self.rows + 3 * worker:
            self.at += 1
            yield 1_000 * self.passes + worker + (self.at - 1) * workers
        self.at = 0
        self.passes += 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.passes = state["at"], state["passes"]


class StatefulIterator:
    def __init__(self, values: list[int]) -> None:
        self.values, self.at = values, 0

    def __iter__(self) -> StatefulIterator:
        return self

    def __next__(self) -> int:
        if self.at == len(self.values):
            raise StopIteration
        self.at += 1
        return self.values[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class StreamOfStatefulIterators(Stream):
    """The iterator knows where it stands; the dataset knows nothing."""

    def __iter__(self) -> Iterator[int]:
        return StatefulIterator(list(super().__iter__()))


class OwnIterator(StatefulStream):
    """The dataset is its own iterator."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        worker, workers = share()
        if worker + self.at * workers >= self.rows + 3 * worker:
            self.at = 0
            self.passes += 1
            raise StopIteration
        self.at += 1
        return 1_000 * self.passes + worker + (self.at - 1) * workers


class Shuffled(Sampler[int]):
    """Draws from Python's global generator when it is iterated."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.rows))
        random.shuffle(order)
        return iter(order)


class Unseeded(Shuffled):
    """Draws from a generator that nobody else can know."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.SystemRandom().sample(range(self.rows), self.rows))


class StatefulSampler(Shuffled):
    """Goes on where it was stopped; its passes differ, and only its state says how."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.passes = self.at = 0
        self.resume = False

    def __iter__(self) -> Iterator[int]:
        if not self.resume:
            self.at = 0
        self.resume = False
        order = list(range(self.passes % self.rows, self.rows)) + list(range(self.passes % self.rows))
        while self.at < self.rows:
            self.at += 1
            yield order[self.at - 1]
        self.passes += 1

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.at, self.resume = state["passes"], state["at"], True


class SamplerOfStatefulIterators(Shuffled):
    def __iter__(self) -> Iterator[int]:
        return StatefulIterator(list(range(self.rows))[::-1])
