"""Models on one to four gloo ranks, each result written as JSON: FOLDER/<ranks>-<rank>.json. Run by test_wrap.py.

python wrap_run.py FOLDER. All ranks are forks of this process, so that torch is imported once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import fork_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn import functional
from waiting import wait_until

from leptonstore.errors import BadInput, RankLost
from trainers import parallel, wrap
from trainers.parallel import World

WORDS, WIDTH, LENGTH = 17, 10, 5  # none of them divides by the ranks
IGNORED = -100
STEPS = 9
BATCHES = (10, 10, 2)  # rows of the global batches: with three ranks the last leaves one of them empty


class Block(nn.Module):
    """The two layers that tensor ranks share out."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.down(functional.gelu(self.up(x)))
        return added

    def tensor_plan(self) -> dict[str, Any]:
        """Column-wise, then row-wise: one all-reduce for both."""
        return {"up": ColwiseParallel(), "down": RowwiseParallel()}


class Words(nn.Module):
    """A small language model: int64 [b, t] -> logits [b, t, WORDS]."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for layer in self.layers:
            x = self.dropout(layer(x))
        logits: Tensor = self.out(self.norm(x))
        return logits


class Pictures(nn.Module):
    """Convolutions with running statistics: float32 [b, 3, 6, 6] -> [b, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.layers(pictures)
        return logits


def example(rows: int, device: torch.device) -> Tensor:
    return torch.zeros((rows, LENGTH), dtype=torch.int64, device=device)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """A global batch: tokens and targets, of which a part is to be ignored, more of it in some rows than in others."""
    draw = torch.Generator().manual_seed(step)
    shape = (BATCHES[step % len(BATCHES)], LENGTH)
    tokens = torch.randint(0, WORDS, shape, generator=draw)
    targets = torch.randint(0, WORDS, shape, generator=draw)
    ignored = torch.arange(LENGTH) >= torch.randint(1, LENGTH + 1, (shape[0], 1), generator=draw)
    return tokens, targets.masked_fill(ignored, IGNORED)


def share(world: World, *tensors: Tensor) -> tuple[Tensor, ...]:
    rows, rank, size = len(tensors[0]), world.data_rank, world.data_size
    return tuple(tensor[rank * rows // size : (rank + 1) * rows // size] for tensor in tensors)


def backward(module: nn.Module, world: World, step: int, accumulate: int) -> float:
    """Gradients of the mean over the tokens of the global batch, in micro-batches; returns that mean."""
    tokens, targets = share(world, *batch(step))
    (count,) = world.sum([float((targets != IGNORED).sum())])
    total = 0.0
    parts = list(zip(tokens.tensor_split(accumulate), targets.tensor_split(accumulate), strict=True))
    for at, (inputs, wanted) in enumerate(parts):
        with wrap.accumulating(module) if at < len(parts) - 1 else contextlib.nullcontext():
            logits = module(inputs)
            loss = functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=IGNORED
            )
            (loss * (world.data_size / count)).backward()
        total += float(loss.detach())
    return world.sum([total])[0] / count


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(world: World, kind: str, accumulate: int) -> dict[str, Any]:
    """Of two global batches, as lists by name."""
    torch.manual_seed(0)
    model = Words(0.0)
    module = wrap.wrap(model, world, kind)
    wrap.settle(module, example, world)
    found = {}
    for step in (0, 2):
        loss = backward(module, world, step, accumulate)
        grads = {
            name: whole(weight.grad).tolist() for name, weight in model.named_parameters() if weight.grad is not None
        }
        found[str(step)] = {"loss": loss, "grads": grads}
        module.zero_grad(set_to_none=True)
    return found


def train(
    world: World, kind: str, stop_at: int | None, settle: bool = True, accumulate: int = 1, precision: str = "float32"
) -> list[Any]:
    """Losses and weights of STEPS steps. With `stop_at`, everything is built anew there and only the state goes on."""

    def fresh() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Words(0.2)
        module = wrap.wrap(model, world, kind, precision)
        if settle:
            wrap.settle(module, example, world)
        torch.manual_seed(world.data_rank)
        return model, module, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)

    model, module, optimizer = fresh()
    losses = []
    for step in range(STEPS):
        if step == stop_at:
            options = StateDictOptions(full_state_dict=False, cpu_offload=True)
            state, moments = (
                get_model_state_dict(model, options=options),
                get_optimizer_state_dict(model, optimizer, options=options),
            )
            state = {name: value.clone() for name, value in state.items()}
            generator = torch.get_rng_state()
            del module
            model, module, optimizer = fresh()
            set_model_state_dict(model, state)
            set_optimizer_state_dict(model, optimizer, moments)
            torch.set_rng_state(generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses.append(backward(module, world, step, accumulate))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    weights = {name: whole(value).tolist() for name, value in get_model_state_dict(model).items()}
    return [losses, weights]


def statistics(world: World, kind: str) -> dict[str, Any]:
    """Running statistics after steps with uneven shares, and what is made of them in evaluation."""
    torch.manual_seed(0)
    model = Pictures()
    module = wrap.wrap(model, world, kind)
    for step in range(4):
        (pictures,) = share(world, torch.randn((5, 3, 6, 6), generator=torch.Generator().manual_seed(step)))
        module(pictures).sum().backward()
        module.zero_grad()
    before = [buffer.tolist() for buffer in model.buffers()]
    wrap.share_buffers(model, world)
    if world.size > 1 and kind == "fsdp2":  # in 16 bits, the statistics stay in 32
        low = Pictures()
        module = wrap.wrap(low, world, kind, "bf16")
        with torch.autocast("cpu", torch.bfloat16):
            module(pictures).sum().backward()
        assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in low.parameters())
        assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in low.buffers())
    return {"own": before, "shared": [buffer.tolist() for buffer in model.buffers()]}


def refused(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except BadInput as error:
        return str(error)
    return ""


class Idle(nn.Module):
    """One of its weights takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(LENGTH, 2), nn.Linear(2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.used(tokens.to(torch.float32))  # type: ignore[no-any-return]


def on_data_ranks(world: World) -> Iterator[tuple[str, Any]]:
    kinds = ("ddp", "fsdp2")
    for kind in kinds:
        for accumulate in (1, 2):
            yield f"gradients {kind} {accumulate}", gradients(world, kind, accumulate)
        yield f"statistics {kind}", statistics(world, kind)
    if world.size == 1:
        return
    for kind in kinds:
        for accumulate in (1, 2):
            straight = train(world, kind, None, accumulate=accumulate)
            for at in (1, 4):
                yield f"resumed {kind} {accumulate} {at}", train(world, kind, at, accumulate=accumulate) == straight
        again = train(world, kind, 4, settle=False)
        yield f"unsettled {kind}", again == train(world, kind, None, settle=False)
    yield "bf16", train(world, "fsdp2", 4, precision="bf16") == train(world, "fsdp2", None, precision="bf16")
    idle = wrap.wrap(Idle(), world)
    yield "idle", refused(wrap.settle, idle, example, world)


def on_a_mesh(world: World) -> Iterator[tuple[str, Any]]:
    yield "place", [world.data_rank, world.data_size, world.counts]
    yield "sum", world.sum([1.0], votes=[1.0]) + world.sum_tensor(torch.tensor([1])).tolist()
    yield "batch", share(world, *batch(0))[0].tolist()
    yield "gradients", gradients(world, "auto", 1)
    straight = train(world, "auto", None)
    yield "resumed", train(world, "auto", 4) == straight
    yield "losses", straight[0]
    yield "ddp", refused(wrap.wrap, Words(0.0), world, "ddp")
    yield "no plan", refused(wrap.wrap, Pictures(), world)


def rank_of(ranks: int, rank: int, folder: Path, mesh: dict[str, int] | None = None) -> None:
    torch.set_num_threads(1)
    name = f"{ranks}-" + "x".join(mesh or [])
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=ranks)
    world = parallel.start("cpu", mesh)
    found = dict(on_a_mesh(world) if mesh and "tensor" in mesh else on_data_ranks(world))
    if ranks > 1:
        found["mesh"] = refused(parallel.start, "cpu", {"data": ranks + 1})
    (folder / f"{name}{rank}.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def ended(rank: int, folder: Path) -> None:
    """Rank 1 of three ends; the others say so. A file of each tells how.

    It ends when all have met: gloo connects the ranks in pairs, and who is still about it fails there when one goes.
    """
    dist.init_process_group("gloo", init_method=f"file://{folder}/ended", rank=rank, world_size=3)
    (folder / f"met{rank}").touch()
    if rank == 1:
        wait_until(lambda: all((folder / f"met{other}").exists() for other in range(3)))
        return
    try:
        with parallel.joined("cpu") as world:
            world.barrier()
    except RankLost as error:
        (folder / f"ended{rank}.json").write_text(json.dumps(str(error)))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    codes = [code for ranks in (1, 2, 3) for code in fork_ranks(lambda rank: rank_of(ranks, rank, place), ranks)]  # noqa: B023
    codes += fork_ranks(lambda rank: rank_of(4, rank, place, {"data": 2, "tensor": 2}), 4)
    codes += fork_ranks(lambda rank: rank_of(4, rank, place, {"replicate": 2, "shard": 2}), 4)
    codes += fork_ranks(lambda rank: ended(rank, place), 3)
    sys.exit(max(map(abs, codes)))
