"""Three gloo ranks merge their receipts, each written as JSON: FOLDER/<rank>.json. Run by test_receipt_ranks.py.

python receipt_run.py FOLDER, which has the store. The ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import start_ranks

from leptonstore.dataset import Dataset
from loaders import DataLoader
from loaders.receipt_ranks import merged_receipt
from loaders.source import BadInput

RANKS = 3


def run(rank: int, folder: Path) -> None:
    """One rank: it meets a damaged sample in each of its batches; at last it is a step ahead of rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    ds = Dataset.open(folder / "store", "samples")
    loader = DataLoader(ds, 10, shuffle=True, columns=["id"])
    batches = iter(loader)
    for step in range(4):
        batches.entries.note(step * 30 + rank * 10, 100 + rank, "id", "skip", f"rank {rank}")
        next(batches)
    result = {"own": loader.receipt().to_dict(), "merged": merged_receipt(loader.receipt()).to_dict()}
    list(islice(batches, int(rank > 0)))
    try:
        merged_receipt(loader.receipt())
    except BadInput as error:
        result["refused"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, RANKS)
