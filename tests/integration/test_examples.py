"""The examples go all the way on little data, and their configurations are what `lepton train --config` takes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click import ClickException
from click.testing import CliRunner

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.errors import SourceError
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import examples
from trainers.config import from_dict
from trainers.config_tree import read_toml
from trainers.examples import finetune, images, medical, segmentation, text
from trainers.examples.common import better
from trainers.examples.corpus import docstrings
from trainers.examples.jpegs import photograph_tiles
from trainers.examples.phantoms import read_volume, volumes, write_phantoms

FOLDER = Path(examples.__file__).parent
FIELDS = ("images", "medical", "text")  # each has --store and --quick
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_example_has_help_without_torch_and_a_configuration_that_is_one() -> None:
    assert NAMES == ["finetune", "images", "text"]
    for name in NAMES:
        from_dict(read_toml(FOLDER / f"{name}.toml"))
    for name in (*NAMES, *FIELDS):
        said = CliRunner().invoke(import_module(f"trainers.examples.{name}").main, ["--help"]).output
        assert all(option in said for option in ("--workdir", *(("--store", "--quick") if name in FIELDS else ())))
    said = f"import sys, {', '.join(f'trainers.examples.{name}' for name in (*NAMES, *FIELDS))}; "
    said += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0


def test_a_transformer_learns_docstrings_and_writes(store: Store, tmp_path: Path) -> None:
    found = text.run(store, tmp_path, quick=True)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["perplexity"] < found["unigram"] and found["bigram"] < found["unigram"]
    assert found["text"].startswith("Return the") and "<|endoftext|>" not in found["text"]
    assert text.continued(store, tmp_path / "tokenizer.json", "Return the", 60) == found["text"]
    cleaned = Dataset.open(store, "docstrings@clean").to_arrow()
    texts, sides = (
        cleaned["text"].to_pylist(),
        list(zip(cleaned["module"].to_pylist(), cleaned["split"].to_pylist(), strict=True)),
    )
    assert len(set(texts)) == len(texts)
    assert len(set(sides)) == len({module for module, _ in sides})  # a module is on one side
    assert (tmp_path / "report.html").exists()


def test_the_corpus_is_what_the_files_say(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text('"""The package.\n\n    Indented."""\n')
    code = 'class A:\n    """A class."""\n    def f(self):\n        """  A method. """\n    async def g(self): ...\n'
    (tmp_path / "package" / "a.py").write_text(code)
    (tmp_path / "broken.py").write_text("def (")
    source = docstrings(10_000, tmp_path)
    rows = [tuple(row.values()) for batch in source.batches() for row in batch.to_pylist()]
    assert len(rows) == 3 and set(rows) == {
        ("package:", "package", "The package.\n\nIndented."),
        ("package.a:A", "package.a", "A class."),
        ("package.a:A.f", "package.a", "A method."),
    }
    with pytest.raises(SourceError, match="no Python file with a docstring"):
        docstrings(10_000, tmp_path / "package" / "none")


def test_a_resnet_tells_two_photographs_apart(store: Store, tmp_path: Path) -> None:
    found = images.run(store, tmp_path, quick=True)
    assert found["accuracy"] > found["baseline"] >= 0.5
    raw, ready = Dataset.open(store, "photographs@raw"), Dataset.open(store, "photographs@ready")
    paths = set(ready.to_arrow(["path"])["path"].to_pylist())
    gone = set(raw.to_arrow(["path"])["path"].to_pylist()) - paths
    assert any("cut-off" in path for path in gone) and any("again" in path for path in gone)
    # Of a tile and its copy one is left, so that no picture is on both sides: but of plain sky, in which there is nothing to compare.
    copies = [path for path in gone | paths if "again" in path]
    left = [path for path in copies if path in paths and path.replace("_again.jpg", ".png") in paths]
    assert len(left) < len(copies) / 3
    starts = {image[:4] for image in ready.to_arrow(["image"])["image"].to_pylist()}
    assert starts == {b"\xff\xd8\xff\xe0", b"\x89PNG"}  # files as they are
    predicted = Dataset.open(store, "photographs@predictions")
    assert {"predicted", "confidence"} <= set(predicted.column_names)
    assert predicted.stats().stored_bytes < ready.stats().stored_bytes * 1.1  # no image was copied


def test_pictures_that_come_later_move_none_to_the_other_side(store: Store, tmp_path: Path) -> None:
    def sides(every: int) -> dict[str, int]:
        photograph_tiles(tmp_path / "pictures", every)
        write_dataset(store, images.DATASET, open_source(str(tmp_path / "pictures")), branch="raw")
        table = images.clean(store).dataset.to_arrow(["path", "split"])
        return dict(zip(table["path"].to_pylist(), table["split"].to_pylist(), strict=True))

    few, many = sides(4), sides(2)
    both = few.keys() & many.keys()
    assert len(many) > len(few) and len(both) > 0.8 * len(few)
    assert {path: few[path] for path in both} == {path: many[path] for path in both}


def test_an_organ_is_found_in_volumes_and_a_patient_is_erased(store: Store, tmp_path: Path) -> None:
    found = medical.run(store, tmp_path, quick=True, workers=0)
    assert found["dice"] > found["baseline"] > 0
    assert found["slab_bytes"] < found["scan_bytes"] / 2
    assert found["ratio"] > 1.5
    ready = Dataset.open(store, "ct@ready")
    sides = {name: set(ready.split(name).to_arrow(["patient"])["patient"].to_pylist()) for name in ready.splits()}
    assert all(sides.values()) and sides["train"].isdisjoint(sides["val"])
    table = ready.to_arrow(["orientation", "spacing_mm", "patient"])
    assert set(table["orientation"].to_pylist()) == {"LPS", "RAS"}
    assert len({tuple(spacing) for spacing in table["spacing_mm"].to_pylist()}) > len(set(table["patient"].to_pylist()))
    report = found["report"]
    assert report.absent and len(report.replaced) == 2 and report.searched.records > 0
    for name in ("ct", "ct@ready"):
        assert found["erased"] not in Dataset.open(store, name).to_arrow(["patient"])["patient"].to_pylist()
    again = write_dataset(store, "ct-again", volumes(tmp_path / "scans"))
    scan = np.load(tmp_path / "scans" / found["erased"] / "study-0.npy")
    assert np.array_equal(
        read_volume(again, found["erased"], "study-0"), scan
    )  # the files are not the store's to erase


def test_training_on_volumes_goes_on_where_it_was_stopped(store: Store, tmp_path: Path) -> None:
    write_phantoms(tmp_path, 4)
    rows = write_dataset(store, "ct", volumes(tmp_path))
    segmentation.fit(store, rows, "stopped", 12, max_steps=7)
    stopped, _ = segmentation.fit(store, rows, "stopped", 12)
    whole, _ = segmentation.fit(store, rows, "whole", 12)
    assert all(map(torch.equal, stopped.state_dict().values(), whole.state_dict().values()))


def test_the_best_range_is_the_best_of_all_ranges(store: Store, tmp_path: Path) -> None:
    values = np.array([[[10, 20, 30, 40, 50, 20]]], np.int16)
    (tmp_path / "P0").mkdir()
    (tmp_path / "P0" / "s.json").write_text('{"modality": "CT", "spacing_mm": [1, 1, 1], "orientation": "LPS"}')
    np.save(tmp_path / "P0" / "s.npy", values)
    np.save(tmp_path / "P0" / "s.organ.npy", np.array([[[0, 1, 1, 0, 0, 1]]], np.uint8))
    low, high = segmentation.best_range(write_dataset(store, "ct", volumes(tmp_path)))
    assert 10 < low <= 20 and 30 <= high < 40


def test_a_result_that_is_no_better_than_the_baseline_is_an_error() -> None:
    assert better("accuracy", 0.9, 0.5, "a guess") == "accuracy 0.9 (baseline 0.5: a guess)"
    assert "2 (baseline 3" in better("perplexity", 2, 3, "a count", lower=True)
    for found, baseline, lower in ((0.5, 0.5, False), (3.0, 2.0, True), (math.nan, 0.5, False), (math.nan, 0.5, True)):
        with pytest.raises(ClickException, match="nothing was learnt"):
            better("accuracy", found, baseline, "a guess", lower)


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
