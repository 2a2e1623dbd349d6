"""Ranks that save and load one state in many shardings. Run by test_checkpoint_ranks.py; each rank writes FOLDER/<rank>.json.

python checkpoint_run.py FOLDER RANKS ROLE
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from ranks import start_ranks
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from leptonstore.dataset import list_refs
from leptonstore.errors import LeptonError, StoreFull
from leptonstore.format.pack import CONTENT_DATA
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer, load, restore
from trainers.checkpoint.dcp import StoreReader, StoreWriter
from trainers.parallel import World

RANKS, ROLE = int(sys.argv[2]), sys.argv[3]
SHAPES = {"even": (1_536, 512), "odd": (1_001, 700), "short": (2, 9), "vector": (700_001,), "cube": (7, 90, 300)}


def wholes(seed: int = 0) -> dict[str, torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def sharded(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """plain: no DTensors; rows, columns: Shard(0), Shard(-1) where there are columns; mixed: rows of one, columns of the next."""
    mesh = init_device_mesh("cpu", (RANKS,))
    out: dict[str, Any] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        last = tensor.dim() - 1
        dimension = {"plain": None, "rows": 0, "columns": last, "replicated": -1, "mixed": (0, last)[number % 2]}[kind]
        if dimension is None:
            out[name] = tensor
        else:
            out[name] = distribute_tensor(tensor, mesh, [Replicate() if dimension == -1 else Shard(dimension)])
    return out


def state_of(kind: str, seed: int, rank: int) -> dict[str, Any]:
    """Each rank has a part of its own, too."""
    return {
        "model": sharded(kind, wholes(seed)),
        "rng": {f"rank-{rank}": {"cpu": torch.full((9,), rank, dtype=torch.uint8), "of": rank}},
        "scaler": {"scale": 2.0},
    }


def data_bytes(store: Store) -> int:
    """Of all packs of data."""
    store.refresh()
    return sum(record.bytes for record in store.state.packs.values() if record.content == CONTENT_DATA)


def full(tensor: Any) -> torch.Tensor:
    """All of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shardings(rank: int, store: Store) -> dict[str, Any]:
    """Save in each sharding, load each into each."""
    kinds = ["plain", "rows", "columns", "replicated", "mixed"]
    added, commits, right = [], [], True
    for asynchronous in (False, True):
        with Checkpointer(store, "run", World(rank, RANKS), asynchronous=asynchronous) as checkpointer:
            for kind in kinds:
                dist.barrier()
                before = data_bytes(store)
                dist.barrier()
                checkpointer.save(1, state_of(kind, 0, rank), {"ranks": RANKS})
                saved = checkpointer.wait()
                assert saved is not None
                commits.append(saved[1])
                dist.barrier()
                added.append(data_bytes(store) - before)
    for kind in kinds:
        other = state_of(kind, 1, rank)
        restore(load(store, "run"), other)
        for name, tensor in wholes(0).items():
            right &= torch.equal(full(other["model"][name]), tensor)
    return {"added": added, "commits": sorted(set(commits)), "right": right, "scalars": load(store, "run").scalars}


def with_dcp(rank: int, store: Store) -> dict[str, Any]:
    """Save in each sharding with torch.distributed.checkpoint, load each into each."""
    kinds = ["plain", "rows", "columns", "replicated", "mixed"]
    writer, added, right = StoreWriter(store, "run"), [], True
    for step, kind in enumerate(kinds):
        dist.barrier()
        before = data_bytes(store)
        dist.barrier()
        state = {"model": sharded(kind, wholes(0)), "step": 7}
        if step % 2:
            dcp.async_save(state, checkpoint_id=str(step), storage_writer=writer).result()
        else:
            dcp.save(state, checkpoint_id=str(step), storage_writer=writer)
        dist.barrier()
        added.append(data_bytes(store) - before)
    for step, kind in enumerate(reversed(kinds)):
        other = {"model": sharded(kind, wholes(1)), "step": 0}
        dcp.load(other, storage_reader=StoreReader(store, "run", step))
        right &= other["step"] == 7
        for name, tensor in wholes(0).items():
            right &= torch.equal(full(other["model"][name]), tensor)
    writer.close()
    return {"added": added, "right": right}


def failing(rank: int, store: Store) -> dict[str, Any]:
    """One rank cannot save; then the store is full; then all is well."""
    told = []
    with Checkpointer(store, "run", World(rank, RANKS)) as checkpointer:
        checkpointer.save(1, state_of("rows", 0, rank), {})
        bad = state_of("rows", 1, rank)
        if rank == RANKS - 1:
            bad["model"]["x"] = object()
        for step, state in ((2, bad), (3, state_of("rows", 1, rank)), (4, state_of("rows", 1, rank))):
            if step == 3 and rank == 0:
                store.configure({"quota_bytes": data_bytes(store) + 1_000})
            if step == 4 and rank == 0:
                store.configure({"quota_bytes": None})
            dist.barrier()
            try:
                checkpointer.save(step, state, {})
                told.append("saved")
            except LeptonError as error:
                told.append(f"{'full' if isinstance(error, StoreFull) else 'error'}: {error}")
            dist.barrier()
            store.refresh()
            told.append(",".join(ref.branch for ref in list_refs(store, "checkpoint", "run")))
            dist.barrier()
    return {"told": told}


def killed(rank: int, store: Store) -> dict[str, Any]:
    """Saves until rank 1 is killed, at a moment that the environment says."""
    after = float(os.environ["KILL_AFTER_S"])
    if rank == 1:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    saved = []
    checkpointer = Checkpointer(store, "run", World(rank, RANKS), asynchronous=True)
    try:
        for step in range(1_000):
            checkpointer.save(step, state_of("mixed", step, rank), {})
            last = checkpointer.wait()
            assert last is not None
            saved.append(last[0])
    except BaseException as error:
        return {"saved": saved, "error": type(error).__name__}
    return {"saved": saved, "error": ""}


def run(rank: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{ROLE}", rank=rank, world_size=RANKS)
    with Store.open(os.environ.get("STORE_URL", folder / "store"), cache_dir=folder / f"cache-{rank}") as store:
        result = {"shardings": shardings, "dcp": with_dcp, "failing": failing, "killed": killed}[ROLE](rank, store)
    (folder / f"{rank}.json").write_text(json.dumps(result))
    if ROLE == "killed":
        os._exit(0)  # the group cannot be left in peace: a rank of it is gone
    dist.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, RANKS)
