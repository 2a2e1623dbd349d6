"""`lepton analyse` as people use it: one readable line a column, drift against the parent, JSON, and mistakes told in a line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from command_line import ran, told

from leptonstore import errors
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import class_label_field
from leptonstore.store import Store


def rows(count: int, shift: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(shift, 1, count)
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            ("x", pa.float64()),
            ("twice", pa.float64()),
            ("text", pa.string()),
            class_label_field("label", ["cat\x1b[31m", "dog"]),
        ]
    )
    arrays = [
        pa.array(np.arange(count)),
        pa.array(x, mask=rng.random(count) < 0.1),
        pa.array(2 * x),
        pa.array(["first\nsecond"] * count),
        pa.array((rng.random(count) < 0.25).astype(np.uint8)),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@pytest.fixture(autouse=True)
def _dataset(store: Store, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_STORE", store.url)
    write_dataset(store, "d", source_of(rows(2_000), ("id",)))


def test_each_column_is_told(store: Store) -> None:
    output = ran("analyse", "d").stdout
    assert "2,000 rows" in output and "drift" not in output
    (line,) = [line for line in output.splitlines() if line.strip().startswith("x ")]
    assert "double" in line and "nulls" in line and "median" in line and "█" in line
    assert "correlated: x and twice +1.000" in output
    assert "classes of label" in output and "dog" in output
    assert (
        "\x1b" not in output and "first\nsecond" not in output
    )  # what came from the data does nothing to the terminal


def test_drift_against_the_parent_is_marked(store: Store, source_of: Callable[..., Source]) -> None:
    write_dataset(store, "d", source_of(rows(2_000, shift=3.0), ("id",)))
    output = ran("analyse", "d").stdout
    assert "drift against d@main~1" in output and "much x (values): PSI" in output
    found = told("analyse", "d")["drift"]
    assert {one["name"] for one in found["columns"] if one["level"] == "much"} == {"x", "twice"}
    assert "drift against d@main~1" in ran("analyse", "d", "--vs", "d@main~1").stdout
    assert told("analyse", "d", "--vs", "none")["drift"] is None
    assert "drift against d@main (" in ran("analyse", "d@main~1", "--vs", "d").stdout
    assert "none" in ran("analyse", "d", "--vs", "d").stdout.splitlines()[-1]


def test_json_has_all(store: Store) -> None:
    found = told("analyse", "d", "--columns", "x,label", "--column", "text")
    assert [column["name"] for column in found["columns"]] == ["x", "label", "text"]
    x = found["columns"][0]
    assert x["numeric"]["count"] + x["nulls"] == 2_000 and len(x["numeric"]["quantiles"]) == 7
    assert found["reused"] == 0 and told("analyse", "d", "--column", "x")["reused"] == 1
    assert told("analyse", "d", "--column", "x", "--again")["reused"] == 0


def test_mistakes_are_told() -> None:
    assert "no column 'z'" in str(ran("analyse", "d", "--column", "z", fails=errors.SchemaError).exception)
    ran("analyse", "nothing", fails=errors.RefMissing)
    ran("analyse", "d", "--vs", "d@nothing", fails=errors.RefMissing)
