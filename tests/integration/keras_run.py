"""`model.fit(loader)` on the backend that KERAS_BACKEND names; prints as JSON which rows were trained on.

Run by test_keras.py and test_tf_peer.py: python keras_run.py FOLDER, where the store is made.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import keras
import numpy as np
import pyarrow as pa

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from loaders import DataLoader
from loaders.keras import ExactEpochs

ROWS, SEED = 203, 4


class Training(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes rows from the first epoch on: what Keras looks at before is not trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = False
        self.rows: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun = True

    def pairs(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """The transform of the loader."""
        if self.begun:
            self.rows += pair[0].tolist()
        return pair[0].float()[:, None], pair[1].float()[:, None]


def fitted(ds: Any, state: dict[str, Any] | None, exact: bool) -> list[int]:
    training = Training()
    loader = DataLoader(ds, 32, shuffle=True, seed=SEED, as_tuple=("id", "label"), transform=training.pairs)
    if state is not None:
        loader.load_state_dict(state)
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(loader, epochs=2, verbose=0, callbacks=[training, *([ExactEpochs(loader)] if exact else [])])
    return training.rows


def main(folder: str) -> None:
    table = pa.table({"id": pa.array(np.arange(ROWS)), "label": pa.array(np.arange(ROWS) % 7)})
    with Store.create(folder) as store:
        ds = write_dataset(store, "samples", Source(table.schema, ("id",), lambda: iter(table.to_batches()), ROWS, {}))
        begun = DataLoader(ds, 32, shuffle=True, seed=SEED, as_tuple=("id", "label"))
        batches = iter(begun)
        next(batches), next(batches), next(batches)
        state = begun.state_dict()
        found = {"plain": fitted(ds, None, False), "exact": fitted(ds, None, True), "rest": fitted(ds, state, True)}
    print(json.dumps({"backend": keras.backend.backend(), **found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
