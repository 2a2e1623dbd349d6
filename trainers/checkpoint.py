"""Checkpoints in the store: everything a run needs to go on as if it had never stopped.

A checkpoint is a table of files, a commit of its own without parents, under the ref `checkpoint/<run>/step-<9 digits>`:

    manifest.json                     the format below; names, dtype and shape of every tensor
    model/<name>                      raw bytes of weights and buffers (trainers.tensors)
    optimizer/<state>/<name>          raw bytes of the optimizer's state of that parameter: exp_avg, exp_avg_sq, step …
    rng/rank-<r>/cpu, …/cuda          the state of torch's generators of each rank

    {"format": "lepton.checkpoint", "version": 1, "run", "step", "epoch", "step_in_epoch",
     "config": TrainConfig, "task": Task, "data": {training and validation rows}, "loader": state of the loader,
     "progress": sums of the unfinished epoch, "history": [finished epochs], "tensors": {path: {dtype, shape}},
     "optimizer_scalars": {name: {state: number}}, "environment": {torch, threads, world size, …},
     "provenance", "receipt": trainers.provenance}

The commit is deterministic: the same state gives the same digest, whenever and wherever it is saved. Raw tensors in
files of their own are what makes unchanged ones free. A file is never unpickled, and a model is never rebuilt from a
stored module name that the caller did not ask for (`build_stored_model`). Only rank 0 saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.dataset import FileTable, RefInfo, delete_ref, list_refs, write_files
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, RefMissing
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.store import Store
from trainers import tensors
from trainers.config import TrainConfig, first_difference, from_dict, identity
from trainers.parallel import World
from trainers.provenance import differences, environment, lineage_of
from trainers.tasks import Task, task_from_dict

FORMAT = "lepton.checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
# The manifest grows with the number of tensors (about 100 bytes each) and of finished epochs (about 100 bytes each).
MANIFEST_BYTES_MAX = 64 << 20
# Factories of this module may be called on the word of a stored checkpoint; any other the caller must name.
TRUSTED_MODULE = "trainers.models:"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: the manifest has been parsed, tensors are read (and checked) on demand."""

    run: str
    branch: str
    commit: str
    manifest: dict[str, Any]
    files: FileTable

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return from_dict(self.manifest["config"])

    @property
    def task(self) -> Task:
        """Input and classes."""
        return task_from_dict(self.manifest["task"])

    def tensor(self, path: str) -> Tensor:
        """One tensor by its path, on the CPU. Raises FormatDamaged when it is absent or does not fit its description."""
        described = self.manifest["tensors"].get(path)
        if described is None:
            raise FormatDamaged(f"checkpoint {self.branch} of run {self.run!r} has no tensor {path!r}")
        tensors.parse_description(described, path)
        return tensors.from_buffer(self.files.read(path), described, path)


def branch_of(step: int) -> str:
    """The branch of a checkpoint, in an order that sorts as text."""
    return f"step-{step:09d}"


def save(
    store: Store,
    run: str,
    manifest: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: Sequence[dict[str, Tensor]],
    metrics: dict[str, float],
    keep_last: int,
) -> str:
    """Write a checkpoint, publish it, let older ones go; returns its commit (hex). When this returns it is durable.

    manifest: see the module; "format", "version", "tensors" and "optimizer_scalars" are filled in here.
    rng: one dict of generator states per rank (`rng_state`). metrics: kept beside the commit, not in it.
    """
    found, scalars = _tensors_of(model, optimizer, rng)
    body = {
        **manifest,
        "format": FORMAT,
        "version": VERSION,
        "tensors": {path: tensors.describe(tensor) for path, tensor in found},
        "optimizer_scalars": scalars,
    }

    def files() -> Iterator[tuple[str, Buffer]]:
        yield MANIFEST, canonical_json(body)
        for path, tensor in found:
            yield path, tensors.to_buffer(tensor)

    table = write_files(
        store,
        "checkpoint",
        run,
        files(),
        lineage=lineage_of(body),
        message=f"step {body['step']}",
        branch=branch_of(body["step"]),
        metrics=metrics,
    )
    for old in _by_age(store, run)[:-keep_last]:
        if old.commit != table.commit:
            delete_ref(store, "checkpoint", run, old.branch)
    return str(table.commit)


def load(store: Store, run: str, step: int | None = None) -> Checkpoint:
    """Open the newest checkpoint of `run`, or that of `step`.

    Raises RefMissing (no such run or step), FormatDamaged, FormatTooNew.
    """
    store.refresh()
    refs = _by_age(store, run)
    if not refs:
        runs = sorted({ref.name for ref in list_refs(store, "checkpoint")})
        raise RefMissing(f"there is no checkpoint of run {run!r}; runs with checkpoints: {', '.join(runs) or 'none'}")
    branch = refs[-1].branch if step is None else branch_of(step)
    if branch not in [ref.branch for ref in refs]:
        kept = ", ".join(sorted(ref.branch for ref in refs))
        raise RefMissing(f"run {run!r} has no checkpoint {branch}; it has {kept}")
    files = FileTable.open(store, "checkpoint", f"{run}@{branch}")
    return Checkpoint(run, branch, files.commit, _read_manifest(files, f"checkpoint {branch} of run {run!r}"), files)


def _by_age(store: Store, run: str) -> list[RefInfo]:
    """The checkpoints of a run, oldest first. Tags are other names of them, which retention keeps."""
    refs = [ref for ref in list_refs(store, "checkpoint", run) if not ref.tag]
    return sorted(refs, key=lambda ref: ref.sequence)


def exists(store: Store, run: str) -> bool:
    """Whether the run has any checkpoint."""
    store.refresh()
    return bool(_by_age(store, run))


def require_same_run(checkpoint: Checkpoint, config: TrainConfig, task: Task, data: dict[str, Any]) -> None:
    """Raises BadInput that names what differs when this checkpoint does not belong to a run with these inputs."""
    stored, whose = checkpoint.manifest, f"checkpoint {checkpoint.branch} of run {checkpoint.run!r}"
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
    """Copy weights and buffers into `model`. Raises BadInput, naming the tensor, when it is another model."""
    state = model.state_dict()
    stored = {path.removeprefix("model/") for path in checkpoint.manifest["tensors"] if path.startswith("model/")}
    for name in sorted(stored ^ set(state)):
        side = "this model has no" if name in stored else "the checkpoint has no"
        raise BadInput(f"{checkpoint.branch} of run {checkpoint.run!r} is of another model: {side} tensor {name!r}")
    with torch.no_grad():
        for name, target in state.items():
            value = checkpoint.tensor(f"model/{name}")
            if value.shape != target.shape or value.dtype != target.dtype:
                raise BadInput(
                    f"{checkpoint.branch} of run {checkpoint.run!r} is of another model: {name!r} is "
                    f"{value.dtype} {tuple(value.shape)} there and {target.dtype} {tuple(target.shape)} here"
                )
            target.copy_(value)


def restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimizer's per-parameter state; hyperparameters stay as the configuration made them."""
    names, weights = trained_names(model), dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for path in checkpoint.manifest["tensors"]:
        if not path.startswith("optimizer/"):
            continue
        _, key, name = path.split("/", 2)
        if name not in names:
            raise FormatDamaged(f"{path!r} of {checkpoint.branch} belongs to no parameter of this model")
        value = checkpoint.tensor(path)
        if (
            value.shape == weights[name].shape
        ):  # in the layout of the weight: fused optimizers walk both in memory order
            value = torch.empty_like(weights[name], dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(names.index(name), {})[key] = value
    for name, scalars in checkpoint.manifest["optimizer_scalars"].items():
        if name not in names or not isinstance(scalars, dict):
            raise FormatDamaged(f"optimizer state of {name!r} of {checkpoint.branch} belongs to no parameter")
        state.setdefault(names.index(name), {}).update(scalars)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def trained_names(model: nn.Module) -> list[str]:
    """Names of the weights that are trained, in the order in which the optimizer has them (trainers.optimizer)."""
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


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
        f"{told} now (checkpoint {checkpoint.branch}): the data order stays exact, the last bits of the results may differ"
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


def _tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, rng: Sequence[dict[str, Tensor]]
) -> tuple[list[tuple[str, Tensor]], dict[str, dict[str, Any]]]:
    """Every tensor with its path, sorted by path, and the optimizer state that is no tensor."""
    found = [(f"model/{name}", tensor) for name, tensor in model.state_dict().items()]
    scalars: dict[str, dict[str, Any]] = {}
    names = trained_names(model)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                found.append((f"optimizer/{key}/{names[index]}", value))
            else:
                scalars.setdefault(names[index], {})[key] = value
    for rank, states in enumerate(rng):
        found += [(f"rng/rank-{rank}/{device}", state) for device, state in states.items()]
    return sorted(found, key=lambda item: item[0]), scalars


def _read_manifest(files: FileTable, whose: str) -> dict[str, Any]:
    if MANIFEST not in files.paths():
        raise FormatDamaged(f"{whose} has no {MANIFEST}")
    data = files.read(MANIFEST)
    if len(data) > MANIFEST_BYTES_MAX:
        raise FormatDamaged(f"the manifest of {whose} has {len(data)} bytes, over the limit of {MANIFEST_BYTES_MAX}")
    body = parse_json(data, f"the manifest of {whose}")
    if not isinstance(body, dict) or body.get("format") != FORMAT or type(body.get("version")) is not int:
        raise FormatDamaged(f"the manifest of {whose} does not say that it is one")
    if body["version"] > VERSION:
        raise FormatTooNew(f"{whose} has format version {body['version']}; this LeptonStore reads {VERSION}: upgrade")
    dicts = ("config", "task", "data", "loader", "progress", "tensors", "optimizer_scalars", "environment")
    kinds = {**dict.fromkeys(dicts, dict), "history": list, "step": int, "epoch": int, "step_in_epoch": int}
    for key, kind in kinds.items():
        if not isinstance(body.get(key), kind) or (kind is int and body[key] < 0):
            raise FormatDamaged(f"the manifest of {whose} is damaged: {key} is {body.get(key)!r:.100}")
    return body
