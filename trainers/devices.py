"""Where a rank computes, and over what its ranks talk.

    type   backend   how it is found
    cpu    gloo      always there; several ranks may share a machine
    cuda   nccl      torch.accelerator; one device per local rank
    mps    -         torch.accelerator; one process (torch has no collectives for it)
    tpu    by torch  `torch_tpu`, when the user has installed it, registers the device and the backend that serves it

"auto" is the accelerator that torch finds, else the CPU. Only cpu with gloo was run where this project is tested.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import distributed

from leptonstore.errors import BadInput


class DeviceKind(NamedTuple):
    """One line of the table. backend: of torch.distributed, "" for none. fix: what to do when torch finds no such device."""

    backend: str
    fix: str = ""
    module: str = ""  # that registers the device with torch when it is imported


CPU = "cpu"
KINDS = {
    CPU: DeviceKind("gloo"),
    "cuda": DeviceKind("nccl", "install a CUDA build of torch and NVIDIA's driver"),
    "mps": DeviceKind("", "it needs an Apple GPU and torch for macOS"),
    "tpu": DeviceKind("tpu", "install torch_tpu on a machine with TPUs", module="torch_tpu"),
}


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" or a type of the table -> the device of this rank: its local rank is the index among several of a machine.

    Raises BadInput, with the fix, when there is no such device, or fewer than ranks on this machine.
    """
    if name == "auto":
        name = _accelerator()
        if name not in KINDS or (local_rank > 0 and not KINDS[name].backend):
            name = CPU
    if name not in KINDS:
        raise BadInput(f"there is no device {name!r}; it must be auto or one of {', '.join(KINDS)}")
    if name == CPU:
        return torch.device(CPU)
    kind = KINDS[name]
    if kind.module:
        _register(kind.module)
    if _accelerator() != name:
        raise BadInput(f"there is no {name} device that torch can use: {kind.fix}, or train with --device cpu")
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise BadInput(
            f"local rank {local_rank} has no {name} device of its own: this machine has {count}; "
            f"start at most {count} ranks here (torchrun --nproc-per-node {count})"
        )
    return torch.device(name, local_rank)


def backend_of(device: torch.device) -> str:
    """The backend of torch.distributed for ranks on such devices. Raises BadInput when there is none."""
    backend = KINDS[device.type].backend
    if not backend:
        raise BadInput(f"several ranks cannot train on {device.type}: start one process, or train with --device cpu")
    # A module that registers a device may register its backend under a name of its own.
    return distributed.Backend.default_device_backend_map.get(device.type, backend)


def use(device: torch.device) -> None:
    """Make it the current device of this process, as collectives and streams expect."""
    if device.type != CPU:
        torch.accelerator.set_device_index(device.index)


def _accelerator() -> str:
    """The type of the accelerator that torch finds and can use; "cpu" when there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None else CPU


def _register(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"no {module} here: {error}; install it, or train with --device cpu") from None
