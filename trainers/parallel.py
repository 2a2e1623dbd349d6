"""Ranks: how the processes of one run find each other and agree. Raw torch.distributed; one process is the same code.

`torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous address; without them there is one rank. What ranks send
each other is tensors and nothing else: torch's object collectives unpickle what they receive, so they are not used.

    dimension of the mesh     its ranks                                   names
    data (one or two)         share out each global batch                 those of loaders.mesh: "data", "dp", "replicate", "shard", …
    tensor (at most one)      see equal batches, and share out layers     "tensor", "tp"

Without a mesh all ranks are data ranks. How a model is trained on them: trainers.wrap. Where they compute: trainers.devices.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from leptonstore.errors import BadInput, RankLost
from loaders.mesh import data_names, place_on
from trainers import devices, rendezvous

# How long a rank waits for the others before it gives up: above the longest checkpoint or evaluation of one rank.
RANK_TIMEOUT_S = 600
TENSOR_NAMES = ("tensor", "tp")
# What gloo and the rendezvous say, as plain RuntimeErrors, when the other end of a connection is gone or silent.
LOST_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout",
    "Socket closed",
)


@dataclass(frozen=True)
class World:
    """This process's place among the ranks. Every method is a collective when size > 1: all ranks must call it.

    mesh: None when all ranks are data ranks. A sum counts each share of the data once, whatever the mesh.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    owns_group: bool = False
    mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Rank 0, the one that writes logs and checkpoints."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The share of each global batch that this rank takes, of `data_size`."""
        return self._place[0]

    @property
    def data_size(self) -> int:
        """How many shares a global batch has."""
        return self._place[1]

    @cached_property
    def _place(self) -> tuple[int, int]:
        return (self.rank, self.size) if self.mesh is None else place_on(self.mesh)[:2]

    @cached_property
    def counts(self) -> bool:
        """Whether this rank speaks for its share: one of the ranks that see the same batches does."""
        if self.mesh is None:
            return True
        names = self.mesh.mesh_dim_names or ()
        data, coordinate = data_names(names, None), self.mesh.get_coordinate()
        assert coordinate is not None  # init_device_mesh takes in every rank
        return all(at == 0 for name, at in zip(names, coordinate, strict=True) if name not in data)

    def sum(self, values: Sequence[float], votes: Sequence[float] = ()) -> list[float]:
        """Element-wise sums over the shares of the data, in float64; then those of `votes`, over all ranks. Equal on every rank."""
        return self.begin_sum(values, votes)()

    def begin_sum(self, values: Sequence[float], votes: Sequence[float] = ()) -> Callable[[], list[float]]:
        """`sum`, under way: what is returned waits for it. Meanwhile this rank may compute, and begin other collectives."""
        if self.size == 1:
            return lambda: [*values, *votes]
        mine = values if self.counts else [0.0] * len(values)
        total = torch.tensor([*mine, *votes], dtype=torch.float64, device=self.device)
        work = distributed.all_reduce(total, async_op=True)

        def added() -> list[float]:
            if work is not None:
                work.wait()
            return cast(list[float], total.tolist())

        return added

    def agreed(self, value: int) -> int:
        """That of rank 0, on every rank."""
        return int(self.sum([], votes=[value if self.is_main else 0])[0])

    def sum_tensor(self, values: Tensor) -> Tensor:
        """The sum over the shares of the data, in the dtype of `values` (any shape, equal on all ranks)."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True) if self.counts else torch.zeros_like(values, device=self.device)
        distributed.all_reduce(total)
        return total.to(values.device)

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.size > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the process group, if this object joined it."""
        if self.owns_group and distributed.is_initialized():
            gc.collect()  # DDP stands in reference cycles; what is left of it would outlive the group
            distributed.destroy_process_group()


def start(device: str = "auto", mesh: Mapping[str, int] | None = None, timeout_s: float = RANK_TIMEOUT_S) -> World:
    """Join the ranks that torchrun started (or a group that exists already); alone, a world of one.

    mesh: sizes by name, in order: {"data": 2, "tensor": 2}.
    Raises BadInput for a missing device, a mesh that does not fit, or an environment that is no torchrun one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    here = devices.find_device(device, local_rank)
    owns_group = False
    if not distributed.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            _fitting(mesh, 1)
            return World(device=here)
        devices.use(here)
        try:
            _join(devices.backend_of(here), timeout_s)
        except ValueError as error:
            raise BadInput(f"cannot join the ranks: {error}; start with torchrun") from None
        owns_group = True
    rank, size = distributed.get_rank(), distributed.get_world_size()
    try:
        return World(rank, size, here, owns_group, _mesh_of(mesh, size, here))
    except BaseException:
        if owns_group:
            distributed.destroy_process_group()
        raise


@contextlib.contextmanager
def joined(
    device: str = "auto", mesh: Mapping[str, int] | None = None, timeout_s: float = RANK_TIMEOUT_S
) -> Iterator[World]:
    """`start` as a context: the group is left on the way out. Raises RankLost when another rank has ended or is silent."""
    with naming_lost_ranks():
        world = start(device, mesh, timeout_s)
        try:
            yield world
        finally:
            world.close()


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turns what torch raises when another rank has ended or does not answer into RankLost: one line, and the fix."""
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if not isinstance(error, distributed.DistError) and not any(word in told for word in LOST_WORDS):
            raise
        reason = told.splitlines()[0].rpartition("pair.cc:")[2].partition("] ")[2] or told.splitlines()[0]
        rank = f"rank {os.environ['RANK']}" if "RANK" in os.environ else "this rank"
        raise RankLost(
            f"{rank} ends, because another rank has ended or does not answer ({reason.split('. ')[0]:.200}): see what that one "
            "said, start all ranks again and go on from the last checkpoint with --resume (torchrun --max-restarts does both)"
        ) from error


def _join(backend: str, timeout_s: float) -> None:
    timeout, store = timedelta(seconds=timeout_s), rendezvous.agents_store(timeout_s)
    if store is None:
        distributed.init_process_group(backend, timeout=timeout)
    else:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _mesh_of(sizes: Mapping[str, int] | None, ranks: int, device: torch.device) -> DeviceMesh | None:
    shape = _fitting(sizes, ranks)
    return init_device_mesh(device.type, tuple(shape.values()), mesh_dim_names=tuple(shape)) if shape else None


def _fitting(sizes: Mapping[str, int] | None, ranks: int) -> dict[str, int]:
    """The sizes, or none. Raises BadInput when dimensions are unknown, or not of so many ranks."""
    if not sizes:
        return {}
    told = "parallel.mesh is " + "{" + ", ".join(f"{name!r}: {size}" for name, size in sizes.items()) + "}"
    others = [name for name in sizes if name not in TENSOR_NAMES]
    try:
        data = data_names(others, None)
    except ValueError as error:
        raise BadInput(f"{told}: {error}") from None
    if len(data) != len(others) or not 1 <= len(data) <= 2 or len(sizes) - len(others) > 1:
        raise BadInput(f"{told}: it takes one or two data dimensions, and at most one of {', '.join(TENSOR_NAMES)}")
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != ranks:
        raise BadInput(
            f"{told}, which does not make {ranks} ranks: start as many as it has (torchrun --nproc-per-node)"
        )
    return dict(sizes)
