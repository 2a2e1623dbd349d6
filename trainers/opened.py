"""A model of the store, ready to evaluate and to predict with: a deployed one, or the weights of a checkpoint.

NAME                            a deployed model (trainers.deploy): its program, on the CPU
checkpoint/RUN[@step-N]         the newest checkpoint of a run, or that of a step: the model is built again
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import DataConfig, from_dict
from trainers.deploy import load_bundle
from trainers.tasks import Task

PREFIX = "checkpoint/"


class StoredModel(Protocol):
    """What evaluation and prediction need of a model. A deployed `Bundle` is one."""

    @property
    def name(self) -> str:
        """For people and lineage."""

    @property
    def commit(self) -> str:
        """Of the model or checkpoint, hex."""

    @property
    def task(self) -> Task:
        """What it was trained for."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Inputs of the task [b, ...] -> outputs, on the CPU, without gradients. Raises BadInput when they do not fit."""


@dataclass(frozen=True)
class CheckpointModel:
    """A StoredModel: the module of a checkpoint in eval mode. One thread."""

    name: str
    commit: str
    task: Task
    module: torch.nn.Module

    def __call__(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self.module(inputs)
        return outputs


@dataclass(frozen=True)
class OpenedModel:
    """A stored model and the data configuration that it was trained with, without the transforms of others' code:
    those of validation stand in the task."""

    model: StoredModel
    data: DataConfig


def open_model(store: Store, name: str, reference: str | None = None) -> OpenedModel:
    """Open a model by its name, as above. reference: confirms a checkpoint's model outside trainers.models.

    Raises RefMissing, FormatDamaged, FormatTooNew, MissingExtra; BadInput for a stored model reference that is not trusted.
    """
    if not name.startswith(PREFIX):
        bundle = load_bundle(store, name)
        return OpenedModel(bundle, _data_of(bundle.lineage.get("config", {})))
    try:
        run, step = checkpoints.run_and_step(name.removeprefix(PREFIX))
    except ValueError:
        raise BadInput(f"{name!r} names no checkpoint: it is {PREFIX}RUN or {PREFIX}RUN@step-N") from None
    saved = checkpoints.load(store, run, step)
    module = checkpoints.build_stored_model(saved, reference).eval()
    told = f"{PREFIX}{run}@{saved.branch}"
    return OpenedModel(CheckpointModel(told, saved.commit, saved.task, module), _data_of(saved.manifest["config"]))


def _data_of(config: dict[str, Any]) -> DataConfig:
    return dataclasses.replace(from_dict(config).data, transforms={}, validation_transforms={})
