"""TrainStep on one, two and three gloo ranks; what came out goes to FOLDER/<ranks>-<rank>.json. Run by test_step_ranks.py.

python step_run.py FOLDER. All ranks are forks of this process, so that torch is imported once.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from counted_task import TASK, Counted, without_class_0
from ranks import fork_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn import functional

from trainers import parallel, wrap
from trainers.clock import StepClock
from trainers.config import TrainConfig, with_values
from trainers.optimizer import build_optimizer
from trainers.parallel import World
from trainers.recompute import recompute_blocks
from trainers.step import TrainStep

BATCHES = (10, 10, 2, 10)  # rows of the global batches: with three ranks the third leaves one of them empty
BAD = 1  # the step whose loss is not finite, on the last rank alone


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)])
        self.leave = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.enter(images.flatten(1).to(torch.float32) / 255)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.leave(hidden)
        return logits


class Normed(nn.Module):
    """Statistics of its own beside torch's: the mean of no rows is not a number. Over pixels, so that a share of one row is enough."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.leave = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv(images.unsqueeze(1).to(torch.float32) / 255))
        if self.training:
            self.seen.data.lerp_(hidden.detach().mean(), 0.1)
        logits: Tensor = self.leave(hidden.flatten(1))
        return logits


def share(world: World, at: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(at)
    images = torch.randint(0, 256, (BATCHES[at], 4, 4), dtype=torch.uint8, generator=drawn)
    labels = torch.randint(0, 3, (BATCHES[at],), generator=drawn)
    first, stop = (BATCHES[at] * place // world.data_size for place in (world.data_rank, world.data_rank + 1))
    return images[first:stop], labels[first:stop]


def trained(
    world: World, kind: str, counted: bool, bad: bool, network: type[nn.Module] = Network, **values: Any
) -> dict[str, Any]:
    """Weights, losses and votes of four steps of plain SGD of rate 1, whose weights move by exactly the gradient."""
    sgd = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.lr": 1.0}
    config = with_values(TrainConfig(), {**sgd, **values, "on_bad_loss": "skip" if bad else "stop"})
    torch.manual_seed(0)
    model: nn.Module = network()
    if config.recompute:
        recompute_blocks(model)
    module = wrap.wrap(model, world, kind)
    wrap.settle(module, TASK.example, world)
    at = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        total = (
            without_class_0(outputs, targets)
            if counted
            else functional.cross_entropy(outputs, targets, reduction="sum")
        )
        return total * math.inf if bad and at == BAD and world.rank == world.size - 1 else total

    config = with_values(config, {"loss.reference": loss})
    task: Any = Counted() if counted else TASK
    step = TrainStep(module, task, build_optimizer(config.optimizer, model), config, world, StepClock())
    outcomes = []
    for at, rows in enumerate(BATCHES):
        outcome = step(share(world, at), rows, 1.0, stop=lambda: at == 2 and world.rank == world.size - 1)  # noqa: B023 (asked before it moves on)
        outcomes.append(
            [outcome.loss if math.isfinite(outcome.loss) else None, outcome.stop, outcome.taken, outcome.norm]
        )
    wrap.share_buffers(model, world)
    state: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {"weights": {name: value.tolist() for name, value in state.items()}, "outcomes": outcomes}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "clipped": {"clip_norm": 0.05, "accumulate": 2},
    "recomputed": {"recompute": True, "accumulate": 2},
    "counted": {"counted": True, "accumulate": 2},
    "left out": {"bad": True},
}


def rank_of(ranks: int, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    with contextlib.ExitStack() as stack:
        if ranks > 1:
            stack.callback(dist.destroy_process_group)
        world = parallel.start("cpu")
        found = {
            f"{name} {kind}": trained(world, kind, **{"counted": False, "bad": False, **case})
            for name, case in CASES.items()
            for kind in (("ddp", "fsdp2") if ranks > 1 else ("ddp",))
        }
        if ranks > 1:
            found |= {f"normed {kind}": trained(world, kind, False, False, Normed) for kind in ("ddp", "fsdp2")}
        (folder / f"{ranks}-{rank}.json").write_text(json.dumps(found))
        world.barrier()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    codes = [code for ranks in (1, 2, 3) for code in fork_ranks(lambda rank: rank_of(ranks, rank, place), ranks)]  # noqa: B023
    sys.exit(max(map(abs, codes)))
