"""Gradient checkpointing: blocks of the model keep their inputs only, and compute the rest again in the backward pass.

Memory for activations falls from all layers to one block and the inputs of the others; a step computes the forward pass twice.
What comes out is the same to the last bit: random numbers are drawn again as they were (torch.utils.checkpoint), and buffers
(the running statistics of normalisation) move once, not twice. Chen et al. 2016, "Training deep nets with sublinear memory cost".

A block is an element of an nn.ModuleList, or what the model's `shard_blocks()` says (trainers.wrap.blocks_of).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leptonstore.errors import BadInput
from trainers.wrap import blocks_of


def recompute_blocks(model: nn.Module) -> None:
    """Change `model` in place; names of weights stay. Raises BadInput when it has no blocks."""
    blocks = blocks_of(model)
    if not blocks:
        raise BadInput(
            f"recompute needs blocks, and {type(model).__name__} has none: hold its layers in an nn.ModuleList, or say them with "
            "shard_blocks(); or set recompute to false"
        )
    for block in blocks:
        block.forward = functools.partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
    if not block.training:
        return forward(*arguments, **named)
    buffers = list(block.buffers())
    extra: dict[str, Any] = {"context_fn": lambda: (contextlib.nullcontext(), _still(buffers))} if buffers else {}
    return checkpoint(forward, *arguments, use_reentrant=False, **extra, **named)


@contextlib.contextmanager
def _still(buffers: list[Tensor]) -> Iterator[None]:
    """Buffers end as they were. By `.data`: autograd, which has saved them, must not take this for a change."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, saved in zip(buffers, before, strict=True):
            buffer.data.copy_(saved)
