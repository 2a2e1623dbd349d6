"""The examples of docs/feeds.md do what the page says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import class_label_field
from leptonstore.store import Store

LACKING = [name for name in ("torch", "jax", "keras") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
PAGE = Path(__file__).parents[2] / "docs" / "feeds.md"


def test_the_examples_run(tmp_path: Path) -> None:
    rows = 1_000
    rng = np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, rows * 16, np.uint8)), 16)
    columns = {
        "id": pa.array(np.arange(rows)),
        "image": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [4, 4]), pixels),
        "label": pa.array((np.arange(rows) % 10).astype(np.uint8)),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 99, rows * 8, np.int32)), 8),
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    fields[2] = class_label_field("label", [str(digit) for digit in range(10)])
    table = pa.table(list(columns.values()), schema=pa.schema(fields))
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        write_dataset(store, "samples", Source(table.schema, ("id",), lambda: iter(table.to_batches()), rows, {}))
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": os.devnull,
    }
    command = [sys.executable, Path(__file__).with_name("feeds_run.py"), PAGE, tmp_path / "store"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == PAGE.read_text().count("```python\n")
