"""What four gloo ranks see on device meshes, each written as JSON: FOLDER/<rank>.json. Run by test_dataloader_mesh.py.

python mesh_run.py FOLDER, which has the store. The ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import start_ranks
from torch.distributed.device_mesh import init_device_mesh

from leptonstore.dataset import Dataset
from loaders import DataLoader


def seen(loader: Any) -> list[dict[str, Any]]:
    """The batches as lists."""
    return [{name: values.tolist() for name, values in batch.items()} for batch in loader]


RANKS = 4


def run(rank: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    ds = Dataset.open(folder / "store", "sequences")
    common: dict[str, Any] = {"shuffle": True, "seed": 3, "columns": ["id"]}
    two_by_two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    hybrid = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("dp_replicate", "pp", "dp_shard"))
    context = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "cp"))
    result: dict[str, Any] = {}
    result["dp x tp"] = seen(DataLoader(ds, 10, mesh=two_by_two, **common))
    result["hybrid"] = seen(DataLoader(ds, global_batch_size=30, mesh=hybrid, **common))
    result["padded"] = seen(DataLoader(ds, global_batch_size=30, mesh=hybrid, pad=True, **common))
    sliced = {**common, "columns": ["id", "tokens"], "context_dim": "cp", "sequence_columns": {"tokens": 1}}
    result["context"] = seen(DataLoader(ds, 7, mesh=context, **sliced))
    result["whole"] = seen(DataLoader(ds, 10, mesh=two_by_two, data_dims=(), **common))
    result["sub"] = seen(DataLoader(ds, 10, mesh=two_by_two["dp"], **common))
    loader = DataLoader(ds, 10, mesh=two_by_two, **common)
    for _ in zip(range(3), loader, strict=False):
        pass
    result["state"] = loader.state_dict()
    try:
        next(iter(DataLoader(ds, 4, mesh=context, **{**sliced, "columns": ["odd"], "sequence_columns": {"odd": 1}})))
    except ValueError as error:
        result["refused"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, RANKS)
