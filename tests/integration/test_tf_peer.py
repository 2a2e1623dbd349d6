"""`Dataset.to_tf` in TensorFlow itself: values, types, order, sizes, and a Keras model that is fitted to it.

TensorFlow has an environment of its own (bench/peers/tf_feed.txt), which .ci/run makes: `python -m tests.integration.test_tf_peer`.
Elsewhere these tests are skipped until that was run once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.harness import ROOT, make_peer, peer_place
from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

PEER = "tf_feed"
PLACE = peer_place(PEER)  # before a test gets a cache of its own
ROWS = 1_203
needs_peer = pytest.mark.skipif(
    not (PLACE / "ready").exists(),
    reason="TensorFlow has no environment yet: python -m tests.integration.test_tf_peer",
)


def table() -> pa.Table:
    from loader_data import make_table  # not on the path of `python -m`

    made = make_table(ROWS)
    gaps = pa.array([None if at == 5 else at for at in range(ROWS)])
    return (
        made.append_column("name", pa.array([f"né {at}" for at in range(ROWS)]))
        .append_column("tokens", pa.array([list(range(at % 5)) for at in range(ROWS)], pa.list_(pa.int32())))
        .append_column("struct", pa.array([{"a": at} for at in range(ROWS)]))
        .append_column("gaps", gaps)
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorFlow saw."""
    folder, rows = tmp_path_factory.mktemp("tf"), table()
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        write_dataset(store, "samples", Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), ROWS, {}))
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [PLACE / "bin/python", ROOT / f"bench/peers/{PEER}.py", folder / "store", folder / "out.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


@needs_peer
def test_every_value_stands_in_its_batch(found: dict[str, Any]) -> None:
    rows = table()
    images = rows["image"].combine_chunks().to_numpy_ndarray().tolist()
    assert [len(batch["id"]) for batch in found["batches"]] == [100] * 12 + [3]
    at = 0
    for batch in found["batches"]:
        for row, image in enumerate(batch["image"]):
            expected = rows.slice(at, 1).to_pylist()[0]
            assert image == images[at] and batch["pair"][row] == expected["pair"]
            for name in ("id", "label", "flag", "code", "tokens"):
                assert batch[name][row] == expected[name]
            assert batch["score"][row] == expected["score"] or (
                expected["score"] is None and np.isnan(batch["score"][row])
            )
            assert batch["name"][row].encode("latin-1").decode() == expected["name"]
            assert batch["blob"][row].encode("latin-1") == expected["blob"]
            at += 1
    assert at == ROWS


@needs_peer
def test_types_and_sizes_are_known_before_a_row_is_read(found: dict[str, Any]) -> None:
    assert found["spec"]["image"] == [[None, 3, 4], "uint8"] and found["spec"]["label"] == [[None], "int64"]
    assert found["spec"]["tokens"] == [[None, None], "int32"] and found["spec"]["name"] == [[None], "string"]
    assert found["spec"]["code"] == [[None], "uint16"]
    assert found["steps"] == [13, 12]
    count, *first = found["samples"]
    assert count == ROWS
    assert first == [{"id": at, "tokens": list(range(at)), "name": f"nÃ© {at}"} for at in range(3)]


@needs_peer
def test_a_view_keeps_its_order(found: dict[str, Any]) -> None:
    assert found["view"] == list(range(ROWS))[::-7]


@needs_peer
def test_what_has_no_tensor_is_named(found: dict[str, Any]) -> None:
    assert "column 'struct' of type struct" in found["struct"] and "columns=" in found["struct"]
    assert "column 'gaps' has nulls" in found["gaps"]


@needs_peer
def test_two_epochs_of_fit_see_every_row_twice(found: dict[str, Any]) -> None:
    assert sorted(found["fit"]) == sorted([*range(ROWS), *range(ROWS)])


@needs_peer
def test_fit_takes_the_loader_with_tensorflow_as_the_backend(tmp_path: Path) -> None:
    from test_keras import assert_every_row_in_our_order

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [PLACE / "bin/python", Path(__file__).with_name("keras_run.py"), str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == "tensorflow"
    assert_every_row_in_our_order(found)


def test_without_tensorflow_the_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None\nfrom leptonstore.errors import MissingExtra\n"
        "from leptonstore.dataset import Dataset\n"
        "try:\n    Dataset.to_tf(None)\nexcept MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "leptonstore[tf]"' in done.stdout


if __name__ == "__main__":
    print(make_peer(PEER, shared=True))
