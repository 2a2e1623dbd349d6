"""Ranks: how the processes of one run find each other and agree. Raw torch.distributed; one process is the same code.

`torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous address; without them there is one rank. What ranks send
each other is tensors and nothing else: torch's object collectives unpickle what they receive, so they are not used.

Why `settle_buckets`: DDP adds up gradients in buckets. It lays the buckets out by parameter order before the first
step, and again by the order in which gradients became ready after it. With more than two ranks another layout is another
order of additions, so a run that resumes at step n (old layout for one step) would differ in its last bits from one
that never stopped. Two discarded passes before the first real one put every run on the final layout.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from leptonstore.errors import BadInput

# device type -> backend of torch.distributed
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
# How long a rank waits for the others before it gives up: above the longest checkpoint or evaluation of one rank.
RANK_TIMEOUT_S = 600
SETTLE_ROWS = 2  # rows of a discarded pass: batch normalisation needs more than one


@dataclass(frozen=True)
class World:
    """This process's place among the ranks. Every method is a collective when size > 1: all ranks must call it."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    owns_group: bool = False

    @property
    def is_main(self) -> bool:
        """Rank 0, the one that writes logs and checkpoints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, values: Tensor) -> Tensor:
        """The sum over ranks, in the dtype of `values` (any shape, equal on all ranks)."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def gather_bytes(self, data: Tensor) -> list[Tensor]:
        """The uint8 vectors [n] of all ranks, by rank, on the CPU; n must be the same on every rank."""
        if self.size == 1:
            return [data]
        mine = data.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(parts, mine)
        return [part.cpu() for part in parts]

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.size > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the process group, if this object joined it."""
        if self.owns_group and distributed.is_initialized():
            gc.collect()  # DDP stands in reference cycles; what is left of it would outlive the group
            distributed.destroy_process_group()


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" -> the device of this rank. Raises BadInput when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device that torch can use; train with --device cpu")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def start(device: str = "auto") -> World:
    """Join the ranks that torchrun started (or a group that exists already); alone, a world of one.

    Raises BadInput for a missing device or an environment that is no torchrun one.
    """
    if distributed.is_initialized():
        here = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        return World(distributed.get_rank(), distributed.get_world_size(), here)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(device=find_device(device))
    here = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if here.type == "cuda":
        torch.cuda.set_device(here)
    try:
        distributed.init_process_group(BACKENDS[here.type], timeout=timedelta(seconds=RANK_TIMEOUT_S))
    except ValueError as error:
        raise BadInput(f"cannot join the ranks: {error}; start with torchrun") from None
    return World(distributed.get_rank(), distributed.get_world_size(), here, owns_group=True)


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """`start` as a context: the group is left on the way out."""
    world = start(device)
    try:
        yield world
    finally:
        world.close()


def wrap(model: nn.Module, world: World) -> nn.Module:
    """DDP when there are several ranks (weights and buffers of rank 0 reach all), else the model itself."""
    if world.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)


def settle_buckets(wrapped: nn.Module, example: Callable[[int, torch.device], Tensor], world: World) -> None:
    """Two discarded forward and backward passes (see above); weights, buffers, gradients and RNG end as they were.

    example: inputs of made-up data by number of rows (`trainers.tasks.Task.example`).
    """
    if world.size == 1:
        return
    buffers = [buffer.detach().clone() for buffer in wrapped.buffers()]
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for _ in range(2):
            wrapped(example(SETTLE_ROWS, world.device)).sum().backward()
    wrapped.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, saved in zip(wrapped.buffers(), buffers, strict=True):
            buffer.copy_(saved)
