"""Loaders: the order of training data, the position in it, and a DataLoader that keeps up with any model.

from loaders import DataLoader       torch.utils.data.DataLoader, with a fast and exact path for LeptonStore datasets
from loaders import Mixture          several datasets as one, in proportions that may change while a run goes on
from loaders import NumpyLoader      the same order, shares and states with numpy arrays: no torch
from loaders.jax import JaxLoader    the same for sharded jax.Arrays
from loaders.keras import ExactEpochs    the loader's epochs in `model.fit(loader)`
from loaders import Order            which row stands at which position of an epoch: numpy only, no torch
from loaders import TokenWindows     fixed windows of a stream of tokens; TokenPacks: packs of whole documents
from loaders import Bundle           several columns as one value, for transforms that need them together
from loaders import Timeline, Track  sensors aligned on their timestamps
from loaders import AsOf, Known      what was known at a moment, of records that come late and are corrected
from loaders import RowWindows       rows that follow one another in time, as one sample
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaders.asof import AsOf, Known
    from loaders.bundle import Bundle
    from loaders.dataloader import DataLoader
    from loaders.mixture import Mixture
    from loaders.numpy import NumpyLoader
    from loaders.order import Order
    from loaders.packs import TokenPacks
    from loaders.row_windows import RowWindows
    from loaders.state import LoaderStateError
    from loaders.timeline import Timeline, Track
    from loaders.windows import RandomOffset, TokenWindows

__all__ = [
    "AsOf",
    "Bundle",
    "DataLoader",
    "Known",
    "LoaderStateError",
    "Mixture",
    "NumpyLoader",
    "Order",
    "RandomOffset",
    "RowWindows",
    "Timeline",
    "TokenPacks",
    "TokenWindows",
    "Track",
]

_HOMES = {
    "AsOf": "asof",
    "Bundle": "bundle",
    "DataLoader": "dataloader",
    "Known": "asof",
    "LoaderStateError": "state",
    "Mixture": "mixture",
    "NumpyLoader": "numpy",
    "Order": "order",
    "RandomOffset": "windows",
    "RowWindows": "row_windows",
    "Timeline": "timeline",
    "TokenPacks": "packs",
    "TokenWindows": "windows",
    "Track": "timeline",
}


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
