"""Workload mnist: shuffled epochs of 60,000 images of 28 x 28 uint8 and a label, in batches of 256 that own their memory.

Ours reads a compressed store; receipts, accounting and state are on, and the state is taken every 50 batches. Torch's DataLoader reads
a TensorDataset in memory, with 0 and 2 workers, the others their own format on local disk, each in its quickest way for this
workload that was found. All of them: the best of the epochs after the first. Two columns: what the images file has.

floor     one `take` per column from contiguous arrays in memory by a known permutation: nothing that owns its memory is quicker

Contract: >= 5,000,000 rows/s; >= 12x torch's DataLoader (0 workers: its quicker one) and >= 100x mosaicml-streaming with 2 workers;
the first epoch of a new process (imports not counted, opening the store is) >= 500,000. Peak memory is reported.
--quick: images of noise, one process of each, no peers but torch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import harness
from bench.harness import Figure, find_mnist, in_process, median
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.store import Store

BATCH, STATE_EVERY = 256, 50
EPOCHS, PROCESSES = 7, 3
MODULE = "bench.loader_mnist"  # by its name: run as a program it is __main__
PEERS = {
    "mosaicml": "mosaicml-streaming, 2 workers",
    "litdata": "litdata, 2 workers",
    "webdataset": "webdataset, 2 workers",
    "huggingface": "Hugging Face datasets",
    "lance": "Lance take",
    "grain": "Grain + ArrayRecord",
}


def made_up(folder: Path) -> Path:
    """IDX files of the size and sparseness of MNIST's, of noise: for who only needs the bytes."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (60_000, 28, 28), np.uint8) * (rng.random((60_000, 28, 28), np.float32) < 0.19)
    parts = {"train-images-idx3": images.astype(np.uint8), "train-labels-idx1": rng.integers(0, 10, 60_000, np.uint8)}
    for name, values in parts.items():
        head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes(), 1))
    return folder


def store_mnist(place: Path, data: Path, folder: Path) -> Path:
    """A store with dataset `mnist`, and the same training images as arrays in a file for the peers."""
    with Store.create(place) as store:
        written = write_dataset(store, "mnist", open_source(data / "train-images-idx3-ubyte.gz"))
        table = written.to_arrow(["image", "label"])
    images = table["image"].combine_chunks().storage.flatten().to_numpy().reshape(-1, 28, 28)
    np.savez(folder / "mnist.npz", images=images, labels=table["label"].to_numpy().astype(np.int64))
    return folder / "mnist.npz"


def chosen(arguments: argparse.Namespace, folder: Path) -> Path:
    """MNIST; with --quick, unless --data says where it is, what is made up. Raises SystemExit where there is none."""
    if arguments.quick and not arguments.data:
        return made_up(folder)
    data = find_mnist(arguments.data)
    if data is None:
        raise SystemExit("MNIST's IDX files are not beside the project: --data DIR says where they are")
    return data


class Pass(NamedTuple):
    """Rows per second, and microseconds of the processor (all threads of this process) for a row."""

    rate: float
    cpu_us: float


def passes(make: Callable[[], Iterable[Any]], rows: int, epochs: int, loader: Any = None) -> list[Pass]:
    """One after another."""
    found = []
    for _ in range(epochs):
        seen, began, cpu = 0, time.perf_counter(), time.process_time()
        for number, batch in enumerate(make()):
            seen += len(batch["label"] if isinstance(batch, dict) else batch[1])
            if loader is not None and number % STATE_EVERY == 0:
                loader.state_dict()
        spent = time.process_time() - cpu
        found.append(Pass(rows / (time.perf_counter() - began), 1e6 * spent / rows))
        assert seen == rows
    return found


def best(told: Sequence[Pass]) -> dict[str, float]:
    """Of several passes."""
    return {"later": max(one.rate for one in told), "cpu_us": min(one.cpu_us for one in told)}


def ours(store: str) -> dict[str, Any]:
    """In a process of its own, where the imports are done."""
    from loaders import DataLoader

    began = time.perf_counter()
    dataset = Dataset.open(store, "mnist")
    loader = DataLoader(dataset, BATCH, shuffle=True, columns=["image", "label"])
    rows = len(dataset)
    opened = time.perf_counter() - began
    told = passes(lambda: loader, rows, EPOCHS, loader)
    owned = next(iter(loader))["image"]
    assert owned.untyped_storage().nbytes() == owned.nbytes, "a batch shares memory"
    return {"first": rows / (rows / told[0].rate + opened), **best(told[1:]), "opened_s": opened}


def torchs(data: str, workers: int) -> dict[str, Any]:
    """torch's own loader over tensors in memory."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    found = np.load(data)
    images, labels = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])
    loader = DataLoader(
        TensorDataset(images, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return best(passes(lambda: loader, len(labels), 3)[1:])


def floor(data: str) -> dict[str, Any]:
    """The gathers alone."""
    found = np.load(data)
    images, labels = found["images"], found["labels"]
    order = np.random.default_rng(0).permutation(len(labels))

    def batches() -> Iterable[Any]:
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            yield images.take(rows, 0), labels.take(rows, 0)

    return best(passes(batches, len(labels), EPOCHS))


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures; without the peers where --quick asks for that."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = chosen(arguments, place)
        arrays = store_mnist(place / "store", data, place)
        runs, bare, in_memory = [], [], []
        for _ in range(1 if arguments.quick else PROCESSES):  # in turn: a slow spell of the machine meets all
            runs.append(in_process(MODULE, "ours", str(place / "store")))
            bare.append(in_process(MODULE, "floor", str(arrays)))
            in_memory.append(in_process(MODULE, "torch", str(arrays), "0"))

        def middle(told: list[dict[str, Any]], key: str) -> float:
            return median(one[key] for one in told)

        rate, cpu = middle(runs, "later"), middle(runs, "cpu_us")
        figures = [
            Figure("mnist", rate, "rows/s", ">= 5000000"),
            Figure("mnist vs floor", rate, "rows/s", "", "take from arrays", middle(bare, "later")),
            Figure("mnist vs torch", rate, "rows/s", ">= 12", "torch, in memory", middle(in_memory, "later")),
            Figure("mnist vs floor, processor time", cpu, "us/row", "", "take from arrays", middle(bare, "cpu_us")),
            Figure(
                "mnist vs torch, processor time", cpu, "us/row", "", "torch, in memory", middle(in_memory, "cpu_us")
            ),
            Figure("mnist first epoch", middle(runs, "first"), "rows/s", ">= 500000"),
            Figure("mnist peak memory", middle(runs, "peak_mib"), "MiB"),
            Figure("mnist memory before", middle(runs, "before_mib"), "MiB (torch and Arrow imported)"),
        ]
        if arguments.quick:
            return figures
        two = in_process(MODULE, "torch", str(arrays), "2")["later"]
        figures.append(Figure("mnist vs torch, 2 workers", rate, "rows/s", "", "torch, in memory, 2 workers", two))
        for name, title in PEERS.items():
            shared = name == "mosaicml"
            found = harness.run_peer(f"read_{name}", ["mnist", str(arrays), str(place / name)], shared)
            bound = ">= 100" if shared else ""
            figures.append(Figure(f"mnist vs {name}", rate, "rows/s", bound, title, found["samples_per_s"]))
            figures.append(Figure(f"{name} peak memory", found["peak_mib"], "MiB"))
        return figures


def main() -> None:
    """What `in_process` runs."""
    role, *rest = sys.argv[1:]
    import pyarrow
    import torch  # noqa: F401

    import loaders.dataloader  # noqa: F401  (imports are not what is timed)

    pyarrow.array([0])  # its first array imports pandas, where that is installed: 0.3 s
    before = harness.peak_mib()
    result = ours(rest[0]) if role == "ours" else floor(rest[0]) if role == "floor" else torchs(rest[0], int(rest[1]))
    print(json.dumps({**result, "peak_mib": harness.peak_mib(), "before_mib": before, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
