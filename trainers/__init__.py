"""Training on LeptonStore datasets: a loop that resumes exactly, checkpoints in the store, evaluation, deployment.

    from trainers import Trainer, default_config

    ds = Dataset.open(store, "mnist")
    result = Trainer(default_config(60_000), store, ds).fit()

Importing this package imports no torch: names are resolved when they are first used, so that `lepton --help` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.config import TrainConfig as TrainConfig
    from trainers.deploy import Bundle as Bundle
    from trainers.deploy import load_bundle as load_bundle
    from trainers.evaluation import Evaluation as Evaluation
    from trainers.loop import Trainer as Trainer
    from trainers.predict import predict_dataset as predict_dataset
    from trainers.predict import predict_images as predict_images
    from trainers.recipe import default_config as default_config
    from trainers.result import TrainResult as TrainResult

# Not `evaluate`: that is also the name of a module of this package.
_HOMES = {
    "Bundle": "deploy",
    "Evaluation": "evaluation",
    "TrainConfig": "config",
    "TrainResult": "result",
    "Trainer": "loop",
    "default_config": "recipe",
    "load_bundle": "deploy",
    "predict_dataset": "predict",
    "predict_images": "predict",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trainers.{_HOMES[name]}"), name)
