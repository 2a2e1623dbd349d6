"""The optimizers by name."""

from __future__ import annotations

import torch
from torch import nn

from trainers.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """A fused optimizer (one pass over all weights) of the weights that are trained; frozen ones are left out."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
