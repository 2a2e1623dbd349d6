"""Workload tokens: random windows of 2,049 tokens of uint16 out of a corpus of 500 million (1 GB), in batches of 64 that own their memory.

Documents have lengths like those of web text (lognormal, median 500, mean 820 tokens) and tokens by Zipf's law; the store compresses them.
Ours decodes them once, into memory; the figure is of the epochs after that. State is taken every 50 batches.

memmap      the same windows in the same batches out of one numpy memmap of the same tokens, in numpy's quickest way that was found: a
            fancy index of a sliding_window_view; the order is given, not computed; pass by pass in turn with ours
mosaicml    windows as samples of MDS, shuffled, 2 workers; 40,000 of them, as its rate per sample does not depend on their number

Contract: >= 0.5x memmap, >= 5x mosaicml-streaming. Also reported: windows at random offsets, packs of whole documents with their
boundaries, windows whose documents are read for each batch (nothing decoded ahead), the seconds to the first batch, and memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import harness
from bench.harness import Figure, in_process, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import tokens_field
from leptonstore.store import Store

TOKENS, QUICK_TOKENS = 500_000_000, 4_000_000
LENGTH, BATCH, STATE_EVERY = 2_049, 64, 50
EPOCHS, PROCESSES = 7, 3
COLD_BATCHES = 8
VOCABULARY, DOCUMENT_MAX = 50_257, 1 << 15


def documents(total: int) -> Iterator[list[np.ndarray]]:
    """Documents that have `total` tokens together, 4,000 at a time: stretches of a pool of random tokens."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / (np.arange(VOCABULARY) + 2.7))
    pool = np.searchsorted(shares / shares[-1], rng.random(min(total, 1 << 24) + DOCUMENT_MAX)).astype(np.uint16)
    while total:
        lengths = rng.lognormal(np.log(500), 1.0, 4_000).astype(np.int64).clip(1, DOCUMENT_MAX)
        lengths = np.diff(np.cumsum(lengths).clip(max=total), prepend=0)
        lengths = lengths[lengths > 0]
        begins = rng.integers(0, len(pool) - DOCUMENT_MAX, len(lengths))
        yield [pool[at : at + length] for at, length in zip(begins.tolist(), lengths.tolist(), strict=True)]
        total -= int(lengths.sum())


def store_tokens(place: Path, file: Path, total: int) -> None:
    """A store with dataset `corpus`, and the same tokens as they are in a file."""
    schema = pa.schema([pa.field("id", pa.int64(), False), tokens_field("tokens", pa.uint16())])

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for docs in documents(total):
            ends = np.cumsum([0, *map(len, docs)]).astype(np.int32)
            tokens = pa.ListArray.from_arrays(ends, pa.array(np.concatenate(docs))).cast(schema.field("tokens").type)
            yield pa.record_batch([pa.array(np.arange(first, first + len(docs))), tokens], schema=schema)
            first += len(docs)

    with Store.create(place) as store:
        write_dataset(store, "corpus", Source(schema, ("id",), batches))
    with file.open("wb") as out:
        for docs in documents(total):
            np.concatenate(docs).tofile(out)


class Memory:
    """The peak of this process's own memory (anonymous and shared; not files that are mapped), in MiB above what it was (`before`)."""

    def __enter__(self) -> Memory:
        self._ended = threading.Event()
        self.before = self.peak = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _now(self) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._now())

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak -= self.before


def rate(batches: Iterable[Any], loader: Any = None, most: int | None = None) -> float:
    """Rows per second of a pass, or of its first `most` batches."""
    rows, began = 0, time.perf_counter()
    for number, batch in enumerate(batches):
        rows += len(batch["tokens"])
        if loader is not None and number % STATE_EVERY == 0:
            loader.state_dict()
        if number + 1 == most:
            break
    return rows / (time.perf_counter() - began)


def memmap(file: str) -> Iterator[float]:
    """Rows per second of passes over the same windows, in the same orders, out of a file that is mapped."""
    from loaders import Order

    tokens = np.memmap(file, np.uint16, "r")
    count = (len(tokens) - LENGTH) // LENGTH + 1
    windows = np.lib.stride_tricks.sliding_window_view(tokens.view(np.ndarray), LENGTH)
    for epoch in range(EPOCHS):
        starts = Order(count, 0, epoch).rows_at(0, count) * LENGTH
        yield rate({"tokens": windows[starts[first : first + BATCH]]} for first in range(0, count, BATCH))


def run(store: str, file: str) -> dict[str, Any]:
    """In a process of its own, where the imports are done."""
    from loaders import DataLoader, RandomOffset, TokenPacks, TokenWindows

    with Memory() as memory:
        began = time.perf_counter()
        dataset = Dataset.open(store, "corpus")
        windows = TokenWindows(dataset, length=LENGTH)
        loader = DataLoader(windows, BATCH, shuffle=True)
        owned = next(iter(loader))["tokens"]
        first_s = time.perf_counter() - began
        assert owned.untyped_storage().nbytes() == owned.nbytes, "a batch shares memory"
        loader.set_epoch(0)
        # In turn, pass by pass: a slow spell of the machine meets both.
        rates = [(rate(loader, loader), bare) for bare in memmap(file)]
    result = {"first_s": first_s, "memory_mib": memory.peak}
    result |= {"windows": max(one for one, _ in rates[1:]), "memmap": max(bare for _, bare in rates[1:])}
    del loader, windows
    cold = DataLoader(TokenWindows(dataset, length=LENGTH), BATCH, shuffle=True, arena_bytes_max=0)
    result["cold"] = rate(cold, most=COLD_BATCHES)
    del cold
    every = DataLoader(TokenWindows(dataset, length=LENGTH, stride=1), BATCH, order=RandomOffset(LENGTH))
    result["offset"] = max(rate(every) for _ in range(2))
    del every
    packs = TokenPacks(dataset, length=LENGTH)
    began = time.perf_counter()
    result |= {"packs": len(packs), "packs_s": time.perf_counter() - began, "waste": packs.waste}
    loader = DataLoader(packs, BATCH, shuffle=True)
    result["packed"] = max(rate(loader) for _ in range(2))
    return result


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures; without mosaicml-streaming where --quick asks for that."""
    with tempfile.TemporaryDirectory() as folder:
        place, file = Path(folder) / "store", Path(folder) / "tokens.bin"
        store_tokens(place, file, QUICK_TOKENS if arguments.quick else TOKENS)
        runs = [
            in_process("bench.loader_tokens", str(place), str(file)) for _ in range(1 if arguments.quick else PROCESSES)
        ]
        found = {name: median(run[name] for run in runs) for name in runs[0]}
        windows = found["windows"]
        figures = [
            Figure(
                "tokens", windows, "windows/s", "" if arguments.quick else ">= 0.5", "numpy memmap", found["memmap"]
            ),
            Figure("tokens, random offsets", found["offset"], "windows/s"),
            Figure("tokens, packs", found["packed"], "packs/s"),
            Figure("tokens, packs' waste", found["waste"], "of places", "<= 0.01"),
            Figure("tokens, finding packs", found["packs_s"], "s (decoding and packing)"),
            Figure("tokens, documents read", found["cold"], "windows/s"),
            Figure("tokens, first batch", found["first_s"], "s"),
            Figure("tokens, memory", found["memory_mib"], "MiB", "", "the tokens", file.stat().st_size / (1 << 20)),
        ]
        if not arguments.quick:
            peer = harness.run_peer("read_mosaicml", ["tokens", str(file), str(Path(folder) / "mds")], shared=True)
            title = "mosaicml-streaming, 2 workers"
            figures.append(Figure("tokens vs mosaicml", windows, "windows/s", ">= 5", title, peer["samples_per_s"]))
            figures.append(Figure("mosaicml peak memory", peer["peak_mib"], "MiB"))
        return figures


def main() -> None:
    """What `in_process` runs."""
    import torch

    import loaders.dataloader  # noqa: F401  (imports are not what is timed)

    torch.set_num_threads(1)
    print(json.dumps(run(*sys.argv[1:])))


if __name__ == "__main__":
    main()
