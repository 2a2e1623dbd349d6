"""The loader without torch: the same batches as arrays, and states that torch's loader continues from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loader_data import ROWS, ids, joined, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from loaders import LoaderStateError, NumpyLoader, Order

Make = Callable[..., Source]
COLD = {"arena_bytes_max": 0}


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


@pytest.mark.parametrize("options", [{}, COLD, {**COLD, "num_workers": 2}, {"pad": True}, {"drop_last": True}])
@pytest.mark.parametrize("sizes", [{"batch_size": 100}, {"global_batch_size": 200, "rank": 1, "world_size": 3}])
def test_batches_are_those_of_the_dataloader(ds: Dataset, options: dict[str, Any], sizes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from loaders import DataLoader

    common = {"shuffle": True, "seed": 4, **options, **sizes}
    here, there = NumpyLoader(ds, **common), DataLoader(ds, **common)
    assert len(here) == len(there) and here.batch_size == there.batch_size
    for epoch in range(2):
        for arrays, tensors in zip(here, there, strict=True):
            assert list(arrays) == list(tensors)
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    assert isinstance(arrays[name], np.ndarray) and arrays[name].dtype == tensor.numpy().dtype
                    np.testing.assert_array_equal(arrays[name], tensor.numpy())
                else:
                    assert arrays[name] == tensor
        assert here.state_dict() == there.state_dict() and here.state_dict()["epoch"] == epoch + 1


def test_a_state_goes_on_in_either_loader(ds: Dataset) -> None:
    pytest.importorskip("torch")
    from loaders import DataLoader

    common: dict[str, Any] = {"global_batch_size": 300, "shuffle": True, "columns": ["id"]}
    first = NumpyLoader(ds, **common)
    seen = joined(ids(islice(first, 2)))
    second = DataLoader(ds, **common)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += joined(ids(islice(second, 3)))
    third = NumpyLoader(ds, **common)
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    seen += joined(ids(third))
    assert seen == Order(ROWS, 0, 0).rows_at(0, ROWS).tolist()
    with pytest.raises(LoaderStateError, match="seed=0 and this loader has seed=1"):
        NumpyLoader(ds, **common, seed=1).load_state_dict(second.state_dict())


def test_tuples_transforms_and_memory(ds: Dataset) -> None:
    loader = NumpyLoader(ds, 64, as_tuple=("image", "label"), transform=lambda pair: (pair[0] / 255, pair[1]))
    image, label = next(iter(loader))
    assert image.shape == (64, 3, 4) and image.dtype == np.float64 and label.tolist() == [at % 7 for at in range(64)]
    for options in ({}, COLD):
        plain = NumpyLoader(ds, 64, columns=["id"], **options)
        for batch in plain:
            batch["id"][:] = -1  # reaches nobody
        assert joined(ids(plain)) == list(range(ROWS))


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # every import of it fails
from itertools import islice
import numpy as np, pyarrow as pa
from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from loaders import NumpyLoader, Order
table = pa.table({"id": pa.array(np.arange(1003)), "text": pa.array([str(at) for at in range(1003)])})
with Store.create(sys.argv[1]) as store:
    ds = write_dataset(store, "t", Source(table.schema, ("id",), lambda: iter(table.to_batches()), 1003, {}))
    def make(rank, world_size, workers=0):
        return NumpyLoader(ds, global_batch_size=100, shuffle=True, rank=rank, world_size=world_size, num_workers=workers)
    ranks = [make(rank, 3) for rank in range(3)]
    seen = [row for batches in islice(zip(*ranks), 4) for batch in batches for row in batch["id"].tolist()]
    rest = [make(rank, 2, workers=2) for rank in range(2)]
    for loader in rest:
        loader.load_state_dict(json.loads(json.dumps(ranks[0].state_dict())))
    for batches in zip(*rest):
        for batch in batches:
            assert batch["text"] == [str(row) for row in batch["id"]]
            seen += batch["id"].tolist()
    assert seen == Order(1003, 0, 0).rows_at(0, 1003).tolist()
    print(len(seen))
"""


def test_where_torch_is_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "other")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1003"]


def test_where_torch_is_installed_it_is_not_imported(ds: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; from leptonstore.dataset import Dataset; from loaders import NumpyLoader\n"
        "print(len(list(NumpyLoader(Dataset.open(sys.argv[1], 'samples'), 100))), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "False"]


def test_arguments_that_do_not_fit_are_named(ds: Dataset) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size should be a positive integer"),
        ({"batch_size": 4, "global_batch_size": 8}, "exclude each other"),
        ({"num_workers": -1}, "non-negative"),
        ({"columns": ["nope"]}, "no column 'nope'"),
        ({"seed": -1}, "seed of an order"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in"),
        ({"pad": True, "as_tuple": ("image", "label")}, "leaves out '_valid'"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            list(NumpyLoader(ds, **arguments))
    with pytest.raises(TypeError, match="a list is no LeptonStore dataset"):
        NumpyLoader([1, 2])


def brittle(value: str | None) -> np.ndarray[Any, Any]:
    """Fails at nulls."""
    if value is None:
        raise ValueError("null")
    return np.array([len(value)], np.int32)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"pad": True, "global_batch_size": 99}])
def test_chains_collates_and_policies_make_arrays(ds: Dataset, options: dict[str, Any]) -> None:
    """The same values as torch's loader gives, whether or not torch had a hand in them."""
    torch = pytest.importorskip("torch")
    from loaders import DataLoader

    common: dict[str, Any] = {
        "columns": ["id", "text", "blob"],
        "shuffle": True,
        "transforms": {"text": [brittle]},
        "collate": {"blob": lambda values: {"sizes": np.array([len(value) for value in values])}},
        "policy": "skip",
        **({"batch_size": 50} if "global_batch_size" not in options else {}),
        **options,
    }
    skipped = 0
    here, there = NumpyLoader(ds, **common), DataLoader(ds, **common)
    for arrays, tensors in zip(here, there, strict=True):
        for name in ("id", "text", "_valid"):
            assert type(arrays[name]) is np.ndarray and isinstance(tensors[name], torch.Tensor)
            np.testing.assert_array_equal(arrays[name], tensors[name].numpy())
        np.testing.assert_array_equal(arrays["blob"]["sizes"], tensors["blob"]["sizes"])
        skipped += int((~arrays["_valid"] & (arrays["id"] % 11 == 0)).sum())
    assert skipped >= -(-ROWS // 11)
    assert here.receipt().head == there.receipt().head


def test_receipts_are_those_of_the_dataloader(ds: Dataset) -> None:
    pytest.importorskip("torch")
    from loaders import DataLoader

    common: dict[str, Any] = {"global_batch_size": 64, "shuffle": True, "columns": ["id"]}
    plain, padded = DataLoader(ds, **common), NumpyLoader(ds, rank=1, world_size=3, pad=True, **common)
    for loader in (plain, padded):
        for _ in loader:
            pass
    assert plain.receipt().head == padded.receipt().head  # of shares: padding is no part of them
