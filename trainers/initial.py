"""Where weights come from before the first step, and which of them are trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.reference import nearest

STEP_PREFIX = "step-"


def initialise(model: nn.Module, store: Store, source: str) -> dict[str, Any]:
    """Copy the weights and buffers of a run's checkpoint into `model`, as far as names, shapes and dtypes agree.

    source: RUN (its newest checkpoint) or RUN@step-000000100. Returns {run, step, commit, kept}: kept are the names that the
    checkpoint did not have or that did not fit; a new head keeps what it was drawn as. Raises RefMissing, and BadInput when
    nothing fits.
    """
    run, at, step = source.partition("@")
    if at and not (step.startswith(STEP_PREFIX) and step.removeprefix(STEP_PREFIX).isdigit()):
        raise BadInput(f"model.init is {source!r}; after @ it names a step: {run}@step-000000100")
    saved = checkpoints.load(store, run, int(step.removeprefix(STEP_PREFIX)) if at else None)
    left, state = [], model.state_dict()
    stored = saved.manifest["tensors"]
    with torch.no_grad():
        for name, target in state.items():
            described = stored.get(f"model/{name}")
            if described is None or list(described.get("shape", ())) != list(target.shape):
                left.append(name)
                continue
            value = saved.tensor(f"model/{name}")
            if value.dtype != target.dtype:
                left.append(name)
                continue
            target.copy_(value)
    if len(left) == len(state):
        raise BadInput(
            f"model.init {source!r} is of another model: no weight of it has the name and shape of one of this model's"
        )
    return {"run": run, "step": saved.manifest["step"], "commit": saved.commit, "kept": left}


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train no weight whose name begins with one of `patterns`, or matches it (`fnmatch`): "network.layer1", "*.bias".

    Buffers (running statistics) still move. Raises BadInput, with the nearest name, for a pattern that fits no weight.
    """
    weights = dict(model.named_parameters())
    parents = {name.rpartition(".")[0] for name in weights}
    for pattern in patterns:
        found = [
            name
            for name in weights
            if name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
        ]
        if not found:
            raise BadInput(
                f"model.freeze names {pattern!r}, which is no weight of the model{nearest(pattern, [*weights, *parents])}"
            )
        for name in found:
            weights[name].requires_grad_(False)
