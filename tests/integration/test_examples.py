"""The examples go all the way on little data, and their configurations are what `lepton train --config` takes."""

from __future__ import annotations

import math
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import examples
from trainers.config import from_dict
from trainers.config_tree import read_toml
from trainers.examples import finetune, pictures, text
from trainers.examples.corpus import library_source

FOLDER = Path(examples.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_example_has_help_without_torch_and_a_configuration_that_is_one() -> None:
    assert NAMES == ["finetune", "pictures", "text"]
    for name in NAMES:
        command = import_module(f"trainers.examples.{name}").main
        assert "--workdir" in CliRunner().invoke(command, ["--help"]).output
        from_dict(read_toml(FOLDER / f"{name}.toml"))
    said = "import sys, trainers.examples.text, trainers.examples.pictures, trainers.examples.finetune; "
    said += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0


def test_a_transformer_learns_the_standard_library_and_writes(store: Store, tmp_path: Path) -> None:
    found = text.run(store, tmp_path / "page.html", "def ", 30, bytes_max=60_000, epochs=1, layers=1)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["perplexity"] < 256 / 4  # of 256 bytes, far fewer are in question
    assert found["text"].startswith("def ") and len(found["text"].encode()) >= 34
    assert text.continued(store, "def ", 30) == text.continued(store, "def ", 30)
    assert "Passages" in (tmp_path / "page.html").read_text()


def test_the_corpus_is_what_the_files_hold(store: Store) -> None:
    source = library_source(40_000)
    paths = [path for batch in source.batches() for path in batch.column("path").to_pylist()]
    tokens = [bytes(one) for batch in source.batches() for one in batch.column("tokens").to_pylist()]
    assert paths == sorted(paths) and len(paths) == source.rows
    root = Path(sysconfig.get_paths()["stdlib"])
    assert all((root / path).read_bytes() == one for path, one in zip(paths, tokens, strict=True))
    assert sum(map(len, tokens)) <= 40_000


def test_a_resnet_tells_two_photographs_apart(store: Store, tmp_path: Path) -> None:
    found = pictures.run(store, tmp_path, tiles=60, epochs=2)
    assert found["rows"] == 30 and found["accuracy"] > 0.5
    ds = Dataset.open(store, "photographs")
    assert ds[0]["image"][:2] == b"\xff\xd8"  # files as they are
    predicted = Dataset.open(store, "photographs@predictions")
    assert {"predicted", "confidence"} <= set(predicted.column_names)
    assert predicted.stats().stored_bytes < ds.stats().stored_bytes * 1.1  # no image was copied


def test_a_frozen_backbone_is_stored_once(store: Store, tmp_path: Path) -> None:
    found = finetune.run(store, tmp_path, epochs=2, backbone_epochs=1)
    first, second = checkpoints.load(store, finetune.FIRST), checkpoints.load(store, finetune.SECOND)
    for path in second.manifest["tensors"]:
        if path.startswith(("model/network.stem", "model/network.blocks", "model/network.norm")):
            assert torch.equal(first.tensor(path), second.tensor(path))
    assert first.tensor("model/network.head.bias").shape == (6,)
    assert second.tensor("model/network.head.bias").shape == (4,)
    assert found["added_bytes"] < 0.12 * found["checkpoint_bytes"]
    assert second.manifest["init"]["drawn"] == ["network.head.weight", "network.head.bias"]
