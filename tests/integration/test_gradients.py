"""Uneven shares: a global batch gives the same gradient, and evaluation the same numbers, whatever the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_data import quick_config, quick_options, train_command, write_patterns

from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.evaluate import evaluate
from trainers.loop import Trainer


def test_three_ranks_give_the_gradients_of_one(tmp_path: Path) -> None:
    """Batches of 10 and then of 2 rows over 3 ranks: shares of 3, 3, 4 and then an empty one.

    With plain SGD of rate 1, weights move by exactly the gradient.
    """
    cache = tmp_path / "cache"
    config = quick_config(epochs=1, optimizer__name="sgd", optimizer__lr=1.0, schedule__name="constant")
    with Store.create(tmp_path / "store", cache_dir=cache) as store:
        dataset = write_patterns(store, train=12, test=7)
        alone = Trainer(config, store, dataset, run="alone")
        expected = alone.fit()
    environment = {"XDG_CACHE_HOME": str(cache)}
    train_command(3, tmp_path / "store", ["--run-name", "three", *quick_options(config)], environment)
    with Store.open(tmp_path / "store", cache_dir=cache) as store:
        three = checkpoints.load(store, "three")
        model = checkpoints.build_stored_model(three)
        for name, weight in model.state_dict().items():
            assert torch.allclose(weight, alone.model.state_dict()[name], rtol=0, atol=1e-6), name
        (record,) = three.manifest["history"]
        assert record["train_loss"] == pytest.approx(expected.history[0]["train_loss"], abs=1e-6)
        # Three ranks counted the 7 rows as one rank counts them.
        counted = evaluate(model, dataset.split("test"))
        assert record["val_accuracy"] == counted.accuracy
        assert record["val_loss"] == pytest.approx(counted.loss, abs=1e-6)
        assert three.manifest["environment"]["world_size"] == 3
