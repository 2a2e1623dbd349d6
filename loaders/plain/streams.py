"""What stands between torch's fetcher and the user's dataset, where the dataset or an iterator over it has a state.

A `DatasetSide` goes to each worker in place of the loader's collate_fn, worker_init_fn and (for an iterable) dataset, and
does what they do. Besides, it gives a worker's state with the batch that it belongs to (`Carried`), and brings a fresh worker
to where another one stood. In a loader without workers it does the same in the main process.

The state of a stream is a dict:

    batches     handed out since the other entries were taken (or since the pass began)
    dataset     of a stateful dataset; absent when there is none, or when the dataset is its own iterator
    iterator    of a stateful iterator over it
    ended       true when the stream had come to its end
    indices     map-style only: the index batches that were fetched since `dataset` was taken
    drain       true when it is of the pass before: it is to be read to its end, and then begun anew

A stream without `dataset` and `iterator` goes on by reading, and dropping, `batches` batches from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from torch.utils.data._utils.pin_memory import pin_memory

from loaders.plain.stateful import is_stateful, load, state_of


class Carried:
    """A batch on its way from a worker, and what its stream says of itself after it."""

    def __init__(self, batch: Any, state: dict[str, Any]) -> None:
        self.batch, self.state = batch, state

    def pin_memory(self) -> Carried:
        """torch's pinning thread calls this; states are not pinned."""
        return Carried(pin_memory(self.batch), self.state)


class Stream:
    """An iterator over an iterable dataset that goes on from a state.

    batch_size: samples of a batch that is passed over; None when each sample is one.
    """

    def __init__(self, dataset: Any, batch_size: int | None, state: dict[str, Any]) -> None:
        if state.get("drain"):
            for _ in Stream(dataset, batch_size, {**state, "drain": False}):
                pass
            state = {}
        if "dataset" in state:
            load(dataset, state["dataset"])
        self.ended = bool(state.get("ended"))
        self._dataset = dataset
        self.samples: Iterator[Any] = iter(dataset)
        if "iterator" in state:
            load(self.samples, state["iterator"])
        self.stateful = is_stateful(dataset) or is_stateful(self.samples)
        for _ in islice(self, state.get("batches", 0) * (batch_size or 1)):
            pass

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        try:
            return next(self.samples)
        except StopIteration:
            self.ended = True
            raise

    def state(self) -> dict[str, Any]:
        """Of the stream now."""
        state: dict[str, Any] = {"batches": 0, "ended": self.ended}
        if is_stateful(self.samples):
            state["iterator"] = state_of(self.samples)
        if self.samples is not self._dataset and is_stateful(self._dataset):
            state["dataset"] = state_of(self._dataset)
        return state


class DatasetSide:
    """The user's dataset, and his `collate_fn` and `worker_init_fn`. Pickles where they do; each worker has a copy.

    batched:    whether batches are made of samples (torch's automatic batching).
    batch_size: samples of a batch of an iterable; None without automatic batching.
    every:      batches of one worker from one state to the next; 0 for the first batch of each pass only.
    starts:     the state of each worker's stream.
    """

    def __init__(
        self,
        dataset: Any,
        iterable: bool,
        batched: bool,
        batch_size: int | None,
        every: int,
        starts: list[dict[str, Any]],
    ) -> None:
        self.dataset = dataset
        self.stream: Stream | None = None
        self.collate_fn: Callable[[Any], Any] | None = None
        self.worker_init_fn: Callable[[int], None] | None = None
        self._iterable = iterable
        self._batched = batched
        self._batch_size = batch_size
        self._every = every
        self._starts = starts
        self._start: dict[str, Any] = {}
        self._batches = 0

    def begin_worker(self, worker: int) -> None:
        """Stands for worker_init_fn: calls it, then brings the dataset to where the worker stood."""
        info = get_worker_info()
        assert info is not None
        if self._iterable:  # torch takes this object for the dataset
            object.__setattr__(info, "dataset", self.dataset)
        else:
            self.dataset = info.dataset
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)
        self.begin(worker)

    def begin(self, worker: int) -> None:
        """Bring the dataset to where the worker stood."""
        self._start = self._starts[worker] if worker < len(self._starts) else {}
        if self._iterable:
            return  # `iter` does it
        if "dataset" in self._start:
            load(self.dataset, self._start["dataset"])
        fetcher = _MapDatasetFetcher(self.dataset, self._batched, lambda samples: samples, False)
        for index in self._start.get("indices", []):
            fetcher.fetch(index)

    def __iter__(self) -> Iterator[Any]:
        """Stands for the dataset's: a pass of this worker."""
        self.stream = stream = Stream(self.dataset, self._batch_size, self._start)
        self._start, self._batches = {}, 0
        return stream if stream.stateful or stream.ended else stream.samples  # unwatched where nobody is asked

    def collate(self, samples: Any) -> Any:
        """Stands for collate_fn."""
        assert self.collate_fn is not None
        batch = self.collate_fn(samples)
        self._batches += 1
        due = self._batches == 1 or (self._every > 0 and self._batches % self._every == 0)
        if self._iterable:
            assert self.stream is not None
            return Carried(batch, self.stream.state()) if due and self.stream.stateful else batch
        return Carried(batch, {"batches": 0, "dataset": state_of(self.dataset)}) if due else batch
