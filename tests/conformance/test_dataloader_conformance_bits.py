"""Any dataset that is not LeptonStore's: the loader is torch's, batch for batch and bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader as TorchDataLoader  # noqa: E402
from torch.utils.data import DistributedSampler, IterableDataset, TensorDataset, get_worker_info  # noqa: E402

from loaders import DataLoader  # noqa: E402


class Stream(IterableDataset):
    """Numbers, shared out over the workers."""

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(0, 10, 1) if info is None else range(info.id, 10, info.num_workers))


class Noisy:
    """A map-style dataset that draws from torch's generator: worker seeds show in it."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "noise": torch.rand(2), "name": f"row {index}"}


def epochs(kind: type[Any], dataset: Any, seed: int, own_generator: bool, count: int = 2, **options: Any) -> list[Any]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed) if own_generator else None
    loader = kind(dataset, generator=generator, **options)
    batches = [list(loader) for _ in range(count)]
    return [*batches, torch.rand(3)]  # the global generator has been drawn from as often, too


def assert_equal(here: Any, torchs: Any) -> None:
    assert type(here) is type(torchs)
    if isinstance(here, torch.Tensor):
        assert here.dtype == torchs.dtype and torch.equal(here, torchs)
    elif isinstance(here, dict):
        assert list(here) == list(torchs)
        assert_equal(list(here.values()), list(torchs.values()))
    elif isinstance(here, list | tuple):
        assert len(here) == len(torchs)
        for one, other in zip(here, torchs, strict=True):
            assert_equal(one, other)
    else:
        assert here == torchs


WORKERS = [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("batch_size", [4, None])
def test_batches_are_torchs(workers: dict[str, Any], shuffle: bool, own_generator: bool, batch_size: Any) -> None:
    options = {"shuffle": shuffle, "batch_size": batch_size, **workers}
    assert_equal(
        epochs(DataLoader, Noisy(), 5, own_generator, **options),
        epochs(TorchDataLoader, Noisy(), 5, own_generator, **options),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3, "drop_last": True},
        {"sampler": [3, 1, 2], "batch_size": 2},
        {"batch_sampler": [[1, 2], [5]]},
        {"batch_size": 5, "collate_fn": len},
        {"batch_size": 2, "num_workers": 2, "in_order": False},
    ],
)
def test_options_are_torchs(options: dict[str, Any]) -> None:
    here = epochs(DataLoader, TensorDataset(torch.arange(11)), 0, False, **options)
    torchs = epochs(TorchDataLoader, TensorDataset(torch.arange(11)), 0, False, **options)
    if options.get("in_order") is False:
        here, torchs = ([sorted(batch[0].tolist() for batch in epoch) for epoch in all_[:2]] for all_ in (here, torchs))
    assert_equal(here, torchs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_are_torchs(num_workers: int) -> None:
    options = {"batch_size": 3, "num_workers": num_workers}
    assert_equal(
        epochs(DataLoader, Stream(), 0, False, **options), epochs(TorchDataLoader, Stream(), 0, False, **options)
    )


def test_a_plain_dataset_is_never_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(list(DataLoader(TensorDataset(torch.arange(10)), 2))) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "sampler": [1]},
        {"batch_sampler": [[1]], "batch_size": 2},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"persistent_workers": True},
        {"batch_size": 0},
        {"batch_size": None, "drop_last": True},
        {"num_workers": 1, "multiprocessing_context": "nope"},
    ],
)
def test_errors_are_torchs(options: dict[str, Any]) -> None:
    def message(kind: Callable[..., Any]) -> str:
        with pytest.raises(ValueError) as caught:
            kind(TensorDataset(torch.arange(3)), **options)
        return str(caught.value)

    assert message(DataLoader) == message(TorchDataLoader)


@pytest.mark.parametrize("extra", [{"as_tuple": ["a"]}, {"seed": 1}, {"global_batch_size": 4}, {"rank": 0}])
def test_what_concerns_leptonstore_only_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(extra))}: only for a LeptonStore dataset"):
        DataLoader(TensorDataset(torch.arange(3)), **extra)


def test_set_epoch_reaches_the_sampler() -> None:
    data = TensorDataset(torch.arange(20))
    sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=True)
    loader = DataLoader(data, 5, sampler=sampler)
    loader.set_epoch(3)
    assert sampler.epoch == 3
    DataLoader(data).set_epoch(3)  # nothing to tell


def test_a_loader_rebuilt_as_torchs_own_gathers_by_batch(
    store: Store, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frameworks rebuild loaders as plain torch ones with samplers of their own: the dataset answers in batches."""
    table = pa.table({"id": pa.array(np.arange(50)), "text": pa.array([str(at) for at in range(50)])})
    ds = write_dataset(store, "rows", source_of(table, ("id",)))
    calls: list[int] = []
    plain = type(ds).__getitems__

    def counted(self: Any, rows: list[int]) -> list[dict[str, Any]]:
        calls.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(type(ds), "__getitems__", counted)
    sampler = DistributedSampler(ds, num_replicas=2, rank=1, shuffle=False)
    for kind in (DataLoader, TorchDataLoader):
        batches = list(kind(ds, 10, sampler=sampler))
        assert list(itertools.chain(*(batch["id"].tolist() for batch in batches))) == list(range(1, 50, 2))
        assert batches[0]["text"][:2] == ["1", "3"]
    assert calls == [10, 10, 5, 10, 10, 5]
