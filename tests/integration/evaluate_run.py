"""Evaluations by gloo ranks, each rank's metrics as JSON: FOLDER/<rank>.json; the folder's name is the number of ranks.

python evaluate_run.py FOLDER, beside which the store is. Run by test_tasks.py. The ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import start_ranks
from task_data import image_data, text_data
from torch.distributed.device_mesh import init_device_mesh

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from trainers.config import ModelConfig
from trainers.evaluate import evaluate
from trainers.parallel import World
from trainers.tasks import blocks, task_of
from trainers.wrap import wrap

RANKS = int(Path(sys.argv[1]).name)


def run(rank: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    blocks.BLOCK_ROWS_MAX = 17  # several blocks of little data, not equally many for each rank
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    found = {}
    with Store.open(folder.parent / "store", cache_dir=folder / f"cache-{rank}") as store:
        for name, data, model in (
            ("jpegs", image_data(), ModelConfig("trainers.models:resnet", {"width": 8})),
            ("texts", text_data(), ModelConfig("trainers.models:transformer", {"layers": 1, "width": 16, "heads": 2})),
        ):
            ds = Dataset.open(store, name)
            task = task_of(ds, data)
            world = World(rank, RANKS)
            found[name] = evaluate(task.build(model, seed=1), ds, data, world, task=task).to_dict()
            # Weights of which each rank has a part: forward passes are collectives, also of a rank with a block less.
            sharded = task.build(model, seed=1)
            wrap(sharded, world, "fsdp2")
            found[f"{name}, sharded"] = evaluate(sharded, ds, data, world, task=task).to_dict()
            if name == "texts" and RANKS == 2:
                mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
                tensor = World(rank, RANKS, mesh=mesh)
                parted = wrap(task.build(model, seed=1), tensor, "fsdp2")
                found["tensor ranks"] = evaluate(parted, ds, data, tensor, task=task).to_dict()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, RANKS)
