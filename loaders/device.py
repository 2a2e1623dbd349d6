"""Batches on a device: the next one is copied while this one is used.

    batch of tensors -> one pinned slab -> one copy on a side stream -> tensors that are views of it on the device

    CUDA, XPU    as above. The consumer's stream waits for the copy's event, not the host; `record_stream` keeps the allocator from giving
                 the slab's memory away while the consumer's kernels read it. Pinned slabs come from torch's caching host
                 allocator, which gives one out again only when the copy that read it is over.
    others       (MPS: host and device share memory) `tensor.to(device)`.
    cpu          nothing at all: `device_of` gives None.

Copying a batch in one piece costs one launch instead of one per column, and the slab is filled by the host while the device computes.
The path for CUDA is tested by tests marked requires_cuda, which this project's own machines cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from loaders.ahead import Ahead
from loaders.stages import map_tree
from loaders.stall import StageClock

Device: TypeAlias = "torch.device | str | int | None"
STREAMS = frozenset({"cuda", "xpu"})
ALIGN_BYTES = 256  # of each tensor in a slab: what CUDA's allocator aligns to, and so its kernels are tuned for


def device_of(device: Device) -> torch.device | None:
    """The device meant; None where batches lie there already, on the host. "auto" is the accelerator of this machine, if any.

    Raises RuntimeError, torch's, for a device that torch does not know.
    """
    if device is None:
        return None
    if device == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    made = torch.device(device)
    return None if made.type == "cpu" else made


def ahead_on(device: torch.device, batches: Iterator[Any], clock: StageClock) -> Iterator[Any]:
    """The same batches with their tensors on `device`; each begins to be copied before the one ahead of it is handed out.

    clock: what the consumer's thread spends on it is added to.

    Closing it closes `batches`. Used by the consumer's thread, whose current stream is the one that waits.
    """
    return Ahead(clock.around("device", _copier(device)), batches)


def _copier(device: torch.device) -> Callable[[Any], Callable[[], Any]]:
    """A function that begins to copy a batch, and gives a function that hands it over once it may be used."""
    if device.type not in STREAMS:

        def copy_now(batch: Any) -> Callable[[], Any]:
            moved = map_tree(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
            return lambda: moved

        return copy_now
    module = torch.get_device_module(device)
    stream = module.Stream(device)

    def copy(batch: Any) -> Callable[[], Any]:
        slab, unpack = packed(batch, pin=True)
        with module.stream(stream):
            there = slab.to(device, non_blocking=True)
            copied = module.Event()
            copied.record(stream)

        def hand_over() -> Any:
            current = module.current_stream(device)
            current.wait_event(copied)
            there.record_stream(current)
            return unpack(there)

        return hand_over

    return copy


def packed(batch: Any, pin: bool = False) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """(slab, unpack): all tensors of a batch in one piece of memory, uint8, and what makes the batch again from a copy of it.

    The tensors that `unpack` makes are views of the slab given to it. Values that are no tensors are passed through.
    """
    tensors: list[Tensor] = []
    total = 0

    def placed(leaf: Any) -> Any:
        nonlocal total
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            return leaf
        tensors.append(leaf)
        first, total = total, total + -(-leaf.nbytes // ALIGN_BYTES) * ALIGN_BYTES
        return _Place(first, leaf.nbytes, leaf.dtype, leaf.shape)

    skeleton = map_tree(placed, batch)
    slab = torch.empty(total, dtype=torch.uint8, pin_memory=pin)

    def unpack(there: Tensor) -> Any:
        return map_tree(lambda leaf: leaf.view_of(there) if isinstance(leaf, _Place) else leaf, skeleton)

    views: list[Tensor] = []
    map_tree(lambda leaf: views.append(leaf.view_of(slab)) if isinstance(leaf, _Place) else None, skeleton)
    for tensor, view in zip(tensors, views, strict=True):
        view.copy_(tensor)
    return slab, unpack


@dataclass(frozen=True)
class _Place:
    """Where in the slab a tensor stands."""

    first: int
    size_bytes: int
    dtype: torch.dtype
    shape: torch.Size

    def view_of(self, slab: Tensor) -> Tensor:
        return slab[self.first : self.first + self.size_bytes].view(self.dtype).view(self.shape)
