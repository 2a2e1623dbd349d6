"""The doctor of loaders: what it proposes was tried, is much faster, and is nothing where nothing is slow."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from loader_data import ROWS, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

pytest.importorskip("torch")

from leptonstore.cli.group import lepton
from leptonstore.cli.runtime import run
from loaders.doctor import GAIN_MIN, examine

Make = Callable[..., Source]
SECONDS = 0.1
# Of torch: more threads than this machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def slow(batch: Any) -> Any:
    sleep(0.02)  # long beside what a busy machine adds
    return batch


def test_a_small_arena_is_found(ds: Dataset) -> None:
    options = {"batch_size": 100, "shuffle": True, "columns": ["id", "image", "score"], "arena_bytes_max": 0}
    told: list[str] = []
    found = examine(ds, options, seconds=SECONDS, tell=told.append, cores=1)
    assert found.change is not None and found.change.gain >= GAIN_MIN
    assert found.change.name == f"arena_bytes_max={ROWS * (8 + 12 + 4)}"
    tried = [trial.name for trial in found.trials if not trial.error and trial.gain > 0]
    assert tried == [found.change.name, "num_workers=1", "dataset.cached(place)", "order=BlockShuffle()"]
    assert "'id'" in found.verdict and "read batch by batch" in found.verdict
    assert set(found.columns) == {"id", "image", "score"} and "fetch" in found.alone.stages
    assert told[:4] == ["as it is, from the start", "as it is", "the same batch again", "stage by stage"]
    assert json.loads(json.dumps(found.to_dict()))["change"]["name"] == found.change.name


def fails(batch: Any) -> Any:
    if threading.current_thread() is not threading.main_thread():
        raise TypeError("only in the main thread")
    return slow(batch)


def test_a_change_that_fails_is_told_and_not_proposed(ds: Dataset) -> None:
    found = examine(ds, {"batch_size": 100, "columns": ["id"], "transform": fails}, seconds=SECONDS, cores=2)
    assert found.change is None or found.change.name != "num_workers=2"
    (trial,) = [trial for trial in found.trials if trial.name == "num_workers=2"]
    assert trial.error == "only in the main thread" and trial.gain == 0


def test_threads_are_proposed_where_they_help(ds: Dataset) -> None:
    options = {"batch_size": 100, "columns": ["id"], "transform": slow}
    found = examine(ds, options, seconds=3 * SECONDS, cores=3)
    assert found.change is not None and found.change.name == "num_workers=3"
    assert found.change.gain > 1.5 and "transform takes" in found.verdict
    assert found.floor.batch_s < found.alone.batch_s


def test_a_step_that_never_waits_is_left_alone(ds: Dataset) -> None:
    found = examine(ds, {"batch_size": 100, "columns": ["id", "image"]}, step_s=0.03, seconds=SECONDS)
    assert found.change is None and found.trials == ()
    assert found.verdict.startswith("nothing to change: steps wait")


def test_a_loader_of_hot_columns_has_nothing_to_change(ds: Dataset) -> None:
    found = examine(ds, {"batch_size": 100, "columns": ["id"]}, seconds=SECONDS)
    assert found.change is None and "order" in found.alone.stages and "gather" in found.alone.stages


def test_the_command_prints_before_and_after(tmp_path: Path, source_of: Make, capsys: Any) -> None:
    with Store.create(tmp_path / "store") as store:
        write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))
        write_dataset(store, "nothing", source_of(make_table(0), ("id",)))
    where = ["--store", str(tmp_path / "store"), "--no-cache"]

    def doctor(*arguments: str, code: int = 0) -> str:
        assert run(lepton, ["doctor", "loader", *where, "--seconds", "0.1", *arguments]) == code
        told = capsys.readouterr()
        return str(told.err if code else told.out)

    text = doctor("samples", "--columns", "id", "--transform", f"{__name__}:slow")
    assert "the same batch again" in text and "transform " in text and "tried num_workers=" in text
    told = json.loads(doctor("samples", "--columns", "id,label", "--step-ms", "30", "--json").splitlines()[-1])
    assert told["change"] is None and told["verdict"].startswith("nothing to change")
    for arguments, code, message in [
        (["samples", "--columns", "nope"], 2, "no column 'nope'"),
        (["others"], 3, "no dataset 'others'"),
        (["nothing"], 2, "no rows"),
        (["samples", "--transform", "nowhere:f"], 2, "cannot load 'nowhere:f'"),
        (["samples", "--transforms", f"{__name__}:SECONDS"], 2, "is no {column:"),
    ]:
        assert message in doctor(*arguments, code=code)
