"""Files come from several hands (reading processes, threads, the last version) and stand in the order of the walk all the same."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Dataset, filetree, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.store import Store

NAMES = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map("/".join)
LENGTHS = st.sampled_from([0, 1, 7, 90, 101, 5_000])  # below and above what is read by the processes
TREES = st.dictionaries(NAMES, st.one_of(LENGTHS, st.just("link")), max_size=30)


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_INLINE_BYTES_MAX", 100)
    monkeypatch.setattr(limits, "SMALL_FILES_MIN", 1)
    monkeypatch.setattr(limits, "SMALL_FILES_JOB", 3)
    monkeypatch.setattr(limits, "IMPORT_BATCH_ROWS_MAX", 11)


def write(root: Path, tree: dict[str, int | str], seed: int) -> None:
    """What a file's name takes already is left out."""
    rng = np.random.default_rng(seed)
    for name, length in tree.items():
        place = root / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if length == "link":
                place.symlink_to(name)
            else:
                place.write_bytes(rng.bytes(int(length)))
        except OSError:
            continue


def contents(root: Path) -> dict[bytes, bytes]:
    """Path -> content of files and links."""
    found = {}
    for folder, folders, names in os.walk(os.fsencode(root)):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[os.path.relpath(path, os.fsencode(root))] = os.readlink(path)
            elif os.path.isfile(path):
                found[os.path.relpath(path, os.fsencode(root))] = Path(os.fsdecode(path)).read_bytes()
    return found


@given(TREES, TREES)
@settings(max_examples=15)
def test_each_row_has_its_own_content(first: dict[str, int | str], second: dict[str, int | str]) -> None:
    """Twice: the second time some rows are those of the version before."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        root.mkdir()
        with Store.create(Path(folder) / "store", cache_dir=Path(folder) / "cache") as store:
            for seed, tree in enumerate((first, second)):
                write(root, tree, seed)
                write_dataset(store, "t", open_source(str(root), "files"))
                rows = Dataset.open(store, "t").to_arrow(["path", "kind", "data"]).to_pylist()
                paths = [row["path"] for row in rows[1:]]  # the first is the tree itself
                assert paths == sorted(paths, key=lambda path: path.split(b"/"))
                found = {row["path"]: row["data"] for row in rows if row["kind"] != filetree.DIRECTORY}
                assert found == contents(root)
