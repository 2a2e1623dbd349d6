"""A plain network of dense layers for numbers."""

from __future__ import annotations

from torch import nn

from leptonstore.errors import BadInput


def mlp(features: int, targets: int, hidden: int = 64, layers: int = 2) -> nn.Module:
    """float32 [b, features] -> float32 [b, targets] through `layers` dense relu layers of `hidden`; 0 layers: linear.

    Raises BadInput when a parameter is out of its range.
    """
    if type(layers) is not int or layers < 0 or type(hidden) is not int or hidden < 1:
        raise BadInput(f"an mlp has 0 or more layers of 1 or more, not layers={layers!r}, hidden={hidden!r}")
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*parts, nn.Linear(features, targets))
