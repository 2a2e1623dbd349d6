"""`python -m bench.checkpoint`: checkpoints in the store beside torch.save and torch.distributed.checkpoint's file-system writer.

A state of 500 MB (the weights of a transformer, and Adam's two moments of each) that changes everywhere between two saves, so that nothing
deduplicates. All three write to the same filesystem, in turns; figures are medians.

What is durable when it returns: ours (packs, log and directories are synced) and DCP's (its default, sync_files=True, syncs each file);
torch.save leaves everything in the page cache. `torch_save_fsync` says what syncing its file adds.

Loads are measured warm (the files of all were just read) and cold (their pages were dropped). Ours checks a digest of every byte, theirs
check nothing.

Contract: an asynchronous save blocks <= 0.35x of torch.save, after the first; 200 steps with four saves take <= the bare steps + 1.2x four
torch.saves; synchronous save and load >= 1x the speed of DCP's; an unchanged state adds no data; with 90% of the weights frozen a
checkpoint adds <= 12%; the same state from 1, 2, 3 and 4 ranks, also cut by columns, adds <= 2% where shards end where cells do, <= 10%
elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from bench import harness
from bench.harness import Figure, median
from leptonstore.format.pack import CONTENT_DATA
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer, load, restore

WIDTH, BLOCKS, WIDTH_QUICK, BLOCKS_QUICK = 768, 6, 192, 2
STEPS, STEPS_QUICK, SAVES, ROUNDS, ROUNDS_QUICK = 200, 40, 4, 5, 2

State = dict[str, dict[str, Any]]


def make_state(width: int, blocks: int) -> State:
    """Weights of a transformer (12 width^2 a block) and Adam's state; 510 MB for 768 and 6."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(blocks):
        shapes[f"blocks.{block}.attention.weight"] = (4 * width, width)
        shapes[f"blocks.{block}.up.weight"] = (4 * width, width)
        shapes[f"blocks.{block}.down.weight"] = (width, 4 * width)
        shapes[f"blocks.{block}.norm.weight"] = (width,)
        shapes[f"blocks.{block}.norm.bias"] = (width,)
    model = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    moments = {
        name: {
            "exp_avg": torch.randn(shape, generator=generator) * 1e-3,
            "exp_avg_sq": torch.randn(shape, generator=generator).square() * 1e-6,
            "step": torch.tensor(100.0),
        }
        for name, shape in shapes.items()
    }
    return {"model": model, "optimizer": moments}


def tensors_of(state: State) -> list[Tensor]:
    """All of them that are large."""
    moments = [one[key] for one in state["optimizer"].values() for key in ("exp_avg", "exp_avg_sq")]
    return [*state["model"].values(), *moments]


def change(tensors: list[Tensor]) -> None:
    """Every element of them, as a step of training does."""
    torch._foreach_mul_(tensors, 1.0001)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def data_bytes(store: Store) -> int:
    """Bytes of all packs of data that the log lists."""
    store.refresh()
    return sum(record.bytes for record in store.state.packs.values() if record.content == CONTENT_DATA)


class Bench:
    """The state, the store and the files of the peers."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.rounds = ROUNDS_QUICK if quick else ROUNDS
        self.steps_each = STEPS_QUICK if quick else STEPS
        self.size = (WIDTH_QUICK, BLOCKS_QUICK) if quick else (WIDTH, BLOCKS)
        self.state = make_state(*self.size)
        self.tensors = tensors_of(self.state)
        self.bytes = sum(tensor.nbytes for tensor in self.tensors)
        self.store = Store.create(folder / "store", cache_dir=folder / "cache")
        self.step = 0

    def bar(self, bound: str) -> str:
        """The bars of time are of 500 MB: with --quick, fixed costs (a log entry, syncs, 10 ms) are all there is."""
        return "" if self.quick else bound

    def torch_save(self) -> None:
        torch.save(self.state, self.folder / "state.pt")

    def torch_save_synced(self) -> None:
        with open(self.folder / "synced.pt", "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())

    def dcp_save(self) -> None:
        dcp.save(self.state, storage_writer=dcp.FileSystemWriter(self.folder / "dcp"))

    def save(self, checkpointer: Checkpointer) -> None:
        self.step += 1
        checkpointer.save(self.step, self.state, {})

    def saves(self) -> list[Figure]:
        """Synchronous saves in turns, the first of each left out."""
        ours: list[float] = []
        files: list[float] = []
        synced: list[float] = []
        dcps: list[float] = []
        with Checkpointer(self.store, "sync") as checkpointer:
            for _ in range(self.rounds + 1):
                for times, work in (
                    (ours, lambda: self.save(checkpointer)),
                    (dcps, self.dcp_save),
                    (files, self.torch_save),
                    (synced, self.torch_save_synced),
                ):
                    change(self.tensors)
                    times.append(timed(work))
        self.torch_save_s = median(files[1:])
        return [
            Figure("state", self.bytes / 1e6, "MB"),
            Figure("sync_save", median(ours[1:]), "s", self.bar("<= 1.0"), "dcp_save", median(dcps[1:])),
            Figure("torch_save", self.torch_save_s, "s"),
            Figure("torch_save_fsync", median(synced[1:]), "s"),
        ]

    def loads(self) -> list[Figure]:
        """Into tensors that are there, warm and cold, in turns."""
        self.dcp_save()
        with Checkpointer(self.store, "load") as checkpointer:
            self.save(checkpointer)
        target = make_state(*self.size)
        figures = []

        def ours() -> None:
            restore(load(self.store, "load"), target)

        def theirs() -> None:
            dcp.load(target, storage_reader=dcp.FileSystemReader(self.folder / "dcp"))

        for name, cold in (("load_warm", False), ("load_cold", True)):
            left: list[float] = []
            right: list[float] = []
            for _ in range(self.rounds + 1):
                for times, work in ((left, ours), (right, theirs)):
                    for tensor in tensors_of(target):
                        tensor.zero_()
                    if cold:
                        harness.make_cold(self.folder / "dcp")
                        harness.make_cold(self.folder / "store" / "packs")
                    else:
                        for path in (self.folder / "store" / "packs").rglob("*.pack"):
                            path.read_bytes()
                    times.append(timed(work))
                    for here, there in zip(tensors_of(target), self.tensors, strict=True):
                        assert torch.equal(here, there), name
            figures.append(Figure(name, median(left[1:]), "s", self.bar("<= 1.0"), "dcp_load", median(right[1:])))
        return figures

    def steps(self, checkpointer: Checkpointer | None) -> tuple[float, list[float]]:
        """Seconds of 200 steps (with four saves, the last one durable), and for how long each save blocked."""
        count = len(self.tensors)
        left, right = torch.randn(768, 768), torch.randn(768, 768)
        blocked = []
        start = time.perf_counter()
        for step in range(self.steps_each):
            for _ in range(4):
                left = torch.tanh(left @ right)
            change(self.tensors[step % 8 * count // 8 : (step % 8 + 1) * count // 8])
            if checkpointer is not None and (step + 1) % (self.steps_each // SAVES) == 0:
                blocked.append(timed(lambda: self.save(checkpointer)))
        if checkpointer is not None:
            checkpointer.wait()
        return time.perf_counter() - start, blocked

    def asynchronous(self) -> list[Figure]:
        """Steps with and without saves in the background, in turns."""
        bare, saving, blocked = [], [], []
        with Checkpointer(self.store, "async", asynchronous=True) as checkpointer:
            self.save(checkpointer)  # the first one gets its memory
            checkpointer.wait()
            for _ in range(max(2, self.rounds - 2)):
                bare.append(self.steps(None)[0])
                took, waits = self.steps(checkpointer)
                saving.append(took)
                blocked += waits
        four, extra = SAVES * self.torch_save_s, median(saving) - median(bare)
        return [
            Figure("async_blocks", median(blocked), "s", self.bar("<= 0.35"), "torch_save", self.torch_save_s),
            Figure("steps_bare", median(bare), "s"),
            Figure("steps_with_4_saves", median(saving), "s"),
            Figure("4_saves_add", extra, "s", self.bar("<= 1.2"), "4_torch_saves", four),
        ]

    def dedup(self) -> list[Figure]:
        """What is added by a state that did not change, and by one of which a tenth did."""
        with Checkpointer(self.store, "dedup") as checkpointer:
            self.save(checkpointer)
            before = data_bytes(self.store)
            self.save(checkpointer)
            unchanged = data_bytes(self.store) - before
            trained, free = [], self.bytes // 10
            for tensor in self.tensors:
                if tensor.nbytes <= free:
                    free -= tensor.nbytes
                    trained.append(tensor)
            change(trained)
            before = data_bytes(self.store)
            self.save(checkpointer)
            frozen = data_bytes(self.store) - before
        return [
            Figure("unchanged_adds", unchanged, "bytes", "<= 0"),
            Figure("frozen_90%_adds", frozen / self.bytes, "of the state", "<= 0.12"),
        ]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    warnings.simplefilter("ignore")  # DCP warns of what it overwrites
    folder = Path(tempfile.mkdtemp(prefix="lepton-bench-"))
    try:
        bench = Bench(folder, arguments.quick)
        figures = [*bench.saves(), *bench.loads(), *bench.asynchronous(), *bench.dedup()]
        bench.store.close()
    finally:
        shutil.rmtree(folder)
    for name, bound in (("aligned", "<= 0.02"), ("others", "<= 0.10")):
        told = harness.in_process("bench.checkpoint_ranks", name, "quick" if arguments.quick else "full")
        figures.append(Figure(f"resharded_{name}", told["added"], "of the state", bound))
    return figures


if __name__ == "__main__":
    harness.main(
        "checkpoint", harness.parser("checkpoint", "Checkpoints beside torch.save and DCP.").parse_args(), measure
    )
