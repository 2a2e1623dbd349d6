"""What this project's own loop keeps in a checkpoint, and how a run goes on from it.

    state      {"model": weights and buffers by name, "optimizer": {name of a weight: {key: tensor | number}},
                "rng": {"rank-<r>": {"cpu": uint8, "cuda": uint8}}}
    manifest   {"run", "step", "epoch", "step_in_epoch", "config": TrainConfig, "task": Task, "data": {training and validation rows},
                "loader": state of the loader, "progress": sums of the unfinished epoch, "history": [finished epochs],
                "environment": {torch, threads, world size, …}, "provenance", "receipt": trainers.provenance,
                "scalars": what of the state is no tensor, by path}

A model is never rebuilt from a stored module name that the caller did not ask for (`build_stored_model`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.store import Store
from trainers.checkpoint.checkpointer import Checkpointer
from trainers.checkpoint.manifest import require_kinds
from trainers.checkpoint.modules import restore_module
from trainers.checkpoint.restore import restore
from trainers.checkpoint.retention import Retention
from trainers.checkpoint.saved import Checkpoint
from trainers.config import CheckpointConfig, TrainConfig, first_difference, identity
from trainers.parallel import World
from trainers.provenance import differences, environment
from trainers.tasks import Task

# Factories of this module may be called on the word of a stored checkpoint; any other the caller must name.
TRUSTED_MODULE = "trainers.models:"
_DICTS = ("config", "task", "data", "loader", "progress", "environment")
_KINDS = {**dict.fromkeys(_DICTS, dict), "history": list, "step": int, "epoch": int, "step_in_epoch": int}


def checkpointer_of(store: Store, run: str, world: World, config: CheckpointConfig) -> Checkpointer:
    """What saves the checkpoints of a run as its configuration says. A collective."""
    retention = Retention(config.keep_last, config.keep_every, config.keep_best, config.best_metric)
    return Checkpointer(store, run, world, retention, config.asynchronous)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, device: torch.device) -> dict[str, Any]:
    """The state of a run as its tensors are now, nothing copied; DTensors where the model is sharded."""
    names = _names(model, optimizer)
    states = optimizer.state_dict()["state"]
    return {
        "model": model.state_dict(),
        "optimizer": {names[index]: dict(state) for index, state in states.items() if state},
        "rng": {f"rank-{rank}": rng_state(device)},
    }


def require_same_run(checkpoint: Checkpoint, config: TrainConfig, task: Task, data: dict[str, Any]) -> None:
    """Raises BadInput that names what differs when this checkpoint does not belong to a run with these inputs; FormatDamaged when its
    manifest is not that of a run."""
    stored, whose = checkpoint.manifest, checkpoint.whose
    if "imported" in stored:
        raise BadInput(
            f"{whose} was imported, and is no run that could go on: take another run name, and begin with its weights "
            f"(model.init={checkpoint.run})"
        )
    require_kinds(stored, _KINDS, whose)
    pairs = (
        (identity(checkpoint.config), identity(config), "config"),
        (stored["task"], task.to_dict(), "task"),
        (stored["data"], data, "data"),
    )
    for left, right, what in pairs:
        difference = first_difference(left, right, "" if what == "config" else f"{what}.")
        if difference:
            raise BadInput(f"{whose} is of another training: {difference}; use the same values or another run name")


def restore_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Copy weights, buffers and extra state into `model`. Raises BadInput, naming the tensor, when it is another model."""
    restore_module(checkpoint, "model", model)


def restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimizer's per-parameter state; hyperparameters stay as the configuration made them.

    Raises BadInput for the state of a weight that this optimizer does not have.
    """
    names = _names(model, optimizer)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    states: dict[str, dict[str, Any]] = {}
    for path, tensor in checkpoint.opened.tensors.items():
        if path.startswith("optimizer/"):
            key, name = _of_optimizer(checkpoint, path, names)
            weight, dtype = weights[name], getattr(torch, tensor.dtype)
            # In the layout of the weight, and sharded as it is: fused optimizers walk both in memory order.
            like = tensor.shape == tuple(weight.shape)
            made = torch.empty_like(weight, dtype=dtype) if like else torch.empty(tensor.shape, dtype=dtype)
            states.setdefault(name, {})[key] = made
    for path in checkpoint.scalars:
        if path.startswith("optimizer/"):
            key, name = _of_optimizer(checkpoint, path, names)
            states.setdefault(name, {})[key] = None
    restore(checkpoint, {"optimizer": states})
    indexed = {names.index(name): state for name, state in states.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": indexed})


def _of_optimizer(checkpoint: Checkpoint, path: str, names: list[str]) -> tuple[str, str]:
    _, key, name = (path + "//").split("/", 2)
    name = name.removesuffix("//")
    if name not in names:
        raise BadInput(f"{checkpoint.whose} does not fit: {path!r} belongs to no weight of this optimizer")
    return key, name


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The name of each weight that the optimizer has, in the order in which its state numbers them."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    unknown = [at for at, weight in enumerate(weights) if id(weight) not in names]
    if unknown:
        raise BadInput(
            f"the optimizer has {len(unknown)} weights that the model does not have, the first of them number {unknown[0]}"
        )
    return [names[id(weight)] for weight in weights]


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators of this process: uint8 vectors by device type."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(checkpoint: Checkpoint, rank: int, device: torch.device) -> bool:
    """Set torch's generators as rank `rank` left them; False when the checkpoint has none for this rank or device."""
    stored = checkpoint.manifest["tensors"]
    prefix = f"rng/rank-{rank}/"
    if prefix + "cpu" not in stored or (device.type == "cuda" and prefix + "cuda" not in stored):
        return False
    try:
        torch.set_rng_state(checkpoint.tensor(prefix + "cpu"))
        if device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensor(prefix + "cuda"), device)
    except (RuntimeError, TypeError) as error:
        raise FormatDamaged(f"the RNG state of rank {rank} in {checkpoint.branch} is damaged: {error}") from None
    return True


def environment_warnings(checkpoint: Checkpoint, world: World) -> list[str]:
    """One line per difference that may change the last bits of a resumed run; the run goes on."""
    return [
        f"{told} now ({checkpoint.branch}): the data order stays exact, the last bits of the results may differ"
        for told in differences(checkpoint.manifest["environment"], environment(world))
    ]


def require_trusted(checkpoint: Checkpoint, reference: str | None = None) -> None:
    """Raises BadInput when following the stored model reference would import code that the caller did not name.

    reference: what the caller confirms; it must equal the stored one.
    """
    stored = checkpoint.config.model.reference
    if reference not in (None, stored):
        raise BadInput(f"run {checkpoint.run!r} trained {stored!r}, not {reference!r}")
    if reference is None and not stored.startswith(TRUSTED_MODULE):
        raise BadInput(f"run {checkpoint.run!r} trained {stored!r}, code outside this project: confirm it with --model")


def build_stored_model(checkpoint: Checkpoint, reference: str | None = None) -> nn.Module:
    """The model of a checkpoint with its weights, on the CPU.

    A stored reference is only followed into trainers.models; `reference` confirms any other (`require_trusted`).
    """
    require_trusted(checkpoint, reference)
    config = checkpoint.config
    model = checkpoint.task.build(config.model, config.seed)
    restore_model(checkpoint, model)
    return model
