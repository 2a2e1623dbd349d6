"""How a model is trained by several ranks: itself, DDP, FSDP2, and tensor parallelism below them.

    kind      weights of a rank     gradients            needs
    single    all                   -                    one rank
    ddp       all                   all-reduced          data ranks only
    fsdp2     a share of each       reduce-scattered     -
    auto      ddp; fsdp2 where the mesh has a tensor dimension

What a model may say about itself, at any depth (a module that says nothing is taken as a whole):

    tensor_plan() -> {name of a submodule: torch's ParallelStyle}     how tensor ranks share its layers out
    shard_blocks() -> iterable of modules                             what FSDP2 gathers at a time; else the elements of ModuleLists

What makes resuming exact to the last bit at equal world size, and why:

DDP adds gradients up in buckets. It lays them out by parameter order before the first step, and again by the order in
which gradients became ready after the first backward pass that synchronises. With more than two ranks another layout is
another order of additions, so a run that resumes at step n (old layout for one step) would differ in its last bits from
one that never stopped. `settle` makes two discarded passes before the first real one, which puts every run on the final
layout; DDP lays buckets out again once at most, so no_sync passes do not move them.

FSDP2 needs none of it: the weights of one gathered block are reduce-scattered together, in an order that is fixed when
the block is wrapped. Its passes are the same from the first one on.

Buffers (running statistics) belong to rank 0: DDP hands them to all before each forward pass, FSDP2 leaves them alone, so
`wrap` adds that. Before weights are evaluated or saved, `share_buffers` does it once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from leptonstore.errors import BadInput, listed
from loaders.mesh import data_names
from trainers.devices import CPU
from trainers.parallel import World

KINDS = ("auto", "ddp", "fsdp2")
SETTLE_ROWS = 2  # rows of a discarded pass: batch normalisation needs more than one


def wrap(model: nn.Module, world: World, kind: str = "auto", precision: str = "float32") -> nn.Module:
    """The module to call in training. `model` is on the device of this rank, with equal weights on every rank.

    FSDP2 and tensor parallelism change the model in place (its weights become DTensors), so the optimizer is built
    afterwards. precision: "bf16" makes FSDP2 gather weights in 16 bits; they are kept, and gradients added up, in float32.
    Raises BadInput when the kind and the mesh do not go together, or the model does not say how tensor ranks share it.
    """
    if kind not in KINDS:
        raise BadInput(f"parallel.kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if world.size == 1:
        return model
    tensor = _tensor_name(world)
    if tensor is not None:
        if kind == "ddp":
            raise BadInput("parallel.kind is ddp, which cannot hold what tensor ranks share out: set it to fsdp2")
        assert world.mesh is not None
        _split_layers(model, world.mesh[tensor])
        if world.data_size == 1:
            return model
    if tensor is None and kind != "fsdp2":
        return DistributedDataParallel(model, device_ids=None if world.device.type == CPU else [world.device.index])
    _shard(model, world, precision)
    model.register_forward_pre_hook(_SharesBuffers(world))
    return model


def settle(module: nn.Module, example: Callable[[int, torch.device], Tensor], world: World) -> None:
    """Two discarded forward and backward passes of DDP (see above); weights, buffers, gradients and RNG end as they were.

    example: inputs of made-up data by number of rows (`trainers.tasks.Task.example`).
    Raises BadInput, naming them, when weights take no part in what the model computes: ranks could not add up their gradients.
    """
    if not isinstance(module, DistributedDataParallel):
        return
    buffers = [buffer.detach().clone() for buffer in module.buffers()]
    with torch.random.fork_rng(
        devices=[] if world.device.type == CPU else [world.device], device_type=_forked(world.device)
    ):
        for _ in range(2):
            module(example(SETTLE_ROWS, world.device)).sum().backward()
            idle = [
                name
                for name, weight in module.module.named_parameters()
                if weight.requires_grad and weight.grad is None
            ]
            if idle:
                raise BadInput(
                    f"weights that take no part in the model's outputs: {listed(idle)}; freeze or remove them"
                )
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, saved in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(saved)


@contextlib.contextmanager
def accumulating(module: nn.Module) -> Iterator[None]:
    """Backward passes inside keep their gradients to this rank: for all micro-batches of a step but the last."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    else:
        yield


def forwards_together(module: nn.Module) -> bool:
    """Whether a forward pass is a collective, also without gradients: then ranks must make equally many of them."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def in_gathered_precision(model: nn.Module, world: World, precision: str) -> contextlib.AbstractContextManager[Any]:
    """For forward passes outside of a step: weights that FSDP2 gathers in 16 bits need torch.autocast there, too. Else nothing."""
    if precision != "bf16" or not any(isinstance(module, FSDPModule) for module in model.modules()):
        return contextlib.nullcontext()
    return torch.autocast(world.device.type, torch.bfloat16)


def reshard(model: nn.Module) -> None:
    """Let go of weights that FSDP2 still has whole after a forward pass without a backward one: until then the module's weights are
    not those that the optimizer has. For after an evaluation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def share_buffers(model: nn.Module, world: World) -> None:
    """Every rank's buffers become those of rank 0. Collective. For before they are evaluated or saved."""
    if world.size == 1:
        return
    with torch.no_grad():
        local = [buffer.to_local() if isinstance(buffer, DTensor) else buffer for buffer in model.buffers()]
        for dtype in sorted(
            {buffer.dtype for buffer in local}, key=str
        ):  # one message for each, however many layers there are
            some = [buffer for buffer in local if buffer.dtype == dtype]
            together = torch.cat([buffer.reshape(-1) for buffer in some])
            distributed.broadcast(together, 0)
            for buffer, shared in zip(some, together.split([buffer.numel() for buffer in some]), strict=True):
                buffer.copy_(shared.view_as(buffer))


class _SharesBuffers:
    """A forward hook: in training mode, `share_buffers` first."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if module.training and torch.is_grad_enabled():
            share_buffers(module, self._world)


def _tensor_name(world: World) -> str | None:
    """The mesh's dimension that is not a data one, if it has more than one rank."""
    if world.mesh is None:
        return None
    names = world.mesh.mesh_dim_names or ()
    data = data_names(names, None)
    return next((name for name in names if name not in data and world.mesh[name].size() > 1), None)


def _split_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    planned = [module for module in model.modules() if hasattr(module, "tensor_plan")]
    if not planned:
        raise BadInput(
            f"parallel.mesh has {mesh.size()} tensor ranks, and no module of the model has tensor_plan() to say how they share "
            "its layers out: add it, or use data dimensions only"
        )
    for module in planned:
        parallelize_module(module, mesh, module.tensor_plan())  # type: ignore[operator]  # as `planned` says


def _shard(model: nn.Module, world: World, precision: str) -> None:
    """`fully_shard` for each block, then for what is left at the root."""
    if world.mesh is None:
        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("data",))
    else:  # two data dimensions: weights are sharded over the second, and equal along the first
        names = data_names(world.mesh.mesh_dim_names or (), None)
        mesh = world.mesh[names] if len(names) > 1 else world.mesh[names[0]]
    for (
        weight
    ) in model.parameters():  # FSDP2 takes no other layout; convolutions of image models have channels_last ones
        weight.data = weight.data.contiguous()
    policy = root = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        root = dataclasses.replace(policy, output_dtype=torch.float32)
        for module in list(model.modules()):  # running statistics are float32, and so must be what meets them
            if isinstance(module, _BatchNorm):
                fully_shard(module, mesh=mesh)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=root)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts that are gathered (FSDP2) or computed again (gradient checkpointing) one at a time; see the module's docstring."""
    if hasattr(model, "shard_blocks"):
        return list(_modules(model.shard_blocks()))  # type: ignore[operator]  # a method, by the docstring above
    if isinstance(model, nn.ModuleList):
        return [block for block in model if next(block.parameters(), None) is not None]
    return list(itertools.chain.from_iterable(blocks_of(child) for child in model.children()))


def _modules(found: Iterable[Any]) -> Iterator[nn.Module]:
    for module in found:
        if not isinstance(module, nn.Module):
            raise BadInput(f"shard_blocks() of the model gave {type(module).__name__}, not a torch.nn.Module")
        yield module


def _forked(device: torch.device) -> str:
    return "cuda" if device.type == CPU else device.type  # of fork_rng, which has no word for the CPU alone
