"""What TensorFlow sees of `Dataset.to_tf`, as JSON: run by tests/integration/test_tf_peer.py in an environment of its own.

python tf_feed.py STORE OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from leptonstore.dataset import Dataset
from leptonstore.errors import SchemaError


def plain(value: Any) -> Any:
    """Of a tensor: lists, with text for bytes."""
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    array = value.numpy()
    if isinstance(array, bytes):
        return array.decode("latin-1")
    if array.dtype == object:
        return [item.decode("latin-1") for item in array.tolist()]
    return array.tolist()


def main(store: str, out: str) -> None:
    ds = Dataset.open(store, "samples")
    columns = ["id", "image", "label", "score", "flag", "code", "pair", "name", "blob", "tokens"]
    found: dict[str, Any] = {}
    batches = ds.to_tf(columns, batch_rows=100)
    found["spec"] = {name: [list(spec.shape), spec.dtype.name] for name, spec in batches.element_spec.items()}
    found["batches"] = [{name: plain(value) for name, value in batch.items()} for batch in batches]
    found["steps"] = [int(batches.cardinality()), int(ds.to_tf(["id"], 100, drop_remainder=True).cardinality())]
    samples = ds.to_tf(["id", "tokens", "name"])
    found["samples"] = [int(samples.cardinality()), *({k: plain(v) for k, v in row.items()} for row in samples.take(3))]
    view = ds.select(np.arange(len(ds))[::-7])
    found["view"] = [row for batch in view.to_tf(["id"], 16) for row in plain(batch["id"])]
    for name in ("struct", "gaps"):
        try:
            list(ds.to_tf([name], 10))
        except (SchemaError, tf.errors.OpError) as error:
            found[name] = str(error)

    seen: list[float] = []

    class Seen(keras.Model):
        """Counts the rows that reach it."""

        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            tf.py_function(lambda ids: seen.extend(ids.numpy().tolist()), [inputs[:, 0]], [])
            return self.dense(inputs)

    def pair(batch: Any) -> Any:
        ids = tf.cast(batch["id"], tf.float32)[:, None]
        return ids, ids

    model = Seen()
    model.compile(optimizer="sgd", loss="mse")
    model.fit(ds.to_tf(["id"], 64).map(pair), epochs=2, verbose=0)
    found["fit"] = [int(row) for row in seen]
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
