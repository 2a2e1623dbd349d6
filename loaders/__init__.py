"""Loaders: the order of training data, the position in it, and a DataLoader that keeps up with any model.

from loaders import DataLoader       torch.utils.data.DataLoader, with a fast and exact path for LeptonStore datasets
from loaders import NumpyLoader      the same order, shares and states with numpy arrays: no torch
from loaders.jax import JaxLoader    the same for sharded jax.Arrays
from loaders import Order            which row stands at which position of an epoch: numpy only, no torch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaders.dataloader import DataLoader
    from loaders.numpy import NumpyLoader
    from loaders.order import Order
    from loaders.state import LoaderStateError

__all__ = ["DataLoader", "LoaderStateError", "NumpyLoader", "Order"]

_HOMES = {"DataLoader": "dataloader", "LoaderStateError": "state", "NumpyLoader": "numpy", "Order": "order"}


def __getattr__(name: str) -> Any:
    # On demand, so that the order can be had where torch is not installed.
    if name not in _HOMES:
        raise AttributeError(f"module 'loaders' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"loaders.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from loaders.source import MissingExtra

        raise MissingExtra("loading batches", "train", "torch") from error
