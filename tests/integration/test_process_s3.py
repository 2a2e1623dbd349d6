"""Pipelines over a store in a bucket: every worker reads from it and writes its own packs to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.engine import Runner
from leptonstore.process.operations.mask_pii import MaskPii
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store, check_store

SourceOf = Callable[..., Source]
OPERATIONS = [Duplicates(columns=["text"], action="drop"), MaskPii("text", kinds=["email"])]


def table(rows: int) -> pa.Table:
    texts = [f"write to someone{row % (rows - 50)}@example.org " * (500 if row % 97 == 0 else 2) for row in range(rows)]
    return pa.table({"id": pa.array(range(rows)), "text": texts})


@pytest.mark.parametrize("runner", [Runner("native"), Runner("ray", workers=2)], ids=["native", "ray"])
def test_a_store_in_a_bucket_is_read_and_written_by_its_workers(
    bucket_url: str, tmp_path: Path, source_of: SourceOf, runner: Runner
) -> None:
    with Store.create(tmp_path / "here") as here:
        write_dataset(here, "texts", source_of(table(6_000), ("id",)))
        expected = Pipeline("texts", OPERATIONS, "made").run(here).dataset.commit
    with Store.create(bucket_url, cache_dir=tmp_path / "cache") as store:
        write_dataset(store, "texts", source_of(table(6_000), ("id",)))
        result = Pipeline("texts", OPERATIONS, "made").run(store, runner)
        assert result.dataset.commit == expected and result.dropped() == {"check.duplicates": 49}
        assert check_store(store, True).clean
        assert len(Dataset.open(store, "made").to_arrow()) == 5_951
