"""Two gloo ranks under DDP, of which the second is slow: what each says it waited. Run by test_accounting.py."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ranks import start_ranks
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.clock import StepClock
from trainers.exposed_sync import exposed_s, watch

STEPS = 14  # DDP takes times at its first ten by itself
SLOW_S = 0.05


class Slow(torch.autograd.Function):
    """Takes SLOW_S to find a gradient, when asked to."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, slow: bool) -> torch.Tensor:
        context.slow = slow
        return values.clone()

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        until = time.perf_counter() + (SLOW_S if context.slow else 0.0)
        while time.perf_counter() < until:
            pass
        return gradients[0], None


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    wrapped = DistributedDataParallel(nn.Linear(20, 5))
    watch(wrapped)
    clock, steps = StepClock(), []
    for step in range(STEPS):
        outputs = Slow.apply(wrapped(torch.ones(3, 20)), rank == 1 and step % 2 == 1)
        outputs.sum().backward()
        clock.lap("compute")
        clock.move("compute", "sync", exposed_s(wrapped))
        distributed.barrier()
        clock.lap("other")
        steps.append(asdict(clock.step()))
    with wrapped.no_sync():
        wrapped(torch.ones(3, 20)).sum().backward()
        alone = exposed_s(wrapped)
    (folder / f"{rank}.json").write_text(
        json.dumps({"steps": steps, "alone": alone, "plain": exposed_s(nn.Linear(1, 1))})
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    start_ranks(run, 2)
