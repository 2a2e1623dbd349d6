"""What three gloo ranks read of a dataset that grows meanwhile, each written as JSON: FOLDER/<rank>.json. Run by test_follow_ranks.py.

python follow_run.py FOLDER, which has the store. The ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from ranks import start_ranks

from leptonstore.dataset import Dataset
from leptonstore.store import RefUpdate
from loaders import DataLoader, Mixture

RANKS = 3


def rows(batches: Any) -> list[list[int]]:
    """Of each batch."""
    return [batch["id"].tolist() for batch in batches]


def append(ds: Dataset, count: int) -> None:
    """Rank 0 does; the others wait, and do not look."""
    if dist.get_rank() == 0:
        head = Dataset.open(ds.store, "samples")
        head.append(pa.table({"id": np.arange(len(head), len(head) + count)}))
    dist.barrier()


def run(rank: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    ds = Dataset.open(folder / "store", "samples")
    first = ds.commit
    dist.barrier()
    append(ds, 10)  # ranks open what they find; only rank 0 has met this one
    loader = DataLoader(Dataset.open(ds.store, "samples"), 10, shuffle=True, follow=True)
    result: dict[str, Any] = {"opened": str(loader.dataset.commit), "epochs": [rows(loader)]}
    append(ds, 50)
    batches = iter(loader)
    result["epochs"].append(rows([next(batches)]))
    state = loader.state_dict()
    append(ds, 7)
    result["epochs"][1] += rows(batches)
    restored = DataLoader(ds, 10, shuffle=True, follow=True)
    restored.load_state_dict(state)
    result["restored"] = [rows(restored), rows(restored)]
    mixed = DataLoader(Mixture({"one": (ds, 1), "two": (ds.select(np.arange(20)), 1)}), 10, columns=["id"])
    batches = iter(mixed)
    result["mixed"] = rows([next(batches) for _ in range(2)])
    mixed.set_weights({"one": 0, "two": 1})
    result["mixed"] += rows(batches)
    dist.barrier()
    if rank == 0:
        head = ds.store.state.refs["dataset/samples/main"].commit
        ds.store.publish("reset", lambda state: (RefUpdate("dataset/samples/main", head, first),))
    try:
        iter(restored)
    except Exception as error:
        result["refused"] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, RANKS)
