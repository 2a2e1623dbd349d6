"""docs/feeds.md: 1,000 rows; eight JAX devices, and Keras on torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_label_field
from tests.integration.docs_blocks import Place

EXTRAS = ("jax", "keras")
OWN_PROCESS = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "KERAS_BACKEND": "torch",
    "KERAS_HOME": os.devnull,
    "OMP_NUM_THREADS": "1",
}


def setting(place: Place) -> Iterator[None]:
    rows, rng = 1_000, np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, rows * 16, np.uint8)), 16)
    columns = {
        "id": pa.array(np.arange(rows)),
        "image": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [4, 4]), pixels),
        "label": pa.array((np.arange(rows) % 10).astype(np.uint8)),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 99, rows * 8, np.int32)), 8),
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    fields[2] = class_label_field("label", [str(digit) for digit in range(10)])
    place.names["ds"] = place.write("samples", pa.table(list(columns.values()), schema=pa.schema(fields)))
    yield
