"""Keras 3 takes the loader as it is: `fit`, `evaluate` and `predict` over DataLoader, with torch as its backend."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loader_data import make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")  # decided when Keras is imported
os.environ.setdefault("KERAS_HOME", os.devnull)  # no file of settings in the user's home
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras has another backend")

from loaders import DataLoader, LoaderStateError, Order  # noqa: E402
from loaders.keras import ExactEpochs  # noqa: E402

ROWS = 203
Make = Callable[..., Source]


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


class Seen(keras.Model):  # type: ignore[misc]
    """A linear model of one number that notes the numbers it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.rows: list[int] = []

    def call(self, inputs: Any) -> Any:
        if inputs.device.type != "meta":  # Keras traces shapes before it begins
            self.rows += inputs.reshape(-1).tolist()
        return self.dense(inputs / 100)


def column(pair: tuple[Any, ...]) -> tuple[Any, ...]:
    rows, target, *more = pair
    return (rows.float()[:, None], target.float()[:, None], *more)


def model() -> Any:
    made = Seen()
    made.compile(optimizer="sgd", loss="mse")
    made(torch.zeros(1, 1))
    made.rows.clear()
    return made


def epoch_rows(epoch: int) -> list[int]:
    return Order(ROWS, 4, epoch).rows_at(0, ROWS).tolist()


def make(ds: Dataset, **options: Any) -> Any:
    return DataLoader(ds, 32, shuffle=True, seed=4, as_tuple=("id", "label"), transform=column, **options)


WORKERS = pytest.mark.parametrize("options", [{}, {"arena_bytes_max": 0, "num_workers": 2}])


@WORKERS
def test_two_epochs_of_fit_see_every_row_twice(ds: Dataset, options: dict[str, Any]) -> None:
    fitted = model()
    history = fitted.fit(make(ds, **options), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
    first, second = fitted.rows[:ROWS], fitted.rows[ROWS:]
    assert sorted(first) == sorted(second) == list(range(ROWS)) and first != second


@WORKERS
def test_with_the_callback_they_are_the_loaders_epochs(ds: Dataset, options: dict[str, Any]) -> None:
    loader, fitted = make(ds, **options), model()
    callback = ExactEpochs(loader)
    fitted.fit(loader, epochs=2, verbose=0, callbacks=[callback])
    assert fitted.rows == epoch_rows(0) + epoch_rows(1)
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (2, 0)
    fitted.fit(loader, epochs=1, verbose=0, callbacks=[callback])
    assert fitted.rows[2 * ROWS :] == epoch_rows(2)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_with_the_callback_fit_goes_on_in_mid_epoch(ds: Dataset) -> None:
    """The very rest of the epoch, although Keras looks at a batch before it trains."""
    first = make(ds)
    for _ in zip(range(3), first, strict=False):
        pass
    state = first.state_dict()
    assert state["consumed"] == 96
    loader, fitted = make(ds), model()
    loader.load_state_dict(state)
    fitted.fit(loader, epochs=2, verbose=0, callbacks=[ExactEpochs(loader)])
    assert fitted.rows == epoch_rows(0)[96:] + epoch_rows(1)


def test_a_loader_of_torch_is_refused_by_the_callback() -> None:
    with pytest.raises((ValueError, LoaderStateError)):
        ExactEpochs(DataLoader(torch.utils.data.TensorDataset(torch.arange(3))))


def test_the_mask_is_a_sample_weight(ds: Dataset) -> None:
    """An evaluation in static shapes is exact: padded rows weigh nothing, real ones 1."""
    evaluated = model()
    evaluated.compile(optimizer="sgd", loss="mse", weighted_metrics=["mse"])
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    errors = (np.asarray(evaluated.predict(rows, verbose=0)) - (np.arange(ROWS) % 7)[:, None]) ** 2
    loader = DataLoader(ds, 32, pad=True, as_tuple=("id", "label", "_valid"), transform=column)
    found = evaluated.evaluate(loader, verbose=0, return_dict=True)
    assert found["mse"] == pytest.approx(errors.mean(), rel=1e-5)


def test_predictions_come_in_order(ds: Dataset) -> None:
    predicting = model()
    loader = DataLoader(ds, 32, as_tuple=("id",), transform=lambda batch: batch[0].float()[:, None])
    found = predicting.predict(loader, verbose=0)
    assert found.shape == (ROWS, 1)
    assert predicting.rows == list(range(ROWS))


def assert_every_row_in_our_order(found: dict[str, Any]) -> None:
    """Of what keras_run.py prints."""
    plain = found["plain"]
    assert sorted(plain[:ROWS]) == sorted(plain[ROWS:]) == list(range(ROWS))
    assert found["exact"] == epoch_rows(0) + epoch_rows(1)
    assert found["rest"] == epoch_rows(0)[96:] + epoch_rows(1)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_with_jax_as_the_backend_too(tmp_path: Path) -> None:
    """In a process of its own: JAX does not like to be forked, which other tests do."""
    script = Path(__file__).with_name("keras_run.py")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, script, str(tmp_path / "other")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == "jax"
    assert_every_row_in_our_order(found)
