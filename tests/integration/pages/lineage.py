"""docs/lineage.md: a model that was trained and deployed, and a dataset for a loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field
from tests.integration.docs_blocks import Place
from tests.integration.training_data import quick_config, write_patterns
from trainers.deploy import deploy
from trainers.listing import list_checkpoints
from trainers.loop import Trainer


def setting(place: Place) -> Iterator[None]:
    store = place.store
    Trainer(quick_config(epochs=1), store, write_patterns(store, "mnist"), run="mnist-70b03c44").fit()
    deploy(store, "mnist-70b03c44", "mnist-cnn")
    rng = np.random.default_rng(0)
    field = tensor_field("x", pa.float32(), (4,))
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), field, pa.field("y", pa.float32())])
    columns = [
        pa.array(np.arange(40)),
        tensor_column(field, rng.random((40, 4), np.float32)),
        pa.array(rng.random(40), pa.float32()),
    ]
    place.names |= {"store": store, "ds": place.write("samples", pa.Table.from_arrays(columns, schema=schema))}
    yield
    assert [one.step for one in list_checkpoints(store, "my-run")] == [15, 20]
