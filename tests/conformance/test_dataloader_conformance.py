"""torch's documented DataLoader, row by row: ours over plain datasets gives, raises and warns what torch's does.

The rows that also concern a LeptonStore dataset are asked of one here too. That shuffles are bit-identical over the product of
workers, shuffle, generator, batch_size=None and persistent workers stands in test_dataloader_conformance_bits.py, the
StatefulDataLoader protocol in test_dataloader_plain_state.py, Lightning, Accelerate and transformers in test_frameworks.py.
"""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

import conformance_data as data  # noqa: E402
from conformance_data import Counted, Squares, outcome  # noqa: E402
from torch.utils.data import (  # noqa: E402
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data import DataLoader as TorchDataLoader  # noqa: E402

from leptonstore.dataset import Dataset, Source, write_dataset  # noqa: E402
from leptonstore.store import Store  # noqa: E402
from loaders import DataLoader  # noqa: E402

Kind = Callable[..., Any]
Scenario = Callable[[Kind], Any]
TORCHS = inspect.signature(TorchDataLoader.__init__).parameters


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    table = pa.table({"id": pa.array(np.arange(10)), "name": pa.array([f"row {row}" for row in range(10)])})
    return write_dataset(store, "rows", source_of(table, ("id",)))


def gives(scenario: Scenario) -> Any:
    """What torch's and ours give alike; fails when they differ in anything that is seen from outside."""
    ours, torchs = outcome(lambda: scenario(DataLoader)), outcome(lambda: scenario(TorchDataLoader))
    assert ours == torchs
    return ours.get("value", ours.get("error"))


def warnings_of(scenario: Scenario) -> list[tuple[str, str]]:
    ours, torchs = outcome(lambda: scenario(DataLoader)), outcome(lambda: scenario(TorchDataLoader))
    assert ours == torchs
    return list(ours["warned"])


# -- signature and attributes ------------------------------------------------------------------------------------------


def test_torchs_parameters_are_ours_in_torchs_order() -> None:
    ours = list(inspect.signature(DataLoader.__init__).parameters.values())[: len(TORCHS)]
    assert [(one.name, one.kind, one.default) for one in ours] == [
        (one.name, one.kind, one.default) for one in TORCHS.values()
    ]
    assert issubclass(DataLoader, TorchDataLoader)


OPTIONS: dict[str, Any] = {
    "batch_size": 3,
    "num_workers": 1,
    "collate_fn": data.as_lists,
    "pin_memory": True,
    "drop_last": True,
    "timeout": 5,
    "worker_init_fn": data.tag_dataset,
    "multiprocessing_context": torch.multiprocessing.get_context("spawn"),
    "generator": torch.Generator(),
    "prefetch_factor": 4,
    "persistent_workers": True,
    "pin_memory_device": "cuda",
    "in_order": False,
}


def test_every_parameter_is_an_attribute_of_the_same_name(ds: Dataset) -> None:
    for dataset in (Squares(), ds):
        loader = DataLoader(dataset, **OPTIONS)
        assert loader.dataset is dataset
        for name, value in OPTIONS.items():
            assert getattr(loader, name) is value, name
        assert isinstance(loader.sampler, SequentialSampler) and isinstance(loader.batch_sampler, BatchSampler)
        assert isinstance(DataLoader(dataset, shuffle=True).sampler, RandomSampler)
    assert {"self", "dataset", "shuffle", "sampler", "batch_sampler", *OPTIONS} == set(TORCHS)


def test_defaults_of_attributes() -> None:
    for options in ({}, {"num_workers": 1}, {"batch_sampler": [[1]]}, {"batch_size": None}):
        gives(
            lambda kind, options=options: [
                getattr(kind(Squares(), **options), name)
                for name in TORCHS
                if name not in ("self", "dataset", "shuffle", "sampler", "batch_sampler", "collate_fn")
            ]
        )


FROZEN = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


@pytest.mark.parametrize("name", FROZEN)
def test_attributes_that_are_frozen(name: str, ds: Dataset) -> None:
    error = gives(lambda kind: setattr(kind(Squares()), name, None))
    assert error == ("ValueError", f"{name} attribute should not be set after DataLoader is initialized")
    with pytest.raises(ValueError, match=f"{name} attribute should not be set after DataLoader is initialized"):
        setattr(DataLoader(ds), name, None)


def test_other_attributes_may_be_set() -> None:
    def set_some(kind: Kind) -> Any:
        loader = kind(Squares(), 2)
        loader.collate_fn = data.as_lists
        loader.generator = torch.Generator().manual_seed(3)
        loader.timeout = 0
        return list(loader)

    assert gives(set_some)[0] == [0, 1]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"num_workers": 1, "prefetch_factor": -2},
        {"persistent_workers": True},
        {"shuffle": True, "sampler": [1]},
        {"batch_sampler": [[1]], "batch_size": 2},
        {"batch_sampler": [[1]], "shuffle": True},
        {"batch_sampler": [[1]], "sampler": [1]},
        {"batch_sampler": [[1]], "drop_last": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"drop_last": 1},
        {"multiprocessing_context": "fork"},
        {"num_workers": 1, "multiprocessing_context": "nope"},
        {"num_workers": 1, "multiprocessing_context": 3},
        {"nonsense": 1},
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], ds: Dataset) -> None:
    def make(kind: Kind, dataset: Any = None) -> None:
        kind(Squares() if dataset is None else dataset, **options)

    kind_of_error, text = gives(make)
    refused = outcome(lambda: make(DataLoader, ds))["error"]
    assert refused[0] == kind_of_error
    assert refused[1] == text or "shuffle" in options  # ours says the same, of more parameters


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}])
def test_streams_take_no_samplers(options: dict[str, Any]) -> None:
    kind, text = gives(lambda kind: kind(Counted(3), **options))
    assert kind == "ValueError" and text.startswith("DataLoader with IterableDataset: expected unspecified")


def test_an_empty_dataset() -> None:
    assert gives(lambda kind: list(kind(Squares(0), 3))) == []
    kind, text = gives(lambda kind: kind(Squares(0), 3, shuffle=True))
    assert kind == "ValueError" and "num_samples should be a positive integer value" in text


@pytest.mark.parametrize("dataset", [data.Failing(), data.FailingOddly(), data.Ragged(), data.Unknown()])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_items(dataset: Any, num_workers: int) -> None:
    kind, text = gives(lambda kind: list(kind(dataset, 3, num_workers=num_workers)))
    assert ("Caught" in text and "in DataLoader worker process" in text) == (num_workers > 0)
    assert kind in ("KeyError", "OwnError", "RuntimeError", "TypeError")


def test_an_error_of_a_worker_leaves_no_worker_behind() -> None:
    """torch's own iterator stays in a cycle with the error until the garbage collector comes."""
    gc.disable()
    try:
        loader = DataLoader(data.Failing(), 3, num_workers=1, collate_fn=data.as_lists)
        batches = iter(loader)
        workers = [worker.pid for worker in batches._workers]
        with pytest.raises(KeyError) as caught:
            list(batches)
        del batches, caught
        assert [child.pid for child in multiprocessing.active_children() if child.pid in workers] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_after_an_error_the_pass_goes_on(num_workers: int) -> None:
    def run(kind: Kind) -> Any:
        batches, seen = iter(kind(data.Failing(), 2, num_workers=num_workers)), []
        while True:
            try:
                seen.append(next(batches))
            except KeyError as error:
                seen.append("error")
                data.forget(error)
            except StopIteration:
                return seen

    assert len(gives(run)) == 5


def test_an_error_of_a_stream() -> None:
    for num_workers in (0, 1):
        kind, text = gives(lambda kind, n=num_workers: list(kind(data.FailingStream(), 2, num_workers=n)))
        assert kind == "ValueError" and "the stream broke" in text


def test_an_error_of_worker_init_fn() -> None:
    kind, text = gives(lambda kind: list(kind(Squares(), num_workers=1, worker_init_fn=data.failing_init)))
    assert kind == "OSError" and "worker 0 has no disk" in text
    kind, text = gives(lambda kind: list(kind(Counted(4), num_workers=1, worker_init_fn=data.failing_init)))
    assert kind == "OSError" and "worker 0 has no disk" in text


def test_a_worker_that_dies() -> None:
    """In a process of its own: torch raises from a signal handler, wherever the main thread happens to be."""
    program = """
from conformance_data import Dying, as_lists
import loaders, torch.utils.data
for kind in (loaders.DataLoader, torch.utils.data.DataLoader):
    batches = iter(kind(Dying(), 1, num_workers=1, collate_fn=as_lists))
    try:
        list(batches)
    except RuntimeError as error:
        print(error)
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here)])}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    said = ran.stdout.splitlines()
    assert len(said) == 2, ran.stderr
    for line in said:
        assert re.fullmatch(
            r"DataLoader worker \(pid(\(s\))? \d+\) (exited unexpectedly|is killed by signal: Killed.*)", line
        )


def test_a_worker_that_hangs() -> None:
    def run(kind: Kind) -> Any:
        event = torch.multiprocessing.get_context("fork").Event()
        try:
            return list(kind(data.Hanging(event), num_workers=1, timeout=0.3, multiprocessing_context="fork"))
        finally:
            event.set()

    assert gives(run) == ("RuntimeError", "DataLoader timed out after 0.3 seconds")
    assert gives(lambda kind: list(kind(Squares(), timeout=1)))[0] == "AssertionError"  # without workers, as in torch


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_collate_and_convert(batch_size: int | None, num_workers: int) -> None:
    batches = gives(lambda kind: list(kind(data.Structured(6), batch_size, num_workers=num_workers)))
    assert len(batches) == (6 if batch_size is None else -(-6 // batch_size))
    assert isinstance(batches[0]["text"], str) == (batch_size is None)


def test_collate_fn() -> None:
    assert gives(lambda kind: list(kind(Squares(), 4, collate_fn=data.as_lists)))[-1] == [64, 81]
    assert gives(lambda kind: list(kind(Squares(3), None, collate_fn=str))) == ["tensor(0)", "tensor(1)", "tensor(4)"]
    assert gives(lambda kind: list(kind(Counted(5), 2, collate_fn=len))) == [2, 2, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_getitems(num_workers: int, ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(kind: Kind, dataset: Any) -> Any:
        return list(kind(dataset, 4, num_workers=num_workers))

    assert gives(lambda kind: run(kind, data.InBatches()))[0][1] == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert gives(lambda kind: run(kind, data.NotInBatches()))[0][1] == [0, 1, 4, 9]
    assert gives(lambda kind: run(kind, Subset(data.InBatches(), [5, 3])))[0][1] == [[5, 2], [3, 2]]
    monkeypatch.delattr(Dataset, "__getitem__")
    batches = list(DataLoader(ds, 4, sampler=[7, 1], num_workers=num_workers))
    assert batches[0]["id"].tolist() == [7, 1] and batches[0]["name"] == ["row 7", "row 1"]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 20, "drop_last": True},
        {"sampler": [9, 0, 9]},
        {"sampler": np.array([3, 1])},
        {"sampler": range(5, 2, -1), "batch_size": 2},
        {"sampler": SubsetRandomSampler([1, 2, 3, 4]), "batch_size": 3},
        {"sampler": WeightedRandomSampler([0.5] * 10, 6), "batch_size": 4},
        {"sampler": RandomSampler(range(10), replacement=True, num_samples=40), "batch_size": 7},
        {"sampler": BatchSampler(SequentialSampler(range(10)), 4, False), "batch_size": None},
        {"batch_sampler": [[1, 2], [], [5]], "collate_fn": data.as_lists},
        {"batch_sampler": BatchSampler(RandomSampler(range(10)), 4, True)},
        {"shuffle": True, "generator": torch.Generator().manual_seed(2), "batch_size": 3},
    ],
)
def test_samplers(options: dict[str, Any]) -> None:
    class Rows(Squares):
        def __getitem__(self, index: Any) -> Any:
            return torch.as_tensor(index)

    generator = options.get("generator")

    def run(kind: Kind) -> Any:
        if generator is not None:
            generator.manual_seed(2)
        loader = kind(Rows(), **options)
        return [len(loader), list(loader), list(loader)]

    gives(run)


def test_datasets_of_datasets() -> None:
    assert len(gives(lambda kind: list(kind(ConcatDataset([Squares(3), Squares(4)]), 2, shuffle=True)))) == 4
    assert len(gives(lambda kind: list(kind(ChainDataset([Counted(3), Counted(4)]), 2)))) == 4
    split = gives(lambda kind: [list(kind(part, 2)) for part in torch.utils.data.random_split(Squares(), [7, 3])])
    assert [len(part) for part in split] == [4, 2]


# -- streams and lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 3, "drop_last": True}, {"batch_size": None}])
def test_streams(options: dict[str, Any], num_workers: int) -> None:
    def run(kind: Kind) -> Any:
        loader = kind(Counted(10), num_workers=num_workers, **options)
        return [list(loader), list(loader)]

    first, second = gives(run)
    assert first == second and first


def test_lengths(ds: Dataset) -> None:
    for options, length in (({}, 10), ({"batch_size": 4}, 3), ({"batch_size": 4, "drop_last": True}, 2)):
        assert gives(lambda kind, options=options: len(kind(Squares(), **options))) == length
        assert gives(lambda kind, options=options: len(kind(Counted(10, 10), **options))) == length
        assert gives(lambda kind, options=options: len(iter(kind(Squares(), **options)))) == length
        assert len(DataLoader(ds, **options)) == length and len(iter(DataLoader(ds, **options))) == length
    assert gives(lambda kind: len(kind(Counted(10, 10), None))) == 10
    assert gives(lambda kind: len(kind(Squares(), None))) == 10 == len(DataLoader(ds, None))
    assert gives(lambda kind: len(kind(Squares(), batch_sampler=[[1], [2, 3]]))) == 2
    assert len(DataLoader(ds, sampler=[1, 2, 3], batch_size=2)) == 2
    assert gives(lambda kind: len(kind(data.Unsized())))[0] == "TypeError"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_longer_than_it_said(num_workers: int) -> None:
    def run(kind: Kind, asks: bool) -> Any:
        loader = kind(Counted(6, 4), num_workers=num_workers)
        return (len(loader) if asks else 4, list(loader))

    warned = warnings_of(lambda kind: run(kind, True))
    assert len(warned) == 2 and "Length of IterableDataset Counted was reported to be 4" in warned[0][1]
    assert warnings_of(lambda kind: run(kind, False)) == []


# -- passes ------------------------------------------------------------------------------------------------------------


def test_iterators(ds: Dataset) -> None:
    def run(kind: Kind) -> Any:
        loader = kind(Squares(), 4, shuffle=True)
        one, two = iter(loader), iter(loader)
        mixed = [next(one), next(two), next(one), next(two), next(two)]
        ended = [next(two, "end"), next(two, "end")]
        return [iter(one) is one, mixed, ended]

    assert gives(run)[2] == ["end", "end"]
    assert gives(lambda kind: pickle.dumps(iter(kind(Squares()))))[0] == "NotImplementedError"
    one, two = iter(DataLoader(ds, 4)), iter(DataLoader(ds, 4))
    assert next(one)["id"].tolist() == next(two)["id"].tolist() and iter(one) is one


def test_a_loader_pickles() -> None:
    def run(kind: Kind) -> Any:
        loader = kind(Squares(), 4, num_workers=0, collate_fn=data.as_lists)
        list(loader)
        return list(pickle.loads(pickle.dumps(loader)))  # noqa: S301

    assert gives(run)[0] == [0, 1, 4, 9]


@pytest.mark.parametrize("dataset", [Squares(6), Counted(6)])
def test_persistent_workers(dataset: Any) -> None:
    for kind in (DataLoader, TorchDataLoader):
        for persistent in (False, True):
            loader = kind(dataset, 2, num_workers=2, persistent_workers=persistent, collate_fn=data.process_of)
            first, second = set(loader), set(loader)
            assert len(first) == len(second) == 2
            assert (first == second) == persistent
            assert bool(first & second) == persistent


def test_persistent_workers_after_break() -> None:
    def run(kind: Kind) -> Any:
        loader = kind(Squares(), 2, shuffle=True, num_workers=2, persistent_workers=True)
        first = next(iter(loader))
        return [first, list(loader), iter(loader) is iter(loader)]

    assert gives(run)[2] is True


def test_out_of_order() -> None:
    for kind in (DataLoader, TorchDataLoader):
        batches = [batch.tolist() for batch in kind(Squares(), 3, num_workers=2, in_order=False)]
        assert sorted(batches) == [[0, 1, 4], [9, 16, 25], [36, 49, 64], [81]]


def test_epochs_of_a_distributed_sampler(ds: Dataset) -> None:
    def run(kind: Kind) -> Any:
        sampler = DistributedSampler(Squares(), 2, 1, shuffle=True)
        loader = kind(Squares(), 2, sampler=sampler)
        passes = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            passes.append(list(loader))
        return passes

    first, second = gives(run)
    assert first != second
    sampler = DistributedSampler(ds, 2, 1, shuffle=True)
    loader = DataLoader(ds, 2, sampler=sampler)
    loader.set_epoch(1)
    assert sampler.epoch == 1
    assert [row for batch in loader for row in batch["id"].tolist()] == list(sampler)


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [False, True])
def test_what_workers_know_and_draw(generator: bool) -> None:
    def run(kind: Kind) -> Any:
        own = torch.Generator().manual_seed(6) if generator else None
        loader = kind(
            data.Introspective(6),
            2,
            num_workers=2,
            generator=own,
            worker_init_fn=data.tag_dataset,
            collate_fn=data.as_lists,
        )
        return [list(loader), list(loader)]

    first, second = gives(run)
    workers = [item[:2] for batch in first for item in batch]
    assert workers == [[0, 2], [0, 2], [1, 2], [1, 2], [0, 2], [0, 2]]
    assert first[1][0][2] == first[0][0][2] + 1  # the seed is a base seed and the number of the worker
    assert first[0][0][3:5] == ["Introspective", "tagged by 0 after 0"]
    assert first[0][0][5:] != first[1][0][5:] and first != second


def test_the_main_process_has_no_worker_info() -> None:
    assert torch.utils.data.get_worker_info() is None
    assert len(gives(lambda kind: list(kind(data.Introspective(1), None)))[0]) == 3


def test_workers_of_a_stream_know_the_dataset_as_it_was_made() -> None:
    def run(kind: Kind) -> Any:
        return list(kind(data.IntrospectiveStream(), None, num_workers=2, worker_init_fn=data.tag_dataset))

    seen = gives(run)
    assert seen[0] == [0, 2, "IntrospectiveStream", "tagged by 0 after 0"] and len(seen) == 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ways_to_start_workers(method: str, ds: Dataset) -> None:
    loader = DataLoader(
        data.Introspective(3),
        num_workers=1,
        multiprocessing_context=method,
        worker_init_fn=data.tag_dataset,
        collate_fn=data.as_lists,
    )
    assert [batch[0][4] for batch in loader] == ["tagged by 0 after 0"] * 3
    sampled = DataLoader(ds, 4, sampler=[3, 1], num_workers=1, multiprocessing_context=method)
    assert [batch["id"].tolist() for batch in sampled] == [[3, 1]]


def test_more_workers_than_cores_are_warned_of() -> None:
    warned = warnings_of(lambda kind: kind(Squares(), num_workers=10_000) and None)
    assert len(warned) == 1 and "This DataLoader will create 10000 worker processes in total" in warned[0][1]


# -- pinned memory -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("dataset", [Squares(4), Counted(4)])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_pinning_without_an_accelerator_is_warned_of(dataset: Any, num_workers: int) -> None:
    warned = warnings_of(lambda kind: list(kind(dataset, 2, pin_memory=True, num_workers=num_workers)))
    assert len(warned) == 1 and "no accelerator is found" in warned[0][1]


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dataset", [Squares(4), Counted(4), TensorDataset(torch.arange(4))])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_pinning(dataset: Any, num_workers: int) -> None:
    for kind in (DataLoader, TorchDataLoader):
        for batch in kind(dataset, 2, pin_memory=True, num_workers=num_workers):
            assert (batch[0] if isinstance(batch, list) else batch).is_pinned()
