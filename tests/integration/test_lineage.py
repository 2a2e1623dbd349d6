"""A model names its checkpoint, that the data and the code, and the data what it was made of, back to the files that were imported."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from training_data import patterns, quick_config, write_patterns

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, delete_ref, list_refs, write_dataset, write_files
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.lineage import Link, find, lineage
from leptonstore.digest import digest_of
from leptonstore.errors import RefMissing
from leptonstore.process.preprocess import prepare
from leptonstore.store import Store
from leptonstore.store.gc import collect
from loaders.receipt import Receipt
from loaders.verify import replay_of
from trainers import checkpoint as checkpoints
from trainers import provenance
from trainers.deploy import deploy, load_bundle
from trainers.loop import Trainer
from trainers.predict import predict_dataset
from trainers.tasks import split_dataset


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as opened:
        yield opened


def idx_files(folder: Path) -> dict[str, bytes]:
    """Images and labels as IDX files, one of them packed: name -> what lies on the disk."""
    images, labels = patterns(60)
    folder.mkdir()
    found = {
        "train-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes(),
        "train-labels-idx1-ubyte.gz": gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels.tobytes()),
    }
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return found


@pytest.fixture
def model(store: Store, tmp_path: Path) -> dict[str, bytes]:
    """Imported, prepared, trained, deployed; the files that it all began with."""
    files = idx_files(tmp_path / "raw")
    raw = write_dataset(store, "six", open_source(tmp_path / "raw", "idx"), branch="raw")
    prepared = prepare(store, raw, branch="prepared")
    Trainer(quick_config(epochs=1), store, prepared, run="run").fit()
    deploy(store, "run", "net")
    return files


def of_kind(links: list[Link], kind: str) -> list[Link]:
    return [link for link in links if link.kind == kind]


def test_a_model_leads_back_to_the_files_that_were_imported(store: Store, model: dict[str, bytes]) -> None:
    links, more = lineage(store, "net")
    assert [(link.kind, link.name, link.operation) for link in links] == [
        ("model", "net@main", "deploy"),
        ("checkpoint", "run@step-000000005", "train"),
        ("dataset", "six@prepared", "prepare"),
        ("dataset", "six@raw", "import of idx"),
    ]
    assert more == 0 and not any(link.missing for link in links)
    told = {file["name"]: file["digest"] for file in links[-1].files}
    assert told == {name: digest_of(data).hex() for name, data in model.items()}
    checkpoint = links[1].lineage
    assert checkpoint["config"]["epochs"] == 1 and checkpoint["data"]["training"]["commit"] == links[2].digest
    assert checkpoint["provenance"]["stretches"][0]["code"]["modules"]["trainers.models"]["digest"]
    assert checkpoint["environment"]["numpy"] == np.__version__
    assert checkpoint["loader"]["epoch"] == 1 and checkpoint["receipt"]["steps"] == 5
    assert "val_accuracy" in links[1].metrics
    assert links[0].lineage["receipt"] == {key: checkpoint["receipt"][key] for key in ("head", "steps")}
    assert links[0].lineage["provenance"] == checkpoint["provenance"]


def test_predictions_lead_to_the_model_and_to_the_data(store: Store, model: dict[str, bytes]) -> None:
    predict_dataset(store, load_bundle(store, "net"), Dataset.open(store, "six@prepared"))
    links, _ = lineage(store, "six@predictions")
    assert {origin.kind for origin in links[0].origins} == {"dataset", "model"}
    assert {link.name for link in links} >= {
        "six@predictions",
        "six@prepared",
        "net@main",
        "run@step-000000005",
        "six@raw",
    }
    assert len({link.digest for link in links}) == len(links), "each once, however many name it"


def test_a_checkpoint_that_was_let_go_is_told_and_its_data_still_found(store: Store, model: dict[str, bytes]) -> None:
    for ref in list_refs(store, "checkpoint", "run"):
        delete_ref(store, "checkpoint", "run", ref.branch)
    collect(store)
    links, _ = lineage(store, "net")
    gone = of_kind(links, "checkpoint")
    assert len(gone) == 1 and "removed" in gone[0].missing and gone[0].name == "run@step-000000005"
    assert [link.name for link in of_kind(links, "dataset")] == ["six@prepared", "six@raw"]


def test_forgotten_history_is_told(store: Store, tmp_path: Path) -> None:
    for rows in (50, 60, 70):
        write_patterns(store, "grown", train=rows)
    forget_all_but(store, "dataset", "grown", 2)
    links, _ = lineage(store, "grown")
    assert [bool(link.missing) for link in links[:2]] == [False, False]
    assert "forgotten" in links[1].note


def test_fine_tuning_leads_to_the_run_that_it_began_with(store: Store) -> None:
    ds = write_patterns(store)
    Trainer(quick_config(epochs=1), store, ds, run="first").fit()
    Trainer(quick_config(epochs=1, model__init="first"), store, ds, run="tuned").fit()
    links, _ = lineage(store, "tuned")
    first = next(link for link in links[1:] if link.kind == "checkpoint")
    assert (first.name, first.digest) == ("first@step-000000005", checkpoints.load(store, "first").commit)


def test_a_limit_says_how_many_are_left(store: Store) -> None:
    for rows in range(50, 56):
        write_patterns(store, "grown", train=rows)
    links, more = lineage(store, "grown", limit=4)
    assert (len(links), more) == (4, 1)


def test_a_run_is_found_by_name_step_and_tag(store: Store, model: dict[str, bytes]) -> None:
    newest = checkpoints.load(store, "run").commit
    for spec in ("run", "checkpoint/run", "run@5", "run@step-000000005", f"run@{newest[:12]}"):
        assert find(store, spec)[2] == newest
    with pytest.raises(RefMissing, match=r"nothing.*there is: "):
        find(store, "nothing")
    with pytest.raises(RefMissing, match="runs with checkpoints: run"):
        find(store, "nothing", "checkpoint")


def test_the_command_prints_the_chain_and_its_json(store: Store, model: dict[str, bytes], tmp_path: Path) -> None:
    store.flush()
    done = CliRunner().invoke(lepton, ["lineage", "net", "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    for text in (
        "model net@main",
        "checkpoint run@step-000000005",
        "dataset six@raw",
        "train-images-idx3-ubyte",
        "BLAKE3",
        "seed 0",
    ):
        assert text in done.output or text == "BLAKE3"
    told = json.loads(
        CliRunner().invoke(lepton, ["lineage", "net", "--json", "--store", str(tmp_path / "store")]).stdout
    )
    assert [link["kind"] for link in told["links"]] == ["model", "checkpoint", "dataset", "dataset"]
    assert told["not_followed"] == 0 and told["links"][3]["files"][0]["digest"]


# -- what a checkpoint carries -----------------------------------------------------------------------------------------


def receipt_of(checkpoint: checkpoints.Checkpoint) -> Receipt:
    return Receipt.from_dict(checkpoint.manifest["receipt"])


def test_the_receipt_of_a_checkpoint_holds_and_is_that_of_the_whole_run(store: Store) -> None:
    ds = write_patterns(store)
    config = quick_config()
    Trainer(config, store, ds, run="run").fit(max_steps=7)
    Trainer(config, store, ds, run="run").fit(resume=True)
    receipt = receipt_of(checkpoints.load(store, "run"))
    assert (receipt.steps, receipt.base_steps) == (15, 0)
    assert [(segment.epoch, segment.steps) for segment in receipt.segments] == [(0, 5), (1, 5), (2, 5)]
    checked = replay_of(receipt, split_dataset(ds, config.data)[0]).verify()
    assert (checked.steps, checked.rows) == (15, 150)


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits this project while its tests run changes the code in the middle of a run, and would be told so."""
    monkeypatch.setattr(provenance, "code_revision", lambda *arguments: {"leptonstore": "1"})


@pytest.mark.usefixtures("same_code")
@pytest.mark.parametrize("at", [1, 5, 7])
def test_a_run_that_was_interrupted_ends_with_the_very_same_commit(tmp_path: Path, at: int) -> None:
    """Time, host and metrics stand beside the commit: nothing in it says that the run was resumed where it had been."""
    commits = []
    for stops in ((), (at,)):
        folder = tmp_path / f"stops-{len(stops)}"
        with Store.create(folder / "store", cache_dir=folder / "cache") as store:
            ds, config = write_patterns(store), quick_config()
            for steps in stops:
                Trainer(config, store, ds, run="run").fit(max_steps=steps)
            commits.append(Trainer(config, store, ds, run="run").fit(resume=bool(stops)).checkpoint)
    assert commits[0] == commits[1]


@pytest.mark.usefixtures("same_code")
def test_another_environment_begins_a_stretch(store: Store) -> None:
    ds = write_patterns(store)
    Trainer(quick_config(), store, ds, run="run").fit(max_steps=7)
    Trainer(quick_config(threads=2), store, ds, run="run").fit(resume=True)
    stretches = checkpoints.load(store, "run").manifest["provenance"]["stretches"]
    assert [(one["step"], one["environment"]["threads"]) for one in stretches] == [(0, 1), (7, 2)]


def test_a_manifest_of_before_there_were_receipts_goes_on(store: Store) -> None:
    ds = write_patterns(store)
    Trainer(quick_config(), store, ds, run="run").fit(max_steps=7)
    saved = checkpoints.load(store, "run")
    files = [(path, saved.files.read(path)) for path in saved.files.paths()]
    before = {key: value for key, value in saved.files.lineage.items() if key not in ("receipt", "provenance")}
    write_files(store, "checkpoint", "run", files, before, branch=saved.branch, apart=True)
    Trainer(quick_config(), store, ds, run="run").fit(resume=True)
    assert receipt_of(checkpoints.load(store, "run")).steps == 15


def test_what_cannot_be_digested_cheaply_is_named_without_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leptonstore import limits

    files = idx_files(tmp_path / "raw")
    monkeypatch.setattr(limits, "SOURCE_DIGEST_BYTES_MAX", sum(map(len, files.values())) - 1)
    assert all("digest" not in file for file in open_source(tmp_path / "raw", "idx").lineage["files"])
