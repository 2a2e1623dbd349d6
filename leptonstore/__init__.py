"""LeptonStore: one deduplicated, versioned store for training data.

    import leptonstore
    store = leptonstore.Store.open("data.lepton")
    images = leptonstore.Dataset.open(store, "mnist@main")

Importing this imports nothing else; names are loaded when they are used. It never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leptonstore.version import __version__

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset, write_dataset
    from leptonstore.store import Store

__all__ = ["Dataset", "Store", "__version__", "write_dataset"]

_FROM = {"Store": "leptonstore.store", "Dataset": "leptonstore.dataset", "write_dataset": "leptonstore.dataset"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'leptonstore' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_FROM[name]), name)
