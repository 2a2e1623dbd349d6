"""Pipelines on a Ray cluster of two workers: the commit, findings and counts of the native runner."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("ray")
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from process_data import write

from leptonstore import limits
from leptonstore.errors import OperationFailed
from leptonstore.process.engine import Runner, cluster
from leptonstore.process.operations.function import Function
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import operation_named
from leptonstore.store import Store

ROWS = 12_000
RAY = Runner("ray", workers=2)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    before = limits.ENGINE_TASK_ROWS
    limits.ENGINE_TASK_ROWS = 2_000  # many ranges in a small dataset
    yield
    limits.ENGINE_TASK_ROWS = before
    cluster.disconnect()


def pipeline(into: str, on_error: str = "quarantine") -> Pipeline:
    """Rows that fail, verdicts, findings, large values, groups of columns that are looked up."""
    operations = [
        Function("pipeline_functions:picky", ["text"], {"size": "int32"}),
        operation_named("check.near_duplicate_texts", {"column": "text", "action": "drop"}),
        Function("pipeline_functions:shouted", ["text"], {"loud": "large_string"}),
        operation_named("rows.split", {}),
    ]
    return Pipeline("texts", operations, into, on_error)


def test_two_workers_make_the_commit_of_the_native_runner(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(__file__).parents[1] / "unit")
    monkeypatch.setenv("PYTHONPATH", folder)  # of the workers, too
    words = [
        f"the {row} of {row * 7 % 1000} and {row * 31 % 977} is {row * row % 4001} of words" for row in range(ROWS)
    ]
    words[500] = words[400]
    words[77] = "bad"
    words[9_000] = "long " * 5_000
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    write(store, "texts", pa.table([pa.array(range(ROWS)), pa.array(words)], schema=schema), ["id"])
    native = pipeline("native").run(store, Runner("native"), memo=False)
    ours = pipeline("ours").run(store, RAY)
    assert ours.dataset.commit == native.dataset.commit
    assert ours.findings.equals(native.findings) and ours.counts == native.counts
    assert ours.dropped() == native.dropped() and ours.dropped()["failed"] == 1
    assert ours.computed + ours.reused == native.computed + native.reused > 2 * ROWS
    with pytest.raises(OperationFailed, match="failed on row 77 of texts@main: KeyError") as caught:
        pipeline("never", "raise").run(store, RAY)
    assert caught.value.row == 77 and caught.value.operation == "pipeline_functions:picky"
