"""One training by two, three and one ranks, one after the other, and the same by one rank alone. Run by test_resize.py.

python resize_run.py FOLDER: in FOLDER/alone and FOLDER/resized/<number> of it. All ranks are forks of this process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  (once here, not in every fork)
import torch
import torch._dynamo
from ranks import fork_ranks
from torch import Tensor, distributed, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from training_data import quick_config, write_patterns

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import parallel
from trainers.evaluate import evaluate
from trainers.loop import Trainer

TRAIN_ROWS, TEST_ROWS, EPOCHS = 52, 23, 3  # 18 steps: five of ten rows an epoch, and one of two
RUN = "run"
# name: (kind, mesh, ranks, until which step) of one run
PARTS: dict[str, list[tuple[str, dict[str, int], int, int | None]]] = {
    "alone": [("auto", {}, 1, None)],
    "ddp": [("ddp", {}, 2, 5), ("ddp", {}, 3, 11), ("auto", {}, 1, None)],
    "fsdp2": [("fsdp2", {}, 2, 5), ("fsdp2", {}, 3, 11), ("auto", {}, 1, None)],
    "mixed": [("ddp", {}, 3, 4), ("fsdp2", {}, 2, 9), ("ddp", {}, 2, 13), ("auto", {}, 1, None)],
    "bf16": [("fsdp2", {}, 2, None)],
    "mesh": [("auto", {"data": 2, "tensor": 2}, 4, 7), ("fsdp2", {}, 3, 12), ("auto", {}, 1, None)],
}
seen: list[list[str]] = []  # by this rank: of each training pass, what its rows are known by


def names_of(rows: Tensor) -> list[str]:
    """What uint8 images are known by."""
    return [digest_of(row.contiguous().numpy().tobytes()).hex()[:16] for row in rows.flatten(1)]


class Recording(nn.Module):
    """A small network that writes down which rows it is trained on. Its layers can be shared out among tensor ranks."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(36, 10), nn.Linear(10, 7)])
        self.out = nn.Linear(7, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        if self.training:
            seen.append(names_of((x.detach() * 255).round().to(torch.uint8)))
        for layer in self.layers:
            x = torch.relu(layer(x))
        logits: Tensor = self.out(x)
        return logits

    def tensor_plan(self) -> dict[str, Any]:
        """The first layer by columns, the second by rows."""
        return {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}


def network(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Recording(classes)


def train(place: Path, number: int, part: tuple[str, dict[str, int], int, int | None], rank: int) -> None:
    kind, mesh, ranks, until = part
    torch.set_num_threads(1)
    if ranks > 1:
        rendezvous = f"file://{place}/rendezvous-{number}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    config = quick_config(
        epochs=EPOCHS,
        clip_norm=0.05,
        precision="bf16" if place.name == "bf16" else "float32",
        parallel__kind=kind,
        parallel__mesh=mesh,
        optimizer__name="sgd",
        optimizer__lr=0.1,
        model__reference="resize_run:network",
        model__params={},
    )
    with Store.open(place / "store", place / "cache") as store:
        world = parallel.start("cpu", mesh)
        ds = Dataset.open(store, "patterns")
        trainer = Trainer(config, store, ds, run=RUN, metrics=place / "log.jsonl", world=world)
        result = trainer.fit(resume=number > 0, max_steps=until)
        recorded = importlib.import_module(
            "resize_run"
        ).seen  # not of this script, but of the module that the reference names
        made_up = set(names_of(trainer.task.example(2, world.device)))  # the passes that settle buckets
        recorded = [rows for rows in recorded if not made_up.intersection(rows)]
        told = {"data_rank": world.data_rank, "counts": world.counts, "seen": recorded, "history": result.history}
        (place / f"{number}-{rank}.json").write_text(json.dumps(told))
    if ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # several groups of ranks, one after another: nothing of one may end late in another


def judge(place: Path, rank: int, ranks: int, told: Path) -> None:
    """Evaluate the final weights of `place` by so many ranks."""
    torch.set_num_threads(1)
    if ranks > 1:
        rendezvous = f"file://{told}/evaluate-{ranks}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    with Store.open(place / "store", place / "cache") as store:
        saved = checkpoints.load(store, RUN)
        model = checkpoints.build_stored_model(saved, "resize_run:network")
        found = evaluate(model, Dataset.open(store, "patterns"), world=parallel.start("cpu"))
        (told / f"evaluate-{ranks}-{rank}.json").write_text(json.dumps(found.to_dict()))
        if ranks == 1:
            (place / "manifest.json").write_text(json.dumps(saved.manifest))
            weights = {path: saved.tensor(path).tolist() for path in saved.paths if path.startswith("model/")}
            (place / "weights.json").write_text(json.dumps(weights))
    os._exit(0)


def prepare(place: Path) -> None:
    place.mkdir()
    with Store.create(place / "store", cache_dir=place / "cache") as store:
        write_patterns(store, train=TRAIN_ROWS, test=TEST_ROWS)
    os._exit(0)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    codes: list[int] = []
    for name, parts in PARTS.items():
        place = folder / name
        codes += fork_ranks(lambda rank: prepare(place), 1)  # noqa: B023
        for number, part in enumerate(parts):
            codes += fork_ranks(lambda rank: train(place, number, part, rank), part[2])  # noqa: B023
        for ranks in (1, 2, 3) if name == "alone" else (1,):
            codes += fork_ranks(lambda rank: judge(place, rank, ranks, place), ranks)  # noqa: B023
    sys.exit(max(map(abs, codes)))
