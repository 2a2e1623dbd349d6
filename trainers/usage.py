"""What a run used: device-hours, the share of them that was idle, bytes that moved, and what that costs.

    device_hours    devices x hours from the start of `fit` to its end, set-up, evaluation and checkpoints included. An
                    accelerator is one device; on the CPU a device is a core, and a rank has as many as torch has threads.
    idle_fraction   of the wall time of all ranks: waiting for data, for other ranks, for checkpoints
    bytes           data         handed out by the loader that trains (columns of a fixed width), all ranks
                    read         of packs, by tier: what the store's own Store object read, so not what worker processes did, nor what
                                 the hot cache had
                    h2d          copied to accelerators of that; 0 on the CPU, where nothing is copied
                    collectives  gradients that DDP adds up, of all ranks: the payload, and not what an algorithm makes of it on
                                 the wire (a ring sends up to twice as much). null under FSDP, where it is not known
                    checkpoints  stored bytes that the run added to the store

Costs are by the table of `lepton tier prices`, which is there to be edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from leptonstore.store import Store
from leptonstore.store.prices import DevicePrice, Price, device_price_of, egress, month, price_of
from trainers.clock import RunTime
from trainers.parallel import World

TIERS_MAX = 8  # that are told apart: a store has two or three


@dataclass(frozen=True)
class Usage:
    """See the module. `device` is its name: "cpu", or what the driver calls it."""

    device: str
    devices: int
    device_hours: float
    idle_fraction: float
    data_bytes: int
    read_bytes: dict[str, int]
    h2d_bytes: int
    collective_bytes: int | None
    checkpoint_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Moved(NamedTuple):
    """Bytes that this rank moved since `fit` began: of batches, added to the store, and read of each tier (URL, in their order)."""

    data: int
    stored: int
    read: dict[str, int]


def read_since(store: Store, before: Mapping[str, int]) -> dict[str, int]:
    """What was read of each tier of the store since its `bytes_read` was `before`, in the order of the tiers."""
    now = store.bytes_read
    return {place: now.get(place, 0) - before.get(place, 0) for place in store.places}


def usage_of(world: World, wrapped: nn.Module, time: RunTime, steps: int, moved: Moved) -> Usage:
    """Of all ranks together; a collective.

    wrapped: the module that trained (trainers.wrap). time, moved: of this rank. steps: optimizer steps since `fit` began.
    """
    cores = torch.get_num_threads() if world.device.type == "cpu" else 1
    # As many places on every rank, whatever each of them has read.
    tiers = list(moved.read)[:TIERS_MAX]
    reads = [float(moved.read[url]) for url in tiers] + [0.0] * (TIERS_MAX - len(tiers))
    mine = [time.wall, time.idle, float(moved.data), float(moved.stored), float(cores), *reads]
    walls, idles, data, stored, devices, *read = world.sum(
        [], votes=mine
    )  # of all ranks, those of a tensor dimension too
    on_host = world.device.type == "cpu"
    return Usage(
        device=device_name(world.device),
        devices=round(devices),
        device_hours=devices / world.size * walls / 3600,
        idle_fraction=idles / walls if walls > 0 else 0.0,
        data_bytes=round(data),
        read_bytes={url: round(count) for url, count in zip(tiers, read, strict=False)},
        h2d_bytes=0 if on_host else round(data),
        collective_bytes=_gradient_bytes(world, wrapped, steps),
        checkpoint_bytes=round(stored),
    )


def device_name(device: torch.device) -> str:
    """What a price table calls it: "cpu", "NVIDIA H100 80GB HBM3", "mps"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def cost_of(
    usage: Usage, url: str, prices: Sequence[Price], devices: Sequence[DevicePrice]
) -> dict[str, float | str | None]:
    """Currency units of the price table, each null where it has no price.

    devices: of all device-hours; `idle` is what of that was paid for waiting. read: for what left the tiers (egress). checkpoints_month:
    for keeping a month what was stored at `url`, the store's place.
    """
    price = device_price_of(devices, usage.device)
    paid = None if price is None else price.hour * usage.device_hours
    return {
        "device": usage.device if price is None else price.name,
        "device_hour": None if price is None else price.hour,
        "devices": paid,
        "idle": None if paid is None else paid * usage.idle_fraction,
        "read": sum(egress(price_of(list(prices), place), count) for place, count in usage.read_bytes.items()),
        "checkpoints_month": month(price_of(list(prices), url), usage.checkpoint_bytes),
    }


def _gradient_bytes(world: World, wrapped: nn.Module, steps: int) -> int | None:
    if world.size == 1:
        return 0
    if not isinstance(wrapped, DistributedDataParallel):
        return None
    return steps * sum(p.numel() * p.element_size() for p in wrapped.parameters() if p.requires_grad) * world.size
