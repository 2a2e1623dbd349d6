"""The optimizer of a configuration: by name, by reference, or as it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from leptonstore.errors import BadInput
from trainers.config import OptimizerConfig
from trainers.reference import called, told


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """A fused optimizer (one pass over all weights) of the weights that are trained; frozen ones are left out.

    Raises BadInput when no weight is trained, or a reference or a given optimizer does not fit.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise BadInput("no weight of the model is trained: look at model.freeze")
    if isinstance(config.reference, torch.optim.Optimizer):
        return _given(config.reference, model)
    if config.reference is not None:
        decay: dict[str, Any] = {"weight_decay": config.weight_decay} if config.weight_decay else {}
        made = called(config.reference, "optimizer", weights, lr=config.lr, **decay, **config.params)
        if not isinstance(made, torch.optim.Optimizer):
            raise BadInput(
                f"optimizer {told(config.reference)} returned {type(made).__name__}, not a torch.optim.Optimizer"
            )
        return made
    if config.name == "sgd":
        fused = not any(isinstance(weight, DTensor) for weight in weights)  # torch's fused SGD takes no sharded ones
        return torch.optim.SGD(
            weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def _given(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    ours = {id(weight) for weight in model.parameters()}
    for group in optimizer.param_groups:
        if any(id(weight) not in ours for weight in group["params"]):
            raise BadInput(
                "the given optimizer is over weights of another model: give the module that it was made for as model.reference"
            )
    return optimizer
