"""One state from 1, 2, 3 and 4 ranks, and cut by columns: what the others add to the first. For bench.checkpoint; prints JSON.

    aligned   rows that 1, 2, 3 and 4 ranks divide into whole cells
    others    rows that no number of ranks divides, and columns

Each rank is a process on gloo with a Store of its own; DTensors are sharded by rows, or by columns.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench.checkpoint import data_bytes
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer
from trainers.parallel import World

COLUMNS = 1_024  # of float32: 4 KiB a row, 256 rows a cell
ROWS = {"aligned": 12 * 256, "others": 12 * 256 + 77}
TENSORS, TENSORS_QUICK = 10, 2


def save(rank: int, size: int, folder: Path, name: str, tensors: int, dimension: int) -> None:
    """One rank of `size`: the state, sharded by rows (0) or columns (1), as the next checkpoint."""
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/ranks-{size}-{dimension}", rank=rank, world_size=size
        )
    generator = torch.Generator().manual_seed(1)
    state = {}
    for number in range(tensors):
        whole = torch.randn(ROWS[name], COLUMNS, generator=generator)
        if size > 1:
            whole = distribute_tensor(whole, init_device_mesh("cpu", (size,)), [Shard(dimension)])
        state[f"tensor.{number}"] = whole
    with (
        Store.open(folder / "store", cache_dir=folder / f"cache-{rank}") as store,
        Checkpointer(store, "run", World(rank, size)) as checkpointer,
    ):
        checkpointer.save(10 * size + dimension, {"model": state}, {})
    if size > 1:
        distributed.destroy_process_group()


def main(name: str, quick: bool) -> None:
    """Print {"added": the most that a saving added, as a share of the state}."""
    tensors = TENSORS_QUICK if quick else TENSORS
    fork = multiprocessing.get_context("fork")
    added, before = [], 0
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name_of_folder:
        folder = Path(name_of_folder)
        Store.create(folder / "store", cache_dir=folder / "cache").close()
        for size, dimension in ((1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (3, 1), (4, 1)):
            if name == "aligned" and dimension == 1:
                continue
            ranks = [
                fork.Process(target=save, args=(rank, size, folder, name, tensors, dimension)) for rank in range(size)
            ]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            if any(rank.exitcode for rank in ranks):
                raise SystemExit(f"a rank of {size} failed")
            with Store.open(folder / "store", cache_dir=folder / "cache") as store:
                now = data_bytes(store)
            added.append(now - before)
            before = now
    print(json.dumps({"added": max(added[1:]) / (tensors * ROWS[name] * COLUMNS * 4), "each": added}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "quick")
