"""What a run trains with, made from its configuration: the model on its device, and what is around it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of
from leptonstore.store import Store
from trainers.config import ModelConfig, TrainConfig
from trainers.initial import prepare_weights
from trainers.parallel import World
from trainers.recompute import recompute_blocks
from trainers.tasks import Task


def build_model(
    config: TrainConfig, task: Task, store: Store, world: World, resume: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model on the device of this rank, in training mode, and where its first weights came from ({}: the seed).

    The order matters: weights are copied into the plain model, frozen before anything counts what is trained, and blocks are
    recomputed inside of what is compiled. resume: weights come later, from the run's own checkpoint.
    """
    model = task.build(_made(config.model), config.seed)
    initialised = prepare_weights(model, config.model, store, fresh=not resume)
    model.to(world.device).train()
    if config.recompute:
        recompute_blocks(model)
    if config.compile:
        model.compile()  # in place: names of weights stay
    return model, {} if initialised is None else initialised.to_dict()


def seed_generators(seed: int, rank: int) -> None:
    """torch's generators of this process, far apart for near seeds: dropout must differ between ranks."""
    torch.manual_seed(int.from_bytes(digest_of(f"lepton.rng {seed} {rank}".encode())[:7], "little"))


def described(ds: Dataset) -> dict[str, Any]:
    """What a checkpoint says of the rows that a run learns from."""
    return {"name": ds.name, "commit": ds.commit, "fingerprint": ds.fingerprint, "rows": len(ds)}


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set torch's CPU threads while the context lasts; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _made(config: ModelConfig) -> ModelConfig:
    """A module that was given in Python, in the form of a factory that gives it."""
    given = config.reference
    return dataclasses.replace(config, reference=lambda *sizes: given) if isinstance(given, nn.Module) else config
