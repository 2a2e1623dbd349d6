"""A network from its configuration: the same arguments give the same bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leptonstore.errors import BadInput
from trainers.config import ModelConfig, resolve


def build_network(config: ModelConfig, sizes: tuple[Any, ...], seed: int) -> nn.Module:
    """What the factory `config.reference` makes of `sizes` and its parameters, with weights drawn from `seed`.

    The caller's generators are left as they were. Raises BadInput when reference, parameters and sizes do not fit.
    """
    factory = resolve(config.reference)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = factory(*sizes, **config.params)
        except TypeError as error:
            given = ", ".join([*map(str, sizes), *config.params])
            raise BadInput(
                f"model {config.reference!r} does not take these parameters ({given}): {error}; is it a model of this kind "
                "of task (trainers.models)?"
            ) from None
    if not isinstance(network, nn.Module):
        raise BadInput(f"model {config.reference!r} returned {type(network).__name__}, not a torch.nn.Module")
    return network
