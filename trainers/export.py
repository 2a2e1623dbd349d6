"""A checkpoint as a file for other tools: safetensors, or what torch.save writes, which torch.load(weights_only=True) reads.

    FILE.safetensors      weights and buffers by their names; with the optimizer: all tensors by their paths ("model/…", "optimizer/…")
    FILE.pt, .pth, .bin   {name: tensor}; with the optimizer: {"model": {name: tensor}, "optimizer": {"state": {name: {key: tensor or
                          number}}, "param_groups": [{"params": [name, …], …}]}}, which `set_optimizer_state_dict` of
                          torch.distributed.checkpoint.state_dict loads into any optimizer of these weights

A file is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leptonstore.errors import BadInput, MissingExtra, SourceError
from leptonstore.tiers.durable import sync_directory
from trainers.checkpoint import Checkpoint

SAFETENSORS, TORCH = "safetensors", "torch"
_FORMATS = {".safetensors": SAFETENSORS, ".pt": TORCH, ".pth": TORCH, ".bin": TORCH, ".ckpt": TORCH}
# Of an optimizer's configuration: what torch calls it in a parameter group.
_HYPERPARAMETERS = ("lr", "betas", "momentum", "weight_decay")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: str
    format: str
    tensors: int
    bytes: int


def format_of(path: Path) -> str:
    """By the ending of the file's name. Raises BadInput."""
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        raise BadInput(f"{path.name} says no format: end it in .safetensors or .pt, or give --format")
    return found


def export_checkpoint(
    checkpoint: Checkpoint, path: Path, format: str | None = None, optimizer: bool = False, replace: bool = False
) -> Exported:
    """Write the weights of a checkpoint, and with `optimizer` everything that it has of the optimizer, to a file.

    Memory: all tensors that are written. Raises BadInput (the file is there; no weights), SourceError (it cannot be written), MissingExtra,
    FormatDamaged, ChunkMissing or ChunkCorrupt.
    """
    kind = format or format_of(path)
    if path.exists() and not replace:
        raise BadInput(f"{path} exists: take another name, or replace it with --force")
    if not any(name.startswith("model/") for name in checkpoint.paths):
        raise BadInput(f"{checkpoint.whose} has no weights; it has {', '.join(checkpoint.paths[:5])} …")
    with _whole(path, replace) as part:
        if kind == SAFETENSORS:
            tensors = _write_safetensors(checkpoint, part, optimizer)
        else:
            tensors = _write_torch(checkpoint, part, optimizer)
    return Exported(str(path), kind, tensors, path.stat().st_size)


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weights and buffers by name, on the CPU."""
    return {
        path.removeprefix("model/"): checkpoint.tensor(path) for path in checkpoint.paths if path.startswith("model/")
    }


def optimizer_state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The optimizer's state by names of weights, as torch.distributed.checkpoint.state_dict takes it."""
    state: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {path: None for path in checkpoint.paths if path.startswith("optimizer/")}
    values.update({path: value for path, value in checkpoint.scalars.items() if path.startswith("optimizer/")})
    for path, value in sorted(values.items()):
        _, key, name = (path + "//").split("/", 2)
        stored = checkpoint.tensor(path) if path in checkpoint.opened.tensors else value
        state.setdefault(name.removesuffix("//"), {})[key] = stored
    config = checkpoint.manifest.get("config", {}).get("optimizer", {})
    told = {key: config[key] for key in _HYPERPARAMETERS if isinstance(config, dict) and key in config}
    return {"state": state, "param_groups": [{"params": sorted(state), **told}]}


def _write_safetensors(checkpoint: Checkpoint, path: Path, optimizer: bool) -> int:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise MissingExtra("writing safetensors", "train", "safetensors") from None
    tensors = weights_of(checkpoint)
    if optimizer:
        names = [path for path in checkpoint.paths if path.startswith(("model/", "optimizer/"))]
        tensors = {name: checkpoint.tensor(name) for name in names}
    told = {
        "format": "pt",
        "lepton.run": checkpoint.run,
        "lepton.step": str(checkpoint.step),
        "lepton.commit": checkpoint.commit,
    }
    try:
        save_file(tensors, path, told)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadInput(f"{checkpoint.whose} cannot be written as safetensors: {error}; take --format torch") from None
    return len(tensors)


def _write_torch(checkpoint: Checkpoint, path: Path, optimizer: bool) -> int:
    weights = weights_of(checkpoint)
    if not optimizer:
        torch.save(weights, path)
        return len(weights)
    state = optimizer_state_of(checkpoint)
    torch.save({"model": weights, "optimizer": state, "run": checkpoint.run, "step": checkpoint.step}, path)
    found = sum(isinstance(value, Tensor) for one in state["state"].values() for value in one.values())
    return len(weights) + found


@contextlib.contextmanager
def _whole(path: Path, replace: bool) -> Iterator[Path]:
    """A name beside `path` to write to; what is there when the block ends becomes `path`, durable."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if replace:
                part.replace(path)
            else:
                os.link(part, path)
            sync_directory(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise BadInput(f"{path} exists: take another name, or replace it with --force") from None
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror or error}", str(path)) from None
    except RuntimeError as error:  # torch's writer says so what an OSError says elsewhere
        raise SourceError(f"cannot write {path}: {str(error).splitlines()[0]}", str(path)) from None
